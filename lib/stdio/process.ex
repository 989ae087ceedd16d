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

  alias Stdio.Config

  @doc """
  The calls made in the new process before the program starts, in this order. Any failure ends
  the start with a `Stdio.OpError`.

  | op | from option | source |
  |---|---|---|
  | `setsid` | | setsid(2) |
  | `setpriority` | `:priority` | setpriority(2) |
  | `chdir` | `:path` or `:cd` | chdir(2) |
  | `setrlimit`, one each | `:rlimit` | setrlimit(2) |
  | `setugid`, nothing unless root | `:uid`, `:gid`, `:groups` | setgroups(2), setresgid(2), setresuid(2) |
  | `no_new_privs` | unless `setuid: true` | prctl(2) |
  | `set_pdeathsig` | | prctl(2); it comes last, as a change of ids clears it |

  The last two are Linux's; `Stdio.Syscall` has what takes their place elsewhere.

      iex> Stdio.Process.ops(path: "/tmp", rlimit: [], uid: 1000, setuid: true)
      [
        {:setsid, []},
        {:setpriority, [:prio_process, 0, 0]},
        {:chdir, ["/tmp"]},
        {:setugid, [1000, 1000, []]},
        {:set_pdeathsig, [9]}
      ]
  """
  @spec ops(Config.t()) :: [{atom, [term]}]
  def ops(config) do
    os = Stdio.Syscall.os()

    [
      {:setsid, []},
      {:setpriority, [:prio_process, 0, Config.get(config, :priority)]},
      {:chdir, [directory(config)]}
    ] ++
      for({limit, value} <- Config.get(config, :rlimit), do: {:setrlimit, [limit, value]}) ++
      [{:setugid, [Config.uid(config), Config.gid(config), Config.groups(config)]}] ++
      disable_setuid(os, Config.get(config, :setuid)) ++ os.set_pdeathsig()
  end

  defp directory(config),
    do: Config.path(config, :path) || Config.path(config, :cd) || cwd!()

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
end
