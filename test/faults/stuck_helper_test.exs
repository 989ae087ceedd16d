defmodule Stdio.Faults.StuckHelperTest do
  # FAULTS row 8: helpers that do not die but stop (SIGSTOP). Whoever waits for one has a deadline:
  # the BEAM's is kill_timeout and 7 s, then the launcher kills the supervisor and its tree; the
  # launcher's is 6 s after the BEAM's death.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault
  alias Stdio.Test.Peer

  @moduletag :testbin
  @moduletag timeout: 120_000
  @stubborn ~w(2 2 --setsid --double-fork --ignore-term)
  # Each deadline, and a second for a busy machine.
  @beam_deadline 8_000
  @launcher_deadline 7_000

  setup do
    %{launcher: warm_up()}
  end

  defp tree(mark), do: [Proc.fixture("fork-tree"), mark | @stubborn]

  defp stop_supervisor(mark) do
    await_marked(mark, 7)
    supervisor = supervisor_of(mark)
    assert Proc.kill(supervisor, "STOP") == :ok
    assert Proc.wait_until(fn -> match?(%{state: "T"}, Proc.stat(supervisor)) end)
    supervisor
  end

  # Every scenario waits for a deadline, so they wait side by side.
  test "no tree outlives a stopped helper's deadline", %{launcher: launcher} do
    scenarios = [
      {"supervisor stopped, consumer halts", &halts/1},
      {"supervisor stopped, consumer raises", &raises/1},
      {"supervisor stopped, consumer halts in a grace period", &halts_with_grace/1},
      {"supervisor stopped, consumer is killed", &killed/1},
      {"supervisor stopped, then killed", &supervisor_killed/1},
      {"supervisor stopped, BEAM is killed", &beam_killed/1},
      {"launcher stopped, BEAM is killed", &launcher_stopped/1}
    ]

    running =
      for {name, scenario} <- scenarios do
        mark = Proc.mark()
        {name, mark, aside(fn -> scenario.(mark) end)}
      end

    for {name, mark, task} <- running do
      {time, deadline} = await(task, 30_000)
      assert time <= deadline, "#{name}: #{time} ms"
      assert Proc.wait_until(fn -> Proc.gone?(mark) end), "#{name}: #{inspect(Proc.find(mark))}"
      report("row 8, #{name}: #{time} ms")
    end

    assert launcher() == launcher
    assert list("true") == [exit_status: 0]
  end

  # From the stop of the supervisor to the end of the enumeration.
  defp enumerate(mark, config, halt) do
    me = self()

    result =
      try do
        Stdio.stream!(tree(mark), Stdio.Process, config)
        |> Enum.reduce_while(nil, fn {:stdout, "ready\n"}, nil ->
          stop_supervisor(mark)
          send(me, {:stopped, System.monotonic_time()})
          halt.()
        end)
      catch
        :oops -> :thrown
      end

    # It returns when the tree is gone.
    assert Proc.find(mark) == []
    assert_received {:stopped, started}
    {result, elapsed(started)}
  end

  defp halts(mark) do
    assert {:halted, time} = enumerate(mark, [kill_timeout: 0], fn -> {:halt, :halted} end)
    {time, @beam_deadline}
  end

  defp raises(mark) do
    assert {:thrown, time} = enumerate(mark, [kill_timeout: 0], fn -> throw(:oops) end)
    {time, @beam_deadline}
  end

  defp halts_with_grace(mark) do
    config = [kill_signal: :sigterm, kill_timeout: 1_000]
    assert {:halted, time} = enumerate(mark, config, fn -> {:halt, :halted} end)
    {time, 1_000 + @beam_deadline}
  end

  defp killed(mark) do
    consumer = spawn(fn -> Stdio.stream!(tree(mark)) |> Stream.run() end)
    stop_supervisor(mark)
    started = System.monotonic_time()
    Process.exit(consumer, :kill)
    assert Proc.wait_until(fn -> Proc.find(mark) == [] end, @beam_deadline)
    {elapsed(started), @beam_deadline}
  end

  # Needs no deadline: that a stopped process dies of SIGKILL is all that is known of it.
  defp supervisor_killed(mark) do
    task = aside(fn -> outcome(Stdio.stream!(tree(mark))) end)
    supervisor = stop_supervisor(mark)
    started = System.monotonic_time()
    assert Proc.kill(supervisor, 9) == :ok
    assert await(task) == {:termsig, :sigkill}
    {elapsed(started), 2_000}
  end

  defp beam_killed(mark) do
    peer = Proc.peer_beam("Stdio.stream!(argv) |> Stream.run()", assigns: [argv: tree(mark)])

    stop_supervisor(mark)
    helpers = helpers(launcher(peer.os_pid))
    Peer.kill(peer)
    started = System.monotonic_time()
    gone? = fn -> Proc.find(mark) == [] and not Enum.any?(helpers, &Proc.alive?/1) end
    assert Proc.wait_until(gone?, @launcher_deadline)
    {elapsed(started), @launcher_deadline}
  end

  # In the peer: what the spare supervisor can do does not need the launcher. With it at work, the next
  # start does.
  @starts """
  spawn(fn -> Stdio.stream!(argv) |> Stream.run() end)
  Stdio.Test.Fault.await_marked(mark, 7)

  # One that is not this program's, and has a child that waits for the next.
  spare? = fn ->
    supervisors = Stdio.Test.Fault.supervisors(Stdio.Test.Fault.launcher())
    Enum.any?(supervisors, &match?([_], Stdio.Test.Fault.waiting(&1)))
  end

  true = Stdio.Test.Proc.wait_until(spare?, 10_000)
  Stdio.Test.Proc.kill(Stdio.Test.Fault.launcher(), "STOP")

  try_it = fn ->
    case Stdio.Test.Fault.outcome(Stdio.stream!("true")) do
      {:exit_status, 0} -> IO.puts("worked")
      {:error, %Stdio.StreamError{action: "supervisor", reason: reason}} -> IO.puts(reason)
      other -> IO.puts(inspect(other))
    end
  end

  for _ <- 1..3 do
    try_it.()
    true = Stdio.Test.Proc.wait_until(spare?, 10_000)
  end

  spawn(fn -> Stdio.stream!("sleep 1000; : " <> mark) |> Stream.run() end)
  Stdio.Test.Fault.await_marked(mark, 8)
  try_it.()
  """

  # The launcher's deadline is 5 s of silence. Supervisors do not need it to see the BEAM die.
  defp launcher_stopped(mark) do
    peer = Proc.peer_beam(@starts, assigns: [argv: tree(mark), mark: mark])
    for _ <- 1..3, do: assert(Peer.line(peer) == "worked")
    launcher = launcher(peer.os_pid)

    try do
      assert Peer.line(peer, 15_000) == "etimedout"
      started = System.monotonic_time()
      Peer.kill(peer)
      assert Proc.wait_until(fn -> Proc.gone?(mark) end)
      {elapsed(started), 2_000}
    after
      Proc.kill(launcher, "CONT")
      assert Proc.wait_until(fn -> helpers(launcher) == [] end)
    end
  end
end
