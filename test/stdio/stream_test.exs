defmodule Stdio.StreamTest do
  use Stdio.Test.StreamCase

  # CONTRACT section 8, as far as it is about stream! and Stdio.Process alone. Commands and their
  # look-up are in exec_test.exs, options in options_test.exs.
  @rows [
    {"echo hello; echo world >&2", [], [stdout: "hello\n", stderr: "world\n", exit_status: 0]},
    {["/usr/bin/env"], [environ: ["TERM=dumb", "PATH=/bin"]],
     [stdout: "TERM=dumb\nPATH=/bin\n", exit_status: 0]},
    {{"/bin/sh", ["stdio", "-c", "echo $0"]}, [], [stdout: "stdio\n", exit_status: 0]},
    {"pwd", [path: "/tmp"], [stdout: "/tmp\n", exit_status: 0]},
    {"yes | head -1", [], [stdout: "y\n", exit_status: 0]},
    {"ls /proc/self/fd", [], [stdout: "0\n1\n2\n3\n", exit_status: 0]},
    {"pstree $$", [], [stdout: "sh---pstree\n", exit_status: 0]},
    {{:search, ["echo", "a"]}, [], [stdout: "a\n", exit_status: 0]},
    {["echo", "a"], [search: true], [stdout: "a\n", exit_status: 0]},
    {"echo $A$HOME", [env: [A: "1", HOME: nil]], [stdout: "1\n", exit_status: 0]}
  ]

  for {command, config, result} <- @rows do
    @tag row: {command, config, result}
    test "#{inspect(command)} #{inspect(config)}", %{row: {command, config, result}} do
      assert list(command, config) == result
      assert messages() == []
    end
  end

  test "echo a; echo b >&2; echo c, stderr: :stdout" do
    elements = list("echo a; echo b >&2; echo c", stderr: :stdout)
    assert output(elements) == "a\nb\nc\n"
    assert output(elements, :stderr) == ""
    assert Oracle.terminal!(elements) == {:exit_status, 0}
  end

  # Under another uid than that of the pipes' maker when the BEAM is root's.
  test "echo x > /dev/stderr; echo y > /dev/stdout" do
    elements = list("echo x > /dev/stderr; echo y > /dev/stdout")
    assert Enum.sort(elements) == [exit_status: 0, stderr: "x\n", stdout: "y\n"]
  end

  test "kill -HUP $PPID; sleep 111: the supervisor forwards it" do
    config = if root?(), do: [uid: 0], else: []

    assert list("kill -HUP $PPID; sleep 111", config) in [
             [termsig: :sighup],
             [exit_status: 129]
           ]

    assert messages() == []
  end

  test "trap 'exit 7' TERM; while :; do sleep 0.1; done, timeout: 300, kill_signal: :sigterm" do
    line = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"
    {_, _, elements} = with_timeout(&list(line, timeout: &1, kill_signal: :sigterm))
    # The signal goes to the group, so some shells report the end of `sleep` on stderr.
    assert Oracle.terminal!(elements) == {:exit_status, 7}
    assert output(elements) == "ready\n"
  end

  test "any signal to the supervisor reaches each descendant once; the stream goes on" do
    config = if root?(), do: [uid: 0], else: []

    line =
      "trap 'echo got; got=1' USR1; kill -USR1 $PPID; while [ -z \"$got\" ]; do sleep 0.05; done; " <>
        "for i in 1 2 3 4 5; do sleep 0.05; done; exit 3"

    elements = list(line, [timeout: 20_000] ++ config)
    assert Oracle.terminal!(elements) == {:exit_status, 3}
    assert output(elements) == "got\n"
  end

  # On a busy machine it may not be back when the next program comes: once in ten times it is idle.
  test "programs one after the other have one supervisor" do
    ten = fn -> Enum.uniq(for _ <- 1..10, do: list("echo $PPID")) end
    assert Enum.any?(1..10, fn _ -> match?([[stdout: _, exit_status: 0]], ten.()) end)
  end

  test "the arities of stream!" do
    assert Enum.to_list(Stdio.stream!("true")) == [exit_status: 0]
    assert Enum.to_list(Stdio.stream!("true", Stdio.Process)) == [exit_status: 0]
    assert Enum.to_list(Stdio.stream!("true", Stdio.Process, [])) == [exit_status: 0]
  end

  describe "laziness" do
    @tag :dir
    test "a program runs once per enumeration, and never before", %{dir: dir} do
      log = Path.join(dir, "log")
      stream = Stdio.stream!("echo run >>'#{log}'")
      # Whatever the call might have started had its time by now.
      assert list("true") == [exit_status: 0]
      refute File.exists?(log)

      for runs <- 1..3 do
        assert Enum.to_list(stream) == [exit_status: 0]
        assert File.read!(log) == String.duplicate("run\n", runs)
      end
    end

    @tag :dir
    test "nothing runs when no element is asked for", %{dir: dir} do
      log = Path.join(dir, "log")
      assert Enum.take(Stdio.stream!("echo run >>'#{log}'"), 0) == []
      assert list("true") == [exit_status: 0]
      refute File.exists?(log)
    end

    @tag :root
    test "it runs for the process that enumerates", %{mark: mark} do
      stream = Stdio.stream!([Proc.fixture("show-fds"), mark])
      task = Task.async(fn -> output(Enum.to_list(stream)) end)
      uid = :erlang.phash2(task.pid, 0xFFFF) + 0x10000
      assert Task.await(task) =~ "\nuid=#{uid},#{uid},#{uid}\n"
    end

    test "two streams of one process may take turns", %{mark: mark} do
      fill = fn bytes -> Stdio.stream!([Proc.fixture("fill-pipe"), mark, "#{bytes}"]) end
      {left, right} = Enum.unzip(Stream.zip(fill.(300_000), fill.(300_000)))
      assert output(left) == Fixtures.pattern(byte_size(output(left)))
      assert output(right) == Fixtures.pattern(byte_size(output(right)))
      assert messages() == []

      # Of both one line is one element.
      [letters, numbers] =
        for words <- ["a b c", "1 2 3"] do
          line = "for i in #{words}; do echo $i; sleep 0.01; done"
          Stdio.stream!(line, Stdio.Process, max_chunk: 2)
        end

      zipped = Enum.zip(letters, numbers)
      assert length(zipped) == 4
      assert List.last(zipped) == {{:exit_status, 0}, {:exit_status, 0}}
      assert messages() == []
    end

    test "a stream within a stream" do
      outer = Stdio.stream!("echo a; sleep 0.05; echo b")
      pairs = Enum.map(outer, fn element -> {element, list("echo inner; exit 3")} end)
      {elements, inner} = Enum.unzip(pairs)
      assert output(elements) == "a\nb\n"
      assert Oracle.terminal!(elements) == {:exit_status, 0}
      assert Enum.uniq(inner) == [[stdout: "inner\n", exit_status: 3]]
      assert messages() == []
    end

    test "messages of others stay where they are" do
      for n <- 1..3, do: send(self(), {:stdout, n})
      send(self(), {make_ref(), :exit, {:exit_status, 1}, [], {0, 0, 0}})
      before = messages()
      assert list("echo a") == [stdout: "a\n", exit_status: 0]
      assert Enum.take(Stdio.stream!("yes"), 2) != []
      assert messages() == before
    end
  end

  describe "the terminal element" do
    test "every exit status", %{mark: mark} do
      for status <- 0..255 do
        command = [Proc.fixture("exit-with"), mark, "--code", "#{status}"]
        assert list(command) == [exit_status: status]
      end
    end

    # signal(7): those whose default action is to end the process.
    @fatal [sighup: 1, sigint: 2, sigquit: 3, sigill: 4, sigtrap: 5, sigabrt: 6, sigbus: 7] ++
             [sigfpe: 8, sigkill: 9, sigusr1: 10, sigsegv: 11, sigusr2: 12, sigpipe: 13] ++
             [sigalrm: 14, sigterm: 15, sigstkflt: 16, sigxcpu: 24, sigxfsz: 25] ++
             [sigvtalrm: 26, sigprof: 27, sigio: 29, sigpwr: 30, sigsys: 31]

    test "every signal, by its name", %{mark: mark} do
      for {name, number} <- @fatal do
        command = [Proc.fixture("exit-with"), mark, "--signal", "#{number}"]
        assert list(command) == [termsig: name]
      end
    end

    test "a real-time signal is :unknown", %{mark: mark} do
      for number <- [32, 33, 34, 50, 64] do
        command = [Proc.fixture("exit-with"), mark, "--signal", "#{number}"]
        assert list(command) == [termsig: :unknown]
      end
    end

    test "a signal that ends nobody is no end", %{mark: mark} do
      # Of those that stop, SIGTSTP, SIGTTIN and SIGTTOU are ignored in an orphaned group.
      for number <- [17, 18, 20, 21, 22, 23, 28] do
        command = [Proc.fixture("exit-with"), mark, "--signal", "#{number}"]
        assert list(command) == [stdout: "survived\n", exit_status: 0]
      end
    end

    test "a status of 128 + n is no signal" do
      for number <- 1..31, do: assert(list("exit #{128 + number}") == [exit_status: 128 + number])
      assert [stderr: _, exit_status: 137] = list("sh -c 'kill -9 $$'; exit $?")
    end

    test "it comes once, after all output of both streams", %{mark: mark} do
      elements = list([Proc.fixture("fill-pipe"), mark, "1000000", "--to", "both"])
      assert Oracle.terminal!(elements) == {:exit_status, 0}
      assert output(elements, :stdout) == Fixtures.pattern(1_000_000)
      assert output(elements, :stderr) == Fixtures.pattern(1_000_000)
      assert messages() == []
    end

    test "100 MB on stderr alone", %{mark: mark} do
      command = [Proc.fixture("fill-pipe"), mark, "100000000", "--to", "stderr", "--digest"]

      {hash, rest} =
        Enum.reduce(Stdio.stream!(command), {:crypto.hash_init(:sha256), []}, fn
          {:stderr, chunk}, {hash, rest} -> {:crypto.hash_update(hash, chunk), rest}
          other, {hash, rest} -> {hash, [other | rest]}
        end)

      hash = hash |> :crypto.hash_final() |> Base.encode16(case: :lower)
      assert Enum.reverse(rest) == [stdout: "100000000 #{hash}\n", exit_status: 0]
    end

    test "a slow consumer gets everything" do
      elements =
        "head -c 65536 /dev/zero"
        |> Stdio.stream!(Stdio.Process, max_chunk: 1024)
        |> Enum.map(fn element -> tap(element, fn _ -> Process.sleep(1) end) end)

      assert Oracle.terminal!(elements) == {:exit_status, 0}
      assert output(elements) == :binary.copy(<<0>>, 65_536)
    end

    test "the end of output is not the end", %{mark: mark} do
      command = [Proc.fixture("close-stdout"), mark, "300", "5", "--stderr"]
      {elapsed, elements} = timed(fn -> list(command) end)
      assert elements == [stdout: "closing\n", exit_status: 5]
      assert elapsed >= 300
    end
  end

  describe "a program is born with" do
    test "three descriptors, whatever the BEAM has open", %{mark: mark, test: test} do
      {:ok, listen} = :gen_tcp.listen(0, [])
      {:ok, file} = :file.open(__ENV__.file, [:raw, :read])
      born = born_with(mark, stdin: :null)
      :ok = :gen_tcp.close(listen)
      :ok = :file.close(file)
      assert born["fds"] == "0,1,2", "#{test}"
      for fd <- 0..2, do: assert(born["nonblock.#{fd}"] == "0")
      assert born["fd.1"] =~ "pipe:"
      assert born["fd.2"] =~ "pipe:"
    end

    test "default dispositions and an empty mask", %{mark: mark} do
      born = born_with(mark)
      for mask <- ~w(sigign sigblk sigcgt sigpnd), do: assert(born[mask] == "0000000000000000")
    end

    test "a session and a process group of its own, below its supervisor", %{mark: mark} do
      born = born_with(mark)
      assert born["pid"] == born["pgid"]
      assert born["pid"] == born["sid"]
      assert born["parent"] == "Supervise"
      # Survives exec, so it would be passed on.
      assert born["subreaper"] == "0"
      # The backup for a supervisor that dies.
      assert born["pdeathsig"] == "9"
    end

    @tag :root
    test "an unnamed user, no groups, no capabilities (started by root)", %{mark: mark} do
      uid = :erlang.phash2(self(), 0xFFFF) + 0x10000
      born = born_with(mark)
      assert born["uid"] == "#{uid},#{uid},#{uid}"
      assert born["gid"] == "#{uid},#{uid},#{uid}"
      assert born["groups"] == ""
      assert born["capeff"] == "0000000000000000"
    end

    @tag :unprivileged
    test "the user of the BEAM (not started by root)", %{mark: mark} do
      uid = beam_uid()
      born = born_with(mark)
      assert born["uid"] == "#{uid},#{uid},#{uid}"
      own = Proc.status(Proc.os_pid())["groups"]
      assert String.split(born["groups"], ",", trim: true) == String.split(own)
    end
  end

  test "200 programs at once, while the VM does other things", %{mark: mark} do
    path = Path.join(System.tmp_dir!(), mark)
    parent = self()

    files =
      spawn_link(fn ->
        Stream.repeatedly(fn -> File.write!(path, "x") end)
        |> Enum.find(fn :ok -> receive(do: (:done -> true), after: (0 -> false)) end)

        send(parent, :files_went_on)
      end)

    results =
      1..200
      |> Task.async_stream(fn _ -> list(["/bin/true"]) end, max_concurrency: 200, timeout: 60_000)
      |> Enum.map(fn {:ok, elements} -> elements end)

    assert Enum.uniq(results) == [[exit_status: 0]]
    send(files, :done)
    assert_receive :files_went_on, 5000
    File.rm!(path)
  end
end
