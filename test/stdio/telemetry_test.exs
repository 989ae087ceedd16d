defmodule Stdio.TelemetryTest do
  use Stdio.Test.StreamCase

  alias Stdio.Daemon
  alias Stdio.Test.{FakeTelemetry, Plain}

  @moduletag :capture_log

  setup do
    FakeTelemetry.load(self())
    on_exit(&FakeTelemetry.unload/0)
  end

  # All events so far: [{event, measurements, metadata}].
  defp events do
    receive do
      {:telemetry, [:stdio, :process, event], measurements, metadata} ->
        [{event, measurements, metadata} | events()]
    after
      0 -> []
    end
  end

  defp stream(command, behaviour, config \\ []),
    do: Enum.to_list(Stdio.stream!(command, behaviour, config))

  # Stdio.Process in one plan, and the same phase by phase.
  @engines [Stdio.Process, Plain]

  test "without the module nothing is emitted, and nothing is missing" do
    FakeTelemetry.unload()

    for engine <- @engines,
        do: assert(stream("echo a", engine) == [stdout: "a\n", exit_status: 0])

    assert_raise Stdio.StreamError, fn -> stream(["/no/such"], Stdio.Process) end
    assert messages() == []
  end

  for engine <- @engines do
    describe "#{inspect(engine)}:" do
      @describetag engine: engine

      test "start and stop", %{engine: engine} do
        wall = System.system_time()
        started = System.monotonic_time()
        command = "echo $$; echo error >&2; exit 3"

        assert Enum.sort(stream(command, engine)) |> Keyword.keys() ==
                 [:exit_status, :stderr, :stdout]

        ended = System.monotonic_time()
        assert [{:start, start, about}, {:stop, stop, at_end}] = events()

        assert start |> Map.keys() |> Enum.sort() == [:monotonic_time, :system_time]
        assert start.monotonic_time in started..ended
        assert start.system_time >= wall

        assert %{command: ^command, behaviour: ^engine, containment: :best_effort} = about
        assert about |> Map.keys() |> Enum.sort() == [:behaviour, :command, :containment, :os_pid]
        assert Map.delete(at_end, :exit) == about
        assert at_end.exit == {:exit_status, 3}

        assert Map.keys(stop) |> Enum.sort() ==
                 ~w(cpu_system cpu_user duration max_rss stderr_bytes stdin_bytes stdout_bytes)a

        assert stop.duration in 1..(ended - started)
        assert stop.stderr_bytes == 6
        assert stop.stdout_bytes == byte_size("#{about.os_pid}\n")
        assert stop.stdin_bytes == 0
        assert stop.max_rss > 100_000
      end

      test "the program's own pid", %{engine: engine} do
        [stdout: pid, exit_status: 0] = stream("echo $$", engine)
        assert [{:start, _, %{os_pid: os_pid}} | _] = events()
        assert pid == "#{os_pid}\n"
      end

      test "CPU time, in native units", %{engine: engine} do
        stream("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done", engine)
        assert [_, {:stop, stop, _}] = events()
        cpu = System.convert_time_unit(stop.cpu_user + stop.cpu_system, :native, :millisecond)
        assert cpu in 10..60_000
        # Two processors' worth at most, and what a tick of the clock is off.
        assert stop.cpu_user + stop.cpu_system <= 2 * stop.duration + 100_000_000
      end

      test "bytes of all three streams", %{engine: engine, mark: mark} do
        input = ["abc", "", ["de", ?f], :binary.copy("x", 500_000)]

        assert [_ | _] =
                 input |> Stdio.pipe!("cat; cat >&2 /proc/version", engine) |> Enum.to_list()

        version = byte_size(File.read!("/proc/version"))

        assert [
                 _,
                 {:stop, %{stdin_bytes: 500_006, stdout_bytes: 500_006, stderr_bytes: ^version},
                  _}
               ] = events()

        stream([Proc.fixture("fill-pipe"), mark, "3000000", "--to", "both"], engine)
        assert [_, {:stop, %{stdout_bytes: 3_000_000, stderr_bytes: 3_000_000}, _}] = events()
      end

      test "input that nobody takes is not counted", %{engine: engine} do
        # More than the pipe and the queue take.
        stream = Stdio.pipe!(["abc", :binary.copy("x", 1_000_000)], "exec <&-; sleep 0.1", engine)
        assert Enum.to_list(stream) == [exit_status: 0]
        assert [_, {:stop, %{stdin_bytes: bytes}, _}] = events()
        assert bytes <= 3
      end

      test "a consumer that halts", %{engine: engine, mark: mark} do
        command = [Proc.fixture("fork-tree"), mark, "1", "1"]
        assert Enum.take(Stdio.stream!(command, engine), 1) == [stdout: "ready\n"]
        assert [{:start, _, _}, {:stop, stop, %{exit: {:termsig, :sigkill}}}] = events()
        assert stop.stdout_bytes == 6
        assert stop.max_rss > 0

        line = "trap 'exit 9' TERM; echo a; while :; do sleep 0.05; done"
        stream = Stdio.stream!(line, engine, kill_signal: :sigterm, kill_timeout: 30_000)
        assert_raise RuntimeError, fn -> Enum.each(stream, fn _ -> raise "mine" end) end
        assert [{:start, _, _}, {:stop, _, %{exit: {:exit_status, 9}}}] = events()
      end

      test "a deadline", %{engine: engine} do
        stream("exec sleep 60", engine, timeout: 200)
        assert [_, {:stop, _, %{exit: {:termsig, :sigkill}}}] = events()
      end

      test "a start that fails", %{engine: engine} do
        assert_raise Stdio.StreamError, fn -> stream(["/no/such"], engine) end
        assert [{:exception, %{duration: duration}, metadata}] = events()
        assert duration > 0

        assert %{
                 kind: :error,
                 reason: %Stdio.StreamError{reason: :enoent},
                 stacktrace: [_ | _],
                 command: ["/no/such"],
                 behaviour: ^engine,
                 os_pid: nil,
                 containment: :best_effort
               } = metadata

        assert_raise Stdio.OpError, fn -> stream("true", engine, cd: "/no/such") end
        assert [{:exception, _, %{reason: %Stdio.OpError{}}}] = events()
        assert_raise Stdio.StreamError, fn -> stream([], engine) end
        assert [{:exception, _, %{reason: %Stdio.StreamError{}}}] = events()
      end

      test "an input that fails", %{engine: engine} do
        for {kind, fail} <- [error: &raise/1, throw: &throw/1, exit: &exit/1] do
          input = Stream.map(["mine"], fail)

          try do
            input |> Stdio.pipe!("cat", engine) |> Enum.to_list()
            flunk("nothing was raised")
          catch
            ^kind, _ -> :ok
          end

          assert [{:start, _, _}, {:exception, %{duration: _}, metadata}] = events()
          assert %{kind: ^kind, stacktrace: [_ | _]} = metadata
          assert is_integer(metadata.os_pid)
          refute Map.has_key?(metadata, :exit)
        end
      end

      test "a PID namespace", %{engine: engine} do
        stream("true", engine, containment: :pid_namespace)
        assert [{:start, _, %{containment: :pid_namespace}}, {:stop, _, _}] = events()
      end

      test "a supervisor that is killed", %{engine: engine, mark: mark} do
        # From outside, as the program may be another user's.
        command = ["/bin/sh", "-c", "echo $PPID; exec sleep 1000", mark]

        kill = fn
          {:stdout, pid} = element ->
            Proc.kill(String.trim(pid))
            element

          element ->
            element
        end

        elements = command |> Stdio.stream!(engine) |> Enum.map(kill)
        assert [{:stdout, _}, {:termsig, :sigkill}] = elements
        assert [_, {:stop, stop, %{exit: {:termsig, :sigkill}}}] = events()
        assert stop.cpu_user >= 0
      end

      test "once per enumeration, nothing before", %{engine: engine} do
        stream = Stdio.stream!("true", engine)
        assert events() == []
        for _ <- 1..2, do: Enum.to_list(stream)
        assert for({event, _, _} <- events(), do: event) == [:start, :stop, :start, :stop]
      end
    end
  end

  test "behaviour and command are as they were given" do
    behaviour = {Plain, onexit: fn _ -> fn _ -> false end end}
    stream({:search, ["true"]}, behaviour)
    assert [{:start, _, %{behaviour: ^behaviour, command: {:search, ["true"]}}}, _] = events()
    stream("true", [])
    assert [{:start, _, %{behaviour: []}}, _] = events()
  end

  @tag :userns
  @tag :dir
  test "containment of Rootless", %{dir: dir} do
    for name <- ~w(bin sbin usr lib lib64 opt tmp home proc dev),
        do: File.mkdir_p!(Path.join(dir, name))

    File.chmod!(dir, 0o755)
    assert stream("true", {Stdio.Rootless, []}, path: dir) == [exit_status: 0]
    assert [{:start, _, %{containment: :pid_namespace}}, _] = events()
  end

  test "of Stdio.cmd" do
    assert Stdio.cmd("cat", input: "abc") == {"abc", 0}

    assert [{:start, _, %{command: "cat"}}, {:stop, %{stdin_bytes: 3, stdout_bytes: 3}, _}] =
             events()
  end

  describe "of a daemon:" do
    test "start and stop" do
      {:ok, daemon} = Daemon.start_link(command: "read x; echo $x")
      os_pid = Daemon.os_pid(daemon)
      assert [{:start, _, %{os_pid: ^os_pid, behaviour: Stdio.Process}}] = events()
      monitor = Process.monitor(daemon)
      :ok = Daemon.write(daemon, "abc\n")
      assert_receive {:DOWN, ^monitor, _, _, :normal}, 10_000

      assert [
               {:stop, %{stdin_bytes: 4, stdout_bytes: 4},
                %{os_pid: ^os_pid, exit: {:exit_status, 0}}}
             ] = events()
    end

    test "stopped" do
      {:ok, daemon} = Daemon.start_link(command: "exec sleep 1000")
      GenServer.stop(daemon)
      assert [_, {:stop, _, %{exit: {:termsig, :sigterm}}}] = events()
    end

    test "that cannot be started" do
      assert {:error, error} = Daemon.start_link(command: ["/no/such"])
      assert [{:exception, _, %{kind: :error, reason: ^error}}] = events()
    end
  end
end
