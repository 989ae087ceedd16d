defmodule Stdio.Test.Oracle do
  @moduledoc """
  The one assertion behind every test that starts processes: afterwards it is as if they had never
  been.

      Oracle.clean(fn mark ->
        Stdio.stream!([Proc.fixture("fork-tree"), mark, "2", "3"]) |> Enum.take(1)
      end)

  | item | what must hold within two seconds |
  |---|---|
  | `:marked` | no process with the mark in its arguments |
  | `:zombies` | no new zombie among the BEAM's descendants |
  | `:descendants` | not more descendants of the BEAM than before |
  | `:fds` | not more descriptors of the BEAM than before |
  | `:helper_fds` | nor of any descendant that was there before (as far as this user may look) |
  | `:threads` | not more threads of the BEAM than before |
  | `:mounts` | no new mount |
  | `:cgroups` | no new directory in the cgroup v2 hierarchy, but for systemd's |
  | `:messages` | no new message in the caller's mailbox |

  What is kept between streams on purpose (the helper, I/O threads) has to exist before the first
  snapshot, so run a stream before. Tests that use this are not `async`: they count for the BEAM
  as a whole.
  """

  alias Stdio.Test.Proc

  @items [
    :marked,
    :zombies,
    :descendants,
    :fds,
    :helper_fds,
    :threads,
    :mounts,
    :cgroups,
    :messages
  ]

  @enforce_keys @items -- [:marked]
  defstruct @items -- [:marked]

  @opaque t :: %__MODULE__{}
  @type item :: atom
  @type option :: {:within, non_neg_integer} | {:except, [item]}

  @doc """
  Runs `fun` with a fresh mark between two snapshots and returns its result.

    * `:within` - milliseconds for everything to go (2000)
    * `:except` - items that are not looked at

  If `fun` raises, what it started is killed and the exception goes on.
  """
  @spec clean((String.t() -> result), [option]) :: result when result: term
  def clean(fun, opts \\ []) do
    before = snapshot()
    mark = Proc.mark()

    result =
      try do
        fun.(mark)
      catch
        kind, reason ->
          Proc.sweep(mark)
          :erlang.raise(kind, reason, __STACKTRACE__)
      end

    assert_clean(before, mark, opts)
    result
  end

  @doc "Everything that is compared, as it is now, for this BEAM and the calling process."
  @spec snapshot() :: t
  def snapshot do
    messages = Proc.messages()
    table = Proc.table()
    # Zombies without a parent in between count too: the helper's are the helper's to reap.
    below = for pid <- Proc.descendants(Proc.os_pid(), table), do: {pid, table[pid]}
    {dead, living} = Enum.split_with(below, fn {_, entry} -> entry.state in ["Z", "X"] end)

    %__MODULE__{
      messages: messages,
      zombies: identities(dead),
      descendants: identities(living),
      helper_fds: for({pid, entry} <- living, into: %{}, do: {{pid, entry.start}, Proc.fds(pid)}),
      fds: Proc.fds(),
      threads: Proc.threads(),
      mounts: lines("/proc/self/mountinfo"),
      cgroups: cgroups()
    }
  end

  @doc """
  Asserts that what is there now is not more than `before`, polling until it is so or time is up.
  `marks` is one mark or a list of them. Marked processes that are left are killed, for the sake of
  the next test, and the failure says what they were.
  """
  @spec assert_clean(t, String.t() | [String.t()], [option]) :: :ok
  def assert_clean(%__MODULE__{} = before, marks, opts \\ []) do
    marks = List.wrap(marks)
    within = Keyword.get(opts, :within, 2000)
    except = Keyword.get(opts, :except, [])
    [] = except -- @items
    deadline = System.monotonic_time(:millisecond) + within

    case poll(before, marks, except, deadline) do
      [] ->
        :ok

      left ->
        message =
          Enum.map_join(left, "\n", fn {item, details} ->
            "  #{item}:" <> Enum.map_join(details, &"\n    #{&1}")
          end)

        Enum.each(marks, &Proc.sweep/1)

        raise ExUnit.AssertionError,
          message: "left after #{within} ms, compared with before:\n" <> message
    end
  end

  defp poll(before, marks, except, deadline) do
    left = left(before, marks, except)

    if left == [] or System.monotonic_time(:millisecond) >= deadline do
      left
    else
      Process.sleep(10)
      poll(before, marks, except, deadline)
    end
  end

  @doc """
  Asserts that `elements` has exactly one terminal element, at its end, and returns that.
  """
  @spec terminal!([tuple]) :: {:exit_status, 0..255} | {:termsig, atom}
  def terminal!(elements) do
    case Enum.filter(elements, fn {kind, _} -> kind in [:exit_status, :termsig] end) do
      [terminal] ->
        if List.last(elements) == terminal do
          terminal
        else
          raise ExUnit.AssertionError,
            message: "#{inspect(terminal)} is not the last element of " <> inspect(elements)
        end

      other ->
        raise ExUnit.AssertionError,
          message: "#{length(other)} terminal elements instead of one in " <> inspect(elements)
    end
  end

  ## What is left, as [{item, [line]}]

  defp left(before, marks, except) do
    now = snapshot()

    for item <- @items, item not in except, (details = left(item, before, now, marks)) != [] do
      {item, details}
    end
  end

  defp left(:marked, _, _, marks) do
    Enum.flat_map(marks, fn mark ->
      if Proc.gone?(mark), do: [], else: found(Proc.find(mark), mark)
    end)
  end

  defp left(:zombies, before, now, _) do
    for {{pid, _} = id, name} <- now.zombies, not is_map_key(before.zombies, id) do
      parent = with %{ppid: ppid} <- Proc.stat(pid), do: describe(ppid)
      "#{pid} #{name}, child of #{parent}"
    end
  end

  defp left(:descendants, before, now, _) do
    if map_size(now.descendants) > map_size(before.descendants) do
      for {{pid, _} = id, _} <- now.descendants, not is_map_key(before.descendants, id) do
        describe(pid)
      end
    else
      []
    end
  end

  defp left(:fds, before, now, _), do: more_fds(before.fds, now.fds)

  defp left(:helper_fds, before, now, _) do
    for {{pid, _} = id, fds} <- now.helper_fds,
        is_map(fds),
        is_map(before.helper_fds[id]),
        line <- more_fds(before.helper_fds[id], fds),
        do: "#{describe(pid)}: #{line}"
  end

  defp left(:threads, before, now, _) do
    if map_size(now.threads) > map_size(before.threads) do
      for {tid, name} <- now.threads, not is_map_key(before.threads, tid), do: "#{tid} #{name}"
    else
      []
    end
  end

  defp left(item, before, now, _) when item in [:mounts, :cgroups] do
    Map.fetch!(now, item) -- Map.fetch!(before, item)
  end

  defp left(:messages, before, now, _) do
    for message <- now.messages -- before.messages, do: inspect(message)
  end

  defp found([], mark), do: ["something with #{mark} that changes its pid all the time"]
  defp found(pids, _), do: Enum.map(pids, &describe/1)

  # The count decides (a descriptor may be replaced by another), the difference is shown.
  defp more_fds(before, now) when map_size(now) > map_size(before) do
    for {fd, target} <- Enum.sort(now), before[fd] != target, do: "fd #{fd} -> #{target}"
  end

  defp more_fds(_, _), do: []

  # A pid alone may be another process by now.
  defp identities(entries) do
    for {pid, entry} <- entries, into: %{}, do: {{pid, entry.start}, entry.name}
  end

  defp describe(pid) do
    case Proc.stat(pid) do
      nil ->
        "#{pid} (gone meanwhile)"

      entry ->
        words = pid |> Proc.cmdline() |> String.replace(<<0>>, " ")

        "#{pid} #{entry.name} state=#{entry.state} ppid=#{entry.ppid} pgid=#{entry.pgid} " <>
          "sid=#{entry.sid}: #{inspect(String.trim(words))}"
    end
  end

  defp lines(path) do
    case File.read(path) do
      {:ok, text} -> String.split(text, "\n", trim: true)
      {:error, _} -> []
    end
  end

  defp cgroups do
    for line <- lines("/proc/self/mountinfo"),
        # The type stands behind a lone dash: ID PARENT DEV ROOT MOUNTPOINT … - TYPE SOURCE …
        [left, "cgroup2 " <> _] <- [String.split(line, " - ", parts: 2)],
        dir <- subdirectories(left |> String.split(" ") |> Enum.at(4), 4),
        do: dir
  end

  # Systemd makes and removes units of its own meanwhile.
  @systemd ~w(.scope .service .slice .mount .socket .swap .automount)

  defp subdirectories(_, 0), do: []

  defp subdirectories(dir, depth) do
    case File.ls(dir) do
      {:ok, names} ->
        for name <- names,
            Path.extname(name) not in @systemd,
            path = Path.join(dir, name),
            match?({:ok, %{type: :directory}}, File.lstat(path)),
            found <- [path | subdirectories(path, depth - 1)],
            do: found

      {:error, _} ->
        []
    end
  end
end
