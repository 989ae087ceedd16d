defmodule Stdio.ProcessTest do
  use Stdio.Test.StreamCase
  import Stdio.Test.Tasks, only: [root!: 0, fork!: 1, sh!: 3, sleeper!: 2, events: 1]

  alias Stdio.{AtExit, OpError, ProcessTree, Task}

  setup do
    assert {:ok, supervisor} = Stdio.supervisor()
    %{supervisor: supervisor, init: supervisor.init}
  end

  defp tree(supervisor, task),
    do: %ProcessTree{supervisor: supervisor, pipeline: [ProcessTree.task(task)]}

  # A program that leads a group of two.
  defp group!(init, mark) do
    task = fork!(init)
    Task.setcpid(task, :flowcontrol, -1)
    assert {:ok, _} = Task.setsid(task)
    line = "sh -c 'sleep 1000; :' #{mark} & echo ready; sleep 1000; :"
    assert Task.execve(task, ["/bin/sh", "-c", line, mark], ["PATH=/bin:/usr/bin"]) == :ok
    assert_receive {:stdout, ^task, "ready\n"}, 10_000
    task
  end

  test "task: a supervisor of its own" do
    for config <-
          [[], [containment: :auto], [containment: :pid_namespace]] ++
            [[containment: :best_effort]] do
      assert {:ok, %Stdio{init: init, atexit: :shutdown, state: %{}}} = Stdio.Process.task(config)
      assert Task.parent(init) == :noproc
      assert Proc.stat(Task.pidof(init)).name == "Supervise"
      assert_raise UndefinedFunctionError, fn -> Task.chdir(init, "/") end
      assert Task.stop(init) == :ok
    end
  end

  test "init: one process below the supervisor", %{init: init} do
    assert {:ok, [%{task: task, pid: pid}]} = Stdio.Process.init([]).(init)
    assert Task.pidof(task) == pid
    assert Task.parent(task) == init
  end

  test "onerror stops the task", %{init: init, mark: mark} do
    task = group!(init, mark)
    assert Stdio.Process.onerror([]).(task) == :ok
    assert Task.pidof(task) == :noproc
    assert Proc.wait_until(fn -> Proc.find(mark) == [] end)
    assert messages() == []
  end

  describe "onexit" do
    test "running: SIGKILL to its group", %{supervisor: supervisor, mark: mark} do
      task = group!(supervisor.init, mark)
      assert Stdio.Process.onexit([]).(tree(supervisor, task)) == true
      assert [termsig: :sigkill] = events(task)
      assert Proc.wait_until(fn -> Proc.find(mark) == [] end)
    end

    test "it leads no group: SIGKILL to its pid", %{supervisor: supervisor, mark: mark} do
      task = sleeper!(supervisor.init, mark)
      assert Stdio.Process.onexit([]).(tree(supervisor, task)) == true
      assert [termsig: :sigkill] = events(task)
    end

    test "ended: no signal", %{supervisor: supervisor, mark: mark} do
      task = sleeper!(supervisor.init, mark)
      tree = tree(supervisor, task)
      assert Task.stop(task) == :ok
      assert Stdio.Process.onexit([]).(tree) == false
    end

    test "nothing was started", %{supervisor: supervisor} do
      assert Stdio.Process.onexit([]).(%ProcessTree{supervisor: supervisor}) == false
    end
  end

  test "signal: the group, else the process; one that is gone is no error", %{mark: mark} do
    # Of a task that leads no group, the group does not exist.
    root = root!()
    task = sleeper!(root, mark)
    pid = Task.pidof(task)
    assert Stdio.Process.signal(root, pid, :sigterm) == :ok
    assert events(task) == [termsig: :sigterm]
    assert Stdio.Process.signal(root, pid, :sigterm) == :ok

    task = group!(root, mark)
    assert Stdio.Process.signal(root, Task.pidof(task), :SIGKILL) == :ok
    assert [termsig: :sigkill] = events(task)
    assert Proc.wait_until(fn -> Proc.find(mark) == [] end)
    assert Stdio.Process.signal(root, Task.pidof(root), 99) == {:error, :einval}
  end

  test "signal: no pid that means a group", %{init: init} do
    for pid <- [0, -1, -5, :noproc] do
      assert_raise FunctionClauseError, fn -> Stdio.Process.signal(init, pid, :sigterm) end
    end
  end

  test "alive?", %{init: init, mark: mark} do
    task = fork!(init)
    assert Stdio.Process.alive?(task)
    task = sleeper!(init, mark)
    assert Stdio.Process.alive?(task)
    assert Task.stop(task) == :ok
    refute Stdio.Process.alive?(task)
  end

  test "__setugid__: a branch for root, nothing for others" do
    task = fork!(root!())
    branch = [setgroups: [[30]], setresgid: [20, 20, 20], setresuid: [10, 10, 10]]
    expected = if root?(), do: branch, else: []
    assert Stdio.Process.__setugid__(task, 10, 20, [30]) == expected
    assert Task.stop(task) == :ok
    assert Stdio.Process.__setugid__(task, 10, 20, [30]) == {:error, :esrch}
  end

  test "options: none of its own" do
    assert Stdio.Process.options() == []
  end

  describe "ProcessTree" do
    test "defaults" do
      assert %ProcessTree{} == %{__struct__: ProcessTree, supervisor: %Stdio{}, pipeline: []}
    end

    test "task: the entry of a pipeline; a dead one is an OpError", %{init: init} do
      task = fork!(init)
      assert ProcessTree.task(task) == %{task: task, pid: Task.pidof(task)}
      assert Task.stop(task) == :ok
      assert assert_raise(OpError, fn -> ProcessTree.task(task) end) == OpError.fork(:einval)
    end
  end

  describe "AtExit" do
    test ":shutdown and :noreap: all is gone", %{mark: mark} do
      for atexit <- [:shutdown, :noreap] do
        assert {:ok, supervisor} = Stdio.supervisor(atexit)
        task = sh!(supervisor.init, "setsid sh -c 'sleep 1000; :' #{mark} & sleep 1000; :", mark)
        assert Proc.wait_until(fn -> length(Proc.find(mark)) >= 2 end)
        assert AtExit.run(supervisor, [ProcessTree.task(task)]) == :ok
        assert Proc.find(mark) == []
        assert Task.pidof(supervisor.init) == :noproc
      end
    end

    test ":noshutdown does nothing", %{supervisor: supervisor, mark: mark} do
      task = sleeper!(supervisor.init, mark)
      assert AtExit.run(%{supervisor | atexit: :noshutdown}, [ProcessTree.task(task)]) == :ok
      assert Stdio.Process.alive?(task)
    end

    test "a function gets task, pipeline and state", %{supervisor: supervisor, init: init} do
      me = self()
      atexit = fn init, pipeline, state -> send(me, {init, pipeline, state}) end
      assert AtExit.run(%{supervisor | atexit: atexit, state: %{a: 1}}, [:pipeline]) == :ok
      assert_received {^init, [:pipeline], %{a: 1}}
      assert Stdio.Process.alive?(init)
    end

    test "no supervisor, nothing to do" do
      for atexit <- [:shutdown, :noreap, :noshutdown] do
        assert AtExit.run(%Stdio{atexit: atexit}, []) == :ok
      end
    end
  end
end
