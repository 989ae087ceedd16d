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

  @doc "Signals all descendants of `os_pid`."
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
      namespaces -> &clone(&1, namespaces)
    end
  end

  defp clone(supervisor, namespaces) do
    case ids(supervisor) do
      {:ok, {0, _gid}} ->
        Syscall.pipeline(Stdio.Task.clone(supervisor, namespaces))

      {:ok, ids} ->
        with {:ok, task} <- Stdio.Task.clone(supervisor, [:clone_newuser | namespaces]) do
          mapped(task, ids)
        end

      {:error, _} = error ->
        error
    end
  end

  # The supervisor's calls are restricted and a child in a new user namespace has no ids yet, so
  # another child is asked.
  defp ids(supervisor) do
    with {:ok, probe} <- Stdio.Task.fork(supervisor) do
      uid = Stdio.Task.getuid(probe)
      gid = Stdio.Task.getgid(probe)
      Stdio.Task.stop(probe)

      # An error in place of an id: it has died.
      with uid when is_integer(uid) <- uid,
           gid when is_integer(gid) <- gid,
           do: {:ok, {uid, gid}}
    end
  end

  defp mapped(task, {uid, gid}) do
    case map_ids(task, {uid, uid}, {gid, gid}) do
      :ok ->
        Syscall.pipeline({:ok, task})

      error ->
        Stdio.Task.stop(task)
        error
    end
  end

  @doc false
  # `task` is the first in a new user namespace; each pair is the id inside and that outside. An
  # unprivileged process may map its group only after giving up setgroups(2).
  @spec map_ids(
          Syscall.task(),
          {non_neg_integer, non_neg_integer},
          {non_neg_integer, non_neg_integer}
        ) ::
          :ok | {:error, atom}
  def map_ids(task, {uid, outer_uid}, {gid, outer_gid}) do
    ops = [
      {:write_file, ["/proc/self/uid_map", "#{uid} #{outer_uid} 1\n"]},
      {:write_file, ["/proc/self/setgroups", "deny"]},
      {:write_file, ["/proc/self/gid_map", "#{gid} #{outer_gid} 1\n"]}
    ]

    with {:error, %{reason: reason}} <- Stdio.Op.Runner.run(task, ops), do: {:error, reason}
  end
end
