# inetd: a TCP service per port, each connection served by a program of its own; see inetd.ex.
Code.require_file("inetd.ex", __DIR__)

defmodule Inetd.CLI do
  @moduledoc false

  @usage """
  Usage: mix run examples/inetd.exs -- --port PORT [OPTION...] -- COMMAND [ARGUMENT...]
         mix run examples/inetd.exs -- [OPTION...] PORT[/BEHAVIOUR]=LINE...

  Runs a program for each connection to a TCP port: what the client sends is its input, what it
  writes is sent to the client. The first form serves one port, without a shell. The second serves
  as many as there are items, each with a line for the shell:

    mix run examples/inetd.exs -- --port 7007 --behaviour rootless -- sed -u 's/hello/bye/'
    mix run examples/inetd.exs -- 7007=cat 7008/rootless='id -u; hostname' 7009='exec date'

  Options, for all of the services:
    -p, --port PORT        first form; 0 is a free port
    -b, --behaviour NAME   process (default), rootless, or container, which needs root
        --listen ADDRESS   to listen on (default: 127.0.0.1)
        --max N            connections to each service at a time (default: 100)
        --timeout MS       after which a program is killed (default: none)
        --keepalive S      silence after which a client is probed (default: 10)
        --env NAME=VALUE   for the program, as often as needed
        --root DIRECTORY   root tree of rootless and container, made if it is not there
    -h, --help

  Each service is told on stdout once it can be reached: `listening on ADDRESS PORT`. SIGTERM ends
  it all.
  """

  @switches [
    port: :integer,
    behaviour: :string,
    listen: :string,
    max: :integer,
    timeout: :integer,
    keepalive: :integer,
    env: :keep,
    root: :string,
    help: :boolean
  ]

  @behaviours %{
    "process" => Stdio.Process,
    "rootless" => Stdio.Rootless,
    "container" => Stdio.Container
  }

  # Mix leaves the first `--` to the script.
  def main(["--" | argv]), do: main(argv)

  def main(argv) do
    aliases = [p: :port, b: :behaviour, h: :help]

    case OptionParser.parse_head(argv, strict: @switches, aliases: aliases) do
      {[{:help, true} | _], _, _} -> IO.write(@usage)
      {opts, rest, []} -> serve(opts, services(opts, rest))
      {_, _, [{option, _} | _]} -> usage("unknown option or bad value: #{option}")
    end
  end

  defp services(opts, rest) do
    common = [
      behaviour: behaviour(Keyword.get(opts, :behaviour, "process")),
      listen: address(Keyword.get(opts, :listen, "127.0.0.1")),
      config: config(opts)
    ]

    common = common ++ Keyword.take(opts, [:max, :keepalive])

    case {opts[:port], rest} do
      {_, []} -> usage("nothing to run")
      {nil, items} -> Enum.map(items, &item(&1, common))
      {port, command} -> [[port: port, command: {:search, command}] ++ common]
    end
  end

  defp item(item, common) do
    case Regex.run(~r/\A(\d+)(?:\/(\w+))?=(.+)\z/s, item) do
      [_, port, "", line] ->
        [port: String.to_integer(port), command: line] ++ common

      [_, port, name, line] ->
        common = Keyword.put(common, :behaviour, behaviour(name))
        [port: String.to_integer(port), command: line] ++ common

      nil ->
        usage("neither --port nor PORT[/BEHAVIOUR]=LINE: #{item}")
    end
  end

  defp behaviour(name),
    do: @behaviours[name] || usage("unknown behaviour #{name}")

  defp address(text) do
    case :inet.parse_strict_address(String.to_charlist(text)) do
      {:ok, address} -> address
      {:error, _} -> usage("not an address: #{text}")
    end
  end

  defp config(opts) do
    env =
      for {:env, entry} <- opts do
        case String.split(entry, "=", parts: 2) do
          [name, value] when name != "" -> {name, value}
          _ -> usage("not NAME=VALUE: #{entry}")
        end
      end

    [env: env] ++ Keyword.take(opts, [:timeout])
  end

  defp serve(opts, services) do
    {:ok, _} = Application.ensure_all_started(:stdio)
    if opts[:root], do: Application.put_env(:stdio, :path, Path.expand(opts[:root]))

    if Enum.any?(services, &(&1[:behaviour] != Stdio.Process)),
      do: Stdio.Container.make_chroot_tree!()

    {:ok, supervisor} = Supervisor.start_link([], strategy: :one_for_one)
    # Before the BEAM ends: it does not tell services that are not part of an application.
    {:ok, _} = System.trap_signal(:sigterm, fn -> Supervisor.stop(supervisor) end)
    for {service, id} <- Enum.with_index(services), do: start(supervisor, [id: id] ++ service)
    Process.sleep(:infinity)
  rescue
    # Of the root tree, or of a value.
    error in [File.Error, ArgumentError] -> fail(Exception.message(error))
  end

  defp start(supervisor, service) do
    address = :inet.ntoa(service[:listen])

    case Supervisor.start_child(supervisor, {Inetd, service}) do
      {:ok, server} ->
        IO.puts("listening on #{address} #{Inetd.port(server)}")

      {:error, {:listen, reason}} ->
        fail("#{address} #{service[:port]}: #{:inet.format_error(reason)}")

      {:error, {:EXIT, {error, _stacktrace}}} when is_exception(error) ->
        fail(Exception.message(error))
    end
  end

  @spec usage(String.t()) :: no_return
  defp usage(message) do
    IO.puts(:stderr, "inetd: #{message}\n\n#{@usage}")
    System.halt(2)
  end

  @spec fail(String.t()) :: no_return
  defp fail(message) do
    IO.puts(:stderr, "inetd: #{message}")
    System.halt(1)
  end
end

Inetd.CLI.main(System.argv())
