Code.require_file("../../examples/log_pipeline.ex", __DIR__)

defmodule Stdio.Examples.LogPipelineTest do
  # examples/log_pipeline.ex, and the program examples/log_pipeline.exs.
  use Stdio.Test.StreamCase, async: false
  @moduletag :capture_log
  @moduletag :dir
  @moduletag timeout: 60_000

  alias Stdio.Test.Script

  @deadline 10_000

  defp pipeline(from, to, context, opts \\ []) do
    marked = &["/bin/sh", "-c", &1, context.mark]
    start_supervised!({LogPipeline, [from: marked.(from), to: marked.(to)] ++ opts})
  end

  # The sink of every test appends to it; each of its processes may have a uid of its own.
  defp sink(context), do: "umask 0; exec cat >> #{context.dir}/out"

  defp out(context) do
    case File.read(Path.join(context.dir, "out")) do
      {:ok, text} -> text
      {:error, _} -> ""
    end
  end

  defp out?(context, expected),
    do: Proc.wait_until(fn -> out(context) == expected end, @deadline) || out(context)

  test "lines that the filter passes on, as it makes them", context do
    filter = fn line -> if line =~ "o", do: String.upcase(line) end
    from = "echo one; echo two >&2; printf 'th'; sleep 0.2; echo ree four; exec sleep 1000"
    pipeline(from, sink(context), context, filter: filter)
    assert out?(context, "ONE\nTWO\nTHREE FOUR\n") == true
  end

  test "a last line without an end; long lines are split", context do
    from = "printf 'abcdefgh'; printf '\\nlast'; echo >> #{context.dir}/runs; exec sleep 0.1"
    pipeline(from, sink(context), context, max_line: 3, max_restarts: 1000)

    assert Proc.wait_until(fn -> out(context) =~ ~r/\Aabc\ndef\ngh\nlas\nt\n/ end, @deadline)
  end

  test "a source that ends is started anew, the sink stays", context do
    pipeline = pipeline("echo run; exec sleep 0.2", sink(context), context, max_restarts: 1000)
    sink = LogPipeline.daemon(pipeline, :sink)
    assert Proc.wait_until(fn -> out(context) =~ "run\nrun\nrun\n" end, @deadline)
    assert LogPipeline.daemon(pipeline, :sink) == sink
  end

  test "a sink that is killed is started anew, and the source with it", context do
    File.touch!(Path.join(context.dir, "out"))
    File.chmod!(Path.join(context.dir, "out"), 0o666)
    pipeline = pipeline("echo run; exec sleep 1000", sink(context), context)
    assert out?(context, "run\n") == true
    [sink, source] = for id <- [:sink, :source], do: LogPipeline.daemon(pipeline, id)
    :ok = Stdio.Daemon.signal(sink, :sigkill)
    assert out?(context, "run\nrun\n") == true
    refute LogPipeline.daemon(pipeline, :sink) == sink
    refute LogPipeline.daemon(pipeline, :source) == source
  end

  test "a sink that is killed while the source is blocked", context do
    pipeline = pipeline("exec yes", "exec sleep 1000", context)
    source = LogPipeline.daemon(pipeline, :source)
    assert blocked(source)
    :ok = Stdio.Daemon.signal(LogPipeline.daemon(pipeline, :sink), :sigkill)

    assert Proc.wait_until(
             fn -> LogPipeline.daemon(pipeline, :source) not in [nil, source] end,
             @deadline
           )
  end

  test "a slow sink holds up the source, not the memory", context do
    pipeline = pipeline("exec yes", "exec sleep 1000", context)
    source = LogPipeline.daemon(pipeline, :source)
    assert blocked(source)
    {:memory, memory} = Process.info(source, :memory)
    # The lines of a chunk, each in a list, several times.
    assert memory < 64_000_000
    {:message_queue_len, messages} = Process.info(source, :message_queue_len)
    assert messages <= 32
    stop_supervised!(LogPipeline)
    assert Proc.find(context.mark) == []
  end

  # Its server waits in a write to the sink, and has had no output for a while.
  defp blocked(source) do
    Proc.wait_until(
      fn ->
        {:reductions, before} = Process.info(source, :reductions)
        Process.sleep(300)
        {:reductions, later} = Process.info(source, :reductions)
        before > 10_000 and before == later
      end,
      @deadline
    )
  end

  test "all of it arrives, whatever the pace of the sink", context do
    # 2 MB of lines; the sink reads 64 KiB at a time, with pauses.
    from = "seq 1 300000; exec sleep 1000"

    to =
      "for i in 1 2 3 4 5; do head -c 65536; sleep 0.1; done > #{context.dir}/out; exec cat >> #{context.dir}/out"

    pipeline(from, to, context)
    expected = Enum.map_join(1..300_000, &"#{&1}\n")

    assert Proc.wait_until(fn -> byte_size(out(context)) >= byte_size(expected) end, 30_000)
    assert Fixtures.sha256(out(context)) == Fixtures.sha256(expected)
  end

  test "a filter that raises ends the source, which is started anew", context do
    filter = fn
      "bad" -> raise "bad"
      line -> line
    end

    pipeline("echo good; sleep 0.1; echo bad; exec sleep 1000", sink(context), context,
      filter: filter
    )

    assert out?(context, "good\ngood\n")
  end

  test "stopped, or given up: nothing is left", context do
    Oracle.clean(fn _ ->
      pipeline("yes; :", "cat > /dev/null; :", context)
      assert Proc.wait_until(fn -> match?([_, _ | _], Proc.find(context.mark)) end)
      stop_supervised!(LogPipeline)
      assert Proc.find(context.mark) == []
    end)

    Process.flag(:trap_exit, true)
    opts = [from: ["/bin/false", context.mark], to: ["/bin/cat", context.mark]]
    {:ok, pipeline} = LogPipeline.start_link(opts)
    assert_receive {:EXIT, ^pipeline, :shutdown}, @deadline
    assert Proc.wait_until(fn -> Proc.find(context.mark) == [] end)
  end

  test "options", context do
    assert_raise ArgumentError, fn -> LogPipeline.start_link(no_such: 1) end
    Process.flag(:trap_exit, true)

    assert {:error, _} =
             LogPipeline.start_link(from: ["/no/such"], to: ["/bin/cat", context.mark])

    assert Proc.wait_until(fn -> Proc.find(context.mark) == [] end)
  end

  describe "examples/log_pipeline.exs" do
    test "until SIGTERM", context do
      from = "for i in 1 2 3; do echo error $i; echo info $i; done; exec sleep 1000"
      from = ": #{context.mark}; " <> from
      args = ["--match", "err", "--from", from, "--to", sink(context)]
      script = Script.start("log_pipeline.exs", args)
      Script.until(script, "running")
      assert out?(context, "error 1\nerror 2\nerror 3\n") == true
      :ok = Proc.kill(script.os_pid, "TERM")
      assert {_, 0} = Script.finish(script)
      assert Proc.wait_until(fn -> Proc.find(context.mark) == [] end)
    end

    test "a source that keeps failing", context do
      args = ["--from", "exit 1", "--to", ": #{context.mark}; cat", "--restarts", "2"]
      assert {_, 1} = Script.run("log_pipeline.exs", args)
      assert Proc.wait_until(fn -> Proc.find(context.mark) == [] end)
    end

    test "usage" do
      assert {["Usage: mix run" <> _ | _], 0} = Script.run("log_pipeline.exs", ["--help"])

      for args <- [[], ["--from", "true"], ["--foo"], ["x"]] do
        assert {args, {[], 2}} == {args, Script.run("log_pipeline.exs", args)}
      end

      args = ["--match", "(", "--from", "true", "--to", "cat"]
      assert {[], 2} = Script.run("log_pipeline.exs", args)
    end
  end
end
