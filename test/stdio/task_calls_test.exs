defmodule Stdio.TaskCallsTest do
  # The calls that a task makes, with what exactly they give.
  use Stdio.Test.StreamCase
  import Stdio.Test.Tasks, only: [root!: 0, fork!: 1, sleeper!: 2, events: 1]
  alias Stdio.Task

  doctest Stdio.Task

  setup do
    %{task: fork!(root!())}
  end

  defp infinity, do: 18_446_744_073_709_551_615

  describe "attributes:" do
    test "ids", %{task: task} do
      uid = beam_uid()
      assert Task.getuid(task) == uid
      assert is_integer(Task.getgid(task))
      assert is_integer(Task.getpgrp(task))
      assert Task.getresuid(task) == {:ok, uid, uid, uid}
      assert {:ok, gid, gid, gid} = Task.getresgid(task)
      assert Task.setuid(task, uid) == :ok
      assert Task.setresuid(task, uid, uid, uid) == :ok
      assert Task.setresgid(task, gid, gid, gid) == :ok
      assert Task.setgid(task, gid) == :ok
    end

    test "session and group", %{task: task} do
      pid = Task.pidof(task)
      assert Task.setpgid(task, 0, 0) == :ok
      assert Task.getpgrp(task) == pid
      assert Task.setsid(task) == {:error, :eperm}
      other = fork!(task)
      assert Task.setsid(other) == {:ok, Task.pidof(other)}
      assert Task.getsid(other, 0) == {:ok, Task.pidof(other)}
      assert Task.getsid(task, 999_999_999) == {:error, :esrch}
    end

    @tag :root
    test "groups", %{task: task} do
      assert Task.setgroups(task, [1, 2, 200]) == :ok
      assert Task.getgroups(task) == {:ok, [1, 2, 200]}
      many = Enum.to_list(1000..3000)
      assert Task.setgroups(task, many) == :ok
      assert Task.getgroups(task) == {:ok, many}
      assert Task.setgroups(task, []) == :ok
      assert Task.getgroups(task) == {:ok, []}
      assert Task.setgroups(task, [4_294_967_295 - 1]) == :ok
      assert_raise ArgumentError, fn -> Task.setgroups(task, [4_294_967_296]) end
    end

    @tag :root
    test "setugid: as root everything, then nothing", %{task: task} do
      assert Task.setugid(task, 70_000, 70_001, [5]) == :ok
      assert Task.getresuid(task) == {:ok, 70_000, 70_000, 70_000}
      assert Task.getresgid(task) == {:ok, 70_001, 70_001, 70_001}
      assert Task.getgroups(task) == {:ok, [5]}
      assert Task.setugid(task, 1, 1, []) == :ok
      assert Task.getuid(task) == 70_000
      assert Task.setuid(task, 0) == {:error, :eperm}
    end

    test "limits", %{task: task} do
      assert {:ok, %{cur: cur, max: max}} = Task.getrlimit(task, :rlimit_nofile)
      assert cur <= max
      assert Task.setrlimit(task, :RLIMIT_CORE, %{cur: 0, max: 0}) == :ok
      assert Task.getrlimit(task, :rlimit_core) == {:ok, %{cur: 0, max: 0}}
      assert Task.getrlimit(task, :rlimit_fsize) == {:ok, %{cur: infinity(), max: infinity()}}
      assert Task.setrlimit(task, :rlimit_core, %{cur: 1, max: 0}) == {:error, :einval}
      assert Task.getrlimit(task, :rlimit_foo) == {:error, :enotsup}
      assert_raise ArgumentError, fn -> Task.setrlimit(task, :rlimit_core, %{max: 0}) end
    end

    test "priority, host name, directory", %{task: task} do
      assert Task.setpriority(task, :prio_process, 0, 5) == :ok
      assert Task.getpriority(task, :prio_process, 0) == {:ok, 5}
      {:ok, name} = :inet.gethostname()
      assert {:ok, hostname} = Task.gethostname(task)
      assert hostname =~ List.to_string(name)
      assert Task.chdir(task, "/tmp") == :ok
      assert Task.getcwd(task) == {:ok, "/tmp"}
      assert Task.chdir(task, ~c"/nonexistent") == {:error, :enoent}
      assert Task.chdir(task, String.duplicate("a", 5000)) == {:error, :enametoolong}
    end

    test "environment", %{task: task} do
      assert is_list(Task.environ(task))
      assert Task.clearenv(task) == :ok
      assert Task.environ(task) == []
      assert Task.setenv(task, "A", "1", 0) == :ok
      assert Task.setenv(task, "A", "2", 0) == :ok
      assert Task.getenv(task, "A") == "1"
      assert Task.setenv(task, "A", "2", 1) == :ok
      assert Task.environ(task) == ["A=2"]
      assert Task.unsetenv(task, "A") == :ok
      assert Task.getenv(task, "A") == false
      assert Task.setenv(task, "", "1", 1) == {:error, :einval}
      assert_raise ArgumentError, fn -> Task.setenv(task, "A", "\0", 1) end
    end

    test "an environment of 70 KB, there and back, and in the program", %{task: task} do
      assert Task.clearenv(task) == :ok
      value = String.duplicate("x", 70_000)
      assert Task.setenv(task, "BIG", value, 1) == :ok
      assert Task.getenv(task, "BIG") == value
      many = for n <- 1..3000, do: {"NAME#{n}", String.duplicate("v", 20)}
      for {name, content} <- many, do: assert(Task.setenv(task, name, content, 1) == :ok)
      assert length(Task.environ(task)) == 3001
      assert Task.execvp(task, ["/bin/sh", "-c", "echo $NAME3000 ${#BIG}"]) == :ok
      assert events(task) == [stdout: "#{String.duplicate("v", 20)} 70000\n", exit_status: 0]
    end

    @tag :linux
    test "title", %{task: task} do
      assert Task.setproctitle(task, "hello title") == :ok
      assert Proc.cmdline(Task.pidof(task)) =~ "hello title"
      assert Task.setproctitle(task, "") == :ok
    end

    test "kill and waitpid", %{task: task, mark: mark} do
      child = sleeper!(task, mark)
      assert Task.kill(task, Task.pidof(child), 0) == :ok
      assert Task.kill(task, Task.pidof(child), :SIGTERM) == :ok
      assert events(child) == [termsig: :sigterm]
      assert Task.kill(task, 999_999_999, :sigterm) == {:error, :esrch}
      assert Task.waitpid(task, -1, []) == {:error, :echild}
      assert Task.kill(task, 1, :sigfoo) == {:error, :enotsup}
    end
  end

  @moduletag :linux
  describe "isolation:" do
    test "prctl echoes its arguments", %{task: task} do
      assert Task.prctl(task, :pr_set_name, "hello", 0, 0, 0) == {:ok, 0, "hello", 0, 0, 0}
      assert File.read!("/proc/#{Task.pidof(task)}/comm") == "hello\n"
      buffer = <<0::size(16)-unit(8)>>
      assert {:ok, 0, name, 0, 0, 0} = Task.prctl(task, :PR_GET_NAME, buffer, 0, 0, 0)
      assert byte_size(name) == 16
      assert String.trim_trailing(name, <<0>>) == "hello"
      assert {:ok, 1, 0, 0, 0, 0} = Task.prctl(task, :pr_get_dumpable, 0, 0, 0, 0)
      assert Task.prctl(task, :pr_foo, 0, 0, 0, 0) == {:error, :enotsup}
      assert Task.prctl(task, -1, 0, 0, 0, 0) == {:error, :einval}
    end

    test "no_new_privs and set_pdeathsig", %{task: task} do
      assert Task.no_new_privs(task) == :ok
      assert Proc.status(Task.pidof(task))["nonewprivs"] == "1"
      assert Task.set_pdeathsig(task, 9) == :ok
      assert Task.set_pdeathsig(task, :sigterm) == :ok
    end

    @tag :root
    test "unshare, sethostname, mount, umount, chroot", %{task: task} do
      assert Task.unshare(task, [:clone_newuts, :clone_newns]) == :ok
      assert Task.sethostname(task, "testhost") == :ok
      assert Task.gethostname(task) == {:ok, "testhost"}
      assert Task.mount(task, "none", "/", "", [:ms_rec, :ms_private], "") == :ok
      assert Task.mount(task, "tmpfs", "/mnt", "tmpfs", [:ms_nosuid, :noexec], "size=1M") == :ok
      assert Task.mkdir(task, "/mnt/a", 0o755) == :ok
      assert Task.readdir(task, "/mnt") |> sorted() == [".", "..", "a"]
      refute File.exists?("/mnt/a")
      assert Task.chroot(task, "/mnt/a") == :ok
      assert Task.chdir(task, "/") == :ok
      assert Task.readdir(task, "/") |> sorted() == [".", ".."]
      assert Task.umount(task, "/nonexistent") == {:error, :enoent}
      assert_raise ArgumentError, fn -> Task.unshare(task, :clone_newuts) end
    end

    test "seccomp without arguments that make sense", %{task: task} do
      assert Task.seccomp(task, :seccomp_set_mode_filter, 0, []) == {:error, :efault}
      assert Task.seccomp(task, :seccomp_foo, 0, []) == {:error, :enotsup}
    end
  end

  defp sorted({:ok, names}), do: Enum.sort(names)

  describe "files:" do
    @describetag :dir

    test "open, write, lseek, read, close", %{task: task, dir: dir} do
      path = Path.join(dir, "file")
      assert {:ok, fd} = Task.open(task, path, [:o_rdwr, :O_CREAT, :o_excl], 0o600)
      assert File.stat!(path).mode |> Bitwise.band(0o777) == 0o600
      assert Task.write(task, fd, ["hello ", ~c"world"]) == {:ok, 11}
      assert Task.lseek(task, fd, 6, 0) == :ok
      assert Task.read(task, fd, 100) == {:ok, "world"}
      assert Task.read(task, fd, 100) == {:ok, ""}
      assert Task.fcntl(task, fd, :f_getfd) == {:ok, 1}
      assert Task.fcntl(task, fd, :f_setfd, 0) == {:ok, 0}
      assert Task.close(task, fd) == :ok
      assert Task.close(task, fd) == {:error, :ebadf}
      assert Task.read(task, fd, 1) == {:error, :ebadf}
      assert Task.open(task, path, [:o_rdwr, :o_creat, :o_excl], 0o600) == {:error, :eexist}
      assert Task.open(task, path, [:o_foo]) == {:error, :enotsup}
      assert {:ok, fd} = Task.open(task, path, 0)
      assert Task.write(task, fd, "a") == {:error, :ebadf}
    end

    test "of any amount to write the first 65536 bytes", %{task: task} do
      assert {:ok, null} = Task.open(task, "/dev/null", [:o_wronly])
      assert Task.write(task, null, String.duplicate("x", 30_000_000)) == {:ok, 65_536}
    end

    test "at most 65536 bytes at a time", %{task: task} do
      assert {:ok, fd} = Task.open(task, "/dev/zero", [:o_rdonly])
      assert {:ok, zeros} = Task.read(task, fd, 1_000_000)
      assert byte_size(zeros) == 65_536
      assert {:ok, null} = Task.open(task, "/dev/null", [:o_wronly])
      assert {:ok, written} = Task.write(task, null, String.duplicate("a", 100_000))
      assert written <= 65_536
    end

    @tag :userns
    test "no call reaches what tells the first of a namespace that its parent lives", %{
      task: task
    } do
      assert {:ok, first} = Task.clone(task, [:clone_newuser, :clone_newpid])

      for one <- [task, first], fd <- 3..63 do
        assert Task.fcntl(one, fd, :f_getfd) == {:error, :ebadf}
        assert Task.close(one, fd) == {:error, :ebadf}
      end

      # The parent lives, and so it is seen.
      assert Task.set_pdeathsig(first, 9) == :ok
      # A second one has the same.
      assert {:ok, second} = Task.clone(task, [:clone_newuser, :clone_newpid])
      assert Task.set_pdeathsig(second, 9) == :ok

      # Their own children are told by getppid(2), and theirs across another namespace by a pipe of theirs.
      assert first |> fork!() |> Task.set_pdeathsig(9) == :ok
      assert {:ok, below} = Task.clone(first, [:clone_newpid])
      assert Task.set_pdeathsig(below, 9) == :ok
    end

    test "no call reaches the control descriptor", %{task: task} do
      for fd <- 3..1023, do: Task.close(task, fd)
      assert is_integer(Task.getpid(task))
    end

    test "names", %{task: task, dir: dir} do
      assert Task.chdir(task, dir) == :ok
      assert Task.mkdir(task, "d", 0o700) == :ok
      assert Task.mkfifo(task, "d/fifo", 0o600) == :ok
      assert Task.symlink(task, "fifo", "d/link") == :ok
      assert Task.link(task, "d/fifo", "d/other") == :ok
      assert Task.chmod(task, "d/fifo", 0o644) == :ok
      assert Task.chown(task, "d/fifo", beam_uid(), Task.getgid(task)) == :ok
      assert Task.readdir(task, "d") |> sorted() == [".", "..", "fifo", "link", "other"]
      assert Task.rmdir(task, "d") == {:error, :enotempty}
      for name <- ~w(fifo link other), do: assert(Task.unlink(task, "d/#{name}") == :ok)
      assert Task.rmdir(task, "d") == :ok
      assert Task.readdir(task, "d") == {:error, :enoent}
    end

    test "a directory of 5000 long names", %{task: task, dir: dir} do
      names = for n <- 1..5000, do: String.duplicate("n", 60) <> "#{n}"
      for name <- names, do: File.touch!(Path.join(dir, name))
      assert {:ok, found} = Task.readdir(task, dir)
      assert Enum.sort(found) == Enum.sort([".", ".." | names])
    end

    test "ioctl", %{task: task} do
      assert Task.stdin(task, "abc") == :ok

      assert {:ok, %{return_value: 0, arg: <<3::32-native>>}} =
               Task.ioctl(task, 0, :fionread, <<0::32>>)

      assert Task.ioctl(task, 0, :tiocgwinsz, <<0::64>>) == {:error, :enotty}
    end

    test "socket, connect, select", %{task: task} do
      assert {:ok, fd} = Task.socket(task, :af_unix, :sock_stream, 0)
      address = [<<1::16-native>>, "/nonexistent-socket", <<0>>]
      assert Task.connect(task, fd, address) == {:error, :enoent}
      assert Task.select(task, [0], [1], [], %{sec: 1, usec: 0}) == {:ok, [], [1], []}
      assert Task.stdin(task, "a") == :ok
      assert Task.select(task, [0], [], [], []) == {:ok, [0], [], []}
      assert Task.select(task, [], [], [], %{sec: 0, usec: 1}) == {:ok, [], [], []}
    end
  end

  test "an iolist of any depth", %{task: task} do
    deep = Enum.reduce(1..10_000, "p", fn _, inner -> [inner] end)
    assert Task.chdir(task, ["/tm", deep]) == :ok
    assert Task.getcwd(task) == {:ok, "/tmp"}
    bad = Enum.reduce(1..10_000, :p, fn _, inner -> [inner] end)
    assert_raise ArgumentError, fn -> Task.chdir(task, bad) end
    assert_raise ArgumentError, fn -> Task.setgroups(task, deep) end
  end

  test "real-time signals by name", %{task: task} do
    assert Task.call(task, :signal_constant, [:SIGRTMIN]) == 34
    assert Task.sigaction(task, :sigrtmin, :sig_dfl) == {:ok, :sig_info}
    pid = Task.pidof(task)
    assert Task.kill(task, pid, :sigrtmax) == :ok
    assert_receive {:signal, ^task, :unknown, _}, 5000
  end

  test "call: by name, and constants", %{task: task} do
    assert Task.call(task, :getuid, []) == beam_uid()
    assert Task.call(task, :pidof, []) == Task.pidof(task)
    assert Task.call(task, :clone_constant, [:clone_newpid]) == 0x20000000
    assert Task.call(task, :signal_constant, [:SIGTERM]) == 15
    assert Task.call(task, :file_constant, [:o_rdwr]) == 2
    assert Task.call(task, :rlimit_constant, [:rlimit_core]) == 4
    assert Task.call(task, :mount_constant, [:ms_rdonly]) == 1
    assert Task.call(task, :prctl_constant, [:pr_set_name]) == 15
    assert is_integer(Task.call(task, :syscall_constant, [:sys_read]))

    for family <- ~w(cap clone fcntl file ioctl mount prctl ptrace rlimit seccomp signal syscall) do
      assert Task.call(task, :"#{family}_constant", [:no_such_name]) == :unknown
    end

    assert Task.call(task, :errno_id, [2]) == :enoent
    assert Task.call(task, :errno_id, [99_999]) == :unknown
    # What the helper says of itself, too.
    assert [version, number] = String.split(Task.call(task, :version, []), "+")
    assert version == to_string(Application.spec(:stdio, :vsn))
    assert String.to_integer(number) > 0
    {said, 2} = System.cmd(Stdio.Launcher.helper(), [], stderr_to_stdout: true)
    assert said =~ "stdio-supervise #{version}+#{number}:"
    assert_raise UndefinedFunctionError, fn -> Task.call(task, :cap_enter, []) end
  end
end
