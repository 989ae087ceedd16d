defmodule Stdio.Rootless do
  @moduledoc """
  A container without privileges: as `Stdio.Container`, in a user namespace of its own. Linux, for
  every user, where user namespaces are enabled.

  What differs:

  - in it, the program has `:uid` and `:gid` (65534 by default); outside, it is the user of the BEAM.
    All other users and groups are unmapped
    ([user_namespaces(7)](https://man7.org/linux/man-pages/man7/user_namespaces.7.html)), and
    `:groups` cannot be set;
  - between the supervisor and the program stands a second one, the first process of the
    namespaces: it adopts and reaps what the program leaves behind, and everything ends with it;
  - `uid: 0` is root over the program's own files, processes and sockets, and nothing else: it can
    neither undo mounts nor make new ones (`Stdio.Task.limit_capabilities/2`), unless
    `setuid: true`.

  What the user of the BEAM may read can be read by the program, as far as it is in the root tree,
  among the directories bound there, or reached over `net: :host`. A BEAM of root's should use
  `Stdio.Container`: in here its programs would keep the uid of root outside.

  The start fails with a hint at the setting if the system allows no user namespaces:
  `user.max_user_namespaces`, `kernel.unprivileged_userns_clone` (Debian) or
  `kernel.apparmor_restrict_unprivileged_userns` (Ubuntu).

  The root tree has to exist: `Stdio.Container.make_chroot_tree!/1`. Options: see `Stdio.Config`.
  """

  @behaviour Stdio

  alias Stdio.{Config, ProcessTree}
  alias Stdio.Container.{Hint, Root}

  @filter {:allow,
           [:clone, :close, :exit, :getpid, :kill, :setcpid, :sigaction, :getgid, :getuid]}

  @doc "A supervisor of its own for each program, which ends with it (`:noreap`)."
  @impl Stdio
  @spec task(Config.t()) :: {:ok, Stdio.t()} | {:error, Stdio.posix()}
  def task(config),
    do: Stdio.supervisor(:noreap, @filter, Root.containment(config, __MODULE__))

  @doc """
  Clones the first process of the new namespaces, maps the user and the group, makes a supervisor
  of it and forks the program's process from that: a pipeline of two.

  `{:error, posix}` if the system allows no user namespaces.
  """
  @impl Stdio
  @spec init(Config.t()) ::
          (Stdio.Task.t() -> {:ok, Stdio.pipeline()} | {:error, Stdio.posix()})
  def init(config), do: &start(&1, config)

  defp start(supervisor, config) do
    namespaces = Root.namespaces(config, __MODULE__)
    ids = {Config.uid(config, __MODULE__), Config.gid(config, __MODULE__)}
    # Its working directory would be a way back to the host's files.
    ops = [{:chdir, ["/"]}]

    case Stdio.Task.__birth__(supervisor, namespaces, ids, ops, Stdio.__supervision__()) do
      {:ok, cinit, program} -> {:ok, pipeline([cinit, program])}
      {:error, _} = error -> error
    end
  end

  defp pipeline(tasks) do
    for task <- tasks, do: ProcessTree.task(task)
  rescue
    error in Stdio.OpError ->
      # One has died meanwhile. Of neither is an event to come.
      for task <- Enum.reverse(tasks), do: Stdio.Task.stop(task)
      reraise error, __STACKTRACE__
  end

  @doc """
  The calls made in the program's process before it starts: those of `Stdio.Container.ops/1`
  without `setgroups`, `setresgid` and `setresuid`.
  """
  @impl Stdio
  @spec ops(Config.t()) :: [Stdio.Op.op()]
  def ops(config) do
    Root.ops(config, __MODULE__, "mode=700,size=8M") ++
      Root.limit_root(config, Config.uid(config, __MODULE__)) ++
      Root.restrictions(config)
  end

  @doc "Kills the process whose start has failed, and all it has started."
  @impl Stdio
  @spec onerror(Config.t()) :: (Stdio.Task.t() -> any)
  defdelegate onerror(config), to: Stdio.Process

  @doc """
  Sends SIGKILL to every process of the namespace but its first, and tells whether both tasks were
  still running.
  """
  @impl Stdio
  @spec onexit(Config.t()) :: (ProcessTree.t() -> boolean)
  def onexit(_config), do: &kill/1

  defp kill(%ProcessTree{supervisor: supervisor, pipeline: [cinit, program]}) do
    first? = Stdio.Process.alive?(cinit.task)
    running? = first? and Stdio.Process.alive?(program.task)

    if first?,
      do: Stdio.Task.kill(cinit.task, -1, :sigkill),
      else: Stdio.Process.signal(supervisor.init, cinit.pid, :sigkill)

    running?
  end

  defp kill(%ProcessTree{}), do: false

  @doc "No options of its own."
  @impl Stdio
  @spec options() :: []
  def options, do: []

  @doc false
  # For Stdio.Op: what to do about an error of init/1.
  @spec __hint__(Stdio.posix()) :: String.t() | nil
  def __hint__(reason), do: Hint.user_namespaces(reason)
end
