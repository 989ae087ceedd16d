# A script that is not trusted, from the command line; see untrusted.ex.
Code.require_file("untrusted.ex", __DIR__)

defmodule Untrusted.CLI do
  @moduledoc false

  @usage """
  Usage: mix run examples/untrusted.exs -- [OPTION...] SCRIPT
         mix run examples/untrusted.exs -- [OPTION...] --file FILE

  Runs a script in a container without privileges, without network and with limits, and writes what
  it says to stdout:

    mix run examples/untrusted.exs -- 'id; ls /; echo x > /etc/passwd'

  Options:
    -f, --file FILE        the script is in there
        --timeout MS       (default: 2000)
        --max-output BYTES (default: 65536)
        --memory BYTES     for each process (default: 268435456)
        --root DIRECTORY   root tree, made if it is not there
    -h, --help

  The exit status is that of the script, or 125 if it was ended, with the reason on stderr.
  """

  @switches [
    file: :string,
    timeout: :integer,
    max_output: :integer,
    memory: :integer,
    root: :string,
    help: :boolean
  ]

  # Mix leaves the first `--` to the script.
  def main(["--" | argv]), do: main(argv)

  def main(argv) do
    case OptionParser.parse_head(argv, strict: @switches, aliases: [f: :file, h: :help]) do
      {[{:help, true} | _], _, _} -> IO.write(@usage)
      {opts, [script], []} -> run(script, opts)
      {[_ | _] = opts, [], []} -> run(script(opts[:file]), opts)
      {_, _, [{option, _} | _]} -> usage("unknown option or bad value: #{option}")
      _ -> usage("one script, please")
    end
  end

  defp script(nil), do: usage("one script, please")

  defp script(file) do
    case File.read(file) do
      {:ok, script} -> script
      {:error, reason} -> usage("#{file}: #{:file.format_error(reason)}")
    end
  end

  defp run(script, opts) do
    {:ok, _} = Application.ensure_all_started(:stdio)
    if opts[:root], do: Application.put_env(:stdio, :path, Path.expand(opts[:root]))
    Stdio.Container.make_chroot_tree!()

    case Untrusted.run(script, Keyword.take(opts, [:timeout, :max_output, :memory])) do
      {:ok, output} -> finish(output, 0)
      {:error, {:exit_status, status}, output} -> finish(output, status)
      {:error, failure, output} -> finish(output, 125, text(failure))
    end
  rescue
    error in [ArgumentError, File.Error] -> usage(Exception.message(error))
  end

  defp finish(output, status, reason \\ nil) do
    IO.binwrite(:stdio, output)
    if reason, do: IO.puts(:stderr, "untrusted: #{reason}")
    System.halt(status)
  end

  defp text({:termsig, signal}), do: "ended by #{signal}"
  defp text({:not_started, message}), do: message
  defp text(:too_much_output), do: "it says too much"
  defp text(:too_long), do: "it is too long"

  @spec usage(String.t()) :: no_return
  defp usage(message) do
    IO.puts(:stderr, "untrusted: #{message}\n\n#{@usage}")
    System.halt(2)
  end
end

Untrusted.CLI.main(System.argv())
