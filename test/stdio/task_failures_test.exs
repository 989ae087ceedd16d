defmodule Stdio.TaskFailuresTest do
  # Calls that come too late, ask for nonsense, or come from many sides at once.
  use Stdio.Test.StreamCase
  import Stdio.Test.Tasks
  alias Stdio.Task

  setup do
    %{root: root!()}
  end

  describe "too late" do
    test "calls on a dead task", %{root: root} do
      task = fork!(root)
      assert Task.stop(task) == :ok
      esrch = {:error, :esrch}

      for {fun, args} <- [
            getuid: [],
            getpid: [],
            getcwd: [],
            environ: [],
            chdir: ["/"],
            fork: [],
            clone: [[]],
            execve: [["/bin/true"], []],
            execvp: [["true"]],
            fexecve: [3, ["true"], []],
            exit: [0],
            filter: [[]],
            sigaction: [:sigterm, :sig_dfl],
            cpid: [],
            eof: [],
            stdio: [self()],
            controlling_process: [self()],
            cmd: [["true"]]
          ] do
        assert {fun, apply(Task, fun, [task | args])} == {fun, esrch}
      end

      assert Task.pidof(task) == :noproc
      assert Task.parent(task) == :noproc
      assert Task.pipeline(task) == []
      assert Task.execed(task) == false
      assert Task.stdin(task, "a") == {:error, :epipe}
      assert Task.stop(task) == :ok
      assert Task.setopt(task, :maxchild, 1) == false
      assert Task.getopt(task, :maxchild) == false
      assert Task.setcpid(task, :flowcontrol, 1) == false
      assert Task.getcpid(task, :flowcontrol) == false
      assert Task.credit(task, 1) == false
      assert_raise ArgumentError, fn -> Task.chdir(task, "a\0b") end
      assert messages() == []
    end

    test "calls on a program", %{root: root, mark: mark} do
      task = sleeper!(root, mark)

      for {fun, args} <- [
            getuid: [],
            chdir: ["/"],
            fork: [],
            clone: [[]],
            execve: [["/bin/true"], []],
            exit: [0],
            filter: [[]],
            sigaction: [:sigterm, :sig_dfl],
            cmd: [["true"]],
            cpid: [],
            cpid: [1],
            getopt: [:maxchild],
            setopt: [:maxchild, 3]
          ] do
        error = assert_raise ErlangError, fn -> apply(Task, fun, [task | args]) end
        assert {fun, error.original} == {fun, :eacces}
      end

      pid = Task.pidof(task)
      assert Task.pipeline(task) == [pid]
      assert Task.parent(task) == root
      assert Task.setcpid(task, :flowcontrol, 1)
      assert Task.getcpid(task, :flowcontrol) == 1
      assert Task.stdio(task, self()) == :ok
      assert Task.controlling_process(task, self()) == :ok
    end

    test "wrong arguments and unknown names, before anything is sent", %{root: root} do
      for {fun, args} <- [
            chdir: ["a\0b"],
            chdir: [""],
            chdir: [:a],
            open: ["/dev/null", :o_rdonly],
            read: [0, -1],
            kill: [self(), 15],
            setrlimit: [:rlimit_core, %{cur: 0}],
            sigaction: ["SIGTERM", :sig_dfl],
            sigaction: [:sigterm, 1],
            setgroups: [[-1]]
          ] do
        assert_raise ArgumentError, fn -> apply(Task, fun, [root | args]) end
      end

      assert_raise UndefinedFunctionError, fn -> Task.call(root, :no_such_call, []) end
      assert_raise UndefinedFunctionError, fn -> Task.call(root, :getuid, [1, 2, 3]) end
      assert messages() == []
    end
  end

  test "concurrent callers of one task are served one by one, none hangs", %{root: root} do
    task = fork!(root)

    callers =
      for number <- 1..50 do
        Elixir.Task.async(fn ->
          for turn <- 1..20 do
            name = "V#{number}"
            :ok = Task.setenv(task, name, "#{turn}", 1)
            assert Task.getenv(task, name) == "#{turn}"
          end

          messages()
        end)
      end

    assert Elixir.Task.await_many(callers, 30_000) == List.duplicate([], 50)

    # While they call, it ends.
    callers =
      for _ <- 1..50 do
        Elixir.Task.async(fn ->
          Stream.repeatedly(fn -> Task.getcwd(task) end)
          |> Enum.find(&match?({:error, _}, &1))
        end)
      end

    assert Task.stop(task) == :ok
    assert Elixir.Task.await_many(callers, 30_000) == List.duplicate({:error, :esrch}, 50)
    assert messages() == []
  end
end
