defmodule Stdio.CommandTest do
  use ExUnit.Case, async: true

  alias Stdio.Command

  defp norm(command, search? \\ false), do: Command.normalize!(command, search?)

  defp refused(command, search? \\ false) do
    assert_raise(ArgumentError, fn -> norm(command, search?) end).message
  end

  test "a binary is a shell line, searched or not" do
    shell = %Command{file: "/bin/sh", argv: ["/bin/sh", "-c", "echo $0"], search: false}
    assert norm("echo $0") == shell
    assert norm("echo $0", true) == shell
    assert norm("").argv == ["/bin/sh", "-c", ""]
  end

  test "a list is path and arguments" do
    assert norm(["/bin/echo", "a", ""]) ==
             %Command{file: "/bin/echo", argv: ["/bin/echo", "a", ""], search: false}

    assert norm(["echo", "a"], true) ==
             %Command{file: "echo", argv: ["echo", "a"], search: true}

    assert norm(["echo"]).search == false
  end

  test "{path, argv} keeps argv whole, with its own argv[0]" do
    assert norm({"/bin/sh", ["stdio", "-c", "echo $0"]}) ==
             %Command{file: "/bin/sh", argv: ["stdio", "-c", "echo $0"], search: false}

    assert norm({"sh", ["stdio"]}, true) == %Command{file: "sh", argv: ["stdio"], search: true}
    assert norm({"/bin/true", []}) == %Command{file: "/bin/true", argv: [], search: false}
  end

  test "{:search, list} searches whatever the option says" do
    for search? <- [true, false] do
      assert norm({:search, ["echo", "a"]}, search?) ==
               %Command{file: "echo", argv: ["echo", "a"], search: true}
    end
  end

  test "nothing to run" do
    assert norm([]) == :empty
    assert norm([], true) == :empty
    assert norm({:search, []}) == :empty
  end

  test "charlists are accepted wherever binaries are" do
    expected = %Command{file: "/bin/echo", argv: ["/bin/echo", "a", "b"], search: false}
    assert norm([~c"/bin/echo", "a", ~c"b"]) == expected
    assert norm({~c"/bin/echo", [~c"/bin/echo", "a", ~c"b"]}) == expected
    assert norm({:search, [~c"/bin/echo", "a", ~c"b"]}) == %{expected | search: true}
    # the empty charlist is the empty list
    assert norm(["/bin/echo", []]).argv == ["/bin/echo", ""]
  end

  test "characters of charlists become UTF-8" do
    assert norm(["e", ~c"é", ~c"€", ~c"日本", [0x1F600]]).argv == ["e", "é", "€", "日本", "😀"]
    assert norm(["e", [255]]).argv == ["e", <<0xC3, 0xBF>>]
  end

  test "invalid UTF-8 in binaries goes through unchanged" do
    raw = <<"a", 0xFF, 0xFE, 0xC0, 0x80, "b">>
    assert norm(raw).argv == ["/bin/sh", "-c", raw]
    assert norm([raw, raw]) == %Command{file: raw, argv: [raw, raw], search: false}
    assert norm({raw, [raw]}) == %Command{file: raw, argv: [raw], search: false}
  end

  test "any length" do
    long = String.duplicate("x", 5_000_000)
    assert norm(["/bin/echo", long]).argv == ["/bin/echo", long]
    many = List.duplicate("x", 100_000)
    assert norm({"/bin/echo", many}).argv == many
  end

  test "NUL bytes are refused in every place" do
    for command <- [
          "a\0b",
          ["a\0b"],
          ["a", "b\0"],
          [~c"a\0"],
          ["a", [0]],
          {"a\0", ["a"]},
          {"a", ["a\0"]},
          {:search, ["a\0"]},
          {:search, ["a", ~c"\0"]}
        ] do
      message = refused(command)
      assert message =~ ~r/^invalid command /
      assert message =~ "has a NUL byte"
      assert message =~ "stdin"
    end
  end

  test "elements of other types are refused, with what to do" do
    for bad <- [:a, 1.5, {}, %{}, nil, self(), <<1::3>>, ["nested"], [~c"a", "b"], [0xD800], [-1]] do
      for command <- [["a", bad], {"a", [bad]}, {:search, ["a", bad]}, [bad | ["a"]]] do
        message = refused(command)
        assert message =~ "invalid command #{inspect(command)}: "
        assert message =~ "#{inspect(bad)} is not an argument: every argument must be"
      end
    end
  end

  test "a number, or a whole command as a charlist" do
    for command <- [["sleep", 5], ~c"echo hi"] do
      assert refused(command) =~ "give numbers as text, and a shell line as a binary"
    end
  end

  test "improper lists" do
    for command <- [["a" | "b"], {"a", ["a" | "b"]}, {:search, ["a" | "b"]}] do
      assert refused(command) =~ "the arguments must be a proper list"
    end

    assert refused(["a", [?b | ?c]]) =~ "is not an argument"
  end

  test "other forms are refused, with the forms there are" do
    for command <- [
          nil,
          :ls,
          1,
          %{},
          {},
          {"a"},
          {"a", "b"},
          {"a", ["a"], []},
          {:a, ["a"]},
          {:search, "ls"},
          {:search, {"ls", ["ls"]}},
          <<1::3>>
        ] do
      assert refused(command, true) ==
               "invalid command #{inspect(command)}: use a shell line as a binary, " <>
                 "[path | args], {path, argv} or {:search, [name | args]}"
    end
  end
end
