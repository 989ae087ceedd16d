defmodule Stdio.TaskTest do
  # A task from fork to its end: what it is, what it may become, what ends it.
  use Stdio.Test.StreamCase
  import Stdio.Test.Tasks
  alias Stdio.Task
  alias Stdio.Test.Fault

  setup do
    %{root: root!()}
  end

  defp gone?(pid), do: Proc.wait_until(fn -> not Proc.alive?(pid) end, 5000)

  describe "fork" do
    test "of a root: a process of the helper", %{root: root} do
      pid = Task.pidof(root)
      assert Proc.alive?(pid)
      assert Task.getpid(root) == pid
      assert Task.parent(root) == :noproc
      assert Task.pipeline(root) == []
      refute Task.execed(root)
      assert Task.cpid(root) == []
      assert Task.rusage(root) == nil
    end

    test "of a child", %{root: root} do
      child = fork!(root)
      pid = Task.pidof(child)
      assert Proc.stat(pid).ppid == Task.pidof(root)
      assert Task.getpid(child) == pid
      assert Task.parent(child) == root
      assert Task.pipeline(child) == [pid]
      assert [%{pid: ^pid, exec: false}] = Task.cpid(root)
      assert messages() == []
    end

    test "ten deep", %{root: root} do
      tasks = Enum.scan(1..10, root, fn _, parent -> fork!(parent) end)
      pids = Enum.map(tasks, &Task.pidof/1)
      last = List.last(tasks)

      for {task, depth} <- Enum.with_index(tasks, 1) do
        assert Task.pipeline(task) == Enum.take(pids, depth)
        assert Task.getpid(task) == Enum.at(pids, depth - 1)
      end

      assert [root | Enum.drop(tasks, -1)] == Enum.map(tasks, &Task.parent/1)
      assert Task.execve(last, ["/bin/sh", "-c", "exit 3"], []) == :ok
      assert events(last) == [exit_status: 3]
      # The others go on.
      assert Task.getpid(Enum.at(tasks, 8)) == Enum.at(pids, 8)
      assert Task.stop(root) == :ok
      assert Enum.map(tasks, &Task.pidof/1) == List.duplicate(:noproc, 10)
      assert messages() == []
    end

    test "that fails leaves no descriptor", %{root: root} do
      fds = fn -> length(File.ls!("/proc/self/fd")) end
      before = fds.()

      for _ <- 1..20 do
        assert Task.clone(root, 0x100) == {:error, :einval}
      end

      # At once, not after the deadline of a process that does not answer.
      assert Proc.wait_until(fn -> fds.() <= before end, 1000)
      assert Task.cpid(root) == []
    end

    test "over maxchild", %{root: root} do
      assert Task.setopt(root, :maxchild, 2)
      [first, _second] = [fork!(root), fork!(root)]
      assert Task.fork(root) == {:error, :eagain}
      refute Task.setopt(root, :maxchild, 1)
      assert Task.getopt(root, :maxchild) == 2
      assert Task.stop(first) == :ok
      fork!(root)
      assert Task.fork(root) == {:error, :eagain}
    end

    test "limits of the application" do
      Application.put_env(:stdio, :maxchild, 1)
      Application.put_env(:stdio, :maxforkdepth, 2)

      on_exit(fn ->
        Application.delete_env(:stdio, :maxchild)
        Application.delete_env(:stdio, :maxforkdepth)
      end)

      root = root!()
      assert Task.getopt(root, :maxchild) == 1
      child = fork!(root)
      assert Task.fork(root) == {:error, :eagain}
      assert Task.getopt(child, :maxforkdepth) == 2
      assert Task.fork(fork!(child)) == {:error, :eagain}
      assert Task.stop(root) == :ok
    end

    test "over maxforkdepth", %{root: root} do
      assert Task.getopt(root, :maxforkdepth) == 128
      refute Task.setopt(root, :maxforkdepth, 256)
      assert Task.setopt(root, :maxforkdepth, 2)
      last = root |> fork!() |> fork!()
      assert Task.fork(last) == {:error, :eagain}
      assert Task.getopt(last, :MaxForkDepth) == 2
    end

    @tag :userns
    test "in namespaces of its own", %{root: root} do
      assert {:ok, task} = Task.clone(root, [:clone_newuser, :CLONE_NEWPID])
      assert Task.getpid(task) == 1
      assert Task.pidof(task) > 1
      assert Task.pipeline(task) == [Task.pidof(task)]
      child = fork!(task)
      assert Task.pidof(child) == Task.getpid(child)
      assert Task.clone(root, [:clone_nothing]) == {:error, :enotsup}
      assert_raise ArgumentError, fn -> Task.clone(root, :clone_newpid) end
    end
  end

  describe "exec" do
    test "execve", %{root: root} do
      task = fork!(root)
      assert Task.execve(task, ["/bin/sh", "-c", "echo $0 $A; read _"], ["A=1"]) == :ok
      assert Task.execed(task)
      assert [%{exec: true, fdctl: -2}] = Task.cpid(root)
      assert Task.stdin(task, "\n") == :ok
      assert events(task) == [stdout: "/bin/sh 1\n", exit_status: 0]
      refute Task.execed(task)

      task = fork!(root)
      assert Task.execve(task, ~c"/bin/sh", ["stdio", ["-", "c"], "echo $0"], []) == :ok
      assert events(task) == [stdout: "stdio\n", exit_status: 0]
    end

    test "execvp: PATH and environment are the task's", %{root: root} do
      task = fork!(root)
      assert Task.setenv(task, "PATH", "/nonexistent", 1) == :ok
      assert Task.execvp(task, ["sh", "-c", "echo $A"]) == {:error, :enoent}
      assert Task.clearenv(task) == :ok
      assert Task.setenv(task, "A", "1", 1) == :ok
      assert Task.execvp(task, "sh", ["name", "-c", "echo $0 $A"]) == :ok
      assert events(task) == [stdout: "name 1\n", exit_status: 0]
    end

    @tag :linux
    test "fexecve", %{root: root} do
      task = fork!(root)
      assert {:ok, fd} = Task.open(task, "/bin/sh", [:o_rdonly])
      assert Task.fexecve(task, fd, ["me", "-c", "echo $0"], []) == :ok
      assert events(task) == [stdout: "me\n", exit_status: 0]
    end

    test "that fails: the task serves on", %{root: root} do
      task = fork!(root)
      assert Task.execve(task, ["/nonexistent"], []) == {:error, :enoent}
      assert Task.execve(task, ["/"], []) == {:error, :eacces}

      assert Task.execve(task, ["/bin/true", String.duplicate("a", 200_000)], []) ==
               {:error, :e2big}

      assert Task.execve(task, ["/bin/true"], ["A=" <> String.duplicate("a", 200_000)]) ==
               {:error, :e2big}

      refute Task.execed(task)
      fork!(task)
      assert Task.execve(task, ["/bin/true"], []) == {:error, :eacces}
      assert Task.exit(task, 0) == {:error, :eacces}
      assert is_integer(Task.getpid(task))
      assert messages() == []
    end

    test "of a root", %{root: root} do
      assert Task.execve(root, ["/bin/sh", "-c", "cat; exit 4"], ["PATH=/bin:/usr/bin"]) == :ok
      assert Task.stdin(root, ["a", ?\n]) == :ok
      assert Task.eof(root) == :ok
      assert events(root) == [stdout: "a\n", exit_status: 4]
    end

    test "with arguments that are none", %{root: root} do
      for {fun, args} <- [
            execve: [[], []],
            execve: ["/bin/sh", []],
            execve: [["a\0b"], []],
            execve: [["/bin/sh"], ["A=\0"]],
            execve: [["/bin/sh", :a], []],
            execvp: [[]],
            execvp: ["sh"]
          ] do
        assert_raise ArgumentError, fn -> apply(Task, fun, [root | args]) end
      end

      assert is_integer(Task.getpid(root))
    end

    test "leaves descriptors 0-2, no mask and default dispositions", %{root: root, mark: mark} do
      task = fork!(root)
      {:ok, _} = Task.open(task, "/dev/null", [:o_rdwr])
      assert Task.execve(task, [Proc.fixture("show-fds"), mark], []) == :ok
      same = ~r/^(fds|fd\.\d+|sig\w*|.*mask.*)$/
      told = fn lines -> for {key, value} <- lines, key =~ same, do: {key, value} end

      state =
        for line <- task |> events() |> output() |> String.split("\n", trim: true),
            [key, value] = String.split(line, "=", parts: 2),
            do: {key, String.replace(value, ~r/\d+\]$/, "]")}

      expected =
        for {key, value} <- born_with(mark), do: {key, String.replace(value, ~r/\d+\]$/, "]")}

      assert Enum.sort(told.(state)) == Enum.sort(told.(expected))
      assert for({"fd." <> number, _} <- state, do: number) |> Enum.sort() == ~w(0 1 2)
    end
  end

  describe "exit" do
    test "twice: it is dead", %{root: root} do
      task = fork!(root)
      assert Task.exit(task, 0) == :ok
      assert Task.getpid(task) == {:error, :esrch}
      assert Task.exit(task, 0) == {:error, :esrch}
    end

    test "with the lowest eight bits", %{root: root} do
      task = fork!(root)
      assert Task.exit(task, 259) == :ok
      assert events(task) == [exit_status: 3]
      assert Task.exit(task, 0) == {:error, :esrch}
      assert %{utime_us: _, maxrss_kib: rss} = Task.rusage(task)
      assert rss > 0
    end

    test "ends the children that are tasks, each with its event", %{root: root, mark: mark} do
      parent = fork!(root)
      child = sleeper!(parent, mark)
      pid = Task.pidof(parent)
      assert Task.kill(root, pid, :sigkill) == :ok
      assert events(parent) == [termsig: :sigkill]
      assert events(child) == [termsig: :sigkill]
      assert Proc.wait_until(fn -> Proc.gone?(mark) end, 5000)
    end

    test "options of the parent hide events", %{root: root} do
      assert Task.setopt(root, :exit_status, 0)
      hidden = sh!(root, "exit 3")
      killed = sh!(root, "kill -9 $$")
      assert events(killed) == [termsig: :sigkill]
      assert Proc.wait_until(fn -> Task.pidof(hidden) == :noproc end)
      assert Task.setopt(root, :termsig, 0)
      killed = sh!(root, "kill -9 $$")
      assert Proc.wait_until(fn -> Task.pidof(killed) == :noproc end)
      assert Task.cpid(root) == []
      assert messages() == []
    end
  end

  test "a supervisor of what is none: nothing is left" do
    helpers = fn -> length(Fault.supervisors(Fault.launcher())) end
    # The root of the set-up, and the spare one.
    assert Proc.wait_until(fn -> helpers.() == 2 end)

    for {atexit, filter} <- [{:nothing, []}, {fn _ -> :ok end, []}, {:shutdown, :fork}] do
      assert_raise ArgumentError, fn -> Stdio.supervisor(atexit, filter) end
    end

    assert Proc.wait_until(fn -> helpers.() == 2 end)
  end

  describe "stop" do
    test "of a root: SIGKILL, and no signal before", %{root: root, mark: mark} do
      file = Path.join(System.tmp_dir!(), mark)
      on_exit(fn -> File.rm(file) end)
      child = sh!(root, "trap 'touch #{file}' TERM; echo ready; while :; do sleep 0.05; done")
      assert_receive {:stdout, ^child, "ready\n"}, 5000
      assert Task.stop(root) == :ok
      refute File.exists?(file)
      assert Task.cpid(root, child) == {:error, :esrch}
      assert messages() == []
    end

    test "of a root: all is gone when it returns", %{root: root, mark: mark} do
      task = fork!(root)
      tree = [Proc.fixture("fork-tree"), mark, "2", "2", "--setsid", "--double-fork"]
      assert Task.execve(task, tree, []) == :ok
      assert_receive {:stdout, ^task, "ready\n"}, 10_000
      pid = Task.pidof(root)
      assert Task.stop(root) == :ok
      assert Proc.find(mark) == []
      refute Proc.alive?(pid)
      assert Task.stop(root) == :ok
      assert Task.stop(task) == :ok
      assert messages() == []
    end

    test "of a child: what hangs on it, and nothing else", %{root: root, mark: mark} do
      other = sleeper!(root, mark <> "-other")
      task = fork!(root)
      assert {:ok, _} = Task.setsid(task)

      assert Task.execve(
               task,
               [Proc.fixture("fork-tree"), mark <> "-own", "2", "2", "--setsid"],
               []
             ) == :ok

      assert_receive {:stdout, ^task, "ready\n"}, 10_000
      assert Task.stop(task) == :ok
      assert Proc.find(mark <> "-own") == []
      assert Task.pidof(other) in Proc.find(mark <> "-other")
      assert messages() == []
      assert Task.stop(other) == :ok
      assert messages() == []
    end

    test "of a child: also what only its session still links to it", %{root: root, mark: mark} do
      task = fork!(root)
      assert {:ok, _} = Task.setsid(task)
      script = "(sh -c 'echo ready; sleep 1000; :' #{mark}-orphan &); sleep 1000; :"
      assert Task.execve(task, ["/bin/sh", "-c", script, mark], ["PATH=/bin:/usr/bin"]) == :ok
      assert_receive {:stdout, ^task, "ready\n"}, 10_000
      assert Task.stop(task) == :ok
      assert Proc.wait_until(fn -> Proc.find(mark) == [] end)
      assert is_integer(Task.getpid(root))
    end

    test "of a flood: no event afterwards, also of tasks below", %{root: root, mark: mark} do
      middle = fork!(root)
      flood = sh!(middle, "yes; :", mark)
      assert_receive {:stdout, ^flood, _}, 10_000
      assert Task.stop(middle) == :ok
      drain()
      refute_receive _, 100
      assert Task.pidof(flood) == :noproc
      assert is_integer(Task.getpid(root))
    end

    # What it had says its end when its pipes have been read, for which a tenth of a second is allowed.
    test "of a root that has just died: no event afterwards", %{root: root, mark: mark} do
      child = sleeper!(root, mark)
      outside = Proc.mark()
      port = Fault.hold_from_outside(Task.pidof(child), ["never-read", outside])
      [_] = Fault.await_marked(outside, 1)
      Proc.kill(Task.pidof(root), 9)
      assert Proc.wait_until(fn -> Task.pidof(root) == :noproc end)
      assert Task.stop(root) == :ok
      drain()
      refute_receive {_, ^child, _}, 300
      Proc.sweep(outside)
      assert Proc.wait_until(fn -> Port.info(port) == nil end)
    end

    test "by ten processes at once", %{root: root, mark: mark} do
      task = sleeper!(root, mark)
      stops = for _ <- 1..10, do: Elixir.Task.async(fn -> Task.stop(task) end)
      assert Elixir.Task.await_many(stops, 20_000) == List.duplicate(:ok, 10)
      # The owner did not stop it.
      assert events(task) == [termsig: :sigkill]
    end

    test "of a process that is stopped itself", %{root: root, mark: mark} do
      task = sleeper!(root, mark)
      pid = Task.pidof(task)
      Proc.kill(pid, "STOP")
      assert Task.stop(task) == :ok
      assert gone?(pid)
    end
  end

  describe "a handle" do
    test "equality and Inspect", %{root: root} do
      task = fork!(root)
      grandchild = fork!(task)
      assert Task.parent(grandchild) == task
      assert %Task{ref: ref} = task
      assert is_reference(ref)
      refute root == task
      assert inspect(task) == "#Stdio.Task<#{Task.pidof(task)}>"
      pid = Task.pidof(task)
      assert Task.stop(task) == :ok
      assert inspect(task) == "#Stdio.Task<#{pid} dead>"
    end

    test "collected as garbage: the process lives on", %{root: root, mark: mark} do
      sleeper!(root, mark)
      :erlang.garbage_collect()
      assert [_ | _] = Proc.find(mark)
      assert [%{exec: true}] = Task.cpid(root)
    end
  end

  describe "cmd and sh" do
    test "output is joined, status dropped", %{root: root} do
      assert Task.sh(root, "echo a; echo b >&2; exit 3") |> String.split() |> Enum.sort() == [
               "a",
               "b"
             ]

      assert Task.cmd(root, ["echo", "a b"]) == "a b\n"
      assert Task.cmd(root, ["/nonexistent"]) == {:error, :enoent}
      assert byte_size(Task.sh(root, "head -c 300000 /dev/zero")) == 300_000
      assert Task.cpid(root) == []
      assert messages() == []
    end

    test "whatever the options of the task", %{root: root} do
      assert Task.setopt(root, :flowcontrol, 1)
      assert Task.setopt(root, :exit_status, 0)
      assert Task.setopt(root, :termsig, 0)
      assert byte_size(Task.sh(root, "head -c 1000000 /dev/zero")) == 1_000_000
      assert Task.sh(root, "echo a; kill -9 $$") == "a\n"
      assert messages() == []
    end

    test "what is refused leaves no child", %{root: root} do
      for argv <- [[], [1], "true", ["a" | "b"], ["a\0"]] do
        assert_raise ArgumentError, fn -> Task.cmd(root, argv) end
      end

      assert Task.cmd(root, ["/nonexistent"]) == {:error, :enoent}
      assert Task.filter(root, [], [:execvp]) == :ok
      assert_raise UndefinedFunctionError, fn -> Task.cmd(root, ["true"]) end
      assert Task.cpid(root) == []
      assert messages() == []
    end

    test "of a dead task", %{root: root} do
      Task.stop(root)
      assert Task.sh(root, "true") == {:error, :esrch}
    end
  end
end
