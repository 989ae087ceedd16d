# A log through a filter into another program, from the command line; see log_pipeline.ex.
Code.require_file("log_pipeline.ex", __DIR__)

defmodule LogPipeline.CLI do
  @moduledoc false

  @usage """
  Usage: mix run examples/log_pipeline.exs -- [--match REGEX] --from LINE --to LINE

  Runs two shell lines, and writes what the first says, line by line, to the second; those that match,
  if REGEX is given. Either is started anew when it ends, up to --restarts times in 5 s.

    mix run examples/log_pipeline.exs -- --match '[Ee]rror' \\
      --from 'exec journalctl --follow --output=cat' --to 'exec cat >> /tmp/errors'

  Options:
    -m, --match REGEX      lines that are passed on (default: all)
        --restarts N       (default: 3)
    -h, --help

  It says `running` once both are, and ends by SIGTERM, or with status 1 after too many restarts.
  """

  @switches [
    match: :string,
    from: :string,
    to: :string,
    restarts: :integer,
    help: :boolean
  ]

  # Mix leaves the first `--` to the script.
  def main(["--" | argv]), do: main(argv)

  def main(argv) do
    case OptionParser.parse(argv, strict: @switches, aliases: [m: :match, h: :help]) do
      {[{:help, true} | _], _, _} -> IO.write(@usage)
      {opts, [], []} -> run(opts[:from], opts[:to], opts)
      {_, [argument | _], []} -> usage("what is #{argument}?")
      {_, _, [{option, _} | _]} -> usage("unknown option or bad value: #{option}")
    end
  end

  defp run(from, to, _opts) when from == nil or to == nil, do: usage("--from and --to, please")

  defp run(from, to, opts) do
    {:ok, _} = Application.ensure_all_started(:stdio)
    Process.flag(:trap_exit, true)

    pipeline =
      [from: from, to: to, filter: filter(opts[:match])] ++
        [max_restarts: Keyword.get(opts, :restarts, 3)]

    case LogPipeline.start_link(pipeline) do
      {:ok, supervisor} ->
        {:ok, _} = System.trap_signal(:sigterm, fn -> Supervisor.stop(supervisor) end)
        IO.puts("running")

        receive do
          # By SIGTERM: the BEAM ends by itself.
          {:EXIT, ^supervisor, :normal} -> Process.sleep(:infinity)
          {:EXIT, ^supervisor, _reason} -> System.halt(1)
        end

      {:error, reason} ->
        IO.puts(:stderr, "log_pipeline: #{inspect(reason)}")
        System.halt(1)
    end
  end

  defp filter(nil), do: &Function.identity/1

  defp filter(source) do
    case Regex.compile(source) do
      {:ok, regex} -> &if(Regex.match?(regex, &1), do: &1)
      {:error, {message, at}} -> usage("#{source}: #{message} at #{at}")
    end
  end

  @spec usage(String.t()) :: no_return
  defp usage(message) do
    IO.puts(:stderr, "log_pipeline: #{message}\n\n#{@usage}")
    System.halt(2)
  end
end

LogPipeline.CLI.main(System.argv())
