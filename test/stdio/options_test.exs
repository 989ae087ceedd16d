defmodule Stdio.OptionsTest do
  # Each option's effect, as the kernel shows it to the program or to others. What validation alone
  # does is in config_test.exs; :environ, :env and :search are in exec_test.exs; time and kill
  # escalation in deadline_test.exs; namespaces in namespace_test.exs.
  use Stdio.Test.StreamCase

  alias Stdio.Test.Peer

  @infinity 0xFFFF_FFFF_FFFF_FFFF

  # The lines of /proc/PID/limits, by their first words: {soft, hard}.
  defp limits(pid) do
    for line <- File.read!("/proc/#{pid}/limits") |> String.split("\n", trim: true) |> tl(),
        into: %{} do
      [_, name, soft, hard] = Regex.run(~r/^(Max .*?)\s{2,}(\S+)\s+(\S+)/, line)
      {name, {soft, hard}}
    end
  end

  defp op_error(config) do
    error = assert_raise(Stdio.OpError, fn -> list("true", config) end)
    {Stdio.Task, call, _} = error.op
    {error.reason, call}
  end

  describe ":path and :cd" do
    @tag :dir
    test "are the working directory; the default is the BEAM's", %{mark: mark, dir: dir} do
      for key <- [:path, :cd] do
        link = while_running(mark, [{key, dir}], &File.read_link!("/proc/#{&1}/cwd"))
        # As root the directory of another user's process may be seen; else it is the BEAM's user.
        assert link == dir
        assert born_with(mark, [{key, String.to_charlist(dir)}])["cwd"] == dir
      end

      assert born_with(mark)["cwd"] == File.cwd!()
    end

    # The helper was started somewhere else.
    @tag :dir
    test "are relative to the BEAM's directory, as it is when the program starts", %{dir: dir} do
      File.mkdir!(Path.join(dir, "sub"))
      stream = Stdio.stream!(["/bin/pwd"])
      relative = Stdio.stream!(["/bin/pwd"], Stdio.Process, path: "sub")

      File.cd!(dir, fn ->
        assert output(Enum.to_list(stream)) == dir <> "\n"
        assert output(Enum.to_list(relative)) == Path.join(dir, "sub") <> "\n"
      end)
    end
  end

  describe ":uid, :gid and :groups" do
    @tag :root
    test "are all the ids that the program has", %{mark: mark} do
      config = [uid: 70_001, gid: 70_002, groups: [70_003, 5, 70_003]]

      status = while_running(mark, config, &Proc.status/1)
      assert String.split(status["uid"]) == List.duplicate("70001", 4)
      assert String.split(status["gid"]) == List.duplicate("70002", 4)
      assert String.split(status["groups"]) |> Enum.sort() == ["5", "70003", "70003"]
      for set <- ~w(capinh capprm capeff capamb), do: assert(status[set] =~ ~r/^0+$/)
    end

    @tag :root
    test "the gid follows the uid; the uid may be root's and the largest", %{mark: mark} do
      assert %{"uid" => "70001,70001,70001", "gid" => "70001,70001,70001"} =
               born_with(mark, uid: 70_001)

      assert %{"uid" => "0,0,0", "gid" => "7,7,7"} = born_with(mark, uid: 0, gid: 7)
      assert born_with(mark, uid: 0xFFFF_FFFE)["uid"] == "4294967294,4294967294,4294967294"
    end

    @tag :root
    test "more groups than the kernel takes" do
      assert op_error(groups: Enum.to_list(1..65_537)) == {:einval, :setugid}
    end

    @tag :unprivileged
    test "mean nothing without root", %{mark: mark} do
      plain = Map.take(born_with(mark), ~w(uid gid groups))
      config = [uid: 70_001, gid: 70_002, groups: [70_003]]
      assert Map.take(born_with(mark, config), ~w(uid gid groups)) == plain
    end
  end

  describe ":setuid" do
    test "leaves NO_NEW_PRIVS out; it is set by default, for descendants too", %{mark: mark} do
      assert while_running(mark, [], &Proc.status/1)["nonewprivs"] == "1"
      assert while_running(mark, [setuid: false], &Proc.status/1)["nonewprivs"] == "1"
      assert while_running(mark, [setuid: true], &Proc.status/1)["nonewprivs"] == "0"
      assert output(list("sh -c 'grep NoNewPrivs /proc/self/status'")) =~ ~r/\t1\n/
    end

    # The effect that the bit is about.
    @tag :root
    @tag :dir
    test "decides whether a setuid program has its owner's id", %{dir: dir} do
      program = Path.join(dir, "show-fds")
      File.cp!(Proc.fixture("show-fds"), program)
      File.chmod!(program, 0o4755)

      uids = fn config ->
        text = output(list([program, "m"], [uid: 70_001] ++ config))
        Regex.run(~r/^uid=(.*)$/m, text) |> List.last()
      end

      assert uids.([]) == "70001,70001,70001"

      # A file system that is mounted nosuid, as some /tmp are, has the last word.
      unless nosuid?(dir), do: assert(uids.(setuid: true) == "70001,0,0")
    end
  end

  defp nosuid?(dir) do
    {options, 0} = System.cmd("findmnt", ["-no", "OPTIONS", "-T", dir])
    options =~ "nosuid"
  end

  describe ":priority" do
    test "is the nice value, by default that of the BEAM", %{mark: mark} do
      {own, 0} = System.cmd("nice", [])
      own = own |> String.trim() |> String.to_integer()
      assert born_with(mark)["nice"] == "#{own}"

      # It cannot be lowered without privileges.
      for nice <- [1, 10, 19], nice >= own do
        assert born_with(mark, priority: nice)["nice"] == "#{nice}"
      end
    end

    # Without privileges the BEAM cannot lower its own either.
    test "that of the BEAM is kept", %{mark: mark} do
      source = ~S'''
      command = {"/bin/sh", ["sh", "-c", "nice", mark]}
      whole = [onexit: fn _ -> fn _ -> false end end]

      for behaviour <- [Stdio.Process, whole] do
        IO.inspect(Enum.to_list(Stdio.stream!(command, behaviour)))
      end
      '''

      peer = Peer.start(source, shell: "renice -n 5 $$ >/dev/null", assigns: [mark: mark])

      try do
        for _ <- 1..2, do: assert(Peer.line(peer) == ~S([stdout: "5\n", exit_status: 0]))
      after
        Peer.stop(peer)
      end
    end

    @tag :root
    test "may be raised by root", %{mark: mark} do
      assert born_with(mark, priority: -20)["nice"] == "-20"
    end

    @tag :unprivileged
    test "cannot be raised without root: nothing runs then" do
      assert op_error(priority: -1) == {:eacces, :setpriority}
    end
  end

  describe ":rlimit" do
    test "by default there are no core files, and the rest is the BEAM's", %{mark: mark} do
      limits = while_running(mark, [], &limits/1)
      assert limits["Max core file size"] == {"0", "0"}
      own = limits(Proc.os_pid())
      # Its limit of descriptors is raised; programs get the original.
      {_, hard} = own["Max open files"]
      assert {_, ^hard} = limits["Max open files"]
      ignored = ["Max core file size", "Max open files"]
      assert Map.drop(limits, ignored) == Map.drop(own, ignored)
    end

    test "replaces the default; a map, any letter case, a number", %{mark: mark} do
      own = limits(Proc.os_pid())["Max core file size"]
      assert while_running(mark, [rlimit: []], &limits/1)["Max core file size"] == own

      for rlimit <- [
            [rlimit_cpu: %{cur: 100, max: 200}],
            [RLIMIT_CPU: %{cur: 100, max: 200}],
            %{rlimit_cpu: %{cur: 100, max: 200}},
            # RLIMIT_CPU is 0 on Linux.
            %{0 => %{cur: 100, max: 200}}
          ] do
        limits = while_running(mark, [rlimit: rlimit], &limits/1)
        assert limits["Max cpu time"] == {"100", "200"}
        assert limits["Max core file size"] == own
      end
    end

    # Lower than what the program needs itself would be another test.
    @names [
      rlimit_cpu: {"Max cpu time", 1000},
      rlimit_fsize: {"Max file size", 1_000_000},
      rlimit_data: {"Max data size", 1_000_000_000},
      rlimit_stack: {"Max stack size", 1_048_576},
      rlimit_core: {"Max core file size", 0},
      rlimit_rss: {"Max resident set", 1_000_000_000},
      rlimit_nproc: {"Max processes", 100},
      rlimit_nofile: {"Max open files", 17},
      rlimit_memlock: {"Max locked memory", 65_536},
      rlimit_as: {"Max address space", 1_000_000_000},
      rlimit_locks: {"Max file locks", 10},
      rlimit_sigpending: {"Max pending signals", 11},
      rlimit_msgqueue: {"Max msgqueue size", 12},
      rlimit_nice: {"Max nice priority", 0},
      rlimit_rtprio: {"Max realtime priority", 0},
      rlimit_rttime: {"Max realtime timeout", 13}
    ]

    test "every one of them reaches the kernel", %{mark: mark} do
      rlimit = for {name, {_, value}} <- @names, do: {name, %{cur: value, max: value}}
      limits = while_running(mark, [rlimit: rlimit], &limits/1)

      for {_, {text, value}} <- @names do
        assert {text, limits[text]} == {text, {"#{value}", "#{value}"}}
      end
    end

    test "soft and hard differ; the largest number is no limit", %{mark: mark} do
      rlimit = [rlimit_nofile: %{cur: 16, max: 32}, rlimit_stack: %{cur: 65_536, max: @infinity}]
      own = limits(Proc.os_pid())["Max stack size"]
      limits = while_running(mark, [rlimit: rlimit], &limits/1)
      assert limits["Max open files"] == {"16", "32"}
      assert {"65536", hard} = limits["Max stack size"]
      assert hard == elem(own, 1)
    end

    @tag :dir
    test "has its effect", %{dir: dir} do
      one = %{cur: 1, max: 1}
      big = "head -c 10000 /dev/zero >#{dir}/big"
      assert list("exec #{big}", rlimit: [rlimit_fsize: one]) == [termsig: :sigxfsz]

      assert list("while :; do :; done", rlimit: [rlimit_cpu: one]) in [
               [termsig: :sigkill],
               [termsig: :sigxcpu]
             ]

      assert list(["/bin/cat", "/dev/null"], rlimit: [rlimit_nofile: %{cur: 4, max: 4}]) ==
               [exit_status: 0]

      # Without a free descriptor even its libraries cannot be loaded.
      elements = list(["/bin/cat", "/dev/null"], rlimit: [rlimit_nofile: %{cur: 3, max: 3}])
      assert {:exit_status, status} = Oracle.terminal!(elements)
      assert status != 0
    end

    @tag :unprivileged
    test "cannot be raised above the hard one without root" do
      config = [rlimit: [rlimit_nofile: %{cur: 8, max: @infinity}]]
      assert op_error(config) == {:eperm, :setrlimit}
    end

    test "a number that is unknown here fails closed" do
      # FreeBSD's; known to the schema, which is the same everywhere.
      assert op_error(rlimit: [rlimit_kqueues: %{cur: 1, max: 1}]) == {:enotsup, :setrlimit}
    end
  end

  test ":hostname and :fstab are other behaviours': accepted, and nothing comes of them", %{
    mark: mark
  } do
    config = [hostname: "other", fstab: ["/opt", ""]]
    assert list("uname -n", config) == list("uname -n")
    mounts = while_running(mark, config, &File.read_link!("/proc/#{&1}/ns/mnt"))
    assert mounts == File.read_link!("/proc/self/ns/mnt")
  end

  describe ":stdin" do
    test "is an open, empty pipe by default" do
      assert list("readlink /proc/self/fd/0") |> output() =~ ~r/^pipe:/
      assert list("cat", timeout: 300) == [termsig: :sigkill]
    end

    test ":null is /dev/null" do
      assert list("readlink /proc/self/fd/0", stdin: :null) |> output() == "/dev/null\n"
      assert list("cat; exit 4", stdin: :null) == [exit_status: 4]
    end
  end

  describe ":stderr" do
    @alternate "i=0; while [ $i -lt 2000 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done"

    test ":stdout is one pipe for both, in exact order", %{mark: mark} do
      born = born_with(mark, stderr: :stdout)
      assert born["fd.1"] == born["fd.2"]
      elements = list(@alternate, stderr: :stdout)
      assert Oracle.terminal!(elements) == {:exit_status, 0}
      assert output(elements, :stderr) == ""
      assert output(elements) == for(i <- 0..1999, into: "", do: "o#{i}\ne#{i}\n")
    end

    test ":separate, the default, is a pipe of its own", %{mark: mark} do
      for config <- [[], [stderr: :separate]] do
        born = born_with(mark, config)
        assert born["fd.1"] =~ "pipe:"
        assert born["fd.2"] =~ "pipe:"
        assert born["fd.1"] != born["fd.2"]
        elements = list(@alternate, config)
        assert output(elements) == for(i <- 0..1999, into: "", do: "o#{i}\n")
        assert output(elements, :stderr) == for(i <- 0..1999, into: "", do: "e#{i}\n")
      end
    end

    test ":null is /dev/null", %{mark: mark} do
      assert born_with(mark, stderr: :null)["fd.2"] == "/dev/null"

      assert list("echo a >&2; echo b; echo c >&2", stderr: :null) == [
               stdout: "b\n",
               exit_status: 0
             ]
    end
  end

  describe ":max_chunk" do
    test "is the largest element, of stdout and of stderr", %{mark: mark} do
      for {size, bytes} <- [{1, 1000}, {7, 100_000}, {65_536, 1_000_000}, {1_048_576, 3_000_000}] do
        command = [Proc.fixture("fill-pipe"), mark, "#{bytes}", "--to", "both"]
        elements = list(command, max_chunk: size)
        assert Oracle.terminal!(elements) == {:exit_status, 0}
        chunks = for {stream, chunk} <- elements, stream in [:stdout, :stderr], do: chunk
        assert Enum.all?(chunks, &(byte_size(&1) in 1..size))

        for stream <- [:stdout, :stderr] do
          assert output(elements, stream) == Fixtures.pattern(bytes)
        end
      end
    end

    test "is 65536 by default", %{mark: mark} do
      # Large writes, so that full chunks can be had at all.
      command = [Proc.fixture("fill-pipe"), mark, "5000000", "--chunk", "1000000"]
      sizes = for {:stdout, chunk} <- list(command), do: byte_size(chunk)
      assert Enum.sum(sizes) == 5_000_000
      assert Enum.max(sizes) <= 65_536
    end

    test "is full while there is more" do
      # One write, so all of it is in the pipe before anything can be read.
      elements = list("head -c 1000 /dev/zero", max_chunk: 7)
      sizes = for {:stdout, chunk} <- elements, do: byte_size(chunk)
      assert sizes == List.duplicate(7, 142) ++ [6]
    end
  end
end
