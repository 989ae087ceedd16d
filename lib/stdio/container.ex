defmodule Stdio.Container do
  @moduledoc """
  A program in Linux namespaces of its own, over a read-only view of the host's programs. Needs
  root (`Stdio.setuid/0`); see `Stdio.Rootless` for what every user can have.

  Guaranteed, or the program is not started:

  - it sees the directory `:path` as its root, read-only and without setuid bits, and in it
    `/bin`, `/sbin`, `/usr`, `/lib`, `/lib64` and the directories of `:fstab` of the host,
    read-only; a `/tmp` and a `/home` of its own, which vanish with it; a `/dev` with nothing but
    null, zero, full, random, urandom, tty, shm and the standard streams; a `/proc` of its own
    processes
    ([pivot_root(2)](https://man7.org/linux/man-pages/man2/pivot_root.2.html));
  - no symbolic link in the root tree, whoever put it there and when, leads a mount outside
    ([openat2(2)](https://man7.org/linux/man-pages/man2/openat2.2.html), RESOLVE_IN_ROOT);
  - it is the first process of a PID namespace, so nothing it has started outlives it, and it sees
    and signals no other process; its own IPC objects and host name; unless `net: :host`, no
    network but a loopback device that is down
    ([namespaces(7)](https://man7.org/linux/man-pages/man7/namespaces.7.html));
  - it runs as `:uid`, `:gid` and `:groups` alone, by default under a uid that belongs to no
    account, and gains no privileges unless `setuid: true`.

  Not restricted: memory, CPU time and the number of processes, but for `:rlimit`; the system calls
  it may make (`Stdio.Seccomp`). `uid: 0` is root on the host in a room of its own: it has lost the
  capabilities by which it could leave (`Stdio.Task.limit_capabilities/2`), the files it can reach
  are still root's. With `setuid: true` it has them all, and the container is no boundary.

  As the first process of its namespace the program gets no signal from within that it does not
  catch, and zombies that its descendants leave behind last until it ends
  ([pid_namespaces(7)](https://man7.org/linux/man-pages/man7/pid_namespaces.7.html)).

  The root tree has to exist: `make_chroot_tree!/1`. Options: see `Stdio.Config`.
  """

  @behaviour Stdio

  alias Stdio.Config
  alias Stdio.Container.{Hint, Root}

  @directories ["bin", "sbin", "usr", "lib", "lib64", "opt", "tmp", "home", "proc", "dev"]

  @doc "A supervisor of its own for each program, which ends with it (`:noreap`)."
  @impl Stdio
  @spec task(Config.t()) :: {:ok, Stdio.t()} | {:error, Stdio.posix()}
  def task(config) do
    Stdio.supervisor(:noreap, Stdio.__filter__(), Root.containment(config, __MODULE__))
  end

  @doc """
  Clones one process into new IPC, mount, PID and UTS namespaces, and a network namespace unless
  `net: :host`. `{:error, :eperm}` if the supervisor is not root's.
  """
  @impl Stdio
  @spec init(Config.t()) ::
          (Stdio.Task.t() -> {:ok, Stdio.pipeline()} | {:error, Stdio.posix()})
  def init(config) do
    namespaces = Root.namespaces(config, __MODULE__)
    &Stdio.Syscall.pipeline(Stdio.Task.clone(&1, namespaces))
  end

  @doc """
  The calls made in the new process before the program starts, in this order. Any failure ends the
  start with a `Stdio.OpError`.

  | ops | what |
  |---|---|
  | `setsid`, `sethostname`, `setpriority` if `:priority` is given | |
  | `mount` | no mount from here on is seen outside |
  | `bind_in` | the root on itself, read-only, nosuid |
  | `bind_in`, one each | `/bin`, `/sbin`, `/usr`, `/lib`, `/lib64` unless absent, `:fstab` in order: read-only |
  | `mount_in` | `/tmp` (4 MB), `/home` (8 MB, the user's) |
  | `mount_in`, `device_in`, `mkdir_in`, `symlink_in`, `remount_in` | `/dev`, read-only |
  | `proc_in` | `/proc` |
  | `chdir`, `pivot_root`, `umount2`, `chdir`, `getcwd` | the new root; the host's is out of reach |
  | `chdir` | to `:cd` |
  | `setrlimit`, one each | `:rlimit` |
  | `limit_capabilities` | of uid 0, unless `setuid: true` |
  | `setgroups`, `setresgid`, `setresuid` | `:groups`, `:gid`, `:uid` |
  | `no_new_privs` | unless `setuid: true` |
  | `set_pdeathsig` | last, as a change of ids clears it |
  """
  @impl Stdio
  @spec ops(Config.t()) :: [Stdio.Op.op()]
  def ops(config) do
    uid = Config.uid(config)
    gid = Config.gid(config)

    Root.ops(config, __MODULE__, "uid=#{uid},gid=#{gid},mode=700,size=8M") ++
      Root.limit_root(config, uid) ++
      [
        {:setgroups, [Config.groups(config)]},
        {:setresgid, [gid, gid, gid]},
        {:setresuid, [uid, uid, uid]}
      ] ++ Root.restrictions(config)
  end

  @doc "Kills the process whose start has failed, and all it has started."
  @impl Stdio
  @spec onerror(Config.t()) :: (Stdio.Task.t() -> any)
  defdelegate onerror(config), to: Stdio.Process

  @doc "As `Stdio.Process.onexit/1`. The rest of its namespace ends with the program."
  @impl Stdio
  @spec onexit(Config.t()) :: (Stdio.ProcessTree.t() -> boolean)
  defdelegate onexit(config), to: Stdio.Process

  @doc "No options of its own."
  @impl Stdio
  @spec options() :: []
  def options, do: []

  @doc """
  Makes the directories that a root tree needs: places for mounts, which stay empty.

  Below the application's `:path` (`config :stdio, path: "..."`), or `root` in its `priv` directory;
  `directories` are made instead, those for `:fstab` by a second call. Raises `File.Error` for the first that cannot be made.

      Stdio.Container.make_chroot_tree!()
  """
  @spec make_chroot_tree!([Path.t()]) :: :ok
  def make_chroot_tree!(directories \\ @directories) do
    root = Root.default_path()
    Enum.each(directories, &make_directory!(Path.join(root, &1)))
  end

  # File.mkdir_p! has :enoent for the last of several, where a user may not make the first.
  defp make_directory!(path) do
    if not File.dir?(path) do
      make_directory!(Path.dirname(path))
      made = File.mkdir(path)

      if made != :ok and not File.dir?(path) do
        {:error, reason} = made
        raise File.Error, reason: reason, action: "make directory", path: path
      end
    end
  end

  @doc false
  # For Stdio.Op: what to do about an error of init/1.
  @spec __hint__(Stdio.posix()) :: String.t() | nil
  def __hint__(:eperm), do: Hint.root()
  def __hint__(reason), do: Hint.limits(reason)
end
