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

  alias Stdio.{AtExit, Command, Config, Launcher, Native, Op, ProcessTree, StreamError}
  alias Stdio.Stream.Feeder

  # Chunks: the most that are under way, and what is granted at a time.
  @credit 16
  @batch 8
  # ms. After the grace period of an escalation; the core gives up on a stuck helper before that.
  @stop_deadline 30_000
  # ms that a pipeline's other tasks have to end, once onexit has seen to it.
  @exit_deadline 10_000

  @died "The process died while it was set up. Look at the limits among its ops, and at who else " <>
          "may kill processes of its user."

  @enforce_keys [:command, :normal, :config, :phases]
  defstruct [
    :command,
    :normal,
    :config,
    :phases,
    :input,
    :ref,
    :supervisor,
    :pipeline,
    :task,
    :feeder,
    unacknowledged: 0,
    ended: false
  ]

  @doc "The lazy stream. `input` is `nil`, or `{:feed, enumerable}`."
  @spec stream(map) :: Enumerable.t()
  def stream(%{command: _, normal: _, config: _, phases: _, input: _} = run) do
    Stream.resource(fn -> start(struct!(__MODULE__, run)) end, &next/1, &stop/1)
  end

  defp start(%{normal: :empty} = run), do: raise_error(run, "subprocess", :enoent)

  defp start(%{phases: phases, config: config} = run) do
    if Config.get(config, :containment) == :cgroup do
      raise_error(run, "supervisor", :enotsup, "Containment by cgroup is not available here.")
    end

    supervisor =
      case phases.task.(config) do
        {:ok, %Stdio{} = supervisor} -> supervisor
        {:error, reason} -> raise_error(run, "supervisor", reason, hint(reason))
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
    init = phases.init.(config)
    ops = phases.ops.(config)

    prepare = fn pipeline ->
      %{task: task} = List.last(pipeline)
      Native.task_hold(task.ref, run.ref, Config.get(config, :max_chunk))
      Native.task_setcpid(task.ref, "flowcontrol", @credit)
      deadline(task, config)
      program(run)
    end

    case Op.exec!(run.supervisor, ops, init, onerror, prepare) do
      {:ok, pipeline} -> %{run | pipeline: pipeline, task: List.last(pipeline).task}
      # No errno of execve(2): nobody is there to make the call.
      {:error, :esrch} -> raise_error(run, "subprocess", :eagain, @died)
      {:error, reason} -> raise_error(run, "subprocess", reason)
    end
  end

  defp deadline(task, config) do
    case Config.limits_ms(config) do
      %{timeout: :infinity} ->
        :ok

      %{timeout: timeout, kill_timeout: grace} ->
        Native.task_deadline(task.ref, timeout, Config.kill_signal(config), grace)
    end
  end

  defp program(%{normal: %Command{} = command, config: config}) do
    {:stream, command.file, command.argv, Config.environ(config), command.search,
     Config.get(config, :stdin), Config.get(config, :stderr)}
  end

  defp feed(%{input: nil} = run), do: run

  defp feed(%{input: {:feed, enum}, task: task} = run) do
    sink = {&Native.task_write(task.ref, &1, &2), fn -> Native.task_eof(task.ref, :stdin) end}
    %{run | feeder: Feeder.start(enum, sink, run.ref)}
  end

  # A `task` callback can return no more than an errno. If it was the launcher's, the next attempt to
  # start one says what else there is to say.
  defp hint(reason) do
    case Launcher.ensure() do
      {:error, {^reason, hint}} -> hint
      _ -> nil
    end
  end

  @spec raise_error(%__MODULE__{}, String.t(), term, String.t() | nil) :: no_return
  defp raise_error(run, action, reason, hint \\ nil),
    do: raise(StreamError, action: action, reason: reason, command: run.command, hint: hint)

  defp next(%{ended: true} = run), do: {:halt, run}

  defp next(%{ref: ref, task: task, feeder: feeder} = run) do
    monitor = feeder && elem(feeder, 1)

    receive do
      {stream, ^task, chunk} when stream in [:stdout, :stderr] ->
        {[{stream, chunk}], acknowledge(run)}

      {^ref, :ended} ->
        end_tree(run)
        next(run)

      {terminal, ^task, value} when terminal in [:exit_status, :termsig] ->
        {[{terminal, value}], %{run | ended: true}}

      # Stream.resource/3 calls stop/1 before the consumer sees it.
      {^ref, :feed, kind, reason, stacktrace} ->
        :erlang.raise(kind, reason, stacktrace)

      {:DOWN, ^monitor, :process, _, :normal} ->
        next(%{run | feeder: nil})

      {:DOWN, ^monitor, :process, _, reason} ->
        exit(reason)
    end
  end

  defp acknowledge(%{unacknowledged: count} = run) when count == @batch - 1 do
    Stdio.Task.credit(run.task, @batch)
    %{run | unacknowledged: 0}
  end

  defp acknowledge(run), do: %{run | unacknowledged: run.unacknowledged + 1}

  # Rule 2, up to the terminal element.
  defp end_tree(%{phases: phases, supervisor: supervisor, pipeline: pipeline} = run) do
    tree = %ProcessTree{supervisor: supervisor, pipeline: pipeline}
    running? = phases.onexit.(run.config).(tree)
    if running?, do: await_others(pipeline, run.task)
  after
    if supervisor.atexit != :noshutdown, do: reap(supervisor)
    Native.task_release(run.task.ref)
  end

  defp await_others(pipeline, last) do
    for %{task: task} <- pipeline, task != last do
      receive do
        {terminal, ^task, _} when terminal in [:exit_status, :termsig] -> :ok
      after
        @exit_deadline -> :ok
      end
    end
  end

  defp reap(%Stdio{init: :noproc}), do: :ok
  defp reap(%Stdio{init: task}), do: Stdio.Task.__reap__(task)

  # After the last element, and when the consumer halts or raises before it.
  defp stop(run) do
    Feeder.stop(run.feeder, run.ref)
    unless run.ended, do: terminate(run)
  after
    try do
      AtExit.run(run.supervisor, run.pipeline)
    after
      flush_all(run)
    end
  end

  defp terminate(%{task: task, config: config} = run) do
    grace = Config.limits_ms(config).kill_timeout
    Native.task_setcpid(task.ref, "flowcontrol", -1)
    Native.task_terminate(task.ref, Config.kill_signal(config), grace)
    drop(run, grace + @stop_deadline)
  end

  # Reads on while the program ends: one that cleans up after itself may have a lot to say.
  defp drop(%{ref: ref, task: task} = run, timeout) do
    receive do
      {stream, ^task, _chunk} when stream in [:stdout, :stderr] ->
        drop(run, timeout)

      {^ref, :ended} ->
        try do
          end_tree(run)
        after
          drop(run, timeout)
        end

      {terminal, ^task, _} when terminal in [:exit_status, :termsig] ->
        :ok
    after
      timeout -> :ok
    end
  end

  defp flush_all(%{ref: ref, pipeline: pipeline, supervisor: supervisor}) do
    flush_ref(ref)
    for %{task: task} <- pipeline || [], do: flush(task)

    with %Stdio{init: %Stdio.Task{} = root, atexit: atexit} when atexit != :noshutdown <-
           supervisor,
         do: flush(root)
  end

  # A start that failed has no pipeline, but may have had tasks, which have ended on their own.
  defp flush_tree(%Stdio{init: %Stdio.Task{} = root, atexit: atexit})
       when atexit != :noshutdown do
    {:messages, messages} = Process.info(self(), :messages)

    for message <- messages,
        %Stdio.Task{ref: ref} = task when ref != nil <- [sender(message)],
        Native.task_same_tree(ref, root.ref),
        do: flush(task)
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

  defp flush(task) do
    receive do
      {_event, ^task, _} -> flush(task)
      {:signal, ^task, _, _} -> flush(task)
    after
      0 -> :ok
    end
  end
end
