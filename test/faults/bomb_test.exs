defmodule Stdio.Faults.BombTest do
  # FAULTS rows 20 and 21 at a size that a machine of two CPUs and others' tests survive: processes
  # that spin and replace each other, and processes that change their pids all the time.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault

  @moduletag :testbin
  @moduletag timeout: 120_000
  # Whatever goes wrong, it is over after this many seconds.
  @life ["--life", "20"]

  setup_all do
    warm_up()
    :ok
  end

  # With STDIO_FULL=1 at the size that FAULTS has.
  @spinners size("100", "3000")
  @hoppers size("8", "64")
  @bombs [
    {"bomb", ["fork-bomb", @spinners, "--setsid"]},
    {"hoppers", ["hopper", @hoppers, "--pause-us", "200", "--setsid"]},
    {"hoppers without a rest", ["hopper", @hoppers]}
  ]

  for {name, words} <- @bombs, containment <- [:best_effort, :pid_namespace, :cgroup] do
    @tag words: words, containment: containment
    if containment == :pid_namespace, do: @tag(:userns)
    if containment == :cgroup, do: @tag(:cgroup)

    test "#{name}, #{containment}", %{mark: mark, words: words, containment: containment} do
      [program | words] = words
      argv = [Proc.fixture(program), mark | words] ++ @life
      config = [containment: containment]

      # Halted.
      stream = Stdio.stream!(argv, Stdio.Process, config)
      {halt, [stdout: "ready\n"]} = timed(fn -> Enum.take(stream, 1) end)
      assert_gone(mark, "halted")

      # Its leader ends by itself.
      stream = Stdio.stream!(argv ++ ["--leader-exits", "5"], Stdio.Process, config)
      {exit, elements} = timed(fn -> Enum.to_list(stream) end)
      assert elements == [stdout: "ready\n", exit_status: 5]
      assert_gone(mark, "left alone")

      # Its time is up.
      stream = Stdio.stream!(argv, Stdio.Process, [timeout: 500] ++ config)
      {timeout, elements} = timed(fn -> Enum.to_list(stream) end)
      assert Oracle.terminal!(elements) == {:termsig, :sigkill}
      assert_gone(mark, "timeout")

      # Its consumer is killed.
      consumer = spawn(fn -> argv |> Stdio.stream!(Stdio.Process, config) |> Stream.run() end)
      assert Proc.wait_until(fn -> Proc.find(mark) != [] end)
      Process.sleep(200)
      Process.exit(consumer, :kill)
      killed = Proc.time_until(fn -> Proc.gone?(mark) end, 10_000)
      assert killed, "alive after its consumer was killed"

      # The kill loop has to get there before its deadline of 5 s, after which the launcher helps.
      # Without a rest between two hops that is a matter of luck, and nothing is promised but by a
      # namespace and a cgroup. (The time
      # of `killed` has its own deadline above, which counts the search for survivors too.)
      limit =
        if "--setsid" in words or containment != :best_effort,
          do: size(4_500, 10_000),
          else: 10_000

      for time <- [halt, exit, timeout], do: assert(time < limit)

      report(
        "rows 20 and 21, #{program} #{Enum.join(words, " ")}, #{containment}: from start to end " <>
          "halted #{halt}, left by its leader #{exit}, timeout of 500 #{timeout}; after the " <>
          "consumer's death #{killed} ms"
      )
    end
  end

  # The terminal element says that nothing is left, so there is nothing to wait for.
  defp assert_gone(mark, how) do
    assert Proc.gone?(mark), "#{how}: #{length(Proc.find(mark))} processes are left"
  end

  test "hoppers whose supervisor is killed", %{mark: mark} do
    argv = [Proc.fixture("hopper"), mark, "4", "--pause-us", "500"] ++ @life
    test = self()
    stream = argv |> Stdio.stream!() |> Stream.each(&send(test, &1))
    task = aside(fn -> outcome(stream) end)
    # All of them hop. To see one in /proc is a matter of luck: its pid is gone before it is read.
    assert_receive {:stdout, "ready\n"}
    Process.sleep(100)
    assert Proc.kill(supervisor_of(mark), 9) == :ok
    assert await(task) == {:termsig, :sigkill}
    assert_gone(mark, "supervisor killed")
  end
end
