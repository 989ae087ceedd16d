defmodule Stdio.DaemonTest do
  use Stdio.Test.StreamCase

  alias Stdio.Daemon
  alias Stdio.Test.LogEvents

  @moduletag :capture_log

  doctest Stdio.Daemon

  # Ends with the test, and its tree with it.
  defp start(options) do
    trapped = Process.flag(:trap_exit, true)
    {:ok, daemon} = Daemon.start_link(options)
    monitor = Process.monitor(daemon)
    Process.unlink(daemon)
    Process.flag(:trap_exit, trapped)

    # One that has ended before it is monitored is known by its link.
    receive do
      {:EXIT, ^daemon, reason} ->
        assert_receive {:DOWN, ^monitor, :process, _, _}
        send(self(), {:DOWN, monitor, :process, daemon, reason})
    after
      0 -> :ok
    end

    on_exit(fn ->
      Process.exit(daemon, :kill)
      Proc.wait_until(fn -> not Process.alive?(daemon) end)
    end)

    {daemon, monitor}
  end

  # Sends what it gets to the test.
  defp tell do
    test = self()
    &send(test, &1)
  end

  # stdout up to `length` bytes.
  defp heard(length, stream \\ :stdout, heard \\ "")
  defp heard(length, _stream, heard) when byte_size(heard) >= length, do: heard

  defp heard(length, stream, heard) do
    assert_receive {^stream, chunk}, 10_000
    heard(length, stream, heard <> chunk)
  end

  defp down(monitor) do
    assert_receive {:DOWN, ^monitor, :process, _, reason}, 20_000
    reason
  end

  # The server promises that the tree is gone before it is.
  defp gone!(mark) do
    assert Proc.find(mark) == []
  end

  defp tree(mark, flags \\ []), do: [Proc.fixture("fork-tree"), mark, "2", "2" | flags]

  describe "options" do
    test "the child specification" do
      assert Daemon.child_spec(command: "cat") == %{
               id: Daemon,
               start: {Daemon, :start_link, [[command: "cat"]]},
               type: :worker,
               restart: :permanent,
               shutdown: 7000
             }

      spec = fn options -> Daemon.child_spec([command: "cat"] ++ options) end
      assert spec.(name: Cat).id == Cat
      assert spec.(name: Cat, id: :one).id == :one
      assert spec.(kill_timeout: 10).shutdown == 2010
      assert spec.(config: [kill_timeout: 10]).shutdown == 2010
      assert spec.(kill_timeout: 20, config: [kill_timeout: 10]).shutdown == 2020
      assert spec.(kill_timeout: 10_000_000_000_000).shutdown == 4_294_967_295
    end

    test "malformed ones are an ArgumentError; nothing is started", %{mark: mark} do
      for options <- [
            :command,
            [],
            [{"command", mark}],
            [command: mark, foo: 1],
            [command: :a],
            [command: mark <> "\0"],
            [command: mark, behaviour: Nope],
            [command: mark, config: :a],
            [command: mark, config: [foo: 1]],
            [command: mark, config: [priority: "x"]],
            [command: mark, kill_signal: :sigfoo],
            [command: mark, kill_timeout: -1],
            [command: mark, kill_timeout: :infinity],
            [command: mark, log_output: :loud],
            [command: mark, log_output: true],
            [command: mark, log_prefix: :a],
            [command: mark, log_prefix: <<255>>],
            [command: mark, log_metadata: %{}],
            [command: mark, on_output: fn -> :ok end],
            [command: mark, on_output: {IO, :puts}],
            [command: mark, exit_reason: :normal],
            [command: mark, name: "name"]
          ] do
        assert_raise ArgumentError, fn -> Daemon.start_link(options) end
      end

      assert_raise ArgumentError, ~r/unknown option :foo \(value 1\); allowed: :command/, fn ->
        Daemon.child_spec(command: "true", foo: 1)
      end

      assert_raise ArgumentError, ~r/It goes into config: \[cd: \.\.\.\]/, fn ->
        Daemon.child_spec(command: "true", cd: "/")
      end

      assert messages() == []
    end

    test "names" do
      name = {:global, make_ref()}
      {daemon, _} = start(command: "cat", name: name)
      assert Daemon.os_pid(name) == Daemon.os_pid(daemon)

      assert Daemon.start_link(command: "cat", name: name) ==
               {:error, {:already_started, daemon}}
    end
  end

  describe "start_link" do
    test "returns after exec" do
      {daemon, _} = start(command: ["/bin/sleep", "1000"])
      assert Proc.cmdline(Daemon.os_pid(daemon)) == Enum.join(["/bin/sleep", "1000", ""], <<0>>)
    end

    test "a failure is an exception, and the caller lives" do
      for trap <- [false, true] do
        Process.flag(:trap_exit, trap)

        assert {:error, %Stdio.StreamError{reason: :enoent, action: "subprocess"}} =
                 Daemon.start_link(command: ["/no/such"], name: Failing)

        assert {:error, %Stdio.StreamError{reason: :enoent}} = Daemon.start_link(command: [])

        assert {:error, %Stdio.OpError{reason: :enoent}} =
                 Daemon.start_link(command: "true", config: [cd: "/no/such"])

        assert {:error, %Stdio.StreamError{reason: :eagain, action: "supervisor"}} =
                 Daemon.start_link(
                   command: "true",
                   behaviour: [task: fn _ -> {:error, :eagain} end]
                 )

        supervisor = %Stdio{init: :noproc}
        behaviour = Stdio.with_supervisor(Stdio.Process, supervisor)

        assert {:error, %Stdio.StreamError{reason: :enotsup}} =
                 Daemon.start_link(
                   command: "true",
                   behaviour: behaviour,
                   config: [containment: :cgroup]
                 )

        assert {:error, %RuntimeError{message: "mine"}} =
                 Daemon.start_link(command: "true", behaviour: [init: fn _ -> raise "mine" end])

        assert Process.whereis(Failing) == nil
        assert messages() == []
        assert Process.info(self(), :links) == {:links, []}
      end
    end

    test "a failure under a supervisor" do
      Process.flag(:trap_exit, true)
      children = [{Daemon, command: ["/no/such"]}]

      assert {:error, {:shutdown, {:failed_to_start_child, Daemon, %Stdio.StreamError{}}}} =
               Supervisor.start_link(children, strategy: :one_for_one)
    end
  end

  describe "output" do
    test "goes to a function, or to {m, f, a}" do
      {_, monitor} = start(command: "printf a; printf b >&2; exit 3", on_output: tell())
      assert heard(1, :stderr) == "b"
      assert heard(1) == "a"
      assert down(monitor) == {:exit_status, 3}
      test = self()

      {_, monitor} = start(command: "printf a", on_output: {__MODULE__, :__tell__, [test, :tag]})

      assert_receive {:tag, {:stdout, "a"}}, 5000
      assert down(monitor) == :normal
      assert messages() == []
    end

    test "all of it, before the end", %{mark: mark} do
      command = [Proc.fixture("fill-pipe"), mark, "3000000"]
      {_, monitor} = start(command: command, on_output: tell())
      assert heard(3_000_000) == Fixtures.pattern(3_000_000)
      assert down(monitor) == :normal
    end

    test "is dropped without a consumer", %{mark: mark} do
      {_, monitor} = start(command: [Proc.fixture("fill-pipe"), mark, "5000000", "--to", "both"])
      assert down(monitor) == :normal
    end

    test "of a flood, no more than 16 chunks wait for a slow on_output", %{mark: mark} do
      test = self()

      first = fn _ ->
        send(test, :first)
        receive do: (:go -> :ok)
      end

      command = [Proc.fixture("fill-pipe"), mark, "1000000000"]
      {daemon, _} = start(command: command, on_output: first)
      assert_receive :first, 10_000
      waiting = fn -> Process.info(daemon, :message_queue_len) |> elem(1) end
      assert Proc.wait_until(fn -> waiting.() >= 12 end, 10_000)
      # Blocked by now, or soon: the program sleeps with its pipe full.
      [pid] = Proc.find(mark)
      assert Proc.wait_until(fn -> Proc.stat(pid).state == "S" end, 10_000)
      assert waiting.() <= 16
    end

    test "of a flood, memory is bounded while a slow on_output gets all of it", %{mark: mark} do
      test = self()
      before = :erlang.memory(:binary)

      look = fn {:stdout, chunk} ->
        Process.sleep(5)
        send(test, {:size, byte_size(chunk), :erlang.memory(:binary) - before})
      end

      command = [Proc.fixture("fill-pipe"), mark, "20000000"]
      {_, monitor} = start(command: command, on_output: look)
      assert down(monitor) == :normal
      sizes = for {:size, size, memory} <- messages(), do: {size, memory}
      assert sizes |> Enum.map(&elem(&1, 0)) |> Enum.sum() == 20_000_000
      # 16 chunks, and what no garbage collection has come by yet.
      assert sizes |> Enum.map(&elem(&1, 1)) |> Enum.max() < 8_000_000
    end

    test "an on_output that raises ends server and tree", %{mark: mark} do
      test = self()

      for {failure, expected?} <- [
            {fn -> raise "mine" end, &match?({%RuntimeError{message: "mine"}, [_ | _]}, &1)},
            {fn -> throw(:mine) end, &match?({{:nocatch, :mine}, [_ | _]}, &1)},
            {fn -> exit(:mine) end, &(&1 == :mine)}
          ] do
        fail = fn output ->
          send(test, output)
          failure.()
        end

        # It is told to end politely, says more, and is not heard.
        line = "trap 'echo bye; exit 0' TERM; echo first; while :; do sleep 0.05; done"
        command = ["/bin/sh", "-c", line, mark]
        {_, monitor} = start(command: command, on_output: fail)
        assert expected?.(down(monitor))
        gone!(mark)
        assert_received {:stdout, "first\n"}
        refute_received {:stdout, _}
      end
    end

    test "functions of the module work in on_output", %{mark: mark} do
      test = self()

      answer = fn
        {:stdout, "ask\n"} ->
          send(test, {Daemon.os_pid(self()), Daemon.stats(self())})
          :ok = Daemon.write(self(), "answer\n")
          :ok

        other ->
          send(test, other)
      end

      command = ["/bin/sh", "-c", "echo ask; read x; echo $x", mark]
      {_, monitor} = start(command: command, on_output: answer)
      assert heard(7) == "answer\n"
      assert_received {os_pid, %{os_pid: os_pid, stdout_bytes: 4}}
      assert down(monitor) == :normal
    end
  end

  def __tell__(output, pid, tag), do: send(pid, {tag, output})

  describe "logging" do
    # What a program that writes `bytes` has logged: [{level, text, stream}].
    defp logged(command, options \\ []) do
      events = LogEvents.watch(&Map.has_key?(&1, :stream))
      {_, monitor} = start(Keyword.merge([command: command, log_output: :info], options))
      down(monitor)
      LogEvents.stop(events)
      for {:log, level, text, %{stream: stream}} <- messages(), do: {level, text, stream}
    end

    test "line by line, a last partial one too" do
      assert logged("printf 'a\\n\\nb'") == [
               {:info, "a", :stdout},
               {:info, "", :stdout},
               {:info, "b", :stdout}
             ]
    end

    test "stdout and stderr, each by itself" do
      line = "printf a; sleep 0.1; printf x >&2; sleep 0.1; printf 'b\\n'"

      assert Enum.sort(logged(line, log_output: :error)) ==
               [{:error, "ab", :stdout}, {:error, "x", :stderr}]
    end

    test "across chunk borders, within a character too" do
      assert logged("printf 'é€\\nb\\n'", config: [max_chunk: 1]) ==
               [{:info, "é€", :stdout}, {:info, "b", :stdout}]
    end

    test "lines over 16 KiB are split, between characters", %{mark: mark} do
      for {unit, bytes, sizes} <- [
            {"x", 16_384, [16_384]},
            {"x", 16_385, [16_384, 1]},
            {"x", 40_000, [16_384, 16_384, 7232]},
            {"€", 30_000, [16_383, 13_617]},
            # Without a line feed, and longer than all chunks under way.
            {"x", 2_000_000, List.duplicate(16_384, 122) ++ [1152]}
          ] do
        text = String.duplicate(unit, div(bytes, byte_size(unit)))
        path = Path.join(System.tmp_dir!(), mark)
        File.write!(path, text)
        lines = for {:info, line, :stdout} <- logged(["/bin/cat", path]), do: line
        File.rm!(path)
        assert Enum.map(lines, &byte_size/1) == sizes
        assert Enum.all?(lines, &String.valid?/1)
        assert Enum.join(lines) == text
        flush_logs()
      end
    end

    test "continuation bytes without end are split at 16 KiB all the same" do
      line = "head -c 40000 /dev/zero | tr '\\0' '\\200'"
      lines = for {:info, line, :stdout} <- logged(line), do: line

      assert Enum.map(lines, &div(byte_size(&1), byte_size("\uFFFD"))) == [
               16_384,
               16_384,
               7232
             ]
    end

    test "bytes that are not UTF-8 are replaced" do
      assert logged("printf 'a\\377b\\303\\n\\351\\200'") == [
               {:info, "a\uFFFDb\uFFFD", :stdout},
               {:info, "\uFFFD", :stdout}
             ]
    end

    test "prefix and metadata, of on_output too" do
      require Logger
      LogEvents.watch(&(&1[:daemon] == :mine))
      on_output = fn _ -> Logger.warning("heard") end

      {daemon, monitor} =
        start(
          command: "read x; echo $x",
          log_output: :notice,
          log_prefix: "thing: ",
          log_metadata: [daemon: :mine],
          on_output: on_output
        )

      os_pid = Daemon.os_pid(daemon)
      :ok = Daemon.write(daemon, "a\n")
      assert down(monitor) == :normal
      assert_received {:log, :notice, "thing: a", %{os_pid: ^os_pid, stream: :stdout}}
      assert_received {:log, :warning, "heard", %{os_pid: ^os_pid}}
    end

    test "what the program says while it is stopped, and last partial lines" do
      LogEvents.watch(&Map.has_key?(&1, :stream))
      # The shell's child holds no pipe, so the end is the shell's.
      line = "trap 'printf bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
      {daemon, monitor} = start(command: line, log_output: :info, kill_timeout: 20_000)
      assert_receive {:log, :info, "up", _}, 10_000
      GenServer.stop(daemon)
      assert down(monitor) == :normal
      assert_received {:log, :info, "bye", _}
    end

    defp flush_logs do
      receive do
        {:log, _, _, _} -> flush_logs()
      after
        0 -> :ok
      end
    end
  end

  describe "write" do
    test "feeds the program" do
      {daemon, _} = start(command: "cat", on_output: tell())
      assert Daemon.write(daemon, ["a", [?b], "c"]) == :ok
      assert heard(3) == "abc"
      assert Daemon.write(daemon, "") == :ok
      assert Daemon.stats(daemon).stdin_bytes == 3
      assert_raise ArgumentError, fn -> Daemon.write(daemon, :a) end
    end

    test "blocks the caller, not the server", %{mark: mark} do
      {daemon, monitor} = start(command: [Proc.fixture("never-read"), mark])
      writer = Task.async(fn -> Daemon.write(daemon, :binary.copy("x", 1_000_000)) end)
      assert Task.yield(writer, 300) == nil
      assert Daemon.os_pid(daemon) in Proc.find(mark)
      assert %{stdin_bytes: 0} = Daemon.stats(daemon)
      assert GenServer.stop(daemon) == :ok
      assert Task.await(writer, 10_000) == {:error, :epipe}
      assert down(monitor) == :normal
    end

    test "1 MB from each of several callers, never interleaved" do
      {daemon, _} =
        start(command: "head -c 4000000 | tr -s a-d; exec sleep 1000", on_output: tell())

      writers =
        for letter <- ["a", "b", "c", "d"] do
          Task.async(fn -> Daemon.write(daemon, :binary.copy(letter, 1_000_000)) end)
        end

      assert Enum.uniq(Task.await_many(writers, 20_000)) == [:ok]
      assert heard(4) |> String.graphemes() |> Enum.sort() == ["a", "b", "c", "d"]
      assert Daemon.stats(daemon).stdin_bytes == 4_000_000
    end

    test "a writer that is killed leaves nothing behind", %{mark: mark} do
      {daemon, _} = start(command: [Proc.fixture("never-read"), mark])
      {writer, gone} = spawn_monitor(fn -> Daemon.write(daemon, :binary.copy("x", 1_000_000)) end)
      assert Proc.wait_until(fn -> Process.info(writer, :status) == {:status, :waiting} end)
      Process.exit(writer, :kill)
      assert down(gone) == :killed
      assert %{stdin_bytes: 0} = Daemon.stats(daemon)
    end

    test "to a program that has closed its stdin, or has none" do
      {daemon, _} = start(command: "exec <&-; echo ready; exec sleep 1000", on_output: tell())
      heard(6)
      assert Daemon.write(daemon, "a") == {:error, :epipe}
      {daemon, _} = start(command: "exec sleep 1000", config: [stdin: :null])
      assert Daemon.write(daemon, "a") == {:error, :epipe}
    end

    test "to a server that is gone" do
      {daemon, monitor} = start(command: "true")
      down(monitor)
      assert Daemon.write(daemon, "a") == {:error, :epipe}
      assert {:noproc, _} = catch_exit(Daemon.write(NoSuchDaemon, "a"))
      assert {:noproc, _} = catch_exit(Daemon.os_pid(daemon))
    end
  end

  describe "close_stdin" do
    test "ends the program's input" do
      {daemon, monitor} = start(command: "cat; echo end", on_output: tell())
      assert Daemon.write(daemon, "a") == :ok
      assert heard(1) == "a"
      assert Daemon.close_stdin(daemon) == :ok
      assert heard(4) == "end\n"
      assert down(monitor) == :normal
    end

    test "nothing is written after it" do
      line = "cat; echo end; exec sleep 1000"
      {daemon, _} = start(command: line, on_output: tell())
      assert Daemon.close_stdin(daemon) == :ok
      assert heard(4) == "end\n"
      assert Daemon.close_stdin(daemon) == :ok
      assert Daemon.write(daemon, "a") == {:error, :epipe}
      assert Daemon.stats(daemon).stdin_bytes == 0
    end

    test "after all that was written, by a caller who waits too" do
      # It reads when it is told to.
      line = "trap 'exec wc -c' USR1; echo ready; while :; do sleep 0.05; done"
      {daemon, monitor} = start(command: line, on_output: tell())
      assert heard(6) == "ready\n"
      writer = Task.async(fn -> Daemon.write(daemon, :binary.copy("x", 1_000_000)) end)
      assert Task.yield(writer, 300) == nil
      assert Daemon.close_stdin(daemon) == :ok
      assert Daemon.signal(daemon, :sigusr1) == :ok
      assert Task.await(writer, 20_000) == :ok
      assert heard(8) == "1000000\n"
      assert down(monitor) == :normal
      assert messages() == []
    end

    test "in on_output, with self()" do
      test = self()

      on_output = fn output ->
        send(test, output)
        if output == {:stdout, "ready\n"}, do: send(test, Daemon.close_stdin(self()))
      end

      {_, monitor} = start(command: "echo ready; cat; echo end", on_output: on_output)
      assert heard(10) == "ready\nend\n"
      assert_received :ok
      assert down(monitor) == :normal
    end

    test "of a program that has none, or is gone" do
      {daemon, _} = start(command: "exec sleep 1000", config: [stdin: :null])
      assert Daemon.close_stdin(daemon) == :ok
      reason = fn _ -> {:said, Daemon.close_stdin(self())} end
      {daemon, monitor} = start(command: "true", exit_reason: reason)
      assert down(monitor) == {:said, {:error, :epipe}}
      assert Daemon.close_stdin(daemon) == {:error, :epipe}
      assert {:noproc, _} = catch_exit(Daemon.close_stdin(NoSuchDaemon))
    end
  end

  describe "signal" do
    test "reaches the program alone", %{mark: mark} do
      # Its child leads no group of its own, and does not get it.
      line =
        "trap 'echo got' USR1; #{Proc.fixture("never-read")} #{mark} & " <>
          "while :; do wait; done"

      {daemon, _} = start(command: line, on_output: tell())
      assert heard(6) == "ready\n"
      assert Daemon.signal(daemon, :sigusr1) == :ok
      assert heard(4) == "got\n"
      assert Daemon.signal(daemon, 10) == :ok
      assert heard(4) == "got\n"
      # The shell, which has the mark in its line, and its child.
      refute Proc.wait_until(fn -> length(Proc.find(mark)) < 2 end, 300)
      assert_raise ArgumentError, fn -> Daemon.signal(daemon, :sigfoo) end
      assert_raise ArgumentError, fn -> Daemon.signal(daemon, 0) end
    end

    test "ends it" do
      {daemon, monitor} = start(command: "exec sleep 1000")
      assert Daemon.signal(daemon, :SIGINT) == :ok
      assert down(monitor) == {:termsig, :sigint}
    end

    test "after its end" do
      reason = fn _ -> {:said, Daemon.signal(self(), :sigterm)} end
      {_, monitor} = start(command: "true", exit_reason: reason)
      assert down(monitor) == {:said, {:error, :esrch}}
    end
  end

  describe "stats" do
    test "while it runs" do
      before = DateTime.utc_now()
      {daemon, _} = start(command: ["/bin/sh", "-c", "cat; cat"], on_output: tell())
      Daemon.write(daemon, "abc")
      heard(3)
      stats = Daemon.stats(daemon)

      assert %{
               command: ["/bin/sh", "-c", "cat; cat"],
               stdin_bytes: 3,
               stdout_bytes: 3,
               stderr_bytes: 0,
               containment: :best_effort
             } = stats

      assert stats.os_pid == Daemon.os_pid(daemon)
      assert DateTime.compare(stats.started_at, before) in [:gt, :eq]
      assert stats.started_at.time_zone == "Etc/UTC"
      Process.sleep(20)
      assert Daemon.stats(daemon).uptime_ms >= stats.uptime_ms + 20

      assert Map.keys(stats) |> Enum.sort() ==
               ~w(command containment os_pid started_at stderr_bytes stdin_bytes stdout_bytes uptime_ms)a
    end

    test "of stderr; and rusage after exit" do
      reason = fn {:exit_status, 0} -> {:said, Daemon.stats(self())} end
      {_, monitor} = start(command: "echo abc >&2", exit_reason: reason)
      assert {:said, %{stderr_bytes: 4, stdout_bytes: 0, rusage: rusage}} = down(monitor)
      assert %{utime_us: _, maxrss_kib: kib} = rusage
      assert kib > 100
    end

    test "containment" do
      {daemon, _} = start(command: "exec sleep 1000", config: [containment: :pid_namespace])
      assert Daemon.stats(daemon).containment == :pid_namespace
    end
  end

  test "inspected, it is its command and task, without its environment" do
    script = "exec sleep 1000; : " <> String.duplicate("x", 500)
    {daemon, _} = start(command: script, config: [env: [{"SECRET", "never shown"}]])
    text = inspect(:sys.get_state(daemon))
    assert text =~ ~r/^#Stdio.Daemon<"exec sleep 1000; : x+" <> \.\.\., #Stdio.Task<\d+>>$/
    assert byte_size(text) < 200
  end

  describe "the end" do
    test "of the program is that of the server" do
      for {line, reason} <- [
            {"exit 0", :normal},
            {"exit 3", {:exit_status, 3}},
            {"kill -9 $$", {:termsig, :sigkill}},
            {"kill $$", {:termsig, :sigterm}}
          ] do
        {_, monitor} = start(command: line)
        assert down(monitor) == reason
      end
    end

    test "exit_reason" do
      {_, monitor} = start(command: "exit 3", exit_reason: &{:mine, &1})
      assert down(monitor) == {:mine, {:exit_status, 3}}

      {_, monitor} =
        start(command: "kill $$", exit_reason: fn {:termsig, s} -> {:shutdown, s} end)

      assert down(monitor) == {:shutdown, :sigterm}
      {_, monitor} = start(command: "true", exit_reason: fn _ -> raise "mine" end)
      assert {%RuntimeError{message: "mine"}, _} = down(monitor)
    end

    test "leaves nothing of the tree", %{mark: mark} do
      for flags <- [[], ["--setsid", "--double-fork", "--ignore-term", "--detach"]] do
        {_, monitor} = start(command: tree(mark, flags ++ ["--leader-exits", "3"]))
        assert down(monitor) == {:exit_status, 3}
        gone!(mark)
      end
    end

    test "by a deadline" do
      {_, monitor} = start(command: "exec sleep 1000", config: [timeout: 200])
      assert down(monitor) == {:termsig, :sigterm}
    end

    test "by a death of the supervisor", %{mark: mark} do
      {daemon, monitor} = start(command: tree(mark), on_output: tell())
      heard(6)
      Proc.kill(Proc.stat(Daemon.os_pid(daemon)).ppid)
      assert down(monitor) == {:termsig, :sigkill}
      assert Proc.wait_until(fn -> Proc.gone?(mark) end, 5000)
    end
  end

  describe "a stop" do
    test "asks politely, and gives the requested reason", %{mark: mark} do
      line = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
      command = ["/bin/sh", "-c", line, mark]

      {daemon, monitor} = start(command: command, kill_timeout: 30_000, on_output: tell())
      heard(3)
      {elapsed, :ok} = timed(fn -> GenServer.stop(daemon, {:shutdown, :mine}) end)
      assert elapsed < 25_000
      assert down(monitor) == {:shutdown, :mine}
      gone!(mark)
      assert heard(4) == "bye\n"
    end

    test "ends what does not go, after kill_timeout", %{mark: mark} do
      command = [Proc.fixture("ignore-term"), mark, "--report"]
      {daemon, monitor} = start(command: command, kill_timeout: 300, on_output: tell())
      heard(6)
      {elapsed, :ok} = timed(fn -> GenServer.stop(daemon) end)
      assert elapsed >= 300
      assert down(monitor) == :normal
      gone!(mark)
      assert heard(5) == "term\n"
    end

    test "with another signal; at once with SIGKILL", %{mark: mark} do
      line =
        "trap 'echo int; exit 0' INT; trap 'echo term' TERM; echo up; while :; do sleep 0.05; done"

      command = ["/bin/sh", "-c", line, mark]

      for options <- [
            [kill_signal: :sigint],
            [config: [kill_signal: :sigint]],
            [kill_signal: :SIGINT, config: [kill_signal: :sigterm]]
          ] do
        {daemon, _} = start([command: command, on_output: tell()] ++ options)
        heard(3)
        GenServer.stop(daemon)
        gone!(mark)
        assert heard(4) == "int\n"
      end

      {daemon, _} = start(command: command, on_output: tell(), kill_signal: :sigkill)
      heard(3)
      GenServer.stop(daemon)
      gone!(mark)
      assert messages() |> Enum.filter(&match?({:stdout, _}, &1)) == []
    end

    test "of the whole tree, whatever became of it", %{mark: mark} do
      for flags <- [[], ["--setsid", "--double-fork", "--ignore-term", "--detach"], ["--stop"]] do
        {daemon, _} = start(command: tree(mark, flags), kill_timeout: 200, on_output: tell())
        heard(6)
        GenServer.stop(daemon)
        gone!(mark)
      end
    end

    test "in the middle of a flood, which nobody hears", %{mark: mark} do
      command = [Proc.fixture("fill-pipe"), mark, "100000000000", "--to", "both"]
      {daemon, monitor} = start(command: command)
      assert Proc.wait_until(fn -> Daemon.stats(daemon).stdout_bytes > 1_000_000 end, 10_000)
      GenServer.stop(daemon)
      assert down(monitor) == :normal
      gone!(mark)
    end

    test "an on_output that raises meanwhile does not hinder it", %{mark: mark} do
      test = self()

      on_output = fn
        {:stdout, "up\n"} ->
          send(test, :up)

        _ ->
          send(test, :again)
          raise("mine")
      end

      line =
        "trap 'echo 1; sleep 0.1; echo 2; exit 0' TERM; echo up; while :; do sleep 0.05; done"

      {daemon, monitor} = start(command: ["/bin/sh", "-c", line, mark], on_output: on_output)
      assert_receive :up, 10_000
      assert GenServer.stop(daemon, :shutdown) == :ok
      assert down(monitor) == :shutdown
      gone!(mark)
      assert_received :again
      refute_received :again
    end

    test "calls are answered meanwhile", %{mark: mark} do
      command = [Proc.fixture("ignore-term"), mark, "--report"]
      {daemon, monitor} = start(command: command, kill_timeout: 60_000, on_output: tell())
      heard(6)
      os_pid = Daemon.os_pid(daemon)
      stopper = Task.async(fn -> GenServer.stop(daemon) end)
      heard(5)
      assert Daemon.os_pid(daemon) == os_pid
      assert Daemon.signal(daemon, :sigkill) == :ok
      Task.await(stopper, 20_000)
      assert down(monitor) == :normal
    end

    test "an onexit that raises ends the server, not before the tree", %{mark: mark} do
      behaviour = [onexit: fn _ -> fn _ -> raise "mine" end end]
      command = tree(mark, ["--leader-exits", "0"])
      {_, monitor} = start(command: command, behaviour: behaviour)
      {elapsed, reason} = timed(fn -> down(monitor) end)
      assert {%RuntimeError{message: "mine"}, _} = reason
      gone!(mark)
      assert elapsed < 15_000
    end

    test "by a process that on_output has linked to it", %{mark: mark} do
      test = self()

      on_output = fn _ ->
        send(test, spawn_link(fn -> receive do: (reason -> exit(reason)) end))
      end

      {_, monitor} = start(command: tree(mark), on_output: on_output)
      assert_receive friend when is_pid(friend), 10_000
      send(friend, :mine)
      assert down(monitor) == :mine
      gone!(mark)
    end
  end

  describe "a server that is killed" do
    test "takes the tree with it", %{mark: mark} do
      for flags <- [[], ["--setsid", "--double-fork", "--ignore-term", "--detach"]] do
        {daemon, monitor} = start(command: tree(mark, flags), on_output: tell())
        heard(6)
        Process.exit(daemon, :kill)
        assert down(monitor) == :killed
        assert Proc.wait_until(fn -> Proc.gone?(mark) end, 5000)
      end
    end

    test "while it is stuck in on_output", %{mark: mark} do
      test = self()

      stuck = fn _ ->
        send(test, :stuck)
        Process.sleep(:infinity)
      end

      {daemon, monitor} = start(command: tree(mark), on_output: stuck)
      assert_receive :stuck, 10_000
      Process.exit(daemon, :kill)
      assert down(monitor) == :killed
      assert Proc.wait_until(fn -> Proc.gone?(mark) end, 5000)
    end
  end

  describe "under a supervisor" do
    defp supervise(options) do
      Process.flag(:trap_exit, true)
      {:ok, supervisor} = Supervisor.start_link([{Daemon, options}], strategy: :one_for_one)
      on_exit(fn -> Process.exit(supervisor, :kill) end)
      supervisor
    end

    # The program of the server that has come after another one.
    defp next(name, old) do
      Proc.wait_until(
        fn ->
          server = Process.whereis(name)
          os_pid = server && Daemon.os_pid(server)
          os_pid != old && os_pid
        end,
        10_000
      )
    catch
      :exit, _ -> next(name, old)
    end

    test "it is restarted, whatever has ended", %{mark: mark} do
      supervisor = supervise(command: tree(mark), name: Restarted)
      first = Daemon.os_pid(Restarted)
      Proc.kill(first)
      second = next(Restarted, first)
      assert is_integer(second)
      Process.exit(Process.whereis(Restarted), :kill)
      third = next(Restarted, second)
      assert is_integer(third)
      # Of the three trees there is one.
      assert Proc.wait_until(fn -> length(Proc.find(mark)) == 7 end, 5000)
      assert third in Proc.find(mark)
      Supervisor.stop(supervisor)
      gone!(mark)
    end

    test "restarts end when it does not keep running" do
      supervisor = supervise(command: "exit 1", name: Hopeless)
      assert_receive {:EXIT, ^supervisor, :shutdown}, 20_000
      assert Process.whereis(Hopeless) == nil
    end

    test "shutdown leaves it its kill_timeout", %{mark: mark} do
      command = [Proc.fixture("ignore-term"), mark, "--report"]
      supervisor = supervise(command: command, on_output: tell(), kill_timeout: 300)
      [{_, daemon, _, _}] = Supervisor.which_children(supervisor)
      monitor = Process.monitor(daemon)
      heard(6)
      Supervisor.stop(supervisor)
      assert down(monitor) == :shutdown
      gone!(mark)
      assert heard(5) == "term\n"
    end

    test "shutdown ends a server that is stuck, and its tree", %{mark: mark} do
      test = self()

      stuck = fn _ ->
        send(test, :stuck)
        Process.sleep(:infinity)
      end

      supervisor = supervise(command: tree(mark), on_output: stuck, kill_timeout: 0)
      assert_receive :stuck, 10_000
      Supervisor.stop(supervisor)
      assert Proc.wait_until(fn -> Proc.gone?(mark) end, 5000)
    end
  end

  describe "behaviours" do
    # Writes, reads, is signalled, leaves something behind in a session of its own.
    defp drill(mark, behaviour, config) do
      line =
        "trap 'echo bye; exit 0' TERM; setsid sleep 1000 & read x; echo $x; while :; do " <>
          "sleep 0.05; done"

      {daemon, monitor} =
        start(
          command: ["/bin/sh", "-c", line, mark],
          behaviour: behaviour,
          config: config,
          kill_timeout: 30_000,
          on_output: tell()
        )

      assert Daemon.write(daemon, "hello\n") == :ok
      assert heard(6) == "hello\n"
      assert Daemon.signal(daemon, :sigcont) == :ok
      # In Rootless, another namespace's.
      assert Daemon.os_pid(daemon) in Proc.find(mark) or behaviour == Stdio.Rootless
      containment = Daemon.stats(daemon).containment
      GenServer.stop(daemon)
      assert down(monitor) == :normal
      gone!(mark)
      assert heard(4) == "bye\n"
      containment
    end

    test "modules, phases", %{mark: mark} do
      for behaviour <- [
            Stdio.Process,
            Stdio.Test.Plain,
            Stdio.Test.Deep,
            [ops: fn config -> Stdio.Process.ops(config) end],
            {Stdio.Process, onexit: fn _ -> fn _ -> false end end}
          ] do
        assert drill(mark, behaviour, []) == :best_effort
      end

      {_, monitor} =
        start(command: "pwd", behaviour: Stdio.Test.Deep, config: [depth: 3], on_output: tell())

      assert heard(5) == "/tmp\n"
      assert down(monitor) == :normal
    end

    test "a PID namespace", %{mark: mark} do
      assert drill(mark, Stdio.Process, containment: :pid_namespace) == :pid_namespace
    end

    @tag :dir
    @tag :userns
    test "Rootless", %{mark: mark, dir: dir} do
      make_root(dir)
      assert drill(mark, Stdio.Rootless, path: dir) == :pid_namespace
    end

    @tag :dir
    @tag :root
    test "Container", %{mark: mark, dir: dir} do
      make_root(dir)
      assert drill(mark, Stdio.Container, path: dir) == :pid_namespace
    end

    defp make_root(dir) do
      for name <- ~w(bin sbin usr lib lib64 opt tmp home proc dev),
          do: File.mkdir_p!(Path.join(dir, name))

      File.chmod!(dir, 0o755)
    end

    test "a supervisor that is shared lives on", %{mark: mark} do
      {:ok, supervisor} = Stdio.supervisor(:noshutdown)
      phases = Stdio.with_supervisor(Stdio.Process, supervisor)

      {one, _} = start(command: tree(mark), behaviour: phases, on_output: tell())
      {two, _} = start(command: tree(mark), behaviour: phases, on_output: tell())
      heard(12)
      GenServer.stop(one)
      assert Process.alive?(two)
      assert Daemon.os_pid(two) in Proc.find(mark)
      GenServer.stop(two)
      assert Stdio.Process.alive?(supervisor.init)
      Stdio.Task.stop(supervisor.init)
      gone!(mark)
    end
  end
end
