defmodule Stdio.ContainerTest do
  use Stdio.Test.ContainerTests, behaviour: Stdio.Container, tag: :root

  test "ids, groups and PID 1", context do
    assert %{stdout: "uid=65578 gid=65578 groups=65578\n"} = run("id -a", context, uid: 65_578)
    config = [uid: 1000, gid: 1001, groups: [5, 6]]
    assert %{stdout: "1000 1001 1001 5 6\n"} = run("echo $(id -u; id -g; id -G)", context, config)
    assert %{stdout: "1\n"} = run("echo $$", context)
  end

  @tag :pstree
  test "the processes it sees", context do
    assert %{stdout: "sh---pstree\n"} = run("pstree", context)
    assert %{stdout: "sh---pstree\n"} = run("pstree $$", context)
  end

  @tag :ping
  test "ping with the host's network and setuid: true", context do
    assert %{stdout: "PING 127.0.0.1" <> _, exit: {:exit_status, 0}} =
             run("ping -c 1 127.0.0.1", context, setuid: true, net: :host)
  end

  test "capabilities: none; of uid 0 those for its own; with setuid: true all", context do
    line = "grep CapEff /proc/self/status"
    assert %{stdout: "CapEff:\t0000000000000000\n"} = run(line, context)
    assert %{stdout: "CapEff:\t00000000000425fb\n"} = run(line, context, uid: 0)

    refute match?(
             %{stdout: "CapEff:\t00000000000425fb\n"},
             run(line, context, uid: 0, setuid: true)
           )
  end
end

defmodule Stdio.ContainerDataTest do
  use ExUnit.Case, async: false
  doctest Stdio.Container.Hint

  alias Stdio.{Container, OpError}

  setup do
    path = Path.join(System.tmp_dir!(), "stdio-tree-#{System.unique_integer([:positive])}")
    before = Application.fetch_env(:stdio, :path)
    Application.put_env(:stdio, :path, path)

    on_exit(fn ->
      case before do
        {:ok, value} -> Application.put_env(:stdio, :path, value)
        :error -> Application.delete_env(:stdio, :path)
      end

      File.rm_rf!(path)
    end)

    {:ok, path: path}
  end

  test "make_chroot_tree!", %{path: path} do
    assert Container.make_chroot_tree!() == :ok
    assert Container.make_chroot_tree!() == :ok

    assert Enum.sort(File.ls!(path)) ==
             Enum.sort(~w(bin sbin usr lib lib64 opt tmp home proc dev))

    assert Container.make_chroot_tree!(["var/lib"]) == :ok
    assert File.dir?(Path.join(path, "var/lib"))
    File.write!(Path.join(path, "file"), "")
    assert_raise File.Error, fn -> Container.make_chroot_tree!(["file/x"]) end
  end

  @tag :unprivileged
  test "make_chroot_tree!: the directory that may not be made, and why", %{path: path} do
    File.mkdir!(path)
    File.chmod!(path, 0o500)
    Application.put_env(:stdio, :path, Path.join(path, "a/root"))
    error = assert_raise File.Error, fn -> Container.make_chroot_tree!() end
    assert %{reason: :eacces, path: denied} = error
    assert denied == Path.join(path, "a")
  end

  test "ops: the order of the contract, without Elixir in it", %{path: path} do
    for behaviour <- [Container, Stdio.Rootless] do
      ops = behaviour.ops(fstab: ["opt", "/srv"], cd: "/tmp", uid: 0, priority: 0)
      assert {:bind_in, [path, path, "/", [:ms_bind, :ms_rdonly, :ms_nosuid]]} in ops
      names = Enum.dedup(Enum.map(ops, &elem(&1, 0)))

      common =
        ~w(setsid sethostname setpriority mount bind_in mount_in device_in mkdir_in mount_in) ++
          ~w(symlink_in remount_in proc_in chdir pivot_root umount2 chdir getcwd chdir setrlimit) ++
          ~w(limit_capabilities)

      ids = if behaviour == Container, do: ~w(setgroups setresgid setresuid), else: []
      expected = common ++ ids ++ ~w(no_new_privs set_pdeathsig)
      assert Enum.map(names, &Atom.to_string/1) == expected
      refute Enum.any?(ops, &match?({module, _, args} when is_atom(args) or module == Elixir, &1))
    end

    refute :setpriority in Enum.map(Container.ops([]), &elem(&1, 0))
    refute :limit_capabilities in Enum.map(Container.ops(uid: 0, setuid: true), &elem(&1, 0))
    refute :no_new_privs in Enum.map(Container.ops(setuid: true), &elem(&1, 0))
  end

  @tag :unprivileged
  test "without root: an error that names what it takes" do
    config = []
    {:ok, supervisor} = Container.task(config)

    error =
      assert_raise OpError, fn ->
        Stdio.Op.task!(supervisor, [], Container.init(config), Container.onerror(config))
      end

    assert error.reason == :eperm
    assert error.message =~ "insufficient permissions (eperm)\n"
    assert error.message =~ "Stdio.setuid()"
    Stdio.Task.stop(supervisor.init)
  end
end
