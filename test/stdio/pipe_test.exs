defmodule Stdio.PipeTest do
  use Stdio.Test.StreamCase

  # CONTRACT section 8, as far as it is about pipe! and Stdio.Process.
  @rows [
    {["hello\n"], "sed -u 's/hello/bye/'", [], [stdout: "bye\n", exit_status: 0]},
    {["let", "it", "crash"], "tr '[a-z]' '[A-Z]'", [], [stdout: "LETITCRASH", exit_status: 0]},
    {[<<>>, "a", <<>>], "cat", [], [stdout: "a", exit_status: 0]},
    {["x", "x", "x", "x"], "exit 3", [], [exit_status: 3]},
    {[], "cat; exit 2", [], [exit_status: 2]},
    {["", [], [[], ""]], "wc -c", [], [stdout: "0\n", exit_status: 0]},
    {["a"], {:search, ["cat"]}, [], [stdout: "a", exit_status: 0]},
    {["a"], "cat >&2", [stderr: :stdout], [stdout: "a", exit_status: 0]}
  ]

  for {input, command, config, result} <- @rows do
    @tag row: {input, command, config, result}
    test "#{inspect(input)} into #{inspect(command)} #{inspect(config)}", %{row: row} do
      {input, command, config, result} = row
      assert pipe(input, command, config) == result
      assert messages() == []
    end
  end

  test "1000..1 into grep --line-buffered 442" do
    lines = Stream.map(1000..1//-1, &"#{&1}\n")
    assert pipe(lines, "grep --line-buffered 442") == [stdout: "442\n", exit_status: 0]
  end

  test "the arities of pipe!" do
    result = [stdout: "a", exit_status: 0]
    assert Enum.to_list(Stdio.pipe!(["a"], "cat")) == result
    assert Enum.to_list(Stdio.pipe!(["a"], "cat", Stdio.Process)) == result
    assert Enum.to_list(Stdio.pipe!(["a"], "cat", Stdio.Process, [])) == result
  end

  # Elements that make the consumer of `Stream.transform/3` the next program's input.
  defp feed_on({stream, chunk}, acc) when stream in [:stdout, :stderr], do: {[chunk], acc}
  defp feed_on(_terminal, acc), do: {:halt, acc}

  defp sha256_of(data), do: "#{IO.iodata_length(data)} #{Fixtures.sha256(data)}\n"

  describe "input" do
    test "of nested iodata is written as its bytes" do
      iodata = ["a", [?b, ["c" | "d"]], [[], [[?e]] | "f"], <<0, 255>>]

      assert pipe([iodata, [iodata]], "cat") |> output() ==
               String.duplicate("abcdef" <> <<0, 255>>, 2)
    end

    test "of 10 MB in one element", %{mark: mark} do
      data = Fixtures.pattern(10_000_000)
      assert pipe([data], [Proc.fixture("digest"), mark]) |> output() == sha256_of(data)
      elements = pipe([data], "cat")
      assert Oracle.terminal!(elements) == {:exit_status, 0}
      assert output(elements) == data
    end

    test "of 1 MB in elements of 1000 bytes" do
      data = Fixtures.pattern(1_000_000)
      pieces = for at <- 0..999, do: binary_part(data, at * 1000, 1000)
      elements = pipe(pieces, "cat")
      assert Oracle.terminal!(elements) == {:exit_status, 0}
      assert output(elements) == data
    end

    test "of elements around the size of the pipe and of the queue", %{mark: mark} do
      for size <- [1, 4095, 65_535, 65_536, 65_537, 131_072, 131_073, 300_000] do
        data = Fixtures.pattern(size)
        elements = pipe([data, data, data], [Proc.fixture("digest"), mark])
        assert output(elements) == sha256_of([data, data, data])
      end
    end

    test "for a slow reader", %{mark: mark} do
      pieces = for _ <- 1..30, do: Fixtures.pattern(10_000)
      command = [Proc.fixture("slow-read"), mark, "2000000", "--chunk", "10000"]
      assert pipe(pieces, command) == [stdout: "300000\n", exit_status: 0]
    end

    test "is enumerated once per enumeration, in another process, lazily" do
      parent = self()

      input =
        Stream.map(1..3, fn n ->
          send(parent, {:element, self(), n})
          "#{n}"
        end)

      stream = Stdio.pipe!(input, "cat")
      # Not before it is enumerated: what the call might have started had its time by now.
      assert list("true") == [exit_status: 0]
      assert messages() == []

      for _ <- 1..2 do
        assert output(Enum.to_list(stream)) == "123"
        assert_received {:element, feeder, 1}
        assert feeder != parent
        assert_received {:element, ^feeder, 2}
        assert_received {:element, ^feeder, 3}
        assert messages() == []
      end
    end

    test "is enumerated on behalf of the consumer: $callers" do
      parent = self()

      input =
        Stream.map([1], fn _ ->
          send(parent, {:callers, Process.get(:"$callers")})
          ""
        end)

      assert pipe(input, "cat") == [exit_status: 0]
      assert_received {:callers, [^parent | _]}

      task = Task.async(fn -> pipe(input, "cat") end)
      assert Task.await(task) == [exit_status: 0]
      assert_received {:callers, [task_pid, ^parent | _]}
      assert task_pid == task.pid
    end

    test "is no more than the pipe and a queue ahead of a program that never reads",
         %{mark: mark} do
      counter = :counters.new(1, [])

      input =
        Stream.repeatedly(fn ->
          :counters.add(counter, 1, 4096)
          :binary.copy("x", 4096)
        end)

      resting? = fn ->
        fed = :counters.get(counter, 1)
        Process.sleep(200)
        fed >= 65_536 and :counters.get(counter, 1) == fed
      end

      assert input
             |> Stdio.pipe!([Proc.fixture("never-read"), mark])
             |> Enum.reduce_while(nil, fn {:stdout, "ready\n"}, nil ->
               {:halt, Proc.wait_until(resting?, 10_000)}
             end)

      # 64 KiB each, and the elements at both ends.
      assert :counters.get(counter, 1) in 65_536..(131_072 + 2 * 4096)
      assert messages() == []
    end

    test "1000 x 100 bytes into sleep 100, timeout: 500" do
      input = Stream.map(1..1000, fn _ -> :binary.copy("x", 100) end)
      {elapsed, elements} = timed(fn -> pipe(input, "sleep 100", timeout: 500) end)
      assert elements == [termsig: :sigkill]
      assert elapsed >= 500
      # The contract says one second, of which the load of the machine is no part.
      assert elapsed < 5000
      assert messages() == []
    end
  end

  describe "a program that does not want all" do
    test "exits early, with everything still to come" do
      for _ <- 1..20 do
        assert pipe(Stream.repeatedly(fn -> "x" end), "exit 3") == [exit_status: 3]
        assert messages() == []
      end

      data = :binary.copy("x", 10_000_000)
      assert pipe([data], "exit 3") == [exit_status: 3]
      assert pipe([data, data], "head -c 5") == [stdout: "xxxxx", exit_status: 0]
      assert messages() == []
    end

    test "closes stdin: feeding ends without an error, output goes on", %{mark: mark} do
      parent = self()
      line = "exec <&-; echo closed; while :; do sleep 0.05; echo more; done"

      input =
        Stream.concat(
          Stream.map([1], fn _ ->
            send(parent, {:feeder, self()})
            "x"
          end),
          Stream.repeatedly(fn -> :binary.copy("x", 65_536) end)
        )

      more =
        input
        |> Stdio.pipe!(["/bin/sh", "-c", line, mark])
        |> Stream.transform(nil, fn
          {:stdout, _}, nil ->
            assert_receive {:feeder, feeder}, 5000
            monitor = Process.monitor(feeder)
            assert_receive {:DOWN, ^monitor, _, _, reason} when reason in [:normal, :noproc], 5000
            {[], :ended}

          element, :ended ->
            {[element], :ended}
        end)
        |> Enum.take(2)

      assert [stdout: "more\n" <> _, stdout: "more\n" <> _] = more
      assert messages() == []
    end

    test "a halted stream ends a feeder that waits for it", %{mark: mark} do
      before = Process.list()
      input = Stream.repeatedly(fn -> :binary.copy("x", 65_536) end)
      stream = Stdio.pipe!(input, [Proc.fixture("never-read"), mark])
      assert Enum.take(stream, 1) == [stdout: "ready\n"]
      assert Proc.find(mark) == []
      assert Proc.wait_until(fn -> Process.list() -- before == [] end)
      assert messages() == []
    end
  end

  describe "chains" do
    test "a stream into a program: echo test; kill $$ into sed" do
      result =
        Stdio.stream!("echo test; kill $$")
        |> Stream.transform([], &feed_on/2)
        |> pipe("sed -u 's/t/_/g'")

      assert result == [stdout: "_es_\n", exit_status: 0]
      assert messages() == []
    end

    test "a stream into a program into a program", %{mark: mark} do
      result =
        Stdio.stream!([Proc.fixture("fill-pipe"), mark, "3000000"])
        |> Stream.transform([], &feed_on/2)
        |> Stdio.pipe!("cat")
        |> Stream.transform([], &feed_on/2)
        |> pipe([Proc.fixture("digest"), mark])

      assert result == [stdout: sha256_of(Fixtures.pattern(3_000_000)), exit_status: 0]
      assert messages() == []
    end

    test "halted at the end, all are gone", %{mark: mark} do
      before = Process.list()

      chain =
        Stdio.stream!([Proc.fixture("fill-pipe"), mark, "1000000000"])
        |> Stream.transform([], &feed_on/2)
        |> Stdio.pipe!(["/bin/sh", "-c", "cat", mark])
        |> Stream.transform([], &feed_on/2)
        |> Stdio.pipe!(["/bin/sh", "-c", "cat", mark])

      assert [stdout: _, stdout: _] = Enum.take(chain, 2)
      assert Proc.wait_until(fn -> Proc.gone?(mark) end)
      assert Proc.wait_until(fn -> Process.list() -- before == [] end)
      assert messages() == []
    end

    test "a start that fails in the middle is raised at the end" do
      chain =
        Stdio.stream!(["/nonexistent"]) |> Stream.transform([], &feed_on/2) |> Stdio.pipe!("cat")

      error = assert_raise(Stdio.StreamError, fn -> Enum.to_list(chain) end)
      assert error.reason == :enoent
      assert messages() == []
    end
  end

  test "a stream that answers at once is looked at, and waited for once it does not" do
    me = self()

    input =
      Stream.resource(
        fn -> send(me, {:feeder, self()}) end,
        fn state ->
          receive do
            {:line, line} -> {[line], state}
            :stop -> {:halt, state}
          end
        end,
        fn _ -> :ok end
      )

    consumer =
      Task.async(fn ->
        for element <- Stdio.pipe!(input, ["/bin/cat"]), do: send(me, {self(), element})
        :ok
      end)

    assert_receive {:feeder, feeder}, 10_000
    %{pid: pid} = consumer

    for n <- 1..2000 do
      line = "#{n}\n"
      send(feeder, {:line, line})
      assert_receive {^pid, {:stdout, ^line}}, 10_000
    end

    # It comes to rest, and stays there.
    reductions = fn -> Process.info(pid, [:reductions, :status]) end
    rested? = fn -> reductions.() == (Process.sleep(50) && reductions.()) end
    assert Proc.wait_until(rested?)
    rest = reductions.()
    assert [_, status: :waiting] = rest
    Process.sleep(300)
    assert reductions.() == rest

    send(feeder, {:line, "last\n"})
    assert_receive {^pid, {:stdout, "last\n"}}, 10_000
    send(feeder, :stop)
    assert_receive {^pid, {:exit_status, 0}}, 10_000
    assert Task.await(consumer) == :ok
  end
end
