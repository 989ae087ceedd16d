defmodule Stdio.PrxTest do
  use ExUnit.Case, async: true

  test "has every function of Stdio.Task that is not internal" do
    public =
      for {name, arity} <- Stdio.Task.__info__(:functions),
          not String.starts_with?(Atom.to_string(name), "__"),
          do: {name, arity}

    assert public != []
    assert Enum.sort(:prx.__info__(:functions)) == Enum.sort(public)
  end

  test "compiled again, it is still ours; a foreign one stays" do
    file = Path.expand("../../lib/stdio/prx.ex", __DIR__)
    source = File.read!(file)

    # The guard alone: whether the module would be compiled.
    [guard, _] = String.split(source, " do\n", parts: 2)
    assert {true, _} = Code.eval_string(guard <> ", do: true, else: false")

    foreign = String.replace(guard, ":prx", ":lists")
    assert {false, _} = Code.eval_string(foreign <> ", do: true, else: false")

    missing = String.replace(guard, ":prx", ":there_is_no_such_module")
    assert {true, _} = Code.eval_string(missing <> ", do: true, else: false")
  end

  test "calls arrive" do
    # Whatever Stdio.Task says to what is no task, :prx says too.
    outcome = fn module ->
      try do
        {:value, module.pidof(:not_a_task)}
      catch
        kind, reason -> {kind, reason}
      end
    end

    assert outcome.(:prx) == outcome.(Stdio.Task)
  end
end
