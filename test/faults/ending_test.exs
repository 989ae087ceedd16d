defmodule Stdio.Faults.EndingTest do
  # FAULTS rows 22, 23, 25, 26, 27: programs that end in odd ways, or not when they are told to.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault

  @moduletag :testbin
  @moduletag timeout: 120_000

  setup_all do
    warm_up()
    :ok
  end

  for flags <- [[], ["--stderr"]] do
    @tag flags: flags
    test "row 22: the end of output is not the exit #{inspect(flags)}", context do
      %{mark: mark, flags: flags} = context
      argv = [Proc.fixture("close-stdout"), mark, "300", "7" | flags]
      {time, elements} = timed(fn -> list(argv) end)
      assert elements == [stdout: "closing\n", exit_status: 7]
      assert time >= 300
    end
  end

  for flags <- [[], ["--setsid"]] do
    @tag flags: flags
    test "row 23: a daemon holds the pipes after the program's exit #{inspect(flags)}", context do
      %{mark: mark, flags: flags} = context
      argv = [Proc.fixture("hold-pipe"), mark, "60", "--code", "3" | flags]

      times =
        for _ <- 1..20 do
          {time, elements} = timed(fn -> list(argv) end)
          # It is part of the tree, so it goes first: nothing has to be waited for.
          assert elements == [stdout: "ready\n", exit_status: 3]
          assert Proc.find(mark) == []
          time
        end

      report("row 23, daemon holds the pipes, whole stream: #{spread(times)}")
    end
  end

  # Everything below is over in some hundred ms; later the NIF's own deadline, 7 s, would help.
  @soon 5_000

  for holder <- [["never-read"], ["fill-pipe", "100000000000"]] do
    @tag holder: holder
    test "row 23: a process outside of the tree holds stdout: #{hd(holder)}", context do
      %{mark: mark, holder: holder} = context
      time = held_from_outside(mark, holder)
      report("row 23, #{hd(holder)} holds the pipe from outside: terminal after #{time} ms")
      # CONTRACT 6.2: 100 ms. Some for a busy machine.
      assert time < 500
    end
  end

  # How long after the program's end the terminal element comes.
  defp held_from_outside(mark, [name | words]) do
    outside = Proc.mark()

    task =
      aside(fn ->
        terminal = outcome(Stdio.stream!([Proc.fixture("never-read"), mark]))
        {terminal, System.monotonic_time()}
      end)

    [pid] = await_marked(mark, 1)
    port = hold_from_outside(pid, [name, outside | words])
    await_marked(outside, 1)
    # That a flood is under way.
    Process.sleep(50)
    started = System.monotonic_time()
    assert Proc.kill(pid, "TERM") == :ok
    assert {{:termsig, :sigterm}, ended} = await(task)
    time = System.convert_time_unit(ended - started, :native, :millisecond)
    # The port closes with it.
    Proc.sweep(outside)
    assert Proc.wait_until(fn -> Port.info(port) == nil end)
    time
  end

  @tree ~w(2 2 --stop)

  test "row 25: a tree that stops itself is killed", %{mark: mark} do
    tree = [Proc.fixture("fork-tree"), mark | @tree]
    {halted, [stdout: "ready\n"]} = timed(fn -> tree |> Stdio.stream!() |> Enum.take(1) end)
    assert Proc.find(mark) == []

    {timeout, time, elements} = with_timeout(&list(tree, timeout: &1))
    assert elements == [stdout: "ready\n", termsig: :sigkill]
    late = time - timeout

    # A stopped process does not even see a SIGTERM.
    config = [kill_signal: :sigterm, kill_timeout: 300]
    {timeout, time, elements} = with_timeout(&list(tree, [timeout: &1] ++ config))
    assert elements == [stdout: "ready\n", termsig: :sigkill]
    latest = time - timeout
    assert latest >= 300
    assert halted < @soon
    for time <- [late, latest], do: assert(time < @soon - 300)

    report(
      "row 25, stopped tree: halt #{halted}, after a timeout #{late}, with a grace of 300 #{latest} ms"
    )
  end

  test "row 26: SIGKILL at the deadline, to the whole tree", %{mark: mark} do
    ignore = [Proc.fixture("ignore-term"), mark, "--report"]
    config = [kill_signal: :sigterm, kill_timeout: 200]

    deviations =
      for _ <- 1..8 do
        {timeout, time, elements} = with_timeout(&list(ignore, [timeout: &1] ++ config))
        assert output(elements) == "ready\nterm\n"
        assert Oracle.terminal!(elements) == {:termsig, :sigkill}
        late = time - timeout - 200
        assert late in 0..(@soon - 350)
        late
      end

    report("row 26, KILL after TIMEOUT and grace, late by: #{spread(deviations)}")

    tree = [Proc.fixture("fork-tree"), mark, "2", "2", "--setsid", "--ignore-term"]
    {_, _, elements} = with_timeout(&list(tree, [timeout: &1] ++ config))
    assert elements == [stdout: "ready\n", termsig: :sigkill]
  end

  test "row 26: halted, a deadline from then on", %{mark: mark} do
    argv = [Proc.fixture("ignore-term"), mark]
    config = [kill_signal: :sigterm, kill_timeout: 200]

    times =
      for _ <- 1..5 do
        stream = Stdio.stream!(argv, Stdio.Process, config)
        {time, [stdout: "ready\n"]} = timed(fn -> Enum.take(stream, 1) end)
        assert time in 200..@soon
        time - 200
      end

    report("row 26, halt with a grace of 200 ms, late by (start included): #{spread(times)}")
  end

  @ends [
    {~w(--code 0), {:exit_status, 0}},
    {~w(--code 137), {:exit_status, 137}},
    {~w(--code 255), {:exit_status, 255}},
    {~w(--signal TERM), {:termsig, :sigterm}},
    {~w(--signal KILL), {:termsig, :sigkill}},
    {~w(--signal SEGV), {:termsig, :sigsegv}},
    {~w(--signal 40), {:termsig, :unknown}}
  ]

  test "row 27, a sample: a status is not a signal, and the other way round", %{mark: mark} do
    for {words, terminal} <- @ends do
      assert list([Proc.fixture("exit-with"), mark | words]) == [terminal]
    end
  end
end
