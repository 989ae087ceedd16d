defmodule Stdio.Container.Hint do
  @moduledoc false
  # What to do about a container that cannot be had, or an op that failed, in a sentence that names
  # the setting.

  # The switches of user namespaces below /proc/sys: the value that forbids them, the one that
  # allows them, and how the system answers.
  @switches [
    {"user/max_user_namespaces", "0", "15000"},
    {"kernel/unprivileged_userns_clone", "0", "1"},
    {"kernel/apparmor_restrict_unprivileged_userns", "1", "0"}
  ]

  @doc "For a container that only root can have."
  @spec root() :: String.t()
  def root do
    "Stdio.Container needs root: call Stdio.setuid() first, or use Stdio.Rootless"
  end

  @doc "For a PID namespace that was asked for."
  @spec pid_namespace(atom) :: String.t()
  def pid_namespace(reason) do
    "The kernel refused a new PID namespace (#{reason}). Without root it needs user namespaces: " <>
      "see the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and " <>
      "kernel.apparmor_restrict_unprivileged_userns."
  end

  @doc "For a limit that was reached."
  @spec limits(atom) :: String.t() | nil
  def limits(:enospc) do
    "too many namespaces: raise the limits below /proc/sys/user (namespaces(7))"
  end

  def limits(_reason), do: nil

  @doc """
  For user namespaces that the system refuses. `read` gives what a file of /proc/sys contains.

      iex> read = fn "kernel/unprivileged_userns_clone" -> "0"; _ -> nil end
      iex> Stdio.Container.Hint.user_namespaces(:eperm, read)
      "user namespaces are off on this system: sysctl -w kernel.unprivileged_userns_clone=1"
  """
  @spec user_namespaces(atom, (String.t() -> String.t() | nil)) :: String.t() | nil
  def user_namespaces(reason, read \\ &read/1)

  def user_namespaces(reason, read) when reason in [:eperm, :eacces, :enospc, :einval] do
    off = Enum.find(@switches, fn {name, off, _on} -> read.(name) == off end)

    case {off, reason} do
      {{name, _off, on}, _} ->
        "user namespaces are off on this system: " <>
          "sysctl -w #{String.replace(name, "/", ".")}=#{on}"

      {nil, :enospc} ->
        "too many user namespaces: raise user.max_user_namespaces (sysctl -w)"

      {nil, :einval} ->
        "this kernel may have been built without user namespaces (CONFIG_USER_NS)"

      {nil, _} ->
        "no setting forbids user namespaces here, but a chroot, a container or a security " <>
          "module around this system refuses them"
    end
  end

  def user_namespaces(_reason, _read), do: nil

  defp read(name) do
    with text when is_binary(text) <- text(Path.join("/proc/sys", name)), do: String.trim(text)
  end

  defp text(path) do
    case File.read(path) do
      {:ok, text} -> text
      {:error, _} -> nil
    end
  end

  @doc "For an op of `Stdio.Container.Root` that failed."
  @spec op(atom, {module, atom, [term]}) :: String.t() | nil
  def op(:enoent, {Stdio.Task, fun, [_task, root | arguments]})
      when fun in [:bind_in, :mount_in, :proc_in] do
    target = target(fun, arguments)
    place = Path.join(root, target)

    cond do
      not File.dir?(root) ->
        "the root tree #{root} does not exist: Stdio.Container.make_chroot_tree!() makes one in " <>
          Stdio.Container.Root.default_path()

      fun == :bind_in and not File.exists?(hd(arguments)) ->
        "there is no #{hd(arguments)} here to be bound: see `fstab:`"

      not File.exists?(place) ->
        "the root tree has no #{target}: Stdio.Container.make_chroot_tree!/1 makes directories"

      true ->
        nil
    end
  end

  def op(:enoent, {Stdio.Task, :chdir, [_task, "/" <> _ = path]}) do
    if File.dir?(path) do
      "#{path} is a directory here, but not in the root that the process has: in a container it " <>
        "takes an entry of `fstab:`, or a path of the root tree for `cd:`"
    end
  end

  def op(:eperm, {Stdio.Task, :proc_in, _}) do
    "a container around this system covers parts of /proc, so the kernel mounts no other one " <>
      "in a user namespace; run it with /proc unmasked"
  end

  def op(:eperm, {Stdio.Task, :jail, _}),
    do: "Stdio.Jail needs root: call Stdio.setuid() first"

  def op(:enotsup, {Stdio.Seccomp, :deny, [_task, filters]}), do: Stdio.Seccomp.__hint__(filters)

  # The kernel's words: no such id here (EINVAL), or setgroups(2) is denied (EPERM).
  def op(reason, {Stdio.Task, fun, _})
      when fun in [:setugid, :setgroups, :setresgid, :setresuid] and reason in [:einval, :eperm],
      do: ids(&text/1)

  def op(_reason, _op), do: nil

  @doc """
  For root of a user namespace, which has some ids only (user_namespaces(7)); `nil` elsewhere. `read`
  gives what a file contains.

      iex> read = fn "/proc/self/uid_map" -> "0 1000 1\\n1 100000 65536\\n"; _ -> nil end
      iex> Stdio.Container.Hint.ids(read)
      "the BEAM runs in a user namespace which has the user ids 0..65536 only: give `uid:` and " <>
        "`gid:` among them, as Stdio's own default is above"

      iex> read = fn "/proc/self/uid_map" -> "0 1000 1\\n"; "/proc/self/setgroups" -> "deny\\n" end
      iex> Stdio.Container.Hint.ids(read)
      "the BEAM runs in a user namespace that forbids setgroups(2), so it cannot change users: run " <>
        "it as a user other than root there, or make the namespace with newuidmap (podman, " <>
        "unshare --map-auto)"
  """
  @spec ids((Path.t() -> String.t() | nil)) :: String.t() | nil
  def ids(read) do
    map = read.("/proc/self/uid_map") || ""
    ranges = map |> String.split("\n", trim: true) |> Enum.map(&range/1)

    if ranges != [] and 0..0xFFFF_FFFE not in ranges do
      case read.("/proc/self/setgroups") do
        "deny" <> _ ->
          "the BEAM runs in a user namespace that forbids setgroups(2), so it cannot change users: " <>
            "run it as a user other than root there, or make the namespace with newuidmap " <>
            "(podman, unshare --map-auto)"

        _ ->
          "the BEAM runs in a user namespace which has the user ids #{ranges(ranges)} only: give " <>
            "`uid:` and `gid:` among them, as Stdio's own default is above"
      end
    end
  end

  defp range(line) do
    [first, _outside, count] = line |> String.split() |> Enum.map(&String.to_integer/1)
    first..(first + count - 1)
  end

  # Neighbours as one.
  defp ranges(ranges) do
    ranges
    |> Enum.sort_by(& &1.first)
    |> Enum.reduce([], fn
      next, [%{last: last} = before | done] when next.first == last + 1 ->
        [before.first..next.last | done]

      next, done ->
        [next | done]
    end)
    |> Enum.reverse()
    |> Enum.map_join(", ", &inspect/1)
  end

  defp target(:bind_in, [_source, target, _flags]), do: target
  defp target(:mount_in, [_fstype, target | _]), do: target
  defp target(:proc_in, [target, _flags]), do: target
end
