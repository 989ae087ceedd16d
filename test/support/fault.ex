defmodule Stdio.Test.Fault do
  @moduledoc """
  What the tests in `test/faults` share: finding the helper's processes, running streams aside,
  saying what was measured.

  `STDIO_FULL=1` runs the sizes that FAULTS asks for, instead of those that fit into CI.
  """

  alias Stdio.Test.{Oracle, Proc}

  @typedoc "How a stream came to its end."
  @type outcome ::
          {:exit_status, 0..255} | {:termsig, atom} | {:error, Exception.t()} | {:raised, term}

  ## Sizes and figures

  @doc "`ci`, or `full` with STDIO_FULL=1."
  @spec size(term, term) :: term
  def size(ci, full), do: if(System.get_env("STDIO_FULL") == "1", do: full, else: ci)

  @doc """
  How many of `all` points a sweep takes: `ci`, or with STDIO_FULL=1 all of them, or so many as
  STDIO_POINTS says.
  """
  @spec sample_size(non_neg_integer, non_neg_integer) :: non_neg_integer
  def sample_size(ci, all) do
    case System.get_env("STDIO_POINTS") do
      nil -> size(ci, all)
      most -> size(ci, min(all, String.to_integer(most)))
    end
  end

  @doc "Prints a figure, in a line of its own, for whoever compares runs."
  @spec report(String.t()) :: :ok
  def report(text), do: IO.puts("\n  measured: #{text}")

  @doc "The spread of some durations."
  @spec spread([number]) :: String.t()
  def spread(times) do
    sorted = Enum.sort(times)
    count = length(sorted)
    at = fn percent -> Enum.at(sorted, min(count - 1, div(count * percent, 100))) end
    "p50 #{at.(50)} ms, p99 #{at.(99)} ms, most #{List.last(sorted)} ms of #{count}"
  end

  @doc "So many of a list, evenly spaced: the same in every run."
  @spec spaced([point], non_neg_integer) :: [point] when point: term
  def spaced(list, count) do
    length = length(list)
    count = min(count, length)
    for index <- 0..(count - 1)//1, do: Enum.at(list, div(index * length, count))
  end

  ## The helper's processes

  @doc """
  Runs a stream and waits for what Stdio keeps after the first one: a launcher and one supervisor
  whose child waits for a program. Returns the launcher. A baseline is taken after this.
  """
  @spec warm_up() :: Proc.os_pid()
  def warm_up do
    [exit_status: 0] = Enum.to_list(Stdio.stream!("true"))

    Proc.wait_until(fn ->
      launcher = launcher()
      if launcher && settled?(launcher), do: launcher
    end) || raise "there is no launcher with one spare supervisor: #{inspect(Proc.table())}"
  end

  @doc "Whether a launcher has what it keeps between streams, and no more."
  @spec settled?(Proc.os_pid()) :: boolean
  def settled?(launcher) do
    case supervisors(launcher) do
      [spare] -> match?([_], waiting(spare))
      _ -> false
    end
  end

  @doc """
  The children of a spare supervisor that sleep, with all the descriptors they wait with; a user who
  may not look at these cannot count them either.
  """
  @spec waiting(Proc.os_pid()) :: [Proc.os_pid()]
  def waiting(spare) do
    for pid <- Stdio.Procfs.children(spare),
        %{state: "S"} <- [Proc.stat(pid)],
        fds <- [Proc.fds(pid)],
        fds == nil or "anon_inode:[signalfd]" in Map.values(fds),
        do: pid
  end

  @doc "The one spare supervisor of a launcher, when no other is on its way: trimming takes 30 ms."
  @spec spare(Proc.os_pid()) :: Proc.os_pid()
  def spare(launcher) do
    steady = fn ->
      with true <- settled?(launcher),
           [spare] <- supervisors(launcher),
           Process.sleep(60),
           true <- settled?(launcher) and supervisors(launcher) == [spare],
           do: spare,
           else: (_ -> nil)
    end

    Proc.wait_until(steady, 10_000) ||
      raise "there is not one spare supervisor: #{inspect(supervisors(launcher))}"
  end

  @doc """
  Starts a fixture outside of any tree, whose stdout is that of process `pid`: `[name, mark | words]`.
  """
  @spec hold_from_outside(Proc.os_pid(), [String.t()]) :: port
  def hold_from_outside(pid, [name, mark | words]) do
    script = ~S(exec 3>"/proc/$0/fd/1"; echo open; exec "$@" >&3 2>/dev/null)
    args = ["-c", script, "#{pid}", Proc.fixture(name), mark | words]
    port = Port.open({:spawn_executable, "/bin/sh"}, [:binary, args: args])

    receive do
      {^port, {:data, "open\n"}} -> port
    after
      5_000 -> raise "cannot open the stdout of #{pid}"
    end
  end

  @doc "The launcher of a BEAM, nil if there is none."
  @spec launcher(Proc.os_pid()) :: Proc.os_pid() | nil
  def launcher(beam \\ Proc.os_pid()) do
    Enum.find_value(Proc.table(), fn {pid, entry} ->
      if entry.ppid == beam and entry.name == "stdio-supervise" and entry.state not in ["Z", "X"],
        do: pid
    end)
  end

  @doc "A launcher's living supervisors."
  @spec supervisors(Proc.os_pid()) :: [Proc.os_pid()]
  def supervisors(launcher) do
    for {pid, %{ppid: ^launcher, state: state}} <- Proc.table(), state not in ["Z", "X"], do: pid
  end

  @doc "The supervisor of the marked processes. There has to be one."
  @spec supervisor_of(String.t()) :: Proc.os_pid()
  def supervisor_of(mark) do
    parents = for pid <- Proc.find(mark), %{ppid: parent} <- [Proc.stat(pid)], do: parent

    [supervisor] =
      for pid <- Enum.uniq(parents), match?(%{name: "Supervise"}, Proc.stat(pid)), do: pid

    supervisor
  end

  @doc """
  Everything that a launcher has ever forked and that is not a program yet: launchers lead a
  session, which supervisors keep even when their launcher is dead.
  """
  @spec helpers(Proc.os_pid()) :: [Proc.os_pid()]
  def helpers(launcher) do
    for {pid, %{sid: ^launcher, state: state}} <- Proc.table(), state not in ["Z", "X"], do: pid
  end

  ## Streams

  @doc "Waits until `count` marked processes run."
  @spec await_marked(String.t(), pos_integer, timeout) :: [Proc.os_pid()]
  def await_marked(mark, count, timeout \\ 10_000) do
    Proc.wait_until(fn -> if length(found = Proc.find(mark)) >= count, do: found end, timeout) ||
      raise "#{length(Proc.find(mark))} instead of #{count} processes with #{mark}"
  end

  @doc """
  Enumerates a stream to its end: its one terminal element, or what it raised. Only the terminal
  is kept, so any amount of output will do.
  """
  @spec outcome(Enumerable.t()) :: outcome
  def outcome(stream) do
    stream |> Enum.reject(fn {kind, _} -> kind in [:stdout, :stderr] end) |> Oracle.terminal!()
  rescue
    error in [Stdio.StreamError, Stdio.OpError] -> {:error, error}
  end

  @doc "Runs `fun` in a process of its own, see `await/2`."
  @spec aside((() -> term)) :: Task.t()
  def aside(fun) do
    Task.async(fn ->
      result = fun.()
      {result, Proc.messages()}
    end)
  end

  @doc "The result of a process started by `aside/1`, which has to end with an empty mailbox."
  @spec await(Task.t(), timeout) :: term
  def await(task, timeout \\ 10_000) do
    case Task.yield(task, timeout) || Task.shutdown(task, :brutal_kill) do
      {:ok, {result, []}} ->
        result

      {:ok, {result, left}} ->
        raise ExUnit.AssertionError,
          message: "left in the mailbox: #{inspect(left)}; result: #{inspect(result)}"

      nil ->
        raise ExUnit.AssertionError, message: "no end of the stream within #{timeout} ms"
    end
  end

  @doc "Elapsed milliseconds since `started`, a `System.monotonic_time()`."
  @spec elapsed(integer) :: float
  def elapsed(started) do
    micros = System.convert_time_unit(System.monotonic_time() - started, :native, :microsecond)
    micros / 1000
  end

  @doc "Sleeps for so many microseconds, more exactly than the BEAM's timers."
  @spec pause_us(non_neg_integer) :: :ok
  def pause_us(micros) do
    Process.sleep(div(micros, 1000))

    spin(
      System.monotonic_time() + System.convert_time_unit(rem(micros, 1000), :microsecond, :native)
    )
  end

  defp spin(until), do: if(System.monotonic_time() < until, do: spin(until), else: :ok)
end
