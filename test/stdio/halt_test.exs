defmodule Stdio.HaltTest do
  # Streams that end before their program does, and programs that end before their tree does.
  use Stdio.Test.StreamCase

  defp tree(mark, flags \\ []), do: [Proc.fixture("fork-tree"), mark, "2", "2" | flags]

  # Asks the kernel at once: stop and terminal element promise that the tree is gone by then.
  defp gone!(mark) do
    assert Proc.find(mark) == []
    assert messages() == []
  end

  describe "what a program leaves behind is gone with the last element:" do
    for flags <-
          ["", "--setsid", "--double-fork", "--setsid --double-fork", "--detach"] ++
            ["--ignore-term", "--stop", "--setsid --double-fork --ignore-term --detach"] do
      @tag flags: String.split(flags)
      test "fork-tree #{flags}", %{mark: mark, flags: flags} do
        assert list(tree(mark, flags ++ ["--leader-exits", "3"])) ==
                 [stdout: "ready\n", exit_status: 3]

        gone!(mark)
      end
    end

    test "sleep N &, also with setsid and a double fork" do
      for line <- ["sleep N &", "setsid sleep N &", "(sleep N &) &", "(setsid sleep N &) &"] do
        # A time that no other process sleeps.
        seconds = "7391.#{System.os_time()}"
        assert list(String.replace(line, "N", seconds)) == [exit_status: 0]
        gone!(seconds)
      end
    end

    test "a daemon that holds the pipes", %{mark: mark} do
      command = [Proc.fixture("hold-pipe"), mark, "60", "--code", "9", "--setsid"]
      {elapsed, elements} = timed(fn -> list(command) end)
      assert elements == [stdout: "ready\n", exit_status: 9]
      assert elapsed < 10_000
      gone!(mark)
    end

    @tag :dir
    test "a writer in the background is heard until it is killed", %{dir: dir} do
      fifo = Path.join(dir, "fifo")
      writer = "echo first; echo go >#{fifo}; while :; do echo x; done"
      elements = list("mkfifo #{fifo}; (#{writer}) & read _ <#{fifo}; exit 2", timeout: 20_000)
      assert Oracle.terminal!(elements) == {:exit_status, 2}
      assert "first\n" <> rest = output(elements)
      # It was killed, but not in the middle of a write.
      assert String.replace(rest, "x\n", "") == ""
    end
  end

  describe "a consumer that halts" do
    test "Enum.take", %{mark: mark} do
      assert Enum.take(Stdio.stream!(tree(mark)), 1) == [stdout: "ready\n"]
      gone!(mark)
      assert [stdout: "y\n" <> _] = Enum.take(Stdio.stream!("yes"), 1)
      assert messages() == []
    end

    test "Enum.take of exactly all elements" do
      assert Enum.take(Stdio.stream!("echo a"), 2) == [stdout: "a\n", exit_status: 0]
      assert messages() == []
    end

    test "Enum.take in a process that traps exits", %{mark: mark} do
      Process.flag(:trap_exit, true)
      assert Enum.take(Stdio.stream!(tree(mark)), 1) == [stdout: "ready\n"]
      gone!(mark)
      assert [stdout: _] = Enum.take(Stdio.stream!("yes"), 1)
      assert messages() == []
    end

    test "while the program is stopped", %{mark: mark} do
      assert Enum.take(Stdio.stream!(tree(mark, ["--stop"])), 1) == [stdout: "ready\n"]
      gone!(mark)
    end

    test "by an exception", %{mark: mark} do
      assert_raise RuntimeError, "mine", fn ->
        Enum.each(Stdio.stream!(tree(mark)), fn _ -> raise "mine" end)
      end

      gone!(mark)
    end

    test "by a throw and by an exit", %{mark: mark} do
      Process.flag(:trap_exit, true)
      assert catch_throw(Enum.each(Stdio.stream!(tree(mark)), &throw/1)) == {:stdout, "ready\n"}
      gone!(mark)
      assert catch_exit(Enum.each(Stdio.stream!(tree(mark)), &exit/1)) == {:stdout, "ready\n"}
      gone!(mark)
    end

    test "in the middle of a flood", %{mark: mark} do
      command = [Proc.fixture("fill-pipe"), mark, "1000000000", "--to", "both"]
      assert length(Enum.take(Stdio.stream!(command), 100)) == 100
      gone!(mark)
    end

    # The request to end it and the report of its end cross each other.
    test "while the program is ending by itself" do
      for turn <- 1..200 do
        stream = Stdio.stream!(["/bin/echo", "a"])
        {elapsed, elements} = timed(fn -> Enum.take(stream, 1) end)
        assert elements == [stdout: "a\n"]
        assert elapsed < 5000, "turn #{turn}: #{elapsed} ms"
        assert messages() == []
      end
    end

    test "one of two zipped streams ends first", %{mark: mark} do
      once = [:first]

      assert [first: {:stdout, "ready\n"}] =
               Enum.to_list(Stream.zip(once, Stdio.stream!(tree(mark))))

      gone!(mark)
      short = Stdio.stream!("echo a")
      endless = Stdio.stream!([Proc.fixture("fill-pipe"), mark, "1000000000"])

      assert [{_, {:stdout, "a\n"}}, {_, {:exit_status, 0}}] =
               Enum.to_list(Stream.zip(endless, short))

      gone!(mark)
    end

    test "an inner stream within an outer one", %{mark: mark} do
      outer = Stdio.stream!(tree(mark))
      inner = Stdio.stream!(tree(mark))
      assert outer |> Stream.flat_map(fn _ -> inner end) |> Enum.take(1) == [stdout: "ready\n"]
      gone!(mark)
    end

    @tag :dir
    test "asks politely first where that is configured", %{mark: mark, dir: dir} do
      # What the trap says is read, or the program could not end; it is not delivered.
      trap = "head -c 1000000 /dev/zero; echo bye >#{dir}/log; exit 0"
      line = "trap '#{trap}' TERM; echo ready; while :; do sleep 0.05; done"

      stream =
        Stdio.stream!(["/bin/sh", "-c", line, mark], Stdio.Process,
          kill_signal: :sigterm,
          kill_timeout: 30_000
        )

      {elapsed, elements} = timed(fn -> Enum.take(stream, 1) end)
      assert elements == [stdout: "ready\n"]
      assert File.read!(Path.join(dir, "log")) == "bye\n"
      assert elapsed < 20_000
      gone!(mark)
    end
  end

  describe "a consumer that dies" do
    # Runs `fun` in a process that consumes; returns once the program runs.
    defp consumer(mark, fun) do
      parent = self()

      {pid, monitor} =
        spawn_monitor(fn ->
          Enumerable.reduce(Stdio.stream!(tree(mark)), {:cont, nil}, fn element, nil ->
            send(parent, element)
            fun.()
            {:suspend, nil}
          end)
        end)

      assert_receive {:stdout, "ready\n"}, 5000
      {pid, monitor}
    end

    test "killed", %{mark: mark} do
      {pid, monitor} = consumer(mark, fn -> Process.sleep(:infinity) end)
      assert length(Proc.find(mark)) == 7
      Process.exit(pid, :kill)
      assert_receive {:DOWN, ^monitor, _, _, :killed}
      assert Proc.wait_until(fn -> Proc.gone?(mark) end)
      assert messages() == []
    end

    test "at its normal end, with the stream suspended", %{mark: mark} do
      {_pid, monitor} = consumer(mark, fn -> :ok end)
      assert_receive {:DOWN, ^monitor, _, _, :normal}
      assert Proc.wait_until(fn -> Proc.gone?(mark) end)
    end

    test "at any time while the program is started", %{mark: mark} do
      for turn <- 1..100 do
        {pid, monitor} =
          spawn_monitor(fn -> Enum.to_list(Stdio.stream!(tree(mark, ["--setsid"]))) end)

        busy_until(System.monotonic_time(:microsecond) + turn * 30)
        Process.exit(pid, :kill)
        assert_receive {:DOWN, ^monitor, _, _, :killed}
      end

      assert Proc.wait_until(fn -> Proc.gone?(mark) end, 5000)
      assert messages() == []
    end

    # Sleeping is too coarse for this.
    defp busy_until(time), do: System.monotonic_time(:microsecond) >= time || busy_until(time)
  end
end
