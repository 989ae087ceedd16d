defmodule Stdio.Syscall do
  @moduledoc """
  What differs between operating systems, behind one set of functions; and their defaults, for a
  system of which nothing is known but that it is a POSIX one.

  `os/0` is the module for this machine. Applications can give their own, by
  `config :stdio, syscall: MyModule`: it implements this behaviour, best by `defdelegate` to the
  module it corrects.

  | | default | `Stdio.Syscall.Linux` | `Stdio.Syscall.FreeBSD` | `Stdio.Syscall.OpenBSD` |
  |---|---|---|---|---|
  | `c:setproctitle/2` | nothing | setproctitle and PR_SET_NAME | setproctitle(3) | setproctitle(3) |
  | `c:subreaper/1` | nothing | PR_SET_CHILD_SUBREAPER | PROC_REAP_ACQUIRE | nothing |
  | `c:reap/2`, `c:reap/3` | process groups of the pipeline | all descendants, by procfs | PROC_REAP_KILL | process groups |
  | `c:procfs/0` | `"/proc"` | app env `:procfs`, `"/proc"` | `"/compat/linux/proc"` | `"/proc"` |
  | `c:disable_setuid/0` | no ops | `no_new_privs` | `no_new_privs` | `pledge` |
  | `c:set_pdeathsig/0` | no ops | SIGKILL | no ops | no ops |
  | `c:subprocess/1` | fork | fork, or clone with namespaces | fork | fork |

  Where it says "nothing" or "process groups", processes that left the group of their pipeline
  outlive a `c:reap/2`.
  """

  alias Stdio.Config

  # The task layer is not needed to compile this one.
  @compile {:no_warn_undefined, [Stdio.Task]}

  @typedoc "A `t:Stdio.Task.t/0`."
  @type task :: term

  @typedoc "A `Stdio.ProcessTree`: the supervisor, and what was started below it, outermost first."
  @type tree :: %{
          :supervisor => %{:init => task | :noproc, optional(atom) => term},
          :pipeline => pipeline,
          optional(atom) => term
        }

  @type pipeline :: [%{task: task, pid: pos_integer}]

  @typedoc "Makes the process that becomes the program, below the supervisor it gets."
  @type init :: (task -> {:ok, pipeline} | {:error, atom})

  @doc "Names the process for `ps`; `:ok` where a process has no title."
  @callback setproctitle(task, title :: iodata) :: :ok | {:error, atom}

  @doc "Makes the task the parent of those of its descendants that lose theirs."
  @callback subreaper(task) :: :ok | {:error, atom}

  @doc "See `Stdio.reap/2`: SIGKILL until no descendant of the supervisor is left, or a signal to each."
  @callback reap(tree, Stdio.Signal.t()) :: :ok | {:error, :etimedout}

  @doc "See `Stdio.reap/3`: as `c:reap/2`, for the descendants of `os_pid`, itself not included."
  @callback reap(tree, os_pid :: pos_integer, Stdio.Signal.t()) :: :ok | {:error, :etimedout}

  @doc "Where a procfs is mounted that looks like that of Linux."
  @callback procfs() :: Path.t()

  @doc "Ops after which no setuid program or file capability gives privileges."
  @callback disable_setuid() :: [{atom, [term]}]

  @doc "Ops after which the end of the supervisor ends the program."
  @callback set_pdeathsig() :: [{atom, [term]}]

  @doc """
  The init function of `Stdio.Process` for a config, of which `:net` and `:containment` count.
  Where the system has no namespaces, it returns `{:error, :enotsup}` if they ask for one.
  """
  @callback subprocess(Config.t()) :: init

  @doc """
  The module for this machine: app env `:syscall`, else by the operating system.

      iex> is_list(Stdio.Syscall.os().set_pdeathsig())
      true
  """
  @spec os() :: module
  def os do
    Application.get_env(:stdio, :syscall) || by_os(:os.type())
  end

  defp by_os({:unix, :linux}), do: Stdio.Syscall.Linux
  defp by_os({:unix, :freebsd}), do: Stdio.Syscall.FreeBSD
  defp by_os({:unix, :openbsd}), do: Stdio.Syscall.OpenBSD
  defp by_os(_), do: __MODULE__

  @doc "Does nothing."
  @spec setproctitle(task, iodata) :: :ok
  def setproctitle(_task, _title), do: :ok

  @doc "Does nothing."
  @spec subreaper(task) :: :ok
  def subreaper(_task), do: :ok

  @doc """
  Signals the process group that each process of the pipeline leads, else the process. Descendants
  in other groups are not reached.
  """
  @spec reap(tree, Stdio.Signal.t()) :: :ok
  def reap(tree, signal), do: signal(members(tree), signal)

  @doc "As `reap/2`, for the part of the pipeline that is below `os_pid`."
  @spec reap(tree, pos_integer, Stdio.Signal.t()) :: :ok
  def reap(tree, os_pid, signal) do
    members = members(tree)

    case Enum.drop_while(members, fn {_parent, pid} -> pid != os_pid end) do
      [_os_pid | below] -> signal(below, signal)
      # The supervisor's, which is not of its own pipeline.
      [] -> signal(members, signal)
    end
  end

  # Each with the task that forked it, to which its pid means something.
  defp members(%{supervisor: %{init: supervisor}, pipeline: pipeline}) do
    parents = [supervisor | Enum.map(pipeline, & &1.task)]
    Enum.zip(parents, Enum.map(pipeline, & &1.pid))
  end

  defp signal(members, signal) do
    Stdio.Signal.signal_number!(signal)

    for {parent, pid} <- members do
      with {:error, :esrch} <- Stdio.Task.kill(parent, -pid, signal) do
        Stdio.Task.kill(parent, pid, signal)
      end
    end

    :ok
  end

  @doc ~s(`"/proc"`.)
  @spec procfs() :: Path.t()
  def procfs, do: "/proc"

  @doc "No ops: nothing holds for every system."
  @spec disable_setuid() :: []
  def disable_setuid, do: []

  @doc "No ops: nothing holds for every system."
  @spec set_pdeathsig() :: []
  def set_pdeathsig, do: []

  @doc "A fork; `{:error, :enotsup}` if the config asks for a namespace."
  @spec subprocess(Config.t()) :: init
  def subprocess(config) do
    if namespaces(config) == [] do
      &__MODULE__.__fork__/1
    else
      fn _task -> {:error, :enotsup} end
    end
  end

  @doc false
  # As an init function, one that says by its name that it does nothing but fork: see Stdio.Op.exec!/6.
  @spec __fork__(task) :: {:ok, pipeline} | {:error, atom}
  def __fork__(task), do: pipeline(Stdio.Task.fork(task))

  @doc false
  # The namespaces of its own that Stdio.Process gives a program.
  @spec namespaces(Config.t()) :: [:clone_newnet | :clone_newpid]
  def namespaces(config) do
    if(Config.get(config, :net) == :none, do: [:clone_newnet], else: []) ++
      if Config.get(config, :containment) == :pid_namespace, do: [:clone_newpid], else: []
  end

  @doc false
  @spec pipeline({:ok, task} | {:error, atom}) :: {:ok, pipeline} | {:error, atom}
  def pipeline({:ok, task}), do: {:ok, [%{task: task, pid: Stdio.Task.pidof(task)}]}
  def pipeline({:error, _} = error), do: error
end
