defmodule Stdio.BehaviourStreamTest do
  # Streams of programs that behaviours set up: every form of a behaviour, and starts that fail.
  use Stdio.Test.StreamCase
  import Stdio.Test.Tasks, only: [drain: 0]

  alias Stdio.{OpError, StreamError, Task}
  alias Stdio.Test.{Deep, Plain}

  defp run(command, behaviour, config \\ []),
    do: Enum.to_list(Stdio.stream!(command, behaviour, config))

  # A behaviour that tells of its failed starts.
  defp failing(phases) do
    me = self()

    onerror = fn _config ->
      fn task ->
        send(me, {:onerror, task})
        Task.stop(task)
      end
    end

    [onerror: onerror] ++ phases
  end

  defp onerrors, do: for({:onerror, %Task{} = task} <- drain(), do: task)

  describe "the forms of a behaviour:" do
    test "a keyword list of phases" do
      assert run("pwd", ops: fn _ -> [{:chdir, ["/tmp"]}] end) ==
               [stdout: "/tmp\n", exit_status: 0]

      assert messages() == []
    end

    test "a module and phases" do
      chdir = [ops: fn _ -> [{:chdir, ["/tmp"]}] end]
      assert run("pwd", {Stdio.Process, chdir}) == [stdout: "/tmp\n", exit_status: 0]
      alias Stdio.Process, as: Aliased
      assert run("pwd", {Aliased, chdir}) == [stdout: "/tmp\n", exit_status: 0]
      assert run("pwd", {Plain, chdir}) == [stdout: "/tmp\n", exit_status: 0]
    end

    test "a module that uses Stdio, as Stdio.Process" do
      commands = [
        "echo hello; echo world >&2",
        "exit 3",
        "kill -9 $$",
        ["/usr/bin/env"],
        {"/bin/sh", ["stdio", "-c", "echo $0"]},
        {:search, ["echo", "a"]},
        "yes | head -1",
        "ls /proc/self/fd",
        "id -u; pwd; ulimit -c; ps -o sid= -p $$ | tr -d ' ' | grep -c ^$$"
      ]

      for command <- commands do
        [own, shipped] =
          for behaviour <- [Plain, Stdio.Process] do
            elements = run(command, behaviour)
            {output(elements), output(elements, :stderr), Oracle.terminal!(elements)}
          end

        assert {command, own} == {command, shipped}
      end

      assert messages() == []
    end

    test "options of its own" do
      assert run("exit 3", Deep, depth: 2) == [exit_status: 3]

      assert_raise ArgumentError, ~r/unknown option :depth/, fn ->
        Stdio.stream!("x", Plain, depth: 2)
      end

      assert_raise ArgumentError, ~r/unknown option :width/, fn ->
        Stdio.stream!("x", Deep, width: 2)
      end

      me = self()

      told = fn config ->
        send(me, {:config, config})
        []
      end

      assert run("exit 1", [options: [:mine], ops: told], mine: 7) == [exit_status: 1]
      assert_received {:config, [mine: 7]}
    end

    test "ops under the names :prx and :seccomp" do
      ops = [
        {:prx, :chdir, ["/tmp"]},
        {:prx, :getuid, [], transform: fn uid when is_integer(uid) -> :ok end},
        [{:prx, :setenv, ["A", "b", 1]}, [{:setsid, []}]]
      ]

      assert run("pwd", ops: fn _ -> ops end) == [stdout: "/tmp\n", exit_status: 0]
    end

    test "direct calls of :prx in init" do
      init = fn _config ->
        fn supervisor ->
          {:ok, task} = :prx.fork(supervisor)
          {:ok, [%{task: task, pid: :prx.pidof(task)}]}
        end
      end

      assert run("echo a", init: init) == [stdout: "a\n", exit_status: 0]
    end
  end

  describe "ten tasks deep" do
    test "exit 3, fed" do
      input = ["x", "x", "x", "x"]
      assert Enum.to_list(Stdio.pipe!(input, "exit 3", Deep)) == [exit_status: 3]
      assert messages() == []
    end

    test "output, input and directory" do
      elements = Enum.to_list(Stdio.pipe!(["abc"], "pwd; cat; exec 1>&-; exit 2", Deep))
      assert output(elements) == "/tmp\nabc"
      assert Oracle.terminal!(elements) == {:exit_status, 2}
    end

    test "a flood nobody reads, ended by its timeout" do
      flood = List.duplicate(String.duplicate("a", 100), 1000)

      {elapsed, elements} =
        timed(fn -> Enum.to_list(Stdio.pipe!(flood, "sleep 100", Deep, timeout: 500)) end)

      assert elements == [termsig: :sigkill]
      assert elapsed < 5000
      assert messages() == []
    end

    test "a consumer that halts", %{mark: mark} do
      stream = Stdio.stream!(["/bin/sh", "-c", "yes; :", mark], Deep)
      assert [stdout: "y\n" <> _] = Enum.take(stream, 1)
      assert Proc.find(mark) == []
      assert messages() == []
    end
  end

  describe "a start that fails" do
    test "task" do
      behaviour = failing(task: fn _ -> {:error, :eagain} end)
      error = assert_raise StreamError, fn -> run("true", behaviour) end
      assert %{action: "supervisor", reason: :eagain} = error
      assert onerrors() == []
    end

    test "init" do
      for {result, reason} <- [{{:ok, []}, :eagain}, {{:error, :eperm}, :eperm}] do
        behaviour = failing(init: fn _ -> fn _ -> result end end)

        assert %{reason: ^reason, op: nil} =
                 assert_raise(OpError, fn -> run("true", behaviour) end)

        assert onerrors() == []
      end

      dead = fn supervisor ->
        {:ok, task} = Task.fork(supervisor)
        entry = Stdio.ProcessTree.task(task)
        Task.stop(task)
        {:ok, [entry]}
      end

      assert %{reason: :einval} =
               assert_raise(OpError, fn -> run("true", failing(init: fn _ -> dead end)) end)

      drain()
    end

    test "an op: onerror once" do
      for {op, reason} <- [
            {{:chdir, ["/nonexistent"]}, :enoent},
            {{:getpid, []}, :badop},
            {{:fake_syscall, []}, :badop},
            {{:chdir, [:not_a_path]}, :badop},
            {:nothing, :badop}
          ],
          ops <- [[op], [{:setsid, []}, op, {:chdir, ["/"]}]] do
        error = assert_raise OpError, fn -> run("true", failing(ops: fn _ -> ops end)) end
        assert {op, error.reason} == {op, reason}
        assert [task] = onerrors()
        assert Task.pidof(task) == :noproc
      end
    end

    test "an exec that an op has made impossible: onerror once" do
      execed = failing(ops: fn _ -> [{:execve, [["/bin/sleep", "100"], []]}] end)
      error = assert_raise StreamError, fn -> run("true", execed) end
      assert %{action: "subprocess", reason: :eacces} = error
      assert [_] = onerrors()

      filtered = failing(ops: fn _ -> [{:filter, [[:execve]]}] end)
      error = assert_raise UndefinedFunctionError, fn -> run("true", filtered) end
      assert %{module: Task, function: :execve, arity: 4} = error
      assert [_] = onerrors()
      assert messages() == []
    end

    test "the death of the process before exec: as of one that is started in one step" do
      behaviour = failing(ops: fn _ -> [{:getpid, [], transform: &[{:kill, [&1, :sigkill]}]}] end)

      error = assert_raise StreamError, fn -> run("true", behaviour, stdin: :null) end
      assert %{action: "subprocess", reason: :eagain, hint: "The process died" <> _} = error
      assert [_] = onerrors()
      assert messages() == []
    end

    test "what is on its way for exec does not count as a descriptor in use" do
      limit = {:setrlimit, [:rlimit_nofile, %{cur: 3, max: 3}]}
      behaviour = failing(ops: fn _ -> [limit] end)
      assert run(["/bin/true"], behaviour, stdin: :null, stderr: :null) == [exit_status: 127]
      assert onerrors() == []
    end

    test "an op's message names the call" do
      behaviour = failing(ops: fn _ -> [{:chdir, ["/nonexistent"]}, {:setsid, []}] end)
      error = assert_raise OpError, fn -> run("true", behaviour) end
      message = Exception.message(error)
      assert error.op == {Task, :chdir, ["/nonexistent"]}
      assert message =~ ~r/^operation returned an error: no such file or directory \(enoent\)\n\n/
      assert message =~ ~r/\nStdio\.Task\.chdir\(#Stdio\.Task<\d+.*>, "\/nonexistent"\)\n\n/
      assert message =~ "remaining ops:\n[setsid: []]\n"
      assert [_] = onerrors()
    end

    test "exec: onerror once" do
      for command <- [
            ["/nonexistent"],
            ["executable-does-not-exist"],
            {:search, ["no-such-program"]}
          ] do
        error = assert_raise StreamError, fn -> run(command, failing([])) end
        assert %{action: "subprocess", reason: :enoent} = error
        assert [task] = onerrors()
        assert Task.pidof(task) == :noproc
      end

      assert %{reason: :eacces} = assert_raise(StreamError, fn -> run(["/"], failing([])) end)
      long = ["/bin/true", String.duplicate("a", 200_000)]
      assert %{reason: :e2big} = assert_raise(StreamError, fn -> run(long, failing([])) end)
      assert [_, _] = onerrors()
      assert %{reason: :enoent} = assert_raise(StreamError, fn -> run([], Plain) end)
      assert messages() == []
    end

    test "with processes in its tree: they are gone", %{mark: mark} do
      busy = fn task, mark ->
        Task.sh(task, "sleep 1000 </dev/null >/dev/null 2>&1 #{mark} & :")
        {:error, :eio}
      end

      behaviour = failing(ops: fn _ -> [{Stdio.Test.Forward, :call, [busy, mark]}] end)
      assert %{reason: :eio} = assert_raise(OpError, fn -> run("true", behaviour) end)
      assert [_] = onerrors()
      assert Proc.find(mark) == []
    end

    test "in a process that traps exits" do
      Process.flag(:trap_exit, true)
      assert_raise OpError, fn -> run("true", ops: fn _ -> [{:getpid, []}] end) end
      assert_raise StreamError, fn -> run(["/nonexistent"], Plain) end
      assert messages() == []
    end
  end

  describe "config through the phases:" do
    test "stdin, stderr, search, max_chunk, env" do
      assert run("cat", Plain, stdin: :null) == [exit_status: 0]
      assert run("echo a; echo b >&2; echo c", Plain, stderr: :stdout) |> output() == "a\nb\nc\n"
      assert run("echo a; echo b >&2", Plain, stderr: :null) == [stdout: "a\n", exit_status: 0]
      assert run(["echo", "a"], Plain, search: true) == [stdout: "a\n", exit_status: 0]

      assert run("echo $A$HOME", Plain, env: [A: "1", HOME: nil]) == [
               stdout: "1\n",
               exit_status: 0
             ]

      chunks = run("head -c 100000 /dev/zero", Plain, max_chunk: 1000)
      assert byte_size(output(chunks)) == 100_000
      assert Enum.all?(chunks, fn {_, value} -> is_integer(value) or byte_size(value) <= 1000 end)
    end

    test "timeout, kill_signal, kill_timeout" do
      line = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"
      # The shell tells of its child's end, on stderr.
      config = [kill_signal: :sigterm, kill_timeout: 20_000, stderr: :null]
      {_, _, elements} = with_timeout(&run(line, Plain, [timeout: &1] ++ config))
      assert elements == [stdout: "ready\n", exit_status: 7]
      line = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
      config = [kill_signal: :sigterm, kill_timeout: 200]
      {_, _, elements} = with_timeout(&run(line, Plain, [timeout: &1] ++ config))
      assert elements == [stdout: "ready\n", termsig: :sigkill]
    end

    test "a slow consumer gets all" do
      stream = Stdio.stream!("head -c 3000000 /dev/zero", Plain)
      slow = Stream.each(stream, fn _ -> Process.sleep(2) end)
      elements = Enum.to_list(slow)
      assert byte_size(output(elements)) == 3_000_000
      assert Oracle.terminal!(elements) == {:exit_status, 0}
    end

    test "much input" do
      data = Fixtures.pattern(10_000_000)
      elements = Enum.to_list(Stdio.pipe!([data], "cat", Plain))
      assert output(elements) == data
      assert Oracle.terminal!(elements) == {:exit_status, 0}
    end
  end
end
