defmodule Stdio.Faults.ConsumerDeathTest do
  # FAULTS row 17: the consumer is killed, or stops to take elements, at any moment.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault

  @moduletag :testbin
  @moduletag timeout: 120_000

  setup_all do
    warm_up()
    :ok
  end

  defp tree(mark, words), do: [Proc.fixture("fork-tree"), mark, "1", "3" | words]
  @stubborn ~w(--setsid --double-fork --ignore-term)

  # Kinds of streams; consumers of a program with much to say are in the middle of chunks.
  defp streams(mark) do
    fill = [Proc.fixture("fill-pipe"), mark, "100000000000"]
    endless = Stream.repeatedly(fn -> String.duplicate("x", 100_000) end)
    grace = [kill_signal: :sigterm, kill_timeout: 60_000]

    [
      tree: fn -> Stdio.stream!(tree(mark, @stubborn)) end,
      stopped: fn -> Stdio.stream!(tree(mark, ["--stop"])) end,
      patient: fn -> Stdio.stream!(tree(mark, @stubborn), Stdio.Process, grace) end,
      flood: fn -> Stdio.stream!(fill) end,
      slow: fn -> fill |> Stdio.stream!() |> Stream.each(fn _ -> Process.sleep(5) end) end,
      fed: fn -> Stdio.pipe!(endless, [Proc.fixture("digest"), mark]) end,
      blocked: fn -> Stdio.pipe!(endless, [Proc.fixture("never-read"), mark]) end,
      # A feeder that has nothing to write, ever.
      waiting: fn ->
        never = Stream.repeatedly(fn -> Process.sleep(:infinity) end)
        Stdio.pipe!(never, [Proc.fixture("never-read"), mark])
      end,
      # The feeder of the second is the consumer of the first.
      nested: fn ->
        input = fill |> Stdio.stream!() |> Stream.map(fn {_, chunk} -> chunk end)
        Stdio.pipe!(input, [Proc.fixture("digest"), mark])
      end
    ]
  end

  # Kills `count` consumers, each so many microseconds after its start, some of them at a time.
  defp kill_consumers(mark, count, delay) do
    kinds = streams(mark)
    processes = Process.list()

    1..count
    |> Task.async_stream(
      fn index ->
        {_, stream} = Enum.at(kinds, rem(index, length(kinds)))
        {pid, monitor} = spawn_monitor(fn -> Stream.run(stream.()) end)
        pause_us(delay.())
        Process.exit(pid, :kill)
        assert_receive {:DOWN, ^monitor, :process, _, :killed}
      end,
      max_concurrency: 4,
      timeout: 30_000
    )
    |> Stream.run()

    {time, gone?} = timed(fn -> Proc.wait_until(fn -> Proc.gone?(mark) end) end)
    assert gone?
    # Their feeders too.
    assert Proc.wait_until(fn -> Process.list() -- processes == [] end)
    time
  end

  test "killed at any moment of its run", %{mark: mark} do
    count = size(400, 4_000)
    time = kill_consumers(mark, count, fn -> :rand.uniform(30_000) end)
    report("row 17, #{count} consumers killed: all gone #{time} ms after the last")
  end

  test "killed at any moment of its start", %{mark: mark} do
    count = size(1_000, 20_000)
    time = kill_consumers(mark, count, fn -> :rand.uniform(1_500) end)
    report("row 17, #{count} owners killed during start: all gone #{time} ms after the last")
  end

  test "killed while it waits for the end of its halt", %{mark: mark} do
    # In the grace period, which then is over.
    config = [kill_signal: :sigterm, kill_timeout: 60_000]
    test = self()

    consumer =
      spawn(fn ->
        Stdio.stream!(tree(mark, @stubborn), Stdio.Process, config)
        |> Enum.reduce_while(nil, fn _, _ ->
          send(test, :halting)
          {:halt, nil}
        end)
      end)

    assert_receive :halting, 5_000
    Process.sleep(100)
    assert length(Proc.find(mark)) == 4
    Process.exit(consumer, :kill)
    assert Proc.wait_until(fn -> Proc.gone?(mark) end)
  end

  # The others never say a word, or take a minute to go.
  @talkative [:tree, :stopped, :flood, :slow, :blocked, :waiting]

  test "halts, raises, throws, exits: back when the tree is gone, nothing in the mailbox",
       context do
    %{mark: mark} = context
    # What an owner that traps exits would keep.
    Process.flag(:trap_exit, true)

    leave = [
      fn _ -> {:halt, :left} end,
      fn _ -> raise ArgumentError, "left" end,
      fn _ -> throw(:left) end,
      fn _ -> exit(:left) end
    ]

    times =
      for {_, stream} <- Keyword.take(streams(mark), @talkative), leave <- leave do
        {time, result} = timed(fn -> leave(stream.(), leave) end)
        assert result == :left
        assert Proc.find(mark) == []
        assert messages() == []
        time
      end

    report("row 17, halts, start included: #{spread(times)}")
  end

  defp leave(stream, how) do
    Enum.reduce_while(stream, nil, fn element, nil -> how.(element) end)
  rescue
    ArgumentError -> :left
  catch
    _, :left -> :left
  end

  test "halted by Enum.take, many at a time", %{mark: mark} do
    1..size(200, 5_000)
    |> Task.async_stream(
      fn _ ->
        argv = [Proc.fixture("fill-pipe"), mark, "100000000000", "--to", "both"]
        assert [{_, _}, {_, _}, {_, _}] = argv |> Stdio.stream!() |> Enum.take(3)
        assert messages() == []
      end,
      max_concurrency: 16,
      timeout: 30_000
    )
    |> Stream.run()

    assert Proc.find(mark) == []
  end
end
