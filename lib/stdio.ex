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

  alias Stdio.{Command, Config, Native, Phases}
  alias Stdio.Stream.{Runner, Tree}

  @typedoc "What to run; see the examples above."
  @type command ::
          binary
          | [binary | charlist]
          | {binary | charlist, [binary | charlist]}
          | {:search, [binary | charlist]}

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
  @spec stream!(command, behaviour, Config.t()) :: Enumerable.t()
  def stream!(command, behaviour \\ Stdio.Process, config \\ []) do
    __run__(command, behaviour, config, :stream, nil)
  end

  @doc """
  As `stream!/3`, and `enum` is written to the program's stdin, which is closed when it ends.

  Elements are iodata; empty ones are skipped. `enum` is enumerated in a process of its own, which
  blocks while the program does not read. A program that closes its stdin early ends the feeding
  without an error. An exception, throw or exit in `enum` is raised again in the consumer, with its
  stacktrace, once the program's tree is gone; not if the program has ended before it.

      iex> 1000..1//-1 |> Stream.map(&"\#{&1}\\n") |> Stdio.pipe!("grep 442") |> Enum.to_list()
      [stdout: "442\\n", exit_status: 0]

  A program that never reads can be bounded by `timeout:`.
  """
  @spec pipe!(Enumerable.t(), command, behaviour, Config.t()) :: Enumerable.t()
  def pipe!(enum, command, behaviour \\ Stdio.Process, config \\ []) do
    __run__(command, behaviour, config, :pipe, {:feed, enum})
  end

  @doc """
  Runs a program to its end: `{output, exit}`, where `exit` is 0..255, or `{:termsig, signal}`.

  | call | |
  |---|---|
  | `cmd(program, args, opts \\\\ [])` | binaries, as for `System.cmd/3`; a `program` without `/` is searched along the `PATH` of its environment |
  | `cmd(command)`, `cmd(command, opts)` | any command of `stream!/3`: a binary is a shell line |

  The second argument is `opts` exactly when it is a keyword list that is not empty, so
  `cmd("ls", [])` runs the program `ls`.

      iex> Stdio.cmd("echo", ["hi"])
      {"hi\\n", 0}
      iex> Stdio.cmd("tr a-z A-Z | head -c 2", input: "abc")
      {"AB", 0}
      iex> Stdio.cmd("printf 'a\\nb'; kill $$", lines: 1024, into: [])
      {["a", "b"], {:termsig, :sigterm}}

  | option | default | |
  |---|---|---|
  | `:into` | `""` | a Collectable; gets stdout as it comes |
  | `:lines` | | a positive integer: `:into` gets whole lines without `"\\n"`, however long; the number is a hint of their length |
  | `:input` | | a binary or an enumerable of iodata, fed as by `pipe!/4`. Without it stdin is `/dev/null` |
  | `:stderr_to_stdout` | `false` | the same as `stderr: :stdout`. Otherwise stderr is written to the `:standard_error` device as it comes, or dropped with `stderr: :null` |
  | `:arg0` | | a binary: what the program sees as its name |
  | `:behaviour` | `Stdio.Process` | as for `stream!/3` |
  | `:parallelism` | | accepted and ignored |

  All others are those of `Stdio.Config`: `:cd`, `:env`, `:timeout`, … Unlike `System.cmd/3`, the
  program does not inherit the BEAM's environment (`environ: :inherit`), a BEAM of root runs it as
  another user (`uid: 0, gid: 0`), and what cannot be started is a `Stdio.StreamError`,
  `Stdio.OpError` or ArgumentError. Everything the program has started is gone when the call returns,
  also by an exception.

  After its `:timeout` the status is that of what ended it: `{:termsig, :sigkill}`, or what it did
  about its `:kill_signal`.
  """
  @spec cmd(command) :: {Collectable.t(), 0..255 | {:termsig, atom}}
  def cmd(command), do: Stdio.Cmd.command(command, [])

  @doc "`cmd(command, opts)` or `cmd(program, args)`; see `cmd/1`."
  @spec cmd(command, keyword | [binary]) :: {Collectable.t(), 0..255 | {:termsig, atom}}
  def cmd(command, args_or_opts), do: Stdio.Cmd.either(command, args_or_opts)

  @doc "A program, its arguments and options; see `cmd/1`."
  @spec cmd(binary, [binary], keyword) :: {Collectable.t(), 0..255 | {:termsig, atom}}
  def cmd(program, args, opts), do: Stdio.Cmd.program(program, args, opts)

  @doc """
  The phases of `behaviour`, a keyword list, with a supervisor that exists already.

  So programs may share one that does not end with any of them:

      iex> {:ok, supervisor} = Stdio.supervisor(:noshutdown)
      iex> phases = Stdio.with_supervisor(Stdio.Process, supervisor)
      iex> parent = fn -> "echo $PPID" |> Stdio.stream!(phases) |> Enum.to_list() end
      iex> parent.() == parent.()
      true

  `behaviour` may also be in any of the other forms `stream!/3` takes. ArgumentError for what is
  no behaviour.
  """
  @spec with_supervisor(behaviour, t) :: keyword
  def with_supervisor(behaviour, %Stdio{} = supervisor),
    do: Phases.with_supervisor(behaviour, supervisor)

  @title "Supervise"
  @supervisor_filter {:allow, ~w(close exit fork getpid kill setcpid sigaction clone procctl)a}

  @doc false
  # For who has to give it, because options come behind it.
  @spec __filter__() :: Stdio.Task.filter()
  def __filter__, do: @supervisor_filter

  @doc false
  # What supervise/3 makes of a task, for Stdio.Task.__birth__/5.
  @spec __supervision__() :: {String.t(), Stdio.Task.filter()}
  def __supervision__, do: {@title, @supervisor_filter}

  @doc """
  A supervisor: a root task, prepared by `supervise/3`. The caller owns it; when it dies, all of the
  supervisor's tree dies.

  | `atexit` | when a stream on it ends, or could not be started |
  |---|---|
  | `:shutdown` | everything below it is killed, then it ends |
  | `:noreap` | it ends, and its tree with it |
  | `:noshutdown` | it lives on, and so do processes it has adopted, until `reap/2` or its own end |
  | fun/3 | is called with its task, the pipeline and the `state` of the struct |

  `filter` is what it may be asked for from then on; its children are not restricted.

  Option `:containment`: what guards its tree, see `containment/1`.

  | | |
  |---|---|
  | `:auto` (default), `:best_effort` | a subreaper with a kill loop |
  | `:pid_namespace` | it is PID 1 of a PID namespace (unless it runs as root, of a user namespace too, in which the user keeps the ids), so the kernel ends its tree with it. `/proc` stays that of the host. Linux; `{:error, posix}` where it cannot be had |
  | `:cgroup` | what is forked below it is born into a cgroup of its own, which is killed as a whole. Linux 5.14, cgroup v2; `{:error, :enotsup}` unless the helper may make one below its own cgroup (root, or a delegated one: cgroups(7)) |
  """
  @spec supervisor(atexit, Stdio.Task.filter(), keyword) :: {:ok, t} | {:error, posix}
  def supervisor(atexit \\ :shutdown, filter \\ @supervisor_filter, opts \\ []) do
    atexit!(atexit)

    with {:ok, containment} <- own_containment(opts) do
      case {containment, Stdio.Syscall.os()} do
        {:pid_namespace, _} -> supervised(&contained/1, atexit, filter)
        {_, Stdio.Syscall.Linux} -> at_once(atexit, filter, containment == :cgroup)
        {:cgroup, _} -> {:error, :enotsup}
        {_, _} -> supervised(&{:ok, &1}, atexit, filter)
      end
    end
  end

  # Forked and made a supervisor in one message.
  defp at_once(atexit, filter, cgroup?) do
    with {:ok, task} <- Stdio.Task.__supervisor__(@title, filter, cgroup?),
         do: {:ok, %Stdio{init: task, atexit: atexit}}
  end

  defp supervised(place, atexit, filter) do
    with {:ok, root} <- Stdio.Task.fork(), do: supervised(root, place, atexit, filter)
  end

  defp supervised(root, place, atexit, filter) do
    with {:ok, task} <- place.(root),
         {:ok, supervisor} <- supervise(task, atexit, filter) do
      {:ok, supervisor}
    else
      error ->
        Stdio.Task.stop(root)
        error
    end
  rescue
    # A filter that is none.
    error ->
      Stdio.Task.stop(root)
      reraise error, __STACKTRACE__
  end

  defp own_containment(opts) do
    with [] <- Keyword.keys(opts) -- [:containment],
         containment when containment in [:auto, :best_effort, :pid_namespace, :cgroup] <-
           Keyword.get(opts, :containment, :auto) do
      {:ok, containment}
    else
      _ ->
        raise ArgumentError,
              "invalid options #{inspect(opts)}; allowed: containment: :auto, :cgroup, " <>
                ":pid_namespace or :best_effort"
    end
  end

  defp contained(root) do
    init = Stdio.Syscall.os().subprocess(containment: :pid_namespace)

    with {:ok, [%{task: task}]} <- init.(root) do
      Native.task_carry(task.ref)
      {:ok, task}
    end
  end

  @doc """
  What guards the tree of a supervisor.

      iex> {:ok, supervisor} = Stdio.supervisor()
      iex> Stdio.containment(supervisor)
      :best_effort

  `:best_effort`: a subreaper with a kill loop; should every process of the helper be killed at the
  same moment, what the program has forked may survive. `:pid_namespace`: the kernel ends it all.
  `:cgroup`: so it does when the helper or the BEAM, whichever still lives, asks it to.
  """
  @spec containment(t) :: :cgroup | :pid_namespace | :best_effort
  def containment(%Stdio{init: :noproc}), do: :best_effort

  def containment(%Stdio{init: task}), do: Native.task_containment(task.ref)

  @doc """
  Turns any task into a supervisor. The first step that fails is returned.

  It becomes a subreaper, so descendants that lose their parent become its children; forwards
  signals to its descendants; is called `Supervise`; gives its children credit for one chunk at a
  time; and is restricted by `filter`.
  """
  @spec supervise(Stdio.Task.t(), atexit, Stdio.Task.filter()) :: {:ok, t} | {:error, posix}
  def supervise(task, atexit \\ :shutdown, filter \\ @supervisor_filter) do
    atexit!(atexit)

    with :ok <- supervise_by(Stdio.Syscall.os(), task, filter),
         do: {:ok, %Stdio{init: task, atexit: atexit}}
  end

  # All the steps in one message.
  defp supervise_by(Stdio.Syscall.Linux, task, filter),
    do: Stdio.Task.__supervise__(task, @title, filter)

  defp supervise_by(syscall, task, filter) do
    with :ok <- syscall.subreaper(task),
         :ok <- Stdio.Task.__forward__(task),
         :ok <- syscall.setproctitle(task, @title),
         true <- Stdio.Task.setopt(task, :signaloneof, 9),
         true <- Stdio.Task.setopt(task, :flowcontrol, 1) do
      Stdio.Task.filter(task, filter, [])
    else
      false -> {:error, :esrch}
      {:error, _} = error -> error
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
  Later supervisors start as root, for the whole BEAM; those that there are stay what they are.

  | the BEAM's user is | what happens |
  |---|---|
  | root | nothing, as it is so already |
  | another, and the helper has the setuid bit | the helper becomes root by itself |
  | another | the helper is started by `sudo -n` (OpenBSD: `doas`), which has to allow it without a password |

  The helper is `Application.app_dir(:stdio, "priv/native/stdio-supervise")`. As root it does whatever
  its caller asks: allowing a user to start it makes that user root. With the setuid bit it has to be
  root's and executable for one group alone, else it is refused:

      chown root:GROUP PATH && chmod 4750 PATH

  For sudo, in `/etc/sudoers.d/stdio` (and without `log_input` for it, which would take its control
  socket away):

      USER ALL=(root) NOPASSWD: PATH

  `Stdio.StreamError` with action `"supervisor"` and a hint, when a program is started and root is
  not to be had.
  """
  @spec setuid() :: :ok
  def setuid, do: __setuid__(true)

  @doc "`true`: as `setuid/0`. `false`: later supervisors run as the BEAM's user again."
  @spec __setuid__(boolean) :: :ok
  def __setuid__(true), do: Stdio.Task.sudo()
  def __setuid__(false), do: Stdio.Task.sudo("")

  @doc """
  Signals every descendant of the tree's supervisor, which stays alive.

  SIGKILL: again and again until none is left, for 5 s at most (`{:error, :etimedout}`). Any other
  signal: once to each process found.
  """
  @spec reap(Stdio.ProcessTree.t(), Stdio.Signal.t()) :: :ok | {:error, posix}
  def reap(%Stdio.ProcessTree{} = tree, signal \\ :SIGKILL),
    do: Stdio.Syscall.os().reap(tree, signal)

  @doc """
  As `reap/2`, the descendants of `os_pid`; itself not included.

  On Linux `os_pid` is that of a process of the tree, as its supervisor sees it, or of the supervisor.
  Below any other nothing is signalled.
  """
  @spec reap(Stdio.ProcessTree.t(), pos_integer, Stdio.Signal.t()) :: :ok | {:error, posix}
  def reap(%Stdio.ProcessTree{} = tree, os_pid, signal) when is_integer(os_pid) and os_pid > 0,
    do: Stdio.Syscall.os().reap(tree, os_pid, signal)

  def reap(%Stdio.ProcessTree{}, os_pid, _signal),
    do: raise(ArgumentError, "not a process id: #{inspect(os_pid)}")

  @doc """
  What of Stdio works on this machine, for this user, and what to do about the rest: a list of
  `%{check: atom, status: :ok | :warn | :fail, found: binary, advice: binary | nil}`.

  The checks are described in `Stdio.Doctor`; `mix stdio.doctor` prints them. It takes a second or
  two, and leaves nothing behind.
  """
  @spec doctor() :: [Stdio.Doctor.check()]
  def doctor, do: Stdio.Doctor.run()

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

  @doc false
  # The stream; `others` are options that only a message about an unknown one has to name.
  @spec __run__(command, behaviour, Config.t(), :stream | :pipe, term, [atom]) ::
          Enumerable.t()
  def __run__(command, behaviour, config, verb, input, others \\ []) do
    %{phases: phases} = run = __prepare__(command, behaviour, config, verb, input, others)

    shipped? = Enum.all?(@plan, fn {phase, shipped} -> Map.fetch!(phases, phase) == shipped end)

    if shipped? and Config.get(run.config, :containment) != :cgroup,
      do: Runner.stream(Map.delete(run, :phases)),
      else: Tree.stream(run)
  end

  @doc false
  # The validated arguments of Tree.stream/1 and Tree.open/1.
  @spec __prepare__(command, behaviour, Config.t(), :stream | :pipe, term, [atom]) :: map
  def __prepare__(command, behaviour, config, verb, input, others \\ []) do
    phases = Phases.new!(behaviour)
    config = Config.validate!(config, own(phases.options, others), verb, phases.module)
    normal = Command.normalize!(command, Config.get(config, :search, phases.module))

    %{
      command: command,
      normal: normal,
      config: config,
      behaviour: behaviour,
      phases: phases,
      input: input
    }
  end

  defp own(:any, _others), do: :any
  defp own(options, others), do: options ++ others
end
