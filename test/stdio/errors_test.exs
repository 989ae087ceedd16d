defmodule Stdio.ErrorsTest do
  # Starts that fail. Every one is raised in the process that enumerates, and nothing is left.
  use Stdio.Test.StreamCase

  alias Stdio.{OpError, StreamError}

  # {reason, action}; the message is checked on the way.
  defp failure(command, config \\ []) do
    error = assert_raise(StreamError, fn -> list(command, config) end)
    text = "#{:file.format_error(error.reason)} (#{error.reason})"
    hint = if error.hint, do: "\n\n" <> error.hint, else: ""

    assert Exception.message(error) ==
             "error creating #{error.action}: #{inspect(command)}: #{text}#{hint}"

    assert messages() == []
    {error.reason, error.action}
  end

  defp file!(path, content, mode) do
    File.write!(path, content)
    File.chmod!(path, mode)
    path
  end

  describe "exec fails with the kernel's reason, which is never exit status 127:" do
    test "no such file" do
      assert failure(["/nonexistent"]) == {:enoent, "subprocess"}
      assert failure(["executable-does-not-exist"]) == {:enoent, "subprocess"}
      assert failure({"/nonexistent", ["sh"]}) == {:enoent, "subprocess"}
      assert failure({:search, ["executable-does-not-exist"]}) == {:enoent, "subprocess"}
      assert failure([""]) == {:enoent, "subprocess"}
    end

    test "nothing to run, which is found out when the stream runs" do
      for command <- [[], {:search, []}] do
        stream = Stdio.stream!(command)
        assert_raise StreamError, fn -> Enum.to_list(stream) end
        assert failure(command) == {:enoent, "subprocess"}
      end

      assert_raise StreamError, fn -> pipe(["a"], []) end
      assert_raise StreamError, fn -> pipe(["a"], ["executable-does-not-exist"]) end
      assert messages() == []
    end

    @tag :dir
    test "not executable, a directory, a closed directory on the way", %{dir: dir} do
      plain = file!(Path.join(dir, "plain"), "#!/bin/sh\n", 0o644)
      assert failure([plain]) == {:eacces, "subprocess"}
      assert failure([dir]) == {:eacces, "subprocess"}

      closed = Path.join(dir, "closed")
      File.mkdir!(closed)
      inner = file!(Path.join(closed, "inner"), "#!/bin/sh\n", 0o755)
      File.chmod!(closed, 0)
      assert failure([inner]) == {:eacces, "subprocess"}
      File.chmod!(closed, 0o755)
      assert list([inner]) == [exit_status: 0]
    end

    @tag :dir
    test "neither a binary nor a script", %{dir: dir} do
      text = file!(Path.join(dir, "text"), "echo never\n", 0o755)
      assert failure([text]) == {:enoexec, "subprocess"}
      empty = file!(Path.join(dir, "empty"), "", 0o755)
      assert failure([empty]) == {:enoexec, "subprocess"}
      # A shell would run them, and so may the caller.
      assert list(["/bin/sh", text]) == [stdout: "never\n", exit_status: 0]
      assert failure({:search, ["text"]}, env: [PATH: dir]) == {:enoexec, "subprocess"}
    end

    @tag :dir
    test "an interpreter that is missing or cannot be executed", %{dir: dir} do
      missing = file!(Path.join(dir, "missing"), "#!/nonexistent/interpreter\n", 0o755)
      assert failure([missing]) == {:enoent, "subprocess"}
      plain = file!(Path.join(dir, "plain"), "", 0o644)
      script = file!(Path.join(dir, "script"), "#!#{plain}\n", 0o755)
      assert failure([script]) == {:eacces, "subprocess"}
    end

    @tag :dir
    test "paths that lead nowhere", %{dir: dir} do
      file = file!(Path.join(dir, "file"), "", 0o755)
      assert failure([Path.join(file, "program")]) == {:enotdir, "subprocess"}
      File.ln_s!("loop", Path.join(dir, "loop"))
      assert failure([Path.join(dir, "loop")]) == {:eloop, "subprocess"}
      long = String.duplicate("x", 256)
      assert failure([Path.join(dir, long)]) == {:enametoolong, "subprocess"}
      assert failure(["/" <> String.duplicate("x/", 2500)]) == {:enametoolong, "subprocess"}
    end
  end

  describe "size:" do
    # MAX_ARG_STRLEN of Linux, its NUL included.
    @string 131_072

    test "the largest argument and variable, and one byte more" do
      argument = String.duplicate("a", @string - 1)
      show = Proc.fixture("show-args")
      assert list([show, argument]) |> given() |> elem(0) == [show, argument]
      assert failure([show, argument <> "a"]) == {:e2big, "subprocess"}
      variable = "A=" <> String.duplicate("a", @string - 3)
      assert list([show], environ: [variable]) |> given() |> elem(1) == [variable]
      assert failure([show], environ: [variable <> "a"]) == {:e2big, "subprocess"}
      # A shell line is one argument.
      assert list("exit 3 # " <> String.duplicate("a", @string - 10)) == [exit_status: 3]
      assert failure("exit 3 # " <> String.duplicate("a", @string)) == {:e2big, "subprocess"}
    end

    test "more than the kernel takes together: arguments, environment, both" do
      # At most 6 MiB whatever the stack's limit, execve(2).
      words = List.duplicate(String.duplicate("a", 100_000), 65)
      assert failure(["/bin/true" | words]) == {:e2big, "subprocess"}

      assert failure(["/bin/true"], environ: Enum.map(words, &("A=" <> &1))) ==
               {:e2big, "subprocess"}

      half = Enum.take(words, 33)
      environ = Enum.map(half, &("A=" <> &1))
      assert failure(["/bin/true" | half], environ: environ) == {:e2big, "subprocess"}
      assert list(["/bin/true"]) == [exit_status: 0]
    end

    test "an environment of 100 MB" do
      environ = List.duplicate("A=" <> String.duplicate("a", 100_000), 1000)
      assert failure(["/bin/true"], environ: environ) == {:e2big, "subprocess"}
      # More than any message holds, in many small pieces.
      environ = List.duplicate("A=aaaaaaaaaaaaaa", 1_500_000)
      assert failure(["/bin/true"], environ: environ) == {:e2big, "subprocess"}
    end

    test "an environment of 70 KB is delivered" do
      environ = for n <- 1..720, do: "V#{n}=" <> String.duplicate("v", 95)
      assert Enum.sum(Enum.map(environ, &byte_size/1)) > 70_000
      assert list([Proc.fixture("show-args")], environ: environ) |> given() |> elem(1) == environ
    end

    test "1 MB of arguments is delivered, many small ones and a few large" do
      show = Proc.fixture("show-args")

      for {count, size} <- [{25_000, 40}, {10, 100_000}] do
        words = for n <- 1..count, do: String.pad_trailing("#{n}", size, "w")
        assert list([show | words]) |> given() |> elem(0) == [show | words]
      end
    end
  end

  describe "a step before exec fails:" do
    test "the directory is missing; the rest is not done", %{mark: mark} do
      command = [Proc.fixture("never-read"), mark]

      for key <- [:path, :cd] do
        config = [
          {key, "/nonexistent"},
          {:uid, 70_001},
          {:rlimit, [rlimit_cpu: %{cur: 7, max: 7}]}
        ]

        error = assert_raise(OpError, fn -> list(command, config) end)
        assert error.reason == :enoent
        assert error.op == {Stdio.Task, :chdir, ["/nonexistent"]}

        assert error.message =~
                 ~r/^operation returned an error: no such file or directory \(enoent\)\n\n/

        assert error.message =~
                 ~r/\n\nStdio\.Task\.chdir\(#Stdio\.Task<dead>, "\/nonexistent"\)\n\nremaining ops:\n/

        [_, remaining] = String.split(error.message, "remaining ops:\n")

        {remaining, []} = Code.eval_string(remaining)
        assert Keyword.keys(remaining) == [:setrlimit, :setugid, :no_new_privs, :set_pdeathsig]
        assert remaining[:setugid] == [70_001, 70_001, []]
        assert messages() == []
        assert Proc.find(mark) == []
      end
    end

    @tag :dir
    test "the directory is a file, or closed", %{dir: dir} do
      file = file!(Path.join(dir, "file"), "", 0o644)
      error = assert_raise(OpError, fn -> list("true", path: file) end)
      assert error.reason == :enotdir
      long = "/" <> String.duplicate("x", 5000)
      error = assert_raise(OpError, fn -> list("true", path: long) end)
      assert error.reason == :enametoolong
    end

    test "with an input, which is then not enumerated" do
      parent = self()

      input =
        Stream.map([1], fn _ ->
          send(parent, :enumerated)
          ""
        end)

      assert_raise OpError, fn -> pipe(input, "cat", path: "/nonexistent") end
      assert messages() == []
    end

    test "in a process that traps exits and has messages" do
      Process.flag(:trap_exit, true)
      send(self(), :mine)
      assert_raise OpError, fn -> list("true", path: "/nonexistent") end
      assert_raise StreamError, fn -> list(["/nonexistent"]) end
      assert messages() == [:mine]
    end

    test "many at once" do
      commands = [{"true", [path: "/nonexistent"]}, {["/nonexistent"], []}, {"exit 3", []}]

      results =
        commands
        |> List.duplicate(20)
        |> Enum.concat()
        |> Task.async_stream(
          fn {command, config} ->
            try do
              list(command, config)
            rescue
              error -> {error.__struct__, Map.get(error, :reason)}
            end
          end,
          max_concurrency: 20,
          timeout: 60_000
        )
        |> Enum.frequencies()

      assert results == %{
               {:ok, {OpError, :enoent}} => 20,
               {:ok, {StreamError, :enoent}} => 20,
               {:ok, [exit_status: 3]} => 20
             }
    end
  end

  describe "limits that hit the start itself:" do
    # Whatever it comes to, it comes to one end.
    defp outcome(command, config) do
      {:terminal, Oracle.terminal!(list(command, config))}
    rescue
      error in StreamError -> {error.action, error.reason}
      error in OpError -> {:op, error.reason}
    end

    test "no memory" do
      for bytes <- [0, 4096, 1_000_000] do
        limit = %{cur: bytes, max: bytes}

        for name <- [:rlimit_as, :rlimit_data, :rlimit_stack] do
          outcome = outcome("true", rlimit: [{name, limit}])

          assert match?({"subprocess", reason} when reason in [:enomem, :eagain, :e2big], outcome) or
                   match?({:terminal, {kind, _}} when kind in [:exit_status, :termsig], outcome)
        end
      end

      assert {:terminal, {:termsig, _}} = outcome("true", rlimit: [rlimit_as: %{cur: 0, max: 0}])
    end

    test "no descriptors" do
      # 0, 1 and 2 are in use.
      assert {:op, :einval} = outcome("true", rlimit: [rlimit_nofile: %{cur: 2, max: 2}])
      assert {:terminal, _} = outcome("true", rlimit: [rlimit_nofile: %{cur: 3, max: 3}])
    end

    @no_processes [rlimit: [rlimit_nproc: %{cur: 0, max: 0}]]

    # The processes of a user are counted, so it has to be one that has none. Means nothing
    # without root.
    defp new_user, do: [uid: 1_000_000_000 + :rand.uniform(1_000_000_000)]

    test "no processes: the program cannot fork", %{mark: mark} do
      command = [Proc.fixture("fork-tree"), mark, "1", "1"]
      elements = list(command, new_user() ++ @no_processes)
      assert output(elements, :stderr) =~ "EAGAIN"
      assert {:exit_status, 71} = Oracle.terminal!(elements)
    end

    # setresuid marks the process, execve refuses: only if the new user has one more already.
    @tag :root
    test "no processes, and the user has some: exec fails", %{mark: mark} do
      user = new_user()

      while_running(mark, user, fn _ ->
        assert failure("true", user ++ @no_processes) == {:eagain, "subprocess"}
        assert list("true", user) == [exit_status: 0]
      end)
    end

    @tag :root
    test "root is exempt from the limit of processes" do
      assert list("true & wait; exit 3", [uid: 0] ++ @no_processes) == [exit_status: 3]
    end
  end
end
