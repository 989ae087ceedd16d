defmodule Stdio.Faults.SoakTest do
  # FAULTS row 45: 50 pipelines while programs, supervisors, consumers and now and then the launcher
  # are killed at random. Ten minutes with STDIO_FULL=1.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault

  @moduletag :testbin
  @moduletag timeout: 900_000

  setup do
    on_exit(&warm_up/0)
    warm_up()
    :ok
  end

  @workers 50
  @most 2_000_000

  # Two programs in a row. The second says what it got; whatever happened to the first, that is the
  # beginning of what the first had to say, unless it was hit itself.
  defp pipeline(mark) do
    size = :rand.uniform(@most)
    words = Enum.random([[], ["--rate", "10000000"], ["--chunk", "1000"]])

    input =
      [Proc.fixture("fill-pipe"), mark, "#{size}" | words]
      |> Stdio.stream!()
      |> Stream.flat_map(fn
        {:stdout, chunk} -> [chunk]
        _ -> []
      end)

    result =
      try do
        elements = pipe(input, [Proc.fixture("digest"), mark])
        {Oracle.terminal!(elements), output(elements)}
      rescue
        error in [Stdio.StreamError, Stdio.OpError] -> {:error, error}
      end

    {result, size, messages()}
  end

  defp judge({result, size, messages}) do
    case {result, messages} do
      {{{:exit_status, 0}, output}, []} -> judge(output, size)
      {{{:termsig, :sigkill}, ""}, []} -> :killed
      # It had said everything when its supervisor, which knew its status, was killed.
      {{{:termsig, :sigkill}, output}, []} -> with(:whole <- judge(output, size), do: :killed)
      {{:error, %Stdio.StreamError{reason: :eagain}}, []} -> :not_started
      {{:error, %Stdio.OpError{reason: :esrch}}, []} -> :not_started
      odd -> {:odd, odd}
    end
  end

  defp judge(output, size) do
    [length, sum] = String.split(output)
    length = String.to_integer(length)

    cond do
      length > size or sum != Fixtures.sha256(Fixtures.pattern(length)) -> {:wrong, output}
      length < size -> :part
      true -> :whole
    end
  end

  # Consumers one after the other, each where a killer finds it.
  defp work(number, table, mark, until, verdicts) do
    if System.monotonic_time(:millisecond) >= until do
      :ets.delete(table, number)
      verdicts
    else
      {pid, monitor} = spawn_monitor(fn -> exit({:done, pipeline(mark)}) end)
      :ets.insert(table, {number, pid})

      verdict =
        receive do
          {:DOWN, ^monitor, :process, _, {:done, done}} -> judge(done)
          {:DOWN, ^monitor, :process, _, :killed} -> :consumer_killed
          {:DOWN, ^monitor, :process, _, reason} -> {:crashed, reason}
        after
          60_000 -> {:hangs, Process.info(pid, [:current_stacktrace, :messages])}
        end

      work(number, table, mark, until, [verdict | verdicts])
    end
  end

  defp kill_at_random(table, mark, until) do
    Process.sleep(:rand.uniform(20))
    kill_one(:rand.uniform(100), table, mark)
    if System.monotonic_time(:millisecond) < until, do: kill_at_random(table, mark, until)
  end

  defp kill_one(n, _table, _mark) when n <= 3 do
    if launcher = launcher(), do: Proc.kill(launcher, 9)
  end

  defp kill_one(n, _table, mark) when n <= 40 do
    with [_ | _] = pids <- Proc.find(mark), do: Proc.kill(Enum.random(pids), 9)
  end

  defp kill_one(n, _table, _mark) when n <= 70 do
    with launcher when launcher != nil <- launcher(),
         [_ | _] = pids <- supervisors(launcher),
         do: Proc.kill(Enum.random(pids), 9)
  end

  defp kill_one(_, table, _mark) do
    with [_ | _] = entries <- :ets.tab2list(table) do
      {_, pid} = Enum.random(entries)
      Process.exit(pid, :kill)
    end
  end

  test "row 45: 50 pipelines and random kills", %{mark: mark} do
    table = :ets.new(:consumers, [:public])
    seconds = size(8, 600)
    until = System.monotonic_time(:millisecond) + seconds * 1000
    workers = for n <- 1..@workers, do: aside(fn -> work(n, table, mark, until, []) end)

    # To find a victim takes hundreds of reads, after each of which a process waits for its turn.
    killer = fn ->
      Process.flag(:priority, :high)
      kill_at_random(table, mark, until)
    end

    killers = for _ <- 1..4, do: aside(killer)
    verdicts = Enum.flat_map(workers, &await(&1, seconds * 1000 + 90_000))
    Enum.each(killers, &await/1)
    counts = Enum.frequencies(verdicts)
    report("row 45, #{seconds} s: #{inspect(counts)}")

    good = [:whole, :part, :killed, :not_started, :consumer_killed]
    assert Map.drop(counts, good) == %{}
    # Otherwise nothing was tested.
    for verdict <- [:whole, :killed, :consumer_killed],
        do: assert(Map.get(counts, verdict, 0) > 0)

    assert Proc.wait_until(fn -> Proc.gone?(mark) end)
    assert list("echo alive") == [stdout: "alive\n", exit_status: 0]
  end
end
