defmodule Stdio do
  @external_resource "README.md"
  @moduledoc """
  Runs programs, streams what they write, feeds what they read, and leaves nothing behind.

  #{"README.md" |> File.read!() |> String.split("<!-- MDOC -->") |> Enum.fetch!(1)}

  ## Elements

  | element | |
  |---|---|
  | `{:stdout, binary}`, `{:stderr, binary}` | a chunk, as it was read: at most `max_chunk:` bytes, not split or joined by lines; in order for each of the two |
  | `{:exit_status, 0..255}` | the program ended by itself. Last |
  | `{:termsig, atom}` | a signal ended it: `:sigkill`, `:sigterm`, …; a real-time signal is `:unknown`. Last |

  ## Who ends whom

  1. The program ends: what is left of its tree is killed, its output is read to the end, then the
     terminal element comes.
  2. The consumer stops reading, raises or throws: `kill_signal:`, after `kill_timeout:` SIGKILL to
     the whole tree; the call returns when the tree is gone.
  3. The consumer is killed, or the BEAM is: SIGKILL to the whole tree.
  4. `timeout:` passes: as 2, and the stream ends with the element of what really ended it.

  ## Messages

  A stream uses messages with a reference of its own and leaves none behind. It takes no other
  message, so streams may be nested, zipped and run side by side in one process.
  """

  use Stdio.Behaviour

  alias Stdio.{Command, Config, Phases}
  alias Stdio.Stream.{Runner, Tree}

  @typedoc "What to run; see the examples above."
  @type command :: Command.command()

  @type element ::
          {:stdout, binary}
          | {:stderr, binary}
          | {:exit_status, 0..255}
          | {:termsig, atom}

  @doc """
  A lazy stream of what `command` writes, ending with how it ended.

  The arguments are checked in this call; everything else happens in the process that enumerates,
  once per enumeration. The program's stdin is an empty pipe that stays open, so a program that
  reads it waits, unless `stdin: :null`.

      iex> Stdio.stream!("cat", Stdio.Process, stdin: :null) |> Enum.to_list()
      [exit_status: 0]

  Raises ArgumentError here for a malformed command or option; `Stdio.StreamError` and
  `Stdio.OpError` in the consumer when the program cannot be started.
  """
  @spec stream!(command, Phases.behaviour(), Config.t()) :: Enumerable.t()
  def stream!(command, behaviour \\ Stdio.Process, config \\ []) do
    run(command, behaviour, config, :stream, nil)
  end

  @doc """
  As `stream!/3`, and `enum` is written to the program's stdin, which is closed when it ends.

  Elements are iodata; empty ones are skipped. `enum` is enumerated in a process of its own, which
  blocks while the program does not read. A program that closes its stdin early ends the feeding
  without an error. An exception, throw or exit in `enum` is raised again in the consumer, with its
  stacktrace, once the program's tree is gone.

      iex> 1000..1 |> Stream.map(&"\#{&1}\\n") |> Stdio.pipe!("grep 442") |> Enum.to_list()
      [stdout: "442\\n", exit_status: 0]

  A program that never reads can be bounded by `timeout:`.
  """
  @spec pipe!(Enumerable.t(), command, Phases.behaviour(), Config.t()) :: Enumerable.t()
  def pipe!(enum, command, behaviour \\ Stdio.Process, config \\ []) do
    run(command, behaviour, config, :pipe, {:feed, enum})
  end

  @doc """
  The phases of `behaviour`, a keyword list, with a supervisor that exists already.

  So programs may share one that does not end with any of them:

      {:ok, supervisor} = Stdio.supervisor(:noshutdown)
      phases = Stdio.with_supervisor(Stdio.Process, supervisor)
      Stdio.stream!("echo $PPID", phases)
      Stdio.stream!("echo $PPID", phases)

  `behaviour` may also be in any of the other forms `stream!/3` takes. ArgumentError for what is
  no behaviour.
  """
  @spec with_supervisor(behaviour, t) :: keyword
  def with_supervisor(behaviour, %Stdio{} = supervisor),
    do: Phases.with_supervisor(behaviour, supervisor)

  @supervisor_filter {:allow,
                      [
                        :close,
                        :exit,
                        :fork,
                        :getpid,
                        :kill,
                        :setcpid,
                        :sigaction,
                        :clone,
                        :procctl
                      ]}

  @doc """
  A supervisor: a root task, prepared by `supervise/3`. The caller owns it; when it dies, all of the
  supervisor's tree dies.

  | `atexit` | when a stream on it ends, or could not be started |
  |---|---|
  | `:shutdown` | everything below it is killed, then it ends |
  | `:noreap` | it ends, and its tree with it |
  | `:noshutdown` | it lives on, and so do processes it has adopted, until `reap/2` or its own end |
  | fun/3 | is called with its task, the pipeline and the `state` of the struct |

  `filter` is what it may be asked for from then on; its children are not restricted. `opts`:
  `containment: :auto | :best_effort`; anything else is `{:error, :enotsup}`.
  """
  @spec supervisor(atexit, Stdio.Task.filter(), keyword) :: {:ok, t} | {:error, posix}
  def supervisor(atexit \\ :shutdown, filter \\ @supervisor_filter, opts \\ []) do
    atexit!(atexit)

    case Keyword.get(opts, :containment, :auto) do
      containment when containment in [:auto, :best_effort] ->
        with {:ok, task} <- Stdio.Task.fork(), do: supervised(task, atexit, filter)

      _ ->
        {:error, :enotsup}
    end
  end

  defp supervised(task, atexit, filter) do
    with {:error, _} = error <- supervise(task, atexit, filter) do
      Stdio.Task.stop(task)
      error
    end
  rescue
    # A filter that is none.
    error ->
      Stdio.Task.stop(task)
      reraise error, __STACKTRACE__
  end

  @doc """
  Turns any task into a supervisor. The first step that fails is returned.

  It becomes a subreaper, so descendants that lose their parent become its children; forwards
  signals to its descendants; is called `Supervise`; gives its children credit for one chunk at a
  time; and is restricted by `filter`.
  """
  @spec supervise(Stdio.Task.t(), atexit, Stdio.Task.filter()) :: {:ok, t} | {:error, posix}
  def supervise(task, atexit \\ :shutdown, filter \\ @supervisor_filter) do
    atexit!(atexit)
    syscall = Stdio.Syscall.os()

    with :ok <- syscall.subreaper(task),
         :ok <- Stdio.Task.__forward__(task),
         :ok <- syscall.setproctitle(task, "Supervise"),
         true <- Stdio.Task.setopt(task, :signaloneof, 9),
         true <- Stdio.Task.setopt(task, :flowcontrol, 1),
         :ok <- Stdio.Task.filter(task, filter, []) do
      {:ok, %Stdio{init: task, atexit: atexit}}
    else
      false -> {:error, :esrch}
      {:error, reason} -> {:error, reason}
    end
  end

  defp atexit!(atexit) when atexit in [:shutdown, :noreap, :noshutdown], do: :ok
  defp atexit!(atexit) when is_function(atexit, 3), do: :ok

  defp atexit!(atexit) do
    raise ArgumentError,
          "invalid atexit #{inspect(atexit)}; allowed: :shutdown, :noshutdown, :noreap or a " <>
            "function of three arguments"
  end

  @doc """
  Signals every descendant of the tree's supervisor, which stays alive.

  SIGKILL: again and again until none is left, for 5 s at most (`{:error, :etimedout}`). Any other
  signal: once to each process found.
  """
  @spec reap(Stdio.ProcessTree.t(), Stdio.Signal.t()) :: :ok | {:error, posix}
  def reap(%Stdio.ProcessTree{} = tree, signal \\ :SIGKILL),
    do: Stdio.Syscall.os().reap(tree, signal)

  @doc "As `reap/2`, the descendants of `os_pid`; itself not included."
  @spec reap(Stdio.ProcessTree.t(), pos_integer, Stdio.Signal.t()) :: :ok | {:error, posix}
  def reap(%Stdio.ProcessTree{} = tree, os_pid, signal),
    do: Stdio.Syscall.os().reap(tree, os_pid, signal)

  @doc "The application's `priv` directory: where the helper is, and by default the root tree."
  @spec __basedir__() :: Path.t()
  def __basedir__, do: Application.app_dir(:stdio, "priv")

  # The shipped Stdio.Process, unmodified, travels as one plan.
  @plan [
    task: &Stdio.Process.task/1,
    init: &Stdio.Process.init/1,
    ops: &Stdio.Process.ops/1,
    onerror: &Stdio.Process.onerror/1,
    onexit: &Stdio.Process.onexit/1
  ]

  defp run(command, behaviour, config, verb, input) do
    phases = Phases.new!(behaviour)
    config = Config.validate!(config, phases.options, verb, phases.module)
    normal = Command.normalize!(command, Config.get(config, :search, phases.module))
    run = %{command: command, normal: normal, config: config, input: input}

    if Enum.all?(@plan, fn {phase, shipped} -> Map.fetch!(phases, phase) == shipped end),
      do: Runner.stream(Map.put(run, :behaviour, Stdio.Process)),
      else: Tree.stream(Map.put(run, :phases, phases))
  end
end
