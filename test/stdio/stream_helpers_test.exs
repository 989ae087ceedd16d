defmodule Stdio.StreamHelpersTest do
  use ExUnit.Case, async: true
  doctest Stdio.Stream

  import Stdio.Stream

  describe "stdout_to_stderr/2" do
    test "bytes of both outputs; each terminal element halts" do
      assert stdout_to_stderr({:stdout, "a"}, :acc) == {["a"], :acc}
      assert stdout_to_stderr({:stderr, "b"}, :acc) == {["b"], :acc}
      assert stdout_to_stderr({:exit_status, 0}, :acc) == {:halt, :acc}
      assert stdout_to_stderr({:termsig, :sigkill}, :acc) == {:halt, :acc}
    end

    test "nothing after the terminal element is enumerated" do
      stream = Stream.concat([stdout: "a", exit_status: 3], Stream.map([1], &raise("#{&1}")))
      assert Enum.to_list(Stream.transform(stream, [], &stdout_to_stderr/2)) == ["a"]
    end
  end

  describe "lines/1" do
    defp lined(elements), do: elements |> lines() |> Enum.to_list()

    test "across chunk borders, the newline alone in a chunk too" do
      assert lined(stdout: "a", stdout: "b", stdout: "\n", stdout: "\nc\n", exit_status: 0) ==
               [stdout: "ab\n", stdout: "\n", stdout: "c\n", exit_status: 0]
    end

    test "each output by itself, in the order in which lines become complete" do
      assert lined(stdout: "a", stderr: "x\ny", stdout: "b\n", stderr: "z\n", exit_status: 0) ==
               [stderr: "x\n", stdout: "ab\n", stderr: "yz\n", exit_status: 0]
    end

    test "last partial lines come before the terminal element" do
      for terminal <- [exit_status: 1, termsig: :sigterm] do
        assert lined([{:stderr, "e"}, {:stdout, "a\nb"}, terminal]) ==
                 [{:stdout, "a\n"}, {:stdout, "b"}, {:stderr, "e"}, terminal]
      end
    end

    test "and at the end of a stream that has none" do
      assert lined(stdout: "a\nb") == [stdout: "a\n", stdout: "b"]
      assert lined(stdout: "a\nb", stdout: "c") == [stdout: "a\n", stdout: "bc"]
      assert lined([]) == []
    end

    test "partial lines do not leak into a stream that follows" do
      assert lined(stdout: "a", exit_status: 0, stdout: "b\n", exit_status: 1) ==
               [stdout: "a", exit_status: 0, stdout: "b\n", exit_status: 1]
    end

    test "bytes, not characters; no other line end" do
      assert lined(stdout: <<0xC3>>, stdout: <<0xA9, ?\n, 0xFF, 0, ?\r, ?\n>>, exit_status: 0) ==
               [stdout: "é\n", stdout: <<0xFF, 0, ?\r, ?\n>>, exit_status: 0]
    end

    test "empty chunks and only newlines" do
      assert lined(stdout: "", stdout: "\n\n", stderr: "", exit_status: 0) ==
               [stdout: "\n", stdout: "\n", exit_status: 0]
    end

    test "other elements pass" do
      assert lined([{:stdout, "a"}, :other, {:stdout, "\n"}]) == [:other, {:stdout, "a\n"}]
    end

    test "every way to cut a text gives the same lines" do
      text = "one\n\ntwo three\nlast"
      whole = lined(stdout: text, exit_status: 0)

      for size <- 1..byte_size(text) do
        chunks =
          for at <- 0..byte_size(text)//size,
              do: {:stdout, binary_part(text, at, min(size, byte_size(text) - at))}

        assert lined(chunks ++ [exit_status: 0]) == whole
      end
    end

    test "lazy: no more is read than the lines that are taken need" do
      stream = Stream.concat([stdout: "a\nb\nc"], Stream.map([1], &raise("#{&1}")))
      assert stream |> lines() |> Enum.take(2) == [stdout: "a\n", stdout: "b\n"]
    end

    test "the resources of the stream are freed when it is halted" do
      test = self()

      stream =
        Stream.resource(fn -> 0 end, &{[stdout: "#{&1}\n"], &1 + 1}, &send(test, {:freed, &1}))

      assert stream |> lines() |> Enum.take(2) == [stdout: "0\n", stdout: "1\n"]
      assert_received {:freed, 2}
    end

    test "can be zipped, and enumerated again" do
      stream = lines(stdout: "a\nb\n", exit_status: 0)
      zipped = Enum.zip(stream, stream)
      assert zipped == Enum.map(Enum.to_list(stream), &{&1, &1})
    end

    # Both are some 100 times faster than these limits; a quadratic way would need minutes.
    test "a long line in many chunks takes time in proportion to its length" do
      chunks = Stream.concat(List.duplicate({:stdout, "0123456789"}, 400_000), stdout: "\n")
      {us, [stdout: line]} = :timer.tc(fn -> lined(chunks) end)
      assert byte_size(line) == 4_000_001
      assert us < 10_000_000
    end

    test "many short lines in large chunks" do
      chunk = String.duplicate("a\n", 1_000_000)
      {us, count} = :timer.tc(fn -> [stdout: chunk] |> lines() |> Enum.count() end)
      assert count == 1_000_000
      assert us < 10_000_000
    end

    test "of a program, in chunks of any size" do
      line = "printf 'é\\n\\n\\377\\000x\\n'; printf 'last'"
      whole = [stdout: "é\n", stdout: "\n", stdout: <<255, 0, ?x, ?\n>>, stdout: "last"]

      for size <- [1, 2, 3, 65_536] do
        stream = Stdio.stream!(line, Stdio.Process, max_chunk: size)
        assert lined(stream) == whole ++ [exit_status: 0]
      end
    end

    test "of a flood, as many as are wanted" do
      assert Stdio.stream!("yes") |> lines() |> Enum.take(3) ==
               List.duplicate({:stdout, "y\n"}, 3)
    end

    test "of a program" do
      line = "printf 'a\\nb'; sleep 0.05; printf 'c\\n'; printf e >&2"

      assert line |> Stdio.stream!() |> lined() |> Enum.sort() ==
               [exit_status: 0, stderr: "e", stdout: "a\n", stdout: "bc\n"]
    end
  end

  # An element each `ms`, of which those in `late` come `pause` later.
  defp paced(elements, late, pause) do
    Stream.map(elements, fn element ->
      if element in late, do: Process.sleep(pause)
      element
    end)
  end

  describe "ratelimit/3" do
    test "exactly limit elements in the first window and in each later one" do
      stream = paced(1..15, [6, 11], 2100)
      assert stream |> ratelimit(3, 2000) |> Enum.to_list() == [1, 2, 3, 6, 7, 8, 11, 12, 13]
    end

    test "a window starts with its first element, not at a multiple of ms" do
      # 2 comes at 3500 ms, in a window that lasts until 6000; 3 at 5200 is in it, and would not be
      # in one until 5000.
      stream = paced([1, 2, 3, 4], [2], 3500) |> paced([3], 1700)
      assert stream |> ratelimit(1, 2500) |> Enum.to_list() == [1, 2]
    end

    test "the first window starts with the enumeration, not with the call or the first element" do
      now = fn -> System.monotonic_time(:millisecond) end
      stream = Stream.map([1], fn _ -> {now.(), Process.sleep(20)} end)
      limited = ratelimit(stream, 1, 60_000, &{[{&1, &2.t}], &2})
      called = now.()

      for _ <- 1..2 do
        Process.sleep(20)
        assert [{{first, :ok}, t}] = Enum.to_list(limited)
        assert called + 20 <= t and t <= first
      end
    end

    test "counts and drops all elements" do
      assert [stdout: "a", exit_status: 0] |> ratelimit(1, 60_000) |> Enum.to_list() ==
               [stdout: "a"]
    end

    test "arguments are checked in the call" do
      for {limit, ms} <- [{0, 1}, {1, 0}, {-1, 1}, {1.0, 1}, {1, :infinity}] do
        assert_raise ArgumentError, ~r/positive integers/, fn -> ratelimit([], limit, ms) end
      end
    end
  end

  describe "ratelimit/4" do
    defp windows(stream, limit, ms) do
      stream |> ratelimit(limit, ms, &{[{&1, &2}], &2}) |> Enum.to_list()
    end

    test "the reducer gets the number of the element and the window's start" do
      before = System.monotonic_time(:millisecond)
      [{1, first}, {2, second}, {3, third}] = windows(paced(1..3, [3], 1100), 2, 1000)

      assert %{limit: 2, ms: 1000, count: 1, t: t} = first
      assert t >= before
      assert second == %{first | count: 2}
      assert %{limit: 2, ms: 1000, count: 1} = third
      assert third.t >= t + 1100
    end

    test "numbers go on beyond the limit" do
      assert for({_, %{count: count}} <- windows(1..5, 2, 60_000), do: count) == [1, 2, 3, 4, 5]
    end

    test "a window that the reducer starts goes on from there" do
      restart = fn element, %{count: count} = window ->
        {[{element, count}], if(count > 2, do: %{window | count: 1}, else: window)}
      end

      assert 1..6 |> ratelimit(2, 60_000, restart) |> Enum.to_list() ==
               [{1, 1}, {2, 2}, {3, 3}, {4, 2}, {5, 3}, {6, 2}]
    end

    test "any enumerable, and :halt" do
      reducer = fn
        element, %{count: 3} = window when element > 0 -> {:halt, window}
        element, window -> {Stream.map(1..2, &{element, &1}), window}
      end

      assert 1..9 |> ratelimit(1, 60_000, reducer) |> Enum.to_list() ==
               [{1, 1}, {1, 2}, {2, 1}, {2, 2}]
    end
  end

  describe "stdio_block/2" do
    test "over the limit: sleeps out the window, then passes as number 1" do
      elements = for(n <- 1..5, do: {:stdout, "#{n}"}) ++ [exit_status: 0]
      blocked = ratelimit(elements, 2, 1000, &stdio_block/2)
      {us, ^elements} = :timer.tc(fn -> Enum.to_list(blocked) end)
      # 1 2 | 3 4 | 5 and the terminal element, which does not wait.
      assert us in 2_000_000..2_995_000
    end

    test "a terminal element is not counted and does not wait" do
      elements = [stdout: "a", exit_status: 0, stdout: "b", termsig: :sigterm]
      blocked = ratelimit(elements, 2, 60_000, &stdio_block/2)
      assert Enum.to_list(blocked) == elements
    end

    test "by hand" do
      now = System.monotonic_time(:millisecond)
      window = %{t: now - 10, limit: 1, ms: 60, count: 1}
      assert stdio_block({:stderr, "a"}, window) == {[stderr: "a"], window}

      over = %{window | count: 2}
      assert stdio_block({:exit_status, 0}, over) == {[exit_status: 0], over}
      assert {[stdout: "b"], new} = stdio_block({:stdout, "b"}, over)
      assert %{limit: 1, ms: 60, count: 1, t: t} = new
      assert t >= now + 50
      assert {[stdout: "b"], _} = stdio_block({:stdout, "b"}, %{over | t: now - 1000})
    end
  end

  describe "stdio_drop/2" do
    test "drops output over the limit; terminal elements pass, uncounted" do
      elements = [stdout: "1", exit_status: 0, stderr: "2", stdout: "3", termsig: :sigkill]

      assert elements |> ratelimit(2, 60_000, &stdio_drop/2) |> Enum.to_list() ==
               [stdout: "1", exit_status: 0, stderr: "2", termsig: :sigkill]
    end

    test "limit elements in every window" do
      elements = for n <- 1..9, do: {:stdout, n}
      stream = paced(elements, [stdout: 4, stdout: 7], 1600)

      assert stream |> ratelimit(2, 1500, &stdio_drop/2) |> Enum.map(&elem(&1, 1)) ==
               [1, 2, 4, 5, 7, 8]
    end

    test "of a program" do
      assert "yes | head -n 1000; kill -9 $$"
             |> Stdio.stream!(Stdio.Process, max_chunk: 2)
             |> ratelimit(3, 600_000, &stdio_drop/2)
             |> Enum.to_list() ==
               [stdout: "y\n", stdout: "y\n", stdout: "y\n", termsig: :sigkill]
    end
  end
end
