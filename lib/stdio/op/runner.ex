defmodule Stdio.Op.Runner do
  @moduledoc false
  # Runs ops in a task.
  #
  # Rules:
  #
  #   1. What is left to do is a stack of levels, each with its ops and its state; an inner list
  #      is a level on top. Nothing else decides what comes next.
  #   2. A run of ops that need no Elixir, two or more in one level, is offered to the task as one
  #      batch. The task says how many of them it has made, which may be none; the next one is
  #      then made by itself. So the outcome does not depend on the size of batches.
  #   3. The value of a call means the same, whichever way it was made: Call.effect/2.
  #
  # The task's side of a batch, `builtin.__batch__(task, calls)`:
  #
  #   calls   [{fun, args, ignore, errexit}]: the call fun(task, ...args); ignore is a list of
  #           posix atoms. At least two.
  #
  #   {:ok, done, state}             the first `done` calls were made, and each returned :ok,
  #                                  {:ok, value}, an error in its ignore, or, with errexit:
  #                                  false, any error. Call number `done`, if there is one, was
  #                                  not made: it cannot be part of a batch, it is unknown, or
  #                                  its arguments are wrong. The runner makes it, and so gets
  #                                  its exception.
  #   {:stop, index, value, state}   call number `index` (from 0) was made and returned `value`,
  #                                  something else; those before it as above. Later ones were
  #                                  not made. A dead task: {:stop, 0, {:error, :esrch}, :same}.
  #
  #   state   of those that went well, the last that was not an error passed over by errexit:
  #           {:state, :ok} for :ok and for an error in ignore, {:state, value} for {:ok, value};
  #           :same if there was none.

  alias Stdio.Op.Call
  alias Stdio.OpError

  @doc """
  Runs `ops`. An error comes back as the exception to raise, and no op after it was run.

  `builtin` is the module of ops that name none, or `Stdio.Task`.
  """
  @spec run(Stdio.Task.t(), [Stdio.Op.op()], module) :: :ok | {:error, OpError.t()}
  def run(task, ops, builtin \\ Stdio.Task) do
    levels([{[ops], []}], {task, builtin, nil})
  end

  @doc """
  Runs `ops`, then executes `program`, which travels with the last batch. `{:error, posix}` is the
  program's.
  """
  @spec exec(Stdio.Task.t(), [Stdio.Op.op()], tuple) ::
          :ok | {:error, OpError.t() | Stdio.posix()} | {:raised, Exception.t()}
  def exec(task, ops, program), do: levels([{[ops], []}], {task, Stdio.Task, program})

  @doc """
  As `exec/3`, for a task that `start` makes with the one message that this would send: it gets the
  requests and gives the task, its pid and the answer, or something else, which is returned. `:apart` if
  it takes more messages than one.
  """
  @spec exec_ahead([Stdio.Op.op()] | term, tuple, ([tuple] -> term)) ::
          {:ok, Stdio.Task.t(), Stdio.Task.os_pid(),
           :ok | {:error, OpError.t() | Stdio.posix()} | {:raised, Exception.t()}}
          | {:error, Stdio.posix()}
          | :apart
  def exec_ahead(ops, program, start) when length(ops) >= 0 do
    calls = batch(ops, Stdio.Task)

    with true <- length(calls) == length(ops),
         {:ok, task, pid, answer} <- start.(requests(calls)) do
      context = {task, Stdio.Task, program}
      {:ok, task, pid, came({:value, answer}, :__exec__, calls, [{ops, []}], context)}
    else
      false -> :apart
      other -> other
    end
  end

  def exec_ahead(_ops, _program, _start), do: :apart

  defp levels([], {_task, _builtin, nil}), do: :ok

  defp levels([], {task, builtin, program}) do
    {:exec, result} = builtin.__exec__(task, [], program)
    result
  end

  defp levels([{[], _state} | outer], context), do: levels(outer, context)

  defp levels([{[inner | ops], state} | outer], context) when length(inner) >= 0,
    do: levels([{inner, []}, {ops, state} | outer], context)

  defp levels([{ops, _state} | outer] = levels, {_task, builtin, program} = context) do
    case batch(ops, builtin) do
      [_ | _] = calls when program != nil and length(calls) == length(ops) ->
        if Enum.all?(outer, &match?({[], _}, &1)),
          do: batched(calls, levels, context, [program]),
          else: batched(calls, levels, context, [])

      [_, _ | _] = calls ->
        batched(calls, levels, context, [])

      _ ->
        single(levels, context)
    end
  end

  # The longest run of ops at the front that a task can make by itself.
  defp batch([op | ops], builtin) do
    with {:ok, call} <- Call.parse(op, builtin),
         true <- Call.batch?(call, builtin) do
      [call | batch(ops, builtin)]
    else
      _ -> []
    end
  end

  defp batch([], _builtin), do: []

  # `program`: a list of one if these are the last.
  defp batched(calls, levels, {task, builtin, _program} = context, program) do
    fun = if program == [], do: :__batch__, else: :__exec__
    offer = %Call{module: builtin, fun: fun, args: [requests(calls) | program]}
    offer |> make(task, []) |> came(fun, calls, levels, context)
  end

  defp requests(calls), do: Enum.map(calls, &{&1.fun, &1.args, &1.ignore, &1.errexit})

  # What came of the offer of a batch.
  defp came(answer, fun, calls, levels, {task, builtin, _program} = context) do
    size = length(calls)

    case answer do
      {:value, {:exec, result}} ->
        result

      {:value, {:ok, ^size, effect}} ->
        levels |> pass(size, effect) |> levels(context)

      {:value, {:ok, done, effect}} when is_integer(done) and done >= 0 and done < size ->
        levels |> pass(done, effect) |> single(context)

      {:value, {:stop, index, value, effect}}
      when is_integer(index) and index >= 0 and index < size ->
        # The task has followed errexit and ignore; to follow them again changes nothing.
        levels = pass(levels, index, effect)
        calls |> Enum.at(index) |> continue({:value, value}, levels, context)

      # A fault of ours, not of an op.
      other ->
        error(other, {builtin, fun, [task, requests(calls)]}, levels)
    end
  end

  defp pass(levels, 0, :same), do: levels
  defp pass([{ops, state} | outer], n, :same), do: [{Enum.drop(ops, n), state} | outer]
  defp pass([{ops, _} | outer], n, {:state, state}), do: [{Enum.drop(ops, n), state} | outer]

  defp single([{[op | ops], state} | outer] = levels, {task, builtin, _program} = context) do
    case Call.parse(op, builtin) do
      {:ok, call} -> continue(call, make(call, task, state), levels, context)
      :error -> {:error, OpError.malformed(op, remaining([{ops, state} | outer]))}
    end
  end

  # After the first op of the first level, with what came of it.
  defp continue(call, {:value, value} = outcome, [{[_ | ops], state} | outer] = levels, context) do
    case Call.effect(call, value) do
      :same -> levels([{ops, state} | outer], context)
      {:state, state} -> levels([{ops, state} | outer], context)
      {:branch, branch} -> levels([{branch ++ ops, state} | outer], context)
      _ -> failed(call, outcome, levels, context)
    end
  end

  defp continue(call, outcome, levels, context), do: failed(call, outcome, levels, context)

  defp failed(call, outcome, [{[_ | ops], state} | outer], {task, _builtin, _program}) do
    made = {call.module, call.fun, Call.args(call, task, state)}
    levels = [{ops, state} | outer]

    {:error, error} =
      case outcome do
        {:value, {:error, reason}} -> {:error, OpError.failed(reason, made, remaining(levels))}
        other -> error(other, made, levels)
      end

    # The message shows the call as it was made, the field the op as its author wrote it.
    {:error, %{error | op: {call.module, call.fun, call.args}}}
  end

  defp error({:value, value}, op, levels),
    do: {:error, OpError.bad_result(value, op, remaining(levels))}

  defp error({:raised, raised}, op, levels),
    do: {:error, OpError.raised(raised, op, remaining(levels))}

  defp remaining(levels), do: Enum.flat_map(levels, fn {ops, _state} -> ops end)

  # Whatever an op does, the caller has to undo what was started: nothing may escape.
  defp make(call, task, state) do
    value = apply(call.module, call.fun, Call.args(call, task, state))
    {:value, if(call.transform, do: call.transform.(value), else: value)}
  catch
    kind, payload -> {:raised, {kind, payload, __STACKTRACE__}}
  end
end
