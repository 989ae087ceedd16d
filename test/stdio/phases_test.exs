defmodule Stdio.PhasesTest do
  use ExUnit.Case, async: true
  doctest Stdio.Phases

  alias Stdio.Phases

  @callbacks [:task, :init, :ops, :onerror, :onexit]

  defmodule Own do
    use Stdio
    def ops(_config), do: [{:chdir, ["/own"]}]
    def options, do: [:colour]
  end

  defmodule Bare do
    def task(_), do: {:error, :eagain}
    def init(_), do: fn _ -> {:ok, []} end
    def ops(_), do: []
    def onerror(_), do: & &1
    def onexit(_), do: fn _ -> false end
  end

  defmodule Half do
    def task(_), do: {:error, :eagain}
    def ops(_), do: []
  end

  defmodule WrongOptions do
    use Stdio
    def options, do: "colour"
  end

  defp functions(phases), do: for(name <- @callbacks, do: Map.fetch!(phases, name))
  defp captures(module), do: for(name <- @callbacks, do: Function.capture(module, name, 1))

  defp message(behaviour) do
    Exception.message(assert_raise(ArgumentError, fn -> Phases.new!(behaviour) end))
  end

  test "a module" do
    phases = Phases.new!(Own)
    assert functions(phases) == captures(Own)
    assert %Phases{module: Own, options: [:colour]} = phases

    assert %Phases{module: Stdio.Process, options: []} = phases = Phases.new!(Stdio.Process)
    assert functions(phases) == captures(Stdio.Process)
  end

  test "a module without options/0, and without `use Stdio`" do
    phases = Phases.new!(Bare)
    assert functions(phases) == captures(Bare)
    assert %Phases{module: Bare, options: []} = phases
  end

  test "a keyword list: the rest from Stdio.Process" do
    assert Phases.new!([]) == Phases.new!(Stdio.Process)

    ops = fn _ -> [] end
    phases = Phases.new!(ops: ops, options: :any)
    assert %Phases{module: Stdio.Process, ops: ^ops, options: :any} = phases
    assert phases.task == (&Stdio.Process.task/1)
  end

  test "a module and a keyword list: the rest from the module" do
    onexit = fn _ -> fn _ -> true end end
    phases = Phases.new!({Own, onexit: onexit})
    assert %Phases{module: Own, options: [:colour], onexit: ^onexit} = phases
    assert phases.ops == (&Own.ops/1)

    assert Phases.new!({Own, options: [:size]}).options == [:size]
    assert Phases.new!({Own, []}) == Phases.new!(Own)
    # All given, so the module need have none.
    assert %Phases{} = Phases.new!({Half, init: onexit, onerror: onexit, onexit: onexit})
  end

  test "of a phase given twice the first counts, both are validated" do
    first = fn _ -> [] end
    assert Phases.new!(ops: first, ops: fn _ -> [1] end).ops == first
    assert message(ops: first, ops: 1) =~ "invalid value 1 for phase :ops"
  end

  test "module: the one whose ops run" do
    assert Phases.new!(ops: &Own.ops/1).module == Own
    assert Phases.new!({Stdio.Process, ops: &Own.ops/1}).module == Own
    assert Phases.new!({Own, ops: &Enum.to_list/1}).module == Own
    assert Phases.new!({Own, ops: fn _ -> [] end}).module == Own
  end

  test "wrong shapes are sentences" do
    shape = "; allowed: a module, a keyword list of phases, or {module, keyword list of phases}"

    for wrong <- ["Own", 1, %{}, {Own}, {"Own", []}, {Own, nil}, {Own, [1]}, [1], [{"ops", 1}]] do
      assert message(wrong) == "invalid behaviour #{inspect(wrong)}#{shape}"
    end

    assert message(Nope) == "invalid behaviour Nope: there is no module Nope (:nofile)"
    assert message({Nope, []}) =~ "invalid behaviour {Nope, []}: there is no module Nope"
    assert message(nil) =~ "invalid behaviour nil: there is no module nil"

    assert message(Half) ==
             "Stdio.PhasesTest.Half is not a behaviour: it has no function init/1; `use Stdio` " <>
               "in it defines those it does not have"

    assert message(op: 1) ==
             "unknown phase :op; allowed: :task, :init, :ops, :onerror, :onexit, :options"

    assert message(timeout: 5) =~
             "It is an option, after the behaviour: Stdio.Process, timeout: ..."

    assert message(ops: []) ==
             "invalid value [] for phase :ops; allowed: a function of one argument, the config"

    assert message(init: fn -> :ok end) =~ "for phase :init; allowed: a function of one argument"

    for wrong <- [:all, "x", ["x"], [:a | :b], nil] do
      assert message(options: wrong) ==
               "invalid value #{inspect(wrong)} for phase :options; allowed: a list of atoms, " <>
                 "or :any"
    end

    assert message(WrongOptions) ==
             ~s|invalid value "colour" of Stdio.PhasesTest.WrongOptions.options(); allowed: | <>
               "a list of atoms, or :any"
  end

  describe "with_supervisor" do
    @supervisor %Stdio{init: :a_task, atexit: :noshutdown}

    test "is a behaviour with that supervisor" do
      phases = Stdio.with_supervisor(Own, @supervisor)
      assert Keyword.keys(phases) == @callbacks ++ [:options]

      assert %Phases{module: Own, options: [:colour]} = new = Phases.new!(phases)
      assert new.task.(priority: 1) == {:ok, @supervisor}
      assert tl(functions(new)) == tl(captures(Own))
    end

    test "takes all forms of a behaviour" do
      ops = fn _ -> [] end
      assert Stdio.with_supervisor({Own, ops: ops}, @supervisor)[:ops] == ops
      assert Stdio.with_supervisor([ops: ops], @supervisor)[:init] == (&Stdio.Process.init/1)
      assert_raise ArgumentError, fn -> Stdio.with_supervisor(Nope, @supervisor) end
    end
  end
end
