defmodule Stdio.ExecTest do
  # What execve is given, and how a program is found: CONTRACT 1.2, as the program sees it.
  use Stdio.Test.StreamCase

  @invalid <<0xFF, 0xC3, 0x28, 0x80>>

  defp show_args, do: Proc.fixture("show-args")
  defp argv!(command), do: command |> list() |> given() |> elem(0)
  defp environ!(config), do: [show_args()] |> list(config) |> given() |> elem(1)

  # A shell script that prints `text`.
  defp script!(path, text, mode \\ 0o755) do
    File.write!(path, "#!/bin/sh\necho #{text}\n")
    File.chmod!(path, mode)
  end

  # Looks `name` up along `directories`.
  defp search(name, directories, config \\ []) do
    path = "PATH=" <> Enum.join(directories, ":")
    list({:search, [name]}, [environ: [path]] ++ config)
  end

  defp search_error(name, directories, config \\ []) do
    error = assert_raise(Stdio.StreamError, fn -> search(name, directories, config) end)
    assert error.action == "subprocess"
    error.reason
  end

  describe "commands:" do
    test "a binary is a shell line" do
      assert list("echo $0 \"$#\" | cat") == [stdout: "/bin/sh 0\n", exit_status: 0]
      assert list("") == [exit_status: 0]
      assert list("exit 3") == [exit_status: 3]
    end

    test "a list is the path and the whole of argv", %{mark: mark} do
      assert argv!([show_args(), mark]) == [show_args(), mark]
      assert argv!([show_args()]) == [show_args()]
      arguments = ["", " ", "a b", "$HOME", "*", "'", "\n", "-c", "é€😀", ""]
      assert argv!([show_args() | arguments]) == [show_args() | arguments]
    end

    test "{path, argv} has an argv[0] of its own" do
      assert argv!({show_args(), ["zero", "one"]}) == ["zero", "one"]
      assert argv!({show_args(), ["", ""]}) == ["", ""]
    end

    test "an empty argv is passed on; from Linux 5.18 the kernel makes it one empty string" do
      assert argv!({show_args(), []}) in [[], [""]]
    end

    test "charlists are characters" do
      assert argv!([String.to_charlist(show_args()), ~c"é€", []]) ==
               [show_args(), "é€", ""]

      assert argv!({String.to_charlist(show_args()), [~c"ä"]}) == ["ä"]
      assert list({:search, [~c"echo", ~c"ü"]}) == [stdout: "ü\n", exit_status: 0]
    end

    test "no shell has a look at a list", %{mark: mark} do
      assert list(["/bin/echo", "$HOME; exit 3", mark]) ==
               [stdout: "$HOME; exit 3 #{mark}\n", exit_status: 0]
    end
  end

  describe "bytes that are no UTF-8 go through" do
    test "in arguments and in the environment" do
      environ = ["A=" <> @invalid, @invalid <> "=1"]
      command = {show_args(), [@invalid, "a" <> @invalid]}

      assert command |> list(environ: environ) |> given() ==
               {[@invalid, "a" <> @invalid], environ}

      config = [environ: [], env: [{@invalid, @invalid}]]
      assert environ!(config) == [@invalid <> "=" <> @invalid]
    end

    test "in a shell line and in output" do
      assert list("printf '%s' '#{@invalid}'") == [stdout: @invalid, exit_status: 0]
      assert list("printf '%s' '#{@invalid}' >&2") == [stderr: @invalid, exit_status: 0]
      bytes = for byte <- 0..255, into: <<>>, do: <<byte>>
      assert output(pipe([bytes], "cat")) == bytes
    end

    @tag :dir
    test "in the path of a program, of a directory, and in PATH", %{dir: dir} do
      inner = Path.join(dir, @invalid)
      File.mkdir!(inner)
      File.chmod!(inner, 0o755)
      program = inner <> "/" <> @invalid
      script!(program, "found")
      assert list([program]) == [stdout: "found\n", exit_status: 0]
      assert list(["/bin/pwd"], path: inner) == [stdout: inner <> "\n", exit_status: 0]
      assert search(@invalid, [inner]) == [stdout: "found\n", exit_status: 0]
    end
  end

  describe "the environment:" do
    test "the default" do
      assert environ!([]) == [
               "PATH=/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:" <>
                 "/opt/sbin:/opt/bin",
               "HOME=/home"
             ]
    end

    test ":environ is all of it, in order, repetitions too" do
      assert environ!(environ: []) == []
      environ = ["Z=1", "A=", "Z=2", "B=c=d", "C=\n"]
      assert environ!(environ: environ) == environ
      assert environ!(environ: [[?A, ["=", ~c"b"]]]) == ["A=b"]
    end

    test ":env is merged over it; nil removes" do
      config = [environ: ["A=1", "B=2", "C=3"], env: %{"B" => nil, "C" => "x", "D" => ~c"é"}]
      assert environ!(config) == ["A=1", "C=x", "D=é"]
      assert ["PATH=" <> _, "NEW="] = environ!(env: [HOME: nil, NEW: ""])
    end

    test ":inherit is the BEAM's own, as it is when the program starts", %{mark: mark} do
      stream = Stdio.stream!([show_args()], Stdio.Process, environ: :inherit, env: [GONE: nil])
      System.put_env(%{"STDIO_TEST_MARK" => mark, "GONE" => "x"})
      {_, environ} = stream |> Enum.to_list() |> given()
      System.delete_env("STDIO_TEST_MARK")
      System.delete_env("GONE")
      assert "STDIO_TEST_MARK=#{mark}" in environ
      assert "PATH=#{System.get_env("PATH")}" in environ
      refute Enum.any?(environ, &String.starts_with?(&1, "GONE="))
    end
  end

  describe "a look-up" do
    test "goes along PATH of the program's environment, not of the BEAM's" do
      assert search_error("echo", ["/nonexistent"]) == :enoent
      assert list({:search, ["echo", "a"]}, env: [PATH: "/bin"]) |> output() == "a\n"
    end

    test "without PATH takes /bin:/usr/bin" do
      assert list({:search, ["echo", "a"]}, environ: []) == [stdout: "a\n", exit_status: 0]
      assert list({:search, ["env"]}, environ: ["A=1"]) == [stdout: "A=1\n", exit_status: 0]
    end

    test "concerns lists and {path, argv} with search: true, and nothing else" do
      assert list(["echo", "a"], search: true) == [stdout: "a\n", exit_status: 0]
      assert list({"sh", ["zero", "-c", "echo $0"]}, search: true) |> output() == "zero\n"
      assert list("echo a", search: true) == [stdout: "a\n", exit_status: 0]
      error = assert_raise(Stdio.StreamError, fn -> list(["echo", "a"]) end)
      assert {error.reason, error.action} == {:enoent, "subprocess"}
      assert_raise Stdio.StreamError, fn -> list({"sh", ["sh", "-c", "exit 0"]}) end
    end

    @tag :dir
    test "leaves a name with a slash alone", %{dir: dir} do
      File.mkdir_p!(Path.join(dir, "path/sub"))
      script!(Path.join(dir, "path/sub/program"), "wrong")
      assert search_error("sub/program", [Path.join(dir, "path")], path: dir) == :enoent
      File.mkdir!(Path.join(dir, "sub"))
      script!(Path.join(dir, "sub/program"), "right")

      assert search("sub/program", [Path.join(dir, "path")], path: dir) ==
               [stdout: "right\n", exit_status: 0]

      script!(Path.join(dir, "program"), "here")
      assert search("./program", ["/bin"], path: dir) == [stdout: "here\n", exit_status: 0]
      assert search(Path.join(dir, "program"), []) == [stdout: "here\n", exit_status: 0]
    end

    @tag :dir
    test "passes over entries that cannot be used", %{dir: dir} do
      [good, closed, file, like_named] =
        for name <- ~w(good closed file like-named), do: Path.join(dir, name)

      for path <- [good, closed, Path.join(like_named, "program")], do: File.mkdir_p!(path)
      script!(Path.join(good, "program"), "good")
      script!(Path.join(closed, "program"), "closed")
      File.write!(file, "")
      File.ln_s!("loop", Path.join(dir, "loop"))
      # Not even its owner may search it; root may, but programs are not root's.
      File.chmod!(closed, 0)
      long = Path.join(dir, String.duplicate("x", 300))
      unusable = ["/nonexistent", file, closed, like_named, Path.join(dir, "loop"), long]

      assert search("program", unusable ++ [good]) == [stdout: "good\n", exit_status: 0]
      assert search_error("program", unusable) == :enoent

      for path <- unusable do
        assert {path, search_error("program", [path])} == {path, :enoent}
      end

      File.chmod!(closed, 0o755)
    end

    @tag :dir
    test "takes the first that can be executed; an empty entry is the directory", %{dir: dir} do
      [plain, first, second] = for name <- ~w(plain first second), do: Path.join(dir, name)
      for path <- [plain, first, second], do: File.mkdir!(path)
      script!(Path.join(plain, "program"), "plain", 0o644)
      script!(Path.join(first, "program"), "first")
      script!(Path.join(second, "program"), "second")

      assert search("program", [plain, first, second]) |> output() == "first\n"
      assert search("program", [second, first]) |> output() == "second\n"
      assert search("program", ["", second], path: first) |> output() == "first\n"
      assert search("program", ["/nonexistent", ""], path: first) |> output() == "first\n"
      assert search("program", [""], path: first) |> output() == "first\n"
      assert search_error("program", ["", "/nonexistent"], path: dir) == :enoent
    end

    @tag :dir
    test "that finds only what is not executable says so", %{dir: dir} do
      script!(Path.join(dir, "program"), "never", 0o644)
      assert search_error("program", [dir]) == :eacces
      assert search_error("program", ["/nonexistent", dir, "/bin"]) == :eacces
    end

    @tag :dir
    test "happens in the directory of the program", %{dir: dir} do
      File.mkdir!(Path.join(dir, "bin"))
      script!(Path.join(dir, "bin/program"), "relative")
      assert search("program", ["bin"], path: dir) == [stdout: "relative\n", exit_status: 0]
    end

    test "of nothing finds nothing" do
      assert search_error("", ["/bin"]) == :enoent
      assert search_error("no-such-program", ["/bin", "/usr/bin"]) == :enoent
    end
  end
end
