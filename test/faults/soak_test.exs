defmodule Stdio.Faults.SoakTest do
  # FAULTS row 45: 50 pipelines while programs, supervisors, consumers and now and then the launcher
  # are killed at random. Ten minutes with STDIO_FULL=1.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault

  alias Stdio.Procfs

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
  defp work(number, run, verdicts) do
    if over?(run) do
      :ets.delete(run.consumers, number)
      verdicts
    else
      {pid, monitor} = spawn_monitor(fn -> exit({:done, pipeline(run.mark)}) end)
      :ets.insert(run.consumers, {number, pid})

      verdict =
        receive do
          {:DOWN, ^monitor, :process, _, {:done, done}} -> judge(done)
          {:DOWN, ^monitor, :process, _, :killed} -> :consumer_killed
          {:DOWN, ^monitor, :process, _, reason} -> {:crashed, reason}
        after
          60_000 -> {:hangs, Process.info(pid, [:current_stacktrace, :messages])}
        end

      :ets.insert(run.seen, {verdict})
      work(number, run, [verdict | verdicts])
    end
  end

  # Without these nothing was tested.
  @wanted [:whole, :killed, :consumer_killed]

  # The time is up and each kind of victim was hit. How often that is in a given time depends on the
  # machine: the killers compete with fifty pipelines.
  defp over?(run) do
    now = System.monotonic_time(:millisecond)
    hit? = Enum.all?(@wanted, &:ets.member(run.seen, &1))
    now >= run.latest or (now >= run.until and hit?)
  end

  defp kill_at_random(run, launcher) do
    Process.sleep(:rand.uniform(20))
    # To look for it takes a walk through all of /proc, so only when the last one is dead.
    launcher = if launcher && Proc.alive?(launcher), do: launcher, else: launcher()
    if launcher, do: kill_one(:rand.uniform(100), launcher, run)
    unless over?(run), do: kill_at_random(run, launcher)
  end

  defp kill_one(n, launcher, _run) when n <= 3, do: Proc.kill(launcher, 9)

  defp kill_one(n, launcher, run) when n <= 40 do
    with [_ | _] = supervisors <- Procfs.children(launcher),
         [_ | _] = pids <- Proc.find(run.mark, Procfs.children(Enum.random(supervisors))),
         do: Proc.kill(Enum.random(pids), 9)
  end

  defp kill_one(n, launcher, _run) when n <= 70 do
    with [_ | _] = supervisors <- Procfs.children(launcher),
         do: Proc.kill(Enum.random(supervisors), 9)
  end

  defp kill_one(_, _launcher, run) do
    with [_ | _] = entries <- :ets.tab2list(run.consumers) do
      {_, pid} = Enum.random(entries)
      Process.exit(pid, :kill)
    end
  end

  test "row 45: 50 pipelines and random kills", %{mark: mark} do
    seconds = size(8, 600)
    until = System.monotonic_time(:millisecond) + seconds * 1000

    run = %{
      mark: mark,
      consumers: :ets.new(:consumers, [:public]),
      seen: :ets.new(:seen, [:public]),
      until: until,
      latest: until + 20_000
    }

    workers = for n <- 1..@workers, do: aside(fn -> work(n, run, []) end)

    # To find a victim takes reads, after each of which a process waits for its turn.
    killer = fn ->
      Process.flag(:priority, :high)
      kill_at_random(run, nil)
    end

    killers = for _ <- 1..4, do: aside(killer)
    verdicts = Enum.flat_map(workers, &await(&1, seconds * 1000 + 90_000))
    Enum.each(killers, &await/1)
    counts = Enum.frequencies(verdicts)
    report("row 45, #{seconds} s: #{inspect(counts)}")

    assert Map.drop(counts, @wanted ++ [:part, :not_started]) == %{}
    for verdict <- @wanted, do: assert(Map.get(counts, verdict, 0) > 0)

    assert Proc.wait_until(fn -> Proc.gone?(mark) end)
    assert list("echo alive") == [stdout: "alive\n", exit_status: 0]
  end
end
