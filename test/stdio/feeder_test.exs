defmodule Stdio.FeederTest do
  # What becomes of the process that feeds a program when something goes wrong on either side.
  use Stdio.Test.StreamCase

  @moduletag timeout: 20_000

  # An input of one element which the program has read before `fun` runs.
  defp input(fun), do: Stream.map([:first, :second], &element(&1, fun))

  defp element(:first, _fun), do: "ready\n"
  defp element(:second, fun), do: fun.()

  # Consumes with a program that sleeps on, and returns what was raised, when nothing is left.
  defp raised(mark, fun) do
    command = ["/bin/sh", "-c", "cat; sleep 300", mark]

    try do
      pipe(input(fun), command)
    catch
      kind, reason ->
        assert Proc.find(mark) == []
        {kind, reason, __STACKTRACE__}
    end
  end

  # Runs `fun` and tells the test with which stacktrace it failed.
  defp told(parent, fun) do
    fun.()
  catch
    kind, reason ->
      send(parent, {:stacktrace, __STACKTRACE__})
      :erlang.raise(kind, reason, __STACKTRACE__)
  end

  describe "what the input raises is raised again in the consumer, when the tree is gone:" do
    for {kind, reason, code} <- [
          {:error, %RuntimeError{message: "mine"}, quote(do: raise("mine"))},
          {:error, :badarith, quote(do: :erlang.error(:badarith))},
          {:throw, {:ball, 1}, quote(do: throw({:ball, 1}))},
          {:exit, :reason, quote(do: exit(:reason))},
          {:exit, :normal, quote(do: exit(:normal))},
          {:exit, :kill, quote(do: exit(:kill))}
        ] do
      @tag expected: {kind, reason}
      test "#{Macro.to_string(code)}", %{mark: mark, expected: {kind, reason}} do
        parent = self()
        fun = fn -> told(parent, fn -> unquote(code) end) end
        assert {^kind, ^reason, stacktrace} = raised(mark, fun)
        assert_received {:stacktrace, [_ | _] = thrown}
        assert List.starts_with?(stacktrace, Enum.take(thrown, 3))
        assert messages() == []
      end
    end

    test "before the first element", %{mark: mark} do
      for _ <- 1..20 do
        input = Stream.map([1], fn _ -> raise "early" end)

        assert_raise RuntimeError, "early", fn ->
          pipe(input, ["/bin/sh", "-c", "sleep 300", mark])
        end

        assert Proc.find(mark) == []
        assert messages() == []
      end
    end

    test "while the consumer traps exits", %{mark: mark} do
      Process.flag(:trap_exit, true)
      assert {:exit, :reason, _} = raised(mark, fn -> exit(:reason) end)
      assert messages() == []
    end

    test "output that came before is delivered", %{mark: mark} do
      parent = self()

      input =
        input(fn ->
          send(parent, {:feeder, self()})
          receive(do: (:go -> raise("late")))
        end)

      consume = fn element ->
        send(parent, element)
        assert_receive {:feeder, feeder}, 5000
        send(feeder, :go)
      end

      stream = Stdio.pipe!(input, ["/bin/sh", "-c", "cat", mark])
      assert_raise RuntimeError, "late", fn -> Enum.each(stream, consume) end
      assert messages() == [stdout: "ready\n"]
    end
  end

  describe "what is no iodata is an ArgumentError in the consumer:" do
    for element <- [:atom, 1, nil, 1.5, {"a"}, %{}, [:a], [256], ["a" | :b], ~c"€"] do
      @tag element: element
      test "#{inspect(element)}", %{mark: mark, element: element} do
        assert {:error, error, _} = raised(mark, fn -> element end)
        assert %ArgumentError{} = Exception.normalize(:error, error)
        assert messages() == []
      end
    end

    test "and what is no enumerable a Protocol.UndefinedError", %{mark: mark} do
      for input <- ["text", :atom, 1] do
        assert_raise Protocol.UndefinedError, fn ->
          pipe(input, ["/bin/sh", "-c", "cat; sleep 300", mark])
        end

        assert Proc.find(mark) == []
        assert messages() == []
      end
    end
  end

  # The feeder's pid is sent to the test with the first element.
  defp endless(parent) do
    Stream.repeatedly(fn ->
      send(parent, {:feeder, self()})
      :binary.copy("x", 65_536)
    end)
  end

  describe "the feeder dies" do
    test "with a consumer that is killed while it waits for the program", %{mark: mark} do
      before = Process.list()
      parent = self()
      input = endless(parent)

      {consumer, monitor} =
        spawn_monitor(fn ->
          input
          |> Stdio.pipe!([Proc.fixture("never-read"), mark])
          |> Enum.each(&send(parent, &1))
        end)

      assert_receive {:stdout, "ready\n"}, 5000
      assert_receive {:feeder, feeder}
      assert Process.alive?(feeder)
      Process.exit(consumer, :kill)
      assert_receive {:DOWN, ^monitor, _, _, :killed}
      assert Proc.wait_until(fn -> Proc.gone?(mark) end)
      assert Proc.wait_until(fn -> Process.list() -- before == [] end)
    end

    test "with a consumer that is killed while the input waits", %{mark: mark} do
      before = Process.list()
      parent = self()
      input = Stream.concat(["a"], Stream.repeatedly(fn -> Process.sleep(:infinity) end))

      {consumer, monitor} =
        spawn_monitor(fn ->
          input |> Stdio.pipe!(["/bin/sh", "-c", "cat", mark]) |> Enum.each(&send(parent, &1))
        end)

      assert_receive {:stdout, "a"}, 5000
      Process.exit(consumer, :kill)
      assert_receive {:DOWN, ^monitor, _, _, :killed}
      assert Proc.wait_until(fn -> Proc.gone?(mark) end)
      assert Proc.wait_until(fn -> Process.list() -- before == [] end)
    end

    test "with a program that ends by itself", %{mark: mark} do
      before = Process.list()
      input = Stream.concat(["a"], Stream.repeatedly(fn -> Process.sleep(:infinity) end))
      assert pipe(input, ["/bin/sh", "-c", "head -c 1", mark]) == [stdout: "a", exit_status: 0]
      assert Proc.wait_until(fn -> Process.list() -- before == [] end)
      assert messages() == []
    end

    test "alone, by a link that the input has made: the consumer exits alike", %{mark: mark} do
      fun = fn ->
        spawn_link(fn -> exit(:linked) end)
        Process.sleep(:infinity)
      end

      assert {:exit, :linked, _} = raised(mark, fun)
      assert messages() == []
    end

    test "and takes the programs of its own input along", %{mark: mark} do
      parent = self()
      inner = Stdio.stream!([Proc.fixture("never-read"), mark])
      input = Stream.map(inner, fn {:stdout, text} -> text end)

      {consumer, monitor} =
        spawn_monitor(fn -> input |> Stdio.pipe!("cat") |> Enum.each(&send(parent, &1)) end)

      assert_receive {:stdout, "ready\n"}, 5000
      assert [_] = Proc.find(mark)
      Process.exit(consumer, :kill)
      assert_receive {:DOWN, ^monitor, _, _, :killed}
      assert Proc.wait_until(fn -> Proc.gone?(mark) end)
    end
  end
end
