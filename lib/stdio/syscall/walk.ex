defmodule Stdio.Syscall.Walk do
  @moduledoc false
  # Signals all descendants of a process, found by procfs.
  #
  # Rules:
  #
  #   1. Parents come before their children, so that a killed one forks no more.
  #   2. SIGKILL repeats until nothing is found: one may have forked while it was looked for.
  #   3. Any other signal goes once to each that was found: they may handle it and live on.
  #   4. The supervisor reaps what is killed, so zombies below it are waited for. Another process
  #      may never do so: below that one they are not left over, as they can do nothing any more.

  alias Stdio.Procfs

  @sigkill 9
  @within 5000
  @pause_max 16

  @type options :: [procfs: Path.t(), supervisor: pos_integer, within: pos_integer]

  @doc """
  `kill.(pid)` is called with pids as the supervisor sees them; what it returns does not matter.
  `supervisor` and `within` (ms): who kills and reaps them, and how long it may take. `pid` is that of
  the supervisor, or of a process below it as the supervisor sees it; below any other, which may be
  a stranger's by now, nothing is done.
  """
  @spec reap(pos_integer, 1..64, (pos_integer -> term), options) :: :ok | {:error, :etimedout}
  def reap(pid, signal, kill, options) do
    procfs = Keyword.get(options, :procfs, "/proc")
    supervisor = Keyword.fetch!(options, :supervisor)
    depth = depth(supervisor, procfs)
    root = find(pid, supervisor, depth, procfs)

    walk = %{
      root: root,
      procfs: procfs,
      kill: kill,
      depth: depth,
      zombies?: root == supervisor,
      deadline: now() + 1000 * Keyword.get(options, :within, @within)
    }

    cond do
      root == nil -> :ok
      signal == @sigkill -> kill_all(walk, 1)
      true -> once(walk)
    end
  end

  # Its pid in procfs.
  defp find(supervisor, supervisor, _depth, _procfs), do: supervisor

  defp find(pid, supervisor, depth, procfs) do
    supervisor |> Procfs.descendants(procfs) |> Enum.find(&(seen(&1, depth, procfs) == pid))
  end

  defp once(walk) do
    walk |> descendants() |> Enum.each(&kill(&1, walk))
  end

  defp kill_all(walk, pause) do
    pids = descendants(walk)
    running = Enum.filter(pids, &running?(&1, walk.procfs))
    late? = now() >= walk.deadline

    cond do
      pids == [] ->
        :ok

      running == [] and (late? or not walk.zombies?) ->
        :ok

      late? ->
        {:error, :etimedout}

      true ->
        Enum.each(running, &kill(&1, walk))
        Process.sleep(pause)
        kill_all(walk, min(pause * 2, @pause_max))
    end
  end

  defp descendants(%{root: root, procfs: procfs}), do: Procfs.descendants(root, procfs)

  defp kill(pid, %{depth: depth, kill: kill, procfs: procfs}) do
    case seen(pid, depth, procfs) do
      nil -> :ok
      pid -> kill.(pid)
    end
  end

  # The supervisor may be in a PID namespace below that of procfs, where pids are others.
  defp seen(pid, 1, _procfs), do: pid
  defp seen(pid, depth, procfs), do: pid |> namespaced(procfs) |> Enum.at(depth - 1)

  defp depth(supervisor, procfs), do: max(length(namespaced(supervisor, procfs)), 1)

  # Its pids from the namespace of procfs down to its own (Linux 4.1).
  defp namespaced(pid, procfs) do
    with {:ok, %{"nspid" => pids}} <- Procfs.status(pid, procfs) do
      pids |> String.split() |> Enum.map(&String.to_integer/1)
    else
      _ -> []
    end
  end

  # A first thread that has ended looks like a zombie while others run.
  defp running?(pid, procfs) do
    case Procfs.status(pid, procfs) do
      {:ok, %{"state" => <<state, _::binary>>} = status} when state in [?Z, ?X, ?x] ->
        Map.get(status, "threads", "1") not in ["0", "1"]

      {:ok, _} ->
        true

      {:error, _} ->
        false
    end
  end

  # Milliseconds are rounded down, and a deadline of them is up to one too early.
  defp now, do: System.monotonic_time(:microsecond)
end
