defmodule Stdio.OpTest do
  # With the stand-in for Stdio.Task of test/support/fake_task.ex; to be moved to real tasks when
  # it goes.
  use ExUnit.Case, async: true
  @moduletag :fake_task

  import ExUnit.CaptureLog
  alias Stdio.{Op, OpError}

  setup do
    sh = Stdio.Task.new()
    Stdio.Task.answers(%{})

    pipeline = [%{task: Stdio.Task.new(), pid: 4710}, %{task: sh, pid: 4711}]
    %{supervisor: %Stdio{init: Stdio.Task.new()}, sh: sh, pipeline: pipeline}
  end

  defp task!(context, ops, result \\ nil) do
    supervisor = context.supervisor.init

    init = fn ^supervisor -> result || {:ok, context.pipeline} end
    Op.task!(context.supervisor, ops, init, fn task -> send(self(), {:onerror, task}) end)
  end

  defp error(context, ops, result \\ nil),
    do: assert_raise(OpError, fn -> task!(context, ops, result) end)

  defp onerrors do
    receive do
      {:onerror, task} -> [task | onerrors()]
    after
      0 -> []
    end
  end

  test "returns the pipeline; ops run in its last task", %{sh: sh} = context do
    assert task!(context, setsid: [], chdir: ["/"]) == context.pipeline
    assert [{:pidof, [^sh]}, {:setsid, [^sh]}, {:chdir, [^sh, "/"]}] = Stdio.Task.calls()
    assert onerrors() == []
  end

  test "no ops", context do
    assert task!(context, []) == context.pipeline
  end

  test "init failed: no onerror, no op", context do
    assert %{reason: :eagain, op: nil} = error(context, [setsid: []], {:ok, []})
    assert %{reason: :eperm, op: nil} = error(context, [setsid: []], {:error, :eperm})

    assert Exception.message(error(context, [], {:error, :eperm})) ==
             "error attempting to fork subprocess: insufficient permissions (eperm)\n"

    assert Stdio.Task.calls() == []
    assert onerrors() == []
  end

  test "init of another shape is a sentence", context do
    for result <- [:ok, {:ok, :task}, {:ok, [Stdio.Task.new()]}, {:ok, [1 | 2]}] do
      assert_raise ArgumentError, ~r/init\/1 gives must return .*got: /s, fn ->
        task!(context, [], result)
      end
    end
  end

  test "a dead task", %{sh: sh} = context do
    Stdio.Task.answers(%{pidof: :noproc})
    assert error(context, setsid: []) == OpError.fork(:einval)
    assert Stdio.Task.calls() == [{:pidof, [sh]}]
    assert onerrors() == [sh]
  end

  test "a failed op: onerror once, with the last task", %{sh: sh} = context do
    Stdio.Task.answers(%{chdir: {:error, :enoent}})

    assert error(context, [{:chdir, ["/nonexistent"]}, {:setsid, []}]) ==
             OpError.failed(:enoent, {Stdio.Task, :chdir, [sh, "/nonexistent"]}, setsid: [])

    assert onerrors() == [sh]
  end

  test "a bare result, an unknown call and no op: onerror once each", %{sh: sh} = context do
    for op <- [{:getpid, []}, {:fake_syscall, []}, :nothing] do
      assert %{reason: :badop} = error(context, [op])
      assert onerrors() == [sh]
    end
  end

  test "a failing onerror does not hide the failure", context do
    Stdio.Task.answers(%{chdir: {:error, :enoent}})
    init = fn _ -> {:ok, context.pipeline} end

    for {fail, text} <- [
          {fn _ -> raise "oops" end, "** (RuntimeError) oops"},
          {fn _ -> throw(:oops) end, "** (throw) :oops"},
          {fn _ -> exit(:oops) end, "** (exit) :oops"}
        ] do
      log =
        capture_log(fn ->
          assert %{reason: :enoent} =
                   assert_raise(OpError, fn ->
                     Op.task!(context.supervisor, [chdir: ["/"]], init, fail)
                   end)
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
