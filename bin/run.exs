# Run by bin/run. The modules are in the code path; arguments are the command, or none for the tour.

defmodule Run do
  @moduledoc false

  # A line without an end is printed in pieces of this size, so that memory stays bounded.
  @longest_line 65536

  def main([]), do: Run.Tour.main()

  def main([word]) do
    if word =~ ~r/\s/, do: run(word), else: run({:search, [word]})
  end

  def main(words), do: run({:search, words})

  defp run(command) do
    # The command's bytes are passed on as they are.
    :io.setopts(:standard_io, encoding: :latin1)

    command
    |> Stdio.stream!(Stdio.Process, stdin: :null)
    |> Enum.reduce(%{stdout: "", stderr: ""}, &element/2)
    |> System.halt()
  rescue
    error in Stdio.StreamError ->
      IO.puts(:stderr, "bin/run: " <> Exception.message(error))
      System.halt(if error.reason == :enoent, do: 127, else: 126)
  end

  defp element({stream, data}, rest) when stream in [:stdout, :stderr] do
    {lines, [last]} = :binary.split(rest[stream] <> data, "\n", [:global]) |> Enum.split(-1)

    if byte_size(last) > @longest_line do
      print(stream, lines ++ [last])
      %{rest | stream => ""}
    else
      print(stream, lines)
      %{rest | stream => last}
    end
  end

  # Always the last element: what is left has no line end.
  defp element(terminal, rest) do
    for {stream, last} <- rest, last != "", do: print(stream, [last])
    status(terminal)
  end

  defp status({:exit_status, status}), do: status

  # A real-time signal has no name.
  defp status({:termsig, :unknown}), do: 255
  defp status({:termsig, signal}), do: 128 + Stdio.Signal.signal_number!(signal)

  defp print(_, []), do: :ok

  defp print(stream, lines) do
    tag = colour(stream, "#{stream}│ ")

    case :file.write(:standard_io, for(line <- lines, do: [tag, line, "\n"])) do
      :ok -> :ok
      # Whoever read the output has gone: end as by SIGPIPE.
      {:error, _} -> System.halt(141)
    end
  end

  def colour(kind, text) do
    if System.get_env("STDIO_RUN_COLOUR") do
      [%{stdout: "\e[32m", stderr: "\e[31m", title: "\e[1m", code: "\e[36m"}[kind], text, "\e[0m"]
    else
      text
    end
  end
end

defmodule Run.Tour do
  @moduledoc false

  # Title, then the expression that is shown and run as it stands here.
  @steps [
    {"A program's output is a stream; its exit status is the last element.",
     ~S"""
     Stdio.stream!("echo hello; exit 3") |> Enum.to_list()
     """},
    {"stderr is a stream of its own.",
     ~S"""
     Stdio.stream!("echo result; echo warning >&2") |> Enum.sort()
     """},
    {"Arguments go straight to the program: no shell, no quoting.",
     ~S"""
     Stdio.stream!({:search, ["printf", "%s|", "a b", "$HOME", "*"]}) |> Enum.to_list()
     """},
    {"argv[0] can differ from the path.",
     ~S"""
     Stdio.stream!({"/bin/sh", ["another name", "-c", "echo $0"]}) |> Enum.to_list()
     """},
    {"An enumerable is piped in, an element at a time, as fast as the program reads.",
     ~S"""
     Stream.map(1..5, &"line #{&1}\n") |> Stdio.pipe!("grep -n '[24]'") |> Enum.to_list()
     """},
    {"A signal is reported as one.",
     ~S"""
     Stdio.stream!("kill -TERM $$") |> Enum.to_list()
     """},
    {"A program that cannot be started raises, with the reason.",
     ~S"""
     Stdio.stream!(["/no/such/program"]) |> Enum.to_list()
     """},
    {"Taking some of an endless output ends the program.",
     ~S"""
     Stdio.stream!("while :; do echo tick; sleep 0.05; done") |> Enum.take(3)
     """},
    {"A deadline.",
     ~S"""
     Stdio.stream!("echo started; sleep 60", Stdio.Process, timeout: 200) |> Enum.to_list()
     """},
    {"What a program leaves behind is ended too, even in a session of its own.",
     ~S"""
     Stdio.stream!("setsid sleep MARK & echo started") |> Enum.to_list()
     """},
    {"... is it still there?",
     ~S"""
     Run.Tour.processes("sleep MARK")
     """},
    {"No network: the one interface in there is a loopback of its own.",
     ~S"""
     Stdio.stream!("tail -n +3 /proc/net/dev | cut -d: -f1", Stdio.Process, net: :none)
     |> Enum.to_list()
     """},
    {"A process-id namespace of its own, where the program is number 1.",
     ~S"""
     Stdio.stream!("echo I am $$", Stdio.Process, containment: :pid_namespace) |> Enum.to_list()
     """}
  ]

  def main do
    # Every program starts where the tour is; "/" is open to all users.
    File.cd!("/")
    # A number that no other sleep has, to find this one by.
    mark = "#{1_000_000 + System.unique_integer([:positive])}.#{System.pid()}"

    for {title, code} <- @steps do
      code = code |> String.trim() |> String.replace("MARK", mark)
      IO.puts(["\n", Run.colour(:title, ["# ", title])])
      IO.puts(Run.colour(:code, code))
      IO.puts(["=> ", result(code)])
    end
  end

  defp result(code) do
    {value, _} = Code.eval_string(code)
    inspect(value, width: 98)
  rescue
    error in [Stdio.StreamError, Stdio.OpError] ->
      ["** (", inspect(error.__struct__), ") ", Exception.message(error)]
  end

  @doc "The command lines in /proc which contain `text`."
  def processes(text) do
    for dir <- Path.wildcard("/proc/[0-9]*"),
        {:ok, line} <- [File.read(Path.join(dir, "cmdline"))],
        line = String.replace(line, <<0>>, " "),
        String.contains?(line, text),
        do: line
  end
end

Run.main(System.argv())
