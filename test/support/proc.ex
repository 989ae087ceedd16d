defmodule Stdio.Test.Proc do
  @moduledoc """
  What the kernel shows about processes, for tests: by mark, by pid, by ancestry.

  A mark is a unique string which a test puts into the arguments of its programs. Their forks keep
  it, so `find/1` sees every one of them in `/proc/*/cmdline`, however far it has run.
  """

  alias Stdio.Test.{Fixtures, Peer}

  @type os_pid :: pos_integer
  @typedoc "One line of the process table."
  @type entry :: %{
          ppid: non_neg_integer,
          pgid: non_neg_integer,
          sid: non_neg_integer,
          state: String.t(),
          name: String.t(),
          start: non_neg_integer
        }

  ## Marks

  @doc "A string that is in no other process's arguments."
  @spec mark() :: String.t()
  def mark do
    random = :rand.uniform(0xFFFFFFFF) |> Integer.to_string(36)
    "mark-#{os_pid()}-#{System.unique_integer([:positive])}-#{random}"
  end

  @doc """
  The pids of all processes, or of those given, with `mark` in their arguments, zombies excluded
  (they have none).

  A process that forks and exits all the time can slip through: to know that nothing is left, use
  `gone?/1`.
  """
  @spec find(String.t(), [os_pid]) :: [os_pid]
  def find(mark, pids \\ os_pids()) do
    own = os_pid()
    for pid <- pids, pid != own, :binary.match(cmdline(pid), mark) != :nomatch, do: pid
  end

  @doc """
  Is no process with this mark left?

  True if nothing was found and the kernel counted no fork while looking. If it did, a process that
  forks and exits all the time may have slipped through; as it has one of the youngest pids, these
  are looked at a few hundred times before the answer is true.
  """
  @spec gone?(String.t()) :: boolean
  def gone?(mark) do
    before = forks()

    find(mark) == [] and
      (forks() == before or
         not Enum.any?(1..300, fn _ -> find(mark, youngest_os_pids()) != [] end))
  end

  @doc "Kills by mark until nothing is left: cleaning up behind a test that failed."
  @spec sweep(String.t()) :: :ok
  def sweep(mark) do
    wait_until(
      fn ->
        for pid <- find(mark) ++ find(mark, youngest_os_pids()), do: kill_with_group(pid, mark)
        gone?(mark)
      end,
      20_000
    )

    :ok
  end

  # The group too, if it is the program's own: that gets those which change their pids.
  defp kill_with_group(pid, mark) do
    case stat(pid) do
      %{pgid: pgid} when pgid > 1 ->
        leader = cmdline(pgid)
        own? = not File.exists?("/proc/#{pgid}") or :binary.match(leader, mark) != :nomatch
        if own?, do: kill("-#{pgid}")
        kill(pid)

      _ ->
        :ok
    end
  end

  ## Time

  @doc """
  Calls `fun` every few milliseconds until its result is truthy or `deadline_ms` have passed.
  Returns the last result: `assert wait_until(fn -> gone?(mark) end, 250)`.
  """
  @spec wait_until((() -> result), non_neg_integer) :: result when result: term
  def wait_until(fun, deadline_ms \\ 2000) do
    poll(fun, System.monotonic_time(:millisecond) + deadline_ms)
  end

  defp poll(fun, deadline) do
    result = fun.()

    if result || System.monotonic_time(:millisecond) >= deadline do
      result
    else
      Process.sleep(5)
      poll(fun, deadline)
    end
  end

  @doc "The milliseconds until `fun` is truthy, or nil if it is not within `deadline_ms`."
  @spec time_until((() -> term), non_neg_integer) :: non_neg_integer | nil
  def time_until(fun, deadline_ms \\ 2000) do
    started = System.monotonic_time(:millisecond)

    if wait_until(fun, deadline_ms) do
      System.monotonic_time(:millisecond) - started
    end
  end

  ## The mailbox

  @doc """
  The messages of the calling process. `Process.info/2` alone does not show those that have come since
  its last receive (seen on OTP 25).
  """
  @spec messages() :: [term]
  def messages do
    receive do: (:"$none" -> :ok), after: (0 -> :ok)
    {:messages, messages} = Process.info(self(), :messages)
    messages
  end

  ## One process

  @doc "The pid of this BEAM."
  @spec os_pid() :: os_pid
  def os_pid, do: String.to_integer(System.pid())

  @doc "Does the process exist, other than as a zombie?"
  @spec alive?(os_pid) :: boolean
  def alive?(pid) do
    case stat(pid) do
      %{state: state} -> state not in ["Z", "X"]
      nil -> false
    end
  end

  @doc """
  `/proc/PID/status` as a map: lower-cased names, trimmed values, as in `Stdio.Procfs.ps/1`. Nil if
  there is no such process.
  """
  @spec status(os_pid) :: %{String.t() => String.t()} | nil
  def status(pid) do
    with {:ok, text} <- File.read("/proc/#{pid}/status") do
      for line <- String.split(text, "\n", trim: true),
          [name, value] <- [String.split(line, ":", parts: 2)],
          into: %{},
          do: {String.downcase(name), String.trim(value)}
    else
      {:error, _} -> nil
    end
  end

  @doc "The fields of `/proc/PID/stat` that tests look at, or nil."
  @spec stat(os_pid) :: entry | nil
  def stat(pid) do
    with {:ok, text} <- File.read("/proc/#{pid}/stat"),
         # The name may contain anything, so it ends at the last parenthesis.
         [_, name, rest] <- Regex.run(~r/^\d+ \((.*)\) (.*)$/s, text) do
      fields = String.split(rest)
      number = fn index -> fields |> Enum.at(index) |> String.to_integer() end

      %{
        name: name,
        state: hd(fields),
        ppid: number.(1),
        pgid: number.(2),
        sid: number.(3),
        start: number.(19)
      }
    else
      _ -> nil
    end
  end

  @doc ~S|The arguments as the kernel has them, each with a NUL behind it; `""` without any.|
  @spec cmdline(os_pid) :: binary
  def cmdline(pid) do
    case File.read("/proc/#{pid}/cmdline") do
      {:ok, bytes} -> bytes
      {:error, _} -> ""
    end
  end

  @doc "Open descriptors with what they are; nil if that may not be seen."
  @spec fds(os_pid) :: %{non_neg_integer => String.t()} | nil
  def fds(pid \\ os_pid()) do
    dir = "/proc/#{pid}/fd"

    with {:ok, names} <- File.ls(dir) do
      # The descriptor that listed the directory is closed again: its link cannot be read.
      for name <- names, {:ok, target} <- [:file.read_link_all("#{dir}/#{name}")], into: %{} do
        {String.to_integer(name), IO.chardata_to_string(target)}
      end
    else
      {:error, _} -> nil
    end
  end

  @doc "Threads: tid => name."
  @spec threads(os_pid) :: %{pos_integer => String.t()}
  def threads(pid \\ os_pid()) do
    for name <- ls("/proc/#{pid}/task"),
        {:ok, comm} <- [File.read("/proc/#{pid}/task/#{name}/comm")],
        into: %{},
        do: {String.to_integer(name), String.trim(comm)}
  end

  @doc "Resident memory in KiB, of this BEAM by default; 0 if the process has gone."
  @spec rss_kib(os_pid) :: non_neg_integer
  def rss_kib(pid \\ os_pid()), do: kib(status(pid)["vmrss"])

  @doc "Memory in KiB with shared pages divided among their users; nil if that may not be seen."
  @spec pss_kib(os_pid) :: non_neg_integer | nil
  def pss_kib(pid \\ os_pid()) do
    with {:ok, text} <- File.read("/proc/#{pid}/smaps_rollup"),
         [_, value] <- Regex.run(~r/^Pss:\s+(\d+)/m, text) do
      String.to_integer(value)
    else
      _ -> nil
    end
  end

  defp kib(nil), do: 0
  defp kib(text), do: text |> Integer.parse() |> elem(0)

  @doc "Sends a signal, by number or name, through `/bin/sh`: it works whatever Stdio's state."
  @spec kill(os_pid | String.t(), pos_integer | String.t()) :: :ok | :error
  def kill(pid, signal \\ 9) do
    case System.cmd("/bin/sh", ["-c", "kill -#{signal} #{pid}"], stderr_to_stdout: true) do
      {_, 0} -> :ok
      {_, _} -> :error
    end
  end

  ## Many processes

  @doc "All pids, lowest first."
  @spec os_pids() :: [os_pid]
  def os_pids do
    numbers = for name <- ls("/proc"), {pid, ""} <- [Integer.parse(name)], do: pid
    Enum.sort(numbers)
  end

  @doc "The process table."
  @spec table() :: %{os_pid => entry}
  def table do
    for pid <- os_pids(), entry = stat(pid), into: %{}, do: {pid, entry}
  end

  @doc "Direct children, zombies included."
  @spec children(os_pid) :: [os_pid]
  def children(pid) do
    for {child, %{ppid: ^pid}} <- table(), do: child
  end

  @doc "Children, their children, and so on, as far as they are still linked by parent."
  @spec descendants(os_pid, %{os_pid => entry}) :: [os_pid]
  def descendants(pid \\ os_pid(), table \\ table()) do
    by_parent = Enum.group_by(table, fn {_, entry} -> entry.ppid end, fn {child, _} -> child end)
    walk(Map.get(by_parent, pid, []), by_parent)
  end

  defp walk(pids, by_parent) do
    Enum.flat_map(pids, fn pid -> [pid | walk(Map.get(by_parent, pid, []), by_parent)] end)
  end

  # The last pid that was given out, and a few before it.
  defp youngest_os_pids do
    with {:ok, text} <- File.read("/proc/loadavg"),
         [last | _] <- text |> String.split() |> Enum.reverse() do
      last = String.to_integer(last)
      Enum.to_list(last..max(last - 3, 1)//-1)
    else
      _ -> []
    end
  end

  # Forks and threads since boot.
  defp forks do
    with {:ok, text} <- File.read("/proc/stat"),
         [_, count] <- Regex.run(~r/^processes (\d+)/m, text) do
      count
    else
      # Unknown, and unequal to anything.
      _ -> make_ref()
    end
  end

  defp ls(dir) do
    case File.ls(dir) do
      {:ok, names} -> names
      # A process that ended meanwhile; anything else (emfile) has to be heard of.
      {:error, :enoent} -> []
      {:error, reason} -> raise File.Error, reason: reason, action: "list", path: dir
    end
  end

  ## Programs and BEAMs

  @doc "The path of a hostile fixture, see `native/testbin`."
  @spec fixture(String.t()) :: Path.t()
  defdelegate fixture(name), to: Fixtures, as: :path

  @doc "Starts a second BEAM that runs `source`, see `Stdio.Test.Peer.start/2`."
  @spec peer_beam(String.t(), keyword) :: Peer.t()
  defdelegate peer_beam(source, opts \\ []), to: Peer, as: :start
end
