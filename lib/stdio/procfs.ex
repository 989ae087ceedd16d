defmodule Stdio.Procfs do
  @moduledoc """
  Processes as [proc(5)](https://man7.org/linux/man-pages/man5/proc.5.html) shows them.

  `procfs` is the directory in which it is mounted; process ids are those of its PID namespace.
  A process that ends while it is looked at is left out. What is returned may be out of date by
  then: a list of processes is a snapshot that nothing holds still.
  """

  @typedoc "The fields of a process: names in lower case, values without the space around them."
  @type process :: %{String.t() => String.t()}

  @doc """
  All processes, lowest id first, with the fields of their `status` file, such as `"pid"`,
  `"ppid"`, `"name"`, `"state"`, `"uid"`.

      iex> Stdio.Procfs.ps() |> Enum.find(&(&1["pid"] == "1")) |> Map.fetch!("ppid")
      "0"

  The kernel escapes a newline or backslash in a name; its bytes need not be UTF-8.
  """
  @spec ps(Path.t()) :: [process]
  def ps(procfs \\ "/proc") do
    for pid <- pids(procfs), {:ok, process} <- [status(pid, procfs)], do: process
  end

  @doc false
  # One entry of ps/1.
  @spec status(pos_integer, Path.t()) :: {:ok, process} | {:error, File.posix()}
  def status(pid, procfs) do
    with {:ok, text} <- File.read(path(procfs, [pid, "status"])) do
      # Split at bytes: a name need not be UTF-8, and may have a colon in it.
      {:ok,
       for line <- :binary.split(text, "\n", [:global]),
           [key, value] <- [:binary.split(line, ":")],
           into: %{} do
         {String.downcase(key, :ascii), String.trim(value)}
       end}
    end
  end

  @doc """
  The direct children of `pid`, from the `children` files of its threads.

  Where there is no such file (a kernel without CONFIG_PROC_CHILDREN, FreeBSD's linprocfs), all
  its descendants, by a walk over all processes. `0` lists everything. Lowest first; `[]` if there
  is no such process.

      iex> 1 in Stdio.Procfs.children(0)
      true
  """
  @spec children(non_neg_integer, Path.t()) :: [pos_integer]
  def children(pid, procfs \\ "/proc")

  def children(0, procfs), do: pids(procfs)

  def children(pid, procfs) when is_integer(pid) and pid > 0 do
    case threads(pid, procfs) do
      {:ok, children} -> children |> Enum.uniq() |> Enum.sort()
      # No such file anywhere, or the process is gone: only then is its directory, too.
      :error -> if File.dir?(path(procfs, [pid])), do: walk(pid, procfs), else: []
    end
  end

  @doc false
  # All descendants, parents before their children where the kernel lists children.
  @spec descendants(pos_integer, Path.t()) :: [pos_integer]
  def descendants(pid, procfs) do
    case threads(pid, procfs) do
      {:ok, children} -> generations(Enum.uniq(children), MapSet.new([pid]), procfs)
      :error -> children(pid, procfs)
    end
  end

  defp generations([], _seen, _procfs), do: []

  defp generations(pids, seen, procfs) do
    seen = MapSet.union(seen, MapSet.new(pids))

    # Without the file it has ended; its children are to be found with another process.
    next =
      for pid <- pids,
          {:ok, children} <- [threads(pid, procfs)],
          child <- children,
          child not in seen,
          uniq: true,
          do: child

    pids ++ generations(next, seen, procfs)
  end

  # A child is listed with the thread that forked it. Threads that end meanwhile are passed over.
  defp threads(pid, procfs) do
    texts =
      for thread <- pids(path(procfs, [pid, "task"])),
          {:ok, text} <- [File.read(path(procfs, [pid, "task", thread, "children"]))],
          do: text

    case texts do
      [] -> :error
      _ -> {:ok, for(text <- texts, pid <- String.split(text), do: String.to_integer(pid))}
    end
  end

  defp walk(pid, procfs) do
    children =
      Enum.group_by(ps(procfs), &number(&1["ppid"]), fn process -> number(process["pid"]) end)

    pid |> below(children, MapSet.new([pid])) |> MapSet.delete(pid) |> Enum.sort()
  end

  # The snapshot is not of one moment: with ids used again it can have a cycle.
  defp below(pid, children, seen) do
    Enum.reduce(Map.get(children, pid, []), seen, fn child, seen ->
      if MapSet.member?(seen, child),
        do: seen,
        else: below(child, children, MapSet.put(seen, child))
    end)
  end

  # The directories whose names are numbers, in their order.
  defp pids(directory) do
    case File.ls(directory) do
      {:ok, names} -> Enum.sort(for name <- names, {pid, ""} <- [Integer.parse(name)], do: pid)
      {:error, _} -> []
    end
  end

  defp number(text) do
    case Integer.parse(text || "") do
      {number, _} -> number
      :error -> nil
    end
  end

  defp path(procfs, parts), do: Path.join([procfs | Enum.map(parts, &to_string/1)])
end
