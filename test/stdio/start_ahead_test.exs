defmodule Stdio.StartAheadTest do
  # A start whose ops and program are sent ahead of its fork (Stdio.Op.exec!/6) comes to what one does
  # that is made step by step.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault, only: [aside: 1, await: 1]
  alias Stdio.{Native, Task}
  alias Stdio.Test.Strike

  # The same under another name, by which it is not known.
  defp apart(config) do
    init = Stdio.Process.init(config)
    fn supervisor -> init.(supervisor) end
  end

  defp shared!(filter \\ []) do
    {:ok, supervisor} = Stdio.supervisor(:noshutdown, filter)
    on_exit(fn -> Task.stop(supervisor.init) end)
    supervisor
  end

  defp outcome(phases, supervisor, command, config) do
    behaviour = if supervisor, do: Stdio.with_supervisor(phases, supervisor), else: phases
    {:elements, Enum.to_list(Stdio.stream!(command, behaviour, config))}
  rescue
    # Its message names the task.
    error -> Map.delete(error, :message)
  end

  @starts [
    {"no ops", [], "echo a; echo b >&2; exit 3", []},
    {"ops", [{:setsid, []}, {:chdir, ["/tmp"]}], "pwd", []},
    {"a level of its own", [{:setsid, []}, [{:chdir, ["/tmp"]}]], "pwd", []},
    {"an op that fails", [{:setsid, []}, {:chdir, ["/nonexistent"]}, {:chdir, ["/"]}], "true",
     []},
    {"one to be ignored", [{:chdir, ["/nonexistent"], ignore: [:enoent]}], "exit 4", []},
    {"one that may fail", [{:chdir, ["/nonexistent"], errexit: false}], "exit 4", []},
    {"no such call", [{:setsid, []}, {:fake_syscall, []}], "true", []},
    {"a wrong argument", [{:setsid, []}, {:chdir, [:not_a_path]}], "true", []},
    {"one argument too many", [{:setsid, [1]}], "true", []},
    {"not an op", [{:setsid, []}, :nothing], "true", []},
    {"a result that is none", [{:setsid, []}, {:getpid, []}], "true", []},
    {"a state", [{:getcwd, []}, {Stdio.Test.Forward, :call, [:x, 1], errexit: false}], "true",
     []},
    {"a program as an op", [{:execve, [["/bin/sleep", "100"], []]}], "true", []},
    {"exec filtered", [{:filter, [[:execve]]}], "true", []},
    {"the call after it filtered", [{:filter, [[:chdir]]}, {:chdir, ["/"]}], "true", []},
    {"dead", [{:kill, [0, :sigkill]}], "true", []},
    {"no such program", [], ["/nonexistent"], []},
    {"not a program", [{:setsid, []}], ["/"], []},
    {"too long", [{:setsid, []}], ["/bin/true", String.duplicate("a", 200_000)], []},
    {"much", [{:setsid, []}], ["/bin/echo" | List.duplicate("0123456789", 20_000)], []},
    {"streams", [], "cat; echo a >&2", [stdin: :null, stderr: :null]},
    {"a timeout", [{:setsid, []}], ["/bin/sleep", "100"], [timeout: 100]},
    {"small chunks", [], "printf abcdef", [max_chunk: 2]}
  ]

  for {name, ops, command, config} <- @starts, shared? <- [true, false] do
    @tag start: Macro.escape({ops, command, config})
    test "#{name}, #{if shared?, do: "a supervisor of several", else: "one of its own"}",
         context do
      {ops, command, config} = context.start |> Code.eval_quoted() |> elem(0)
      supervisor = if unquote(shared?), do: shared!()
      # Every call is made in a process group of its own, for the one that kills it.
      ops = [{:setpgid, [0, 0], errexit: false} | ops]
      phases = [ops: fn _ -> ops end]
      ahead = outcome(phases, supervisor, command, config)
      apart = outcome([init: &apart/1] ++ phases, supervisor, command, config)
      assert ahead == apart
      assert messages() == []
      if supervisor, do: assert(Task.cpid(supervisor.init) == [])
    end
  end

  test "ops that are no list" do
    for ops <- [{:chdir, ["/tmp"]}, :nothing, [{:setsid, []} | :nothing]] do
      phases = [ops: fn _ -> ops end]
      ahead = outcome(phases, nil, "pwd", [])
      assert ahead == outcome([init: &apart/1] ++ phases, nil, "pwd", [])
      assert messages() == []
    end
  end

  test "no more than so many children" do
    supervisor = shared!()
    true = Task.setopt(supervisor.init, :maxchild, 0)

    for init <- [&Stdio.Process.init/1, &apart/1] do
      assert %{__struct__: Stdio.OpError, reason: :eagain} =
               outcome([init: init], supervisor, "true", [])
    end

    assert messages() == []
  end

  test "a supervisor that may not fork, and a dead one" do
    supervisor = shared!([:fork])

    outcomes =
      for init <- [&Stdio.Process.init/1, &apart/1],
          do: outcome([init: init], supervisor, "true", [])

    assert [%{__struct__: UndefinedFunctionError, function: :fork} = same, same] = outcomes
    Task.stop(supervisor.init)

    for init <- [&Stdio.Process.init/1, &apart/1] do
      assert %{__struct__: Stdio.OpError, reason: :esrch} =
               outcome([init: init], supervisor, "true", [])
    end

    assert messages() == []
  end

  test "a supervisor that is stopped at any moment of a start" do
    # As much as is sent ahead, so that it takes a while; and more.
    for _ <- 1..120, words <- [4200, 4500] do
      command = ["/bin/true" | List.duplicate("0123456789", words)]
      %{init: root} = supervisor = shared!()
      until = System.monotonic_time(:microsecond) + :rand.uniform(500)

      stopper =
        Elixir.Task.async(fn ->
          spin(until)
          Task.stop(root)
        end)

      case outcome([], supervisor, command, []) do
        {:elements, [{:exit_status, 0}]} -> :ok
        {:elements, [{:termsig, :sigkill}]} -> :ok
        %{__struct__: Stdio.OpError, reason: :esrch} -> :ok
        # Dead by the time that its ops were to be sent.
        %{__struct__: Stdio.OpError, reason: :einval, op: nil} when words == 4500 -> :ok
        %{__struct__: Stdio.StreamError, reason: :eagain} -> :ok
      end

      assert Elixir.Task.await(stopper) == :ok
      # Its owner, who did not stop it, may hear of its end.
      Task.__flush__(root)
    end

    Process.sleep(20)
    assert messages() == []
  end

  defp spin(until), do: if(System.monotonic_time(:microsecond) < until, do: spin(until))

  # The ends of its program's descriptors are closed while the I/O thread looks on.
  test "many starts below a dead supervisor leave no message" do
    %{init: root} = supervisor = shared!()
    Task.stop(root)

    for _ <- 1..1000,
        do: assert(%{reason: :esrch} = outcome([], supervisor, ["/bin/true"], []))

    Process.sleep(20)
    assert messages() == []
  end

  # A supervisor that does not run for the moment, and a consumer whose start is on its way to it.
  defp asked!(consume) do
    %{init: root} = supervisor = shared!()
    pid = Task.pidof(root)
    :ok = Proc.kill(pid, 19)
    assert Proc.wait_until(fn -> match?(%{state: "T"}, Proc.stat(pid)) end)
    behaviour = Stdio.with_supervisor(Stdio.Process, supervisor)
    consumer = consume.(behaviour)
    waits = {:current_function, {Task, :await_task, 1}}

    assert Proc.wait_until(fn ->
             Process.info(consumer_pid(consumer), :current_function) == waits
           end)

    {consumer, root, pid, behaviour}
  end

  defp consumer_pid(%{pid: pid}), do: pid
  defp consumer_pid(pid), do: pid

  test "a consumer that is killed before its program is born leaves nothing", %{mark: mark} do
    consume = fn behaviour ->
      spawn(fn -> Stream.run(Stdio.stream!(["/bin/sleep", "1000", mark], behaviour)) end)
    end

    {consumer, root, pid, behaviour} = asked!(consume)
    Process.exit(consumer, :kill)
    :ok = Proc.kill(pid, 18)
    assert Enum.to_list(Stdio.stream!(["/bin/true"], behaviour)) == [exit_status: 0]
    assert Proc.wait_until(fn -> Task.cpid(root) == [] end)
    assert Proc.gone?(mark)
  end

  # Which of the two sockets is seen to end first is a matter of luck.
  test "a supervisor that dies before: the start fails, and leaves no message", %{mark: mark} do
    consume = fn behaviour ->
      aside(fn ->
        stream = Stdio.stream!(["/bin/true", mark], behaviour)
        error = assert_raise Stdio.OpError, fn -> Stream.run(stream) end
        # What might come late is there by now.
        Process.sleep(20)
        error.reason
      end)
    end

    for _ <- 1..20 do
      {consumer, root, pid, _} = asked!(consume)
      :ok = Proc.kill(pid)
      assert await(consumer) == :esrch
      assert_receive {:termsig, ^root, :sigkill}
    end

    assert Proc.gone?(mark)
  end

  test "a process that dies while it is set up leaves no message, however late onerror is" do
    onerror = fn _config ->
      fn task ->
        Process.sleep(50)
        Task.stop(task)
      end
    end

    phases = [ops: fn _ -> [{:setsid, []}, {:kill, [0, :sigkill]}] end, onerror: onerror]

    for init <- [&Stdio.Process.init/1, &apart/1] do
      outcome = outcome([init: init] ++ phases, shared!(), "true", [])
      assert %{__struct__: Stdio.StreamError, reason: :eagain} = outcome
      assert messages() == []
    end
  end

  # It has run and ended by then, as the supervisor does not send its answer.
  @tag :strace
  test "a program whose birth is never told leaves no message" do
    dir = Strike.dir!()
    on_exit(fn -> File.rm_rf!(dir) end)

    # EPERM. A run may wake once more than the recorded one, or once less.
    results =
      for _ <- 1..10 do
        Strike.at(:shared, :exits, {"root:1", call_that_answers(dir)}, [error: 1], dir)
      end

    assert [] =
             Enum.reject(results, &(&1.survivors == [] and Strike.expected?(:exits, &1.outcome)))

    unanswered = Enum.filter(results, &(&1.fired and &1.call == "sendmsg"))
    assert [_ | _] = unanswered

    for result <- unanswered,
        do: assert({:error, %Stdio.OpError{reason: :esrch}} = result.outcome)
  end

  # Calls are counted from 1.
  defp call_that_answers(dir) do
    {%{"root:1" => calls}, _} = Strike.record(:shared, :exits, dir)
    fork = Enum.find_index(calls, &(&1 == "clone3"))
    fork + Enum.find_index(Enum.drop(calls, fork), &(&1 == "sendmsg")) + 1
  end

  @tag :userns
  test "below PID 1 of a namespace" do
    {:ok, supervisor} = Stdio.supervisor(:noshutdown, [], containment: :pid_namespace)
    on_exit(fn -> Task.stop(supervisor.init) end)
    program = {:search, "sh", ["sh", "-c", "exit 5"]}
    {forked, execed} = refs = {make_ref(), make_ref()}
    :ok = Native.task_start(supervisor.init.ref, [], program, {nil, 65_536, -1, nil}, refs)
    assert_receive {^forked, {:ok, task}}
    assert_receive {^execed, {:done, 0, :ok, :same}}
    assert_receive {:exit_status, ^task, 5}

    assert outcome([], supervisor, "echo $PPID", []) ==
             {:elements, [stdout: "1\n", exit_status: 0]}

    assert messages() == []
  end

  # Should it die before it answers, nobody would end a program that has no death signal.
  test "below a supervisor that is another task's child it is made step by step" do
    {:ok, root} = Task.fork()
    {:ok, task} = Task.fork(root)
    {:ok, supervisor} = Stdio.supervise(task, :noshutdown, [])
    ends = {make_ref(), 65_536, -1, nil}
    program = {:search, "true", ["true"]}
    refs = {make_ref(), make_ref()}
    assert {:error, reason} = Native.task_start(task.ref, [], program, ends, refs)
    # One number on Linux.
    assert reason in [:enotsup, :eopnotsupp]
    assert Task.cpid(task) == []
    assert outcome([], supervisor, "exit 3", []) == {:elements, [exit_status: 3]}
    Task.stop(root)
    assert messages() == []
  end

  test "the consumer has three messages to wait for" do
    supervisor = shared!()
    behaviour = Stdio.with_supervisor(Stdio.Process, supervisor)
    :erlang.trace_pattern({Native, :task_start, 5}, true, [])
    test = self()

    consumer =
      spawn_link(fn ->
        receive do:
                  (:go ->
                     [exit_status: 0] = Enum.to_list(Stdio.stream!(["/bin/true"], behaviour)))

        send(test, :over)
      end)

    :erlang.trace(consumer, true, [:receive, :call])
    send(consumer, :go)
    assert_receive :over
    delivered = :erlang.trace_delivered(consumer)
    assert_receive {:trace_delivered, ^consumer, ^delivered}
    :erlang.trace_pattern({Native, :task_start, 5}, false, [])

    traced =
      for {:trace, ^consumer, kind, what} <- messages(),
          what not in [:go, :timeout],
          do: {kind, what}

    {calls, received} = Enum.split_with(traced, &match?({:call, _}, &1))
    assert [{:call, {Native, :task_start, [_, _, _, _, {forked, execed}]}}] = calls

    # Of the two answers the second may come first.
    assert [
             {:receive, {^forked, {:ok, task}}},
             {:receive, {^execed, {:done, 0, :ok, :same}}},
             {:receive, {:exit_status, task, 0}}
           ] = Enum.sort_by(received, fn {_, message} -> elem(message, 0) != forked end)
  end
end
