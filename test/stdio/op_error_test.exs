defmodule Stdio.OpErrorTest do
  use ExUnit.Case, async: true

  alias Stdio.OpError

  # Stands for a %Stdio.Task{}.
  @task :task
  @chdir {Stdio.Task, :chdir, [@task, "/nonexistent"]}
  @remaining [{:setsid, []}, {:set_pdeathsig, [9]}]

  test "fork: reason, no op, one line" do
    assert %OpError{reason: :eagain, op: nil, message: message} = OpError.fork(:eagain)

    assert message ==
             "error attempting to fork subprocess: resource temporarily unavailable (eagain)\n"

    assert OpError.fork(:einval).message ==
             "error attempting to fork subprocess: invalid argument (einval)\n"
  end

  test "fork: eperm has a text of its own, only there" do
    assert OpError.fork(:eperm).message ==
             "error attempting to fork subprocess: insufficient permissions (eperm)\n"

    assert OpError.failed(:eperm, @chdir, []).message =~
             "operation returned an error: not owner (eperm)\n"
  end

  test "op error: text, call, remaining ops" do
    assert OpError.failed(:enoent, @chdir, @remaining) == %OpError{
             reason: :enoent,
             op: @chdir,
             message: """
             operation returned an error: no such file or directory (enoent)

             Stdio.Task.chdir(:task, "/nonexistent")

             remaining ops:
             [setsid: [], set_pdeathsig: [9]]
             """
           }
  end

  test "inspected: one line, without remaining ops" do
    root = {Stdio.Task, :bind_in, [@task, "/nonexistent", "/bin", "/bin", []]}

    assert inspect(OpError.failed(:enoent, root, @remaining)) =~
             ~r{^#Stdio.OpError<operation returned an error: no such file or directory \(enoent\); Stdio.Task.bind_in\(:task, "/nonexistent", "/bin", "/bin", \[\]\); the root tree /nonexistent does not exist: [^\n]+>$}

    assert inspect(OpError.bad_result(4711, {Stdio.Task, :getpid, [@task]}, @remaining)) ==
             "#Stdio.OpError<** (MatchError) no match of right hand side value: 4711 " <>
               "Stdio.Task.getpid(:task)>"

    assert inspect(OpError.fork(:einval)) ==
             "#Stdio.OpError<error attempting to fork subprocess: invalid argument (einval)>"

    assert inspect(%OpError{}) =~ "reason: nil"
  end

  test "blame: what an op has to return, for a bad result only" do
    bad = OpError.bad_result(4711, {Stdio.Task, :getpid, [@task]}, @remaining)
    assert {%OpError{message: message}, []} = Exception.blame(:error, bad, [])
    assert message =~ bad.message <> "\nAn op has to return :ok, {:ok, state}, "
    assert message =~ "{:getpid, [...], transform: fn _ -> :ok end}\n"

    for other <- [
          OpError.failed(:enoent, @chdir, []),
          OpError.malformed(:setsid, []),
          OpError.raised({:error, %RuntimeError{message: "no"}, []}, @chdir, []),
          OpError.fork(:eagain)
        ],
        do: assert({^other, []} = Exception.blame(:error, other, []))
  end

  test "a directory to be bound that is not there" do
    root = System.tmp_dir!()
    missing = {Stdio.Task, :bind_in, [@task, root, "/nonexistent", "/nonexistent", []]}
    assert OpError.failed(:enoent, missing, []).message =~ "there is no /nonexistent here"
    present = {Stdio.Task, :bind_in, [@task, root, "/bin", "/nonexistent", []]}
    assert OpError.failed(:enoent, present, []).message =~ "the root tree has no /nonexistent"
  end

  test "chdir to a directory that is not in the root tree, but here" do
    inside = {Stdio.Task, :chdir, [@task, System.tmp_dir!()]}

    assert OpError.failed(:enoent, inside, []).message =~
             "is a directory here, but not in the root"

    refute OpError.failed(:enoent, @chdir, []).message =~ "fstab"
    relative = {Stdio.Task, :chdir, [@task, "lib"]}
    refute OpError.failed(:enoent, relative, []).message =~ "fstab"
  end

  test "bad result: the value as a MatchError, the call, remaining ops" do
    op = {Stdio.Task, :getpid, [@task]}

    assert OpError.bad_result(4711, op, @remaining) == %OpError{
             reason: :badop,
             op: op,
             message: """
             ** (MatchError) no match of right hand side value: 4711
                 Stdio.Task.getpid(:task)


             remaining ops:
             [setsid: [], set_pdeathsig: [9]]
             """
           }
  end

  test "malformed: what it is, the forms there are, remaining ops" do
    assert OpError.malformed({:chdir, "/"}, @remaining) == %OpError{
             reason: :badop,
             op: nil,
             message: """
             ** (ArgumentError) invalid op {:chdir, "/"}; allowed: {fun, args}, \
             {fun, args, opts}, {module, fun, args}, {module, fun, args, opts} and lists of \
             these, with opts state:, errexit:, ignore: and transform:


             remaining ops:
             [setsid: [], set_pdeathsig: [9]]
             """
           }
  end

  defp caught(fun) do
    fun.()
  catch
    kind, payload -> {kind, payload, __STACKTRACE__}
  end

  test "raised: no such function" do
    op = {Stdio.OpErrorTest, :fake_syscall, [@task]}
    error = fn -> apply(Stdio.OpErrorTest, :fake_syscall, [@task]) end |> caught()

    assert %OpError{reason: :badop, op: ^op, message: message} = OpError.raised(error, op, [])

    assert message == """
           ** (UndefinedFunctionError) function Stdio.OpErrorTest.fake_syscall/1 is undefined or private
               Stdio.OpErrorTest.fake_syscall(:task)


           remaining ops:
           []
           """
  end

  test "raised: exceptions, Erlang errors, throws and exits" do
    op = {Mod, :fun, [:state, @task, 1]}
    tail = "\n    Mod.fun(:state, :task, 1)\n\n\nremaining ops:\n[a: []]\n"

    for {fun, banner} <- [
          {fn -> raise ArgumentError, "no" end, "** (ArgumentError) no"},
          {fn -> :erlang.error(:eacces) end, "** (ErlangError) Erlang error: :eacces"},
          {fn -> throw(:x) end, "** (throw) :x"},
          {fn -> exit(:gone) end, "** (exit) :gone"}
        ] do
      assert OpError.raised(caught(fun), op, a: []) ==
               %OpError{reason: :badop, op: op, message: banner <> tail}
    end
  end

  test "every message ends in one newline, and can be raised" do
    for error <- [
          OpError.fork(:einval),
          OpError.failed({:odd, "reason"}, @chdir, []),
          OpError.bad_result(nil, @chdir, []),
          OpError.raised({:exit, :x, []}, @chdir, []),
          OpError.malformed(nil, [])
        ] do
      assert Exception.message(error) =~ ~r/[^\n]\n\z/
      assert_raise OpError, fn -> raise error end
    end
  end
end
