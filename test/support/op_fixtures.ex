defmodule Stdio.Test.OpLog do
  @moduledoc false
  # The calls made by ops in a test process, in order.

  def note(call), do: Process.put(__MODULE__, [call | Process.get(__MODULE__, [])])

  def take, do: (Process.delete(__MODULE__) || []) |> Enum.reverse()
end

defmodule Stdio.Test.Ops do
  @moduledoc false
  # A foreign module of ops: what a call does is its argument.

  alias Stdio.Test.OpLog

  def give(task, value), do: noted(:give, [task, value], value)
  def see(state, task), do: noted(:see, [state, task], :ok)
  def see(state, task, value), do: noted(:see, [state, task, value], value)
  def fail(task, :raise), do: noted(:fail, [task, :raise], fn -> raise ArgumentError, "no" end).()
  def fail(task, :throw), do: noted(:fail, [task, :throw], fn -> throw(:x) end).()
  def fail(task, :exit), do: noted(:fail, [task, :exit], fn -> exit(:gone) end).()

  defp noted(fun, args, value) do
    OpLog.note({fun, args})
    value
  end
end

defmodule Stdio.Test.Builtin do
  @moduledoc false
  # Stands in the place of Stdio.Task in runs of ops: give/2 can be part of a batch, bare/2 and
  # see/2,3 cannot, arguments are checked before anything is done. A batch goes as far as
  # `limit/1` allows.

  alias Stdio.Test.Ops

  @doc "The largest batch: an integer, :infinity, or a function without arguments."
  def limit(limit), do: Process.put(__MODULE__, limit)

  @doc "The sizes of the batches offered since the last call, and how far each went."
  def batches, do: (Process.delete({__MODULE__, :batches}) || []) |> Enum.reverse()

  def give(_task, :bad_argument), do: raise(ArgumentError, "bad argument")
  def give(task, value), do: Ops.give(task, value)
  def bare(task, value), do: Ops.give(task, value)
  defdelegate see(state, task), to: Ops
  defdelegate see(state, task, value), to: Ops

  def __batch__(task, calls) do
    true = length(calls) >= 2
    outcome = batch(task, calls, 0, :same, limit())
    note = {length(calls), elem(outcome, 1)}
    key = {__MODULE__, :batches}
    Process.put(key, [note | Process.get(key, [])])
    outcome
  end

  defp limit do
    case Process.get(__MODULE__, :infinity) do
      limit when is_function(limit) -> limit.()
      limit -> limit
    end
  end

  defp batch(task, [{:give, [value], ignore, errexit} | calls], index, state, limit)
       when index < limit and value != :bad_argument do
    # What the native side does in Rust, written independently of Call.effect/2 where it counts.
    case give(task, value) do
      :ok ->
        batch(task, calls, index + 1, {:state, :ok}, limit)

      {:ok, value} ->
        batch(task, calls, index + 1, {:state, value}, limit)

      {:error, reason} = error ->
        cond do
          reason in ignore -> batch(task, calls, index + 1, {:state, :ok}, limit)
          not errexit -> batch(task, calls, index + 1, state, limit)
          true -> {:stop, index, error, state}
        end

      value ->
        {:stop, index, value, state}
    end
  end

  defp batch(_task, _calls, index, state, _limit), do: {:ok, index, state}
end
