defmodule Stdio.OpTest do
  use Stdio.Test.StreamCase

  import ExUnit.CaptureLog
  import Stdio.Test.Tasks, only: [root!: 0, fork!: 1, drain: 0]
  alias Stdio.{Op, OpError, Task}

  setup do
    root = root!()
    outer = fork!(root)
    sh = fork!(outer)
    pipeline = Enum.map([outer, sh], &Stdio.ProcessTree.task/1)
    %{supervisor: %Stdio{init: root}, sh: sh, pipeline: pipeline}
  end

  defp task!(context, ops, result \\ nil) do
    supervisor = context.supervisor.init

    init = fn ^supervisor -> result || {:ok, context.pipeline} end
    Op.task!(context.supervisor, ops, init, fn task -> send(self(), {:onerror, task}) end)
  end

  defp error(context, ops, result \\ nil),
    do: assert_raise(OpError, fn -> task!(context, ops, result) end)

  defp onerrors, do: for({:onerror, task} <- drain(), do: task)

  test "returns the pipeline; ops run in its last task", %{sh: sh} = context do
    assert task!(context, setsid: [], chdir: ["/tmp"]) == context.pipeline
    assert Task.getcwd(sh) == {:ok, "/tmp"}
    assert Task.getsid(sh, 0) == {:ok, Task.pidof(sh)}
    [%{task: outer}, _] = context.pipeline
    assert Task.getcwd(outer) == Task.getcwd(context.supervisor.init)
    assert onerrors() == []
  end

  test "no ops", context do
    assert task!(context, []) == context.pipeline
  end

  test "init failed: no onerror, no op", %{sh: sh} = context do
    before = Task.getcwd(sh)
    assert %{reason: :eagain, op: nil} = error(context, [chdir: ["/tmp"]], {:ok, []})
    assert %{reason: :eperm, op: nil} = error(context, [chdir: ["/tmp"]], {:error, :eperm})

    assert Exception.message(error(context, [], {:error, :eperm})) ==
             "error attempting to fork subprocess: insufficient permissions (eperm)\n"

    assert Task.getcwd(sh) == before
    assert onerrors() == []
  end

  test "init of another shape is a sentence", %{sh: sh} = context do
    for result <- [:ok, {:ok, :task}, {:ok, [sh]}, {:ok, [1 | 2]}] do
      assert_raise ArgumentError, ~r/init\/1 gives must return .*got: /s, fn ->
        task!(context, [], result)
      end
    end
  end

  test "a dead task", %{sh: sh} = context do
    assert Task.stop(sh) == :ok
    assert error(context, setsid: []) == OpError.fork(:einval)
    assert onerrors() == [sh]
  end

  test "a failed op: onerror once, with the last task", %{sh: sh} = context do
    made = {Stdio.Task, :chdir, [sh, "/nonexistent"]}

    assert error(context, [{:chdir, ["/nonexistent"]}, {:setsid, []}]) ==
             %{
               OpError.failed(:enoent, made, setsid: [])
               | op: {Stdio.Task, :chdir, ["/nonexistent"]}
             }

    assert onerrors() == [sh]
  end

  test "a bare result, an unknown call and no op: onerror once each", %{sh: sh} = context do
    for op <- [{:getpid, []}, {:fake_syscall, []}, :nothing] do
      assert %{reason: :badop} = error(context, [op])
      assert onerrors() == [sh]
    end
  end

  test "levels, branches, errors passed over, the state", %{sh: sh} = context do
    me = self()

    told = fn name ->
      fn value ->
        send(me, {name, value})
        :ok
      end
    end

    ops = [
      {:getcwd, []},
      [{:chdir, ["/nonexistent"], errexit: false}, {:chdir, ["/tmp"]}],
      {:rmdir, ["/nonexistent"], ignore: [:enoent]},
      {:getuid, [], transform: fn uid -> [{:setenv, ["UID", "#{uid}", 1]}] end},
      {:getenv, ["UID"], transform: told.(:uid)},
      {:environ, [], transform: told.(:environ)},
      [{:gethostname, []}]
    ]

    assert task!(context, ops) == context.pipeline
    uid = "#{Task.getuid(sh)}"
    assert_received {:uid, ^uid}
    assert_received {:environ, environ}
    assert "UID=#{uid}" in environ
    assert Task.getcwd(sh) == {:ok, "/tmp"}
  end

  test "a failing onerror does not hide the failure", context do
    init = fn _ -> {:ok, context.pipeline} end

    for {fail, text} <- [
          {fn _ -> raise "oops" end, "** (RuntimeError) oops"},
          {fn _ -> throw(:oops) end, "** (throw) :oops"},
          {fn _ -> exit(:oops) end, "** (exit) :oops"}
        ] do
      log =
        capture_log(fn ->
          ops = [chdir: ["/nonexistent"]]
          run = fn -> Op.task!(context.supervisor, ops, init, fail) end
          assert %{reason: :enoent} = assert_raise(OpError, run)
        end)

      assert log =~ "onerror of a Stdio behaviour failed"
      assert log =~ text
    end
  end

  test "an exception of init is the caller's", context do
    assert_raise RuntimeError, "oops", fn ->
      Op.task!(context.supervisor, [], fn _ -> raise "oops" end, fn _ -> :ok end)
    end
  end
end
