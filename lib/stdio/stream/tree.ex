defmodule Stdio.Stream.Tree do
  @moduledoc false
  # The stream of a program that a behaviour starts: task, init, ops, exec, …, onexit, atexit.
  # `Stdio.Stream.Runner` does the same for the shipped Stdio.Process in one message; start, next and
  # stop are the functions of a Stream.resource/3 here too.
  #
  # Rules:
  #
  #   1. Every start has an undo: whatever fails after task/1, atexit runs, with pipeline [].
  #   2. When the program ends: onexit, then what is left of the tree is killed (not below a
  #      :noshutdown supervisor, which others share), then its pipes are read to their end, then
  #      comes the terminal element, then atexit.
  #   3. Messages of the pipeline's tasks are this stream's; all of them are gone at its end.
  #   4. What a callback raises at the end goes to the consumer, after everything was ended.

  alias Stdio.{
    AtExit,
    Command,
    Config,
    Launcher,
    Native,
    Op,
    ProcessTree,
    StreamError,
    Telemetry
  }

  alias Stdio.Container.Hint
  alias Stdio.Stream.Feeder

  # Chunks: the most that are under way, and what is granted at a time.
  @credit 16
  @batch 8
  # ms. After the grace period of an escalation; the core gives up on a stuck helper before that.
  @stop_deadline 30_000
  # The longest that a receive can wait: 49 days.
  @longest_wait 0xFFFF_FFFF
  # ms that a pipeline's other tasks have to end, once onexit has seen to it.
  @exit_deadline 10_000

  @died "The process died while it was set up. Look at the limits among its ops, and at who else " <>
          "may kill processes of its user."

  @events [:stdout, :stderr, :exit_status, :termsig]

  @enforce_keys [:command, :normal, :config, :phases, :behaviour]
  defstruct [
    :command,
    :normal,
    :config,
    :phases,
    :behaviour,
    :input,
    :ref,
    :supervisor,
    :pipeline,
    :task,
    :feeder,
    :span,
    # the terminal element, once it is known
    :exit,
    unacknowledged: 0,
    ended: false
  ]

  @type t :: %__MODULE__{}

  @doc "The lazy stream. `input` is `nil`, or `{:feed, enumerable}`."
  @spec stream(map) :: Enumerable.t()
  def stream(%{command: _, normal: _, config: _, phases: _, input: _} = run) do
    Stream.resource(fn -> open(run) end, &next/1, &close/1)
  end

  @doc """
  Starts the program in the calling process, which gets its messages; see `handle/2`. Raises as the
  stream does.
  """
  @spec open(map) :: t
  def open(run) do
    start = fn span -> start(struct!(__MODULE__, Map.put(run, :span, span))) end
    Telemetry.span(run, run.phases.init, start)
  end

  defp start(%{normal: :empty} = run), do: raise_error(run, "subprocess", :enoent)

  defp start(%{phases: phases, config: config} = run) do
    supervisor =
      case phases.task.(config) do
        {:ok, %Stdio{} = supervisor} -> supervisor
        {:error, reason} -> raise_error(run, "supervisor", reason, hint(reason, phases, config))
      end

    started(%{run | ref: make_ref(), supervisor: supervisor})
  end

  defp started(%{supervisor: supervisor} = run) do
    run |> execute() |> feed()
  catch
    kind, reason ->
      AtExit.run(supervisor, [])
      flush_all(run)
      flush_tree(supervisor)
      :erlang.raise(kind, reason, __STACKTRACE__)
  end

  defp execute(%{phases: phases, config: config} = run) do
    onerror = phases.onerror.(config)
    init = namespace(run, phases.init.(config))
    ops = phases.ops.(config)

    hold = if acts_at_end?(run, init), do: run.ref
    stream = {hold, Config.get(config, :max_chunk), @credit, deadline(config)}

    case Op.exec!(run.supervisor, ops, init, onerror, program(run), stream) do
      {:ok, pipeline} ->
        %{task: task, pid: pid} = List.last(pipeline)
        span = %{run.span | containment: Native.task_containment(task.ref)}
        %{run | pipeline: pipeline, task: task, span: Telemetry.started(span, pid)}

      # No errno of execve(2): nobody is there to make the call.
      {:error, :esrch} ->
        raise_error(run, "subprocess", :eagain, @died)

      {:error, reason} ->
        raise_error(run, "subprocess", reason)
    end
  end

  # Whether rule 2 has anything to do between the end of the program and that of its pipes. The shipped
  # onexit ends a program that has not, which is the only one here.
  defp acts_at_end?(%{phases: phases, supervisor: supervisor}, init) do
    not (supervisor.atexit == :noshutdown and init == (&Stdio.Syscall.__fork__/1) and
           phases.onexit == (&Stdio.Process.onexit/1))
  end

  # Containment that was asked for and is not to be had is the supervisor's failure.
  defp namespace(%{phases: %{init: phase}, config: config} = run, init) do
    if phase == (&Stdio.Process.init/1) and Config.get(config, :containment) == :pid_namespace do
      fn supervisor ->
        with {:error, reason} <- init.(supervisor),
             do: raise_error(run, "supervisor", :enotsup, Hint.pid_namespace(reason))
      end
    else
      init
    end
  end

  # From exec on.
  defp deadline(config) do
    case Config.limits_ms(config) do
      %{timeout: :infinity} -> nil
      %{timeout: timeout, kill_timeout: grace} -> {timeout, Config.kill_signal(config), grace}
    end
  end

  defp program(%{normal: %Command{} = command, config: config}) do
    {:stream, command.file, command.argv, Config.environ(config), command.search,
     Config.get(config, :stdin), Config.get(config, :stderr)}
  end

  defp feed(%{input: nil} = run), do: run

  defp feed(%{input: {:feed, enum}, task: task} = run) do
    sink =
      {&Native.task_write(task.ref, &1, &2), fn -> Native.task_eof(task.ref, :stdin) end,
       &Telemetry.count(run.span, :stdin, &1)}

    %{run | feeder: Feeder.start(enum, sink, run.ref)}
  end

  # A `task` callback can return no more than an errno.
  defp hint(reason, phases, config) do
    asked? = Config.get(config, :containment) != :auto

    Stdio.Op.hint(phases.task, :__task_hint__, reason) ||
      if reason == :enotsup and asked?, do: containment_hint(), else: launcher_hint(reason)
  end

  defp containment_hint do
    "The containment that was asked for cannot be had, or is not that of the supervisor given. " <>
      "A cgroup takes Linux 5.14, cgroup v2, and a helper that may make one below its own: root, " <>
      "or a delegated one (systemd: Delegate=yes)."
  end

  # If it was the launcher's, the next attempt to start one says what else there is to say.
  defp launcher_hint(reason) do
    case Launcher.ensure() do
      {:error, {^reason, hint}} -> hint
      _ -> nil
    end
  end

  @spec raise_error(%__MODULE__{}, String.t(), term) :: no_return
  @spec raise_error(%__MODULE__{}, String.t(), term, String.t() | nil) :: no_return
  defp raise_error(run, action, reason, hint \\ nil),
    do: raise(StreamError, action: action, reason: reason, command: run.command, hint: hint)

  defp next(%{ended: true} = run), do: {:halt, run}

  defp next(%{ref: ref, task: task, feeder: feeder} = run) do
    monitor = feeder && elem(feeder, 1)

    receive do
      {event, ^task, _} = message when event in @events ->
        element(handle(run, message))

      {^ref, :ended} = message ->
        element(handle(run, message))

      # Stream.resource/3 calls close/1 before the consumer sees it.
      {^ref, :feed, kind, reason, stacktrace} ->
        Telemetry.failed(run.span, kind, reason, stacktrace)
        :erlang.raise(kind, reason, stacktrace)

      {:DOWN, ^monitor, :process, _, :normal} ->
        next(%{run | feeder: nil})

      {:DOWN, ^monitor, :process, _, reason} ->
        Telemetry.failed(run.span, :exit, reason, [])
        exit(reason)
    end
  end

  defp element({nil, run}), do: next(run)
  defp element({element, run}), do: {[element], run}

  @doc """
  What a message of the program means: an element, or `nil`; `:unknown` if it is none of its.

  The terminal element makes the run `ended`. What is left of the tree is ended in this call.
  """
  @spec handle(t, term) :: {Stdio.element() | nil, t} | :unknown
  def handle(%{task: task} = run, {stream, task, chunk}) when stream in [:stdout, :stderr] do
    Telemetry.count(run.span, stream, chunk)
    {{stream, chunk}, acknowledge(run)}
  end

  def handle(%{task: task} = run, {terminal, task, value})
      when terminal in [:exit_status, :termsig] do
    exit = {terminal, value}
    {exit, %{run | exit: exit, ended: true}}
  end

  def handle(%{ref: ref} = run, {ref, :ended}) do
    :ok = end_tree(run)
    {nil, run}
  end

  def handle(_run, _message), do: :unknown

  defp acknowledge(%{unacknowledged: count} = run) when count == @batch - 1 do
    Stdio.Task.credit(run.task, @batch)
    %{run | unacknowledged: 0}
  end

  defp acknowledge(run), do: %{run | unacknowledged: run.unacknowledged + 1}

  # Rule 2, up to the terminal element.
  defp end_tree(%{phases: phases, supervisor: supervisor, pipeline: pipeline} = run) do
    tree = %ProcessTree{supervisor: supervisor, pipeline: pipeline}
    running? = phases.onexit.(run.config).(tree)
    if running?, do: await_others(pipeline, run.task), else: :ok
  after
    # Whatever onexit does, the terminal element is not to be waited for in vain.
    _ = if supervisor.atexit != :noshutdown, do: reap(supervisor)
    Native.task_release(run.task.ref)
  end

  defp await_others(pipeline, last) do
    Enum.each(for(%{task: task} <- pipeline, task != last, do: task), fn task ->
      receive do
        {terminal, ^task, _} when terminal in [:exit_status, :termsig] -> :ok
      after
        @exit_deadline -> :ok
      end
    end)
  end

  defp reap(%Stdio{init: :noproc}), do: :ok
  defp reap(%Stdio{init: task}), do: Stdio.Task.__reap__(task)

  @doc "After the last element, and when the consumer halts or raises before it."
  @spec close(t) :: :ok
  def close(run) do
    Feeder.stop(run.feeder, run.ref)
    exit = if run.ended, do: run.exit, else: terminate(run)
    Telemetry.stopped(run.span, exit, Stdio.Task.rusage(run.task))
    :ok
  after
    try do
      AtExit.run(run.supervisor, run.pipeline)
    after
      flush_all(run)
    end
  end

  @doc "Begins the kill escalation. Its messages come as before, to their end."
  @spec escalate(t) :: :ok
  def escalate(%{task: task, config: config}) do
    grace = Config.limits_ms(config).kill_timeout
    Native.task_terminate(task.ref, Config.kill_signal(config), grace)
  end

  defp terminate(%{task: task, config: config} = run) do
    Native.task_setcpid(task.ref, "flowcontrol", -1)
    escalate(run)
    grace = Config.limits_ms(config).kill_timeout
    drop(run, min(grace + @stop_deadline, @longest_wait))
  end

  # Reads on while the program ends: one that cleans up after itself may have a lot to say.
  defp drop(%{ref: ref, task: task} = run, timeout) do
    receive do
      {stream, ^task, _chunk} when stream in [:stdout, :stderr] ->
        drop(run, timeout)

      {^ref, :ended} ->
        try do
          end_tree(run)
        catch
          kind, reason ->
            _ = drop(run, timeout)
            :erlang.raise(kind, reason, __STACKTRACE__)
        else
          :ok -> drop(run, timeout)
        end

      {terminal, ^task, value} when terminal in [:exit_status, :termsig] ->
        {terminal, value}
    after
      timeout -> {:termsig, :sigkill}
    end
  end

  defp flush_all(%{ref: ref, pipeline: pipeline, supervisor: supervisor}) do
    flush_ref(ref)
    for %{task: task} <- pipeline || [], do: Stdio.Task.__flush__(task)

    with %Stdio{init: %Stdio.Task{} = root, atexit: atexit} when atexit != :noshutdown <-
           supervisor,
         do: Stdio.Task.__flush__(root)
  end

  # A start that failed has no pipeline, but may have had tasks, which have ended on their own.
  defp flush_tree(%Stdio{init: %Stdio.Task{} = root, atexit: atexit})
       when atexit != :noshutdown do
    # It does not show what has come since the last receive (seen on OTP 25), which flush_all/1 has made.
    {:messages, messages} = Process.info(self(), :messages)

    for message <- messages,
        %Stdio.Task{ref: ref} = task when ref != nil <- [sender(message)],
        Native.task_same_tree(ref, root.ref),
        do: Stdio.Task.__flush__(task)

    :ok
  end

  defp flush_tree(_shared), do: :ok

  defp sender({_event, %Stdio.Task{} = task, _}), do: task
  defp sender({:signal, %Stdio.Task{} = task, _, _}), do: task
  defp sender(_), do: nil

  defp flush_ref(ref) do
    receive do
      {^ref, :ended} -> flush_ref(ref)
    after
      0 -> :ok
    end
  end
end
