defmodule Stdio.Test.OracleTest do
  # What the other tests conclude from has to be seen to fail. No Stdio in here: programs are
  # started by ports, which leave them behind.
  use ExUnit.Case

  alias Stdio.Test.{Fixtures, Oracle, Peer, Proc}

  @moduletag :testbin

  defp start(name, args) do
    before = pipes()

    port =
      Port.open(
        {:spawn_executable, Proc.fixture(name)},
        [:binary, :exit_status, {:line, 1000}, args: args]
      )

    opened = pipes() -- before

    # A port that is over, as it says itself, has yet to close them: the next test would count them.
    on_exit(fn -> assert Proc.wait_until(fn -> opened -- pipes() == opened end) end)
    assert_receive {^port, {:data, {:eol, "ready"}}}, 5000
    port
  end

  defp pipes, do: for({_, "pipe:" <> _ = pipe} <- Proc.fds(), do: pipe)

  defp failure(fun), do: assert_raise(ExUnit.AssertionError, fun).message

  # The loading of code opens descriptors; ports of the tests before may have yet to close theirs.
  setup_all do
    Oracle.clean(fn mark -> Proc.sweep(mark) end, except: [:messages])
    settle(pipes(), 100)
  end

  defp settle(before, tries) when tries > 0 do
    Process.sleep(50)

    case pipes() do
      ^before -> :ok
      now -> settle(now, tries - 1)
    end
  end

  test "what is cleaned up is clean" do
    result =
      Oracle.clean(fn mark ->
        port = start("fork-tree", [mark, "2", "3"])
        {:os_pid, pid} = Port.info(port, :os_pid)
        assert length(Proc.find(mark)) == 13
        assert length(Proc.children(pid)) == 3
        assert length(Proc.descendants(pid)) == 12
        assert Proc.status(pid)["name"] == "fork-tree"
        assert Proc.alive?(pid)
        Port.close(port)
        # Closing a port ends no program.
        assert Proc.time_until(fn -> Proc.gone?(mark) end, 50) == nil
        Proc.sweep(mark)
        assert Proc.wait_until(fn -> not Proc.alive?(pid) end)
        :result
      end)

    assert result == :result
  end

  test "daemons are shown, with descriptors and messages, and are killed" do
    test = self()

    message =
      failure(fn ->
        Oracle.clean(
          fn mark ->
            send(test, mark)
            start("fork-tree", [mark, "1", "2", "--setsid", "--double-fork"])
          end,
          within: 100
        )
      end)

    assert_received "mark-" <> _ = mark
    assert message =~ ~r/marked:(\n    \d+ fork-tree .* 1 2 --setsid --double-fork"){3}\n/
    assert message =~ ~r/fds:(\n    fd \d+ -> pipe:\S+){2}\n/
    assert message =~ ~s(messages:\n    "#{mark}")
    assert Proc.gone?(mark)
    assert_receive {port, {:exit_status, 137}} when is_port(port)
  end

  test "a message is seen that has come since the last receive" do
    test = self()

    leave = fn mark ->
      pid = spawn(fn -> send(test, mark) end)
      assert Proc.wait_until(fn -> not Process.alive?(pid) end)
    end

    message = failure(fn -> Oracle.clean(leave, within: 100) end)
    assert_received mark
    assert message =~ ~s(messages:\n    "#{mark}")
  end

  test "a process that changes its pid all the time is seen" do
    args = ["1", "--pause-us", "2000", "--leader-exits", "0"]

    assert failure(fn ->
             Oracle.clean(fn mark -> start("hopper", [mark | args]) end, within: 100)
           end) =~ "marked:"

    assert_receive {port, {:exit_status, 0}} when is_port(port)
  end

  test "an exception goes on, what was started does not" do
    test = self()

    assert_raise RuntimeError, "mine", fn ->
      Oracle.clean(fn mark ->
        send(test, mark)
        start("ignore-term", [mark])
        raise "mine"
      end)
    end

    assert_received "mark-" <> _ = mark
    assert Proc.gone?(mark)
  end

  test "exactly one terminal element, the last one" do
    assert Oracle.terminal!(stdout: "x", exit_status: 0) == {:exit_status, 0}
    assert failure(fn -> Oracle.terminal!(exit_status: 0, stdout: "x") end) =~ "not the last"
    assert failure(fn -> Oracle.terminal!(stdout: "x") end) =~ "0 terminal"

    assert failure(fn -> Oracle.terminal!(exit_status: 0, termsig: :sigkill) end) =~
             "2 terminal"
  end

  test "a peer BEAM has its own limits, and its programs survive its SIGKILL" do
    mark = Proc.mark()

    source = """
    Port.open({:spawn_executable, fixture}, [:binary, args: [mark, "1", "1"]])
    receive do {_, {:data, "ready\\n"}} -> IO.puts("up") end
    {limit, 0} = System.cmd("/bin/sh", ["-c", "ulimit -Sn"])
    IO.puts([String.trim(limit), " ", inspect(Code.ensure_loaded?(Stdio.Test.Proc))])
    """

    assigns = [mark: mark, fixture: Proc.fixture("fork-tree")]
    peer = Proc.peer_beam(source, nofile: 256, assigns: assigns)
    assert Peer.line(peer) == "up"
    assert Peer.line(peer) == "256 true"
    assert Peer.line(peer, 10) == :timeout
    assert length(Proc.find(mark)) == 2
    Peer.kill(peer)
    refute Proc.alive?(peer.os_pid)
    assert length(Proc.find(mark)) == 2
    Proc.sweep(mark)
    refute_received _
  end

  test "a peer BEAM ends when it is stopped" do
    peer = Proc.peer_beam("")
    Peer.stop(peer)
    refute Proc.alive?(peer.os_pid)
    refute_received _
  end

  test "the pattern is what fill-pipe writes" do
    {output, 0} = System.cmd(Proc.fixture("fill-pipe"), ["mark", "10000"])
    assert output == Fixtures.pattern(10_000)

    {output, 0} =
      System.cmd(Proc.fixture("fill-pipe"), ["mark", "10000", "--to", "stderr", "--digest"],
        stderr_to_stdout: true
      )

    assert String.ends_with?(output, "10000 #{Fixtures.sha256(Fixtures.pattern(10_000))}\n")
  end
end
