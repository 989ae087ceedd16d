defmodule Stdio.Faults.KillSweepTest do
  # FAULTS rows 3, 4, 5 and 7: SIGKILL for the BEAM, the launcher, a supervisor, a task (the init of a
  # PID namespace is one) before a system call of the helper, during start, run and stop. Whatever
  # the moment: nothing is left, and a consumer that lives gets its one end or a typed error.
  #
  # Here a sample of these system calls; all of them with STDIO_FULL=1 (bin/soak).
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault
  alias Stdio.Test.Strike

  @moduletag :strace
  @moduletag timeout: :infinity

  setup do
    dir = Strike.dir!()
    on_exit(fn -> File.rm_rf!(dir) end)
    %{dir: dir}
  end

  @victims ~w(launcher supervisor task beam both)a
  @pause 5_000

  for {mode, tag} <- [
        process: :linux,
        shared: :linux,
        pid_namespace: :userns,
        rootless: :userns,
        container: :root
      ] do
    @tag tag
    @tag mode: mode
    test "#{mode}: nothing survives", %{mode: mode, dir: dir} do
      runs = for ending <- [:exits, :halted], do: {ending, record(mode, ending, dir)}

      bad =
        for victim <- @victims do
          points =
            for {ending, recorded} <- runs, point <- points(victim, recorded), do: {ending, point}

          results = sweep(mode, victim, sample(points, victim), dir)
          print(mode, victim, results)

          for {where, result} <- results,
              not good?(mode, victim, where, result),
              do: {where, result}
        end

      assert Enum.map_join(Enum.concat(bad), "\n", &explain/1) == ""
      assert list("true") == [exit_status: 0]
    end
  end

  @tag :userns
  test "a supervisor that dies at its birth is replaced, and leaves no message", %{dir: dir} do
    for call <- [5, 10, 14] do
      result = Strike.at(:rootless, :exits, {"root:1", call}, [kill: ["root:1"]], dir)
      assert %{fired: true, survivors: [], outcome: {:exit_status, 3}} = result
    end
  end

  # The parents of the namespace's PID 1 die while it works through its plan, which goes on to exec.
  for {mode, tag} <- [pid_namespace: :userns, container: :root] do
    @tag tag
    @tag mode: mode
    test "#{mode}: nothing survives both helpers while PID 1 is set up", %{mode: mode, dir: dir} do
      {calls, ["task:1"]} = record(mode, :halted, dir)
      # Calls are counted from 1.
      exec = Enum.find_index(calls["task:1"], &(&1 == "execve")) + 1
      points = Enum.to_list(2..exec)

      for at <- spaced(points, sample_size(10, length(points))),
          pause <- [0, :rand.uniform(@pause)] do
        kill = [kill: Enum.shuffle(["root:1", "launcher"]), pause: pause]
        follow = if mode == :pid_namespace, do: [follow: []], else: []
        result = Strike.at(mode, :halted, {"task:1", at}, kill ++ follow, dir)
        explained = explain({{:halted, {"task:1", at}, kill}, result})
        assert result.fired, explained
        assert result.survivors == [], explained
      end
    end
  end

  # Its PID 1 lives on as the program there.
  defp record(:pid_namespace, ending, dir),
    do: Strike.record(:pid_namespace, ending, dir, follow: [])

  defp record(mode, ending, dir), do: Strike.record(mode, ending, dir)

  # Where the victim is to be killed: {point, who, in this order}.
  defp points(:beam, {calls, _}), do: for(point <- all(calls, ""), do: {point, ["beam"]})

  defp points(:both, {calls, _}) do
    for {role, _} = point <- all(calls, ""), role not in ["root:2", "spare:1"] do
      {point, Enum.random([["launcher", "root:1"], ["root:1", "launcher"]])}
    end
  end

  defp points(victim, {calls, _}) do
    prefixes = %{launcher: ["launcher"], supervisor: ["root:"], task: ["task:", "spare:"]}[victim]
    for {role, _} = point <- all(calls, prefixes), do: {point, [role]}
  end

  defp all(calls, prefix) do
    for {role, names} <- calls,
        String.starts_with?(role, prefix),
        at <- 1..length(names),
        do: {role, at}
  end

  # A BEAM of its own for each takes a second.
  defp sample(points, :beam), do: spaced(points, sample_size(1, length(points)))
  defp sample(points, _), do: spaced(points, sample_size(6, length(points)))

  defp sweep(mode, victim, points, dir) do
    for {{ending, {point, kill}}, index} <- Enum.with_index(points, 1) do
      progress("#{mode}, #{victim}: #{index} of #{length(points)}")
      pause = if victim == :both, do: [pause: :rand.uniform(@pause)], else: []
      follow = if mode == :pid_namespace, do: [follow: []], else: []
      result = Strike.at(mode, ending, point, [kill: kill] ++ pause ++ follow, dir)
      struck = {{ending, point, kill ++ pause}, result}
      # A soak takes hours: what was found is told when it is.
      if size(false, true) and result.survivors != [], do: report(explain(struck))
      struck
    end
  end

  defp progress(text), do: if(size(false, true), do: IO.write("\r\e[K  #{text}"))

  defp print(mode, victim, results) do
    struck = for {_, %{fired: true} = result} <- results, do: result
    left = Enum.count(struck, &(&1.survivors != []))
    times = for %{time: time, survivors: []} <- struck, time != nil, do: Float.round(time, 1)

    report(
      "#{mode}, killed: #{victim}, at #{length(struck)} system calls " <>
        "(#{length(results) - length(struck)} not reached), survivors at #{left}, empty after: " <>
        spread(times)
    )
  end

  # Best effort: what the program has forked survives the death of both helpers.
  defp good?(mode, :both, {ending, _, _}, result) when mode in [:process, :shared],
    do: Strike.expected?(ending, result.outcome)

  defp good?(_, :beam, _, %{fired: true} = result),
    do: result.survivors == [] and result.outcome in [:killed, :over]

  defp good?(_, :beam, _, result), do: result.survivors == []

  defp good?(_, _, {ending, _, _}, result),
    do: result.survivors == [] and Strike.expected?(ending, result.outcome)

  defp explain({{ending, {role, at}, killed}, result}) do
    "#{ending}, killed #{inspect(killed)} at call #{at} of #{role} (#{result.call}): " <>
      "#{inspect(result.outcome)}, left: #{inspect(result.survivors)}\n" <>
      Enum.join(Enum.take(String.split(result.log, "\n"), -15), "\n")
  end
end
