defmodule Stdio.ResultsTest do
  # CONTRACT 8, "Results that must hold": the rows that need a container or somebody else's program.
  # The others are in stream_test.exs, pipe_test.exs and behaviour_*_test.exs.
  use Stdio.Test.StreamCase

  alias Stdio.{Container, Rootless}

  @directories ~w(bin sbin usr lib lib64 opt tmp home proc dev)

  # A program may write a line in parts: chunks of one stream that follow one another are joined.
  defp run(command, behaviour, config \\ []) do
    command
    |> Stdio.stream!(behaviour, config)
    |> Enum.chunk_by(&elem(&1, 0))
    |> Enum.map(fn [{kind, _} | _] = part ->
      if kind in [:stdout, :stderr], do: {kind, output(part, kind)}, else: hd(part)
    end)
  end

  # A root tree for the application, as make_chroot_tree! makes it.
  defp tree(_) do
    before = Application.fetch_env(:stdio, :path)
    path = Path.join(System.tmp_dir!(), "stdio-results-#{System.unique_integer([:positive])}")
    Application.put_env(:stdio, :path, path)
    :ok = Container.make_chroot_tree!(@directories)
    File.chmod!(path, 0o755)

    on_exit(fn ->
      case before do
        {:ok, value} -> Application.put_env(:stdio, :path, value)
        :error -> Application.delete_env(:stdio, :path)
      end

      File.rm_rf!(path)
    end)

    :ok
  end

  for {behaviour, tag} <- [{Container, :root}, {Rootless, :userns}] do
    describe inspect(behaviour) do
      @describetag tag
      @describetag behaviour: behaviour
      setup :tree

      test "an echo, a status, a pipe", %{behaviour: behaviour} do
        assert run("echo hello", behaviour) == [stdout: "hello\n", exit_status: 0]
        assert run("exit 3", behaviour) == [exit_status: 3]
        assert run("echo $0", {behaviour, []}) == [stdout: "/bin/sh\n", exit_status: 0]

        assert ["abc"] |> Stdio.pipe!("cat", behaviour) |> Enum.to_list() ==
                 [stdout: "abc", exit_status: 0]

        assert messages() == []
      end

      test "a program that does not read its input", %{behaviour: behaviour} do
        assert ["x", "x", "x", "x"] |> Stdio.pipe!("exit 3", behaviour) |> Enum.to_list() ==
                 [exit_status: 3]

        flood = List.duplicate(String.duplicate("x", 100), 1000)

        {ms, elements} =
          timed(fn ->
            Enum.to_list(Stdio.pipe!(flood, "sleep 100", behaviour, timeout: 500))
          end)

        assert elements == [termsig: :sigkill]
        assert ms < 1500
        assert messages() == []
      end

      test "the root is read-only and nosuid", %{behaviour: behaviour} do
        elements = run("mount", behaviour)
        assert Oracle.terminal!(elements) == {:exit_status, 0}
        root = elements |> output() |> String.split("\n") |> Enum.find(&(&1 =~ " on / type "))
        [options] = Regex.run(~r/\((.*)\)$/, root, capture: :all_but_first)
        assert "ro" in String.split(options, ",")
        assert "nosuid" in String.split(options, ",")
      end

      test "devices and standard streams by name", %{behaviour: behaviour} do
        assert run("echo x > /dev/null; head -c 4 /dev/urandom | wc -c", behaviour) ==
                 [stdout: "4\n", exit_status: 0]

        elements = run("echo x > /dev/stderr; echo y > /dev/stdout", behaviour)
        assert Enum.sort(elements) == [exit_status: 0, stderr: "x\n", stdout: "y\n"]
        assert List.last(elements) == {:exit_status, 0}
      end

      test "no such program; halted; a search", %{behaviour: behaviour, mark: mark} do
        for command <- [[], ["executable-does-not-exist"]] do
          error = assert_raise Stdio.StreamError, fn -> run(command, behaviour) end
          assert %{action: "subprocess", reason: :enoent} = error
        end

        stream = Stdio.stream!(["/bin/sh", "-c", "yes; :", mark], behaviour)
        assert [stdout: _] = Enum.take(stream, 1)
        assert Proc.find(mark) == []
        assert run(["echo", "a"], behaviour, search: true) == [stdout: "a\n", exit_status: 0]
        assert messages() == []
      end

      test "what is left behind ends with it", %{behaviour: behaviour, mark: mark} do
        line =
          "M='sleep 1000; :'; sh -c \"$M\" #{mark} & setsid sh -c \"$M\" #{mark} & (sh -c \"$M\" #{mark} &)"

        assert run(line, behaviour) == [exit_status: 0]
        assert Proc.find(mark) == []
      end

      test "stderr, env, a deadline", %{behaviour: behaviour} do
        elements = run("echo a; echo b >&2; echo c", behaviour, stderr: :stdout)
        assert {output(elements), output(elements, :stderr)} == {"a\nb\nc\n", ""}
        line = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"
        # Some shells tell of their children's ends.
        config = [kill_signal: :sigterm, stderr: :null]
        {_, _, elements} = with_timeout(&run(line, behaviour, [timeout: &1] ++ config))
        assert elements == [stdout: "ready\n", exit_status: 7]

        assert run("echo $A$HOME", behaviour, env: [A: "1", HOME: nil]) ==
                 [stdout: "1\n", exit_status: 0]
      end

      @tag :ip
      test "its network", %{behaviour: behaviour} do
        assert run("ip --oneline -4 addr show dev lo", behaviour) == [exit_status: 0]
        elements = run("ip --oneline -4 addr show dev lo", behaviour, net: :host)
        assert output(elements) =~ "127.0.0.1/8"

        assert run("ip -br addr show dev lo", behaviour) ==
                 [stdout: "lo               DOWN           \n", exit_status: 0]
      end

      @tag :pstree
      test "the processes it sees", %{behaviour: behaviour} do
        all = if behaviour == Rootless, do: "Supervise---sh---pstree\n", else: "sh---pstree\n"
        assert run("pstree", behaviour) == [stdout: all, exit_status: 0]
        assert run("pstree $$", behaviour) == [stdout: "sh---pstree\n", exit_status: 0]
      end
    end
  end

  describe "ids" do
    setup :tree

    @tag :root
    test "of a container" do
      assert run("id -a", Container, uid: 65_578) ==
               [stdout: "uid=65578 gid=65578 groups=65578\n", exit_status: 0]
    end

    @tag :userns
    test "without root" do
      assert run("id -u", Rootless) == [stdout: "65534\n", exit_status: 0]
    end
  end

  describe "directories and setuid programs" do
    setup :tree

    @tag :root
    test "fstab with one of the application's" do
      opt = Path.join(Stdio.__basedir__(), "opt")
      program = Path.join(opt, "stdiotrue")
      made? = not File.exists?(opt)
      File.mkdir_p!(opt)
      File.write!(program, "#!/bin/sh\nexit 0\n")
      File.chmod!(program, 0o755)

      on_exit(fn ->
        File.rm!(program)
        if made?, do: File.rmdir!(opt)
      end)

      assert run("PATH=/opt:$PATH stdiotrue", Container, fstab: ["opt"]) == [exit_status: 0]
    end

    @tag :root
    @tag :ping
    test "ping of root's in a container" do
      config = [setuid: true, net: :host]
      elements = run("ping -c 1 127.0.0.1", Container, config)
      assert "PING 127.0.0.1" <> _ = output(elements)
      assert Oracle.terminal!(elements) == {:exit_status, 0}
    end

    # The program is setuid root's `id -u`: what ping has it for.
    @tag :root
    @tag :dir
    test "no new privileges unless setuid: true", %{dir: dir} do
      id = Path.join(dir, "id")
      File.cp!(System.find_executable("id"), id)
      File.chmod!(id, 0o4755)
      uid = [uid: 65_578]
      assert run([id, "-u"], Stdio.Process, uid) == [stdout: "65578\n", exit_status: 0]

      assert run([id, "-u"], Stdio.Process, [setuid: true] ++ uid) ==
               [stdout: "0\n", exit_status: 0]
    end
  end
end
