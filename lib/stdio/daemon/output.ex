defmodule Stdio.Daemon.Output do
  @moduledoc false
  # Where a daemon's output goes: to the log, line by line, and to `:on_output`, as it is. Of each
  # stream at most one partial line is held, of no more than @line bytes.

  require Logger

  @line 16 * 1024

  defstruct [:level, :on_output, prefix: "", held: %{stdout: "", stderr: ""}]

  @type t :: %__MODULE__{}

  @doc "Of the validated options of a daemon."
  @spec new(keyword) :: t
  def new(options) do
    %__MODULE__{
      level: options[:log_output],
      prefix: Keyword.get(options, :log_prefix, ""),
      on_output: options[:on_output]
    }
  end

  @doc "One chunk. What `:on_output` raises comes back, with the lines that were logged by then."
  @spec deliver(t, Stdio.Daemon.output()) ::
          {:ok, t} | {:raised, {:error | :exit | :throw, term, list}, t}
  def deliver(%__MODULE__{} = output, {stream, chunk} = element) do
    output = log(output, stream, chunk)

    try do
      call(output.on_output, element)
      {:ok, output}
    catch
      kind, reason -> {:raised, {kind, reason, __STACKTRACE__}, output}
    end
  end

  @doc "Calls `:on_output` no more."
  @spec mute(t) :: t
  def mute(output), do: %{output | on_output: nil}

  @doc "Logs the last lines, those without an end."
  @spec finish(t) :: :ok
  def finish(%__MODULE__{held: held} = output) do
    for stream <- [:stdout, :stderr], (line = Map.fetch!(held, stream)) != "" do
      write(output, stream, line)
    end

    :ok
  end

  defp call(nil, _element), do: :ok
  defp call({module, function, args}, element), do: apply(module, function, [element | args])
  defp call(fun, element), do: fun.(element)

  defp log(%{level: nil} = output, _stream, _chunk), do: output

  defp log(%{held: held} = output, stream, chunk) do
    {lines, [last]} =
      (Map.fetch!(held, stream) <> chunk) |> :binary.split("\n", [:global]) |> Enum.split(-1)

    for line <- lines, do: write(output, stream, split(output, stream, line))
    # A copy, so that it does not keep the chunk.
    rest = output |> split(stream, last) |> :binary.copy()
    %{output | held: %{held | stream => rest}}
  end

  # Writes all but the last part of a long line.
  defp split(_output, _stream, line) when byte_size(line) <= @line, do: line

  defp split(output, stream, line) do
    size = boundary(line, @line)
    write(output, stream, binary_part(line, 0, size))
    split(output, stream, binary_part(line, size, byte_size(line) - size))
  end

  # Not within a character, if the bytes are UTF-8: it has three more bytes than its first, at most.
  defp boundary(line, at) do
    Enum.find(at..(at - 3)//-1, at, &(Bitwise.band(:binary.at(line, &1), 0xC0) != 0x80))
  end

  defp write(%{level: level, prefix: prefix}, stream, line),
    do: Logger.log(level, prefix <> text(line), stream: stream)

  defp text(line),
    do: if(String.valid?(line), do: line, else: line |> valid([]) |> IO.iodata_to_binary())

  defp valid(bytes, text) do
    case :unicode.characters_to_binary(bytes) do
      {:error, valid, <<_, rest::binary>>} -> valid(rest, [text, valid, "\uFFFD"])
      {:incomplete, valid, _rest} -> [text, valid, "\uFFFD"]
      valid -> [text, valid]
    end
  end
end
