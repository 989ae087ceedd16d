Code.require_file("../../examples/inetd.ex", __DIR__)

defmodule Stdio.Examples.InetdTest do
  # examples/inetd.ex under each behaviour, and examples/inetd.exs, with TCP clients.
  use Stdio.Test.StreamCase, async: false
  @moduletag :capture_log
  @moduletag timeout: 60_000

  alias Stdio.Test.Fault

  @directories ~w(bin sbin usr lib lib64 opt tmp home proc dev)
  @deadline 10_000

  setup context do
    root = Path.join(System.tmp_dir!(), "root-" <> context.mark)
    Enum.each(@directories, &File.mkdir_p!(Path.join(root, &1)))
    File.chmod!(root, 0o755)
    on_exit(fn -> File.rm_rf!(root) end)
    {:ok, root: root}
  end

  # A service that runs a shell line, with the test's mark in its arguments, under the behaviour of
  # the tag. Returns its port.
  defp serve(line, context, opts \\ []), do: line |> server(context, opts) |> Inetd.port()

  defp server(line, context, opts) do
    behaviour = Map.get(context, :behaviour, Stdio.Process)
    path = if behaviour == Stdio.Process, do: [], else: [path: context.root]
    {config, opts} = Keyword.pop(opts, :config, [])
    command = if is_binary(line), do: ["/bin/sh", "-c", line, context.mark], else: line

    defaults = [command: command, behaviour: behaviour, config: path ++ config]
    start_supervised!({Inetd, Keyword.merge(defaults, opts)})
  end

  defp connect(port, options \\ []) do
    # A reset is not an orderly end.
    options = [:binary, active: false, exit_on_close: false, show_econnreset: true] ++ options
    {:ok, socket} = :gen_tcp.connect({127, 0, 0, 1}, port, options, @deadline)
    socket
  end

  defp line(socket) do
    :ok = :inet.setopts(socket, packet: :line)
    {:ok, line} = :gen_tcp.recv(socket, 0, @deadline)
    :ok = :inet.setopts(socket, packet: :raw)
    line
  end

  # Everything up to the end of the connection, which has to be an orderly one.
  defp rest(socket, got \\ []) do
    case :gen_tcp.recv(socket, 0, @deadline) do
      {:ok, data} -> rest(socket, [got | data])
      {:error, :closed} -> IO.iodata_to_binary(got)
    end
  end

  defp ask(port, input) do
    socket = connect(port)
    :ok = :gen_tcp.send(socket, input)
    :ok = :gen_tcp.shutdown(socket, :write)
    answer = rest(socket)
    :gen_tcp.close(socket)
    answer
  end

  defp send_megabyte(socket), do: :gen_tcp.send(socket, :binary.copy(<<0>>, 1_000_000))

  # A reset, whatever has been sent and received.
  defp abort(socket) do
    :ok = :inet.setopts(socket, linger: {true, 0})
    :gen_tcp.close(socket)
  end

  defp gone?(mark, within \\ 5000), do: Proc.wait_until(fn -> Proc.find(mark) == [] end, within)

  for {behaviour, tag} <- [
        {Stdio.Process, :linux},
        {Stdio.Rootless, :userns},
        {Stdio.Container, :root}
      ] do
    describe "#{inspect(behaviour)}:" do
      @describetag tag
      @describetag behaviour: behaviour

      test "lines are answered one by one, to each of two clients its own", context do
        port = serve("while read line; do echo \"<$line>\"; done", context)
        [one, two] = [connect(port), connect(port)]

        for n <- 1..3 do
          :ok = :gen_tcp.send(one, "one #{n}\n")
          :ok = :gen_tcp.send(two, "two #{n}\n")
          assert line(two) == "<two #{n}>\n"
          assert line(one) == "<one #{n}>\n"
        end

        assert [_, _] = Proc.find(context.mark)
        :gen_tcp.close(one)
        assert Proc.wait_until(fn -> match?([_], Proc.find(context.mark)) end)

        :ok = :gen_tcp.send(two, "still\n")
        assert line(two) == "<still>\n"
        :ok = :gen_tcp.shutdown(two, :write)
        assert rest(two) == ""
        assert gone?(context.mark)
      end

      test "megabytes both ways at once", context do
        port = serve("cat", context)
        data = :crypto.strong_rand_bytes(8_000_000)
        socket = connect(port)

        sender =
          Task.async(fn ->
            :ok = :gen_tcp.send(socket, data)
            :gen_tcp.shutdown(socket, :write)
          end)

        assert Fixtures.sha256(rest(socket)) == Fixtures.sha256(data)
        assert Task.await(sender) == :ok
      end

      test "a client that has shut down its sending side gets all that follows", context do
        port = serve("sha256sum; sleep 0.7; echo later; echo err >&2; echo last", context)
        data = Fixtures.pattern(3_000_000)
        digest = Fixtures.sha256(data)
        assert ask(port, data) == "#{digest}  -\nlater\nerr\nlast\n"
      end

      test "so does one that is slow to read it", context do
        port = serve("head -c 12000000 /dev/zero; cat", context)
        socket = connect(port)
        # The output is held up by now.
        Process.sleep(500)
        :ok = :gen_tcp.send(socket, "end")
        :ok = :gen_tcp.shutdown(socket, :write)
        Process.sleep(500)
        answer = rest(socket)
        assert {byte_size(answer), binary_part(answer, 12_000_000, 3)} == {12_000_003, "end"}
      end

      test "the end of the program closes the connection, and ends what is left", context do
        port = serve("setsid sh -c 'sleep 1000; :' $0 & echo bye; exit 3", context)
        socket = connect(port)
        assert rest(socket) == "bye\n"
        assert gone?(context.mark)
      end

      test "output reaches a client whose input nobody has read", context do
        port = serve("head -c 1 > /dev/null; head -c 2000000 /dev/zero", context)
        socket = connect(port)
        # More than the program will read; sent from aside, as it may not all be taken.
        sender = Task.async(fn -> :gen_tcp.send(socket, Fixtures.pattern(500_000)) end)
        # The program may well have ended when the client begins to read.
        Process.sleep(1000)
        assert byte_size(rest(socket)) == 2_000_000
        Task.shutdown(sender)
      end

      test "a client that is gone ends a program that ignores it", context do
        line = "trap '' TERM HUP; setsid sh -c 'sleep 1000; :' $0 & echo ready; sleep 1000; :"
        port = serve(line, context)

        # Neither reads nor writes any more; reset.
        socket = connect(port)
        assert line(socket) == "ready\n"
        Fault.await_marked(context.mark, 2)
        abort(socket)
        assert gone?(context.mark)

        # Closed in order; its system is asked, and has forgotten the connection after a second.
        tcp_linger2 = {:raw, 6, 8, <<1::native-32>>}
        stop_supervised!({Inetd, 0})
        port = serve(line, context, keepalive: 1)
        socket = connect(port, [tcp_linger2])
        assert line(socket) == "ready\n"
        :gen_tcp.close(socket)
        assert gone?(context.mark, 10_000)
      end

      test "a client that is gone ends a program that writes, or does not take its input",
           context do
        port = serve("while :; do echo tick; sleep 0.05; done", context)
        socket = connect(port)
        assert line(socket) == "tick\n"
        :gen_tcp.close(socket)
        assert gone?(context.mark)

        stop_supervised!({Inetd, 0})
        port = serve("echo ready; sleep 1000; :", context)
        socket = connect(port)
        assert line(socket) == "ready\n"
        # All buffers on the way are full.
        :ok = :inet.setopts(socket, send_timeout: 500)
        assert 64 > Enum.find(1..64, 64, fn _ -> send_megabyte(socket) == {:error, :timeout} end)
        abort(socket)
        assert gone?(context.mark)
      end

      test "stopping the service ends it all", context do
        line = "setsid sh -c 'sleep 1000; :' $0 & echo ready; cat; sleep 1000; :"
        port = serve(line, context)
        sockets = for _ <- 1..3, do: connect(port)
        for socket <- sockets, do: assert(line(socket) == "ready\n")
        stop_supervised!({Inetd, 0})
        assert gone?(context.mark)
        for socket <- sockets, do: assert({:error, _} = :gen_tcp.recv(socket, 0, @deadline))
        assert {:error, :econnrefused} = :gen_tcp.connect({127, 0, 0, 1}, port, [])
      end
    end
  end

  describe "isolation:" do
    @line "id -u; cat /proc/sys/kernel/hostname; ls /; ps -e -o pid= | wc -l"

    @tag :userns
    @tag behaviour: Stdio.Rootless
    test "Stdio.Rootless", context do
      assert [uid, host | names] = isolated(context, hostname: "box")
      assert {uid, host} == {"65534", "box"}
      {directories, [processes]} = Enum.split(names, -1)
      assert directories == Enum.sort(@directories)
      # Of the namespace: its first one, sh, ps, wc.
      assert String.to_integer(processes) <= 4
    end

    @tag :root
    @tag behaviour: Stdio.Container
    test "Stdio.Container: each client has a uid of its own", context do
      assert [one, "box" | names] = isolated(context, hostname: "box")
      {directories, [processes]} = Enum.split(names, -1)
      assert directories == Enum.sort(@directories)
      assert String.to_integer(processes) <= 3

      stop_supervised!({Inetd, 0})
      assert [two, "box" | _] = isolated(context, hostname: "box")
      for uid <- [one, two], do: assert(String.to_integer(uid) >= 0x10000)
      assert one != two
    end

    test "Stdio.Process has none", context do
      assert [uid, host | names] = isolated(context, [])
      # Root's programs run under a uid of their own all the same.
      assert root?() or String.to_integer(uid) == beam_uid()
      assert host == String.trim(File.read!("/proc/sys/kernel/hostname"))
      assert "etc" in names
    end

    defp isolated(context, config),
      do: @line |> serve(context, config: config) |> ask("") |> String.split()
  end

  describe "the service:" do
    test "no more connections than it may have", context do
      port = serve("cat; :", context, max: 2)
      [one, two] = for _ <- 1..2, do: connect(port)

      for socket <- [one, two] do
        :ok = :gen_tcp.send(socket, "a\n")
        assert line(socket) == "a\n"
      end

      assert rest(connect(port)) == ""
      assert [_, _] = Proc.find(context.mark)

      # A place is free again.
      :gen_tcp.close(one)

      assert Proc.wait_until(fn -> answers?(port) end)

      :ok = :gen_tcp.send(two, "c\n")
      assert line(two) == "c\n"
    end

    # Of a service that runs `cat`; it may refuse.
    defp answers?(port) do
      socket = connect(port)
      :gen_tcp.send(socket, "b")
      answer = :gen_tcp.recv(socket, 1, @deadline)
      :gen_tcp.close(socket)
      answer == {:ok, "b"}
    end

    test "a command that cannot be started closes its connection and nothing else", context do
      server = server(["/nonexistent"], context, [])
      port = Inetd.port(server)
      children = Supervisor.which_children(server)
      for _ <- 1..5, do: assert(rest(connect(port)) == "")
      assert Supervisor.which_children(server) == children
    end

    test "an acceptor that is restarted keeps the port", context do
      server = server("cat", context, [])
      port = Inetd.port(server)
      [acceptor] = for {{:acceptor, _}, pid, _, _} <- Supervisor.which_children(server), do: pid
      socket = connect(port)
      :ok = :gen_tcp.send(socket, "a\n")
      assert line(socket) == "a\n"
      Process.exit(acceptor, :kill)
      assert Proc.wait_until(fn -> answers?(port) end)
      assert Inetd.port(server) == port
      :ok = :gen_tcp.send(socket, "c\n")
      assert line(socket) == "c\n"
    end

    test "options are checked when it starts" do
      assert_raise ArgumentError, ~r/unknown option :foo/, fn ->
        Inetd.start_link(command: "cat", config: [foo: 1])
      end

      for wrong <- [prot: 1, port: 65_536, max: 0, keepalive: 0, listen: "localhost"] do
        assert_raise ArgumentError, fn -> Inetd.start_link([wrong, command: "cat"]) end
      end

      # Before OTP 26 start_link leaves a message of the exit behind.
      Process.flag(:trap_exit, true)
      {:ok, socket} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
      {:ok, port} = :inet.port(socket)
      assert Inetd.start_link(command: "cat", port: port) == {:error, {:listen, :eaddrinuse}}
    end

    test "timeout: bounds the program, and the connection of a client that does not read",
         context do
      port = serve("sleep 1000; :", context, config: [timeout: 300])
      {elapsed, ""} = timed(fn -> rest(connect(port)) end)
      assert elapsed in 300..5000

      stop_supervised!({Inetd, 0})
      port = serve("yes; :", context, max: 1, config: [timeout: 300, kill_timeout: 0])
      socket = connect(port)
      assert [_ | _] = Fault.await_marked(context.mark, 1)
      assert gone?(context.mark)
      # Its place is free again.
      assert Proc.wait_until(fn -> byte_size(some(port)) > 0 end, @deadline)
      :gen_tcp.close(socket)
    end

    defp some(port) do
      socket = connect(port)
      result = :gen_tcp.recv(socket, 0, @deadline)
      :gen_tcp.close(socket)
      with {:error, _} <- result, do: "", else: ({:ok, data} -> data)
    end

    test "a client that does not read stops the program, in bounded memory", context do
      port = serve("yes; :", context)
      socket = connect(port)
      pid = shell(context.mark)
      # Waits in a write to its pipe.
      assert Proc.wait_until(fn -> blocked?(pid) end, @deadline)
      before = written(pid)
      memory = :erlang.memory(:total)
      Process.sleep(500)
      assert written(pid) == before
      assert :erlang.memory(:total) - memory < 4_000_000
      # And lets it go on.
      for _ <- 1..200, do: {:ok, _} = :gen_tcp.recv(socket, 65_536, @deadline)
      assert Proc.wait_until(fn -> written(pid) > before end)
      abort(socket)
      assert gone?(context.mark)
    end

    # The shell that runs `yes`. What it forks looks like it until it execs; the script's own
    # arguments have the mark too.
    defp shell(mark) do
      one = fn ->
        shell? = &String.starts_with?(Proc.cmdline(&1), "/bin/sh\0-c\0yes")
        with [pid] <- Enum.filter(Proc.find(mark), shell?), do: pid, else: (_ -> nil)
      end

      assert pid = Proc.wait_until(one, @deadline)
      pid
    end

    # By the shell's only child, `yes`.
    defp written(shell) do
      [pid] = Proc.wait_until(fn -> if match?([_], pids = Proc.children(shell)), do: pids end)
      io = File.read!("/proc/#{pid}/io")
      [_, bytes] = Regex.run(~r/^wchar: (\d+)/m, io)
      String.to_integer(bytes)
    end

    # One that writes nothing for a while may only have had no turn.
    defp blocked?(pid) do
      first = written(pid)
      Process.sleep(500)
      states = for child <- Proc.children(pid), %{state: state} <- [Proc.stat(child)], do: state
      written(pid) == first and first > 0 and states == ["S"]
    end
  end

  describe "the script:" do
    test "serves, reports a free port, and ends with all of its programs", %{mark: mark} do
      script =
        start_script(
          ~w(--port 0 --timeout 30000 --max 2 --env GREETING=hi -- sh -c) ++
            ["echo $GREETING; sed -u s/hello/bye/; sleep 1000; :", mark]
        )

      assert "listening on 127.0.0.1 " <> port = output_line(script)
      socket = connect(String.to_integer(port))
      assert line(socket) == "hi\n"
      :ok = :gen_tcp.send(socket, "hello you\n")
      assert line(socket) == "bye you\n"
      :ok = :gen_tcp.shutdown(socket, :write)
      assert [_ | _] = Proc.find(mark) -- [script.os_pid]
      :ok = Proc.kill(script.os_pid, "TERM")
      assert exit_status(script) == 0
      assert gone?(mark)
    end

    test "ends by SIGTERM when a client takes nothing", %{mark: mark} do
      script = start_script(["0=yes; : #{mark}"])
      socket = script |> output_line() |> port_of() |> connect()
      shell = shell(mark)
      assert Proc.wait_until(fn -> blocked?(shell) end, @deadline)
      :ok = Proc.kill(script.os_pid, "TERM")
      assert {elapsed, 0} = timed(fn -> exit_status(script) end)
      assert elapsed < 5000
      assert gone?(mark)
      :gen_tcp.close(socket)
    end

    test "several services, each with its behaviour", %{mark: mark, root: root} do
      items = ["0=echo plain #{mark}", "0/process=cat"]
      script = start_script(["--root", root] ++ items)
      [plain, cat] = for _ <- 1..2, do: script |> output_line() |> port_of()
      assert ask(plain, "") == "plain #{mark}\n"
      assert ask(cat, "abc") == "abc"
      :ok = Proc.kill(script.os_pid, "TERM")
      assert exit_status(script) == 0
    end

    @tag :userns
    test "a rootless service, in a root tree it has made", %{root: root} do
      root = Path.join(root, "new")
      script = start_script(["--root", root, "0/rootless=id -u; pwd"])
      assert script |> output_line() |> port_of() |> ask("") == "65534\n/\n"
      :ok = Proc.kill(script.os_pid, "TERM")
      assert exit_status(script) == 0
    end

    test "--help, and what it does not understand" do
      script = start_script(["--help"])
      assert output_line(script) =~ ~r/^Usage: mix run examples\/inetd.exs/
      assert exit_status(script) == 0

      for args <- [[], ["--foo", "0=cat"], ["cat"], ["0/jail=cat"], ["--listen", "x", "0=cat"]] do
        assert {args, args |> start_script() |> exit_status()} == {args, 2}
      end

      assert ["--timeout", "0", "0=cat"] |> start_script() |> exit_status() == 1
    end

    defp port_of("listening on 127.0.0.1 " <> port), do: String.to_integer(port)

    # As `mix run examples/inetd.exs -- ...` runs it: with a `--` first.
    defp start_script(args) do
      ebin = Application.app_dir(:stdio, "ebin")
      script = Path.expand("../../examples/inetd.exs", __DIR__)
      elixir = System.find_executable("elixir")
      # Its usage and its log are not ours.
      shell = ["-c", "exec \"$@\" 2> /dev/null", "sh", elixir, "-pa", ebin, script, "--"]
      options = [:binary, :exit_status, line: 65_536, args: shell ++ args]
      port = Port.open({:spawn_executable, "/bin/sh"}, options)
      {:os_pid, os_pid} = Port.info(port, :os_pid)
      start = Proc.stat(os_pid).start
      # Should the test fail before it ends; the start time tells it from another with its pid.
      on_exit(fn -> if match?(%{start: ^start}, Proc.stat(os_pid)), do: Proc.kill(os_pid) end)
      %{port: port, os_pid: os_pid}
    end

    defp output_line(%{port: port}) do
      receive do
        {^port, {:data, {:eol, line}}} -> line
        {^port, {:exit_status, status}} -> flunk("the script has ended: #{status}")
      after
        20_000 -> flunk("the script says nothing")
      end
    end

    defp exit_status(%{port: port} = script) do
      receive do
        {^port, {:exit_status, status}} -> status
        {^port, {:data, _}} -> exit_status(script)
      after
        20_000 -> flunk("the script does not end")
      end
    end
  end
end
