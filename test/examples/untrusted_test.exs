Code.require_file("../../examples/untrusted.ex", __DIR__)

defmodule Stdio.Examples.UntrustedTest do
  # examples/untrusted.ex with scripts that try what they must not, and examples/untrusted.exs.
  use Stdio.Test.StreamCase, async: false
  @moduletag :userns
  @moduletag timeout: 60_000

  alias Stdio.Test.Script

  setup %{mark: mark} do
    {:ok, root: Script.root_tree(mark)}
  end

  defp run(script, context, opts \\ []),
    do: Untrusted.run(script <> "\n: #{context.mark}", [path: context.root] ++ opts)

  test "what it says", context do
    assert run("echo hello; echo err >&2; id -u; hostname; pwd", context) ==
             {:ok, "hello\nerr\n65534\nsandbox\n/home\n"}

    assert run("echo a; exit 3", context) == {:error, {:exit_status, 3}, "a\n"}
    assert run("kill -KILL $$; sleep 1", context) |> elem(0) == :error
    assert run("cat", context) == {:ok, ""}
  end

  test "the host's files", context do
    secret = Path.join(System.tmp_dir!(), "secret-" <> context.mark)
    File.write!(secret, "secret")
    on_exit(fn -> File.rm(secret) end)

    assert {:ok, "no\nno\n"} =
             run("cat #{secret} 2> /dev/null || echo no; test -e /etc/passwd || echo no", context)

    # No name of its own: should it ever work, nothing on the host is changed.
    for place <- ~w(/ /usr /bin /dev) do
      assert {:ok, output} = run("rmdir #{place}/stdio-x; true", context)
      assert output =~ "Read-only file system"
    end

    assert run("echo x > /home/x; cat /home/x; echo y > /tmp/y; cat /tmp/y", context) ==
             {:ok, "x\ny\n"}

    assert File.ls!(Path.join(context.root, "home")) == []
  end

  test "processes and privileges of others", context do
    script = "ls /proc | grep -c '^[0-9]'; grep -E 'NoNewPrivs|CapEff' /proc/self/status"
    assert {:ok, output} = run(script, context)

    assert [count, "CapEff:\t0000000000000000", "NoNewPrivs:\t1"] =
             String.split(output, "\n", trim: true)

    assert String.to_integer(count) < 6
    assert {:ok, output} = run("unshare -Ur true; true", context)
    assert output =~ "not permitted"
  end

  @tag :ip
  test "no network", context do
    assert {:ok, ""} = run("ip --oneline -4 addr", context)
    assert {:ok, output} = run("ip link", context)
    refute output =~ "state UP"
  end

  test "time", context do
    {elapsed, result} = timed(fn -> run("echo a; sleep 1000", context, timeout: 2000) end)
    assert result == {:error, {:termsig, :sigkill}, "a\n"}
    assert elapsed < 6_700
  end

  test "CPU time", context do
    opts = [cpu_seconds: 1, timeout: 30_000]
    assert {:error, {:termsig, signal}, ""} = run("while :; do :; done", context, opts)
    assert signal in [:sigxcpu, :sigkill]
  end

  test "memory", context do
    script = "x=x; while :; do x=$x$x; done"
    opts = [memory: 64 * 1024 * 1024, timeout: 20_000]
    assert {:error, exit, _} = run(script, context, opts)
    assert exit != {:termsig, :sigkill}
  end

  test "output: no more than allowed, and at once", context do
    {elapsed, {:error, :too_much_output, output}} =
      timed(fn -> run("yes", context, max_output: 100_000, timeout: 30_000) end)

    assert byte_size(output) == 100_000
    assert elapsed < 10_000
    assert {:ok, output} = run("head -c 1000 /dev/zero", context, max_output: 1000)
    assert byte_size(output) == 1000
  end

  test "files and descriptors", context do
    assert {:ok, output} = run("head -c 2000000 /dev/zero > /home/x; wc -c < /home/x", context)
    assert output =~ "1048576\n"
    assert run("ulimit -n", context) == {:ok, "64\n"}
  end

  test "what it leaves in the background", context do
    Oracle.clean(fn _ ->
      line = "setsid sh -c 'sleep 1000; : #{context.mark}' > /dev/null 2>&1 &"
      assert run(line, context) == {:ok, ""}
    end)

    assert Proc.find(context.mark) == []
  end

  @tag :unprivileged
  test "a fork bomb is small, and over at its deadline", context do
    script = "f() { sleep 100 & f; }; f"
    assert {:error, _, _} = run(script, context, timeout: 3000)
    assert Proc.wait_until(fn -> Proc.find(context.mark) == [] end, 5000)
  end

  test "what cannot be run", context do
    assert Untrusted.run(String.duplicate("x", 200_000)) == {:error, :too_long, ""}

    assert {:error, {:not_started, message}, ""} =
             Untrusted.run("true", path: context.root, interpreter: ["/no/such"])

    assert message =~ "enoent"
    assert {:error, {:not_started, _}, ""} = Untrusted.run("true", path: context.root <> "-none")
    assert_raise ArgumentError, fn -> Untrusted.run("true", no_such: 1) end
    assert messages() == []
  end

  describe "examples/untrusted.exs" do
    defp script(args, context),
      do: Script.run("untrusted.exs", ["--root", Path.join(context.root, "new")] ++ args)

    test "runs a script, and has its exit status", context do
      assert script(["id -u; exit 7"], context) == {["65534"], 7}
      file = Path.join(context.root, "script")
      File.write!(file, "echo from a file\n")
      assert script(["--file", file], context) == {["from a file"], 0}
    end

    test "ends it", context do
      line = "echo a; sleep 1000; : #{context.mark}"
      assert script(["--timeout", "2000", line], context) == {["a"], 125}
      assert script(["--max-output", "5", "echo 1234; echo 5"], context) == {["1234"], 125}
      assert Proc.wait_until(fn -> Proc.find(context.mark) == [] end)
    end

    test "usage", context do
      assert {["Usage: mix run" <> _ | _], 0} = Script.run("untrusted.exs", ["--help"])
      for args <- [[], ["--foo", "x"], ["a", "b"]], do: assert({[], 2} = script(args, context))
    end
  end
end
