defmodule Stdio.Op.RunnerTest do
  use ExUnit.Case, async: true

  alias Stdio.Op.Runner
  alias Stdio.OpError
  alias Stdio.Test.{Builtin, OpLog, Ops}

  # Stands for a %Stdio.Task{}.
  @task :task

  defp run(ops), do: Runner.run(@task, ops, Builtin)

  # The arguments after the task of the calls made by `ops`.
  defp given(ops) do
    result = run(ops)
    {result, for({:give, [@task, value]} <- OpLog.take(), do: value)}
  end

  defp seen(ops) do
    assert run(ops) == :ok
    for {:see, [state, @task | _]} <- OpLog.take(), do: state
  end

  defp give(value, opts \\ []), do: {Ops, :give, [value], opts}
  defp see, do: {Ops, :see, [], state: true}

  # As msg is long, only its first line.
  defp banner(%OpError{message: message}), do: message |> String.split("\n") |> hd()

  describe "order" do
    test "nothing" do
      assert given([]) == {:ok, []}
      assert given([[], [[]]]) == {:ok, []}
    end

    test "one after another, inner lists in their place" do
      ops = [give({:ok, 1}), [give({:ok, 2}), [give({:ok, 3})], []], give({:ok, 4})]
      assert given(ops) == {:ok, [ok: 1, ok: 2, ok: 3, ok: 4]}
    end

    test "a branch comes before the remaining ops" do
      branch = [give({:ok, 2}), [give({:ok, 3})]]

      assert given([give(branch), give({:ok, 4})]) ==
               {:ok, [branch, {:ok, 2}, {:ok, 3}, {:ok, 4}]}
    end

    test "a branch of a branch, an empty one, one at the end of an inner list" do
      inner = [give({:ok, 1})]
      outer = [give(inner), give({:ok, 2})]

      assert given([[give(outer)], give([]), give({:ok, 3})]) ==
               {:ok, [outer, inner, {:ok, 1}, {:ok, 2}, [], {:ok, 3}]}
    end
  end

  describe "state" do
    test "is [] at first, then :ok or the last value" do
      ops = [see(), see(), give({:ok, 1}), see(), give({:ok, 2}), give({:ok, 3}), see()]
      assert seen(ops) == [[], :ok, 1, 3]
    end

    test "does not come out of an inner list, nor go into it" do
      ops = [give({:ok, 1}), [see(), give({:ok, 2}), see()], see()]
      assert seen(ops) == [[], 2, 1]
    end

    test "of a branch is that of the level it is inserted in" do
      ops = [give({:ok, 1}), give([see(), give({:ok, 2})]), see()]
      assert seen(ops) == [1, 2]
    end

    test "is not changed by an error passed over, but by an ignored one" do
      ops = [
        give({:ok, 1}),
        give({:error, :enoent}, errexit: false),
        see(),
        give({:error, :enoent}, ignore: [:enoent]),
        see()
      ]

      assert seen(ops) == [1, :ok]
    end

    test "is set by the transformed result" do
      assert seen([give(5, transform: &{:ok, &1 + 1}), see()]) == [6]
    end

    test "comes before the task" do
      assert run([give({:ok, 1}), {Ops, :see, [{:ok, 2}], state: true}]) == :ok
      assert {:see, [1, @task, {:ok, 2}]} in OpLog.take()
    end

    test "of built-in ops in a batch is seen by those after it" do
      builtin = fn value -> {:give, [value]} end
      ops = [builtin.({:ok, 1}), builtin.({:ok, 2}), {:see, [], state: true}, see()]
      assert seen(ops) == [2, :ok]

      passed_over = {:give, [{:error, :eperm}], errexit: false}
      assert seen([builtin.({:ok, 1}), passed_over, see()]) == [1]
      assert seen([passed_over, passed_over, see()]) == [[]]
    end
  end

  describe "errors" do
    test "the call, its reason and all ops that were not run" do
      rest = [give({:ok, 2}), [give({:ok, 3})]]
      ops = [give({:ok, 1}), [give({:error, :enoent}) | rest], give({:ok, 4})]

      assert {{:error, error}, [{:ok, 1}, {:error, :enoent}]} = given(ops)

      assert error ==
               failure(
                 :failed,
                 :enoent,
                 {Ops, :give, [{:error, :enoent}]},
                 rest ++ [give({:ok, 4})]
               )
    end

    # The message has the call with its task, the field `op` what was written.
    defp failure(kind, value, {module, fun, args} = op, remaining) do
      error = apply(OpError, kind, [value, {module, fun, [@task | args]}, remaining])
      %{error | op: op}
    end

    test "state: true shows in the call" do
      assert {:error, %OpError{op: {Ops, :see, [{:error, :eio}]}, reason: :eio} = error} =
               run([give({:ok, 1}), {Ops, :see, [{:error, :eio}], state: true}])

      assert error.message =~ "Stdio.Test.Ops.see(1, :task, {:error, :eio})"
    end

    test "errexit: false passes over every error, ignore: those it names" do
      assert {:ok, _} = given([give({:error, :eperm}, errexit: false)])
      assert {:ok, _} = given([give({:error, :eperm}, ignore: [:enoent, :eperm])])

      assert {{:error, %{reason: :eperm}}, _} = given([give({:error, :eperm}, ignore: [:enoent])])
    end

    test "ignore and errexit judge the transformed result" do
      to_error = fn reason -> {:error, reason} end
      assert {:ok, _} = given([give(:eperm, transform: to_error, errexit: false)])
      assert {{:error, %{reason: :eperm}}, _} = given([give(:eperm, transform: to_error)])
      assert {:ok, _} = given([give({:error, :eperm}, transform: fn _ -> :ok end)])
    end

    test "another result is a bad one, whatever the options" do
      for value <- [4711, nil, true, "text", {:ok, 1, 2}, %{}, {:error, 1, 2}],
          opts <- [[], [errexit: false, ignore: [:enoent]]] do
        assert {{:error, error}, [^value]} = given([give(value, opts), give({:ok, 1})])
        op = {Ops, :give, [value]}
        assert error == failure(:bad_result, value, op, [give({:ok, 1})])
      end
    end

    test "raise, throw and exit, in a call and in its transform" do
      for {kind, banner} <- [
            raise: "** (ArgumentError) no",
            throw: "** (throw) :x",
            exit: "** (exit) :gone"
          ],
          opts <- [[], [errexit: false]] do
        assert {:error, %{reason: :badop, op: {Ops, :fail, [^kind]}} = error} =
                 run([{Ops, :fail, [kind], opts}, give({:ok, 1})])

        assert banner(error) == banner

        assert {:error, %{reason: :badop, op: {Ops, :give, [1]}} = error} =
                 run([give(1, transform: fn _ -> Ops.fail(@task, kind) end)])

        assert banner(error) == banner
      end
    end

    test "no such function, no such module" do
      assert {:error, %{reason: :badop, op: {Builtin, :fake_syscall, []}} = error} =
               run([{:fake_syscall, []}])

      assert banner(error) =~ "UndefinedFunctionError"
      assert {:error, %{reason: :badop}} = run([{Nope, :f, []}])
    end

    test "what is no op, once it is reached" do
      for op <- [
            :chdir,
            {:chdir, "/"},
            {:give, [:ok], [errexti: false]},
            {:give, [:ok], ignore: [1]},
            5,
            [1 | 2]
          ] do
        assert {{:error, error}, [{:ok, 1}]} = given([give({:ok, 1}), op, give({:ok, 2})])
        assert error == OpError.malformed(op, [give({:ok, 2})])
      end

      assert {{:error, %{reason: :badop, op: nil}}, [["PATH=/bin"]]} =
               given([give(["PATH=/bin"])])

      assert {:error, %{reason: :badop}} = run(:none)
      assert {:error, %{reason: :badop}} = run([give({:ok, 1}) | :tail])
      # Not even the first op of a list that is none.
      assert OpLog.take() == []
    end
  end

  describe "batches" do
    defp builtin(value, opts \\ []), do: {:give, [value], opts}

    test "as long as possible, at least two, in one level" do
      run([builtin(:ok), builtin(:ok), builtin(:ok)])
      assert Builtin.batches() == [{3, 3}]

      run([builtin(:ok), give(:ok), builtin(:ok), [builtin(:ok), builtin(:ok)], builtin(:ok)])
      assert Builtin.batches() == [{2, 2}]

      run([builtin(:ok), builtin(:ok, errexit: false), builtin(:ok, transform: & &1)])
      assert Builtin.batches() == [{2, 2}]
    end

    test "a call that stops one is reported as by itself" do
      ops = [builtin(:ok), builtin({:error, :eperm}), builtin(:ok)]

      assert run(ops) ==
               {:error,
                failure(:failed, :eperm, {Builtin, :give, [{:error, :eperm}]}, [builtin(:ok)])}

      assert {:error, %{reason: :badop, op: {Builtin, :give, [7]}}} =
               run([builtin(:ok), builtin(7)])
    end

    test "a list from a call in a batch is a branch" do
      branch = [builtin({:ok, 5})]
      assert seen([builtin({:ok, 1}), builtin(branch), see()]) == [5]
      assert seen([builtin({:ok, 1}), builtin([]), see()]) == [1]
    end

    test "a call it cannot make is made by itself, and the rest is a batch again" do
      ops = [builtin(:ok), {:bare, [{:ok, 1}]}, builtin(:ok), builtin(:ok)]
      assert {:ok, [:ok, {:ok, 1}, :ok, :ok]} = given(ops)
      assert Builtin.batches() == [{4, 1}, {2, 2}]
    end

    test "a wrong argument raises after the calls before it were made" do
      assert {{:error, %{reason: :badop, op: {Builtin, :give, [:bad_argument]}} = error}, [:ok]} =
               given([builtin(:ok), builtin(:bad_argument), builtin(:ok)])

      assert banner(error) == "** (ArgumentError) bad argument"
    end

    defmodule Faulty do
      def __batch__(:raise, _), do: raise("fault")
      def __batch__(answer, _), do: answer
    end

    test "a batch that raises or answers nonsense ends the run" do
      for answer <- [:raise, :ok, {:ok, 3, :same}, {:ok, -1, :same}, {:stop, 2, :ok, :same}] do
        assert {:error, %{reason: :badop, op: {Faulty, :__batch__, [^answer, [_, _]]}}} =
                 Runner.run(answer, [{:a, []}, {:b, []}], Faulty)
      end
    end
  end
end
