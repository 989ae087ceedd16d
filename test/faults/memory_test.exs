defmodule Stdio.Faults.MemoryTest do
  # FAULTS rows 15, 16, 24: whatever the program or the consumer do not take stays in the pipes.
  use Stdio.Test.StreamCase

  import Bitwise
  import Stdio.Test.Fault

  @moduletag :testbin
  @moduletag timeout: 300_000
  @gigabyte 1 <<< 30
  @limit_kib 16 * 1024
  # A pipe's capacity, and what a write may leave in the queue (CONTRACT 6.4).
  @under_way 64 * 1024 + 64 * 1024

  setup_all do
    warm_up()
    :ok
  end

  # The growth of this BEAM in KiB: by how much it was larger at any time while `fun` ran, against
  # the size that it has now.
  defp growth(fun) do
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)
    before = Proc.rss_kib()
    parent = self()
    watcher = spawn_link(fn -> watch(parent, before) end)
    result = fun.()
    send(watcher, :stop)

    receive do
      {:most, most} -> {most - before, result}
    end
  end

  defp watch(parent, most) do
    most = max(most, Proc.rss_kib())

    receive do
      :stop -> send(parent, {:most, most})
    after
      2 -> watch(parent, most)
    end
  end

  defp never_read(mark), do: [Proc.fixture("never-read"), mark]

  # Feeds each input to a program of its own, until a deadline ends that. Others must not notice,
  # although more feeders are blocked than there are schedulers and I/O threads.
  defp feed_all(inputs, mark) do
    tasks =
      for input <- inputs do
        aside(fn ->
          Stdio.pipe!(input, never_read(mark), Stdio.Process, timeout: 6_000) |> outcome()
        end)
      end

    await_marked(mark, length(inputs))
    {time, elements} = timed(fn -> pipe([String.duplicate("x", 1_000_000)], "wc -c") end)
    assert elements == [stdout: "1000000\n", exit_status: 0]
    for task <- tasks, do: assert(await(task, 14_500) == {:termsig, :sigkill})
    time
  end

  # The binary in pieces, and a counter of those that were taken.
  defp pieces(binary, size) do
    taken = :counters.new(1, [])

    input =
      Stream.unfold(0, fn offset ->
        :counters.add(taken, 1, 1)
        if offset < @gigabyte, do: {binary_part(binary, offset, size), offset + size}
      end)

    {input, taken}
  end

  test "row 15: a gigabyte of stdin that is never read, whole and in pieces", %{mark: mark} do
    binary = :binary.copy(<<0>>, @gigabyte)
    {grown, time} = growth(fn -> feed_all(List.duplicate([binary], 16), mark) end)
    assert grown < @limit_kib
    report("row 15, 16 feeders of 1 GB each: +#{grown} KiB; another program meanwhile #{time} ms")

    sizes = [1 <<< 10, 1 <<< 16, 1 <<< 20]
    {inputs, counters} = sizes |> Enum.map(&pieces(binary, &1)) |> Enum.unzip()
    {grown, _} = growth(fn -> feed_all(inputs, mark) end)
    assert grown < @limit_kib

    for {size, taken} <- Enum.zip(sizes, counters) do
      # One more is in the hands of the feeder, which waits for room.
      assert (:counters.get(taken, 1) - 1) * size <= @under_way
    end

    assert byte_size(binary) == @gigabyte
  end

  # SHA-256 and length of stdout, and the rest as it came. `slow` is called for every chunk.
  defp digest(stream, slow) do
    empty = {:crypto.hash_init(:sha256), 0, []}

    {hash, length, rest} =
      Enum.reduce(stream, empty, fn
        {:stdout, chunk}, {hash, length, rest} ->
          slow.(length)
          {:crypto.hash_update(hash, chunk), length + byte_size(chunk), rest}

        element, {hash, length, rest} ->
          {hash, length, [element | rest]}
      end)

    sum = hash |> :crypto.hash_final() |> Base.encode16(case: :lower)
    {"#{length} #{sum}\n", Enum.reverse(rest)}
  end

  # CONTRACT 6.3: at most 16 chunks are under way.
  defp assert_queue do
    {:message_queue_len, length} = Process.info(self(), :message_queue_len)
    assert length <= 16
  end

  test "row 16: much output, a slow consumer", %{mark: mark} do
    size = size(1 <<< 26, @gigabyte)
    stream = Stdio.stream!([Proc.fixture("fill-pipe"), mark, "#{size}", "--digest"])

    slow = fn length ->
      # Also with pauses in which everything that could pile up would.
      Process.sleep(if rem(length, size >>> 4) < 65_536, do: 100, else: 1)
      assert_queue()
    end

    {time, {grown, {sum, rest}}} = timed(fn -> growth(fn -> digest(stream, slow) end) end)
    assert rest == [stderr: sum, exit_status: 0]
    assert String.starts_with?(sum, "#{size} ")
    assert grown < @limit_kib
    report("row 16, slow consumer, #{size >>> 20} MB in #{time} ms: +#{grown} KiB")
  end

  test "row 16: much output, as fast as it goes", %{mark: mark} do
    size = size(1 <<< 28, @gigabyte)
    stream = Stdio.stream!([Proc.fixture("fill-pipe"), mark, "#{size}", "--digest"])
    {time, {grown, {sum, rest}}} = timed(fn -> growth(fn -> digest(stream, & &1) end) end)
    assert rest == [stderr: sum, exit_status: 0]
    assert grown < @limit_kib
    report("row 16, fast consumer, #{size >>> 20} MB in #{time} ms: +#{grown} KiB")
  end

  test "row 16: through two programs", %{mark: mark} do
    size = size(1 <<< 27, @gigabyte)
    parent = self()

    input =
      [Proc.fixture("fill-pipe"), mark, "#{size}", "--digest"]
      |> Stdio.stream!()
      |> Stream.flat_map(fn
        {:stdout, chunk} ->
          [chunk]

        element ->
          send(parent, {:end, element})
          []
      end)

    {grown, elements} = growth(fn -> pipe(input, [Proc.fixture("digest"), mark]) end)
    assert [stdout: sum, exit_status: 0] = elements
    assert_received {:end, {:stderr, ^sum}}
    assert_received {:end, {:exit_status, 0}}
    assert grown < @limit_kib
    report("row 16, through two programs, #{size >>> 20} MB: +#{grown} KiB")
  end

  test "row 24: 100 MB on stderr only", %{mark: mark} do
    argv = [Proc.fixture("fill-pipe"), mark, "100000000", "--to", "stderr", "--digest"]

    swap = fn
      {:stderr, chunk} -> {:stdout, chunk}
      {:stdout, chunk} -> {:stderr, chunk}
      terminal -> terminal
    end

    {sum, rest} = argv |> Stdio.stream!() |> Stream.map(swap) |> digest(& &1)
    assert String.starts_with?(sum, "100000000 ")
    assert rest == [stderr: sum, exit_status: 0]
  end
end
