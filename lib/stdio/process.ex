defmodule Stdio.Process do
  @moduledoc """
  A program in the file system of the host: the default behaviour, on every OS, for every user.

  Guaranteed, or the program is not started:

  - it leads its own session and process group, so a signal to the group reaches what it has
    started and never the BEAM ([setsid(2)](https://man7.org/linux/man-pages/man2/setsid.2.html));
  - it runs with the priority, in the directory and under the resource limits of its config; by
    default it leaves no core file;
  - started as root (`Stdio.setuid/0`), it runs as `:uid`, `:gid` and `:groups` alone, with no
    group of its parent's, by default under a uid that belongs to no account;
  - neither it nor its descendants gain privileges by setuid programs or file capabilities, unless
    `setuid: true`
    ([PR_SET_NO_NEW_PRIVS](https://man7.org/linux/man-pages/man2/PR_SET_NO_NEW_PRIVS.2const.html));
  - it gets SIGKILL when its supervisor dies. This is only a backup, as the kernel drops the setting
    when a setuid program starts; see `:containment`.

  Not restricted: not started as root, it keeps the user of the BEAM, with access to all that user
  has, the BEAM's files and processes included. The file system is the host's, and so is the
  network unless `net: :none`. Use `Stdio.Container` or `Stdio.Rootless` for more.

  Options: see `Stdio.Config`.
  """

  @behaviour Stdio

  alias Stdio.{Config, ProcessTree}

  @doc """
  A supervisor of its own for each program, which ends with it (`:shutdown`).

  Option `:containment`; anything but `:auto` and `:pid_namespace`, which is the program's
  affair, is asked of the supervisor.
  """
  @impl Stdio
  @spec task(Config.t()) :: {:ok, Stdio.t()} | {:error, Stdio.posix()}
  def task(config) do
    case Config.get(config, :containment) do
      # The namespace is made when the program is forked, in init/1.
      here when here in [:auto, :pid_namespace] -> Stdio.supervisor(:shutdown)
      containment -> Stdio.supervisor(:shutdown, Stdio.__filter__(), containment: containment)
    end
  end

  @doc """
  Forks one process. Options `:net` and `:containment` (Linux): in the namespaces they ask for.
  """
  @impl Stdio
  @spec init(Config.t()) ::
          (Stdio.Task.t() -> {:ok, Stdio.pipeline()} | {:error, Stdio.posix()})
  def init(config), do: Stdio.Syscall.os().subprocess(config)

  @doc """
  The calls made in the new process before the program starts, in this order. Any failure ends
  the start with a `Stdio.OpError`.

  | op | from option | source |
  |---|---|---|
  | `setsid` | | setsid(2) |
  | `setpriority`, if it is given | `:priority` | setpriority(2) |
  | `chdir` | `:path` or `:cd` | chdir(2) |
  | `setrlimit`, one each | `:rlimit` | setrlimit(2) |
  | `setugid`, nothing unless root | `:uid`, `:gid`, `:groups` | setgroups(2), setresgid(2), setresuid(2) |
  | `no_new_privs` | unless `setuid: true` | prctl(2) |
  | `set_pdeathsig` | | prctl(2); it comes last, as a change of ids clears it |

  The last two are Linux's; `Stdio.Syscall` has what takes their place elsewhere.

      iex> Stdio.Process.ops(path: "/tmp", rlimit: [], uid: 1000, setuid: true)
      [
        {:setsid, []},
        {:chdir, ["/tmp"]},
        {:setugid, [1000, 1000, []]},
        {:set_pdeathsig, [9]}
      ]
  """
  @impl Stdio
  @spec ops(Config.t()) :: [{atom, [term]}]
  def ops(config) do
    os = Stdio.Syscall.os()

    [{:setsid, []}] ++
      priority(config) ++
      [{:chdir, [directory(config)]}] ++
      for({limit, value} <- Config.get(config, :rlimit), do: {:setrlimit, [limit, value]}) ++
      [{:setugid, [Config.uid(config), Config.gid(config), Config.groups(config)]}] ++
      disable_setuid(os, Config.get(config, :setuid)) ++ os.set_pdeathsig()
  end

  @doc false
  # Nothing if it was not asked for: who has raised the nice value of the BEAM may not lower it.
  @spec priority(Config.t()) :: [{:setpriority, [term]}]
  def priority(config) do
    for {:ok, value} <- [Keyword.fetch(config, :priority)],
        do: {:setpriority, [:prio_process, 0, value]}
  end

  defp directory(config),
    do: absolute(Config.path(config, :path) || Config.path(config, :cd))

  # The helper's working directory is the BEAM's of long ago.
  defp absolute(nil), do: cwd!()
  defp absolute("/" <> _ = path), do: path
  defp absolute(path), do: cwd!() <> "/" <> path

  # File.cwd!() without its detour over the file server, on the way to every program.
  defp cwd! do
    case Stdio.Native.getcwd() do
      {:ok, path} ->
        path

      {:error, reason} ->
        raise File.Error, reason: reason, action: "get current working directory"
    end
  end

  defp disable_setuid(_os, true), do: []
  defp disable_setuid(os, false), do: os.disable_setuid()

  @doc "Kills the process whose start has failed, and all it has started."
  @impl Stdio
  @spec onerror(Config.t()) :: (Stdio.Task.t() -> any)
  def onerror(_config), do: &Stdio.Task.stop/1

  @doc """
  Sends SIGKILL to the group of the program if it is still running, and tells whether it was.

  The rest of its tree is the affair of its supervisor.
  """
  @impl Stdio
  @spec onexit(Config.t()) :: (ProcessTree.t() -> boolean)
  def onexit(_config), do: &kill/1

  defp kill(%ProcessTree{pipeline: []}), do: false

  defp kill(%ProcessTree{supervisor: supervisor, pipeline: pipeline}) do
    %{task: task, pid: pid} = List.last(pipeline)
    running? = alive?(task)
    # The pid of one that has ended may be another's by now.
    _ = if running?, do: signal(supervisor.init, pid, :sigkill)
    running?
  end

  @doc "No options of its own."
  @impl Stdio
  @spec options() :: []
  def options, do: []

  @doc """
  Sends a signal to the process group that `os_pid` leads, or else to the process `os_pid`.

  `task` makes the call, so `os_pid` is as that process sees it; it may have ended (`:ok`).
  Errors are those of [kill(2)](https://man7.org/linux/man-pages/man2/kill.2.html).
  """
  @spec signal(Stdio.Task.t(), pos_integer, Stdio.Signal.t()) :: :ok | {:error, Stdio.posix()}
  # 0 and below are whole groups, the caller's own among them.
  def signal(task, os_pid, signal) when is_integer(os_pid) and os_pid > 0 do
    with {:error, :esrch} <- Stdio.Task.kill(task, -os_pid, signal),
         {:error, :esrch} <- Stdio.Task.kill(task, os_pid, signal) do
      :ok
    end
  end

  @doc "Whether the process of a task is there, before or after exec."
  @spec alive?(Stdio.Task.t()) :: boolean
  def alive?(task), do: Stdio.Task.pidof(task) != :noproc

  @doc false
  # The op `{Stdio.Process, :__setugid__, [uid, gid, groups]}` of msantos/stdio 0.4, which looks
  # first and returns a branch. `Stdio.Task.setugid/4` does the same in one call.
  @spec __setugid__(Stdio.Task.t(), non_neg_integer, non_neg_integer, [non_neg_integer]) ::
          [Stdio.Op.op()] | {:error, Stdio.posix()}
  def __setugid__(task, uid, gid, groups) do
    case Stdio.Task.getresuid(task) do
      {:ok, _real, 0, _saved} ->
        [
          {:setgroups, [groups]},
          {:setresgid, [gid, gid, gid]},
          {:setresuid, [uid, uid, uid]}
        ]

      {:ok, _real, _effective, _saved} ->
        []

      {:error, _reason} = error ->
        error
    end
  end
end
