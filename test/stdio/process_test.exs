defmodule Stdio.ProcessTest do
  # With the stand-ins of test/support/fake_task.ex; to be moved to real tasks when they go.
  use ExUnit.Case, async: true
  @moduletag :fake_task

  alias Stdio.{OpError, ProcessTree}

  setup do
    Stdio.Task.answers(%{})
    sh = Stdio.Task.new()
    supervisor = %Stdio{init: Stdio.Task.new()}
    pipeline = [%{task: Stdio.Task.new(), pid: 4710}, %{task: sh, pid: 4711}]
    %{sh: sh, tree: %ProcessTree{supervisor: supervisor, pipeline: pipeline}}
  end

  test "task: a supervisor of its own, with the containment asked for" do
    for config <- [[], [containment: :auto], [containment: :pid_namespace]] do
      Stdio.Task.answers(%{})
      assert {:ok, %Stdio{}} = Stdio.Process.task(config)
      assert Stdio.Task.calls() == [{:supervisor, [:shutdown, :default, []]}]
    end

    for containment <- [:cgroup, :best_effort] do
      Stdio.Task.answers(%{supervisor: {:error, :enotsup}})
      assert Stdio.Process.task(containment: containment) == {:error, :enotsup}
      assert [{:supervisor, [:shutdown, filter, opts]}] = Stdio.Task.calls()
      assert opts == [containment: containment]
      assert {:allow, [:close, :exit, :fork | _]} = filter
    end
  end

  test "init: what the system's subprocess gives", %{tree: tree} do
    init = Stdio.Process.init(net: :none)
    assert {:ok, [%{task: task, pid: 4711}]} = init.(tree.supervisor.init)
    assert [{:subprocess, [[net: :none]]}, {:fork, _}, {:pidof, [^task]}] = Stdio.Task.calls()
  end

  test "onerror stops the task", %{sh: sh} do
    assert Stdio.Process.onerror([]).(sh) == :ok
    assert Stdio.Task.calls() == [{:stop, [sh]}]
  end

  describe "onexit" do
    test "running: SIGKILL to its group, from the supervisor", %{tree: tree, sh: sh} do
      assert Stdio.Process.onexit([]).(tree) == true
      init = tree.supervisor.init
      assert Stdio.Task.calls() == [{:pidof, [sh]}, {:kill, [init, -4711, :sigkill]}]
    end

    test "it leads no group: SIGKILL to its pid", %{tree: tree} do
      Stdio.Task.answers(%{kill: fn _, pid, _ -> if pid < 0, do: {:error, :esrch}, else: :ok end})
      assert Stdio.Process.onexit([]).(tree) == true
      assert [{:kill, [_, -4711, _]}, {:kill, [_, 4711, _]}] = tl(Stdio.Task.calls())
    end

    test "ended: no signal goes to a pid that may be another's", %{tree: tree, sh: sh} do
      Stdio.Task.answers(%{pidof: :noproc})
      assert Stdio.Process.onexit([]).(tree) == false
      assert Stdio.Task.calls() == [{:pidof, [sh]}]
    end

    test "nothing was started", %{tree: tree} do
      assert Stdio.Process.onexit([]).(%{tree | pipeline: []}) == false
      assert Stdio.Task.calls() == []
    end
  end

  test "signal: the group, else the process; one that is gone is no error", %{sh: sh} do
    kill = fn group, process ->
      Stdio.Task.answers(%{kill: fn _, pid, _ -> if pid < 0, do: group, else: process end})
      result = Stdio.Process.signal(sh, 5, :sigterm)
      {result, for({:kill, [^sh, pid, :sigterm]} <- Stdio.Task.calls(), do: pid)}
    end

    esrch = {:error, :esrch}
    eperm = {:error, :eperm}
    assert kill.(:ok, :ok) == {:ok, [-5]}
    assert kill.(esrch, :ok) == {:ok, [-5, 5]}
    assert kill.(esrch, esrch) == {:ok, [-5, 5]}
    assert kill.(eperm, :ok) == {eperm, [-5]}
    assert kill.(esrch, eperm) == {eperm, [-5, 5]}
  end

  test "signal: no pid that means a group", %{sh: sh} do
    for pid <- [0, -1, -5, :noproc] do
      assert_raise FunctionClauseError, fn -> Stdio.Process.signal(sh, pid, :sigterm) end
    end

    assert Stdio.Task.calls() == []
  end

  test "alive?", %{sh: sh} do
    assert Stdio.Process.alive?(sh)
    Stdio.Task.answers(%{pidof: :noproc})
    refute Stdio.Process.alive?(sh)
  end

  test "__setugid__: a branch for root, nothing for others", %{sh: sh} do
    setugid = fn answer ->
      Stdio.Task.answers(%{getresuid: answer})
      Stdio.Process.__setugid__(sh, 10, 20, [30])
    end

    assert setugid.({:ok, 1000, 0, 0}) ==
             [setgroups: [[30]], setresgid: [20, 20, 20], setresuid: [10, 10, 10]]

    assert setugid.({:ok, 0, 1000, 0}) == []
    assert setugid.({:error, :esrch}) == {:error, :esrch}
  end

  test "options: none of its own" do
    assert Stdio.Process.options() == []
  end

  describe "ProcessTree" do
    test "defaults" do
      assert %ProcessTree{} == %{__struct__: ProcessTree, supervisor: %Stdio{}, pipeline: []}
    end

    test "task: the entry of a pipeline; a dead one is an OpError", %{sh: sh} do
      assert ProcessTree.task(sh) == %{task: sh, pid: 4711}

      Stdio.Task.answers(%{pidof: :noproc})
      error = assert_raise OpError, fn -> ProcessTree.task(sh) end
      assert error == OpError.fork(:einval)
    end
  end

  describe "AtExit" do
    alias Stdio.AtExit

    setup %{tree: tree} do
      run = fn atexit, answers ->
        Stdio.Task.answers(answers)
        supervisor = %{tree.supervisor | atexit: atexit, state: %{a: 1}}
        AtExit.run(supervisor, tree.pipeline)
      end

      %{run: run, init: tree.supervisor.init}
    end

    test ":shutdown reaps, then stops", %{run: run, init: init, tree: tree} do
      for answer <- [:ok, {:error, :etimedout}] do
        assert run.(:shutdown, %{reap: answer}) == :ok
        assert [{:reap, [reaped, :SIGKILL]}, {:stop, [^init]}] = Stdio.Task.calls()
        assert %ProcessTree{pipeline: pipeline, supervisor: %Stdio{init: ^init}} = reaped
        assert pipeline == tree.pipeline
      end
    end

    test ":shutdown stops even if reap raises", %{run: run, init: init} do
      assert_raise RuntimeError, fn ->
        run.(:shutdown, %{reap: fn _, _ -> raise "oops" end})
      end

      assert [{:reap, _}, {:stop, [^init]}] = Stdio.Task.calls()
    end

    test ":noreap stops, :noshutdown does nothing", %{run: run, init: init} do
      assert run.(:noreap, %{}) == :ok
      assert Stdio.Task.calls() == [{:stop, [init]}]

      assert run.(:noshutdown, %{}) == :ok
      assert Stdio.Task.calls() == []
    end

    test "a function gets task, pipeline and state", %{run: run, init: init, tree: tree} do
      me = self()
      assert run.(fn init, pipeline, state -> send(me, {init, pipeline, state}) end, %{}) == :ok
      pipeline = tree.pipeline
      assert_received {^init, ^pipeline, %{a: 1}}
      assert Stdio.Task.calls() == []
    end

    test "no supervisor, nothing to do" do
      for atexit <- [:shutdown, :noreap, :noshutdown] do
        assert AtExit.run(%Stdio{atexit: atexit}, []) == :ok
      end

      assert Stdio.Task.calls() == []
    end
  end
end
