defmodule Stdio.BehaviourEndTest do
  # How streams of behaviours end: shared supervisors, atexit, onexit, halts, leftovers.
  use Stdio.Test.StreamCase
  import Stdio.Test.Tasks, only: [elsewhere: 1, kill!: 1, root!: 0, sh!: 3, events: 1]

  alias Stdio.{ProcessTree, Task}
  alias Stdio.Test.{Deep, Plain}

  defp run(command, behaviour, config \\ []),
    do: Enum.to_list(Stdio.stream!(command, behaviour, config))

  defp shared!(atexit \\ :noshutdown) do
    assert {:ok, %Stdio{} = supervisor} = Stdio.supervisor(atexit)
    {supervisor, Stdio.with_supervisor(Stdio.Process, supervisor)}
  end

  describe "a shared supervisor" do
    test "the same parent twice, and it lives on" do
      {supervisor, phases} = shared!()
      assert [stdout: parent, exit_status: 0] = run("echo $PPID", phases)
      assert run("echo $PPID", phases) == [stdout: parent, exit_status: 0]
      assert parent == "#{Task.pidof(supervisor.init)}\n"
      assert Task.stop(supervisor.init) == :ok
      assert messages() == []
    end

    test "the terminal element comes, whatever its options" do
      supervisor = root!()
      assert Task.setopt(supervisor, :exit_status, 0)
      assert Task.setopt(supervisor, :termsig, 0)
      assert {:ok, supervisor} = Stdio.supervise(supervisor, :noshutdown)
      phases = Stdio.with_supervisor(Stdio.Process, supervisor)
      assert run("exit 4", phases) == [exit_status: 4]
      assert run("kill -9 $$", phases) == [termsig: :sigkill]
      assert Task.stop(supervisor.init) == :ok
    end

    test "both ends of a pipe at once" do
      {supervisor, phases} = shared!()

      producer =
        "echo test; kill $$"
        |> Stdio.stream!(phases)
        |> Stream.transform([], &Stdio.Stream.stdout_to_stderr/2)

      assert producer |> Stdio.pipe!("sed -u 's/t/_/g'", phases) |> Enum.to_list() ==
               [stdout: "_es_\n", exit_status: 0]

      assert Task.stop(supervisor.init) == :ok
      assert messages() == []
    end

    test "many streams side by side", %{mark: mark} do
      {supervisor, phases} = shared!()

      streams =
        for n <- 1..20, do: Elixir.Task.async(fn -> run("echo #{n}; exit #{n}", phases) end)

      for {elements, n} <- Enum.with_index(Elixir.Task.await_many(streams, 30_000), 1) do
        assert elements == [stdout: "#{n}\n", exit_status: n]
      end

      # A halt ends one of them alone.
      other = Elixir.Task.async(fn -> run(["/bin/sh", "-c", "read _; echo on", mark], phases) end)
      assert [stdout: _] = Enum.take(Stdio.stream!("yes", phases), 1)
      assert [_] = Proc.wait_until(fn -> match?([_], Proc.find(mark)) && Proc.find(mark) end)
      assert Elixir.Task.shutdown(other, :brutal_kill) == nil
      assert Proc.wait_until(fn -> Proc.gone?(mark) end, 5000)
      assert run("echo on", phases) == [stdout: "on\n", exit_status: 0]
      assert Task.stop(supervisor.init) == :ok
      assert messages() == []
    end

    test "programs that end as soon as they have begun have begun" do
      {supervisor, phases} = shared!()

      # What the program's process says (it executes) and what its parent says (it has ended) come by
      # two ways.
      for _ <- 1..15 do
        streams = for _ <- 1..20, do: Elixir.Task.async(fn -> run(["/bin/true"], phases) end)
        results = Elixir.Task.await_many(streams, 30_000)
        assert Enum.uniq(results) == [[exit_status: 0]]
      end

      assert Task.stop(supervisor.init) == :ok
    end

    test "leftovers stay until reap", %{mark: mark} do
      {supervisor, phases} = shared!()
      line = "exec >/dev/null 2>&1; setsid sh -c 'sleep 1000; :' #{mark} & exit 0"
      assert run(line, phases) == [exit_status: 0]
      left = Proc.wait_until(fn -> with [pid] <- Proc.find(mark), do: pid, else: (_ -> nil) end)
      assert is_integer(left)
      tree = %ProcessTree{supervisor: supervisor}
      assert Stdio.reap(tree, :sigwinch) == :ok
      assert Proc.alive?(left)
      assert Stdio.reap(tree) == :ok
      assert Proc.find(mark) == []
      assert run("echo on", phases) == [stdout: "on\n", exit_status: 0]
      assert Task.stop(supervisor.init) == :ok
      assert messages() == []
    end

    # A program with a child below a supervisor: its task, and the pid of the child.
    defp parent!(supervisor, mark) do
      task = sh!(supervisor.init, "sleep 1000 & echo ready; wait", mark)
      assert_receive {:stdout, ^task, "ready\n"}, 5000
      [child] = mark |> Proc.find() |> Enum.flat_map(&Proc.children/1)
      {task, child}
    end

    test "reap below a process: one of the tree only", %{mark: mark} do
      for containment <- [:auto, :pid_namespace] do
        {:ok, supervisor} =
          Stdio.supervisor(:noshutdown, Stdio.__filter__(), containment: containment)

        {stranger, _} = shared!()
        {other, spared} = parent!(stranger, mark <> "-other")
        {task, child} = parent!(supervisor, mark <> "-own")
        tree = %ProcessTree{supervisor: supervisor}

        assert Stdio.reap(tree, Task.pidof(other), :SIGKILL) == :ok
        assert Stdio.reap(tree, Task.pidof(stranger.init), :SIGKILL) == :ok
        assert Proc.alive?(spared) and Proc.alive?(child)
        assert Stdio.reap(tree, Task.pidof(task), :SIGKILL) == :ok
        assert Proc.wait_until(fn -> not Proc.alive?(child) end)
        assert List.last(events(task)) == {:exit_status, 0}

        for %{init: init} <- [supervisor, stranger], do: assert(Task.stop(init) == :ok)
        assert messages() == []
      end
    end

    # A signal that nobody minds, should it be sent to everybody.
    test "reap below what is no process id" do
      {supervisor, _} = shared!()
      tree = %ProcessTree{supervisor: supervisor}

      for pid <- [0, -1, nil, "1"],
          do: assert_raise(ArgumentError, fn -> Stdio.reap(tree, pid, :sigwinch) end)

      assert Task.stop(supervisor.init) == :ok
    end

    test "a task whose program has left a child: reap", %{mark: mark} do
      {supervisor, _} = shared!()
      {:ok, task} = Task.fork(supervisor.init)
      Task.setcpid(task, :flowcontrol, -1)
      line = "sleep 1000 </dev/null >/dev/null 2>&1 #{mark} & :"

      assert Task.execve(task, ["/bin/sh", "-c", "sh -c '#{line}' #{mark}"], [
               "PATH=/bin:/usr/bin"
             ]) == :ok

      assert events(task) |> List.last() == {:exit_status, 0}
      assert Stdio.reap(%ProcessTree{supervisor: supervisor}) == :ok
      assert Proc.children(Task.pidof(supervisor.init)) == []
      assert Task.stop(supervisor.init) == :ok
    end

    test "its creator dies: all of it dies", %{mark: mark} do
      {owner, {supervisor, phases}} = elsewhere(fn -> shared!() end)
      pid = Task.pidof(supervisor.init)
      stream = Stdio.stream!(["/bin/sh", "-c", "echo ready; sleep 1000; :", mark], phases)

      elements =
        Enum.map(stream, fn element ->
          if element == {:stdout, "ready\n"}, do: kill!(owner)
          element
        end)

      assert elements == [stdout: "ready\n", termsig: :sigkill]
      assert Proc.wait_until(fn -> not Proc.alive?(pid) and Proc.gone?(mark) end, 5000)
      error = assert_raise Stdio.OpError, fn -> run("true", phases) end
      assert error.reason == :esrch
      assert messages() == []
    end
  end

  describe "atexit" do
    test "after init has failed: what its tasks sent until then is gone" do
      {shared, _} = shared!()

      atexit = fn _init, [], _state ->
        # The event comes meanwhile, and nothing is received.
        Process.sleep(300)
      end

      phases = [
        task: fn _ -> {:ok, %{shared | atexit: atexit}} end,
        init: fn _config ->
          fn supervisor ->
            sh!(supervisor, "exit 3", "sh")
            {:error, :eperm}
          end
        end
      ]

      assert_raise Stdio.OpError, fn -> run("true", phases) end
      assert messages() == []
      assert Task.stop(shared.init) == :ok
    end

    test "a function: called once, may reap, the supervisor lives", %{mark: mark} do
      me = self()

      atexit = fn init, pipeline, state ->
        supervisor = %Stdio{init: init}
        children = Stdio.Procfs.children(Task.pidof(init))
        result = Stdio.reap(%ProcessTree{supervisor: supervisor}, Task.pidof(init), :SIGKILL)
        send(me, {:atexit, init, pipeline, state, children, result})
      end

      {supervisor, _} = shared!()
      supervisor = %{supervisor | atexit: atexit, state: %{a: 1}}
      phases = Stdio.with_supervisor(Plain, supervisor)
      line = "exec >/dev/null 2>&1; setsid sh -c 'sleep 1000; :' #{mark} & exit 3"
      assert run(line, phases) == [exit_status: 3]
      assert_received {:atexit, init, [%{task: _, pid: pid}], %{a: 1}, _children, :ok}
      assert init == supervisor.init
      assert is_integer(pid)
      assert Proc.find(mark) == []
      assert Proc.children(Task.pidof(init)) == []
      assert Proc.alive?(Task.pidof(init))

      assert_raise Stdio.OpError, fn -> run("true", [{:ops, fn _ -> [:bad] end} | phases]) end
      assert_received {:atexit, ^init, [], %{a: 1}, _, :ok}
      assert Task.stop(init) == :ok
      assert messages() == []
    end

    test ":shutdown and :noreap end the supervisor", %{mark: mark} do
      for atexit <- [:shutdown, :noreap] do
        {supervisor, phases} = shared!(atexit)
        pid = Task.pidof(supervisor.init)
        line = "setsid sh -c 'sleep 1000; :' #{mark} & exit 3"
        assert run(line, phases) == [exit_status: 3]
        assert Task.pidof(supervisor.init) == :noproc
        refute Proc.alive?(pid)
        assert Proc.find(mark) == []
      end

      assert messages() == []
    end
  end

  describe "onexit" do
    test "that raises: the exception is the consumer's, once all has ended", %{mark: mark} do
      command = ["/bin/sh", "-c", "sleep 1000 & echo a", mark]
      {supervisor, phases} = shared!()
      raising = fn _ -> fn _ -> raise "oops" end end

      for behaviour <- [[onexit: raising], Keyword.put(phases, :onexit, raising)] do
        {ms, _} =
          timed(fn -> assert_raise RuntimeError, "oops", fn -> run(command, behaviour) end end)

        assert ms < 5000

        assert_raise RuntimeError, "oops", fn ->
          Enum.take(Stdio.stream!(["/usr/bin/yes", mark], behaviour), 1)
        end

        assert messages() == []
      end

      assert Task.stop(supervisor.init) == :ok
      assert Proc.wait_until(fn -> Proc.gone?(mark) end, 5000)
    end

    test "gets the tree, once, before the terminal element" do
      me = self()

      onexit = fn config ->
        fn %ProcessTree{supervisor: %Stdio{}, pipeline: pipeline} = tree ->
          send(me, {:onexit, config, length(pipeline), messages_of(me)})
          Stdio.Process.onexit(config).(tree)
        end
      end

      assert run("echo a; exit 3", [onexit: onexit], priority: 1) == [
               stdout: "a\n",
               exit_status: 3
             ]

      assert_received {:onexit, [priority: 1], 1, _}
      assert messages() == []
      assert [exit_status: 0] = Enum.to_list(Stdio.stream!("true", {Deep, onexit: onexit}))
      assert_received {:onexit, [], 10, _}
      assert [stdout: _] = Enum.take(Stdio.stream!("yes", onexit: onexit), 1)
      assert_received {:onexit, [], 1, _}
      assert messages() == []
    end

    defp messages_of(pid), do: Process.info(pid, :message_queue_len)
  end

  describe "what a program leaves behind" do
    for {name, line} <- [
          plain: "M &",
          setsid: "setsid M &",
          double_fork: "(M &)",
          both: "(setsid M &)"
        ] do
      @tag script: line
      test "is gone with the last element: #{name}", %{mark: mark, script: line} do
        sleeper = "sh -c 'sleep 1000; :' #{mark}"

        for behaviour <- [Plain, Deep] do
          assert run(String.replace(line, "M", sleeper), behaviour) == [exit_status: 0]
          assert Proc.find(mark) == []
        end

        assert messages() == []
      end
    end

    test "an onexit that raises is raised, at once, and the tree is gone", %{mark: mark} do
      command = [Proc.fixture("fork-tree"), mark, "1", "1", "--leader-exits", "0"]
      behaviour = [onexit: fn _ -> fn _ -> raise "mine" end end]

      {elapsed, _} =
        timed(fn -> assert_raise RuntimeError, "mine", fn -> run(command, behaviour) end end)

      assert elapsed < 15_000
      assert Proc.find(mark) == []
      assert messages() == []
    end

    test "a signal to the supervisor is forwarded" do
      # A child would get it too, and of its end the shell would tell.
      line = "trap 'exit 9' HUP; kill -HUP $PPID; read x; read x"

      uid = beam_uid()
      assert run(line, Plain, uid: uid, gid: uid) == [exit_status: 9]
      assert messages() == []
    end
  end

  describe "a consumer" do
    test "that halts, raises, throws or exits", %{mark: mark} do
      tree = [Proc.fixture("fork-tree"), mark, "2", "2", "--setsid"]
      stream = Stdio.stream!(tree, Plain)
      assert Enum.take(stream, 1) == [stdout: "ready\n"]
      assert Proc.find(mark) == []
      assert_raise RuntimeError, "mine", fn -> Enum.each(stream, fn _ -> raise "mine" end) end
      assert Proc.find(mark) == []
      assert catch_throw(Enum.each(stream, &throw/1)) == {:stdout, "ready\n"}
      assert catch_exit(Enum.each(stream, &exit/1)) == {:stdout, "ready\n"}
      assert Proc.find(mark) == []
      assert messages() == []
    end

    test "that is killed", %{mark: mark} do
      command = [
        "/bin/sh",
        "-c",
        "setsid sh -c 'sleep 1000; :' $0 & echo ready; sleep 1000; :",
        mark
      ]

      me = self()

      {pid, monitor} =
        spawn_monitor(fn -> Enum.each(Stdio.stream!(command, Deep), &send(me, &1)) end)

      assert_receive {:stdout, "ready\n"}, 10_000
      assert Proc.find(mark) != []
      Process.exit(pid, :kill)
      assert_receive {:DOWN, ^monitor, _, _, :killed}
      assert Proc.wait_until(fn -> Proc.gone?(mark) end, 5000)
      assert messages() == []
    end

    test "of two streams at once" do
      both = Stream.zip(Stdio.stream!("echo a", Plain), Stdio.stream!("echo b", Deep))

      assert Enum.to_list(both) == [
               {{:stdout, "a\n"}, {:stdout, "b\n"}},
               {{:exit_status, 0}, {:exit_status, 0}}
             ]

      assert messages() == []
    end
  end

  describe "input" do
    test "that raises, throws or exits: the consumer's, after the tree is gone", %{mark: mark} do
      command = ["/bin/sh", "-c", "cat; sleep 1000; :", mark]

      input = fn fail ->
        Stream.map(["a", "b"], fn
          "a" -> "a"
          "b" -> fail.()
        end)
      end

      pipe = fn fail -> fail |> input.() |> Stdio.pipe!(command, Plain) |> Enum.to_list() end

      assert_raise RuntimeError, "input", fn -> pipe.(fn -> raise "input" end) end
      assert Proc.find(mark) == []
      assert catch_throw(pipe.(fn -> throw(:input) end)) == :input
      assert catch_exit(pipe.(fn -> exit(:input) end)) == :input
      assert Proc.find(mark) == []
      assert messages() == []
    end

    test "that its program does not want" do
      flood = Stream.repeatedly(fn -> String.duplicate("a", 10_000) end)

      assert flood |> Stdio.pipe!("exec <&-; echo a", Plain) |> Enum.to_list() == [
               stdout: "a\n",
               exit_status: 0
             ]

      assert messages() == []
    end
  end

  test "tasks beside a stream keep their messages", %{mark: mark} do
    task = sh!(root!(), "echo mine; sleep 1000; :", mark)
    assert run("echo a", Plain) == [stdout: "a\n", exit_status: 0]
    assert_receive {:stdout, ^task, "mine\n"}, 5000
    assert messages() == []
  end

  # Dies in the middle of its ops, and everybody knows before the next one is made.
  defp dying(then) do
    kill = fn task, _ ->
      pid = Stdio.Task.pidof(task)
      :ok = Proc.kill(pid)
      true = Proc.wait_until(fn -> Stdio.Task.pidof(task) == :noproc end)
      then.()
    end

    {Stdio.Test.Plain, ops: fn _ -> [{Stdio.Test.Forward, :call, [kill, nil]}] end}
  end

  test "a task that died among its ops is given up at once", %{mark: mark} do
    started = System.monotonic_time(:millisecond)
    stream = Stdio.stream!(["/bin/true", mark], dying(fn -> {:error, :eio} end))
    assert_raise Stdio.OpError, fn -> Enum.to_list(stream) end
    assert System.monotonic_time(:millisecond) - started < 5_000
    assert messages() == []
  end

  # The descriptors that must not stay are what the case counts.
  test "a task that died among its ops, and then its owner", %{mark: mark} do
    test = self()

    owner =
      spawn(fn ->
        wait = fn ->
          send(test, :died)
          Process.sleep(:infinity)
        end

        Enum.to_list(Stdio.stream!(["/bin/true", mark], dying(wait)))
      end)

    assert_receive :died, 10_000
    Process.exit(owner, :kill)
  end
end
