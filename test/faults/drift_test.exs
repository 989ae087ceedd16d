defmodule Stdio.Faults.DriftTest do
  # FAULTS row 18 and the memory that has to come back: after many streams it is as after the first.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault

  @moduletag :testbin
  @moduletag timeout: 600_000

  setup_all do
    %{launcher: warm_up()}
  end

  # What is counted after each part of a run. The oracle compares the same at the end of a test.
  defp figures(launcher) do
    :erlang.garbage_collect()

    %{
      fds: map_size(Proc.fds()),
      threads: map_size(Proc.threads()),
      descendants: length(Proc.descendants()),
      rss: Proc.rss_kib(),
      binaries: div(:erlang.memory(:binary), 1024),
      launcher_rss: Proc.rss_kib(launcher),
      # Nil for those who may not look into it.
      launcher_fds: with(%{} = fds <- Proc.fds(launcher), do: map_size(fds))
    }
  end

  # The figures after each of `parts` parts, of which the first is to warm up.
  defp run(launcher, parts, fun) do
    for _ <- 1..parts do
      fun.()
      settled_figures(launcher)
    end
  end

  defp settled_figures(launcher) do
    settle(launcher)
    figures = figures(launcher)
    still? = settled?(launcher) and length(Proc.descendants()) == figures.descendants
    # A spare that has come meanwhile is there for 30 ms.
    if still?, do: figures, else: settled_figures(launcher)
  end

  # The last supervisor may be on its way out, and the next spare on its way in: settled is what
  # looks the same twice.
  defp settle(launcher) do
    assert Proc.wait_until(fn ->
             look = fn -> {supervisors(launcher), Enum.sort(Proc.descendants())} end
             {first, _} = seen = look.()
             Process.sleep(20)
             match?([_], first) and settled?(launcher) and look.() == seen
           end)
  end

  @counts [:fds, :threads, :descendants, :launcher_fds]

  defp assert_no_drift([first | rest], name, programs) do
    for figures <- rest, do: assert(Map.take(figures, @counts) == Map.take(first, @counts))
    last = List.last(rest)

    for key <- [:rss, :binaries, :launcher_rss] do
      # A carrier of the allocators is 8 MB; one program's handle that stays would be 0.5 KiB.
      limit = if key == :rss, do: 8 * 1024, else: 512

      assert last[key] - first[key] < limit,
             "#{key}: #{inspect(Enum.map([first | rest], & &1[key]))}"
    end

    report(
      "#{name}, #{programs} programs: RSS #{last.rss - first.rss} KiB, binaries " <>
        "#{last.binaries - first.binaries} KiB, launcher #{last.launcher_rss - first.launcher_rss} KiB"
    )
  end

  test "row 18: one after the other", %{launcher: launcher} do
    count = size(250, 2_500)

    {time, figures} =
      timed(fn ->
        run(launcher, 5, fn ->
          for _ <- 1..count, do: assert(list(["/bin/true"]) == [exit_status: 0])
        end)
      end)

    assert messages() == []
    assert_no_drift(figures, "row 18", 4 * count)
    report("row 18: #{Float.round(time / (5 * count), 2)} ms each")
  end

  test "starts that fail", %{launcher: launcher} do
    figures =
      run(launcher, 4, fn ->
        for _ <- 1..size(50, 500) do
          assert {:error, %Stdio.StreamError{}} = outcome(Stdio.stream!(["/no/such/program"]))
          bad = Stdio.stream!("true", Stdio.Process, cd: "/no/such/directory")
          assert {:error, %Stdio.OpError{}} = outcome(bad)
          large = Stdio.stream!(["/bin/echo", String.duplicate("x", 200_000)])
          assert {:error, %Stdio.StreamError{reason: :e2big}} = outcome(large)
        end
      end)

    assert messages() == []
    assert_no_drift(figures, "starts that fail", 3 * 150)
  end

  test "output, input and halts", %{mark: mark, launcher: launcher} do
    megabyte = String.duplicate("x", 1_000_000)

    figures =
      run(launcher, 4, fn ->
        for _ <- 1..size(25, 250) do
          elements = pipe([megabyte, megabyte], "cat")
          assert byte_size(output(elements)) == 2_000_000
          fill = [Proc.fixture("fill-pipe"), mark, "100000000"]
          assert [_, _] = fill |> Stdio.stream!() |> Enum.take(2)

          assert [_] =
                   [megabyte] |> Stdio.pipe!([Proc.fixture("never-read"), mark]) |> Enum.take(1)
        end
      end)

    assert messages() == []
    assert_no_drift(figures, "output, input and halts", 3 * 75)
  end

  test "200 at a time, and files meanwhile", %{mark: mark, launcher: launcher} do
    path = Path.join(System.tmp_dir!(), mark)

    figures =
      run(launcher, 3, fn ->
        tasks = for _ <- 1..200, do: aside(fn -> list(["/bin/true"]) end)

        writes =
          for index <- 1..200 do
            File.write!(path, "#{index}")
            assert File.read!(path) == "#{index}"
          end

        assert length(writes) == 200
        for task <- tasks, do: assert(await(task) == [exit_status: 0])
      end)

    File.rm!(path)
    assert_no_drift(figures, "200 at a time", 400)
  end
end
