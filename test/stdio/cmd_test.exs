defmodule Stdio.CmdTest do
  use Stdio.Test.StreamCase

  import ExUnit.CaptureIO

  alias Stdio.Test.Sink

  defp received do
    receive do
      message -> [message | received()]
    after
      0 -> []
    end
  end

  describe "forms" do
    test "a program and its arguments" do
      assert Stdio.cmd("echo", ["hi"]) == {"hi\n", 0}
      assert Stdio.cmd("printf", ["%s|", "a b", "$HOME"]) == {"a b|$HOME|", 0}
      assert Stdio.cmd("/bin/echo", ["hi"], []) == {"hi\n", 0}
      assert Stdio.cmd("echo", [], into: []) == {["\n"], 0}
    end

    test "any command" do
      assert Stdio.cmd("echo hi; exit 3") == {"hi\n", 3}
      assert Stdio.cmd(["/bin/echo", "hi"]) == {"hi\n", 0}
      assert Stdio.cmd({"/bin/sh", ["me", "-c", "echo $0"]}) == {"me\n", 0}
      assert Stdio.cmd({:search, ["echo", "hi"]}) == {"hi\n", 0}
      assert Stdio.cmd(["echo", "hi"], search: true) == {"hi\n", 0}
    end

    test "the second argument is options if it is a keyword list that is not empty" do
      assert Stdio.cmd("true", []) == {"", 0}
      assert Stdio.cmd("echo a | cat", into: []) == {["a\n"], 0}

      # A program of this name, not a shell line.
      assert_raise Stdio.StreamError, ~r/no such file/, fn -> Stdio.cmd("echo a | cat", []) end
    end

    test "the path of a program with a slash is not searched" do
      assert_raise Stdio.StreamError, ~r/enoent/, fn -> Stdio.cmd("./echo", ["a"], cd: "/tmp") end
      assert Stdio.cmd("./echo", ["a"], cd: "/bin") == {"a\n", 0}
    end

    test "PATH is that of the program's environment" do
      assert_raise Stdio.StreamError, fn -> Stdio.cmd("echo", ["a"], environ: ["PATH=/nope"]) end
    end
  end

  describe "the exit" do
    test "is an integer, or a signal" do
      for status <- [0, 1, 255], do: assert(Stdio.cmd("exit #{status}") == {"", status})
      assert Stdio.cmd("kill -9 $$") == {"", {:termsig, :sigkill}}
      assert Stdio.cmd("echo a; kill $$") == {"a\n", {:termsig, :sigterm}}
    end

    test "by a deadline" do
      cmd = fn line, config ->
        {output, exit} = Stdio.cmd(line, config)
        [stdout: output, exit: exit]
      end

      {_, _, ended} = with_timeout(&cmd.("echo ready; sleep 60", timeout: &1))
      assert ended == [stdout: "ready\n", exit: {:termsig, :sigkill}]
      line = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done"

      # A `sleep` gets the signal too, of which some shells tell.
      polite = [kill_signal: :sigterm, kill_timeout: 20_000, stderr: :null]
      {_, _, ended} = with_timeout(&cmd.(line, [timeout: &1] ++ polite))
      assert ended == [stdout: "ready\nbye\n", exit: 7]
    end
  end

  describe "output" do
    test "large, in chunks, whole", %{mark: mark} do
      {output, 0} = Stdio.cmd(Proc.fixture("fill-pipe"), [mark, "3000000"])
      assert output == Fixtures.pattern(3_000_000)
    end

    test "is collected as it comes" do
      # The program gets its line when its first output has been collected.
      collected = :counters.new(1, [])
      wait = fn -> Proc.wait_until(fn -> :counters.get(collected, 1) > 0 end, 10_000) end
      input = Stream.map(["b\n"], fn line -> wait.() && line end)
      sink = %Sink{pid: self(), fun: fn _ -> :counters.add(collected, 1, 1) end}
      assert Stdio.cmd("echo a; read x; echo $x", into: sink, input: input) == {sink, 0}
      assert received() == [:opened, {:data, "a\n"}, {:data, "b\n"}, :done]
    end

    @tag :dir
    test "into a file", %{dir: dir} do
      file = File.stream!(Path.join(dir, "out"))
      assert {^file, 0} = Stdio.cmd("printf", ["a\nb"], into: file)
      assert File.read!(file.path) == "a\nb"
    end

    test "in whole lines" do
      assert Stdio.cmd("printf 'a\nb'", lines: 1024, into: []) == {["a", "b"], 0}
      assert Stdio.cmd("printf 'a\n\nb\n'", lines: 1, into: []) == {["a", "", "b"], 0}
      assert Stdio.cmd("true", lines: 1, into: []) == {[], 0}
      assert Stdio.cmd("printf 'a\r\n'", lines: 1, into: []) == {["a\r"], 0}
      # Longer than the hint, and than a chunk.
      long = String.duplicate("é", 100_000)

      assert Stdio.cmd("cat", [], input: [long, "\n", "x"], lines: 10, into: []) ==
               {[long, "x"], 0}

      assert Stdio.cmd("printf 'a\nb'; kill $$", lines: 9, into: [], max_chunk: 1) ==
               {["a", "b"], {:termsig, :sigterm}}
    end

    test "a flood of it does not pile up before a slow collectable", %{mark: mark} do
      test = self()

      look = fn _chunk ->
        Process.sleep(5)
        :erlang.garbage_collect()
        send(test, {:size, :erlang.memory(:binary)})
      end

      # Its messages would count as well.
      nobody = spawn(fn -> :ok end)
      before = :erlang.memory(:binary)
      command = [Proc.fixture("fill-pipe"), mark, "20000000"]
      assert {_, 0} = Stdio.cmd(command, into: %Sink{pid: nobody, fun: look})
      sizes = for {:size, size} <- received(), do: size - before
      assert length(sizes) >= 300
      assert Enum.max(sizes) < 5_000_000
    end
  end

  describe "stderr" do
    test "goes to the :standard_error device" do
      assert capture_io(:stderr, fn ->
               assert Stdio.cmd("echo a; echo b >&2; exit 1") == {"a\n", 1}
             end) == "b\n"
    end

    test "as characters, also across chunks; other bytes are Latin-1" do
      assert capture_io(:stderr, fn ->
               assert Stdio.cmd("printf 'é€\\351x\\303' >&2", max_chunk: 1) == {"", 0}
             end) == "é€éxÃ"
    end

    test "joined, dropped" do
      assert capture_io(:stderr, fn ->
               both = "echo a; echo b >&2; echo c"
               assert Stdio.cmd(both, stderr_to_stdout: true) == {"a\nb\nc\n", 0}
               assert Stdio.cmd(both, stderr: :stdout) == {"a\nb\nc\n", 0}

               assert Stdio.cmd(both, stderr: :stdout, stderr_to_stdout: false) ==
                        {"a\nb\nc\n", 0}

               assert Stdio.cmd(both, stderr: :null) == {"a\nc\n", 0}
             end) == ""
    end

    test "does not disturb lines" do
      assert capture_io(:stderr, fn ->
               line = "printf a; echo x >&2; sleep 0.05; echo b"
               assert Stdio.cmd(line, lines: 9, into: []) == {["ab"], 0}
             end) == "x\n"
    end
  end

  describe "input" do
    test "a binary, an enumerable of iodata" do
      assert Stdio.cmd("cat", [], input: "x") == {"x", 0}
      assert Stdio.cmd("cat", [], input: ["a", ["b", ?c], ""]) == {"abc", 0}
      assert Stdio.cmd("cat", input: Stream.map(1..3, &"#{&1}")) == {"123", 0}
      assert Stdio.cmd("cat", input: "") == {"", 0}
      big = :binary.copy("0123456789", 300_000)
      assert Stdio.cmd("cat", [], input: big) == {big, 0}
    end

    test "none: /dev/null" do
      assert Stdio.cmd("cat") == {"", 0}
      assert Stdio.cmd("readlink", ["/proc/self/fd/0"]) == {"/dev/null\n", 0}
      assert {"pipe:" <> _, 0} = Stdio.cmd("readlink", ["/proc/self/fd/0"], stdin: :pipe)
    end

    test "that raises is raised, when the tree is gone", %{mark: mark} do
      input = Stream.map([1], fn _ -> raise "mine" end)

      assert_raise RuntimeError, "mine", fn ->
        Stdio.cmd([Proc.fixture("fork-tree"), mark, "2", "2"], input: input)
      end

      assert Proc.find(mark) == []
      assert messages() == []
    end
  end

  describe "options" do
    test "cd, env, arg0" do
      assert Stdio.cmd("pwd", [], cd: "/tmp") == {"/tmp\n", 0}
      assert Stdio.cmd("echo $A$HOME", env: [{"A", "1"}, {"HOME", nil}]) == {"1\n", 0}
      assert Stdio.cmd("echo $A", env: %{A: "2"}) == {"2\n", 0}
    end

    test "arg0 replaces argv[0] alone, of every form of a command", %{mark: mark} do
      path = Proc.fixture("show-args")
      show = fn command, opts -> Stdio.cmd(command, [arg0: "me"] ++ opts) end

      for {command, opts} <- [
            {[path, mark], []},
            {{path, ["x", mark]}, []},
            {{:search, [path, mark]}, []},
            {{:search, ["show-args", mark]}, environ: ["PATH=" <> Path.dirname(path)]},
            {["show-args", mark], search: true, environ: ["PATH=" <> Path.dirname(path)]}
          ] do
        {output, 0} = show.(command, opts)
        assert {["me", ^mark], _} = given(stdout: output, exit_status: 0)
      end

      assert {["me"], _} = given(stdout: show.({path, []}, []) |> elem(0), exit_status: 0)
      assert Stdio.cmd("echo $0 $1", arg0: "me") == {"me\n", 0}
      assert Stdio.cmd("sh", ["-c", "echo $0"], arg0: "me") == {"me\n", 0}
    end

    test "behaviour, and its own options" do
      assert Stdio.cmd("pwd", behaviour: Stdio.Test.Deep, depth: 2) == {"/tmp\n", 0}
      ops = {Stdio.Process, ops: fn _ -> [{:chdir, ["/tmp"]}] end}
      assert Stdio.cmd("pwd", [], behaviour: ops) == {"/tmp\n", 0}
    end

    test "parallelism is accepted" do
      assert Stdio.cmd("echo", ["a"], parallelism: true) == {"a\n", 0}
    end

    test "the environment is Stdio's default, or the BEAM's" do
      System.put_env("STDIO_CMD_TEST", "1")
      on_exit(fn -> System.delete_env("STDIO_CMD_TEST") end)
      assert Stdio.cmd("echo $STDIO_CMD_TEST") == {"\n", 0}
      assert Stdio.cmd("echo $STDIO_CMD_TEST", environ: :inherit) == {"1\n", 0}
    end
  end

  describe "bad input" do
    test "is an ArgumentError; nothing is opened or started", %{mark: mark} do
      sink = %Sink{pid: self()}

      for fun <- [
            fn -> Stdio.cmd(:echo, ["a"]) end,
            fn -> Stdio.cmd(~c"echo", ["a"]) end,
            fn -> Stdio.cmd("echo", [:a]) end,
            fn -> Stdio.cmd("echo", [~c"a"]) end,
            fn -> Stdio.cmd("echo", ["a" | "b"]) end,
            fn -> Stdio.cmd("echo", "a") end,
            fn -> Stdio.cmd("echo", ["a\0"]) end,
            fn -> Stdio.cmd("echo", [{"a", 1}]) end,
            fn -> Stdio.cmd("echo", ["a"], [:b]) end,
            fn -> Stdio.cmd("echo", ["a"], %{}) end,
            fn -> Stdio.cmd("echo", [a: 1], into: sink) end,
            fn -> Stdio.cmd(["/bin/echo"], []) end,
            fn -> Stdio.cmd(["/bin/echo", mark], ["a"], into: sink) end,
            fn -> Stdio.cmd("echo #{mark}", into: :a) end,
            fn -> Stdio.cmd("echo #{mark}", into: sink, lines: 0) end,
            fn -> Stdio.cmd("echo #{mark}", into: sink, lines: true) end,
            fn -> Stdio.cmd("echo #{mark}", into: sink, input: 1) end,
            fn -> Stdio.cmd("echo #{mark}", into: sink, input: nil) end,
            fn -> Stdio.cmd("echo #{mark}", into: sink, arg0: :a) end,
            fn -> Stdio.cmd("echo #{mark}", into: sink, arg0: "a\0") end,
            fn -> Stdio.cmd("echo #{mark}", into: sink, stderr_to_stdout: 1) end,
            fn ->
              Stdio.cmd("echo #{mark}", into: sink, stderr_to_stdout: true, stderr: :null)
            end,
            fn -> Stdio.cmd("echo #{mark}", into: sink, input: "", stdin: :null) end,
            fn -> Stdio.cmd("echo #{mark}", into: sink, behaviour: Nope) end,
            fn -> Stdio.cmd("echo #{mark}", into: sink, priority: "x") end,
            fn -> Stdio.cmd("echo #{mark}", into: sink, foo: 1) end,
            fn -> Stdio.cmd("echo #{mark}\0", into: sink) end
          ] do
        assert_raise ArgumentError, fun
      end

      assert messages() == []
    end

    test "an unknown option is told what there is" do
      assert_raise ArgumentError,
                   ~r/unknown option :foo \(value 1\); allowed: .*:env.*:lines/,
                   fn ->
                     Stdio.cmd("true", foo: 1)
                   end
    end
  end

  describe "a failure" do
    test "to start halts the collectable" do
      sink = %Sink{pid: self()}
      assert_raise Stdio.StreamError, fn -> Stdio.cmd("/no/such", [], into: sink) end
      assert received() == [:opened, :halted]
      assert_raise Stdio.StreamError, ~r/enoent/, fn -> Stdio.cmd([]) end

      assert_raise Stdio.OpError, fn ->
        Stdio.cmd("true", behaviour: [ops: fn _ -> [{:chdir, ["/nope"]}] end])
      end
    end

    test "to collect halts it and ends the tree", %{mark: mark} do
      full = fn "ready\n" -> raise "full" end
      command = [Proc.fixture("fork-tree"), mark, "2", "2"]

      assert_raise RuntimeError, "full", fn ->
        Stdio.cmd(command, into: %Sink{pid: self(), fun: full})
      end

      assert Proc.find(mark) == []
      assert received() == [:opened, :halted]
    end

    test "of the caller ends the tree", %{mark: mark} do
      command = [Proc.fixture("fork-tree"), mark, "2", "2"]
      {pid, monitor} = spawn_monitor(fn -> Stdio.cmd(command) end)
      assert Proc.wait_until(fn -> length(Proc.find(mark)) == 7 end, 5000)
      Process.exit(pid, :kill)
      assert_receive {:DOWN, ^monitor, _, _, :killed}
      assert Proc.wait_until(fn -> Proc.gone?(mark) end, 5000)
    end

    test "no message is left, in a process that traps exits too" do
      Process.flag(:trap_exit, true)
      assert {_, 0} = Stdio.cmd("cat", input: "x")
      assert_raise Stdio.StreamError, fn -> Stdio.cmd("/no/such", [], input: "x") end
      assert messages() == []
    end
  end
end
