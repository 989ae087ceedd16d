defmodule Stdio.ContainmentTest do
  use Stdio.Test.StreamCase

  alias Stdio.{ProcessTree, StreamError, Task}

  defp on(supervisor, command, config \\ []) do
    phases = Stdio.with_supervisor(Stdio.Process, supervisor)
    Enum.to_list(Stdio.stream!(command, phases, config))
  end

  defp supervisor!(opts, atexit \\ :noshutdown) do
    {:ok, supervisor} = Stdio.supervisor(atexit, Stdio.__filter__(), opts)
    supervisor
  end

  describe "supervisor/3" do
    test "without a wish: best effort" do
      for opts <- [[], [containment: :auto], [containment: :best_effort]] do
        supervisor = supervisor!(opts)
        assert Stdio.containment(supervisor) == :best_effort
        Task.stop(supervisor.init)
      end

      assert Stdio.containment(%Stdio{}) == :best_effort
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

    # The only one with the mark: what it forks looks like it until it execs.
    defp marked(mark) do
      one = fn -> if match?([_], found = Proc.find(mark)), do: found end
      assert found = Proc.wait_until(one)
      found
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
      assert Proc.wait_until(fn -> Proc.find(mark) != [] end)
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

  @tag :unprivileged
  test "a cgroup that cannot be had", %{mark: mark} do
    assert Stdio.supervisor(:shutdown, [], containment: :cgroup) == {:error, :enotsup}

    for behaviour <- [Stdio.Process, Stdio.Rootless, [ops: fn _ -> [] end]] do
      stream = Stdio.stream!([Proc.fixture("never-read"), mark], behaviour, containment: :cgroup)
      error = assert_raise StreamError, fn -> Enum.to_list(stream) end
      assert {error.action, error.reason} == {"supervisor", :enotsup}
      assert error.hint =~ "cgroup v2"
      assert Proc.find(mark) == []
    end
  end

  describe "containment: :cgroup" do
    @describetag :cgroup

    # The cgroups that a process is in, in the v2 hierarchy.
    defp cgroup(pid) do
      for "0::" <> path <- "/proc/#{pid}/cgroup" |> File.read!() |> String.split("\n"), do: path
    end

    test "a program and its descendants are born in one of their own", %{mark: mark} do
      # It ends when the other has said where it is.
      line =
        "trap 'exit 0' TERM; cat /proc/self/cgroup; " <>
          "setsid sh -c 'cat /proc/self/cgroup; kill $1; sleep 1000' #{mark} $$ & " <>
          "while :; do sleep 0.05; done"

      elements = list(line, containment: :cgroup)
      assert Oracle.terminal!(elements) == {:exit_status, 0}
      own = for "0::" <> path <- elements |> output() |> String.split("\n"), do: path
      assert [path, path] = own
      assert path =~ ~r"/stdio-\d+-\d+$"
      refute [path] == cgroup(Proc.os_pid())
      # The oracle sees that it is gone.
      assert Proc.find(mark) == []
    end

    test "of a shared supervisor: it stays usable after reap", %{mark: mark} do
      supervisor = supervisor!(containment: :cgroup)
      assert Stdio.containment(supervisor) == :cgroup
      leave = "setsid sh -c 'sleep 1000; :' #{mark} & echo ok"

      for _ <- 1..3 do
        assert on(supervisor, leave, containment: :cgroup) == [stdout: "ok\n", exit_status: 0]
        [pid] = marked(mark)
        assert [_] = cgroup(pid)
        assert Stdio.reap(%ProcessTree{supervisor: supervisor}) == :ok
        assert Proc.wait_until(fn -> Proc.gone?(mark) end)
      end

      Task.stop(supervisor.init)
    end

    @tag :root
    @tag :dir
    test "of a container", %{mark: mark, dir: dir} do
      for name <- ~w(bin sbin usr lib lib64 tmp home proc dev),
          do: File.mkdir!(Path.join(dir, name))

      for behaviour <- [Stdio.Container, Stdio.Rootless] do
        config = [path: dir, containment: :cgroup]
        line = "cat /proc/self/cgroup; setsid sh -c 'sleep 1000; :' #{mark} & read x"
        stream = Stdio.stream!(line, behaviour, config)

        [path] =
          Enum.reduce_while(stream, [], fn {:stdout, chunk}, _ ->
            assert Proc.wait_until(fn -> Proc.find(mark) != [] end)
            {:halt, for("0::" <> path <- String.split(chunk, "\n"), do: path)}
          end)

        assert path =~ ~r"/stdio-\d+-\d+$"
        assert Proc.find(mark) == []
      end
    end

    test "a handle of a dead supervisor keeps no descriptor of it" do
      before = map_size(Proc.fds())
      supervisor = supervisor!(containment: :cgroup)
      Task.stop(supervisor.init)
      assert Proc.wait_until(fn -> map_size(Proc.fds()) <= before end)
      assert inspect(supervisor.init) =~ "dead"
    end

    for victims <- [[:launcher, :supervisor], [:supervisor, :launcher]] do
      @tag victims: victims
      test "nothing survives when both are killed: #{inspect(victims)}", %{
        mark: mark,
        victims: victims
      } do
        # Without a namespace, what has left its session would survive this: FAULTS row 7.
        on_exit(&Stdio.Test.Fault.warm_up/0)
        launcher = Stdio.Test.Fault.warm_up()
        tree = [Proc.fixture("fork-tree"), mark, "2", "2", "--setsid", "--double-fork"]
        stream = Elixir.Task.async(fn -> list(tree, containment: :cgroup) end)
        assert Proc.wait_until(fn -> length(Proc.find(mark)) >= 7 end)
        pids = %{launcher: launcher, supervisor: supervisor_of_cgroup(launcher)}
        for pid <- Map.values(pids), do: assert(Proc.kill(pid, "STOP") == :ok)
        for victim <- victims, do: assert(Proc.kill(pids[victim], 9) == :ok)
        assert Oracle.terminal!(Elixir.Task.await(stream, 20_000)) == {:termsig, :sigkill}
        assert Proc.wait_until(fn -> Proc.gone?(mark) end)
      end
    end

    # The one that has children.
    defp supervisor_of_cgroup(launcher) do
      Enum.find(Stdio.Test.Fault.supervisors(launcher), fn pid ->
        Enum.any?(Proc.table(), fn {_, entry} -> entry.ppid == pid end)
      end)
    end
  end
end
