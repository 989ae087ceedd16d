defmodule Stdio.Container.Root do
  @moduledoc false
  # What Stdio.Container and Stdio.Rootless have in common: a directory that becomes the root.
  #
  # Rules:
  #
  #   1. Everything is an op that needs no Elixir, so it all travels in one message.
  #   2. Targets are looked up inside the root (`Stdio.Task.bind_in/5` and its kin): what lies in the
  #      tree cannot lead a mount outside.
  #   3. Once the root is mounted read-only, nothing is made in it but below the mounts on it.
  #   4. The uid decides nothing about mounts; who may undo them is decided at the end
  #      (`restrictions/2`).

  alias Stdio.Config

  # Of the host's root, as far as it has them; every root tree has these directories.
  @system ["/bin", "/sbin", "/usr", "/lib"]
  @devices ["null", "zero", "full", "random", "urandom", "tty"]

  @tmpfs [:ms_noexec, :ms_nodev, :ms_noatime, :ms_nosuid]
  @nothing [:ms_nosuid, :ms_noexec, :ms_nodev]

  # What root in a container needs for its own files, users and sockets. Not in it, among others:
  # mounts, devices, modules, traces, foreign namespaces, files by handle.
  @capabilities [
    :cap_chown,
    :cap_dac_override,
    :cap_fowner,
    :cap_fsetid,
    :cap_kill,
    :cap_setgid,
    :cap_setuid,
    :cap_setpcap,
    :cap_net_bind_service,
    :cap_net_raw,
    :cap_sys_chroot
  ]

  @doc "The directory that becomes the root: `:path`, else that of the application."
  @spec path(Config.t()) :: binary
  def path(config), do: Config.path(config, :path) || default_path()

  @doc "App env `:path`, else `root` in the `priv` directory."
  @spec default_path() :: binary
  def default_path do
    case Application.get_env(:stdio, :path) do
      nil -> Path.join(Stdio.__basedir__(), "root")
      path -> IO.chardata_to_string(path)
    end
  end

  @doc "Session, host name, priority and the new root, up to `:cd`; `home` are options of `/home`."
  @spec ops(Config.t(), module, binary) :: [Stdio.Op.op()]
  def ops(config, behaviour, home) do
    root = path(config)

    [
      {:setsid, []},
      {:sethostname, [Config.hostname(config, behaviour)]}
    ] ++
      Stdio.Process.priority(config) ++
      [
        {:mount, ["none", "/", "", [:ms_rec, :ms_private], ""]},
        {:bind_in, [root, root, "/", [:ms_bind, :ms_rdonly, :ms_nosuid]]}
      ] ++
      Enum.map(@system, &read_only(root, &1, &1)) ++
      [{:bind_in, [root, "/lib64", "/lib64", [:ms_bind, :ms_rdonly]], ignore: [:enoent]}] ++
      Enum.map(Config.fstab(config), &fstab(root, &1)) ++
      [
        {:mount_in, [root, "tmpfs", "/tmp", @tmpfs, "mode=1777,size=4M"]},
        {:mount_in, [root, "tmpfs", "/home", @tmpfs, home]}
      ] ++
      devices(root) ++
      [
        {:proc_in, [root, "/proc", @nothing]},
        {:chdir, [root]},
        {:pivot_root, [".", "."]},
        {:umount2, [".", [:mnt_detach]]},
        {:chdir, ["/"]},
        # An error if the root was not reached.
        {:getcwd, []}
      ] ++
      for(path <- [Config.path(config, :cd)], path, do: {:chdir, [path]}) ++
      for({limit, value} <- Config.get(config, :rlimit), do: {:setrlimit, [limit, value]})
  end

  defp read_only(root, source, target),
    do: {:bind_in, [root, source, target, [:ms_bind, :ms_rdonly]]}

  defp fstab(root, "/" <> _ = directory), do: read_only(root, directory, directory)

  defp fstab(root, directory),
    do: read_only(root, Path.join(Stdio.__basedir__(), directory), "/" <> directory)

  # One that the host lacks is left out.
  defp devices(root) do
    [{:mount_in, [root, "tmpfs", "/dev", @nothing, "mode=755,size=64k"]}] ++
      for name <- @devices do
        {:device_in, [root, "/dev/" <> name, "/dev/" <> name], ignore: [:enoent]}
      end ++
      [
        {:mkdir_in, [root, "/dev/shm", 0o755]},
        {:mount_in, [root, "tmpfs", "/dev/shm", @tmpfs, "mode=1777,size=8M"]},
        {:symlink_in, [root, "/proc/self/fd", "/dev/fd"]},
        {:symlink_in, [root, "/proc/self/fd/0", "/dev/stdin"]},
        {:symlink_in, [root, "/proc/self/fd/1", "/dev/stdout"]},
        {:symlink_in, [root, "/proc/self/fd/2", "/dev/stderr"]},
        {:remount_in, [root, "/dev", [:ms_rdonly]]}
      ]
  end

  @doc """
  What a program as uid 0 may not undo. Another one loses all capabilities by its exec anyway.
  """
  @spec limit_root(Config.t(), 0..0xFFFF_FFFF) :: [Stdio.Op.op()]
  def limit_root(config, uid) do
    if uid == 0 and not Config.get(config, :setuid),
      do: [{:limit_capabilities, [@capabilities]}],
      else: []
  end

  @doc "The last ops: they hold for the program and all its descendants."
  @spec restrictions(Config.t()) :: [Stdio.Op.op()]
  def restrictions(config) do
    os = Stdio.Syscall.os()
    if(Config.get(config, :setuid), do: [], else: os.disable_setuid()) ++ os.set_pdeathsig()
  end

  @doc "What is asked of the supervisor: the PID namespace is there anyway."
  @spec containment(Config.t(), module) :: keyword
  def containment(config, behaviour) do
    if Config.get(config, :containment, behaviour) == :cgroup,
      do: [containment: :cgroup],
      else: []
  end

  @doc "The namespaces of both."
  @spec namespaces(Config.t(), module) :: [atom]
  def namespaces(config, behaviour) do
    network = if Config.get(config, :net, behaviour) == :none, do: [:clone_newnet], else: []
    [:clone_newipc, :clone_newns, :clone_newpid, :clone_newuts] ++ network
  end
end
