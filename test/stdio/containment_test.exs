defmodule Stdio.ContainmentTest do
  use Stdio.Test.StreamCase

  alias Stdio.{ProcessTree, StreamError, Task}

  defp on(supervisor, command, config \\ []) do
    phases = Stdio.with_supervisor(Stdio.Process, supervisor)
    Enum.to_list(Stdio.stream!(command, phases, config))
  end

  defp supervisor!(opts, atexit \\ :noshutdown) do
    {:ok, supervisor} = Stdio.supervisor(atexit, default_filter(), opts)
    supervisor
  end

  defp default_filter,
    do: {:allow, [:close, :exit, :fork, :getpid, :kill, :setcpid, :sigaction, :clone, :procctl]}

  describe "supervisor/3" do
    test "without a wish: best effort" do
      for opts <- [[], [containment: :auto], [containment: :best_effort]] do
        supervisor = supervisor!(opts)
        assert Stdio.containment(supervisor) == :best_effort
        Task.stop(supervisor.init)
      end

      assert Stdio.containment(%Stdio{}) == :best_effort
    end

    test "a cgroup is not to be had" do
      assert Stdio.supervisor(:shutdown, [], containment: :cgroup) == {:error, :enotsup}
    end

    test "anything else is refused" do
      for opts <- [[containment: :jail], [contain: :auto], [:containment]] do
        assert_raise ArgumentError, fn -> Stdio.supervisor(:shutdown, [], opts) end
      end
    end
  end

  describe "containment: :pid_namespace of a supervisor:" do
    @describetag :userns

    test "it is PID 1 for all who share it" do
      supervisor = supervisor!(containment: :pid_namespace)
      assert Stdio.containment(supervisor) == :pid_namespace
      assert on(supervisor, "echo $PPID") == [stdout: "1\n", exit_status: 0]
      config = [containment: :pid_namespace]
      assert {:exit_status, 7} in on(supervisor, "exit 7", config)

      pair =
        Stream.zip(
          Stdio.stream!("echo a", phases(supervisor)),
          Stdio.stream!("echo b", phases(supervisor))
        )

      assert Enum.to_list(pair) == [
               {{:stdout, "a\n"}, {:stdout, "b\n"}},
               {{:exit_status, 0}, {:exit_status, 0}}
             ]

      pid = Task.pidof(supervisor.init)
      assert Proc.stat(pid).name == "Supervise"
      Task.stop(supervisor.init)
      assert Task.pidof(supervisor.init) == :noproc
      refute Proc.alive?(pid)
      assert messages() == []
    end

    defp phases(supervisor), do: Stdio.with_supervisor(Stdio.Process, supervisor)

    test "the user is who it was" do
      supervisor = supervisor!(containment: :pid_namespace)
      config = [uid: beam_uid(), gid: beam_uid()]
      assert [{:stdout, uid}, {:exit_status, 0}] = on(supervisor, "id -u", config)
      assert String.trim(uid) == to_string(beam_uid())
      Task.stop(supervisor.init)
    end

    test "what its streams leave stays until reap or its end", %{mark: mark} do
      supervisor = supervisor!(containment: :pid_namespace)
      leave = "setsid sh -c 'sleep 1000; :' #{mark} & echo ok"
      assert on(supervisor, leave) == [stdout: "ok\n", exit_status: 0]
      assert [_] = marked(mark)
      assert Stdio.reap(%ProcessTree{supervisor: supervisor}) == :ok
      assert Proc.wait_until(fn -> Proc.gone?(mark) end)
      assert on(supervisor, leave) == [stdout: "ok\n", exit_status: 0]
      assert [_] = marked(mark)
      Task.stop(supervisor.init)
      assert Proc.find(mark) == []
    end

    # Those that there are as soon as there is one.
    defp marked(mark) do
      assert Proc.wait_until(fn -> Proc.find(mark) != [] end)
      Proc.find(mark)
    end

    test "stop of one task takes its descendants, and nothing else", %{mark: mark} do
      supervisor = supervisor!(containment: :pid_namespace)
      {:ok, other} = Task.fork(supervisor.init)
      :ok = Task.execvp(other, ["sleep", "1000"])
      {:ok, task} = Task.fork(supervisor.init)
      line = "sh -c 'sleep 1000; :' #{mark} & sh -c 'sleep 1000; :' #{mark}; :"
      :ok = Task.execvp(task, ["sh", "-c", line, mark])
      assert Proc.wait_until(fn -> length(Proc.find(mark)) == 3 end)
      assert Task.stop(task) == :ok
      assert Proc.wait_until(fn -> Proc.gone?(mark) end)
      assert Proc.alive?(Task.pidof(supervisor.init))

      assert [%{exec: true}] =
               Stdio.Native.task_children(supervisor.init.ref) |> Enum.map(&%{exec: elem(&1, 2)})

      Task.stop(supervisor.init)
    end

    test "a signal that reaches it is forwarded" do
      supervisor = supervisor!(containment: :pid_namespace)

      line = "trap 'exit 9' USR1; kill -USR1 $PPID; read x; read x"
      config = [uid: beam_uid(), gid: beam_uid()]
      assert on(supervisor, line, config) == [exit_status: 9]
      Task.stop(supervisor.init)
    end

    test "it ends with its owner, and all of it", %{mark: mark} do
      me = self()

      {owner, monitor} =
        spawn_monitor(fn ->
          supervisor = supervisor!(containment: :pid_namespace)
          send(me, {:pid, Task.pidof(supervisor.init)})

          on(supervisor, "setsid sh -c 'sleep 1000; :' #{mark}; :")
        end)

      assert_receive {:pid, pid}, 5000
      assert [_ | _] = marked(mark)
      Process.exit(owner, :kill)
      assert_receive {:DOWN, ^monitor, _, _, :killed}
      assert Proc.wait_until(fn -> Proc.gone?(mark) and not Proc.alive?(pid) end)
    end

    test "with :shutdown it ends with its stream", %{mark: mark} do
      supervisor = supervisor!([containment: :pid_namespace], :shutdown)
      assert on(supervisor, "setsid sh -c 'sleep 1000; :' #{mark} & exit 3") == [exit_status: 3]
      assert Proc.find(mark) == []
      assert Task.pidof(supervisor.init) == :noproc
    end
  end

  describe "a given supervisor" do
    test "other than what is asked for" do
      supervisor = supervisor!([])

      for containment <- [:pid_namespace, :cgroup] do
        error =
          assert_raise StreamError, fn -> on(supervisor, "true", containment: containment) end

        assert {error.action, error.reason} == {"supervisor", :enotsup}
      end

      for containment <- [:auto, :best_effort],
          do: assert(on(supervisor, "true", containment: containment) == [exit_status: 0])

      Task.stop(supervisor.init)
      assert messages() == []
    end

    @tag :userns
    test "of a namespace, when best effort is asked for" do
      supervisor = supervisor!(containment: :pid_namespace)

      error =
        assert_raise StreamError, fn -> on(supervisor, "true", containment: :best_effort) end

      assert error.reason == :enotsup
      Task.stop(supervisor.init)
    end
  end

  test "a cgroup is asked for in vain" do
    for behaviour <- [Stdio.Process, Stdio.Rootless, Stdio.Container, [ops: fn _ -> [] end]] do
      stream = Stdio.stream!("true", behaviour, containment: :cgroup)
      error = assert_raise StreamError, fn -> Enum.to_list(stream) end
      assert {error.action, error.reason} == {"supervisor", :enotsup}
    end
  end
end
