defmodule Stdio.Faults.BeamDeathTest do
  # FAULTS rows 1, 2 and part of 3: SIGKILL for a second BEAM. Nothing of its trees, launcher and
  # supervisors may be left. The promise is 250 ms on an idle machine; asserted is what also holds
  # on a busy one, and what was measured is printed.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault
  alias Stdio.Test.Peer

  @moduletag :testbin
  @moduletag timeout: 120_000
  @deadline 2000

  setup_all do
    warm_up()
    :ok
  end

  # Each stream in a process of its own; `programs` and `config` are variables of the peer.
  @stream_all """
  for argv <- programs do
    spawn(fn -> Stdio.stream!(argv, Stdio.Process, config) |> Stream.run() end)
  end
  """

  # Milliseconds from SIGKILL for the BEAM to the end of everything it had started.
  defp kill_and_time(peer, mark, launcher) do
    victims = Enum.uniq(Proc.find(mark) ++ helpers(launcher))
    started = System.monotonic_time()
    assert Proc.kill(peer.os_pid, 9) == :ok
    # These few are looked at often; whether they were all is asked afterwards.
    known? = Proc.wait_until(fn -> not Enum.any?(victims, &Proc.alive?/1) end, @deadline)
    time = elapsed(started)
    assert known?, "alive after #{@deadline} ms: #{inspect(Enum.map(victims, &Proc.stat/1))}"
    assert Proc.wait_until(fn -> Proc.gone?(mark) end, @deadline)
    assert Proc.wait_until(fn -> helpers(launcher) == [] end, @deadline)
    Peer.kill(peer)
    time
  end

  defp rounds(count, mark, programs, processes, config \\ []) do
    for _ <- 1..count do
      peer = Proc.peer_beam(@stream_all, assigns: [programs: programs, config: config])
      await_marked(mark, processes)
      kill_and_time(peer, mark, launcher(peer.os_pid))
    end
  end

  test "row 1: a child that reads, and one that never would", %{mark: mark} do
    # At the end of its stdin the first one ends by itself, as it would without any supervision.
    programs = [[Proc.fixture("digest"), mark], [Proc.fixture("never-read"), mark]]
    times = rounds(size(4, 100), mark, programs, 2)
    report("row 1, BEAM killed, child reads: #{spread(times)}")
  end

  @stubborn ~w(2 3 --setsid --double-fork --ignore-term)

  test "row 2: a tree with sessions of its own, double forks and no ear for TERM", %{mark: mark} do
    programs = [[Proc.fixture("fork-tree"), mark | @stubborn]]
    times = rounds(size(4, 100), mark, programs, 1 + 3 + 9)
    report("row 2, BEAM killed, stubborn tree: #{spread(times)}")
  end

  # Prints `term` when it is asked to end, and goes on.
  @grace """
  config = [timeout: 1500, kill_signal: :sigterm, kill_timeout: 60_000]

  Stdio.stream!([program, mark, "--report"], Stdio.Process, config)
  |> Enum.each(fn {:stdout, text} -> IO.write(text) end)
  """

  test "row 2, while a grace period runs: it never delays a tree whose owner died", %{mark: mark} do
    times =
      for _ <- 1..2 do
        peer = Proc.peer_beam(@grace, assigns: [program: Proc.fixture("ignore-term"), mark: mark])

        assert Peer.line(peer) == "ready"
        assert Peer.line(peer) == "term"
        kill_and_time(peer, mark, launcher(peer.os_pid))
      end

    report("row 2, BEAM killed in the grace period: #{spread(times)}")
  end

  @tag :userns
  test "row 2, in a PID namespace", %{mark: mark} do
    programs = [[Proc.fixture("fork-tree"), mark | @stubborn]]
    times = rounds(2, mark, programs, 1 + 3 + 9, containment: :pid_namespace)
    report("row 2, BEAM killed, PID namespace: #{spread(times)}")
  end

  # Starts and ends streams all the time, so that the kill hits every stage of both.
  @churn """
  for _ <- 1..4 do
    spawn(fn ->
      Enum.each(Stream.cycle([:whole, :halted]), fn
        :whole -> Stdio.stream!(tree ++ ["--leader-exits", "0"]) |> Stream.run()
        :halted -> Stdio.stream!(tree) |> Enum.take(1)
      end)
    end)
  end
  """

  test "row 3, a sample: at any moment of starts and ends", %{mark: mark} do
    tree = [Proc.fixture("fork-tree"), mark, "1", "2", "--setsid", "--double-fork"]

    times =
      for _ <- 1..size(4, 100) do
        peer = Proc.peer_beam(@churn, assigns: [tree: tree])
        await_marked(mark, 1)
        pause_us(:rand.uniform(100_000))
        kill_and_time(peer, mark, launcher(peer.os_pid))
      end

    report("row 3, BEAM killed during starts and ends: #{spread(times)}")
  end
end
