defmodule Stdio.Syscall.Linux do
  @moduledoc """
  Linux: see `Stdio.Syscall` for what each function is for.

  Sources: prctl(2), clone(2), user_namespaces(7), proc(5).
  """

  alias Stdio.Syscall
  alias Stdio.Syscall.Walk

  @behaviour Syscall
  @compile {:no_warn_undefined, [Stdio.Task]}

  # TASK_COMM_LEN is 16, with the NUL.
  @name_max 15

  @doc "The title, which `ps` and `/proc/PID/cmdline` show, and the name of the thread."
  @impl true
  @spec setproctitle(Syscall.task(), iodata) :: :ok | {:error, atom}
  def setproctitle(task, title) do
    title = IO.iodata_to_binary(title)
    name = binary_part(title, 0, min(byte_size(title), @name_max)) <> <<0>>

    with :ok <- Stdio.Task.setproctitle(task, title) do
      prctl(task, :pr_set_name, name)
    end
  end

  @doc "PR_SET_CHILD_SUBREAPER, Linux 3.4."
  @impl true
  @spec subreaper(Syscall.task()) :: :ok | {:error, atom}
  def subreaper(task), do: prctl(task, :pr_set_child_subreaper, 1)

  defp prctl(task, option, argument) do
    with {:ok, _, _, _, _, _} <- Stdio.Task.prctl(task, option, argument, 0, 0, 0), do: :ok
  end

  @doc "Signals all descendants of the supervisor, which it does itself: with its own privileges."
  @impl true
  @spec reap(Syscall.tree(), Stdio.Signal.t()) :: :ok | {:error, :etimedout}
  def reap(%{supervisor: %{init: task}}, signal) do
    kill? = Stdio.Signal.signal_number!(signal) == 9

    if kill? and is_struct(task, Stdio.Task) do
      # Nothing outlives a dead one.
      with {:error, :esrch} <- Stdio.Task.__reap__(task), do: :ok
    else
      reap_below(task, fn supervisor -> supervisor end, signal)
    end
  end

  @doc "Signals all descendants of `os_pid`, which is the supervisor or a process below it."
  @impl true
  @spec reap(Syscall.tree(), pos_integer, Stdio.Signal.t()) :: :ok | {:error, :etimedout}
  def reap(%{supervisor: %{init: task}}, os_pid, signal) do
    reap_below(task, fn _supervisor -> os_pid end, signal)
  end

  defp reap_below(task, root, signal) do
    number = Stdio.Signal.signal_number!(signal)

    case pidof(task) do
      # Nothing outlives it.
      :noproc ->
        :ok

      supervisor ->
        kill = fn pid -> Stdio.Task.kill(task, pid, number) end
        options = [procfs: Syscall.os().procfs(), supervisor: supervisor]
        Walk.reap(root.(supervisor), number, kill, options)
    end
  end

  defp pidof(:noproc), do: :noproc
  defp pidof(task), do: Stdio.Task.pidof(task)

  @doc "App env `:procfs`, else `\"/proc\"`."
  @impl true
  @spec procfs() :: Path.t()
  def procfs, do: Application.get_env(:stdio, :procfs, "/proc")

  @doc "PR_SET_NO_NEW_PRIVS, Linux 3.5."
  @impl true
  @spec disable_setuid() :: [{atom, [term]}]
  def disable_setuid, do: [{:no_new_privs, []}]

  @doc "PR_SET_PDEATHSIG with SIGKILL."
  @impl true
  @spec set_pdeathsig() :: [{atom, [term]}]
  def set_pdeathsig, do: [{:set_pdeathsig, [9]}]

  @doc """
  A fork, or for `net: :none` and `containment: :pid_namespace` a clone with CLONE_NEWNET and
  CLONE_NEWPID; unless root's, in a user namespace too, in which the user keeps the ids.
  """
  @impl true
  @spec subprocess(Stdio.Config.t()) :: Syscall.init()
  def subprocess(config) do
    case Syscall.namespaces(config) do
      [] -> Syscall.subprocess(config)
      namespaces -> &Syscall.pipeline(Stdio.Task.__birth__(&1, namespaces, nil, [], nil))
    end
  end
end
