defmodule LogPipeline do
  @moduledoc """
  A program's log, line by line, through a filter into another program.

      children = [
        {LogPipeline,
         from: {:search, ["journalctl", "--follow", "--output=cat"]},
         to: "exec cat >> /var/log/errors.log",
         filter: fn line -> if line =~ "error", do: "ERR " <> line end}
      ]

      Supervisor.start_link(children, strategy: :one_for_one)

  | option | default | |
  |---|---|---|
  | `:from`, `:to` | required | any command of `Stdio.stream!/3` |
  | `:filter` | all lines | gets a line without its end, gives the one to write, or `nil` |
  | `:max_line` | 65536 | bytes, after which a line is split |
  | `:config` | `[]` | for both programs |
  | `:name`, `:max_restarts`, `:max_seconds` | | of the supervisor |

  ## Rules

  1. Two `Stdio.Daemon`s under a supervisor: the sink first, as the source needs it. One that ends, for
     whatever reason, is started anew; if it is the sink, the source is too, so that no line is written
     to two halves (`:rest_for_one`).
  2. A line is written in the source's server, which blocks while the sink is slow; so the source's
     output is not read, its pipe fills, and the program blocks. Between the two are at most what the
     pipes hold, 64 KiB in the sink's queue, and the chunks that the source's server has been sent: 16.
  3. A last line without an end is written when the source ends.
  4. What the sink has not read when it ends is lost. Each line is written at once, so that a sink
     that is killed has at most what its pipe holds, and it is asked by SIGTERM first.
  5. A filter that raises ends the source, which is restarted, after the line.
  """

  use Supervisor

  @defaults [
    filter: &Function.identity/1,
    max_line: 65_536,
    config: [],
    name: nil,
    max_restarts: 3,
    max_seconds: 5
  ]

  def child_spec(opts) do
    %{id: opts[:name] || __MODULE__, start: {__MODULE__, :start_link, [opts]}, type: :supervisor}
  end

  @spec start_link(keyword) :: Supervisor.on_start()
  def start_link(opts) do
    opts = Keyword.validate!(opts, [:from, :to | @defaults])
    name = if opts[:name], do: [name: opts[:name]], else: []
    Supervisor.start_link(__MODULE__, opts, name)
  end

  @doc "The daemon of the source or of the sink; `nil` while it is restarted."
  @spec daemon(Supervisor.supervisor(), :source | :sink) :: pid | nil
  def daemon(supervisor, id) do
    Enum.find_value(Supervisor.which_children(supervisor), fn
      {^id, pid, _, _} when is_pid(pid) -> pid
      _ -> nil
    end)
  end

  @impl Supervisor
  def init(opts) do
    # The source finds the sink of this pipeline by it, whoever has been restarted.
    sink = {:global, {__MODULE__, self(), make_ref()}}
    line = %{sink: sink, filter: opts[:filter], max: opts[:max_line]}

    Supervisor.init(
      [
        {Stdio.Daemon, id: :sink, name: sink, command: opts[:to], config: opts[:config]},
        {Stdio.Daemon,
         id: :source,
         command: opts[:from],
         config: [stdin: :null] ++ opts[:config],
         on_output: {__MODULE__, :chunk, [line]},
         exit_reason: &last(&1, line)}
      ],
      [strategy: :rest_for_one] ++ Keyword.take(opts, [:max_restarts, :max_seconds])
    )
  end

  ## In the server of the source, whose dictionary has the beginnings of lines.

  @doc false
  def chunk({stream, chunk}, line) do
    [last | lines] = [held(stream), chunk] |> IO.iodata_to_binary() |> lines(line.max)
    lines |> Enum.reverse() |> write(line)
    Process.put({__MODULE__, stream}, :binary.copy(last))
  end

  defp held(stream), do: Process.get({__MODULE__, stream}, "")

  # The last first; it has no end yet.
  defp lines(bytes, max) do
    bytes |> :binary.split("\n", [:global]) |> Enum.flat_map(&parts(&1, max)) |> Enum.reverse()
  end

  defp parts(line, max) when byte_size(line) <= max, do: [line]

  defp parts(line, max) do
    {part, rest} = :erlang.split_binary(line, max)
    [part | parts(rest, max)]
  end

  defp write(lines, %{filter: filter, sink: sink}) do
    case for(line <- lines, kept = filter.(line), do: [kept, ?\n]) do
      [] ->
        :ok

      kept ->
        # It is gone: so is this source, and both are started anew.
        with {:error, :epipe} <- Stdio.Daemon.write(sink, kept), do: exit({:shutdown, :sink})
    end
  end

  defp last(terminal, line) do
    for stream <- [:stdout, :stderr], held = held(stream), held != "", do: write([held], line)
    {:shutdown, terminal}
  end
end
