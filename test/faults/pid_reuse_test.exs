defmodule Stdio.Faults.PidReuseTest do
  # FAULTS row 43: a BEAM in a PID namespace that has 100 pids to give out, among processes which
  # have nothing to do with it and take each pid as soon as it is free. Whatever it does with its
  # programs, none of those gets a signal.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault
  alias Stdio.Test.Peer

  @moduletag :pid_max
  @moduletag timeout: 300_000

  # In the order of the namespaces: root of one of its own, to set its pid_max; then a user in it, as
  # programs of root are given uids that are not mapped here.
  @enter """
  echo 400 > /proc/sys/kernel/pid_max && [ "$(cat /proc/sys/kernel/pid_max)" = 400 ] || exit 9
  exec unshare --user --map-user=1000 --map-group=1000 "$@"
  """

  @churn ~S"""
  strangers = fn ms, work ->
    argv = [mark, "40", Integer.to_string(ms)]
    port = Port.open({:spawn_executable, bystanders}, [:binary, {:line, 1000}, args: argv])
    receive do {^port, {:data, {:eol, "ready"}}} -> :ok end
    count = work.(System.monotonic_time(:millisecond) + ms - 100, 0)
    receive do {^port, {:data, {:eol, said}}} -> IO.puts("#{said} #{count}") end
  end

  # No pid may be free, and a helper without pids is one that has to be started again.
  attempt = fn fun ->
    try do
      fun.()
    rescue
      error in [Stdio.StreamError, Stdio.OpError, MatchError] -> error
    end
  end

  ways = [
    fn -> Enum.to_list(Stdio.stream!("exit 3")) end,
    fn -> Enum.take(Stdio.stream!("yes"), 1) end,
    # What it leaves, in and out of its session.
    fn -> Enum.to_list(Stdio.stream!("sleep 60 & setsid sleep 60 & (sleep 60 &)")) end,
    # Deadlines that come when the program has just ended, or is about to.
    fn -> Enum.to_list(Stdio.stream!("sleep 0.01", Stdio.Process, timeout: 12)) end,
    fn ->
      config = [timeout: 10, kill_signal: :sigterm, kill_timeout: 3]
      Enum.to_list(Stdio.stream!("trap 'exit 1' TERM; sleep 0.01; exit 2", Stdio.Process, config))
    end,
    # Halted while it ends.
    fn -> Enum.take(Stdio.stream!("echo a; exit 4", Stdio.Process, kill_signal: :sigterm), 1) end,
    fn ->
      spawn(fn -> attempt.(fn -> Stream.run(Stdio.stream!("sleep 0.005; echo")) end) end)
      |> then(fn pid -> Process.sleep(:rand.uniform(15)); Process.exit(pid, :kill) end)
    end,
    # Phase by phase, and tasks that are stopped as they end.
    fn -> Enum.take(Stdio.stream!("echo a", Stdio.Test.Plain), 1) end,
    fn ->
      {:ok, root} = Stdio.Task.fork()
      tasks = for _ <- 1..3, {:ok, task} <- [Stdio.Task.fork(root)], do: task
      for task <- tasks, do: Stdio.Task.execve(task, ["/bin/sh", "-c", "sleep 0.003"], [])
      Process.sleep(:rand.uniform(8))
      Enum.each(tasks, &Stdio.Task.stop/1)
      Stdio.Task.stop(root)
    end,
    fn ->
      {:ok, supervisor} = Stdio.supervisor()
      {:ok, task} = Stdio.Task.fork(supervisor.init)
      Stdio.Task.execve(task, ["/bin/sh", "-c", "sleep 0.002 & exit 0"], [])
      Process.sleep(:rand.uniform(6))
      Stdio.reap(%Stdio.ProcessTree{supervisor: supervisor})
      Stdio.Task.stop(supervisor.init)
    end
  ]

  work = fn until, count, work ->
    if System.monotonic_time(:millisecond) >= until do
      count
    else
      attempt.(Enum.random(ways))
      work.(until, count + 1, work)
    end
  end

  several = fn until, _ ->
    for(_ <- 1..3, do: Task.async(fn -> work.(until, 0, work) end))
    |> Enum.map(&Task.await(&1, :infinity))
    |> Enum.sum()
  end

  strangers.(ms, several)

  # The premise: who signals a pid of long ago meets a stranger. Again with another one, as some are
  # taken by what lasts, the next supervisor or the shell itself.
  stale = fn ->
    [stdout: pid, exit_status: 0] = Enum.to_list(Stdio.stream!("echo $$"))
    line = "while :; do kill #{String.trim(pid)}; done 2> /dev/null"
    config = [stderr: :null, timeout: 200]
    Enum.to_list(Stdio.stream!(line, Stdio.Process, config))
  end

  again = fn until, count, again ->
    if System.monotonic_time(:millisecond) >= until do
      count
    else
      attempt.(stale)
      again.(until, count + 1, again)
    end
  end

  strangers.(3000, &again.(&1, &2, again))
  """

  test "row 43: no stranger is signalled", %{mark: mark} do
    before = File.read!("/proc/sys/kernel/pid_max")
    ms = size(6_000, 120_000)
    script = Path.join(System.tmp_dir!(), mark <> ".exs")
    on_exit(fn -> File.rm(script) end)

    assigns = [mark: mark, ms: ms, bystanders: Proc.fixture("bystanders")]
    lines = for {name, value} <- assigns, do: "#{name} = #{inspect(value)}\n"
    File.write!(script, [lines, @churn])
    paths = Enum.flat_map(Peer.code_paths(), &["-pa", &1])
    # A BEAM of few threads: they have pids too.
    flags = ["--erl", "+S 1:1 +SDcpu 1:1 +SDio 1 +A 1"]

    {text, status} =
      System.cmd(
        "unshare",
        ["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"] ++
          ["sh", "-c", @enter, "sh", System.find_executable("elixir")] ++
          flags ++ paths ++ [script],
        stderr_to_stdout: true
      )

    assert {0, text} == {status, text}

    assert [work, premise] =
             Regex.scan(~r/^forked=(\d+) signalled=(\d+) first=(\d+) (\d+)$/m, text)

    assert [_, forked, "0", "0", count] = work
    # Every pid was given out many times, and there was something to go wrong.
    assert String.to_integer(forked) > 1000
    assert String.to_integer(count) > 50
    assert [_, _, hit, "15", _tries] = premise
    assert String.to_integer(hit) > 0
    assert File.read!("/proc/sys/kernel/pid_max") == before

    report(
      "row 43, #{count} trees among #{forked} strangers: none signalled (#{hit} by a stale pid)"
    )
  end
end
