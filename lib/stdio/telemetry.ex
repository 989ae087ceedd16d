defmodule Stdio.Telemetry do
  @moduledoc """
  Events about programs, for [telemetry](https://hexdocs.pm/telemetry).

  They are emitted by every program of `Stdio.stream!/3`, `Stdio.pipe!/4`, `Stdio.cmd/3` and
  `Stdio.Daemon`, in the process that reads its output, when the module `:telemetry` is loaded. It
  is no dependency: without it nothing is emitted.

  | event | when | measurements |
  |---|---|---|
  | `[:stdio, :process, :start]` | it executes | `system_time`, `monotonic_time` |
  | `[:stdio, :process, :stop]` | it has ended, by itself or because its reader wanted no more | `duration`, `stdin_bytes`, `stdout_bytes`, `stderr_bytes`, `cpu_user`, `cpu_system`, `max_rss` |
  | `[:stdio, :process, :exception]` | it could not be started, or the enumerable that feeds it failed: instead of `:stop` | `duration` |

  Times are in native units, sizes in bytes. `stdout_bytes` and `stderr_bytes` are those that were
  delivered, `stdin_bytes` those that were accepted. CPU time and memory are of the program and the
  descendants it waited for, as [getrusage(2)](https://man7.org/linux/man-pages/man2/getrusage.2.html)
  counts them; 0 if they could not be learned.

  | metadata | |
  |---|---|
  | `:command`, `:behaviour` | as they were given |
  | `:os_pid` | see `Stdio.Daemon.os_pid/1`; `nil` if it could not be started |
  | `:containment` | what guards its tree: `:best_effort`, `:pid_namespace` or `:cgroup` |
  | `:exit` | of `:stop`: the terminal element |
  | `:kind`, `:reason`, `:stacktrace` | of `:exception` |

  A reader that is killed emits no more.

      :telemetry.attach("slow", [:stdio, :process, :stop], &MyApp.log_slow/4, nil)
  """

  defmodule Span do
    @moduledoc false
    # One program, from its start to its end. `counters`: bytes of stdin, stdout and stderr, and
    # whether the last event was emitted. They are shared, as writers count in processes of their own.

    @enforce_keys [:command, :behaviour, :containment, :began, :counters]
    defstruct [:command, :behaviour, :containment, :began, :counters, :os_pid]

    @type t :: %__MODULE__{
            command: Stdio.command(),
            behaviour: Stdio.behaviour(),
            containment: :best_effort | :pid_namespace | :cgroup,
            began: integer,
            counters: :counters.counters_ref(),
            os_pid: pos_integer | nil
          }
  end

  @slots %{stdin: 1, stdout: 2, stderr: 3}
  @over 4

  @doc false
  # Calls `start` with the span of a program that is about to be started.
  @spec span(map, (Stdio.Config.t() -> term), (Span.t() -> run)) :: run when run: term
  def span(%{command: command, behaviour: behaviour, config: config}, init, start) do
    span = %Span{
      command: command,
      behaviour: behaviour,
      containment: containment(init, config),
      began: System.monotonic_time(),
      counters: :counters.new(@over, [])
    }

    try do
      start.(span)
    catch
      kind, reason ->
        failed(span, kind, reason, __STACKTRACE__)
        :erlang.raise(kind, reason, __STACKTRACE__)
    end
  end

  # Until it is started, and the tree itself can be asked.
  defp containment(init, config) do
    asked = Stdio.Config.get(config, :containment)
    container? = init == (&Stdio.Container.init/1) or init == (&Stdio.Rootless.init/1)

    cond do
      asked in [:cgroup, :pid_namespace] -> asked
      container? -> :pid_namespace
      true -> :best_effort
    end
  end

  @doc false
  @spec started(Span.t(), pos_integer) :: Span.t()
  def started(span, os_pid) do
    now = System.monotonic_time()
    span = %{span | os_pid: os_pid, began: now}

    emit(:start, span, fn ->
      {%{system_time: System.system_time(), monotonic_time: now}, %{}}
    end)

    span
  end

  @doc false
  # `usage` is what Stdio.Task.rusage/1 says.
  @spec stopped(Span.t(), tuple, map | nil) :: :ok
  def stopped(span, exit, usage) do
    over(:stop, span, fn ->
      usage = usage || %{utime_us: 0, stime_us: 0, maxrss_kib: 0}

      measurements =
        Map.merge(bytes(span), %{
          duration: System.monotonic_time() - span.began,
          cpu_user: System.convert_time_unit(usage.utime_us, :microsecond, :native),
          cpu_system: System.convert_time_unit(usage.stime_us, :microsecond, :native),
          max_rss: usage.maxrss_kib * 1024
        })

      {measurements, %{exit: exit}}
    end)
  end

  @doc false
  @spec failed(Span.t(), :error | :exit | :throw, term, list) :: :ok
  def failed(span, kind, reason, stacktrace) do
    over(:exception, span, fn ->
      {%{duration: System.monotonic_time() - span.began},
       %{kind: kind, reason: reason, stacktrace: stacktrace}}
    end)
  end

  @doc false
  @spec count(Span.t(), :stdin | :stdout | :stderr, binary) :: :ok
  def count(%Span{counters: counters}, stream, chunk),
    do: :counters.add(counters, Map.fetch!(@slots, stream), byte_size(chunk))

  @doc false
  @spec bytes(Span.t()) :: %{
          stdin_bytes: non_neg_integer,
          stdout_bytes: non_neg_integer,
          stderr_bytes: non_neg_integer
        }
  def bytes(%Span{counters: counters}) do
    %{
      stdin_bytes: :counters.get(counters, @slots.stdin),
      stdout_bytes: :counters.get(counters, @slots.stdout),
      stderr_bytes: :counters.get(counters, @slots.stderr)
    }
  end

  # One of :stop and :exception, once.
  defp over(event, %Span{counters: counters} = span, fun) do
    if :counters.get(counters, @over) == 0 do
      :counters.add(counters, @over, 1)
      emit(event, span, fun)
    end

    :ok
  end

  defp emit(event, span, fun) do
    if function_exported?(:telemetry, :execute, 3) do
      {measurements, more} = fun.()
      metadata = Map.take(span, [:command, :behaviour, :os_pid, :containment])

      apply(:telemetry, :execute, [
        [:stdio, :process, event],
        measurements,
        Map.merge(metadata, more)
      ])
    end
  end
end
