# A queue of jobs, from the command line; see background_jobs.ex.
Code.require_file("background_jobs.ex", __DIR__)

defmodule BackgroundJobs.CLI do
  @moduledoc false

  @usage """
  Usage: mix run examples/background_jobs.exs -- [OPTION...] LINE...

  Runs each shell line as a job, a few at a time, and tells what becomes of them:

    mix run examples/background_jobs.exs -- 'for i in 1 2 3; do echo step $i; sleep 1; done' false

  Options:
    -c, --concurrency N    jobs at a time (default: 2)
        --attempts N       for each job (default: 1)
        --backoff MS       before the second attempt, doubled for each further one (default: 500)
        --timeout MS       for each attempt (default: none)
    -h, --help

  The exit status is 1 if a job has failed. SIGTERM cancels them all.
  """

  @switches [
    concurrency: :integer,
    attempts: :integer,
    backoff: :integer,
    timeout: :integer,
    help: :boolean
  ]

  # Mix leaves the first `--` to the script.
  def main(["--" | argv]), do: main(argv)

  def main(argv) do
    case OptionParser.parse_head(argv, strict: @switches, aliases: [c: :concurrency, h: :help]) do
      {[{:help, true} | _], _, _} -> IO.write(@usage)
      {_, [], []} -> usage("nothing to run")
      {opts, lines, []} -> run(lines, opts)
      {_, _, [{option, _} | _]} -> usage("unknown option or bad value: #{option}")
    end
  end

  defp run(lines, opts) do
    {:ok, _} = Application.ensure_all_started(:stdio)
    {own, opts} = Keyword.split(opts, [:concurrency])
    {:ok, _} = BackgroundJobs.start_link(own)

    jobs =
      for {line, number} <- Enum.with_index(lines, 1), into: %{} do
        {:ok, job} = BackgroundJobs.submit(BackgroundJobs, line, opts)
        {job, number}
      end

    cancel = fn -> for {job, _} <- jobs, do: BackgroundJobs.cancel(BackgroundJobs, job) end
    {:ok, _} = System.trap_signal(:sigterm, fn -> cancel.() && :ok end)
    failed = watch(jobs, map_size(jobs), 0)
    System.halt(if failed == 0, do: 0, else: 1)
  rescue
    error in ArgumentError -> usage(Exception.message(error))
  end

  defp watch(_jobs, 0, failed), do: failed

  defp watch(jobs, left, failed) do
    receive do
      {:job, job, event} ->
        IO.puts("[#{jobs[job]}] #{text(event)}")

        case event do
          {:done, _} -> watch(jobs, left - 1, failed)
          {:failed, _} -> watch(jobs, left - 1, failed + 1)
          :cancelled -> watch(jobs, left - 1, failed + 1)
          _ -> watch(jobs, left, failed)
        end
    end
  end

  defp text({:started, 1}), do: "started"
  defp text({:started, attempt}), do: "started, attempt #{attempt}"
  defp text({:progress, line}), do: "| " <> line
  defp text({:retry, exit, ms}), do: "#{outcome(exit)}, again in #{ms} ms"
  defp text({:done, 1}), do: "done"
  defp text({:done, attempts}), do: "done, after #{attempts} attempts"
  defp text({:failed, exit}), do: "failed: #{outcome(exit)}"
  defp text(:cancelled), do: "cancelled"

  defp outcome({:exit_status, status}), do: "exit status #{status}"
  defp outcome({:termsig, signal}), do: "ended by #{signal}"
  defp outcome(error), do: Exception.message(error)

  @spec usage(String.t()) :: no_return
  defp usage(message) do
    IO.puts(:stderr, "background_jobs: #{message}\n\n#{@usage}")
    System.halt(2)
  end
end

BackgroundJobs.CLI.main(System.argv())
