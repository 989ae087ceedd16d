defmodule Stdio.Cmd do
  @moduledoc false
  # `Stdio.cmd`: a stream, reduced in the calling process.
  #
  # Rules:
  #
  #   1. Everything is validated before the collectable is opened, and that is opened before the
  #      program is started. Whatever fails after that halts the collectable.
  #   2. stdout goes to the collectable, stderr to the :standard_error device, each as it comes.
  #   3. The device takes characters: valid UTF-8 goes through as it is, also across chunks, and any
  #      other byte as the Latin-1 character it is.

  @own [:into, :lines, :input, :stderr_to_stdout, :arg0, :behaviour, :parallelism]

  @type result :: {Collectable.t(), 0..255 | {:termsig, atom}}

  @doc "`cmd/2`: which of its two forms it is."
  @spec either(Stdio.command(), keyword | [binary]) :: result
  def either(command, [_ | _] = second) do
    if Keyword.keyword?(second), do: command(command, second), else: program(command, second, [])
  end

  def either(program, args), do: program(program, args, [])

  @doc "A program and its arguments."
  @spec program(binary, [binary], keyword) :: result
  def program(program, args, opts) do
    if not is_binary(program) do
      raise ArgumentError,
            "with arguments, the program must be a binary, got: #{inspect(program)} (any other " <>
              "command goes without them: cmd(command) or cmd(command, opts))"
    end

    if not binaries?(args) do
      raise ArgumentError, "the arguments must be a list of binaries, got: #{inspect(args)}"
    end

    command({:search, [program | args]}, opts)
  end

  # Proper lists only.
  defp binaries?(list) when length(list) >= 0, do: Enum.all?(list, &is_binary/1)
  defp binaries?(_other), do: false

  @doc "Any command."
  @spec command(Stdio.command(), keyword) :: result
  def command(command, opts) do
    if not Keyword.keyword?(opts) do
      raise ArgumentError, "options must be a keyword list, got: #{inspect(opts)}"
    end

    {own, config} = Keyword.split(opts, @own)
    Enum.each(own, &option!/1)
    stream = stream(command, own, config)
    {initial, collect} = Collectable.into(Keyword.get(own, :into, ""))

    try do
      stream
      |> Stream.transform("", &divert/2)
      |> lines(own[:lines])
      |> Enum.reduce({initial, nil}, &collect(&1, &2, collect))
    catch
      kind, reason ->
        collect.(initial, :halt)
        :erlang.raise(kind, reason, __STACKTRACE__)
    else
      {collected, exit} -> {collect.(collected, :done), exit}
    end
  end

  defp option!({:into, into}),
    do: Collectable.impl_for(into) || invalid!(:into, into, "a Collectable")

  defp option!({:lines, lines}),
    do: (is_integer(lines) and lines > 0) || invalid!(:lines, lines, "an integer >= 1")

  defp option!({:input, input}) do
    is_binary(input) or Enumerable.impl_for(input) != nil ||
      invalid!(:input, input, "a binary or an enumerable of iodata")
  end

  defp option!({:stderr_to_stdout, value}),
    do: is_boolean(value) || invalid!(:stderr_to_stdout, value, "true or false")

  defp option!({:arg0, name}) do
    (is_binary(name) and not String.contains?(name, <<0>>)) ||
      invalid!(:arg0, name, "a binary without a NUL byte")
  end

  defp option!({key, _}) when key in [:behaviour, :parallelism], do: true

  @spec invalid!(atom, term, String.t()) :: no_return
  defp invalid!(key, value, allowed) do
    raise ArgumentError,
          "invalid value #{inspect(value)} for option #{inspect(key)}; allowed: #{allowed}"
  end

  defp stream(command, own, config) do
    behaviour = Keyword.get(own, :behaviour, Stdio.Process)
    {command, config} = rename(command, own[:arg0], config)
    config = stderr(config, own[:stderr_to_stdout])

    case Keyword.fetch(own, :input) do
      {:ok, input} ->
        input = if is_binary(input), do: [input], else: input
        Stdio.__run__(command, behaviour, config, :pipe, {:feed, input}, @own)

      :error ->
        config = Keyword.put_new(config, :stdin, :null)
        Stdio.__run__(command, behaviour, config, :stream, nil, @own)
    end
  end

  defp stderr(config, true) do
    case Keyword.get(config, :stderr, :stdout) do
      :null ->
        raise ArgumentError, "options stderr_to_stdout: true and stderr: :null exclude each other"

      _ ->
        Keyword.put(config, :stderr, :stdout)
    end
  end

  defp stderr(config, _), do: config

  # argv[0] only. What is no command stays so, for the validation of commands to say.
  defp rename(command, nil, config), do: {command, config}

  defp rename(line, name, config) when is_binary(line),
    do: {{"/bin/sh", [name, "-c", line]}, Keyword.delete(config, :search)}

  defp rename({:search, [program | args]}, name, config),
    do: {{program, [name | args]}, Keyword.put(config, :search, true)}

  defp rename([program | args], name, config), do: {{program, [name | args]}, config}
  defp rename({program, [_ | args]}, name, config), do: {{program, [name | args]}, config}

  defp rename({program, []}, name, config) when program != :search,
    do: {{program, [name]}, config}

  defp rename(other, _name, config), do: {other, config}

  defp lines(stream, nil), do: stream
  defp lines(stream, _hint), do: stream |> Stdio.Stream.lines() |> Stream.map(&chomp/1)

  defp chomp({:stdout, line}), do: {:stdout, String.replace_suffix(line, "\n", "")}
  defp chomp(terminal), do: terminal

  defp collect({:stdout, data}, {collected, nil}, collect),
    do: {collect.(collected, {:cont, data}), nil}

  defp collect({:exit_status, status}, {collected, nil}, _collect), do: {collected, status}
  defp collect({:termsig, _} = exit, {collected, nil}, _collect), do: {collected, exit}

  # Rules 2 and 3. `held` is the beginning of a character.
  defp divert({:stdout, _} = element, held), do: {[element], held}

  defp divert({:stderr, chunk}, held) do
    {text, held} = characters(held <> chunk, [])
    write(text)
    {[], held}
  end

  defp divert(terminal, held) do
    write(latin1(held))
    {[terminal], ""}
  end

  defp characters(bytes, text) do
    case :unicode.characters_to_binary(bytes) do
      {:incomplete, valid, rest} ->
        {[text, valid], rest}

      {:error, valid, <<byte, rest::binary>>} ->
        characters(rest, [text, valid, <<byte::utf8>>])

      valid ->
        {[text, valid], ""}
    end
  end

  defp latin1(bytes), do: for(<<byte <- bytes>>, into: "", do: <<byte::utf8>>)

  defp write(""), do: :ok
  defp write(text), do: IO.write(:stderr, text)
end
