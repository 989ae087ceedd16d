defmodule Stdio.CallSweepTest do
  # Every call of a task, in every way it can be refused: exactly the failure of CONTRACT 5.1, and
  # neither the caller nor the task is the worse for it.
  use Stdio.Test.StreamCase
  import Stdio.Test.Tasks
  alias Stdio.Task

  # Of each shape of an argument: a good one, and such as are refused.
  @shapes %{
    "path" => {"/nonexistent-stdio", ["", "a\0b", [0x100], [1.5], :path, 1, %{}, {}, [1 | 2]]},
    "data" => {"", [[0x100], [-1], :data, 1, %{}, [1 | 2]]},
    "data without NUL" => {"a", ["a\0b", [0], [0x100], :text, 1, %{}]},
    "int32" => {1000, [0x8000_0000, -0x8000_0001, "1", :one, [], 1.0]},
    "uint32" => {1000, [-1, 0x1_0000_0000, "1", :one, []]},
    "int64" => {0, [0x8000_0000_0000_0000, -0x8000_0000_0000_0001, "1", :one, []]},
    "uint64" => {0, [-1, 0x1_0000_0000_0000_0000, "1", :one, []]},
    "list" => {[], [:list, "list", 1, ["1"], [1.0], [-0x8000_0001], [0x1_0000_0000], [0 | 1]]},
    "%{cur: uint64, max: uint64}" =>
      {%{cur: 0, max: 0},
       [%{}, %{cur: 0}, %{max: 0}, %{cur: -1, max: 0}, %{cur: 0, max: 0x1_0000_0000_0000_0000}] ++
         [[], 0, %{"cur" => 0, "max" => 0}, %{cur: :infinity, max: 0}]},
    "[] | %{sec: uint64, usec: uint64}" =>
      {%{sec: 0, usec: 0}, [%{}, %{sec: 0}, %{sec: -1, usec: 0}, 0, [1], "", :infinity]},
    "cstruct | []" =>
      {[<<0>>], [:null, 0, "", [1], [{:ptr, -1}], [{:ptr, 65_536}], [{:ptr}], [{:prt, 1}]]},
    "integer | const | binary | cstruct | []" =>
      {0, [0x1_0000_0000_0000_0000, -0x8000_0000_0000_0001, [1], [:a], %{}, {}, {:ptr, 1}]},
    "ignored" => {[], []}
  }

  defp shape("const (" <> _), do: {1, [0x8000_0000_0000, "1", [], %{}, {}]}
  defp shape("flags (" <> _), do: {[], [:bare_atom, 0x1_0000_0000, "1", ["1"], %{}, [1 | 2]]}
  defp shape(shape), do: Map.fetch!(@shapes, shape)

  # What no call takes, whatever its shape.
  defp foreign, do: [self(), make_ref(), 1.5, fn -> :ok end, <<1::1>>]

  # {name, [{good, [bad]}]} for each number of arguments.
  defp table do
    for {name, arguments, optional, _} <- Stdio.Native.calls(),
        arity <- (length(arguments) - optional)..length(arguments) do
      shapes = for {_, shape} <- Enum.take(arguments, arity), do: shape(shape)
      {String.to_atom(name), shapes}
    end
  end

  # Those that are not in the table, of which the BEAM has a part.
  defp by_hand do
    list = {["a"], ["a", :a, [1], ["a\0"], [:a], ["a" | "b"], nil]}
    argv = {["/nonexistent"], [[] | elem(list, 1)]}
    path = {"/nonexistent", ["", "a\0", :a, 1, [0x100], nil]}
    filter = {[:getpid], [:getpid, {:allow, :x}, {:deny, [:x]}, ["getpid"], [:a | :b], nil, 1]}
    ignored = {"", []}

    [
      fork: [],
      clone: [{[], [:clone_newns, -1, 0x1_0000_0000_0000_0000, ["x"], [1 | 2], "", nil]}],
      execve: [argv, {[], elem(list, 1)}],
      execve: [path, list, {[], elem(list, 1)}],
      execvp: [argv],
      execvp: [{"x", ["a\0", :a, 1, nil]}, list],
      fexecve: [{3, [0x8000_0000, "3", :a, nil]}, list, {[], elem(list, 1)}],
      exit: [{0, ["0", :a, 1.0, nil]}],
      filter: [filter],
      filter: [{[], []}, filter],
      sigaction: [{:sigterm, ["TERM", 1.0, [], 0x8000_0000]}, {:sig_dfl, [1, "sig_dfl", {}]}],
      cmd: [argv],
      sh: [{"true", ["a\0", :a, 1, nil]}],
      call: [{:getpid, ["getpid", 1]}, {[], [:none, [1 | 2], nil]}],
      call: [{:version, []}, {[], []}],
      call: [{:signal_constant, []}, {[:sigterm], [["sigterm"]]}],
      call: [{:errno_id, []}, {[1], [["1"], [:one]]}],
      mount: for(_ <- 1..5, do: ignored)
    ]
  end

  defp good(shapes), do: Enum.map(shapes, &elem(&1, 0))

  defp made(task, {name, shapes}), do: apply(Task, name, [task | good(shapes)])

  setup do
    %{root: root!()}
  end

  # What is wrong: the call, so that a failure names it.
  defp outcome(fun) do
    fun.()
  rescue
    error in [ErlangError, UndefinedFunctionError, ArgumentError] -> error
  end

  test "on a dead task", %{root: root} do
    task = fork!(root)
    assert Task.stop(task) == :ok

    for {name, shapes} = call <- table() ++ by_hand(), {name, length(shapes)} != {:mount, 5} do
      assert {name, outcome(fn -> made(task, call) end)} == {name, {:error, :esrch}}
    end

    assert messages() == []
  end

  test "on a program", %{root: root, mark: mark} do
    task = sleeper!(root, mark)

    for {name, shapes} = call <- table() ++ by_hand(), {name, length(shapes)} != {:mount, 5} do
      assert {^name, %ErlangError{original: :eacces}} =
               {name, outcome(fn -> made(task, call) end)}
    end

    assert Task.execed(task)
    assert messages() == []
  end

  test "filtered", %{root: root} do
    filtered =
      table() ++
        for({name, _} = call <- by_hand(), name not in [:call, :cmd, :sh, :mount], do: call)

    task = fork!(root)
    assert Task.filter(task, {:allow, []}) == :ok

    # exit is the BEAM's affair; filter/2 is filter/3.
    for {name, shapes} = call <- filtered, name != :exit do
      arity = if name == :filter, do: 3, else: length(shapes) + 1

      assert {^name, %UndefinedFunctionError{module: Task, function: ^name, arity: ^arity}} =
               {name, outcome(fn -> made(task, call) end)}
    end

    assert Task.pidof(task) != :noproc
    assert messages() == []
  end

  test "wrong types and ranges, one argument at a time: nothing is sent", %{root: root} do
    task = fork!(root)
    pid = Task.getpid(task)
    # What was sent in spite of that would be refused in another way.
    assert Task.filter(task, {:allow, [:getpid, :cpid]}) == :ok

    for {name, shapes} <- table() ++ by_hand(),
        {{_, bad}, position} <- Enum.with_index(shapes),
        # Without bad ones anything goes there.
        value <- if(bad == [], do: [], else: bad ++ foreign()) do
      arguments = shapes |> good() |> List.replace_at(position, value)

      assert {^name, ^position, ^value, %ArgumentError{}} =
               {name, position, value, outcome(fn -> apply(Task, name, [task | arguments]) end)}
    end

    assert Task.getpid(task) == pid
    assert Task.cpid(root) |> length() == 1
    assert Task.cpid(task) == []
    assert messages() == []
  end

  test "unknown constants", %{root: root} do
    task = fork!(root)
    assert Task.filter(task, {:allow, [:getpid]}) == :ok

    for {name, arguments, _, _} <- Stdio.Native.calls(),
        {{_, shape}, position} <- Enum.with_index(arguments),
        unknown <- unknown(shape) do
      name = String.to_atom(name)
      good = for {_, shape} <- arguments, do: elem(shape(shape), 0)

      assert {name, position, {:error, :enotsup}} ==
               {name, position,
                outcome(fn ->
                  apply(Task, name, [task | List.replace_at(good, position, unknown)])
                end)}
    end

    assert Task.clone(task, [:clone_nothing]) == {:error, :enotsup}
    assert messages() == []
  end

  defp unknown("const (" <> _), do: [:no_such_constant]
  defp unknown("flags (" <> _), do: [[:no_such_constant]]
  defp unknown("integer | const" <> _), do: [:no_such_constant]
  defp unknown(_), do: []

  test "what is no task, in its place" do
    for {name, arity} <- Task.__info__(:functions),
        {name, arity} not in [fork: 0, __struct__: 0, __struct__: 1],
        # Of other modules' use.
        not String.starts_with?(Atom.to_string(name), "__"),
        {name, arity} not in [sudo: 0, sudo: 1] do
      arguments = List.duplicate(:none, arity)

      assert {^name, ^arity, %ArgumentError{}} =
               {name, arity, outcome(fn -> apply(Task, name, arguments) end)}
    end
  end

  test "of other systems, and unknown", %{root: root} do
    for {name, arity} <- [
          procctl: 5,
          jail: 2,
          jail_attach: 2,
          jail_remove: 2,
          cap_enter: 1,
          cap_getmode: 1,
          cap_rights_limit: 3,
          cap_fcntls_limit: 3,
          cap_fcntls_get: 2,
          cap_ioctls_limit: 3,
          pledge: 3,
          unveil: 3,
          no_such_call: 1
        ] do
      arguments = List.duplicate([], arity - 1)
      undefined = %UndefinedFunctionError{module: Task, function: name, arity: arity}
      assert outcome(fn -> apply(Task, name, [root | arguments]) end) == undefined
      assert outcome(fn -> Task.call(root, name, arguments) end) == undefined
    end

    assert is_integer(Task.getpid(root))
  end
end
