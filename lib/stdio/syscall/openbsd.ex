defmodule Stdio.Syscall.OpenBSD do
  @moduledoc """
  OpenBSD: see `Stdio.Syscall` for what each function is for.

  Sources: pledge(2), setproctitle(3).
  """

  alias Stdio.Syscall

  @behaviour Syscall
  @compile {:no_warn_undefined, [Stdio.Task]}

  @promises "stdio rpath wpath cpath dpath tmppath inet mcast fattr chown flock unix dns getpw " <>
              "sendfd recvfd tape tty proc exec prot_exec settime ps vminfo id pf route wroute " <>
              "audio video bpf unveil error disklabel drm vmm"

  @doc "setproctitle(3)."
  @impl true
  @spec setproctitle(Syscall.task(), iodata) :: :ok | {:error, atom}
  def setproctitle(task, title), do: Stdio.Task.setproctitle(task, title)

  @doc "As the default: there is no subreaper."
  @impl true
  @spec subreaper(Syscall.task()) :: :ok | {:error, atom}
  defdelegate subreaper(task), to: Syscall

  @doc "As the default: process groups."
  @impl true
  @spec reap(Syscall.tree(), Stdio.Signal.t()) :: :ok
  defdelegate reap(tree, signal), to: Syscall

  @doc "As the default: process groups."
  @impl true
  @spec reap(Syscall.tree(), pos_integer, Stdio.Signal.t()) :: :ok
  defdelegate reap(tree, os_pid, signal), to: Syscall

  @doc "As the default; OpenBSD has no procfs."
  @impl true
  @spec procfs() :: Path.t()
  defdelegate procfs(), to: Syscall

  @doc "A process that has pledged, even everything, cannot execute setuid programs."
  @impl true
  @spec disable_setuid() :: [{atom, [term]}]
  def disable_setuid, do: [{:pledge, [@promises, []]}]

  @doc "As the default: no ops."
  @impl true
  @spec set_pdeathsig() :: [{atom, [term]}]
  defdelegate set_pdeathsig(), to: Syscall

  @doc "As the default: a fork, no namespaces."
  @impl true
  @spec subprocess(Stdio.Config.t()) :: Syscall.init()
  defdelegate subprocess(config), to: Syscall
end
