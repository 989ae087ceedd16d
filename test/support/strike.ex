defmodule Stdio.Test.Strike do
  @moduledoc """
  One strike at one system call of the helper, and what comes of it: the fixture `strike` stands in
  front of the helper, as sudo would, and traces it. See `native/testbin/src/sys/linux/strike.rs`.

      [{role, calls} | _] = Strike.record(:rootless, :exits)
      result = Strike.at(:rootless, :exits, {"root:1", 17}, kill: ["launcher"])

  The program is a shell with children in the background, one of which has left its session and its
  parent. Each process has the mark in its arguments, which is a number, for `sleep`.
  """

  alias Stdio.Test.{Fault, Peer, Proc}

  @typedoc "How the program is run; `:shared`: below a supervisor that is stopped after it."
  @type mode :: :process | :shared | :pid_namespace | :rootless | :container
  @typedoc "`:exits`: the program ends by itself, before its children; `:halted`: it is halted."
  @type ending :: :exits | :halted
  @typedoc "`\"launcher\"`, `\"root:1\"`, `\"task:1\"`, ..., below other roots `\"spare:1\"`, ..., or `\"beam\"`."
  @type role :: String.t()
  @type point :: {role, pos_integer}
  @typedoc "As in a plan of `strike`; `follow: []` counts what programs do too."
  @type action ::
          {:kill, [role]}
          | {:pause, micros :: non_neg_integer}
          | {:error, errno :: pos_integer}
          | {:follow, []}

  @typedoc """
    * `:fired` - whether that system call was made
    * `:call` - its name
    * `:outcome` - of the stream: `:halted`, or as `Fault.outcome/1` has it, or `:hangs`; of a BEAM that
      is killed `:killed`, or `:over` if the stream had ended before
    * `:survivors` - what was left after two seconds
    * `:time` - ms from the strike until nothing was
    * `:log` - of `strike`
  """
  @type result :: %{
          fired: boolean,
          call: String.t() | nil,
          outcome: Fault.outcome() | :halted | :killed | :over | :hangs | {:odd, term},
          survivors: [String.t()],
          time: float | nil,
          log: String.t()
        }

  @hang 20_000
  @gone 2_000

  @doc "A run without a strike: for each process the names of its system calls, and the inits."
  @spec record(mode, ending, Path.t(), [action]) :: {%{role => [String.t()]}, [role]}
  def record(mode, ending, dir, actions \\ []) do
    words = untouched(mode, ending, dir, actions)
    {calls(words), for(["born", role, _, "init"] <- words, do: role)}
  end

  @doc "The calls of a run without a strike, but for those that failed with EAGAIN."
  @spec record_done(mode, ending, Path.t()) :: %{role => [String.t()]}
  def record_done(mode, ending, dir) do
    words = untouched(mode, ending, dir, [])
    again = for ["again", role, count] <- words, do: {role, count}

    words
    |> Enum.reject(fn
      ["call", role, count | _] -> {role, count} in again
      _ -> false
    end)
    |> calls()
  end

  defp untouched(mode, ending, dir, actions) do
    %{outcome: outcome, log: log, survivors: []} = at(mode, ending, nil, actions, dir)
    true = outcome in [:halted, {:exit_status, 3}]
    words(log)
  end

  defp calls(words) do
    for ["call", role, _, _, name] <- words, reduce: %{} do
      calls -> Map.update(calls, role, [name], &(&1 ++ [name]))
    end
  end

  @doc "A run with a strike before that system call. `dir` has what `dir!/0` has made."
  @spec at(mode, ending, point | nil, [action], Path.t()) :: result
  def at(mode, ending, point, actions, dir) do
    run = new(dir, point, actions)

    if "beam" in Keyword.get(actions, :kill, []),
      do: at_beam(run, mode, ending),
      else: at_helper(run, mode, ending)
  end

  @doc "Whether a stream may end so when helpers were killed: by itself, killed, or not started."
  @spec expected?(ending, Fault.outcome() | :halted) :: boolean
  def expected?(:exits, {:exit_status, 3}), do: true
  def expected?(:halted, :halted), do: true
  def expected?(_, {:termsig, :sigkill}), do: true
  def expected?(_, {:error, %module{}}), do: module in [Stdio.StreamError, Stdio.OpError]
  def expected?(_, _), do: false

  @doc "A directory for the runs, and the root tree that containers need. It is to be removed."
  @spec dir!() :: Path.t()
  def dir! do
    dir =
      Path.join(System.tmp_dir!(), "strike-#{System.pid()}-#{System.unique_integer([:positive])}")

    for name <- ~w(bin sbin usr lib lib64 opt tmp home proc dev),
        do: File.mkdir_p!(Path.join([dir, "root", name]))

    for path <- [dir, Path.join(dir, "root")], do: File.chmod!(path, 0o755)
    dir
  end

  @doc "The stream that is run, as source for a peer too."
  @spec outcome(mode, ending, String.t(), Path.t()) :: term
  def outcome(:shared, ending, mark, _dir) do
    case Stdio.supervisor(:noshutdown) do
      {:ok, supervisor} ->
        outcome = run(Stdio.with_supervisor(Stdio.Process, supervisor), [], ending, mark)
        Stdio.Task.stop(root = supervisor.init)
        # Whose supervisor it is gets what it says, and its end.
        Stdio.Task.__flush__(root)
        outcome

      {:error, reason} ->
        {:error, Stdio.StreamError.exception(action: "supervisor", reason: reason, command: [])}
    end
  end

  def outcome(mode, ending, mark, dir) do
    {behaviour, config} = behaviour(mode, Path.join(dir, "root"))
    run(behaviour, config, ending, mark)
  end

  defp run(behaviour, config, ending, mark) do
    last = if ending == :exits, do: "exit 3", else: "wait"
    line = "(setsid sleep #{mark} &); sleep #{mark} & echo ready; #{last}"
    stream = Stdio.stream!(["/bin/sh", "-c", line], behaviour, config)

    case ending do
      :halted ->
        stream |> Enum.reduce_while([], &halt_when_ready/2) |> judge()

      :exits ->
        stream |> Enum.to_list() |> judge()
    end
  rescue
    error in [Stdio.StreamError, Stdio.OpError] -> {:error, error}
  end

  defp halt_when_ready({:stdout, "ready\n"}, []), do: {:halt, :halted}
  defp halt_when_ready(element, elements), do: {:cont, elements ++ [element]}

  defp judge(:halted), do: :halted
  # Its children hold its stdout, so the line may come alone, but it comes.
  defp judge(stdout: "ready\n", exit_status: 3), do: {:exit_status, 3}
  defp judge(stdout: "ready\n", termsig: signal), do: {:termsig, signal}
  defp judge(termsig: signal), do: {:termsig, signal}
  defp judge(elements), do: {:odd, elements}

  defp behaviour(:process, _), do: {Stdio.Process, []}
  defp behaviour(:pid_namespace, _), do: {Stdio.Process, containment: :pid_namespace}
  defp behaviour(:rootless, root), do: {Stdio.Rootless, path: root}
  defp behaviour(:container, root), do: {Stdio.Container, path: root}

  ## A run

  defp new(dir, point, actions) do
    # A name of its own, so that no launcher of an earlier run serves this one.
    plan = Path.join(dir, "plan-#{System.unique_integer([:positive])}")
    log = Path.join(dir, "log")
    File.rm(log)

    lines = [
      ["log ", log],
      if(point, do: ["at ", elem(point, 0), " #{elem(point, 1)}"], else: [])
      | for({key, value} <- actions, do: "#{key} #{value |> List.wrap() |> Enum.join(" ")}")
    ]

    File.write!(plan, Enum.intersperse(lines, "\n"))

    %{
      dir: dir,
      point: point,
      log: log,
      mark: "8674.#{System.unique_integer([:positive])}#{:rand.uniform(1_000_000_000)}",
      prefix: "#{Proc.fixture("strike")} #{plan}",
      lasting: Proc.descendants()
    }
  end

  defp at_helper(run, mode, ending) do
    Application.put_env(:stdio, :exec, run.prefix)
    task = Fault.aside(fn -> outcome(mode, ending, run.mark, run.dir) end)

    outcome =
      try do
        Fault.await(task, @hang)
      rescue
        error in ExUnit.AssertionError -> {:odd, error.message}
      end

    # The one that had the program, and the one after it.
    {survivors, time} = await_empty(run, 2)
    Application.put_env(:stdio, :exec, "")
    {left, _} = end_launchers(run)
    result(run, outcome, survivors ++ left, time)
  end

  # Spare supervisors are to stay for a while, and all of them go with their launcher. It may be a
  # second one, after a start that was tried again; the next run has to find neither.
  defp end_launchers(run) do
    # What is still `strike` becomes one, or ends with those that it traces.
    launchers = fn ->
      mine = Proc.descendants() -- run.lasting

      for {pid, %{name: name}} <- Proc.table(),
          name in ["strike", "stdio-supervise"] and pid in mine,
          do: {name, pid}
    end

    none_left? = fn ->
      launchers = launchers.()
      for {"stdio-supervise", pid} <- Enum.reverse(launchers), do: Proc.kill(pid)
      launchers == []
    end

    gone? = Proc.wait_until(none_left?, @gone)
    {left, time} = await_empty(run, 0)
    {if(gone?, do: left, else: left ++ Enum.map(launchers.(), &inspect/1)), time}
  end

  @peer """
  Application.put_env(:stdio, :exec, prefix)
  IO.inspect(Stdio.Test.Strike.outcome(mode, ending, mark, dir))
  """

  defp at_beam(run, mode, ending) do
    assigns = [prefix: run.prefix, mode: mode, ending: ending, mark: run.mark, dir: run.dir]
    peer = start_peer(assigns)

    outcome =
      case peer && Peer.line(peer, @hang) do
        nil -> :killed
        # 128 + 9: as a shell has it.
        {:exit_status, 137} -> :killed
        :timeout -> :hangs
        # Its stream was over by then: the strike was at a supervisor that waits for the next one.
        over when over in ["{:exit_status, 3}", ":halted"] -> :over
        other -> {:odd, other}
      end

    {survivors, time} = await_empty(run, if(outcome == :killed, do: 0, else: 2))
    if peer, do: Peer.kill(peer)
    {left, _} = await_empty(run, 0)
    result(run, outcome, survivors ++ left, time)
  end

  # Nil if it was killed before its first line was out.
  defp start_peer(assigns) do
    Peer.start(@peer, assigns: assigns)
  rescue
    error in RuntimeError ->
      if error.message =~ "{:exit_status, 137}",
        do: nil,
        else: reraise(error, __STACKTRACE__)
  end

  defp result(run, outcome, survivors, time) do
    log = read(run.log)
    {role, count} = run.point || {nil, nil}

    %{
      fired: fired(log) != nil,
      call: List.first(for(["call", ^role, c, _, name] <- words(log), c == "#{count}", do: name)),
      outcome: outcome,
      survivors: Enum.uniq(survivors),
      time: time,
      log: log
    }
  end

  ## What is left

  # Until nothing is left but `spares` supervisors: {survivors, ms since the strike}.
  defp await_empty(run, spares) do
    empty? = Proc.wait_until(fn -> left(run, spares) == [] end, @gone)
    now = System.os_time(:nanosecond)
    # Looked at again it may be another: the next supervisor is born while the last one ends.
    left = if empty?, do: [], else: left(run, spares)
    if left != [], do: Proc.sweep(run.mark)
    fired = fired(read(run.log))
    {left, fired && (now - fired) / 1_000_000}
  end

  defp left(run, spares) do
    words = words(read(run.log))
    programs = for ["exec", role] <- words, do: role
    ended = for ["end", role] <- words, do: role

    helpers =
      for ["born", role, pid | _] <- words,
          role not in programs and role not in ended,
          pid = String.to_integer(pid),
          role != "launcher" or spares == 0,
          Proc.alive?(pid),
          do: {role, pid}

    {roots, others} = Enum.split_with(helpers, &match?({"root:" <> _, _}, &1))

    {roots, others} =
      if length(roots) <= spares,
        do: {[], others -- waiting(words, roots, others)},
        else: {roots, others}

    named = for {role, pid} <- roots ++ others, do: "#{role} #{pid}"
    marked = for pid <- Proc.find(run.mark), do: "program #{pid} #{words_of(pid)}"
    named ++ marked
  end

  # Children of spare supervisors, which wait for a program: each has one, which has not begun to set
  # anything up.
  defp waiting(words, spares, tasks) do
    begun = for ["call", role, _, _, "setsid"] <- words, do: role

    for {_, spare} <- spares,
        task =
          Enum.find(tasks, fn {role, pid} ->
            role not in begun and match?(%{ppid: ^spare}, Proc.stat(pid))
          end),
        do: task
  end

  defp words_of(pid), do: pid |> Proc.cmdline() |> String.replace(<<0>>, " ")

  defp fired(log) do
    Enum.find_value(words(log), fn
      ["fired", nanoseconds] -> String.to_integer(nanoseconds)
      _ -> nil
    end)
  end

  defp read(path) do
    case File.read(path) do
      {:ok, text} -> text
      {:error, :enoent} -> ""
    end
  end

  # The last line may be half written.
  defp words(log), do: log |> String.split("\n") |> Enum.drop(-1) |> Enum.map(&String.split/1)
end
