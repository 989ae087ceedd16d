defmodule Stdio.Faults.HelperDeathTest do
  # FAULTS row 6, the launcher's half, and rows 4 and 7 in part: SIGKILL for launcher, supervisors
  # and the spare supervisor. Every stream gets its one end, no tree survives, the next use works.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault
  alias Stdio.Test.Peer

  @moduletag :testbin
  @moduletag timeout: 120_000

  setup do
    # Before the oracle looks: what is kept by design is there again.
    on_exit(&warm_up/0)
    %{launcher: warm_up()}
  end

  defp tree(mark, words), do: [Proc.fixture("fork-tree"), mark, "2", "2" | words]

  # The promise is 250 ms on an idle machine. The NIF has a deadline of 7 s of its own, which must
  # not be what ends a stream here.
  @deadline 2_000
  @stubborn ~w(--setsid --double-fork --ignore-term)

  # One of each kind of stream, as functions for processes of their own.
  defp streams(mark) do
    endless = fn -> Stream.repeatedly(fn -> String.duplicate("x", 10_000) end) end

    [
      fn -> Stdio.stream!(tree(mark, @stubborn)) end,
      fn -> Stdio.stream!(tree(mark, ["--stop"])) end,
      fn -> Stdio.stream!([Proc.fixture("digest"), mark]) end,
      # Output under way, and a consumer that is slow to take it.
      fn ->
        [Proc.fixture("fill-pipe"), mark, "100000000000"]
        |> Stdio.stream!()
        |> Stream.each(fn _ -> Process.sleep(1) end)
      end,
      # A feeder that is blocked, and one that never is.
      fn -> Stdio.pipe!(endless.(), [Proc.fixture("never-read"), mark]) end,
      fn -> Stdio.pipe!(endless.(), [Proc.fixture("digest"), mark]) end,
      fn ->
        config = [timeout: 1_000_000, kill_signal: :sigterm]
        Stdio.stream!([Proc.fixture("ignore-term"), mark], Stdio.Process, config)
      end
    ]
  end

  # Their processes, when all run.
  @processes 7 + 7 + 1 + 1 + 1 + 1 + 1

  defp start_all(mark) do
    tasks = for stream <- streams(mark), do: aside(fn -> outcome(stream.()) end)
    await_marked(mark, @processes)
    tasks
  end

  test "the launcher, while all kinds of streams run", %{mark: mark, launcher: launcher} do
    Oracle.clean(fn _ ->
      times =
        for _ <- 1..3 do
          launcher = launcher() || launcher
          tasks = start_all(mark)
          started = System.monotonic_time()
          assert Proc.kill(launcher, 9) == :ok
          # A signal that told the truth, or the one that stands for "unknown".
          for task <- tasks, do: assert(await(task) == {:termsig, :sigkill})
          time = elapsed(started)
          assert time < @deadline
          # Ended means gone, not going.
          assert Proc.find(mark) == []
          assert Proc.wait_until(fn -> helpers(launcher) == [] end)
          assert list("echo again") == [stdout: "again\n", exit_status: 0]
          assert warm_up() != launcher
          time
        end

      report("row 6, launcher killed, to the end of 7 streams: #{spread(times)}")
    end)
  end

  # What a kill of its helpers may do to a stream: end it, or its start, by a typed error. That is
  # `:esrch` if the new process itself noticed, when it set its parent's death signal.
  defp hit?({:termsig, :sigkill}), do: true
  defp hit?({:error, %Stdio.StreamError{reason: :eagain}}), do: true
  defp hit?({:error, %Stdio.OpError{reason: :esrch, op: {_, :set_pdeathsig, _}}}), do: true
  defp hit?(_), do: false

  # One start after another until told to stop: how many were hit, and what else came of them.
  defp start_and_start(mark, hits \\ 0) do
    receive do
      :stop -> {hits, []}
    after
      0 ->
        case outcome(Stdio.stream!(tree(mark, ["--leader-exits", "3"]))) do
          {:exit_status, 3} -> start_and_start(mark, hits)
          other -> if hit?(other), do: start_and_start(mark, hits + 1), else: {hits, [other]}
        end
    end
  end

  test "the launcher, at any moment of starts", %{mark: mark} do
    Oracle.clean(fn _ ->
      tasks = for _ <- 1..4, do: aside(fn -> start_and_start(mark) end)

      for _ <- 1..size(30, 300) do
        pause_us(:rand.uniform(40_000))
        if pid = launcher(), do: Proc.kill(pid, 9)
      end

      for task <- tasks, do: send(task.pid, :stop)
      {hits, odd} = tasks |> Enum.map(&await/1) |> Enum.unzip()
      assert Enum.concat(odd) == []
      report("row 6, launcher killed #{size(30, 300)} times: #{Enum.sum(hits)} streams were hit")
      assert list("true") == [exit_status: 0]
      warm_up()
    end)
  end

  test "the launcher, as a root is asked for: another one forks it" do
    for _ <- 1..size(60, 600) do
      if pid = launcher(), do: Proc.kill(pid, 9)
      assert {:ok, root} = Stdio.Task.fork()
      assert Stdio.Task.stop(root) == :ok
    end

    warm_up()
  end

  test "a supervisor: its stream ends when its tree has, others go on", context do
    %{mark: mark, launcher: launcher} = context
    other_mark = Proc.mark()

    other =
      aside(fn ->
        Stdio.pipe!(["a", "b"], [Proc.fixture("slow-read"), other_mark, "1"]) |> outcome()
      end)

    await_marked(other_mark, 1)

    # The deep one gives its levels to the launcher one after the other, each when its parent dies.
    deep = [Proc.fixture("fork-tree"), mark, "12", "1", "--setsid", "--ignore-term"]

    times =
      for _ <- 1..5, {argv, processes} <- [{tree(mark, @stubborn), 7}, {deep, 13}] do
        task =
          aside(fn ->
            outcome = outcome(Stdio.stream!(argv))
            # Asked at once: what is left of the tree at the time of the terminal element?
            {outcome, Proc.find(mark)}
          end)

        await_marked(mark, processes)
        started = System.monotonic_time()
        assert Proc.kill(supervisor_of(mark), 9) == :ok
        assert await(task) == {{:termsig, :sigkill}, []}
        time = elapsed(started)
        assert time < @deadline
        time
      end

    report("row 4, supervisor killed, to the terminal element: #{spread(times)}")
    assert await(other) == {:exit_status, 0}
    assert launcher() == launcher, "the launcher was lost too"
  end

  test "a supervisor, at any moment of starts and ends", %{mark: mark, launcher: launcher} do
    tasks =
      for _ <- 1..4 do
        aside(fn ->
          for _ <- 1..30, do: outcome(Stdio.stream!(tree(mark, ["--leader-exits", "3"])))
        end)
      end

    killer =
      aside(fn ->
        for _ <- 1..size(60, 600) do
          pause_us(:rand.uniform(8_000))
          with [_ | _] = pids <- supervisors(launcher), do: Proc.kill(Enum.random(pids), 9)
        end
      end)

    outcomes = Enum.flat_map(tasks, &await(&1, 60_000))
    await(killer, 60_000)

    assert Enum.reject(outcomes, &(&1 == {:exit_status, 3} or hit?(&1))) == []

    report(
      "row 4, supervisors killed at random: #{inspect(Enum.frequencies_by(outcomes, &name/1))}"
    )

    assert launcher() == launcher
    assert list("true") == [exit_status: 0]
    warm_up()
  end

  defp name({:error, _}), do: :not_started
  defp name(outcome), do: outcome

  test "the spare supervisor", %{launcher: launcher} do
    for _ <- 1..10 do
      spare = spare(launcher)
      assert Proc.kill(spare, 9) == :ok
      # A start that finds it dying fails with a typed error, as in the test above.
      assert Proc.wait_until(fn -> not Proc.alive?(spare) end)
      assert list("echo $0") == [stdout: "/bin/sh\n", exit_status: 0]
      assert warm_up() == launcher
    end
  end

  test "the child of the spare supervisor, which waits for a program", %{launcher: launcher} do
    for next <- [
          fn -> list("exit 5") end,
          fn -> list("exit 5", timeout: 5_000) end,
          fn -> pipe(["exit 5\n"], "sh") end
        ] do
      assert Proc.wait_until(fn -> settled?(launcher) end)
      kill_waiting(launcher)
      assert next.() == [exit_status: 5]
    end
  end

  # Its supervisor has reported an end that nobody has asked about.
  @tag :userns
  test "the child of the spare supervisor, which has another task", %{launcher: launcher} do
    for next <- [
          fn -> list("exit 5", containment: :pid_namespace) end,
          &served/0,
          fn -> list("exit 5") end
        ] do
      warm_up()
      kill_waiting(launcher)
      assert next.() == [exit_status: 5]
    end
  end

  # Not even at the moment at which the supervisor is given another program: an end that is reported is
  # that program's, and its own is not the next one's.
  @tag :userns
  test "the child of the spare supervisor, while a program is started", %{launcher: launcher} do
    for _ <- 1..40 do
      [waiting] = waiting(spare(launcher))
      killer = aside(fn -> Proc.kill(waiting, 9) end)
      Process.sleep(:rand.uniform(4) - 1)
      outcome = outcome(Stdio.stream!("exit 5", Stdio.Process, containment: :pid_namespace))
      assert outcome == {:exit_status, 5} or match?({:error, %{reason: :eagain}}, outcome)
      await(killer)
      assert warm_up() == launcher
      assert list("exit 6") == [exit_status: 6]
    end
  end

  # Its supervisor cannot tell that from the end of a child that waits, so it has no other one.
  test "a program that is killed, or kills itself" do
    for _ <- 1..200 do
      assert list("kill -9 $$") == [termsig: :sigkill]
      assert list("exit 7") == [exit_status: 7]
    end
  end

  # The end of its own socket tells, though our side of that has ended before.
  test "a supervisor that is being stopped, when no launcher is left to report it" do
    for first <- [:launcher, :stop] do
      {:ok, root} = Stdio.Task.fork()
      supervisor = Stdio.Task.pidof(root)
      assert Proc.kill(supervisor, 19) == :ok
      stop = fn -> aside(fn -> Stdio.Task.stop(root) end) end

      stopper =
        if first == :launcher do
          end_launcher()
          stop.()
        else
          stopper = stop.()
          refute Task.yield(stopper, 100)
          end_launcher()
          stopper
        end

      refute Task.yield(stopper, 200), "it was said to be gone while it was there"
      assert Proc.alive?(supervisor)
      assert Proc.kill(supervisor, 9) == :ok
      assert await(stopper, @deadline) == :ok
    end
  end

  # Until that has been noticed: a start, which may be the dying one's last, has launched another.
  defp end_launcher do
    launcher = launcher()
    assert Proc.kill(launcher, 9) == :ok

    assert Proc.wait_until(fn ->
             outcome(Stdio.stream!("true"))
             launcher() not in [nil, launcher]
           end)
  end

  test "a supervisor that has had a program and waits for the next", %{launcher: launcher} do
    for _ <- 1..3 do
      assert list("exit 4") == [exit_status: 4]
      spare = spare(launcher)
      assert Proc.kill(spare, 9) == :ok
      assert Proc.wait_until(fn -> not Proc.alive?(spare) end)
      assert list("exit 5") == [exit_status: 5]
    end
  end

  defp served do
    {:ok, task} = Stdio.Task.fork()
    assert {:ok, child} = Stdio.Task.fork(task)
    assert Stdio.Task.execvp(child, "sh", ["sh", "-c", "exit 5"]) == :ok
    assert_receive {:exit_status, ^child, status}, 5_000
    Stdio.Task.stop(task)
    [exit_status: status]
  end

  defp kill_waiting(launcher) do
    spare = spare(launcher)
    [waiting] = waiting(spare)
    assert Proc.kill(waiting, 9) == :ok
    # A start that finds its supervisor still there fails with a typed error.
    assert Proc.wait_until(fn -> not Proc.alive?(spare) end)
  end

  test "a handle of a dead task keeps no descriptor of a dead launcher", %{launcher: launcher} do
    before = map_size(Proc.fds())
    {:ok, task} = Stdio.Task.fork()
    assert Proc.kill(launcher, 9) == :ok
    assert Proc.wait_until(fn -> Stdio.Task.pidof(task) == :noproc end)
    assert warm_up() != launcher
    assert Proc.wait_until(fn -> map_size(Proc.fds()) <= before end)
    assert inspect(task) =~ "dead"
  end

  test "the launcher leaves no zombie to a BEAM that has to reap" do
    # By default the BEAM ignores SIGCHLD, and the kernel reaps for it.
    peer =
      Proc.peer_beam(~S"""
      :os.set_signal(:sigchld, :default)
      launcher = Stdio.Test.Fault.warm_up()
      IO.puts("launcher #{launcher}")
      Stdio.Test.Proc.wait_until(fn -> not Stdio.Test.Proc.alive?(launcher) end, 10_000)
      # Nothing has to be started for it to be reaped.
      IO.puts(Stdio.Test.Proc.wait_until(fn -> Stdio.Test.Proc.stat(launcher) == nil end, 5_000))
      IO.puts(inspect(Enum.to_list(Stdio.stream!("exit 5"))))
      """)

    assert "launcher " <> launcher = Peer.line(peer)
    assert Proc.kill(launcher, 9) == :ok
    assert Peer.line(peer) == "true"
    assert Peer.line(peer) == "[exit_status: 5]"
    Peer.stop(peer)
  end

  @tag :userns
  test "supervisor and launcher at the same moment, in a PID namespace", %{mark: mark} do
    # Without the namespace, what has escaped from its session would survive this: row 7. Stopped,
    # neither can do anything about the other's death.
    Oracle.clean(fn _ ->
      for order <- [:launcher_first, :supervisor_first] do
        launcher = warm_up()
        config = [containment: :pid_namespace]
        task = aside(fn -> list(tree(mark, @stubborn), config) end)
        await_marked(mark, 7)
        pids = [launcher, supervisor_of(mark)]
        pids = if order == :launcher_first, do: pids, else: Enum.reverse(pids)
        for pid <- pids, do: assert(Proc.kill(pid, "STOP") == :ok)
        for pid <- pids, do: assert(Proc.kill(pid, 9) == :ok)
        assert Oracle.terminal!(await(task)) == {:termsig, :sigkill}
        assert Proc.wait_until(fn -> Proc.gone?(mark) end)
      end

      warm_up()
    end)
  end
end
