defmodule Inetd do
  @moduledoc """
  A TCP service that runs a program for each connection, as inetd(8) does.

      children = [
        {Inetd, port: 7007, command: ["/bin/cat"], behaviour: Stdio.Rootless}
      ]

      Supervisor.start_link(children, strategy: :one_for_one)

  | option | default | |
  |---|---|---|
  | `:command` | required | what to run, in any form that `Stdio.pipe!/4` takes |
  | `:port` | 0 | 0: a free one, see `port/1` |
  | `:listen` | `{127, 0, 0, 1}` | address, an IPv6 one too |
  | `:behaviour`, `:config` | `Stdio.Process`, `[]` | as for `Stdio.pipe!/4` |
  | `:max` | 100 | connections at a time; further ones are closed at once |
  | `:keepalive` | 10 | seconds of silence after which the client's system is asked, see rule 5 |
  | `:name`, `:id` | | of the supervisor |

  The options are checked by `start_link/1`: ArgumentError, or `{:error, {:listen, posix}}`.

  ## Rules

  1. What the client sends is the program's stdin. What the program writes to stdout and stderr is
     sent to the client, in the order it was written in; give `stderr: :null` or `:separate` in
     `:config` for something else (`:separate`: both are sent, in no order between them).
  2. Neither side is read faster than the other takes it: a program that does not read stops the
     client, a client that does not read stops the program. Memory is bounded by a few chunks.
  3. The client shuts down its sending side: the program's stdin ends, its output goes on.
  4. The program ends: what it has left behind is killed, its output is sent to the end, the
     connection is closed.
  5. The client is gone: the program and all it has started get SIGKILL. A client that has closed
     the connection looks like one that has only shut down its sending side (rule 3) until it is
     sent something. Then its system refuses it. If the program has nothing to say, keepalive
     probes ask in its place; Linux acknowledges them for `tcp_fin_timeout`, a minute, after the
     client has closed. A client that resets the connection, as every client does that closes it
     with output unread, is missed within half a second; one whose machine or network has gone,
     after three probes, or if there is output on its way, when the kernel gives up on that.
  6. `timeout:` in `:config` bounds the program, and two seconds more the connection, whatever the
     client does. Without it, a client that reads nothing can stay for ever.
  7. The service is stopped: all of this is killed. One connection's failure, a program that cannot
     be started among them, is logged and ends nothing else.
  """

  use Supervisor

  require Logger

  @defaults [
    port: 0,
    listen: {127, 0, 0, 1},
    behaviour: Stdio.Process,
    config: [],
    max: 100,
    keepalive: 10
  ]

  # ms between two looks at the state of a silent connection.
  @look 500
  # ms that a client has for its own end after the program's.
  @linger 2000
  # ms between two looks at whether the client takes more.
  @longest_pause 50
  # Of Linux: level and options of setsockopt(2), and a state in its TCP_INFO. See tcp(7).
  @ipproto_tcp 6
  @tcp_keepidle 4
  @tcp_keepintvl 5
  @tcp_keepcnt 6
  @tcp_info 11
  @tcp_close 7

  def child_spec(opts) do
    id = Keyword.get(opts, :id, {__MODULE__, Keyword.get(opts, :port, 0)})
    %{id: id, start: {__MODULE__, :start_link, [opts]}, type: :supervisor}
  end

  @spec start_link(keyword) :: Supervisor.on_start()
  def start_link(opts) do
    {server, opts} = Keyword.split(Keyword.delete(opts, :id), [:name])
    opts = Keyword.validate!(opts, [:command | @defaults])
    Enum.each(opts, &check!/1)
    # Sent in the order it was written in, unless it is wanted otherwise.
    opts = Keyword.update!(opts, :config, &Keyword.put_new(&1, :stderr, :stdout))
    # A stream that nobody reads runs nothing; its arguments are checked all the same.
    stream([], opts)
    Supervisor.start_link(__MODULE__, opts, server)
  end

  defp check!({:port, port}) when port in 0..65_535, do: :ok
  defp check!({:max, max}) when is_integer(max) and max > 0, do: :ok
  defp check!({:keepalive, seconds}) when seconds in 1..32_767, do: :ok
  defp check!({:listen, address}) when tuple_size(address) in [4, 8], do: :ok
  defp check!({option, _}) when option in [:command, :behaviour, :config], do: :ok

  defp check!({option, value}),
    do: raise(ArgumentError, "invalid value #{inspect(value)} for option #{inspect(option)}")

  @doc "The port the service listens on."
  @spec port(Supervisor.supervisor()) :: :inet.port_number()
  def port(server) do
    [socket] = for {{:acceptor, socket}, _, _, _} <- Supervisor.which_children(server), do: socket
    {:ok, port} = :inet.port(socket)
    port
  end

  # The supervisor owns the listening socket, so it outlives an acceptor that is restarted.
  @impl Supervisor
  def init(opts) do
    case :gen_tcp.listen(opts[:port], socket_options(opts)) do
      {:ok, socket} ->
        supervisor = self()

        connections =
          Supervisor.child_spec({Task.Supervisor, max_children: opts[:max]}, id: :connections)

        acceptor =
          Supervisor.child_spec({Task, fn -> accept(socket, connections(supervisor), opts) end},
            id: {:acceptor, socket},
            restart: :permanent
          )

        Supervisor.init([connections, acceptor], strategy: :rest_for_one)

      {:error, reason} ->
        exit({:listen, reason})
    end
  end

  defp connections(supervisor) do
    [pid] = for {:connections, pid, _, _} <- Supervisor.which_children(supervisor), do: pid
    pid
  end

  # Accepted sockets inherit them. exit_on_close: false keeps a socket for the output when the client
  # has shut down its side; show_econnreset: true tells a reset from that.
  defp socket_options(opts) do
    family = if tuple_size(opts[:listen]) == 8, do: [:inet6], else: []

    family ++
      [
        :binary,
        ip: opts[:listen],
        active: false,
        exit_on_close: false,
        show_econnreset: true,
        reuseaddr: true,
        nodelay: true,
        backlog: 128,
        buffer: 65_536,
        keepalive: true
      ] ++ keepalive(opts[:keepalive])
  end

  # The first probe after so many seconds, then one each second; three without an answer are enough.
  defp keepalive(seconds) do
    for {option, value} <- [{@tcp_keepidle, seconds}, {@tcp_keepintvl, 1}, {@tcp_keepcnt, 3}],
        do: {:raw, @ipproto_tcp, option, <<value::native-32>>}
  end

  ## The acceptor

  defp accept(listener, connections, opts) do
    case :gen_tcp.accept(listener) do
      {:ok, socket} ->
        start_connection(socket, connections, opts)

      {:error, :closed} ->
        exit(:shutdown)

      # No descriptors are left, or the client has gone again.
      {:error, reason} ->
        Logger.warning("inetd: accept: #{:inet.format_error(reason)}")
        Process.sleep(100)
    end

    accept(listener, connections, opts)
  end

  defp start_connection(socket, connections, opts) do
    case Task.Supervisor.start_child(connections, fn -> connection(socket, opts) end) do
      {:ok, pid} ->
        # The socket closes with the process that owns it.
        with :ok <- :gen_tcp.controlling_process(socket, pid), do: send(pid, {:yours, socket})

      {:error, :max_children} ->
        Logger.warning("inetd: #{peer(socket)}: refused, #{opts[:max]} connections are open")
        :gen_tcp.close(socket)
    end
  end

  ## A connection
  #
  # Three processes: this one has the socket, sees what becomes of it, and reads it when asked to.
  # The task below it reads the program's output and sends it. The stream's own feeder writes to the
  # program's stdin; it enumerates `input/1`, which asks this process for data.

  defp connection(socket, opts) do
    receive do
      {:yours, ^socket} -> :ok
    after
      5000 -> exit(:shutdown)
    end

    # To close the socket when the service is stopped: see abort/1.
    Process.flag(:trap_exit, true)
    peer = peer(socket)
    connection = self()
    task = Task.async(fn -> run(connection, socket, stream(input(connection), opts)) end)
    state = %{socket: socket, task: task, reader: nil, eof: false, cut: cut(opts[:config])}
    {ended, state} = relay(state)
    log(peer, ended)
    close(ended, state)
  end

  defp stream(input, opts),
    do: Stdio.pipe!(input, opts[:command], opts[:behaviour], opts[:config])

  # In the task.
  defp run(connection, socket, stream) do
    Enum.reduce(stream, nil, fn
      {output, data}, nil when output in [:stdout, :stderr] ->
        with {:error, reason} <- transmit(socket, data) do
          send(connection, {:tcp_error, socket, reason})
          Process.sleep(:infinity)
        end

        nil

      terminal, nil ->
        terminal
    end)
  rescue
    error in [Stdio.StreamError, Stdio.OpError] -> {:failed, error}
  end

  # Returns when the kernel has it all, so a client that does not read holds up the program. That send
  # blocks would not do: OTP's driver drops what is queued, with {:error, :closed}, when a client
  # shuts down its side meanwhile. With an empty queue, as here, it does not block.
  defp transmit(socket, data) do
    with :ok <- :gen_tcp.send(socket, data), do: taken(socket, 1)
  end

  defp taken(socket, pause) do
    with {:ok, [send_pend: unsent]} when unsent > 0 <- :inet.getstat(socket, [:send_pend]) do
      Process.sleep(pause)
      taken(socket, min(pause * 2, @longest_pause))
    else
      {:ok, _} -> :ok
      {:error, reason} -> {:error, reason}
    end
  end

  # In the feeder: an element for each question, so nothing is read ahead.
  defp input(connection) do
    Stream.repeatedly(fn ->
      monitor = Process.monitor(connection)
      send(connection, {:more, self(), monitor})

      receive do
        {^monitor, answer} ->
          Process.demonitor(monitor, [:flush])
          answer

        {:DOWN, ^monitor, :process, _, _} ->
          :eof
      end
    end)
    |> Stream.take_while(&(&1 != :eof))
  end

  defp relay(%{socket: socket, task: %{ref: ended, pid: pid}} = state) do
    receive do
      {:more, reader, ref} when state.eof ->
        send(reader, {ref, :eof})
        relay(state)

      {:more, reader, ref} ->
        case :inet.setopts(socket, active: :once) do
          :ok -> relay(%{state | reader: {reader, ref}})
          {:error, reason} -> gone(state, reason)
        end

      {:tcp, ^socket, data} ->
        relay(answer(state, data))

      # The socket's, if it was not an orderly end; or the task's, which could not send.
      {:tcp_error, ^socket, reason} ->
        gone(state, reason)

      {:tcp_closed, ^socket} ->
        relay(answer(%{state | eof: true}, :eof))

      {^ended, how} ->
        Process.demonitor(ended, [:flush])
        {how, state}

      {:DOWN, ^ended, :process, _, reason} ->
        exit(reason)

      {:EXIT, other, _reason} when other != pid ->
        stop(state, :stopped)
    after
      @look ->
        cond do
          reset?(socket) -> gone(state, :econnreset)
          now() > state.cut -> stop(state, {:gone, :timeout})
          true -> relay(state)
        end
    end
  end

  defp answer(%{reader: {reader, ref}} = state, answer) do
    send(reader, {ref, answer})
    %{state | reader: nil}
  end

  defp answer(%{reader: nil} = state, :eof), do: state

  defp gone(state, reason), do: stop(state, {:gone, reason})

  # The program's tree dies with the process that reads its output.
  defp stop(state, reason) do
    Task.shutdown(state.task, :brutal_kill)
    {reason, state}
  end

  # Of a socket that nobody reads, as the program does not, or that has been read to its end.
  defp reset?(socket) do
    case :inet.getopts(socket, [{:raw, @ipproto_tcp, @tcp_info, 1}]) do
      {:ok, [{:raw, _, _, <<@tcp_close>>}]} -> true
      {:ok, _} -> false
      {:error, _} -> true
    end
  end

  # The end of a connection whose client takes no more: after that of the program, with some grace.
  defp cut(config) do
    case Keyword.get(config, :timeout, :infinity) do
      :infinity -> :infinity
      timeout -> now() + timeout + Keyword.get(config, :kill_timeout, 5000) + @linger
    end
  end

  defp close({:gone, _reason}, state), do: abort(state.socket)
  defp close(:stopped, state), do: abort(state.socket)

  # A close with input unread would be a reset, which destroys output that is still on its way.
  defp close(_ended, %{socket: socket} = state) do
    :gen_tcp.shutdown(socket, :write)
    :inet.setopts(socket, active: :once)
    linger(state, now() + @linger)
  end

  defp linger(%{eof: true, socket: socket}, _deadline), do: :gen_tcp.close(socket)

  defp linger(%{socket: socket, task: %{pid: pid}} = state, deadline) do
    receive do
      {:tcp, ^socket, _data} ->
        if now() < deadline, do: :inet.setopts(socket, active: :once)
        linger(state, deadline)

      {:tcp_closed, ^socket} ->
        :gen_tcp.close(socket)

      {:tcp_error, ^socket, _reason} ->
        abort(socket)

      {:EXIT, other, _reason} when other != pid ->
        abort(socket)
    after
      max(deadline - now(), 0) -> :gen_tcp.close(socket)
    end
  end

  # Nobody is there, or nobody who takes it: what has not been sent is dropped. Else the socket would
  # wait to be rid of it, and the end of the BEAM for the socket.
  defp abort(socket) do
    :inet.setopts(socket, linger: {true, 0})
    :gen_tcp.close(socket)
  end

  defp log(peer, {:failed, error}),
    do: Logger.error("inetd: #{peer}: #{String.trim(Exception.message(error))}")

  defp log(peer, :stopped), do: Logger.info("inetd: #{peer}: stopped")

  defp log(peer, {:gone, reason}),
    do: Logger.info("inetd: #{peer}: gone (#{reason})")

  defp log(peer, {how, value}), do: Logger.info("inetd: #{peer}: #{how} #{value}")

  defp peer(socket) do
    case :inet.peername(socket) do
      {:ok, {address, port}} -> "#{:inet.ntoa(address)} #{port}"
      {:error, _} -> "a client"
    end
  end

  defp now, do: System.monotonic_time(:millisecond)
end
