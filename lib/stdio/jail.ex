defmodule Stdio.Jail do
  @moduledoc """
  A program in a FreeBSD jail of its own. Needs root (`Stdio.setuid/0`) and FreeBSD 13.1; on another
  system the start is a `Stdio.StreamError` with the reason `:enotsup`.

  This behaviour is checked by compilers and by tests of all that needs no FreeBSD. It has never been
  run on FreeBSD here: see `docs/freebsd.md`.

  Asked of the system, or the program is not started:

  - it sees the directory `:path` as its root, with what is there and as it is there: nothing is
    mounted, and nothing made read-only
    ([jail(2)](https://man.freebsd.org/cgi/man.cgi?query=jail&sektion=2));
  - it sees and signals processes of its jail alone, has the host name `:hostname`, and may use no
    address but those of `:net`: none by default, so no network;
  - it leads its own session, with the priority and the resource limits of its config;
  - it runs as `:uid`, `:gid` and `:groups` alone, by default under a uid that belongs to no account;
  - neither it nor its descendants gain privileges by setuid programs, unless `setuid: true`
    ([procctl(2)](https://man.freebsd.org/cgi/man.cgi?query=procctl&sektion=2),
    PROC_NO_NEW_PRIVS_CTL).

  Its supervisor is a reaper, and so the program and what it has started end together. The jail ends
  with its last process.

  The root tree has to hold the program and its libraries. `/rescue` of FreeBSD, whose programs need
  none, is one already:

      Stdio.stream!(["./echo", "test"], Stdio.Jail, path: "/rescue")

  Options: see `Stdio.Config`.
  """

  @behaviour Stdio

  alias Stdio.Config
  alias Stdio.Container.Root

  # JAIL_API_VERSION
  @version 2

  @doc """
  A supervisor of its own for each program, which ends with it (`:shutdown`).

  `{:error, :enotsup}` on any system but FreeBSD.
  """
  @impl Stdio
  @spec task(Config.t()) :: {:ok, Stdio.t()} | {:error, Stdio.posix()}
  def task(config) do
    if :os.type() == {:unix, :freebsd}, do: supervisor(config), else: {:error, :enotsup}
  end

  defp supervisor(config) do
    case Config.get(config, :containment, __MODULE__) do
      :auto -> Stdio.supervisor(:shutdown)
      containment -> Stdio.supervisor(:shutdown, Stdio.__filter__(), containment: containment)
    end
  end

  @doc "Forks one process, which `ops/1` moves into the jail."
  @impl Stdio
  @spec init(Config.t()) ::
          (Stdio.Task.t() -> {:ok, Stdio.pipeline()} | {:error, Stdio.posix()})
  def init(_config), do: &Stdio.Syscall.pipeline(Stdio.Task.fork(&1))

  @doc """
  The calls made in the new process before the program starts, in this order. Any failure ends the
  start with a `Stdio.OpError`.

  | ops | what |
  |---|---|
  | `setsid`, `setpriority` if `:priority` is given | |
  | `jail` | a new jail with `:path` as its root, `:hostname` as its host name and its own, the addresses of `:net` |
  | `chdir` | to `:cd`, or `/` |
  | `setrlimit`, one each | `:rlimit` |
  | `setgroups`, `setresgid`, `setresuid` | `:groups`, `:gid`, `:uid` |
  | `no_new_privs` | unless `setuid: true` |

      iex> Stdio.Jail.ops(path: "/rescue", hostname: "a", uid: 65578, rlimit: [], setuid: true)
      [
        {:setsid, []},
        {:jail,
         [%{version: 2, path: "/rescue", hostname: "a", jailname: "a", ip4: [], ip6: []}]},
        {:chdir, ["/"]},
        {:setgroups, [[]]},
        {:setresgid, [65578, 65578, 65578]},
        {:setresuid, [65578, 65578, 65578]}
      ]
  """
  @impl Stdio
  @spec ops(Config.t()) :: [{atom, [term]}]
  def ops(config) do
    uid = Config.uid(config, __MODULE__)
    gid = Config.gid(config, __MODULE__)

    [{:setsid, []}] ++
      Stdio.Process.priority(config) ++
      [
        {:jail, [jail(config)]},
        {:chdir, [Config.path(config, :cd) || "/"]}
      ] ++
      for({limit, value} <- Config.get(config, :rlimit), do: {:setrlimit, [limit, value]}) ++
      [
        {:setgroups, [Config.groups(config)]},
        {:setresgid, [gid, gid, gid]},
        {:setresuid, [uid, uid, uid]}
      ] ++ disable_setuid(Config.get(config, :setuid))
  end

  defp jail(config) do
    hostname = Config.hostname(config, __MODULE__)

    config
    |> Config.get(:net, __MODULE__)
    |> addresses()
    |> Map.merge(%{
      version: @version,
      path: Root.path(config),
      hostname: hostname,
      jailname: hostname
    })
  end

  defp disable_setuid(true), do: []
  defp disable_setuid(false), do: Stdio.Syscall.FreeBSD.disable_setuid()

  # Only :host has to look.
  defp addresses(:host) do
    case :inet.getifaddrs() do
      {:ok, interfaces} -> __addresses__(:host, interfaces)
      {:error, reason} -> raise Stdio.OpError.fork(reason)
    end
  end

  defp addresses(net), do: __addresses__(net, [])

  @doc false
  # The addresses of a jail for `:net`; the interfaces are those of :inet.getifaddrs/0.
  @spec __addresses__(:none | :host | map, [{charlist, keyword}]) :: %{ip4: list, ip6: list}
  def __addresses__(:none, _interfaces), do: %{ip4: [], ip6: []}

  def __addresses__(:host, interfaces) do
    interfaces
    |> Enum.map(fn {_name, options} -> Keyword.get_values(options, :addr) end)
    |> Enum.find([], &(&1 != []))
    |> Enum.group_by(&if(tuple_size(&1) == 4, do: :ip4, else: :ip6))
    |> __addresses__([])
  end

  def __addresses__(%{} = net, _interfaces), do: Map.merge(%{ip4: [], ip6: []}, net)

  @doc "Kills the process whose start has failed, and all it has started."
  @impl Stdio
  @spec onerror(Config.t()) :: (Stdio.Task.t() -> any)
  defdelegate onerror(config), to: Stdio.Process

  @doc "As `Stdio.Process.onexit/1`."
  @impl Stdio
  @spec onexit(Config.t()) :: (Stdio.ProcessTree.t() -> boolean)
  defdelegate onexit(config), to: Stdio.Process

  @doc false
  # For the stream: what to do about an error of task/1; nil if it is not this behaviour's.
  @spec __task_hint__(Stdio.posix(), {atom, atom}) :: String.t() | nil
  def __task_hint__(reason, os \\ :os.type())

  def __task_hint__(:enotsup, os) when os != {:unix, :freebsd} do
    "Stdio.Jail needs FreeBSD, and this is #{elem(os, 1)}. On Linux use Stdio.Container (root) or " <>
      "Stdio.Rootless."
  end

  def __task_hint__(_reason, _os), do: nil

  @doc "No options of its own."
  @impl Stdio
  @spec options() :: []
  def options, do: []
end
