defmodule Stdio.FilterSignalTest do
  # What a task may be asked for, and what it does with signals.
  use Stdio.Test.StreamCase
  import Stdio.Test.Tasks
  alias Stdio.Task

  setup do
    root = root!()
    %{root: root, task: fork!(root)}
  end

  defp denied(fun), do: assert_raise(UndefinedFunctionError, fun)

  describe "filter" do
    test "a list denies", %{task: task} do
      assert Task.filter(task, [:getpid, :chdir]) == :ok
      error = denied(fn -> Task.getpid(task) end)
      assert %{module: Stdio.Task, function: :getpid, arity: 1} = error
      denied(fn -> Task.call(task, :chdir, ["/"]) end)
      assert is_integer(Task.getuid(task))
      denied(fn -> task |> fork!() |> Task.getpid() end)
    end

    test "allow forbids everything else, filter too", %{task: task} do
      assert Task.filter(task, {:allow, [:getuid, :fork, :no_such_call]}) == :ok
      assert is_integer(Task.getuid(task))
      denied(fn -> Task.getpid(task) end)
      denied(fn -> Task.filter(task, []) end)
      denied(fn -> Task.execve(task, ["/bin/true"], []) end)
      denied(fn -> Task.execvp(task, ["true"]) end)
      denied(fn -> Task.sigaction(task, :sigterm, :sig_dfl) end)
      child = fork!(task)
      denied(fn -> Task.getpid(child) end)
      # Never filtered.
      assert is_integer(Task.pidof(child))
      assert Task.stdin(child, "a") == :ok
      assert Task.eof(child) == :ok
      assert Task.stop(child) == :ok
    end

    test "what is answered without asking the process is refused too", %{task: task} do
      child = fork!(task)
      calls = [:exit, :setopt, :getopt, :setcpid, :getcpid, :cpid]

      made = [
        fn -> Task.setopt(task, :maxchild, 3) end,
        fn -> Task.getopt(task, :maxchild) end,
        fn -> Task.setcpid(child, :flowcontrol, 3) end,
        fn -> Task.setcpid(task, child, :flowcontrol, 3) end,
        fn -> Task.getcpid(child, :flowcontrol) end,
        fn -> Task.getcpid(task, child, :flowcontrol) end,
        fn -> Task.cpid(task) end,
        fn -> Task.cpid(task, child) end,
        fn -> Task.exit(task, 0) end
      ]

      refute Enum.any?(made, &match?(:undef, &1.()))
      assert Task.filter(task, calls, []) == :ok
      Enum.each(made, &denied/1)
      # Its children are not restricted, but that `setcpid` is made by their parent.
      grandchild = fork!(child)
      assert Task.setopt(child, :maxchild, 3)
      assert Task.setcpid(grandchild, :flowcontrol, 3)
      assert Task.getcpid(grandchild, :flowcontrol) == 3
      assert [%{flowcontrol: 3}] = Task.cpid(child)
      assert Task.exit(grandchild, 0) == :ok

      # A dead task has another answer.
      Task.stop(task)
      refute Task.setopt(task, :maxchild, 3)
      assert Task.exit(task, 0) == {:error, :esrch}
    end

    test "a fork that is refused leaves nothing", %{task: task} do
      assert Task.filter(task, [:fork, :clone]) == :ok
      before = map_size(Proc.fds())
      for _ <- 1..3, do: denied(fn -> Task.fork(task) end)
      denied(fn -> Task.clone(task, [:clone_newns]) end)
      assert Proc.wait_until(fn -> map_size(Proc.fds()) <= before end)
    end

    test "narrowed for later children only", %{root: root} do
      {:ok, supervisor} = Stdio.supervise(fork!(root), :noshutdown, {:allow, [:fork, :setcpid]})
      child = fork!(supervisor.init)
      denied(fn -> Task.setopt(supervisor.init, :maxchild, 3) end)
      denied(fn -> Task.exit(supervisor.init, 3) end)
      assert Task.setcpid(child, :flowcontrol, 2)
      denied(fn -> Task.getcpid(child, :flowcontrol) end)
      assert Task.setopt(child, :maxchild, 3)
    end

    test "only grows", %{task: task} do
      assert Task.filter(task, {:allow, [:filter, :getuid, :getgid]}) == :ok
      assert Task.filter(task, {:allow, [:filter, :getuid, :getpid]}) == :ok
      assert is_integer(Task.getuid(task))
      denied(fn -> Task.getgid(task) end)
      denied(fn -> Task.getpid(task) end)
      assert Task.filter(task, []) == :ok
      denied(fn -> Task.getpid(task) end)
      assert Task.filter(task, [:getuid]) == :ok
      denied(fn -> Task.getuid(task) end)
    end

    test "of itself and of later children apart", %{task: task} do
      before = fork!(task)
      assert Task.filter(task, [:getpid], [:getuid]) == :ok
      denied(fn -> Task.getpid(task) end)
      assert is_integer(Task.getuid(task))
      later = fork!(task)
      assert is_integer(Task.getpid(later))
      denied(fn -> Task.getuid(later) end)
      denied(fn -> later |> fork!() |> Task.getuid() end)
      assert is_integer(Task.getuid(before))
    end

    test "calls in a run of ops are refused too", %{root: root} do
      assert Task.filter(root, [], [:chdir]) == :ok
      init = Stdio.Syscall.os().subprocess([])

      error =
        assert_raise Stdio.OpError, fn ->
          Stdio.Op.task!(%Stdio{init: root}, [setsid: [], chdir: ["/"]], init, &Task.stop/1)
        end

      assert %{reason: :badop, op: {Stdio.Task, :chdir, ["/"]}} = error
      assert Exception.message(error) =~ "** (UndefinedFunctionError)"
    end

    test "with names that are none", %{task: task} do
      assert_raise ArgumentError, fn -> Task.filter(task, [:no_such_call]) end
      assert_raise ArgumentError, fn -> Task.filter(task, {:deny, [:no_such_call]}) end
      assert_raise ArgumentError, fn -> Task.filter(task, :getpid) end
      assert Task.filter(task, {:allow, [:getpid]}, {:deny, []}) == :ok
      assert is_integer(Task.getpid(task))
    end
  end

  test "the calls of other systems are known to a filter", %{task: task} do
    assert Task.filter(task, [:jail, :procctl, :cap_enter, :pledge]) == :ok
    denied(fn -> Task.call(task, :pledge, ["", ""]) end)
  end

  describe "sigaction" do
    test "of a fresh task: everything is told", %{task: task} do
      for signal <- [:sigterm, :sighup, :sigusr1, :sigint, :sigquit, :SIGWINCH] do
        assert Task.sigaction(task, signal, []) == {:ok, :sig_info}
      end

      assert Task.sigaction(task, :sigchld, "") == {:ok, :sig_dfl}
    end

    @tag :linux
    test "the owner gets the signal with its siginfo", %{root: root, task: task} do
      pid = Task.pidof(task)
      assert Task.kill(root, pid, :sigterm) == :ok
      assert_receive {:signal, ^task, :sigterm, info}, 5000
      assert byte_size(info) == 128

      <<number::32-native-signed, _errno::32, _code::32, _::32, sender::32-native, _::binary>> =
        info

      assert number == 15
      assert sender == Task.pidof(root)
      assert Task.getpid(task) == pid

      assert Task.kill(task, pid, :sigusr1) == :ok
      assert_receive {:signal, ^task, :sigusr1, _}, 5000
      assert messages() == []
    end

    test "goes to the owner, wherever the output goes", %{root: root, task: task} do
      {other, :ok} = elsewhere(fn -> :ok end)
      assert Task.stdio(task, other) == :ok
      assert Task.kill(root, Task.pidof(task), :sigusr2) == :ok
      assert_receive {:signal, ^task, :sigusr2, _}, 5000
    end

    test "default ends the task", %{root: root, task: task} do
      assert Task.sigaction(task, :sigterm, :sig_dfl) == {:ok, :sig_info}
      assert Task.sigaction(task, :SIGTERM, []) == {:ok, :sig_dfl}
      assert Task.kill(root, Task.pidof(task), :sigterm) == :ok
      assert events(task) == [termsig: :sigterm]
    end

    test "ignored by the task, and by the program", %{root: root, task: task} do
      assert Task.sigaction(task, 15, :SIG_IGN) == {:ok, :sig_info}
      assert Task.kill(root, Task.pidof(task), :sigterm) == :ok
      assert is_integer(Task.getpid(task))
      assert Task.sigaction(task, :sigterm, []) == {:ok, :sig_ign}
      child = fork!(task)
      assert Task.sigaction(child, :sigterm, []) == {:ok, :sig_ign}
      assert Task.execve(child, ["/bin/sh", "-c", "kill -TERM $$; echo alive"], []) == :ok
      assert events(child) == [stdout: "alive\n", exit_status: 0]
      refute_received {:signal, _, _, _}
    end

    test "the default again before exec", %{task: task} do
      assert {:ok, _} = Task.sigaction(task, :sigterm, :sig_ign)
      assert {:ok, :sig_ign} = Task.sigaction(task, :sigterm, :sig_info)
      assert Task.execve(task, ["/bin/sh", "-c", "kill -TERM $$; echo alive"], []) == :ok
      assert events(task) == [termsig: :sigterm]
    end

    test "forwarded to every descendant, without an event", %{root: root, task: task, mark: mark} do
      assert Task.sigaction(root, :sigusr1, :forward) == {:ok, :sig_info}
      assert Task.sigaction(root, :sigusr1, []) == {:ok, :forward}

      program =
        sh!(task, "trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.05; done", mark)

      assert_receive {:stdout, ^program, "ready\n"}, 5000
      pid = Task.pidof(root)
      assert Proc.kill(pid, "USR1") == :ok
      elements = events(program)
      # The shell's child is a descendant too; it died of it.
      assert output(elements) == "got\n"
      assert List.last(elements) == {:exit_status, 5}
      assert_receive {:signal, ^task, :sigusr1, _}, 5000
      assert Task.getpid(root) == pid
      refute_receive {:signal, _, _, _}, 50
    end

    test "what it cannot set", %{task: task} do
      for signal <- [:sigkill, :SIGSTOP, 9] do
        assert Task.sigaction(task, signal, :sig_ign) == {:error, :einval}
        assert {:ok, _} = Task.sigaction(task, signal, [])
      end

      assert Task.sigaction(task, :sigfoo, :sig_ign) == {:error, :enotsup}
      assert Task.sigaction(task, :sigterm, :sig_foo) == {:error, :enotsup}
      assert Task.sigaction(task, 99, :sig_ign) == {:error, :einval}
    end

    test "sigchld: reaps by itself, or tells and leaves it to waitpid", %{task: task} do
      assert Task.sigaction(task, :sigchld, :sig_info) == {:ok, :sig_dfl}
      assert Task.sigaction(task, :sigchld, []) == {:ok, :sig_info}
      child = fork!(task)
      pid = Task.pidof(child)
      assert Task.waitpid(task, pid, [:wnohang]) == {:ok, 0, 0, []}
      assert Task.kill(task, pid, :sigkill) == :ok
      assert_receive {:signal, ^task, :sigchld, _}, 5000
      assert {:ok, ^pid, 9, [termsig: :sigkill]} = Task.waitpid(task, pid, [])
      assert events(child) == [termsig: :sigkill]

      # The end that waitpid saw is the end that is told.
      child = fork!(task)
      pid = Task.pidof(child)
      assert Task.exit(child, 3) == :ok
      assert {:ok, ^pid, 768, [exit_status: 3]} = Task.waitpid(task, pid, [])
      assert_receive {:exit_status, ^child, 3}, 1000
      assert Task.cpid(task) == []

      for handler <- [:sig_ign, :forward] do
        assert {:ok, _} = Task.sigaction(task, :sigchld, handler)
        assert Task.sigaction(task, :sigchld, []) == {:ok, :sig_dfl}
      end
    end

    test "a child is a fresh task, but for what is ignored", %{root: root} do
      assert {:ok, _} = Stdio.supervise(root)
      assert Task.sigaction(root, :sigterm, []) == {:ok, :forward}
      assert Task.sigaction(root, :sigsegv, []) == {:ok, :sig_dfl}
      assert {:ok, _} = Task.sigaction(root, :sigusr1, :sig_ign)
      child = fork!(root)
      assert Task.sigaction(child, :sigusr1, []) == {:ok, :sig_ign}

      for signal <- [:sigterm, :sigsegv, :sigpipe] do
        assert Task.sigaction(child, signal, []) == {:ok, :sig_info}
      end
    end

    test "a supervisor ignores SIGPIPE, its programs do not", %{root: root} do
      assert {:ok, _} = Stdio.supervise(root)
      assert Task.sigaction(root, :sigpipe, []) == {:ok, :sig_ign}
      assert Proc.kill(Task.pidof(root), "PIPE") == :ok
      child = fork!(root)
      assert Task.execve(child, ["/bin/sh", "-c", "kill -PIPE $$; echo alive"], []) == :ok
      assert events(child) == [termsig: :sigpipe]
      refute_received {:signal, _, _, _}
      assert {:ok, :sig_ign} = Task.sigaction(root, :sigpipe, :sig_dfl)
      assert Task.sigaction(root, :sigpipe, []) == {:ok, :sig_dfl}
    end
  end
end
