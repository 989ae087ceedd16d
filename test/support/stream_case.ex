defmodule Stdio.Test.StreamCase do
  @moduledoc """
  A case for tests that run programs: `use Stdio.Test.StreamCase` (never `async`, as it counts).

  Around every test stands `Stdio.Test.Oracle`: afterwards no process with the test's `mark`, no
  zombie, descriptor, thread or mount more than before. What it cannot see from outside, the test's
  own mailbox, is for the test to look at: `assert messages() == []`.

  The context has

  | key | |
  |---|---|
  | `:launcher` | its pid |
  | `:mark` | to put into the arguments of programs, see `Stdio.Test.Proc` |
  | `:dir` | with `@tag :dir`, a directory that programs under any uid may read and write |
  """

  use ExUnit.CaseTemplate

  alias Stdio.Test.{Fault, Oracle, Proc}

  using do
    quote do
      @moduletag :testbin
      import Stdio.Test.StreamCase
      alias Stdio.Test.{Fixtures, Oracle, Proc}
    end
  end

  setup_all do
    %{launcher: Fault.warm_up()}
  end

  setup context do
    # What stays between streams has to be there before anything is counted: the launcher, and one
    # spare supervisor with its child. A test before may have ended them.
    launcher =
      if Proc.alive?(context.launcher) and Fault.settled?(context.launcher),
        do: context.launcher,
        else: Fault.warm_up()

    mark = Proc.mark()
    before = Oracle.snapshot()
    on_exit(fn -> clean!(before, mark) end)

    around = %{launcher: launcher, mark: mark}
    if context[:dir], do: Map.put(around, :dir, open_dir(mark)), else: around
  end

  # Looking for the mark once is enough, as no process here changes its pid all the time; to be
  # sure of that would take long on a busy machine.
  defp clean!(before, mark) do
    gone? = Proc.wait_until(fn -> Proc.find(mark) == [] end)
    marks = if gone?, do: [], else: [mark]
    Oracle.assert_clean(before, marks, except: [:messages], within: 5000)
  end

  defp open_dir(mark) do
    dir = Path.join(System.tmp_dir!(), "dir-" <> mark)
    File.mkdir!(dir)
    File.chmod!(dir, 0o777)
    on_exit(fn -> File.rm_rf!(dir) end)
    dir
  end

  @doc "All elements of a program's stream."
  @spec list(term, keyword) :: [tuple]
  def list(command, config \\ []) do
    Enum.to_list(Stdio.stream!(command, Stdio.Process, config))
  end

  @doc "All elements of a program that is fed."
  @spec pipe(Enumerable.t(), term, keyword) :: [tuple]
  def pipe(input, command, config \\ []) do
    Enum.to_list(Stdio.pipe!(input, command, Stdio.Process, config))
  end

  @doc "The joined bytes of one stream."
  @spec output([tuple], :stdout | :stderr) :: binary
  def output(elements, stream \\ :stdout) do
    for {^stream, chunk} <- elements, into: "", do: chunk
  end

  @doc "What `show-fds` says of the state it was born with."
  @spec born_with(String.t(), keyword) :: %{String.t() => String.t()}
  def born_with(mark, config \\ []) do
    elements = list([Proc.fixture("show-fds"), mark], config)
    {:exit_status, 0} = Oracle.terminal!(elements)

    for line <- elements |> output() |> String.split("\n", trim: true), into: %{} do
      [key, value] = String.split(line, "=", parts: 2)
      {key, value}
    end
  end

  @doc "What `show-args`, which ran with these elements, was given: `{argv, environment}`."
  @spec given([tuple]) :: {[binary], [binary]}
  def given(elements) do
    {:exit_status, 0} = Oracle.terminal!(elements)
    ["argc=" <> count | rest] = elements |> output() |> :binary.split(<<0>>, [:global])
    {items, [""]} = Enum.split(rest, -1)
    Enum.split(items, String.to_integer(count))
  end

  @doc """
  Runs a program that prints `ready` and sleeps, and calls `fun` with its pid; then halts it. For
  what the kernel shows from outside.
  """
  @spec while_running(String.t(), keyword, (Proc.os_pid() -> result)) :: result when result: term
  def while_running(mark, config, fun) do
    [Proc.fixture("never-read"), mark]
    |> Stdio.stream!(Stdio.Process, config)
    |> Enum.reduce_while(nil, fn {:stdout, "ready\n"}, nil ->
      [pid] = Proc.find(mark)
      {:halt, fun.(pid)}
    end)
  end

  @doc """
  Runs a program, `fun.(timeout)`, with a timeout (ms) that leaves it the time to get as far as the test
  needs it, which is when `ready?` holds of its elements: the first of several. A busy machine may hold a
  program up for longer than a test wants to wait on an idle one.

  Returns `{timeout, elapsed ms, elements}`, of the last one if it never was.
  """
  @spec with_timeout((pos_integer -> [tuple]), ([tuple] -> boolean)) ::
          {pos_integer, non_neg_integer, [tuple]}
  def with_timeout(fun, ready? \\ &(output(&1) =~ "ready\n")) do
    Enum.reduce_while([300, 3_000, 10_000], nil, fn timeout, _ ->
      {elapsed, elements} = timed(fn -> fun.(timeout) end)
      {if(ready?.(elements), do: :halt, else: :cont), {timeout, elapsed, elements}}
    end)
  end

  @doc "The messages in the caller's mailbox."
  @spec messages() :: [term]
  def messages, do: Proc.messages()

  @doc "Whether the BEAM, and so the helper, runs as root."
  @spec root?() :: boolean
  def root?, do: beam_uid() == 0

  @spec beam_uid() :: non_neg_integer
  def beam_uid, do: File.stat!("/proc/self").uid

  @doc "Milliseconds that `fun` takes, and its result."
  @spec timed((() -> result)) :: {non_neg_integer, result} when result: term
  def timed(fun) do
    started = System.monotonic_time(:millisecond)
    result = fun.()
    {System.monotonic_time(:millisecond) - started, result}
  end
end
