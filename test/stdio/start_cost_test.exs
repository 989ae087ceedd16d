defmodule Stdio.StartCostTest do
  # The guard of a start's price that does not depend on the machine's load: system calls of launcher,
  # supervisor and task for one program, in the long run. A bound that is passed wants a look at what is
  # new, not a higher number.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault, only: [report: 1]
  alias Stdio.Test.Strike

  @moduletag :strace

  @runs 20

  # As root 57 and 46; for others a few less, who change no ids. Poll may wake once more.
  @most [process: 60, shared: 49]

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

    %{log: log}
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

  defp assert_cost(log, name, run) do
    per_run = per_run(log, run)
    sum = per_run |> Map.values() |> Enum.sum() |> round()
    report("#{name}: #{sum} system calls of the helper: #{inspect(per_run)}")
    assert sum <= @most[name]
  end

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
