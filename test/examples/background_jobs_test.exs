Code.require_file("../../examples/background_jobs.ex", __DIR__)

defmodule Stdio.Examples.BackgroundJobsTest do
  # examples/background_jobs.ex, and the program examples/background_jobs.exs.
  use Stdio.Test.StreamCase, async: false
  @moduletag timeout: 60_000

  alias Stdio.Test.Script

  @deadline 10_000

  defp queue(opts \\ []) do
    name = :"queue#{System.unique_integer([:positive])}"
    start_supervised!({BackgroundJobs, [name: name] ++ opts})
    name
  end

  # A shell line with the mark in its arguments.
  defp submit(queue, line, mark, opts \\ []) do
    {:ok, job} = BackgroundJobs.submit(queue, ["/bin/sh", "-c", line, mark], opts)
    job
  end

  defp events(queue, job), do: queue |> BackgroundJobs.events(job) |> Enum.to_list()
  defp running(mark), do: length(Proc.find(mark))

  test "progress comes line by line, while it runs", %{mark: mark} do
    queue = queue()

    job =
      submit(
        queue,
        "trap 'printf three; exit' TERM; echo one; echo two >&2; while :; do sleep 0.05; done",
        mark,
        grace: 60_000
      )

    assert_receive {:job, ^job, {:started, 1}}, @deadline
    assert_receive {:job, ^job, {:progress, "one"}}, @deadline
    assert_receive {:job, ^job, {:progress, "two"}}, @deadline
    assert running(mark) > 0
    assert BackgroundJobs.cancel(queue, job) == :ok
    assert_receive {:job, ^job, {:progress, "three"}}, @deadline
    assert_receive {:job, ^job, :cancelled}, @deadline
  end

  test "no more at a time than allowed; the others in order", %{mark: mark} do
    queue = queue(concurrency: 2)
    jobs = for n <- 1..6, do: submit(queue, "echo #{n}; sleep 0.2", mark)
    assert BackgroundJobs.counts(queue).running == 2

    most =
      for _ <- 1..20 do
        Process.sleep(10)
        BackgroundJobs.counts(queue).running
      end

    assert Enum.max(most) == 2

    for {job, n} <- Enum.with_index(jobs, 1) do
      assert events(queue, job) == [{:started, 1}, {:progress, "#{n}"}, {:done, 1}]
    end

    assert BackgroundJobs.counts(queue) == %{running: 0, waiting: 0}
    assert messages() == []
  end

  @tag :dir
  test "a job that fails is tried again, each time after twice the pause", context do
    queue = queue()
    # Fails twice.
    line = "cd #{context.dir}; touch run$$; test $(ls | wc -l) -gt 2"

    {elapsed, events} =
      timed(fn ->
        events(queue, submit(queue, line, context.mark, attempts: 5, backoff: 100))
      end)

    assert events == [
             {:started, 1},
             {:retry, {:exit_status, 1}, 100},
             {:started, 2},
             {:retry, {:exit_status, 1}, 200},
             {:started, 3},
             {:done, 3}
           ]

    assert elapsed >= 300
  end

  test "while it waits for its next attempt others run", %{mark: mark} do
    queue = queue(concurrency: 1)
    failing = submit(queue, "false", mark, attempts: 2, backoff: 60_000)
    assert_receive {:job, ^failing, {:retry, {:exit_status, 1}, 60_000}}, @deadline
    assert events(queue, submit(queue, "true", mark)) == [{:started, 1}, {:done, 1}]
    assert BackgroundJobs.counts(queue) == %{running: 0, waiting: 1}
    assert BackgroundJobs.cancel(queue, failing) == :ok
    assert events(queue, failing) == [{:started, 1}, :cancelled]
    assert BackgroundJobs.cancel(queue, failing) == {:error, :not_found}
  end

  test "the attempts are used up", %{mark: mark} do
    queue = queue()
    job = submit(queue, "exit 7", mark, attempts: 2, backoff: 1)
    assert [_, {:retry, _, 1}, _, {:failed, {:exit_status, 7}}] = events(queue, job)
    job = submit(queue, "kill -TERM $$", mark)
    assert events(queue, job) == [{:started, 1}, {:failed, {:termsig, :sigterm}}]
  end

  test "a deadline for each attempt", %{mark: mark} do
    queue = queue()
    job = submit(queue, "sleep 1000; :", mark, timeout: 200, attempts: 2, backoff: 1)
    killed = {:termsig, :sigkill}
    events = events(queue, job)
    assert events == [{:started, 1}, {:retry, killed, 1}, {:started, 2}, {:failed, killed}]
    assert Proc.find(mark) == []
  end

  test "cancelling leaves nothing, whatever the job has started", %{mark: mark} do
    Oracle.clean(fn _ ->
      queue = queue()
      tree = [Proc.fixture("fork-tree"), mark, "2", "3"]
      {:ok, job} = BackgroundJobs.submit(queue, tree, grace: 100)
      assert Proc.wait_until(fn -> running(mark) > 3 end, @deadline)
      assert BackgroundJobs.cancel(queue, job) == :ok
      assert Proc.find(mark) == []
      assert :cancelled = List.last(events(queue, job))
      stop_supervised!(BackgroundJobs)
      assert messages() == []
    end)
  end

  test "cancelling is polite first", %{mark: mark} do
    queue = queue()
    line = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    job = submit(queue, line, mark, grace: 60_000)
    assert_receive {:job, ^job, {:progress, "ready"}}, @deadline
    assert BackgroundJobs.cancel(queue, job) == :ok
    events = events(queue, job)
    assert {:progress, "bye"} in events
    assert List.last(events) == :cancelled
  end

  test "cancelling one that ignores SIGTERM", %{mark: mark} do
    queue = queue()

    job =
      submit(queue, "trap '' TERM; echo ready; while :; do sleep 0.05; done", mark, grace: 200)

    assert_receive {:job, ^job, {:progress, "ready"}}, @deadline
    {elapsed, :ok} = timed(fn -> BackgroundJobs.cancel(queue, job) end)
    assert elapsed >= 200
    assert Proc.find(mark) == []
  end

  test "cancelling at any moment of the start", %{mark: mark} do
    queue = queue(concurrency: 4)

    for delay <- 0..20 do
      job = submit(queue, "sleep 1000; :", mark, grace: 0)
      Process.sleep(div(delay, 2))
      assert BackgroundJobs.cancel(queue, job) == :ok
      assert :cancelled = List.last(events(queue, job))
    end

    assert Proc.find(mark) == []
    assert BackgroundJobs.counts(queue) == %{running: 0, waiting: 0}
  end

  test "one that waits is cancelled without being started", %{mark: mark} do
    queue = queue(concurrency: 1)
    first = submit(queue, "sleep 1000; :", mark, grace: 0)
    second = submit(queue, "echo never", mark)
    assert BackgroundJobs.cancel(queue, second) == :ok
    assert events(queue, second) == [:cancelled]
    assert BackgroundJobs.cancel(queue, first) == :ok
  end

  test "what cannot be started fails at once, and the queue goes on", %{mark: mark} do
    queue = queue()
    {:ok, job} = BackgroundJobs.submit(queue, ["/nonexistent"], attempts: 5)

    assert [{:started, 1}, {:failed, %Stdio.StreamError{reason: :enoent}}] = events(queue, job)
    assert_raise ArgumentError, fn -> BackgroundJobs.submit(queue, ["a\0"]) end
    assert_raise ArgumentError, fn -> BackgroundJobs.submit(queue, "true", no_such: 1) end

    assert_raise ArgumentError, fn ->
      BackgroundJobs.submit(queue, "true", behaviour: {Stdio.Process, ops: fn _ -> [] end})
    end

    assert [_, {:done, 1}] = events(queue, submit(queue, "true", mark))
  end

  test "a worker that is killed fails its job alone", %{mark: mark} do
    queue = queue()
    job = submit(queue, "echo ready; sleep 1000", mark)
    assert_receive {:job, ^job, {:progress, "ready"}}, @deadline
    [worker] = Task.Supervisor.children(Module.concat(queue, "Tasks"))
    Process.exit(worker, :kill)
    assert_receive {:job, ^job, {:failed, %RuntimeError{}}}, @deadline
    assert Proc.wait_until(fn -> Proc.find(mark) == [] end)
    assert [_, {:done, 1}] = events(queue, submit(queue, "true", mark))
  end

  @tag :capture_log
  test "the queue fails, or is stopped: nothing is left", %{mark: mark} do
    queue = queue()

    for _ <- 1..2 do
      job = submit(queue, "echo ready; sleep 1000", mark)
      assert_receive {:job, ^job, {:progress, "ready"}}, @deadline
    end

    server = Process.whereis(Module.concat(queue, "Queue"))
    reader = submit(queue, "sleep 1000", mark)

    watcher =
      Task.async(fn -> catch_exit(queue |> BackgroundJobs.events(reader) |> Enum.to_list()) end)

    assert Proc.wait_until(fn ->
             {:monitored_by, by} = Process.info(server, :monitored_by)
             watcher.pid in by
           end)

    Process.exit(server, :kill)
    assert {:killed, _} = Task.await(watcher)
    assert Proc.wait_until(fn -> Proc.find(mark) == [] end)

    assert Proc.wait_until(fn ->
             Process.whereis(Module.concat(queue, "Queue")) not in [nil, server]
           end)

    job = submit(queue, "echo ready; sleep 1000", mark)
    assert_receive {:job, ^job, {:progress, "ready"}}, @deadline
    stop_supervised!(BackgroundJobs)
    assert Proc.wait_until(fn -> Proc.find(mark) == [] end)
  end

  @tag :userns
  test "under another behaviour", %{mark: mark} do
    root = Script.root_tree(mark)
    queue = queue()
    opts = [behaviour: Stdio.Rootless, path: root]

    assert [_, {:progress, "65534"}, {:done, 1}] =
             events(queue, submit(queue, "id -u", mark, opts))

    job = submit(queue, "echo ready; sleep 1000", mark, opts)
    assert_receive {:job, ^job, {:progress, "ready"}}, @deadline
    assert BackgroundJobs.cancel(queue, job) == :ok
    assert Proc.find(mark) == []
  end

  describe "examples/background_jobs.exs" do
    test "tells what becomes of each job", %{mark: mark} do
      lines = ["echo hi; : #{mark}", "exit 3", "sleep 1000; : #{mark}"]
      options = ~w(-c 3 --timeout 1000 --attempts 2 --backoff 10)
      assert {output, 1} = Script.run("background_jobs.exs", options ++ lines)

      for line <- [
            "[1] started",
            "[1] | hi",
            "[1] done",
            "[2] exit status 3, again in 10 ms",
            "[2] started, attempt 2",
            "[2] failed: exit status 3",
            "[3] failed: ended by sigkill"
          ],
          do: assert(line in output)

      assert Proc.wait_until(fn -> Proc.find(mark) == [] end)
    end

    test "SIGTERM cancels them all", %{mark: mark} do
      script =
        Script.start("background_jobs.exs", ["echo ready; sleep 1000; : #{mark}", "sleep 1000"])

      Script.until(script, "[1] | ready")
      :ok = Proc.kill(script.os_pid, "TERM")
      {output, 1} = Script.finish(script)
      assert "[1] cancelled" in output and "[2] cancelled" in output
      assert Proc.wait_until(fn -> Proc.find(mark) == [] end)
    end

    test "its exit status, usage" do
      assert {[_, _], 0} = Script.run("background_jobs.exs", ["true"])
      assert {["Usage: mix run" <> _ | _], 0} = Script.run("background_jobs.exs", ["--help"])

      for args <- [[], ["--foo", "true"], ["--timeout", "0", "true"]] do
        assert {args, {[], 2}} == {args, Script.run("background_jobs.exs", args)}
      end
    end
  end
end
