defmodule Stdio.RootlessTest do
  use Stdio.Test.ContainerTests, behaviour: Stdio.Rootless, tag: :userns

  alias Stdio.Rootless

  test "ids and processes", context do
    assert %{stdout: "65534\n65534\n2\n"} = run("id -u; id -g; echo $$", context)
    assert %{stdout: "0\n7\n"} = run("id -u; id -g", context, uid: 0, gid: 7)

    assert %{stdout: "65534\n" <> _} =
             run("cut -c1-10 /proc/self/uid_map | tr -d ' '; cat /proc/self/setgroups", context)
  end

  @tag :pstree
  test "the processes it sees", context do
    assert %{stdout: "Supervise---sh---pstree\n"} = run("pstree", context)
    assert %{stdout: "sh---pstree\n"} = run("pstree $$", context)
  end

  test "what it leaves behind is adopted and reaped while it runs", context do
    line =
      "(sleep 0.05 & echo $! > /tmp/pid); read pid < /tmp/pid; i=0; " <>
        "while test -d /proc/$pid && test $i -lt 100; do i=$((i+1)); sleep 0.1; done; test -d /proc/$pid"

    assert %{exit: {:exit_status, 1}} = run(line, context)
  end

  test "capabilities: none; of uid 0 those for its own", context do
    line = "grep CapEff /proc/self/status"
    assert %{stdout: "CapEff:\t0000000000000000\n"} = run(line, context)
    assert %{stdout: "CapEff:\t00000000000425fb\n"} = run(line, context, uid: 0)
  end

  test "the supervisor inside shows nothing of itself", context do
    for config <- [[uid: 0], [uid: 1000], [uid: 0, setuid: true]] do
      line = "ls -l /proc/1/cwd /proc/1/root/ /proc/1/fd/0 || cat /proc/1/environ || echo denied"
      assert %{stdout: out} = run(line, context, config)
      assert String.ends_with?(out, "denied\n")
    end
  end

  test "the supervisor outside may be asked for nothing but what it needs" do
    {:ok, supervisor} = Rootless.task([])
    assert is_integer(Stdio.Task.getuid(supervisor.init))
    assert_raise UndefinedFunctionError, fn -> Stdio.Task.fork(supervisor.init) end
    assert_raise UndefinedFunctionError, fn -> Stdio.Task.chdir(supervisor.init, "/") end
    Stdio.Task.stop(supervisor.init)
  end

  test "user namespaces that are off: the error names the setting" do
    {:ok, root} = Stdio.Task.fork()
    # A system of its own, as far as this setting goes.
    {:ok, task} = Stdio.Task.__birth__(root, [], {0, 0}, [], nil)
    :ok = Stdio.Task.write_file(task, "/proc/sys/user/max_user_namespaces", "0")

    error =
      assert_raise Stdio.OpError, fn ->
        Stdio.Op.task!(%Stdio{init: task}, [], Rootless.init([]), Rootless.onerror([]))
      end

    assert error.reason == :enospc
    assert error.message =~ "user.max_user_namespaces"
    Stdio.Task.stop(root)
  end

  test "a supervisor and its child are two generations" do
    {:ok, root} = Stdio.Task.fork()
    birth = fn -> Stdio.Task.__birth__(root, [], {0, 0}, [], Stdio.__supervision__()) end
    true = Stdio.Task.setopt(root, :maxforkdepth, 1)
    assert birth.() == {:error, :eagain}
    true = Stdio.Task.setopt(root, :maxforkdepth, 2)
    assert {:ok, cinit, program} = birth.()
    assert Stdio.Task.parent(program) == cinit
    assert length(Stdio.Task.pipeline(program)) == 2
    Stdio.Task.stop(root)
  end

  test "a step of its birth that fails is the error, and nothing is left" do
    {:ok, root} = Stdio.Task.fork()
    birth = &Stdio.Task.__birth__(root, [], {0, 0}, [{:chdir, ["/"]}, &1], &2)

    for supervision <- [nil, Stdio.__supervision__()] do
      assert birth.({:chdir, ["/nonexistent"]}, supervision) == {:error, :enoent}
      assert Stdio.Task.cpid(root) == []
      assert_raise UndefinedFunctionError, fn -> birth.({:pledge, ["a", "b"]}, supervision) end
      assert_raise ArgumentError, fn -> birth.({:chdir, [1]}, supervision) end
    end

    # As on a system that has none of them.
    assert Stdio.Task.__birth__(root, [:clone_newnothing], nil, [], nil) == {:error, :enotsup}
    assert {:ok, _} = Stdio.Task.fork(root)
    Stdio.Task.stop(root)
  end
end
