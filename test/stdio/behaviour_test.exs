defmodule Stdio.BehaviourTest do
  use ExUnit.Case, async: true

  defmodule Plain do
    use Stdio
  end

  defmodule All do
    use Stdio

    @impl true
    def task(config), do: {:task, config}
    @impl true
    def init(config), do: {:init, config}
    @impl true
    def ops(config), do: [{:chdir, ["/"]} | super(config)]
    @impl true
    def onerror(config), do: {:onerror, config}
    @impl true
    def onexit(config), do: {:onexit, config}
    @impl true
    def options, do: [:colour | super()]
  end

  test "the struct" do
    assert %Stdio{} == %{__struct__: Stdio, init: :noproc, state: %{}, atexit: :shutdown}
  end

  test "use Stdio does what Stdio.Process does" do
    config = [path: "/tmp", uid: 1000]
    assert Plain.ops(config) == Stdio.Process.ops(config)
    assert Plain.onerror(config) == Stdio.Process.onerror(config)
    assert Plain.onexit(config) == Stdio.Process.onexit(config)
    assert Plain.options() == Stdio.Process.options()

    attributes = Plain.module_info(:attributes)

    assert [Stdio] in Keyword.get_values(attributes, :behaviour)
  end

  test "all is overridable, and super is Stdio.Process" do
    assert All.task([]) == {:task, []}
    assert All.init([]) == {:init, []}

    assert All.ops(path: "/tmp", uid: 1) == [
             {:chdir, ["/"]} | Stdio.Process.ops(path: "/tmp", uid: 1)
           ]

    assert All.onerror([]) == {:onerror, []}
    assert All.onexit([]) == {:onexit, []}
    assert All.options() == [:colour]
  end

  test "the callbacks, of which options/0 is optional, are documented" do
    callbacks = [init: 1, onerror: 1, onexit: 1, ops: 1, options: 0, task: 1]
    assert Enum.sort(Stdio.behaviour_info(:callbacks)) == callbacks
    assert Stdio.behaviour_info(:optional_callbacks) == [options: 0]

    {:docs_v1, _, _, _, _, _, docs} = Code.fetch_docs(Stdio)

    for {name, arity} <- callbacks do
      assert {_, _, _, %{"en" => _}, _} = List.keyfind(docs, {:callback, name, arity}, 0)
    end
  end

  test "compiles without a warning, with and without @impl" do
    code = """
    defmodule Stdio.BehaviourTest.Warned do
      use Stdio
      def ops(_config), do: []
    end

    defmodule Stdio.BehaviourTest.WarnedImpl do
      use Stdio
      @impl true
      def ops(_config), do: []
    end
    """

    assert ExUnit.CaptureIO.capture_io(:stderr, fn -> Code.compile_string(code) end) == ""
  end
end
