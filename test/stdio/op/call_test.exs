defmodule Stdio.Op.CallTest do
  use ExUnit.Case, async: true
  doctest Stdio.Op.Call

  alias Stdio.Op.Call

  defp parse(op), do: Call.parse(op, Stdio.Task)

  defp mfa(op) do
    {:ok, call} = parse(op)
    {call.module, call.fun, call.args}
  end

  test "the forms" do
    assert mfa({:f, [1]}) == {Stdio.Task, :f, [1]}
    assert mfa({M, :f, [1]}) == {M, :f, [1]}
    assert mfa({M, :f, [1], [state: true]}) == {M, :f, [1]}
    assert mfa({:f, [1], [state: true]}) == {Stdio.Task, :f, [1]}
  end

  test "{a, b, c} is {fun, args, opts} when b and c are lists" do
    assert mfa({:f, [], []}) == {Stdio.Task, :f, []}
    assert mfa({:f, [], errexit: false}) == {Stdio.Task, :f, []}
    assert mfa({:f, :g, []}) == {:f, :g, []}
    assert parse({:f, [], :g}) == :error
  end

  test "module aliases" do
    assert mfa({:prx, :f, [1]}) == {Stdio.Task, :f, [1]}
    assert mfa({:prx, :f, [1], []}) == {Stdio.Task, :f, [1]}
    assert mfa({:seccomp, :deny, [[]]}) == {Stdio.Seccomp, :deny, [[]]}
    assert {:ok, %{module: Fake}} = Call.parse({:prx, :f, []}, Fake)
    assert {:ok, %{module: Fake}} = Call.parse({Stdio.Task, :f, []}, Fake)
    # Only as a module.
    assert mfa({:prx, []}) == {Stdio.Task, :prx, []}
  end

  test "options and their defaults" do
    assert {:ok, %Call{state: false, errexit: true, ignore: [], transform: nil}} = parse({:f, []})

    transform = &{:ok, &1}
    opts = [state: true, errexit: false, ignore: [:enoent], transform: transform]

    assert {:ok, %Call{state: true, errexit: false, ignore: [:enoent], transform: ^transform}} =
             parse({:f, [], opts})
  end

  test "of an option given twice the first counts" do
    assert {:ok, %{errexit: false}} = parse({:f, [], errexit: false, errexit: true})
  end

  test "what is no op" do
    for op <- [
          :f,
          nil,
          {},
          {:f},
          {:f, :arg},
          {:f, [1 | 2]},
          {"f", []},
          {1, []},
          {M, "f", []},
          {M, :f, nil},
          {"M", :f, []},
          {M, :f, [], nil},
          {M, :f, [], [1]},
          {:f, [], [{:state, true} | :x]},
          {M, :f, [], [], []},
          {:f, [], [state: 1]},
          {:f, [], [errexit: nil]},
          {:f, [], [ignore: :enoent]},
          {:f, [], [transform: fn -> :ok end]},
          {:f, [], [errexti: false]},
          %{},
          "f",
          [1 | 2]
        ] do
      assert {op, parse(op)} == {op, :error}
    end
  end

  test "batch?: only what needs no Elixir" do
    batch? = fn op ->
      {:ok, call} = parse(op)
      Call.batch?(call, Stdio.Task)
    end

    assert batch?.({:f, []})
    assert batch?.({:prx, :f, []})
    assert batch?.({Stdio.Task, :f, [], errexit: false, ignore: [:enoent], state: false})
    refute batch?.({M, :f, []})
    refute batch?.({:f, [], state: true})
    refute batch?.({:f, [], transform: & &1})
  end

  test "effects" do
    {:ok, call} = parse({:f, []})
    {:ok, lenient} = parse({:f, [], errexit: false, ignore: [:enoent]})

    assert Call.effect(call, :ok) == {:state, :ok}
    assert Call.effect(call, {:ok, nil}) == {:state, nil}
    assert Call.effect(call, []) == {:branch, []}
    assert Call.effect(call, [1, 2]) == {:branch, [1, 2]}
    assert Call.effect(call, {:error, :enoent}) == {:failed, :enoent}
    assert Call.effect(lenient, {:error, :enoent}) == {:state, :ok}
    assert Call.effect(lenient, {:error, :eperm}) == :same

    for value <- [1, nil, true, "", {}, {:ok}, {:ok, 1, 2}, {:error}, {:error, 1, 2}, [1 | 2]] do
      assert {value, Call.effect(lenient, value)} == {value, :bad_result}
    end
  end
end
