defmodule BackgroundJobs do
  @moduledoc """
  A queue of programs, as an application keeps one for what takes longer than a request: a few run
  at a time, the others wait; whoever submitted one is told of its progress, line by line, and may
  cancel it.

      children = [{BackgroundJobs, name: Encoder, concurrency: 2}]
      Supervisor.start_link(children, strategy: :one_for_one)

      {:ok, job} = BackgroundJobs.submit(Encoder, ["/usr/bin/ffmpeg", "-i", path, out], timeout: 60_000)

      # In a LiveView or a channel:
      def handle_info({:job, _job, {:progress, line}}, socket), do: ...
      def handle_info({:job, _job, {:done, _}}, socket), do: ...

  ## Events

  `{:job, job, event}` comes to the process that submitted the job, or to `:notify`:

  | event | |
  |---|---|
  | `{:started, attempt}` | 1, 2, … |
  | `{:progress, line}` | of stdout and stderr, without its end |
  | `{:retry, exit, ms}` | it failed, and is tried again after so long |
  | `{:done, attempts}`, `{:failed, exit}`, `:cancelled` | the last one, exactly one of these. `exit` is `{:exit_status, n}`, `{:termsig, signal}`, or an exception: it could not be started |

  ## Rules

  1. A job runs in a task of its own under a `Task.Supervisor`. It reads the program's output as it
     comes. The queue itself never waits for a program.
  2. A job that waits for its next attempt takes no place. The pause doubles with each attempt.
  3. A program that could not be started is not tried again. Any end but status 0 is, up to
     `:attempts`; so is one at its deadline (`:timeout`, for each attempt).
  4. The last event comes when everything the program has started is gone.
  5. Cancelling sends SIGTERM to all of the job's processes, and after `:grace` ms SIGKILL.
  6. The queue is stopped, or fails: all programs are killed.
  """

  use Supervisor

  @type job :: reference
  @type server :: atom

  @doc "Options: `:name` (default: this module), `:concurrency` (default: 2)."
  def start_link(opts) do
    opts = Keyword.validate!(opts, name: __MODULE__, concurrency: 2)
    Supervisor.start_link(__MODULE__, opts, name: opts[:name])
  end

  @impl Supervisor
  def init(opts) do
    tasks = Module.concat(opts[:name], "Tasks")

    # A queue does not know the tasks of the one before it.
    Supervisor.init(
      [
        {Task.Supervisor, name: tasks},
        {BackgroundJobs.Queue,
         name: queue(opts[:name]), tasks: tasks, concurrency: opts[:concurrency]}
      ],
      strategy: :one_for_all
    )
  end

  @doc """
  `command` is any command of `Stdio.stream!/3`; a malformed one, or option, is an ArgumentError here.

  | option | default | |
  |---|---|---|
  | `:attempts`, `:backoff` | 1, 500 | ms before the second attempt |
  | `:grace` | 1000 | ms between SIGTERM and SIGKILL when it is cancelled |
  | `:notify` | the caller | |
  | `:behaviour`; any other | `Stdio.Process` | a module; as for `Stdio.stream!/3` |
  """
  @spec submit(server, Stdio.command(), keyword) :: {:ok, job}
  def submit(server, command, opts \\ []) do
    {own, config} = Keyword.split(opts, [:attempts, :backoff, :grace, :notify, :behaviour])

    job =
      Map.merge(
        %{attempts: 1, backoff: 500, grace: 1000, notify: self(), behaviour: Stdio.Process},
        Map.new(own)
      )

    if not is_atom(job.behaviour),
      do: raise(ArgumentError, "a behaviour has to be a module: #{inspect(job.behaviour)}")

    config = Keyword.merge([stdin: :null, stderr: :stdout], config)
    # A stream that nobody reads runs nothing; its arguments are checked all the same.
    Stdio.stream!(command, job.behaviour, config)
    GenServer.call(queue(server), {:submit, Map.merge(job, %{command: command, config: config})})
  end

  @doc "Returns when nothing of the job is left: `:ok`, or `{:error, :not_found}` if it has ended."
  @spec cancel(server, job) :: :ok | {:error, :not_found}
  def cancel(server, job), do: GenServer.call(queue(server), {:cancel, job}, :infinity)

  @doc "How many jobs run, and how many wait, for their turn or their next attempt."
  @spec counts(server) :: %{running: non_neg_integer, waiting: non_neg_integer}
  def counts(server), do: GenServer.call(queue(server), :counts)

  @doc "The events of a job that this process has submitted, up to the last one, as a stream."
  @spec events(server, job) :: Enumerable.t()
  def events(server, job) do
    Stream.resource(
      fn -> Process.monitor(queue(server)) end,
      fn
        :over -> {:halt, :over}
        monitor -> next_event(job, monitor)
      end,
      fn
        :over -> :ok
        monitor -> Process.demonitor(monitor, [:flush])
      end
    )
  end

  defp next_event(job, monitor) do
    receive do
      {:job, ^job, {kind, _} = event} when kind in [:done, :failed] -> last(event, monitor)
      {:job, ^job, :cancelled} -> last(:cancelled, monitor)
      {:job, ^job, event} -> {[event], monitor}
      {:DOWN, ^monitor, _, _, reason} -> exit({reason, {__MODULE__, :events, [job]}})
    end
  end

  defp last(event, monitor) do
    Process.demonitor(monitor, [:flush])
    {[event], :over}
  end

  defp queue(server), do: Module.concat(server, "Queue")
end

defmodule BackgroundJobs.Queue do
  @moduledoc false
  # Which job runs and which waits. `waiting` has the jobs whose turn it is, in order.

  use GenServer

  def start_link(opts), do: GenServer.start_link(__MODULE__, opts, Keyword.take(opts, [:name]))

  @impl GenServer
  def init(opts) do
    {:ok,
     %{
       tasks: opts[:tasks],
       concurrency: opts[:concurrency],
       waiting: :queue.new(),
       jobs: %{},
       running: %{}
     }}
  end

  @impl GenServer
  def handle_call({:submit, job}, _from, state) do
    ref = make_ref()
    job = Map.merge(job, %{ref: ref, attempt: 1, worker: nil, supervisor: nil, cancelled: []})
    {:reply, {:ok, ref}, state |> put(job) |> wait(ref) |> start_next()}
  end

  def handle_call({:cancel, ref}, from, state) do
    case state.jobs do
      %{^ref => %{worker: nil} = job} ->
        {:reply, :ok, finish(state, job, :cancelled)}

      %{^ref => job} ->
        if job.cancelled == [], do: cancel(state, job)
        {:noreply, put(state, %{job | cancelled: [from | job.cancelled]})}

      %{} ->
        {:reply, {:error, :not_found}, state}
    end
  end

  def handle_call(:counts, _from, state) do
    running = map_size(state.running)
    {:reply, %{running: running, waiting: map_size(state.jobs) - running}, state}
  end

  @impl GenServer
  # A worker has its supervisor, and is about to start the program.
  def handle_info({:supervisor, ref, supervisor}, state) do
    case state.jobs do
      %{^ref => job} -> {:noreply, put(state, %{job | supervisor: supervisor})}
      %{} -> {:noreply, state}
    end
  end

  # Its program is gone, with all that it had started.
  def handle_info({monitor, exit}, state) when is_map_key(state.running, monitor) do
    Process.demonitor(monitor, [:flush])
    {:noreply, ended(state, monitor, exit)}
  end

  # It was ended, and its tree is about to: what it has sent, it has sent before this.
  def handle_info({:DOWN, monitor, :process, _, reason}, state)
      when is_map_key(state.running, monitor) do
    %{supervisor: supervisor} = Map.fetch!(state.jobs, state.running[monitor])
    exit = RuntimeError.exception("its task ended: " <> Exception.format_exit(reason))
    queue = self()

    Task.Supervisor.start_child(state.tasks, fn ->
      await_end(supervisor)
      send(queue, {monitor, exit})
    end)

    {:noreply, state}
  end

  def handle_info({:again, ref}, state) when is_map_key(state.jobs, ref),
    do: {:noreply, state |> wait(ref) |> start_next()}

  def handle_info({:kill, ref}, state) do
    case state.jobs do
      %{^ref => job} -> kill(state, job)
      # It has ended in time.
      %{} -> :ok
    end

    {:noreply, state}
  end

  # Of a job that was cancelled meanwhile.
  def handle_info(_message, state), do: {:noreply, state}

  ## Its turn

  defp put(state, job), do: put_in(state.jobs[job.ref], job)
  defp wait(state, ref), do: %{state | waiting: :queue.in(ref, state.waiting)}

  defp start_next(%{running: running, concurrency: most} = state) when map_size(running) >= most,
    do: state

  defp start_next(state) do
    case :queue.out(state.waiting) do
      {{:value, ref}, waiting} ->
        state = %{state | waiting: waiting}

        case state.jobs do
          %{^ref => job} -> state |> start(job) |> start_next()
          # Cancelled.
          %{} -> start_next(state)
        end

      {:empty, _} ->
        state
    end
  end

  defp start(state, job) do
    queue = self()
    tell(job, {:started, job.attempt})
    worker = Task.Supervisor.async_nolink(state.tasks, fn -> work(job, queue) end)
    state = put(state, %{job | worker: worker})
    %{state | running: Map.put(state.running, worker.ref, job.ref)}
  end

  ## In the worker

  # With a supervisor of its own, by which others can signal all of the job's processes, and see when
  # they are gone.
  defp work(job, queue) do
    with {:ok, supervisor} <- job.behaviour.task(job.config) do
      send(queue, {:supervisor, job.ref, supervisor})
      behaviour = Stdio.with_supervisor(job.behaviour, supervisor)

      job.command
      |> Stdio.stream!(behaviour, job.config)
      |> Stdio.Stream.lines()
      |> Enum.reduce(nil, fn
        {:stdout, line}, _ -> tell(job, {:progress, String.trim_trailing(line, "\n")})
        {:stderr, line}, _ -> tell(job, {:progress, String.trim_trailing(line, "\n")})
        terminal, _ -> terminal
      end)
    else
      {:error, reason} ->
        Stdio.StreamError.exception(action: "supervisor", reason: reason, command: job.command)
    end
  rescue
    error in [Stdio.StreamError, Stdio.OpError] -> error
  end

  defp tell(job, event), do: send(job.notify, {:job, job.ref, event})

  ## Its end

  defp ended(state, monitor, exit) do
    {ref, running} = Map.pop!(state.running, monitor)
    state = %{state | running: running}
    job = Map.fetch!(state.jobs, ref)

    start_next(
      cond do
        job.cancelled != [] ->
          for from <- job.cancelled, do: GenServer.reply(from, :ok)
          finish(state, job, :cancelled)

        exit == {:exit_status, 0} ->
          finish(state, job, {:done, job.attempt})

        is_exception(exit) or job.attempt >= job.attempts ->
          finish(state, job, {:failed, exit})

        true ->
          pause = job.backoff * Integer.pow(2, job.attempt - 1)
          tell(job, {:retry, exit, pause})
          Process.send_after(self(), {:again, ref}, pause)
          put(state, %{job | attempt: job.attempt + 1, worker: nil, supervisor: nil})
      end
    )
  end

  defp finish(state, job, event) do
    tell(job, event)
    %{state | jobs: Map.delete(state.jobs, job.ref)}
  end

  ## Cancelling

  defp cancel(_state, %{supervisor: %Stdio{} = supervisor, grace: grace} = job) when grace > 0 do
    Stdio.reap(%Stdio.ProcessTree{supervisor: supervisor}, :sigterm)
    Process.send_after(self(), {:kill, job.ref}, grace)
  end

  # There is no program yet, or no patience with it.
  defp cancel(state, job), do: kill(state, job)

  # Everything that the worker owns ends with it.
  defp kill(_state, %{worker: nil}), do: :ok
  defp kill(state, job), do: Task.Supervisor.terminate_child(state.tasks, job.worker.pid)

  # A supervisor is the last of its tree.
  defp await_end(nil), do: :ok

  defp await_end(supervisor) do
    if Stdio.Task.pidof(supervisor.init) != :noproc do
      Process.sleep(5)
      await_end(supervisor)
    end
  end
end
