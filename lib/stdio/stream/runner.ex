defmodule Stdio.Stream.Runner do
  @moduledoc false
  # The stream of one program, in the process that enumerates it. It has no process of its own:
  # start, next and stop are the functions of a Stream.resource/3.
  #
  # Rules:
  #
  #   1. Every message of a program carries its reference, and exactly one of them is the last.
  #      stop/1 takes them all, so none stays in the mailbox.
  #   2. A stream (stdout, stderr) is either armed, and a message will bring its next chunk, or in
  #      hand, and is read by a call. Reading an empty one arms it. So a busy program costs no
  #      messages, and a slow consumer holds at most one chunk of each stream. A stream whose last
  #      chunk came at once is looked at some more times first: a thread need not be woken for it.
  #   3. After :exit both are in hand and are read to their end. A process that has escaped and
  #      holds a pipe is waited for @escaped_grace at most.
  #   4. A start that fails raises here, after everything was undone.

  require Logger

  alias Stdio.{Command, Config, Launcher, Native, OpError, Rusage, StreamError, Telemetry}
  alias Stdio.Stream.Feeder

  # From here on copying arguments and environment takes a while: dirty I/O.
  @large 64 * 1024
  # ms, CONTRACT 6.2; and between two looks at such a pipe.
  @escaped_grace 100
  @escaped_pause 5
  # While a program keeps its consumer busy, its mailbox is looked at after so many chunks.
  @look 16
  # A message that came so soon after the stream was armed (µs), how many looks that is worth, and for
  # how long at most: on a busy BEAM others may run between two of them.
  @soon 100
  @looks 32
  @look_for 1000
  # After the grace period of an escalation. The core gives up on a stuck helper before that.
  @stop_deadline 30_000
  # The longest that a receive can wait: 49 days.
  @longest_wait 0xFFFF_FFFF

  @enforce_keys [:command, :normal, :config, :behaviour]
  defstruct [
    :command,
    :normal,
    :config,
    :behaviour,
    :privilege,
    :input,
    :handle,
    :ref,
    :feeder,
    :span,
    # streams to read, next one first
    in_hand: [],
    # chunks read since the mailbox was looked at
    reads: 0,
    # more reads of an empty stream before it is armed
    looks: 0,
    # until when, monotonic µs
    look_until: 0,
    # monotonic µs of the last arming
    armed_at: nil,
    # the terminal element, once it is known
    exit: nil,
    # what it used, likewise
    usage: nil,
    # monotonic ms until which pipes are waited for after the end
    give_up: nil,
    # streams without an end, after the end
    held: [],
    ended: false
  ]

  @doc "The lazy stream. `input` is `nil`, or `{:feed, enumerable}`."
  @spec stream(map) :: Enumerable.t()
  def stream(%{command: _, normal: _, config: _, behaviour: _, input: _} = run) do
    start = fn span -> start(struct!(__MODULE__, Map.put(run, :span, span))) end
    Stream.resource(fn -> Telemetry.span(run, &Stdio.Process.init/1, start) end, &next/1, &stop/1)
  end

  defp start(%__MODULE__{normal: :empty} = run), do: raise_error(run, "subprocess", :enoent)

  defp start(run) do
    %{run | privilege: Launcher.privilege()}
    |> execute(Stdio.Process.ops(run.config), 2)
    |> feed()
  end

  # A launcher may die while it starts the program, of which nothing has run then: once more.
  defp execute(run, ops, tries) do
    run = spawn_program(%{run | ref: make_ref()}, spec(run, ops), ops)

    case await_start(run, ops) do
      {:ok, os_pid} -> %{run | span: Telemetry.started(run.span, os_pid)}
      :launcher when tries > 1 -> execute(run, ops, tries - 1)
      :launcher -> spawn_error(run, :launcher, ops)
    end
  end

  defp feed(%{input: nil} = run), do: run

  defp feed(%{input: {:feed, enum}} = run) do
    %{run | feeder: Feeder.start(enum, sink(run), run.ref)}
  catch
    # No process to be had: the program has started, and nobody would stop it.
    kind, reason ->
      stop(run)
      :erlang.raise(kind, reason, __STACKTRACE__)
  end

  defp sink(%{handle: handle, span: span}) do
    {&Native.write(handle, &1, &2), fn -> Native.close_stdin(handle) end,
     &Telemetry.count(span, :stdin, &1)}
  end

  defp spec(%{normal: %Command{} = command, config: config, privilege: privilege}, ops) do
    limits = Config.limits_ms(config)

    %{
      privilege: privilege,
      file: command.file,
      argv: command.argv,
      env: Config.environ(config),
      search: command.search,
      steps: Enum.map(ops, &step/1),
      net: Config.get(config, :net),
      pid_namespace: Config.get(config, :containment) == :pid_namespace,
      stdin: Config.get(config, :stdin),
      stderr: Config.get(config, :stderr),
      timeout: if(limits.timeout == :infinity, do: nil, else: limits.timeout),
      kill_signal: Config.kill_signal(config),
      kill_timeout: limits.kill_timeout,
      max_chunk: Config.get(config, :max_chunk)
    }
  end

  defp step({name, args}), do: {name, args, [], true}

  defp spawn_program(run, spec, ops) do
    large? = :erlang.external_size(spec) > @large

    case native_spawn(spec, run.ref, large?) do
      {:ok, handle} ->
        %{run | handle: handle}

      # None yet, or it has died since: start one, once.
      {:error, :launcher} ->
        launch(run)

        case native_spawn(spec, run.ref, large?) do
          {:ok, handle} -> %{run | handle: handle}
          {:error, reason} -> spawn_error(run, reason, ops)
        end

      {:error, reason} ->
        spawn_error(run, reason, ops)
    end
  end

  defp native_spawn(spec, ref, false), do: Native.spawn(spec, ref)
  defp native_spawn(spec, ref, true), do: Native.spawn_large(spec, ref)

  defp launch(run) do
    case Launcher.ensure(run.privilege) do
      :ok -> :ok
      {:error, {reason, hint}} -> raise_error(run, "supervisor", reason, hint)
    end
  end

  @spec spawn_error(%__MODULE__{}, term, list) :: no_return
  defp spawn_error(_run, {:step, index, reason}, ops) do
    step_error(ops, index, fn {module, fun, args} = made, remaining ->
      case reason do
        :enotsup ->
          OpError.failed(:enotsup, made, remaining)

        :undef ->
          error = %UndefinedFunctionError{module: module, function: fun, arity: length(args)}
          OpError.raised({:error, error, []}, made, remaining)

        {:badarg, _position} ->
          OpError.raised({:error, %ArgumentError{}, []}, made, remaining)
      end
    end)
  end

  # Larger than any message may be, so larger than the kernel would take.
  defp spawn_error(run, :e2big, _ops), do: raise_error(run, "subprocess", :e2big)

  defp spawn_error(run, reason, _ops),
    do: raise_error(run, "supervisor", supervisor_reason(reason), supervisor_hint(reason))

  defp supervisor_reason(:launcher), do: :eagain
  defp supervisor_reason(:enfile), do: :emfile
  defp supervisor_reason(reason), do: reason

  defp supervisor_hint(reason) when reason in [:emfile, :enfile] do
    "No descriptors are left: a running program takes up to four. Raise `ulimit -n` before the " <>
      "BEAM starts (its hard limit counts), or run fewer programs at once."
  end

  defp supervisor_hint(:etimedout),
    do: "The helper did not answer within 5 seconds. Is the machine overloaded?"

  defp supervisor_hint(:eagain),
    do: "The helper could not fork, or died. Raise the limit of processes (`ulimit -u`)."

  defp supervisor_hint(_), do: nil

  # The core has a deadline for a helper that does not answer, so this wait ends.
  defp await_start(%{ref: ref} = run, ops) do
    receive do
      {^ref, :started, os_pid} ->
        {:ok, os_pid}

      {^ref, :failed, place, reason} ->
        drop_output(ref)
        if place == :launcher, do: :launcher, else: start_error(run, place, reason, ops)
    end
  end

  # Of a program that was executed, which was not heard of in time.
  defp drop_output(ref) do
    receive do
      {^ref, {_stream, _chunk}} -> drop_output(ref)
    after
      0 -> :ok
    end
  end

  @spec start_error(%__MODULE__{}, term, atom, list) :: no_return
  defp start_error(run, :supervisor, reason, _ops),
    do: raise_error(run, "supervisor", supervisor_reason(reason), supervisor_hint(reason))

  defp start_error(run, :exec, reason, _ops), do: raise_error(run, "subprocess", reason)

  defp start_error(_run, {:step, index}, reason, ops),
    do: step_error(ops, index, &OpError.failed(reason, &1, &2))

  defp start_error(run, place, reason, _ops) when place in [:fork, :setup] do
    if Config.get(run.config, :containment) == :pid_namespace do
      raise_error(run, "supervisor", :enotsup, Stdio.Container.Hint.pid_namespace(reason))
    else
      raise OpError.fork(reason)
    end
  end

  defp start_error(run, {kind, _} = death, reason, _ops) when kind in [:signal, :exit_status] do
    hint =
      "The process died while it was set up (#{inspect(terminal(death))}). Look at the limits " <>
        "among its options, and at who else may kill processes of its user."

    raise_error(run, "subprocess", reason, hint)
  end

  # As Stdio.Op.Runner has it: the message shows the call, the field `op` what was written. The task
  # had no handle here, and is dead.
  @spec step_error(list, non_neg_integer, ({module, atom, list}, list -> OpError.t())) ::
          no_return
  defp step_error(ops, index, error) do
    {{fun, args}, remaining} = ops |> Enum.drop(index) |> List.pop_at(0)
    error = error.({Stdio.Task, fun, [%Stdio.Task{ref: nil} | args]}, remaining)
    raise %{error | op: {Stdio.Task, fun, args}}
  end

  @spec raise_error(%__MODULE__{}, String.t(), atom) :: no_return
  @spec raise_error(%__MODULE__{}, String.t(), atom, String.t() | nil) :: no_return
  defp raise_error(run, action, reason, hint \\ nil) do
    raise StreamError, action: action, reason: reason, command: run.command, hint: hint
  end

  defp next(%{ended: true} = run), do: {:halt, run}

  defp next(%{in_hand: [stream | others], reads: reads} = run) when reads < @look do
    again? = run.looks > 0 and run.exit == nil

    case read(run, stream, again?) do
      chunk when is_binary(chunk) ->
        Telemetry.count(run.span, stream, chunk)
        run = %{run | in_hand: others ++ [stream], reads: reads + 1}
        {[{stream, chunk}], if(run.looks > 0, do: look_again(run), else: run)}

      :empty when again? ->
        :erlang.yield()
        looks = if now() < run.look_until, do: run.looks - 1, else: 0
        next(%{run | in_hand: others ++ [stream], reads: reads + 1, looks: looks})

      :empty when run.exit != nil ->
        next(%{run | in_hand: others, held: [stream | run.held]})

      :empty ->
        next(%{run | in_hand: others, armed_at: now()})

      :eof ->
        next(%{run | in_hand: others})
    end
  end

  defp next(%{in_hand: []} = run), do: wait(run, timeout(run))
  defp next(run), do: wait(%{run | reads: 0}, 0)

  # One that was found empty is asked first: a read would hold up the program's writes.
  defp read(%{looks: looks} = run, stream, true) when looks < @looks do
    if Native.readable(run.handle, stream),
      do: Native.read(run.handle, stream, true),
      else: :empty
  end

  defp read(run, stream, again?), do: Native.read(run.handle, stream, again?)

  defp timeout(%{exit: nil}), do: :infinity
  defp timeout(%{held: []}), do: 0
  defp timeout(_run), do: @escaped_pause

  defp wait(%{ref: ref, feeder: feeder} = run, timeout) do
    monitor = feeder && elem(feeder, 1)

    receive do
      {^ref, {stream, chunk} = element} when stream in [:stdout, :stderr] ->
        Telemetry.count(run.span, stream, chunk)
        run = %{run | in_hand: run.in_hand ++ [stream]}
        {[element], if(soon?(run), do: look_again(run), else: %{run | looks: 0})}

      {^ref, :exit, exit, usage, survivors} ->
        warn(run, survivors)
        give_up = System.monotonic_time(:millisecond) + @escaped_grace
        run = %{run | exit: terminal(exit), usage: Rusage.new(usage)}
        next(%{run | give_up: give_up, in_hand: [:stdout, :stderr]})

      # Stream.resource/3 calls stop/1 before the consumer sees it.
      {^ref, :feed, kind, reason, stacktrace} ->
        Telemetry.failed(run.span, kind, reason, stacktrace)
        :erlang.raise(kind, reason, stacktrace)

      {:DOWN, ^monitor, :process, _, :normal} ->
        next(%{run | feeder: nil})

      # Killed from outside, for instance through a link that the enumerable had made.
      {:DOWN, ^monitor, :process, _, reason} ->
        Telemetry.failed(run.span, :exit, reason, [])
        exit(reason)
    after
      timeout -> waited(run)
    end
  end

  defp soon?(%{armed_at: armed_at}), do: armed_at != nil and now() - armed_at < @soon
  defp look_again(run), do: %{run | looks: @looks, look_until: now() + @look_for}
  defp now, do: System.monotonic_time(:microsecond)

  defp warn(_run, 0), do: :ok

  # Another user's, behind a setuid program: only that user or root can end them.
  defp warn(run, survivors) do
    Logger.warning(
      "#{survivors} processes of #{inspect(run.command)} could not be killed: they belong to " <>
        "another user, or the machine was too busy for it"
    )
  end

  defp waited(%{in_hand: [_ | _]} = run), do: next(run)
  defp waited(%{held: []} = run), do: finish(run)

  defp waited(run) do
    if System.monotonic_time(:millisecond) < run.give_up do
      next(%{run | in_hand: run.held, held: []})
    else
      Native.close_outputs(run.handle)
      finish(run)
    end
  end

  defp finish(run), do: {[run.exit], %{run | ended: true}}

  defp terminal({:exit_status, status}), do: {:exit_status, status}
  defp terminal({:signal, signal}), do: {:termsig, Stdio.Signal.signal_name(signal)}

  # Runs after the last element, and when the consumer halts or raises before it.
  defp stop(%{ended: true} = run) do
    Feeder.stop(run.feeder, run.ref)
    Telemetry.stopped(run.span, run.exit, run.usage)
  end

  defp stop(%{exit: nil} = run) do
    Feeder.stop(run.feeder, run.ref)
    grace = Config.limits_ms(run.config).kill_timeout
    Native.stop(run.handle, Config.kill_signal(run.config), grace)
    {exit, usage} = drop(run, min(grace + @stop_deadline, @longest_wait))
    Native.close_outputs(run.handle)
    Telemetry.stopped(run.span, exit, usage)
  end

  # It has ended, and the consumer does not want the rest.
  defp stop(run) do
    Feeder.stop(run.feeder, run.ref)
    Native.close_outputs(run.handle)
    Telemetry.stopped(run.span, run.exit, run.usage)
  end

  defp drop(%{ref: ref} = run, timeout) do
    receive do
      {^ref, {_stream, _chunk}} ->
        drop(run, timeout)

      {^ref, :exit, exit, usage, survivors} ->
        warn(run, survivors)
        {terminal(exit), Rusage.new(usage)}
    after
      timeout -> {{:termsig, :sigkill}, nil}
    end
  end
end
