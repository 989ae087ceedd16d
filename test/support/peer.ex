defmodule Stdio.Test.Peer do
  @moduledoc """
  A second BEAM, to be killed or to be run out of something.

      peer = Proc.peer_beam(~s|Stdio.stream!(["sleep", "60", mark]) \|> Stream.run()|)
      Peer.kill(peer)

  It has this BEAM's build in its code path. A peer ends when its standard input does, that is when
  the process that started it ends or calls `stop/1`: a failed test leaves none.
  """

  alias Stdio.Test.Proc

  @enforce_keys [:port, :os_pid]
  defstruct [:port, :os_pid]

  @typedoc "`os_pid` is the pid of the BEAM itself."
  @type t :: %__MODULE__{port: port, os_pid: Proc.os_pid()}

  # Before the source: says that the code is in, and watches stdin.
  @prelude """
  spawn(fn ->
    Enum.each(IO.stream(:stdio, :line), fn _ -> :ok end)
    System.halt(0)
  end)

  IO.puts("peer \#{System.pid()}")
  """

  @doc """
  Starts a BEAM and waits until it runs `source`, after which it sleeps for ever.

  The caller gets the port's messages; read what the source prints with `line/2`.

    * `:nofile` - soft limit of descriptors (`ulimit -Sn`)
    * `:shell` - a line of shell to run before, such as `ulimit -Hn 256` or `exec 9</dev/null`
    * `:env` - list of `{name, value}`, added to the environment
    * `:assigns` - keyword of variables for the source, any term that `inspect/1` can write
    * `:args` - more arguments for `elixir`
  """
  @spec start(String.t(), keyword) :: t
  def start(source, opts \\ []) do
    assigns =
      for {name, value} <- Keyword.get(opts, :assigns, []) do
        "#{name} = #{inspect(value, limit: :infinity, printable_limit: :infinity)}\n_ = #{name}\n"
      end

    script = Path.join(System.tmp_dir!(), "#{Proc.mark()}.exs")
    File.write!(script, [@prelude, assigns, source, "\nProcess.sleep(:infinity)\n"])

    port = open(script, opts)
    # The BEAM replaces the shell and the scripts on the way to it, so this is its pid.
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    peer = %__MODULE__{port: port, os_pid: os_pid}

    started = line(peer, 20_000)
    File.rm(script)

    if started != "peer #{os_pid}" do
      stop(peer)
      raise "the peer BEAM #{os_pid} did not start: #{inspect(started)}"
    end

    peer
  end

  defp open(script, opts) do
    paths = Enum.flat_map(code_paths(), &["-pa", &1])
    elixir = System.find_executable("elixir") || raise "elixir is not in the PATH"

    limit =
      case opts[:nofile] do
        nil -> ""
        number -> "ulimit -Sn #{number} && "
      end

    shell = if line = opts[:shell], do: line <> " && ", else: ""

    args =
      ["-c", limit <> shell <> ~s(exec "$@"), "sh", elixir] ++
        paths ++ Keyword.get(opts, :args, []) ++ [script]

    env =
      for {name, value} <- Keyword.get(opts, :env, []) do
        {String.to_charlist(name), value && String.to_charlist(value)}
      end

    Port.open(
      {:spawn_executable, "/bin/sh"},
      [:binary, :exit_status, {:line, 1_048_576}, args: args, env: env]
    )
  end

  @doc "The directories of code that Erlang and Elixir do not bring along themselves."
  @spec code_paths() :: [Path.t()]
  def code_paths do
    own = [:code.root_dir(), Application.app_dir(:elixir, "../..")]
    roots = Enum.map(own, &(&1 |> to_string() |> Path.expand() |> Kernel.<>("/")))

    # The current directory is on the path too. If its name is that of an application (a checkout
    # called "stdio"), the peer would take it for that.
    for path <- :code.get_path() -- [~c"."],
        path = path |> to_string() |> Path.expand(),
        not String.starts_with?(path, roots),
        File.dir?(path),
        do: path
  end

  @doc """
  The next line that the peer prints, without its end; `{:exit_status, status}` if the peer ended
  instead (128 + n if signal n killed it), `:timeout` if nothing came.
  """
  @spec line(t, timeout) :: String.t() | {:exit_status, non_neg_integer} | :timeout
  def line(%__MODULE__{port: port} = peer, timeout \\ 10_000) do
    receive do
      {^port, {:data, {:eol, line}}} -> line
      {^port, {:data, {:noeol, _}}} -> line(peer, timeout)
      {^port, {:exit_status, status}} -> {:exit_status, status}
    after
      timeout -> :timeout
    end
  end

  @doc "SIGKILLs the BEAM; returns when it has gone, with nothing of it left in the mailbox."
  @spec kill(t) :: :ok
  def kill(%__MODULE__{} = peer) do
    # Not a pid that somebody else has by now.
    if Port.info(peer.port), do: Proc.kill(peer.os_pid, 9)
    # Its zombie counts as gone: that the port reaps it is not what is tested.
    true = Proc.wait_until(fn -> not Proc.alive?(peer.os_pid) end, 10_000)
    close(peer)
  end

  @doc "Ends the BEAM by closing its standard input; returns when it has gone."
  @spec stop(t) :: :ok
  def stop(%__MODULE__{} = peer) do
    close(peer)

    unless Proc.wait_until(fn -> not Proc.alive?(peer.os_pid) end, 5000) do
      Proc.kill(peer.os_pid, 9)
    end

    :ok
  end

  defp close(%__MODULE__{port: port}) do
    try do
      Port.close(port)
    rescue
      # It has closed itself, because the other side did.
      ArgumentError -> true
    end

    flush(port)
  end

  defp flush(port) do
    receive do
      {^port, _} -> flush(port)
      {:EXIT, ^port, _} -> flush(port)
    after
      0 -> :ok
    end
  end
end
