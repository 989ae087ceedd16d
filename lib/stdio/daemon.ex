defmodule Stdio.Daemon do
  @moduledoc """
  Keeps one program under a supervisor of Elixir's.

      children = [
        {Stdio.Daemon, command: ["/usr/sbin/thing", "--foreground"], name: Thing, log_output: :info}
      ]

      Supervisor.start_link(children, strategy: :one_for_one)

  The program starts with this server and ends with it: when the server is stopped, crashes or is
  killed, everything the program has started ends, and when the program ends, so does the server.

      iex> test = self()
      iex> {:ok, echo} = Stdio.Daemon.start_link(command: "cat", on_output: &send(test, &1))
      iex> Stdio.Daemon.write(echo, "hello")
      :ok
      iex> receive do output -> output end
      {:stdout, "hello"}
      iex> Stdio.Daemon.stats(echo).stdout_bytes
      5
      iex> GenServer.stop(echo)
      :ok

  ## Options

  | option | default | |
  |---|---|---|
  | `:command` | required | as for `Stdio.stream!/3` |
  | `:name` | | name of the server, see `GenServer` |
  | `:id` | the name, else `Stdio.Daemon` | of the child specification |
  | `:behaviour`, `:config` | `Stdio.Process`, `[]` | as for `Stdio.stream!/3` |
  | `:log_output` | `nil` | level at which each line of stdout and stderr is logged |
  | `:log_prefix`, `:log_metadata` | `""`, `[]` | put before each line; metadata of all that the server logs |
  | `:on_output` | `nil` | a function of one argument, or `{module, function, args}`, whose first argument it becomes: `{:stdout \\| :stderr, binary}` |
  | `:kill_signal`, `:kill_timeout` | `:sigterm`, 5000 | the end of a program that has not ended by itself; they count for more than those in `:config` |
  | `:exit_reason` | `nil` | a function of the terminal element (`{:exit_status, 0..255}` or `{:termsig, signal}`): the exit reason |

  ## Output

  1. It is read as it is dealt with: a slow `:on_output`, or a slow logger, holds up the program. At
     most 16 chunks are under way.
  2. `:on_output` runs in the server, chunk by chunk as they were read. If it raises, the server and
     the program's tree end. The functions of this module may be called in it, with `self()`.
  3. A line that is logged is bytes up to `"\\n"`. One of more than 16 KiB is split, a last partial
     line is logged when the program ends, and bytes that are not UTF-8 are replaced by U+FFFD. The
     metadata has `os_pid:` and `stream: :stdout | :stderr` too.
  4. With neither, output is read and dropped.

  ## Ends

  1. By itself: status 0 is the exit reason `:normal`, another one `{:exit_status, n}`, a signal
     `{:termsig, signal}`, unless `:exit_reason` says otherwise. A supervisor restarts it, by default
     whatever the reason (`restart: :permanent`). A program that puts itself into the background ends
     the server at once, again and again until the supervisor gives up: use its option for the
     foreground. One that is to run once: `Supervisor.child_spec({Stdio.Daemon, options}, restart:
     :transient)`.
  2. The server is asked to stop, or crashes: `:kill_signal` to the program's process group, and
     after `:kill_timeout` ms SIGKILL to the tree. What it says until then is dealt with as ever. The
     exit reason is the one that was asked for.
  3. The server is killed: SIGKILL to the tree.

  The server traps exits. The child specification has `shutdown: kill_timeout + 2000`, so that a
  supervisor does not come between the steps of 2.

  Functions of this module exit as `GenServer.call/3` does when there is no such server, and are
  for servers of the own node.
  """

  use GenServer

  require Logger

  alias Stdio.{Config, Signal, Telemetry}
  alias Stdio.Daemon.Output
  alias Stdio.Stream.Tree

  @keys [
    :command,
    :name,
    :id,
    :behaviour,
    :config,
    :log_output,
    :log_prefix,
    :log_metadata,
    :on_output,
    :kill_signal,
    :kill_timeout,
    :exit_reason
  ]

  @levels [:emergency, :alert, :critical, :error, :warning, :notice, :info, :debug]

  # ms that a supervisor gives the server after the grace period of the program; and how much of
  # them the output gets that was written before SIGKILL.
  @margin 2000
  @last_words 1000
  # The longest that a receive can wait: 49 days.
  @longest_wait 0xFFFF_FFFF

  @typedoc "See the table above."
  @type option ::
          {:command, Stdio.command()}
          | {:name, GenServer.name()}
          | {:id, term}
          | {:behaviour, Stdio.behaviour()}
          | {:config, Config.t()}
          | {:log_output, nil | Logger.level()}
          | {:log_prefix, String.t()}
          | {:log_metadata, keyword}
          | {:on_output, nil | (output -> any) | {module, atom, list}}
          | {:kill_signal, Signal.t()}
          | {:kill_timeout, non_neg_integer}
          | {:exit_reason, nil | (Stdio.element() -> term)}

  @type output :: {:stdout | :stderr, binary}

  defmodule State do
    @moduledoc false
    @enforce_keys [:run, :handle, :output, :exit_reason]
    defstruct [:run, :handle, :output, :exit_reason]
  end

  defmodule Handle do
    @moduledoc false
    # What other processes need to know of the program; all of it works without the server.
    @derive {Inspect, only: [:task]}
    @enforce_keys [:task, :span, :started_at]
    defstruct [:task, :span, :started_at]
  end

  defimpl Inspect, for: State do
    import Inspect.Algebra

    # What a crash report shows says which program it was, is short, and has no environment in it.
    def inspect(%{handle: %{span: span, task: task}}, opts) do
      command = to_doc(span.command, %{opts | limit: 10, printable_limit: 100})
      concat(["#Stdio.Daemon<", command, ", ", to_doc(task, opts), ">"])
    end
  end

  @doc """
  The child specification: `restart: :permanent`, `type: :worker`, `shutdown: kill_timeout + 2000`.

      iex> spec = Stdio.Daemon.child_spec(command: "cat", name: Cat, kill_timeout: 1000)
      iex> {spec.id, spec.restart, spec.shutdown}
      {Cat, :permanent, 3000}

  Raises ArgumentError for malformed options.
  """
  @spec child_spec([option]) :: Supervisor.child_spec()
  def child_spec(options) do
    %{config: config} = prepare!(options)

    %{
      id: options[:id] || options[:name] || __MODULE__,
      start: {__MODULE__, :start_link, [options]},
      type: :worker,
      restart: :permanent,
      shutdown: min(Config.limits_ms(config).kill_timeout + @margin, @longest_wait)
    }
  end

  @doc """
  Starts the server and its program, and returns once the program executes.

  `{:error, exception}` if it could not be started: a `Stdio.StreamError`, a `Stdio.OpError`, or what
  a callback of the behaviour raised. The caller lives on, and nothing is left behind.

  Raises ArgumentError for malformed options, before any process is started.
  """
  @spec start_link([option]) :: GenServer.on_start() | {:error, Exception.t()}
  def start_link(options) do
    run = prepare!(options)
    reply = make_ref()

    case GenServer.start_link(__MODULE__, {run, options, self(), reply}, name(options[:name])) do
      :ignore ->
        receive do
          {^reply, exception} -> {:error, exception}
        end

      result ->
        result
    end
  end

  defp name(nil), do: []
  defp name(name), do: [name: name]

  @doc """
  The process id of the program, as seen by the process that forked it. In `Stdio.Rootless` that is
  PID 1 of a namespace, and so it is an id of that namespace.
  """
  @spec os_pid(GenServer.server()) :: pos_integer
  def os_pid(server), do: handle(server).span.os_pid

  @doc """
  Writes to the program's stdin. Returns when all is written or queued (64 KiB at most), and blocks
  the caller until then, not the server.

  `{:error, :epipe}`: the program has ended, or closed its stdin, or `close_stdin/1` has.
  """
  @spec write(GenServer.server(), iodata) :: :ok | {:error, :epipe}
  def write(server, data) do
    data = IO.iodata_to_binary(data)

    with %Handle{task: task, span: span} <- open_handle(server),
         :ok <- Stdio.Task.stdin(task, data),
         do: Telemetry.count(span, :stdin, data)
  end

  @doc """
  Closes the program's stdin, for a program that reads to the end of its input. What was written
  before arrives first, also what a caller of `write/2` still waits with. Does not block.

      iex> test = self()
      iex> {:ok, sort} = Stdio.Daemon.start_link(command: "sort", on_output: &send(test, &1))
      iex> Stdio.Daemon.write(sort, "b\\na\\n")
      :ok
      iex> Stdio.Daemon.close_stdin(sort)
      :ok
      iex> receive do output -> output end
      {:stdout, "a\\nb\\n"}

  From then on `write/2` is `{:error, :epipe}`. `:ok` if it was closed already; `{:error, :epipe}`: the
  program has ended.
  """
  @spec close_stdin(GenServer.server()) :: :ok | {:error, :epipe}
  def close_stdin(server) do
    with %Handle{task: task} <- open_handle(server) do
      case Stdio.Task.eof(task, :stdin) do
        {:error, :esrch} -> {:error, :epipe}
        _closed -> :ok
      end
    end
  end

  # A server that ends meanwhile ends because its program does.
  defp open_handle(server) do
    case GenServer.whereis(server) do
      pid when is_pid(pid) ->
        try do
          handle(pid)
        catch
          :exit, _ -> {:error, :epipe}
        end

      # So says whoever knows how.
      _ ->
        handle(server)
    end
  end

  @doc """
  Sends a signal to the program alone, not to what it has started. kill(2)

  `{:error, :esrch}`: it has ended. Raises ArgumentError for what is no signal.
  """
  @spec signal(GenServer.server(), Signal.t()) :: :ok | {:error, Stdio.posix()}
  def signal(server, signal) do
    number = Signal.signal_number!(signal)
    %Handle{task: task, span: span} = handle(server)

    # Its parent makes the call, in whose namespace the process id is the program's.
    case Stdio.Task.parent(task) do
      %Stdio.Task{} = parent -> Stdio.Task.kill(parent, span.os_pid, number)
      :noproc -> {:error, :esrch}
    end
  end

  @doc """
  What the program is, and how much it has read and written.

  | key | |
  |---|---|
  | `:os_pid`, `:command` | see `os_pid/1`; as it was given |
  | `:started_at`, `:uptime_ms` | DateTime (UTC); milliseconds since then, not affected by changes of the clock |
  | `:stdin_bytes` | accepted by `write/2` |
  | `:stdout_bytes`, `:stderr_bytes` | received by the server |
  | `:containment` | what guards its tree: `:best_effort`, `:pid_namespace` or `:cgroup` |
  | `:rusage` | only once the program has ended, as in `:exit_reason`: see `Stdio.Task.rusage/1` |
  """
  @spec stats(GenServer.server()) :: %{
          required(:os_pid) => pos_integer,
          required(:command) => Stdio.command(),
          required(:started_at) => DateTime.t(),
          required(:uptime_ms) => non_neg_integer,
          required(:stdin_bytes) => non_neg_integer,
          required(:stdout_bytes) => non_neg_integer,
          required(:stderr_bytes) => non_neg_integer,
          required(:containment) => :best_effort | :pid_namespace | :cgroup,
          optional(:rusage) => map
        }
  def stats(server) do
    %Handle{task: task, span: span, started_at: started_at} = handle(server)
    uptime = System.monotonic_time() - span.began

    stats =
      Map.merge(Telemetry.bytes(span), %{
        os_pid: span.os_pid,
        command: span.command,
        started_at: started_at,
        uptime_ms: System.convert_time_unit(uptime, :native, :millisecond),
        containment: span.containment
      })

    case Stdio.Task.rusage(task) do
      nil -> stats
      rusage -> Map.put(stats, :rusage, rusage)
    end
  end

  defp handle(server) do
    if GenServer.whereis(server) == self(),
      do: Process.get(__MODULE__),
      else: GenServer.call(server, :handle, :infinity)
  end

  ## Options

  # The arguments of Tree.open/1.
  defp prepare!(options) do
    if not Keyword.keyword?(options) do
      raise ArgumentError, "options must be a keyword list, got: #{inspect(options)}"
    end

    Enum.each(options, &option!/1)

    if not Keyword.has_key?(options, :command) do
      raise ArgumentError, "option :command is missing: it says what to run"
    end

    behaviour = Keyword.get(options, :behaviour, Stdio.Process)
    Stdio.__prepare__(options[:command], behaviour, config(options), :stream, nil)
  end

  # Those given here, then those in :config, then the defaults.
  defp config(options) do
    config = Keyword.get(options, :config, [])
    given = Keyword.take(options, [:kill_signal, :kill_timeout])

    # Anything else is for the validation of configs to refuse.
    if Keyword.keyword?(config) do
      config
      |> Keyword.put_new(:kill_signal, :sigterm)
      |> Keyword.put_new(:kill_timeout, 5000)
      |> Keyword.merge(given)
    else
      config
    end
  end

  defp option!({:log_output, level}) when level in [nil | @levels], do: :ok

  defp option!({:log_output, level}),
    do: invalid!(:log_output, level, "nil or one of #{inspect(@levels)}")

  defp option!({:log_prefix, prefix}) do
    if not (is_binary(prefix) and String.valid?(prefix)),
      do: invalid!(:log_prefix, prefix, "a string")
  end

  defp option!({:log_metadata, metadata}) do
    if not Keyword.keyword?(metadata), do: invalid!(:log_metadata, metadata, "a keyword list")
  end

  defp option!({:on_output, nil}), do: :ok
  defp option!({:on_output, fun}) when is_function(fun, 1), do: :ok

  defp option!({:on_output, {module, function, args}})
       when is_atom(module) and is_atom(function) and length(args) >= 0,
       do: :ok

  defp option!({:on_output, other}) do
    invalid!(:on_output, other, "nil, a function of one argument, or {module, function, args}")
  end

  defp option!({:exit_reason, nil}), do: :ok
  defp option!({:exit_reason, fun}) when is_function(fun, 1), do: :ok

  defp option!({:exit_reason, other}),
    do: invalid!(:exit_reason, other, "nil or a function of one argument")

  defp option!({key, _value}) when key in @keys, do: :ok

  defp option!({key, value}) do
    allowed = Enum.map_join(@keys, ", ", &inspect/1)

    raise ArgumentError,
          "unknown option #{inspect(key)} (value #{inspect(value)}); allowed: #{allowed}" <>
            if(key in Stdio.Config.Schema.keys(),
              do: ". It goes into config: [#{key}: ...]",
              else: ""
            )
  end

  @spec invalid!(atom, term, String.t()) :: no_return
  defp invalid!(key, value, allowed) do
    raise ArgumentError,
          "invalid value #{inspect(value)} for option #{inspect(key)}; allowed: #{allowed}"
  end

  ## Server

  @impl GenServer
  def init({run, options, starter, reply}) do
    Process.flag(:trap_exit, true)
    run = Tree.open(run)
    handle = %Handle{task: run.task, span: run.span, started_at: DateTime.utc_now()}
    # For calls from :on_output, which runs here.
    Process.put(__MODULE__, handle)
    Logger.metadata([os_pid: run.span.os_pid] ++ Keyword.get(options, :log_metadata, []))

    {:ok,
     %State{
       run: run,
       handle: handle,
       output: Output.new(options),
       exit_reason: options[:exit_reason] || (&exit_reason/1)
     }}
  rescue
    exception ->
      # No exit signal and no crash report: the starter is told.
      Process.unlink(starter)
      send(starter, {reply, exception})
      :ignore
  end

  defp exit_reason({:exit_status, 0}), do: :normal
  defp exit_reason(terminal), do: terminal

  @impl GenServer
  def handle_call(:handle, _from, state), do: {:reply, state.handle, state}

  @impl GenServer
  def handle_info(message, state) do
    case Tree.handle(state.run, message) do
      :unknown -> other(message, state)
      {element, run} -> element(element, %{state | run: run})
    end
  end

  defp element(nil, state), do: {:noreply, state}

  defp element({stream, _chunk} = element, state) when stream in [:stdout, :stderr] do
    case Output.deliver(state.output, element) do
      {:ok, output} ->
        {:noreply, %{state | output: output}}

      # It is not called again, for what the program says at its end.
      {:raised, failure, output} ->
        {:stop, stop_reason(failure), %{state | output: Output.mute(output)}}
    end
  end

  defp element(terminal, state) do
    Output.finish(state.output)
    {:stop, state.exit_reason.(terminal), state}
  catch
    # In the state that terminate/2 would get otherwise, the program has not ended.
    kind, reason -> {:stop, stop_reason({kind, reason, __STACKTRACE__}), state}
  end

  # As if it had been raised here.
  defp stop_reason({:exit, reason, _stacktrace}), do: reason
  defp stop_reason({:throw, value, stacktrace}), do: {{:nocatch, value}, stacktrace}
  defp stop_reason({:error, reason, stacktrace}), do: {reason, stacktrace}

  # As for a process that does not trap exits: :on_output may have linked it to others.
  defp other({:EXIT, _from, reason}, state) when reason != :normal, do: {:stop, reason, state}
  defp other(_message, state), do: {:noreply, state}

  @impl GenServer
  def terminate(_reason, %State{run: %{ended: true} = run}), do: Tree.close(run)

  def terminate(_reason, %State{run: run} = state) do
    Tree.escalate(run)
    grace = Config.limits_ms(run.config).kill_timeout
    state = drain(state, System.monotonic_time(:millisecond) + grace + @last_words)
    Output.finish(state.output)
    Tree.close(state.run)
  end

  # What the program says until it is gone, as long as there is time for it.
  defp drain(%State{run: %{ended: true}} = state, _deadline), do: state

  defp drain(%State{run: run} = state, deadline) do
    left = deadline - System.monotonic_time(:millisecond)

    if left <= 0 do
      state
    else
      receive do
        {:"$gen_call", from, :handle} ->
          GenServer.reply(from, state.handle)
          drain(state, deadline)

        message ->
          case Tree.handle(run, message) do
            {{stream, _} = element, run} when stream in [:stdout, :stderr] ->
              drain(%{state | run: run, output: last_words(state.output, element)}, deadline)

            {_, run} ->
              drain(%{state | run: run}, deadline)

            :unknown ->
              drain(state, deadline)
          end
      after
        min(left, @longest_wait) -> state
      end
    end
  end

  defp last_words(output, element) do
    case Output.deliver(output, element) do
      {:ok, output} ->
        output

      {:raised, {kind, reason, stacktrace}, output} ->
        Logger.error(
          "on_output failed while the server was stopped: " <>
            Exception.format(kind, reason, stacktrace)
        )

        Output.mute(output)
    end
  end
end
