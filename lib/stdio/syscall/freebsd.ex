defmodule Stdio.Syscall.FreeBSD do
  @moduledoc """
  FreeBSD: see `Stdio.Syscall` for what each function is for.

  Sources: procctl(2), setproctitle(3), signal(3), linprocfs(5).
  """

  alias Stdio.Syscall

  @behaviour Syscall
  # The calls of other systems are not in Stdio.Task here.
  @compile {:no_warn_undefined, [Stdio.Task]}
  @dialyzer {:no_missing_calls, procctl: 3}

  @sigkill 9
  @subtree 2
  @within 5000
  @pause 10

  @doc "setproctitle(3)."
  @impl true
  @spec setproctitle(Syscall.task(), iodata) :: :ok | {:error, atom}
  def setproctitle(task, title), do: Stdio.Task.setproctitle(task, title)

  @doc "PROC_REAP_ACQUIRE, FreeBSD 10.2."
  @impl true
  @spec subreaper(Syscall.task()) :: :ok | {:error, atom}
  def subreaper(task) do
    with {:ok, _, _} <- procctl(task, :proc_reap_acquire, []), do: :ok
  end

  @doc "PROC_REAP_KILL of all descendants of the supervisor; the kernel finds them."
  @impl true
  @spec reap(Syscall.tree(), Stdio.Signal.t()) :: :ok | {:error, :etimedout}
  def reap(%{supervisor: %{init: task}}, signal), do: kill(task, 0, 0, number!(signal))

  @doc """
  PROC_REAP_KILL of the descendants of `os_pid`, which is the supervisor or a direct child of it:
  the kernel knows the subtrees of a reaper's own children only.
  """
  @impl true
  @spec reap(Syscall.tree(), pos_integer, Stdio.Signal.t()) :: :ok | {:error, :etimedout}
  def reap(%{supervisor: %{init: task}} = tree, os_pid, signal) do
    if task != :noproc and Stdio.Task.pidof(task) == os_pid do
      reap(tree, signal)
    else
      kill(task, @subtree, os_pid, number!(signal))
    end
  end

  defp kill(:noproc, _flags, _pid, _number), do: :ok

  defp kill(task, flags, pid, @sigkill) do
    deadline = System.monotonic_time(:millisecond) + @within
    kill_all(task, request(@sigkill, flags, pid), deadline)
  end

  defp kill(task, flags, pid, number) do
    procctl(task, :proc_reap_kill, [request(number, flags, pid)])
    :ok
  end

  # `:esrch`: there was none left, or the supervisor is gone, and they with it.
  defp kill_all(task, request, deadline) do
    cond do
      procctl(task, :proc_reap_kill, [request]) == {:error, :esrch} ->
        :ok

      System.monotonic_time(:millisecond) >= deadline ->
        {:error, :etimedout}

      true ->
        Process.sleep(@pause)
        kill_all(task, request, deadline)
    end
  end

  # struct procctl_reaper_kill: rk_sig, rk_flags, rk_subtree, rk_killed and rk_fpid, which the
  # kernel sets, and the 60 bytes of rk_pad0. The kernel copies all 80 bytes in and out.
  defp request(number, flags, pid) do
    <<number::32-native, flags::32-native, pid::32-native, 0::64, 0::size(60)-unit(8)>>
  end

  defp procctl(task, command, data) do
    case Stdio.Task.pidof(task) do
      :noproc -> {:error, :esrch}
      pid -> Stdio.Task.procctl(task, :p_pid, pid, command, data)
    end
  end

  # It goes into a struct, which nothing translates.
  defp number!(signal), do: Stdio.Signal.__number__!(signal, :freebsd)

  @doc "That of the Linux emulation, linprocfs(5), if it is mounted."
  @impl true
  @spec procfs() :: Path.t()
  def procfs, do: "/compat/linux/proc"

  @doc "PROC_NO_NEW_PRIVS_CTL, FreeBSD 13.1."
  @impl true
  @spec disable_setuid() :: [{atom, [term]}]
  def disable_setuid, do: [{:no_new_privs, []}]

  @doc "As the default: no ops."
  @impl true
  @spec set_pdeathsig() :: [{atom, [term]}]
  defdelegate set_pdeathsig(), to: Syscall

  @doc "As the default: a fork, no namespaces."
  @impl true
  @spec subprocess(Stdio.Config.t()) :: Syscall.init()
  defdelegate subprocess(config), to: Syscall
end
