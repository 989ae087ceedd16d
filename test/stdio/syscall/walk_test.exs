defmodule Stdio.Syscall.WalkTest do
  use ExUnit.Case, async: true

  alias Stdio.Procfs
  alias Stdio.Syscall.Walk
  alias Stdio.Test.{FakeProcfs, Proc}

  # Returns the result and the pids that were signalled, in order.
  defp reap(root, signal, procfs, options, kill \\ fn _pid -> :ok end) do
    test = self()

    record = fn pid ->
      send(test, {:killed, pid})
      kill.(pid)
    end

    options = Keyword.merge([procfs: procfs, supervisor: 1, within: 30_000], options)
    result = Walk.reap(root, signal, record, options)
    {result, killed()}
  end

  defp killed do
    receive do
      {:killed, pid} -> [pid | killed()]
    after
      0 -> []
    end
  end

  describe "in a procfs of our own:" do
    @tree %{1 => 0, 30 => 1, 20 => 30, 40 => 1, 50 => 20, 9 => 0}

    test "SIGKILL: parents first, until nothing is found" do
      procfs = FakeProcfs.new(@tree)

      kill = fn pid ->
        FakeProcfs.remove(procfs, pid)
        FakeProcfs.children(procfs, 1, Procfs.children(1, procfs) -- [pid])
      end

      assert reap(1, 9, procfs, [], kill) == {:ok, [30, 40, 20, 50]}
    end

    test "SIGKILL repeats for one that was forked meanwhile" do
      procfs = FakeProcfs.new(%{1 => 0, 2 => 1})

      kill = fn
        2 ->
          FakeProcfs.remove(procfs, 2)
          FakeProcfs.add(procfs, 3, 1)
          FakeProcfs.children(procfs, 1, [3])

        3 ->
          FakeProcfs.remove(procfs, 3)
          FakeProcfs.children(procfs, 1, [])
      end

      assert reap(1, 9, procfs, [], kill) == {:ok, [2, 3]}
    end

    test "SIGKILL gives up on what cannot be killed" do
      procfs = FakeProcfs.new(%{1 => 0, 2 => 1})

      {us, {{:error, :etimedout}, pids}} = :timer.tc(fn -> reap(1, 9, procfs, within: 1000) end)

      assert us >= 1_000_000
      assert Enum.uniq(pids) == [2]
      # It tries again, and does not spin.
      assert length(pids) in 2..100
    end

    test "it never gives up before its time" do
      procfs = FakeProcfs.new(%{1 => 0, 2 => 1})

      for _ <- 1..100 do
        {us, {{:error, :etimedout}, _}} = :timer.tc(fn -> reap(1, 9, procfs, within: 2) end)
        assert us >= 2_000
      end
    end

    test "another signal: once to each" do
      procfs = FakeProcfs.new(@tree)
      assert reap(1, 15, procfs, []) == {:ok, [30, 40, 20, 50]}
      assert reap(30, 15, procfs, []) == {:ok, [20, 50]}
      assert reap(50, 15, procfs, []) == {:ok, []}
      assert reap(77, 9, procfs, []) == {:ok, []}
    end

    test "zombies below the supervisor are waited for, not killed; it is no error if they stay" do
      procfs = FakeProcfs.new(%{1 => 0, 2 => 1}, %{2 => "State:\tZ (zombie)\nThreads:\t1\n"})
      {us, result} = :timer.tc(fn -> reap(1, 9, procfs, within: 100) end)
      assert result == {:ok, []}
      assert us >= 100_000
    end

    test "zombies below another process are not" do
      procfs =
        FakeProcfs.new(%{1 => 0, 2 => 1, 3 => 2}, %{3 => "State:\tZ (zombie)\nThreads:\t1\n"})

      assert reap(2, 9, procfs, within: 60_000) == {:ok, []}
    end

    test "a process whose first thread has ended runs" do
      procfs = FakeProcfs.new(%{1 => 0, 2 => 1}, %{2 => "State:\tZ (zombie)\nThreads:\t2\n"})
      assert {{:error, :etimedout}, [2 | _]} = reap(1, 9, procfs, within: 100)
    end

    test "pids are those of the supervisor's PID namespace" do
      fields = %{
        10 => "NSpid:\t10\t1\n",
        11 => "NSpid:\t11\t5\n",
        12 => "NSpid:\t12\t6\t1\n",
        13 => "State:\tS\n"
      }

      procfs = FakeProcfs.new(%{1 => 0, 10 => 1, 11 => 10, 12 => 11, 13 => 11}, fields)
      assert reap(10, 15, procfs, supervisor: 10) == {:ok, [5, 6]}
      assert reap(10, 15, procfs, supervisor: 1) == {:ok, [11, 12, 13]}
    end
  end

  describe "in this system:" do
    @describetag :linux

    # The shell's pid, when it has written a line.
    defp shell(line) do
      port = Port.open({:spawn_executable, "/bin/sh"}, [:binary, line: 99, args: ["-c", line]])
      {:os_pid, pid} = Port.info(port, :os_pid)
      on_exit(fn -> signal(9, [pid | Procfs.descendants(pid, "/proc")]) end)
      assert_receive {^port, {:data, {:eol, "ready"}}}, 5000
      {port, pid}
    end

    defp signal(signal, pids) do
      System.cmd("/bin/sh", ["-c", "kill -#{signal} #{Enum.join(pids, " ")}"],
        stderr_to_stdout: true
      )
    end

    test "SIGKILL: the tree is gone, its root lives" do
      {port, pid} =
        shell("sh -c 'sleep 8394 & sleep 8394 & echo ready; wait' & wait; echo reaped; read x")

      assert reap(pid, 9, "/proc", [supervisor: pid, within: 5000], &signal(9, [&1])) |> elem(0) ==
               :ok

      assert Procfs.descendants(pid, "/proc") == []
      assert_receive {^port, {:data, {:eol, "reaped"}}}, 5000
      # It reads on.
      assert Proc.wait_until(fn -> match?(%{state: "S"}, Proc.stat(pid)) end)
    end

    test "SIGKILL below one that does not reap" do
      {_port, pid} = shell("sleep 8395 & sleep 8395 & echo ready; exec sleep 8396")
      assert Proc.wait_until(fn -> match?(%{name: "sleep"}, Proc.stat(pid)) end)
      [one, other] = Procfs.children(pid)

      assert {:ok, killed} =
               reap(pid, 9, "/proc", [supervisor: 1, within: 5000], &signal(9, [&1]))

      assert Enum.uniq(killed) == [one, other]

      for pid <- [one, other],
          do: assert(Proc.wait_until(fn -> match?(%{state: "Z"}, Proc.stat(pid)) end))
    end

    test "another signal is handled, and no one is killed" do
      {port, pid} =
        shell("""
        exec 3<&0
        sh -c 'trap "echo got" USR1; echo ready; while :; do read x <&3; done' & wait
        """)

      assert {:ok, [_]} = reap(pid, 10, "/proc", [supervisor: pid], &signal(10, [&1]))
      assert_receive {^port, {:data, {:eol, "got"}}}, 5000
      assert [_] = Procfs.children(pid)
    end
  end
end
