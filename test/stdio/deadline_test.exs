defmodule Stdio.DeadlineTest do
  # :timeout, :kill_signal, :kill_timeout. Lower bounds of time are exact; upper bounds only tell
  # apart what is orders of magnitude away, as nothing else can be told on a loaded machine.
  use Stdio.Test.StreamCase

  @moduletag timeout: 60_000
  @soon 10_000

  defp ignore_term(mark), do: [Proc.fixture("ignore-term"), mark]

  defp loop(trap), do: "trap '#{trap}' TERM; echo ready; while :; do sleep 0.05; done"

  describe ":timeout" do
    test "ends program and tree with SIGKILL", %{mark: mark} do
      command = [Proc.fixture("fork-tree"), mark, "2", "2", "--setsid", "--ignore-term"]
      {timeout, elapsed, elements} = with_timeout(&list(command, timeout: &1))
      assert elements == [stdout: "ready\n", termsig: :sigkill]
      assert (elapsed - timeout) in 0..(@soon - 1000)
      assert Proc.find(mark) == []
      assert messages() == []
    end

    test "is none by default, with :infinity, and when it is too large to come", %{mark: mark} do
      command = [Proc.fixture("exit-with"), mark, "--code", "3", "--after", "100"]

      for config <- [[], [timeout: :infinity], [timeout: 10_000], [timeout: 1_000_000_000_000]] do
        assert list(command, config) == [exit_status: 3]
      end

      assert list(command, timeout: Integer.pow(10, 30)) == [exit_status: 3]
    end

    test "of one millisecond" do
      assert list("sleep 60", timeout: 1) == [termsig: :sigkill]
    end

    test "ends the stream with what really ended the program" do
      {_, _, elements} = with_timeout(&list(loop("exit 7"), timeout: &1, kill_signal: :sigterm))
      assert Oracle.terminal!(elements) == {:exit_status, 7}
      assert list("exit 8", timeout: 10_000, kill_signal: :sigterm) == [exit_status: 8]
    end

    test "does not need the consumer", %{mark: mark} do
      [Proc.fixture("never-read"), mark]
      |> Stdio.stream!(Stdio.Process, timeout: 300)
      |> Enum.each(fn
        {:stdout, "ready\n"} -> assert Proc.wait_until(fn -> Proc.gone?(mark) end, @soon)
        {:termsig, :sigkill} -> send(self(), :ended)
      end)

      assert_received :ended
    end

    test "does not need output to be read", %{mark: mark} do
      elements =
        [Proc.fixture("fill-pipe"), mark, "1000000000"]
        |> Stdio.stream!(Stdio.Process, timeout: 300)
        |> Stream.transform(:first, fn
          element, :first ->
            assert Proc.wait_until(fn -> Proc.gone?(mark) end, @soon)
            {[element], :later}

          element, :later ->
            {[element], :later}
        end)
        |> Enum.to_list()

      assert Oracle.terminal!(elements) == {:termsig, :sigkill}
      output = output(elements)
      assert output == Fixtures.pattern(byte_size(output))
      # Fifteen chunks more may be under way, and a pipe's worth comes after the end.
      assert byte_size(output) <= 18 * 65_536
    end

    test "reaches a program that has stopped itself" do
      config = [kill_signal: :sigterm, kill_timeout: 200]
      # One that has not stopped itself yet ends by the first signal.
      stopped? = &(&1 != [termsig: :sigterm])
      run = &list("kill -STOP $$", [timeout: &1] ++ config)
      {timeout, elapsed, elements} = with_timeout(run, stopped?)
      assert elements == [termsig: :sigkill]
      assert (elapsed - timeout) in 200..(@soon - 200)
    end

    # strace holds the program's exec back, so a clock that starts earlier runs out before.
    @tag :root
    @tag :strace
    test "is counted from exec on", %{launcher: launcher} do
      # The spare supervisor too, and its child.
      helpers = [launcher | Stdio.Procfs.descendants(launcher, "/proc")]
      traced? = fn pid -> Proc.status(pid)["tracerpid"] not in ["0", nil] end
      inject = ~w(-f -q -o /dev/null -e trace=execve -e inject=execve:delay_enter=4000000)
      seize = for pid <- helpers, argument <- ["-p", "#{pid}"], do: argument

      port =
        Port.open(
          {:spawn_executable, System.find_executable("strace")},
          [:binary, :exit_status, :stderr_to_stdout, args: inject ++ seize]
        )

      try do
        assert Proc.wait_until(fn -> Enum.all?(helpers, traced?) end, @soon)
        {elapsed, elements} = timed(fn -> list(["/bin/sleep", "0.1"], timeout: 3500) end)
        assert elements == [exit_status: 0]
        assert elapsed >= 4000
      after
        {:os_pid, pid} = Port.info(port, :os_pid)
        Proc.kill(pid, "INT")
        assert_receive {^port, {:exit_status, _}}, @soon
        assert Proc.wait_until(fn -> not Enum.any?(helpers, traced?) end, @soon)
      end
    end
  end

  describe ":kill_signal" do
    test "is sent once; SIGKILL follows after :kill_timeout", %{mark: mark} do
      run = &list(&1, timeout: &2, kill_signal: :sigterm, kill_timeout: 300)
      {timeout, elapsed, elements} = with_timeout(&run.(ignore_term(mark), &1))
      assert elements == [stdout: "ready\n", termsig: :sigkill]
      assert (elapsed - timeout) in 300..(@soon - 500)

      {_, _, elements} = with_timeout(&run.(ignore_term(mark) ++ ["--report"], &1))
      assert output(elements) == "ready\nterm\n"
      assert Oracle.terminal!(elements) == {:termsig, :sigkill}
    end

    test "may be any signal, in any form" do
      for {signal, name} <- [
            {:sigterm, :sigterm},
            {:SIGINT, :sigint},
            {:SigQuit, :sigquit},
            {1, :sighup},
            {:sigusr1, :sigusr1},
            {34, :unknown},
            {:sigrtmax, :unknown},
            {:sigkill, :sigkill}
          ] do
        assert list("exec sleep 60", timeout: 100, kill_signal: signal) == [termsig: name]
      end
    end

    test "that does not end anything is followed by SIGKILL" do
      for signal <- [:sigcont, :sigstop, :sigchld] do
        config = [timeout: 100, kill_signal: signal, kill_timeout: 100]
        assert list("exec sleep 60", config) == [termsig: :sigkill]
      end
    end

    test "goes to the whole process group, and to nothing else", %{mark: mark} do
      inner = "trap 'echo inner; exit 0' TERM; echo up; while :; do sleep 0.05; done"
      outside = "trap 'echo outside; exit 0' TERM; echo up; while :; do sleep 0.05; done"

      line =
        "(#{inner}) & inner=$!; setsid /bin/sh -c \"#{outside}\" #{mark} & " <>
          "trap 'wait $inner; exit 5' TERM; echo ready; while :; do sleep 0.05; done"

      command = ["/bin/sh", "-c", line, mark]
      run = &list(command, timeout: &1, kill_signal: :sigterm, kill_timeout: 20_000)
      said = &(&1 |> output() |> String.split() |> Enum.sort())
      {_, _, elements} = with_timeout(run, &(["ready", "up", "up"] -- said.(&1) == []))
      assert Oracle.terminal!(elements) == {:exit_status, 5}
      assert said.(elements) == ["inner", "ready", "up", "up"]
      assert Proc.find(mark) == []
    end

    test "with :kill_timeout 0 is followed at once", %{mark: mark} do
      run = &list(ignore_term(mark), timeout: &1, kill_signal: :sigterm, kill_timeout: 0)
      {timeout, elapsed, elements} = with_timeout(run)
      assert elements == [stdout: "ready\n", termsig: :sigkill]
      # The default would be 5000.
      assert (elapsed - timeout) in 0..4500
    end
  end

  describe "a consumer that halts" do
    test "waits for :kill_timeout, and no longer", %{mark: mark} do
      config = [kill_signal: :sigterm, kill_timeout: 400]
      stream = Stdio.stream!(ignore_term(mark), Stdio.Process, config)
      {elapsed, elements} = timed(fn -> Enum.take(stream, 1) end)
      assert elements == [stdout: "ready\n"]
      assert elapsed in 400..@soon
      assert Proc.find(mark) == []
      assert messages() == []
    end

    test "does not wait when the program goes, however long it might have taken", %{mark: mark} do
      for kill_timeout <- [20_000, 0xFFFF_FFFF, 10_000_000_000_000, Integer.pow(10, 30)] do
        config = [kill_signal: :sigterm, kill_timeout: kill_timeout]
        stream = Stdio.stream!([Proc.fixture("never-read"), mark], Stdio.Process, config)
        {elapsed, elements} = timed(fn -> Enum.take(stream, 1) end)
        assert elements == [stdout: "ready\n"]
        assert elapsed < @soon
        assert Proc.find(mark) == []
        assert messages() == []
      end
    end

    test "needs no patience with the default, SIGKILL", %{mark: mark} do
      stream = Stdio.stream!(ignore_term(mark), Stdio.Process, kill_timeout: 20_000)
      {elapsed, [stdout: "ready\n"]} = timed(fn -> Enum.take(stream, 1) end)
      assert elapsed < @soon
    end

    test "after the deadline has passed does not start again", %{mark: mark} do
      config = [kill_signal: :sigterm, kill_timeout: 1000]

      run = fn timeout ->
        (ignore_term(mark) ++ ["--report"])
        |> Stdio.stream!(Stdio.Process, [timeout: timeout] ++ config)
        |> Enum.take(2)
      end

      {_, _, elements} = with_timeout(run)
      assert output(elements) == "ready\nterm\n"
      assert Proc.find(mark) == []
    end
  end

  test "a consumer that dies gives no grace", %{mark: mark} do
    parent = self()
    config = [kill_signal: :sigterm, kill_timeout: 60_000]
    stream = Stdio.stream!(ignore_term(mark), Stdio.Process, config)
    {pid, monitor} = spawn_monitor(fn -> Enum.each(stream, &send(parent, &1)) end)
    assert_receive {:stdout, "ready\n"}, @soon
    Process.exit(pid, :kill)
    assert_receive {:DOWN, ^monitor, _, _, :killed}
    assert Proc.wait_until(fn -> Proc.gone?(mark) end, @soon)
  end
end
