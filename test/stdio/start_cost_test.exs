defmodule Stdio.StartCostTest do
  # The guard of a start's price that does not depend on the machine's load: system calls for one
  # program, in the long run. A bound that is passed wants a look at what is new, not a higher number.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault, only: [report: 1]
  alias Stdio.Test.{Peer, Strike}

  @moduletag :strace

  @runs 50
  # About what a spare supervisor costs, for each of its two forks.
  @fork 40

  # As root 45, 46 and 75; for others a few less, who change no ids. Poll may wake once more.
  @most [process: 49, shared: 49, all: 78]
  # With whatever spare supervisors were forked.
  @most_with_spares [process: 60, shared: 49, all: 95]

  setup do
    dir = Strike.dir!()
    on_exit(fn -> File.rm_rf!(dir) end)
    log = Path.join(dir, "log")
    lasting = Proc.descendants()
    Application.put_env(:stdio, :exec, "strace -f -qq -o #{log}")

    on_exit(fn ->
      Application.put_env(:stdio, :exec, "")

      for {pid, %{name: "stdio-supervise"}} <- Proc.table(),
          pid in Proc.descendants() and pid not in lasting,
          do: Proc.kill(pid)
    end)

    %{log: log, dir: dir}
  end

  test "a program under Stdio.Process", %{log: log} do
    assert_cost(log, :process, fn -> assert list(["/bin/true"]) == [exit_status: 0] end)
  end

  test "a program under a supervisor that others share", %{log: log} do
    {:ok, supervisor} = Stdio.supervisor(:noshutdown)
    phases = Stdio.with_supervisor(Stdio.Process, supervisor)
    run = fn -> assert Enum.to_list(Stdio.stream!(["/bin/true"], phases)) == [exit_status: 0] end
    assert_cost(log, :shared, run)
    Stdio.Task.stop(supervisor.init)
  end

  # Procfs is opened for its number in there, and for the descriptors to close; once more for each process
  # that a walk meets.
  @tag :root
  test "a container is ended by one kill, of its PID 1, however long that takes", %{dir: dir} do
    {calls, ["task:1"]} = Strike.record(:container, :halted, dir)
    assert Enum.count(calls["root:1"], &(&1 == "openat")) <= 8
  end

  # How often a thread waits, or wakes another, depends on the machine: futex(2), epoll_wait(2).
  @waits ~w(futex epoll_wait epoll_pwait)
  # What a scheduler does by itself is left out: it yields, and it wakes its poll thread through a pipe.
  @of_scheduler ~w(getcwd socketpair pipe2 fcntl fchmod close sendmsg recvmsg epoll_ctl)

  @beam """
  run = fn -> [exit_status: 0] = Enum.to_list(Stdio.stream!(["/bin/true"])) end
  for _ <- 1..20, do: run.()
  File.stat("/first-mark")
  for _ <- 1..runs, do: run.()
  File.stat("/last-mark")
  IO.puts("done")
  """

  # The BEAM's threads have names: those of Stdio, and schedulers.
  test "a program under Stdio.Process, all roles", %{log: log} do
    trace = "set -- strace -D -f -qq -y --decode-pids=comm -o #{log} \"$@\""
    peer = Peer.start(@beam, assigns: [runs: @runs], shell: trace)
    assert Peer.line(peer, 60_000) == "done"
    Peer.kill(peer)
    settle(log, -1)

    calls =
      log
      |> File.stream!()
      |> Stream.drop_while(&(not (&1 =~ "/first-mark")))
      |> Enum.take_while(&(not (&1 =~ "/last-mark")))
      |> Enum.flat_map(&role_and_call/1)
      |> Enum.frequencies()

    per_role =
      for role <- [:io_thread, :consumer, :helper] do
        counts = for {{^role, name}, count} <- calls, into: %{}, do: {name, count / @runs}
        sum = counts |> Map.drop(@waits) |> Map.values() |> Enum.sum()
        report("#{role}: #{round(sum)} system calls: #{inspect(counts, limit: :infinity)}")
        {role, sum}
      end

    sum = per_role |> Keyword.values() |> Enum.sum()
    forks = Map.get(calls, {:helper, "clone3"}, 0) / @runs
    report("all roles: #{round(sum)} system calls, #{forks} forks")
    assert Enum.all?(per_role, fn {_, sum} -> sum > 5 end)
    assert without_spares(sum, forks) <= @most[:all]
    assert sum <= @most_with_spares[:all]
  end

  defp role_and_call(line) do
    case Regex.run(~r/^\d+<([^>]*)> +(\w+)\((.*)/, line) do
      [_, "stdio_io" <> _, name, _] -> [{:io_thread, name}]
      [_, thread, "write", "" <> arguments] -> write(thread, arguments)
      [_, thread, name, _] -> of(thread, name)
      nil -> []
    end
  end

  defp of(thread, name) do
    cond do
      thread in ["stdio-supervise", "Supervise"] -> [{:helper, name}]
      scheduler?(thread) and name in @of_scheduler -> [{:consumer, name}]
      true -> []
    end
  end

  defp write(thread, arguments) do
    cond do
      thread in ["stdio-supervise", "Supervise"] -> [{:helper, "write"}]
      scheduler?(thread) and arguments =~ "[eventfd]" -> [{:consumer, "write"}]
      true -> []
    end
  end

  # `1_scheduler`, `erts_sched_1`
  defp scheduler?(thread), do: thread =~ ~r/^(\d+_scheduler|erts_sched_\d+)$/

  defp assert_cost(log, name, run) do
    per_run = per_run(log, run)
    sum = per_run |> Map.values() |> Enum.sum()
    report("#{name}: #{round(sum)} system calls of the helper: #{inspect(per_run)}")
    assert without_spares(sum, Map.get(per_run, "clone3", 0)) <= @most[name]
    assert sum <= @most_with_spares[name]
  end

  # One fork is that of the program's process. On a machine so slow that programs under strace are more
  # than 30 ms apart, spare supervisors end and others are forked.
  defp without_spares(sum, forks), do: round(sum - max(forks - 1, 0) * @fork)

  # By name.
  defp per_run(log, run) do
    for _ <- 1..3, do: run.()
    before = calls(log)
    for _ <- 1..@runs, do: run.()

    for {name, count} <- calls(log), count > Map.get(before, name, 0), into: %{} do
      {name, (count - Map.get(before, name, 0)) / @runs}
    end
  end

  # Those of a program, from its exec on, are not the helper's.
  defp calls(log) do
    settle(log, -1)

    {calls, _} =
      log
      |> File.stream!()
      |> Enum.reduce({%{}, %{}}, fn line, {calls, execs} ->
        [pid, rest] = String.split(line, ~r/ +/, parts: 2)

        cond do
          execs[pid] == :program ->
            {calls, execs}

          rest =~ ~r/^\w+\(/ ->
            [name, _] = String.split(rest, "(", parts: 2)
            # The helper's own exec is the first of all.
            execs =
              if name == "execve" and calls != %{}, do: Map.put(execs, pid, :program), else: execs

            {Map.update(calls, name, 1, &(&1 + 1)), execs}

          true ->
            {calls, execs}
        end
      end)

    calls
  end

  # What it writes comes a moment later.
  defp settle(log, size) do
    Process.sleep(200)
    now = File.stat!(log).size
    if now != size, do: settle(log, now)
  end
end
