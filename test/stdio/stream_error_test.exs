defmodule Stdio.StreamErrorTest do
  use ExUnit.Case, async: true
  doctest Stdio.StreamError

  alias Stdio.StreamError

  test "message and fields without a hint" do
    e = StreamError.exception(action: "subprocess", reason: :enoent, command: ["/nope", "a"])

    assert %StreamError{action: "subprocess", reason: :enoent, hint: nil} = e

    assert Exception.message(e) ==
             ~s|error creating subprocess: ["/nope", "a"]: no such file or directory (enoent)|
  end

  test "the hint follows after a blank line" do
    e =
      StreamError.exception(
        action: "supervisor",
        reason: :eacces,
        command: "true",
        hint: "add to sudoers: …"
      )

    assert e.hint == "add to sudoers: …"

    assert e.message ==
             ~s|error creating supervisor: "true": permission denied (eacces)\n\nadd to sudoers: …|
  end

  test "hints of an exec that failed, unless there is another" do
    new = fn reason, command, more ->
      StreamError.exception([action: "subprocess", reason: reason, command: command] ++ more).hint
    end

    assert new.(:enoexec, ["/etc/passwd"], []) =~ "#! line"
    assert new.(:enoent, ["/etc/passwd", "a"], []) =~ "/etc/passwd is there. What is missing is"
    assert new.(:enoent, ["/etc/passwd"], hint: "other") == "other"

    assert new.(:enoent, ["mix.exs"], []) =~
             ~s(Without `search: true`, or {:search, ["mix.exs"]},)

    for command <- [
          [],
          [""],
          ["./mix.ex"],
          ["/nope"],
          ["/etc/\0"],
          "/etc/passwd",
          {:search, ["/etc/passwd"]}
        ],
        do: assert(new.(:enoent, command, []) == nil)

    assert StreamError.exception(action: "supervisor", reason: :enoexec, command: "true").hint ==
             nil
  end

  test "the command is inspected as it was written" do
    for command <- ["echo a", [], {"/bin/sh", ["x"]}, {:search, ["ls"]}, [<<255>>]] do
      e = StreamError.exception(action: "subprocess", reason: :enoent, command: command)
      assert e.message =~ "error creating subprocess: #{inspect(command)}: no such file"
    end
  end

  test "errno texts" do
    for {reason, text} <- [
          enoent: "no such file or directory (enoent)",
          eperm: "not owner (eperm)",
          eagain: "resource temporarily unavailable (eagain)",
          e2big: "argument list too long (e2big)",
          enotsup: "operation not supported (enotsup)",
          eproto: "protocol error (eproto)",
          emfile: "too many open files (emfile)"
        ] do
      assert StreamError.reason_text(reason) == text
    end
  end

  test "a reason that is no errno still gives a message" do
    assert StreamError.reason_text(:no_such) =~ ~r/^unknown POSIX error.* \(no_such\)$/
    assert StreamError.reason_text(nil) =~ "(nil)"
    assert StreamError.reason_text({1, :lists, "x"}) == ~s|unknown error ({1, :lists, "x"})|
    assert StreamError.reason_text("text") == ~s|unknown error ("text")|
  end

  test "what is needed is asked for" do
    for key <- [:action, :reason, :command] do
      opts = Keyword.delete([action: "subprocess", reason: :enoent, command: "x"], key)
      assert_raise KeyError, fn -> StreamError.exception(opts) end
    end
  end

  test "can be raised" do
    assert_raise StreamError, ~r/^error creating subprocess: "x": /, fn ->
      raise StreamError, action: "subprocess", reason: :enoent, command: "x"
    end
  end
end
