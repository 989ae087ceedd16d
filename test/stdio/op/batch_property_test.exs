defmodule Stdio.Op.BatchPropertyTest do
  # A run of ops does the same, however it is cut into batches: the same calls in the same order
  # with the same states, and the same error. Random ops are run in batches as long as possible, in
  # batches of random lengths, one by one, and by a model that knows neither batches nor a stack.
  use ExUnit.Case, async: true

  alias Stdio.Op.Runner
  alias Stdio.OpError
  alias Stdio.Test.{Builtin, OpLog, Ops}

  @runs 3_000
  @task :task

  test "the outcome does not depend on the size of batches" do
    # ExUnit prints the seed.
    seed = ExUnit.configuration()[:seed]
    :rand.seed(:exsss, {seed, 1, 2})

    outcomes =
      for n <- 1..@runs do
        ops = level(3)
        {one_by_one, batches} = outcome(ops, 0)
        assert Enum.all?(batches, &match?({_, 0}, &1))

        for limit <- [:infinity, fn -> :rand.uniform(4) - 1 end] do
          {batched, _} = outcome(ops, limit)
          assert batched == one_by_one, "run #{n}: #{inspect(ops)}"
        end

        assert model_outcome(ops) == one_by_one, "run #{n}: #{inspect(ops)}"
        elem(one_by_one, 0)
      end

    # Else the test would show little.
    assert Enum.count(outcomes, &(&1 == :ok)) > @runs / 20
    assert Enum.count(outcomes, &match?({:error, %{reason: :badop}}, &1)) > @runs / 20
    assert Enum.count(outcomes, &match?({:error, %{reason: :enoent}}, &1)) > @runs / 20
  end

  defp outcome(ops, limit) do
    Builtin.limit(limit)
    result = Runner.run(@task, ops, Builtin)
    {{result, OpLog.take()}, Builtin.batches()}
  end

  # -- random ops ---------------------------------------------------------------------------

  defp level(depth), do: for(_ <- 1..:rand.uniform(7), do: op(depth))

  defp op(depth) do
    case :rand.uniform(20) do
      n when n <= 11 -> builtin(depth)
      12 -> {:bare, [value(depth)]}
      13 -> {:prx, :give, [value(depth)], errexit: :rand.uniform(2) == 1}
      14 -> {:see, [], state: true}
      15 -> {Ops, :see, [value(depth)], state: true}
      16 -> {Ops, :give, [value(depth)]}
      17 -> {:give, [value(depth)], transform: pick([fn _ -> :ok end, &{:ok, {:seen, &1}}, & &1])}
      n when n <= 19 and depth > 0 -> pick([[], level(depth - 1)])
      20 -> pick([:none, {:fake_syscall, []}, {:give, [:bad_argument]}, {:see, [], state: true}])
      _ -> {:see, [], state: true}
    end
  end

  defp builtin(depth) do
    opts = pick([[], [], [errexit: false], [ignore: [:enoent]], [ignore: [:eio], errexit: false]])
    {:give, [value(depth)], opts}
  end

  defp value(depth) do
    case :rand.uniform(24) do
      n when n <= 9 -> :ok
      n when n <= 18 -> {:ok, :rand.uniform(1000)}
      19 -> {:error, :enoent}
      20 -> {:error, :eio}
      21 when depth > 0 -> level(depth - 1)
      22 -> pick([4711, nil, ["PATH=/bin"], :ok])
      _ -> []
    end
  end

  defp pick(list), do: Enum.random(list)

  # -- the model ----------------------------------------------------------------------------

  defp model_outcome(ops) do
    result =
      try do
        model(ops, [], [])
        :ok
      catch
        {:stopped, error} -> {:error, error}
      end

    {result, OpLog.take()}
  end

  # `after_level`: what follows in the levels around this one.
  defp model([], _state, _after_level), do: :ok

  defp model([op | ops], state, after_level) when is_list(op) do
    model(op, [], ops ++ after_level)
    model(ops, state, after_level)
  end

  defp model([op | ops], state, after_level) do
    remaining = ops ++ after_level

    {module, fun, args, opts} =
      case op do
        {a, b} -> {Builtin, a, b, []}
        {a, b, c} when is_list(b) -> {Builtin, a, b, c}
        {a, b, c} -> {a, b, c, []}
        {:prx, b, c, d} -> {Builtin, b, c, d}
        {_, _, _, _} -> op
        _ -> throw({:stopped, OpError.malformed(op, remaining)})
      end

    written = {module, fun, args}
    args = if opts[:state], do: [state, @task | args], else: [@task | args]

    value =
      try do
        apply(module, fun, args)
      rescue
        error ->
          raised = {:error, error, __STACKTRACE__}

          throw(
            {:stopped, %{OpError.raised(raised, {module, fun, args}, remaining) | op: written}}
          )
      end

    ignored = for reason <- opts[:ignore] || [], do: {:error, reason}
    value = (opts[:transform] || (& &1)).(value)

    cond do
      value == :ok or value in ignored ->
        model(ops, :ok, after_level)

      match?({:ok, _}, value) ->
        model(ops, elem(value, 1), after_level)

      is_list(value) ->
        model(value ++ ops, state, after_level)

      match?({:error, _}, value) and opts[:errexit] == false ->
        model(ops, state, after_level)

      match?({:error, _}, value) ->
        error = OpError.failed(elem(value, 1), {module, fun, args}, remaining)
        throw({:stopped, %{error | op: written}})

      true ->
        error = OpError.bad_result(value, {module, fun, args}, remaining)
        throw({:stopped, %{error | op: written}})
    end
  end
end
