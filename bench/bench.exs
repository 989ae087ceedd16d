# Run by bin/bench, which builds what this needs: STDIO_FLOOR is the floor program of bench/floor,
# and Stdio is in the code path.
#
# Read Bench.Scenarios first (what is measured and what it should be), then Bench.Contenders (how
# each contender does it), Bench (rounds, medians, ratios), Bench.Report, Bench.Machine.
#
# A new scenario is one entry in Bench.Scenarios.all/1 and one function per contender.

defmodule Bench.Sink do
  @moduledoc false
  # Counts bytes, so that System.cmd does not have to keep them.
  defstruct []

  defimpl Collectable do
    def into(_) do
      {0,
       fn
         count, {:cont, data} -> count + byte_size(data)
         count, :done -> count
         _, :halt -> :ok
       end}
    end
  end
end

defmodule Bench.Contenders do
  @moduledoc false

  # This file also runs without Stdio, for the other contenders' figures.
  @compile {:no_warn_undefined, [Stdio, Stdio.Stream, Stdio.Task]}

  alias Bench.{Proc, Sink}

  ## Measuring

  # The median of `n` calls in µs.
  def each(n, fun) do
    times =
      for _ <- 1..n do
        started = System.monotonic_time()
        fun.()
        System.monotonic_time() - started
      end

    System.convert_time_unit(Bench.median(times) |> round(), :native, :nanosecond) / 1000
  end

  # MB/s of a fun that returns how many bytes it has seen.
  def rate(bytes, fun) do
    {micros, seen} = :timer.tc(fun)
    ^bytes = seen
    bytes / micros
  end

  # Calls per second of `processes` processes with `n` calls each.
  def spawners(processes, n, fun) do
    {micros, _} =
      :timer.tc(fn ->
        tasks = for _ <- 1..processes, do: Task.async(fn -> for _ <- 1..n, do: fun.() end)
        Task.await_many(tasks, :infinity)
      end)

    processes * n / micros * 1.0e6
  end

  ## /bin/true

  def stdio_true, do: [exit_status: 0] = Stdio.stream!(["/bin/true"]) |> Enum.to_list()

  def stdio_shared(measure) do
    {:ok, supervisor} = Stdio.supervisor(:noshutdown)

    try do
      behaviour = Stdio.with_supervisor(Stdio.Process, supervisor)

      measure.(fn ->
        [exit_status: 0] = Stdio.stream!(["/bin/true"], behaviour) |> Enum.to_list()
      end)
    after
      Stdio.Task.stop(supervisor.init)
    end
  end

  def isolated_true(name, measure) do
    behaviour = %{container: Stdio.Container, rootless: Stdio.Rootless}[name]
    root = Path.join(System.tmp_dir!(), "stdio-bench-#{System.pid()}")
    Application.put_env(:stdio, :path, root)
    Stdio.Container.make_chroot_tree!()

    try do
      measure.(fn ->
        [exit_status: 0] = Stdio.stream!(["/bin/true"], behaviour) |> Enum.to_list()
      end)
    after
      File.rm_rf!(root)
    end
  end

  def task_calls(measure) do
    {:ok, task} = Stdio.Task.fork()

    try do
      measure.(fn -> Stdio.Task.getpid(task) end)
    after
      Stdio.Task.stop(task)
    end
  end

  def port_true do
    port = open(["/bin/true"])

    receive do
      {^port, {:exit_status, 0}} -> :ok
    end
  end

  def system_cmd_true, do: {"", 0} = System.cmd("/bin/true", [])

  ## Output

  def stdio_read(command) do
    command
    |> Stdio.stream!()
    |> Enum.reduce(0, fn
      {:stdout, data}, seen -> seen + byte_size(data)
      {:exit_status, 0}, seen -> seen
    end)
  end

  def port_read(command, bytes) do
    port = open(command)
    seen = port_bytes(port, 0, bytes)

    receive do
      {^port, {:exit_status, 0}} -> seen
    end
  end

  defp port_bytes(_, seen, bytes) when seen >= bytes, do: seen

  defp port_bytes(port, seen, bytes) do
    receive do
      {^port, {:data, data}} -> port_bytes(port, seen + byte_size(data), bytes)
    end
  end

  def system_cmd_read([program | args]) do
    {seen, 0} = System.cmd(program, args, into: %Sink{})
    seen
  end

  ## Lines

  def stdio_lines(command, count, bytes) do
    seen =
      command
      |> Stdio.stream!()
      |> Stdio.Stream.lines()
      |> Enum.reduce(0, fn
        {:stdout, _}, seen -> seen + 1
        {:exit_status, 0}, seen -> seen
      end)

    ^count = seen
    bytes
  end

  def port_lines(command, count, bytes) do
    port = open(command, [{:line, 1024}])
    port_lines(port, count)

    receive do
      {^port, {:exit_status, 0}} -> bytes
    end
  end

  defp port_lines(_, 0), do: :ok

  defp port_lines(port, left) do
    receive do
      {^port, {:data, {:eol, _}}} -> port_lines(port, left - 1)
    end
  end

  ## Through cat

  def stdio_cat(bytes, chunk) do
    chunks(bytes, chunk)
    |> Stdio.pipe!(["/bin/cat"])
    |> Enum.reduce(0, fn
      {:stdout, data}, seen -> seen + byte_size(data)
      {:exit_status, 0}, seen -> seen
    end)
  end

  # A Port cannot close stdin and go on reading: all bytes are awaited, then it is closed.
  def port_cat(bytes, chunk) do
    port = open(["/bin/cat"])
    data = chunks(bytes, chunk)
    spawn_link(fn -> Enum.each(data, &Port.command(port, &1)) end)
    seen = port_bytes(port, 0, bytes)
    Port.close(port)
    seen
  end

  defp chunks(bytes, chunk), do: List.duplicate(:binary.copy("x", chunk), div(bytes, chunk))

  @line "ping pong\n"

  # With the next line asked for when the last one has come back. The feeder is a process of its
  # own, so that one message between two Elixir processes is part of the figure.
  def stdio_pingpong(n) do
    consumer = self()

    input =
      Stream.resource(
        fn -> send(consumer, {:feeder, self()}) end,
        fn state ->
          receive do
            :next -> {[@line], state}
            :stop -> {:halt, state}
          end
        end,
        fn _ -> :ok end
      )

    start = %{feeder: nil, left: n, since: nil, times: []}

    [@line]
    |> Stream.concat(input)
    |> Stdio.pipe!(["/bin/cat"])
    |> Enum.reduce(start, &pong/2)
    |> Map.fetch!(:times)
    |> median_us()
  end

  # The first line finds the feeder and is not counted.
  defp pong({:stdout, @line}, %{feeder: nil} = state) do
    feeder =
      receive do
        {:feeder, pid} -> pid
      end

    ask(%{state | feeder: feeder})
  end

  defp pong({:stdout, @line}, state) do
    ask(%{state | times: [System.monotonic_time() - state.since | state.times]})
  end

  defp pong({:exit_status, 0}, state), do: state

  defp ask(%{left: 0} = state) do
    send(state.feeder, :stop)
    state
  end

  defp ask(state) do
    since = System.monotonic_time()
    send(state.feeder, :next)
    %{state | left: state.left - 1, since: since}
  end

  def port_pingpong(n) do
    port = open(["/bin/cat"])

    times =
      for _ <- 0..n do
        since = System.monotonic_time()
        Port.command(port, @line)

        receive do
          {^port, {:data, @line}} -> System.monotonic_time() - since
        end
      end

    Port.close(port)
    # The first one waits for cat to start.
    times |> tl() |> median_us()
  end

  defp median_us(times) do
    System.convert_time_unit(times |> Bench.median() |> round(), :native, :nanosecond) / 1000
  end

  ## In a BEAM of their own

  # Runs `function(args)` of this module in a new BEAM, which sends back its result.
  def in_own_beam(function, args) do
    call = {function, args} |> :erlang.term_to_binary() |> Base.encode64()
    paths = for path <- Bench.code_paths(), word <- ["-pa", path], do: word
    elixir = System.find_executable("elixir")

    case System.cmd(elixir, paths ++ [__ENV__.file, "--call", call]) do
      {output, 0} ->
        [_, result] = Regex.run(~r/^result (\S+)$/m, output)
        result |> Base.decode64!() |> :erlang.binary_to_term()

      {output, status} ->
        raise "a BEAM for #{function} ended with status #{status}: #{output}"
    end
  end

  def called(encoded) do
    {function, args} = encoded |> Base.decode64!() |> :erlang.binary_to_term()
    result = apply(__MODULE__, function, args)
    IO.puts("result " <> (result |> :erlang.term_to_binary() |> Base.encode64()))
  end

  def slow_consumer(contender, bytes, seconds) do
    command = ["/usr/bin/head", "-c", "#{bytes}", "/dev/zero"]
    warm_up(contender)
    collect_garbage()
    before = Proc.memory()

    peak = fn ->
      # Its own peak: one at the end would miss what was freed meanwhile.
      samples =
        for _ <- 1..(seconds * 20) do
          Process.sleep(50)
          Proc.memory()
        end

      (Enum.max(samples) - before) / 1024
    end

    case contender do
      :stdio ->
        [growth] =
          Stdio.stream!(command)
          |> Stream.map(fn {:stdout, _} -> peak.() end)
          |> Enum.take(1)

        [growth]

      :port ->
        port = open(command)

        receive do
          {^port, {:data, _}} -> :ok
        end

        # Head may have come to its end, and its port with it.
        [peak.()]
    end
  end

  def sleepers(contender, n) do
    mark = "sleeper-#{System.pid()}"
    command = [Bench.floor_path(), "sleeper", mark]
    # Before the first use of anything, memory after it: a thread of the library counts.
    threads = Proc.threads()
    warm_up(contender)
    starter = starter(contender)
    # What the first ones need and later ones use again is no cost of one more either.
    few = start_sleepers(starter, command, div(n, 10))
    halt_sleepers(contender, few, mark)
    collect_garbage()
    before = Proc.memory_with_helpers()

    {micros, pids} = :timer.tc(fn -> start_sleepers(starter, command, n) end)
    now = Proc.memory_with_helpers()
    added = Proc.threads() - threads

    ^n = length(Proc.marked(mark))
    gone = halt_sleepers(contender, pids, mark)
    [n / micros * 1.0e6, memory_each(before, now, n), added, gone]
  end

  defp memory_each(before, now, _) when before == nil or now == nil, do: nil
  defp memory_each(before, now, n), do: (now - before) / n

  # What consumes a program until it is told to halt, and how many are started at a time.
  defp starter(:stdio), do: {consumer(&Stdio.stream!/1), 100_000}

  # One descriptor of the BEAM each, and a few more while it starts.
  defp starter(:stdio_lean) do
    {:ok, supervisor} = Stdio.supervisor(:noshutdown)
    phases = Stdio.with_supervisor(Stdio.Process, supervisor)
    {consumer(&Stdio.stream!(&1, phases, stdin: :null, stderr: :stdout)), 100}
  end

  defp starter(:port), do: {&port_sleeper/2, 100_000}

  defp consumer(stream) do
    fn command, coordinator ->
      stream.(command)
      |> Enum.reduce_while(nil, fn {:stdout, "\n"}, nil ->
        send(coordinator, {:running, self()})
        wait_for_halt()
        {:halt, nil}
      end)
    end
  end

  defp port_sleeper(command, coordinator) do
    port = open(command)

    receive do
      {^port, {:data, "\n"}} -> send(coordinator, {:running, self()})
    end

    wait_for_halt()
  end

  # Returns when every program has written its newline.
  defp start_sleepers({sleeper, at_a_time}, command, n) do
    coordinator = self()

    1..n
    |> Enum.chunk_every(at_a_time)
    |> Enum.flat_map(fn some ->
      pids = for _ <- some, do: spawn_monitor(fn -> sleeper.(command, coordinator) end)

      for {pid, monitor} <- pids do
        receive do
          {:running, ^pid} -> {pid, monitor}
          {:DOWN, ^monitor, _, _, reason} -> raise "a sleeper failed: #{inspect(reason)}"
        end
      end
    end)
  end

  defp collect_garbage, do: Enum.each(Process.list(), &:erlang.garbage_collect/1)

  defp wait_for_halt do
    receive do
      :halt -> :ok
    end
  end

  # Milliseconds until all consumers have returned and no program is left.
  defp halt_sleepers(contender, pids, mark) do
    started = System.monotonic_time(:millisecond)
    for {pid, _} <- pids, do: send(pid, :halt)

    for {_, monitor} <- pids do
      receive do
        {:DOWN, ^monitor, _, _, _} -> :ok
      end
    end

    if contender == :port, do: Proc.kill(Proc.marked(mark))
    wait_until_gone(mark, started + 60_000)
    if contender == :port, do: nil, else: System.monotonic_time(:millisecond) - started
  end

  defp wait_until_gone(mark, deadline) do
    cond do
      Proc.marked(mark) == [] ->
        :ok

      System.monotonic_time(:millisecond) > deadline ->
        Proc.kill(Proc.marked(mark))
        raise "sleepers are still there a minute after they were halted"

      true ->
        Process.sleep(5)
        wait_until_gone(mark, deadline)
    end
  end

  # What stays for the BEAM's life (helper, threads, loaded code) is no cost of one more stream.
  def warm_up(stdio) when stdio in [:stdio, :stdio_lean], do: for(_ <- 1..5, do: stdio_true())
  def warm_up(:port), do: for(_ <- 1..5, do: port_true())
  def warm_up(_), do: :ok

  ## The others

  defp open([program | args], opts \\ []) do
    Port.open({:spawn_executable, program}, [:binary, :exit_status, {:args, args} | opts])
  end

  def floor(args, field), do: args |> floor_output() |> field(field)

  def floor_output(args) do
    {output, 0} = System.cmd(Bench.floor_path(), Enum.map(args, &to_string/1))
    output
  end

  # Its output is one flat JSON object of numbers.
  def field(output, name) do
    [_, number] = Regex.run(~r/"#{name}":([0-9.]+)/, output)
    {value, ""} = Float.parse(number)
    value
  end
end

defmodule Bench.Proc do
  @moduledoc false
  # KiB and processes, as the kernel counts them.

  # What is this BEAM's alone: its share of common pages depends on who else runs.
  def memory do
    [_, kib] = Regex.run(~r/^RssAnon:\s+(\d+)/m, File.read!("/proc/self/status"))
    String.to_integer(kib)
  end

  # This BEAM and what it has started, but for the programs under test. nil if that may not be
  # seen: the helpers' memory map is theirs, and root's.
  def memory_with_helpers do
    helpers =
      for pid <- descendants(), name(pid) not in ["stdio-floor", nil], do: pss(pid) || :hidden

    if :hidden in helpers, do: nil, else: Enum.sum([memory() | helpers])
  end

  def threads do
    [_, count] = Regex.run(~r/^Threads:\s+(\d+)/m, File.read!("/proc/self/status"))
    String.to_integer(count)
  end

  def marked(mark) do
    for pid <- pids(), :binary.match(read("/proc/#{pid}/cmdline"), mark) != :nomatch, do: pid
  end

  def kill(pids) do
    for some <- Enum.chunk_every(pids, 500) do
      System.cmd("/bin/sh", ["-c", "kill -9 #{Enum.join(some, " ")}"], stderr_to_stdout: true)
    end
  end

  # A process that has just ended counts as nothing.
  defp pss(pid) do
    case File.read("/proc/#{pid}/smaps_rollup") do
      {:ok, text} ->
        case Regex.run(~r/^Pss:\s+(\d+)/m, text) do
          [_, kib] -> String.to_integer(kib)
          nil -> 0
        end

      {:error, reason} when reason in [:enoent, :esrch] ->
        0

      {:error, _} ->
        nil
    end
  end

  defp name(pid) do
    case Regex.run(~r/\((.*)\)/s, read("/proc/#{pid}/stat")) do
      [_, name] -> name
      nil -> nil
    end
  end

  defp descendants do
    children =
      for pid <- pids(),
          [_, parent] <- [Regex.run(~r/^\d+ \(.*\) \S (\d+)/s, read("/proc/#{pid}/stat"))],
          reduce: %{} do
        map -> Map.update(map, parent, [pid], &[pid | &1])
      end

    below(System.pid(), children)
  end

  defp below(pid, children) do
    Enum.flat_map(Map.get(children, pid, []), &[&1 | below(&1, children)])
  end

  defp pids, do: for(name <- File.ls!("/proc"), name =~ ~r/^\d+$/, do: name)

  defp read(path) do
    case File.read(path) do
      {:ok, bytes} -> bytes
      {:error, _} -> ""
    end
  end
end

defmodule Bench.Scenarios do
  @moduledoc false

  # `target` is what the first release has to reach, `goal` what the project is after:
  # {:at_most | :at_least, number, reference}. With a contender as the reference the number is the
  # ratio of Stdio to it within one round, with :absolute it is in the metric's unit.
  #
  # A scenario has `metrics`, and `run`: %{contender => fun/0}. The fun returns a list with one
  # number (or nil) per metric.

  import Bench.Contenders

  @mib 1024 * 1024

  def all(mode) do
    # size.(full, quick)
    size = fn full, quick -> if mode == :quick, do: quick, else: full end

    [
      one_by_one(size),
      on_shared_supervisor(size),
      concurrent_spawners(size),
      isolated(:container, 1.25, 1.0, size),
      isolated(:rootless, 1.5, 1.2, size),
      task_call(size),
      stdout(size),
      cat("cat_64k", 65_536, size.(256 * @mib, 64 * @mib), size,
        target: [{:at_least, 1.0, :port}],
        goal: [{:at_least, 1.3, :port}]
      ),
      cat("cat_1k", 1024, size.(16 * @mib, 4 * @mib), size,
        target: [{:at_least, 0.7, :port}],
        goal: [{:at_least, 1.0, :port}]
      ),
      lines(size),
      split_lines(size),
      pingpong(size),
      concurrent_sleepers("sleepers", size.(1000, 200), size),
      slow_reader(size),
      many_sleepers(size)
    ]
  end

  defp one_by_one(size) do
    n = size.(100, 40)

    %{
      name: "spawn",
      about: "/bin/true, from the call to its exit status, #{n} a round, the median",
      rounds: size.(9, 5),
      metrics: [
        metric("spawn", "µs",
          target: [{:at_most, 2.0, :floor}, {:at_most, 1.15, :system_cmd}],
          goal: [{:at_most, 1.6, :floor}, {:at_most, 1.0, :system_cmd}]
        )
      ],
      run: %{
        stdio: fn -> [each(n, &stdio_true/0)] end,
        port: fn -> [each(n, &port_true/0)] end,
        system_cmd: fn -> [each(n, &system_cmd_true/0)] end,
        floor: fn -> [floor(["spawn", n], "median_ns") / 1000] end
      }
    }
  end

  defp on_shared_supervisor(size) do
    n = size.(100, 40)

    %{
      name: "spawn_shared",
      about: "the same, all below one supervisor",
      rounds: size.(9, 5),
      needs: [{Stdio, :supervisor, 1}, {Stdio, :with_supervisor, 2}],
      metrics: [metric("spawn_shared", "µs", goal: [{:at_most, 1.35, :floor}])],
      run: %{
        stdio: fn -> [stdio_shared(&each(n, &1))] end,
        floor: fn -> [floor(["spawn", n], "median_ns") / 1000] end
      }
    }
  end

  # Its floor is another program that does the same: bubblewrap.
  defp isolated(name, target, goal, size) do
    n = size.(60, 30)
    metric = "#{name}"

    %{
      name: metric,
      about:
        "/bin/true in Stdio.#{String.capitalize(metric)}; floor: posix_spawn of " <>
          "bwrap --unshare-all --ro-bind / / /bin/true",
      rounds: size.(7, 3),
      needs: [{Stdio.Container, :make_chroot_tree!, 0}],
      programs: ["bwrap" | if(name == :container, do: [:root], else: [])],
      metrics: [
        metric(metric, "µs",
          target: [{:at_most, target, :floor}],
          goal: [{:at_most, goal, :floor}]
        )
      ],
      run: %{
        stdio: fn -> [isolated_true(name, &each(n, &1))] end,
        floor: fn ->
          bwrap =
            ["--", System.find_executable("bwrap")] ++ ~w(--unshare-all --ro-bind / / /bin/true)

          [floor(["spawn", n, 1 | bwrap], "median_ns") / 1000]
        end
      }
    }
  end

  defp task_call(size) do
    n = size.(2000, 500)

    %{
      name: "task_call",
      about: "Stdio.Task.getpid/1, #{n} a round, the median",
      rounds: size.(7, 3),
      needs: [{Stdio.Task, :getpid, 1}],
      metrics: [metric("task_call", "µs", target: [{:at_most, 50, :absolute}])],
      run: %{stdio: fn -> [task_calls(&each(n, &1))] end}
    }
  end

  defp concurrent_spawners(size) do
    n = size.(50, 25)

    %{
      name: "spawners_8",
      about: "8 processes which each run /bin/true #{n} times",
      rounds: size.(7, 3),
      metrics: [metric("spawners_8", "starts/s", goal: [{:at_least, 1.0, :system_cmd}])],
      run: %{
        stdio: fn -> [spawners(8, n, &stdio_true/0)] end,
        port: fn -> [spawners(8, n, &port_true/0)] end,
        system_cmd: fn -> [spawners(8, n, &system_cmd_true/0)] end,
        floor: fn -> [floor(["spawn", n, 8], "per_second")] end
      }
    }
  end

  defp stdout(size) do
    bytes = size.(1024 * @mib, 256 * @mib)
    command = ["/usr/bin/head", "-c", "#{bytes}", "/dev/zero"]

    %{
      name: "stdout",
      about: "#{div(bytes, @mib)} MiB from head",
      rounds: size.(7, 3),
      metrics: [
        metric("stdout", "MB/s",
          target: [{:at_least, 0.9, :port}],
          goal: [{:at_least, 1.1, :port}, {:at_least, 0.9, :floor}]
        )
      ],
      run: %{
        stdio: fn -> [rate(bytes, fn -> stdio_read(command) end)] end,
        port: fn -> [rate(bytes, fn -> port_read(command, bytes) end)] end,
        system_cmd: fn -> [rate(bytes, fn -> system_cmd_read(command) end)] end,
        floor: fn -> [floor(["read", bytes, 65_536], "bytes_per_second") / 1.0e6] end
      }
    }
  end

  defp cat(name, chunk, bytes, size, expected) do
    %{
      name: name,
      about: "#{div(bytes, @mib)} MiB through cat in binaries of #{chunk} bytes",
      rounds: size.(7, 3),
      metrics: [metric(name, "MB/s", expected)],
      run: %{
        stdio: fn -> [rate(bytes, fn -> stdio_cat(bytes, chunk) end)] end,
        port: fn -> [rate(bytes, fn -> port_cat(bytes, chunk) end)] end,
        floor: fn -> [floor(["pipe", bytes, chunk], "bytes_per_second") / 1.0e6] end
      }
    }
  end

  defp lines(size) do
    last = size.(2_000_000, 500_000)
    bytes = seq_bytes(last)
    command = ["/usr/bin/seq", "1", "#{last}"]

    %{
      name: "lines",
      about: "the #{last} lines of seq, as they come",
      rounds: size.(9, 5),
      metrics: [metric("lines", "MB/s", goal: [{:at_least, 1.0, :port}])],
      run: %{
        stdio: fn -> [rate(bytes, fn -> stdio_read(command) end)] end,
        port: fn -> [rate(bytes, fn -> port_read(command, bytes) end)] end,
        system_cmd: fn -> [rate(bytes, fn -> system_cmd_read(command) end)] end,
        floor: fn -> [floor(["lines", last, 65_536], "bytes_per_second") / 1.0e6] end
      }
    }
  end

  defp split_lines(size) do
    last = size.(500_000, 100_000)
    bytes = seq_bytes(last)
    command = ["/usr/bin/seq", "1", "#{last}"]

    %{
      name: "split_lines",
      about: "the #{last} lines of seq one by one: Stdio.Stream.lines, Port with {:line, n}",
      rounds: size.(5, 3),
      needs: [{Stdio.Stream, :lines, 1}],
      metrics: [metric("split_lines", "MB/s", [])],
      run: %{
        stdio: fn -> [rate(bytes, fn -> stdio_lines(command, last, bytes) end)] end,
        port: fn -> [rate(bytes, fn -> port_lines(command, last, bytes) end)] end,
        floor: fn -> [floor(["lines", last, 65_536], "bytes_per_second") / 1.0e6] end
      }
    }
  end

  defp pingpong(size) do
    n = size.(2000, 500)

    %{
      name: "pingpong",
      about: "one line through cat and back, #{n} a round, the median",
      rounds: size.(7, 3),
      metrics: [metric("pingpong", "µs", goal: [{:at_most, 1.2, :port}])],
      run: %{
        stdio: fn -> [stdio_pingpong(n)] end,
        port: fn -> [port_pingpong(n)] end,
        floor: fn -> [floor(["pingpong", n], "median_ns") / 1000] end
      }
    }
  end

  # Each contender in a BEAM of its own: memory that one has used would hide what the next needs.
  defp concurrent_sleepers(name, n, size) do
    %{
      name: name,
      about: "#{n} programs that sleep, started and halted all at once",
      rounds: size.(3, 1),
      metrics: [
        metric("#{name}: start", "starts/s", goal: [{:at_least, 1000, :absolute}]),
        # Helpers' PSS and the growth of the BEAM; the programs themselves do not count.
        metric("#{name}: memory", "KiB each", goal: [{:at_most, 100, :absolute}]),
        metric("#{name}: threads", "threads",
          target: [{:at_most, 4, :absolute}],
          goal: [{:at_most, 4, :absolute}]
        ),
        metric("#{name}: gone", "ms",
          target: [{:at_most, 2000, :absolute}],
          goal: [{:at_most, 2000, :absolute}]
        )
      ],
      run: %{
        stdio: fn -> in_own_beam(:sleepers, [:stdio, n]) end,
        # A Port has no way to end its program, so the time until all are gone is not measured.
        port: fn -> in_own_beam(:sleepers, [:port, n]) end,
        floor: fn ->
          output = floor_output(["sleepers", n])
          [field(output, "starts_per_second"), nil, nil, field(output, "gone_ms")]
        end
      }
    }
  end

  # As many as a hard limit of 16,384 descriptors allows, which is more than Ports could have.
  defp many_sleepers(size) do
    n = size.(10_000, 2000)
    few = concurrent_sleepers("sleepers_10000", n, size)

    %{
      few
      | about:
          "#{n} programs that sleep, below one supervisor, with one descriptor of the BEAM's each, " <>
            "started 100 at a time and halted all at once",
        rounds: 1,
        run: %{
          stdio: fn -> in_own_beam(:sleepers, [:stdio_lean, n]) end,
          floor: few.run.floor
        },
        metrics:
          for(
            %{name: "sleepers_10000: " <> what} = metric <- few.metrics,
            what != "gone",
            do: metric
          ) ++
            [metric("sleepers_10000: gone", "ms", [])]
    }
  end

  defp slow_reader(size) do
    bytes = size.(1024 * @mib, 256 * @mib)
    seconds = size.(3, 1)

    %{
      name: "slow_consumer",
      about:
        "growth of the BEAM while head has #{div(bytes, @mib)} MiB ready and the consumer, " <>
          "after the first element, sleeps for #{seconds} s",
      rounds: size.(3, 1),
      metrics: [
        metric("slow_consumer", "MiB",
          target: [{:at_most, 16, :absolute}],
          goal: [{:at_most, 8, :absolute}]
        )
      ],
      run: %{
        stdio: fn -> in_own_beam(:slow_consumer, [:stdio, bytes, seconds]) end,
        port: fn -> in_own_beam(:slow_consumer, [:port, bytes, seconds]) end
      }
    }
  end

  defp metric(name, unit, expected) do
    %{
      name: name,
      unit: unit,
      target: Keyword.get(expected, :target, []),
      goal: Keyword.get(expected, :goal, [])
    }
  end

  # The length of what `seq 1 LAST` prints: each number up to LAST has one byte more than it is
  # powers of ten above 1.
  defp seq_bytes(last) do
    powers = Stream.iterate(1, &(&1 * 10)) |> Enum.take_while(&(&1 <= last))
    last + (powers |> Enum.map(&(last - &1 + 1)) |> Enum.sum())
  end
end

defmodule Bench do
  @moduledoc false

  alias Bench.{Contenders, Machine, Report, Scenarios}

  @contenders [:stdio, :port, :system_cmd, :floor]
  # Longer than any round takes; a contender that hangs must not hang the rest.
  @patience 180_000

  def main(argv) do
    options = [
      quick: :boolean,
      only: :keep,
      name: :string,
      list: :boolean,
      publish: :boolean,
      # Between this script and the BEAMs that it starts.
      call: :string
    ]

    case OptionParser.parse(argv, strict: options) do
      {opts, [], []} -> run(Map.new(opts), Keyword.get_values(opts, :only))
      {_, [word | _], _} -> usage("unknown argument #{word}")
      {_, _, [{option, _} | _]} -> usage("bad option #{option}")
    end
  end

  defp run(%{call: call}, _), do: Contenders.called(call)

  defp run(%{list: true}, _) do
    for scenario <- Scenarios.all(:full) do
      IO.puts(String.pad_trailing(scenario.name, 16) <> scenario.about)
    end
  end

  defp run(opts, only) do
    mode = if opts[:quick], do: :quick, else: :full
    File.regular?(floor_path()) || usage("STDIO_FLOOR names no program: run bin/bench")
    contenders = if stdio?(), do: @contenders, else: @contenders -- [:stdio]
    stdio?() || IO.puts("Stdio is not in the code path: the others are measured without it.\n")

    scenarios = mode |> Scenarios.all() |> chosen(only)
    machine = Machine.describe()
    IO.puts(Machine.line(machine) <> "\n")

    results =
      for scenario <- scenarios, missing(scenario) == [], row <- measure(scenario, contenders) do
        row
      end

    IO.puts(["\n", Report.table(results)])
    file = Report.write!(results, machine, mode, Map.get(opts, :name, "latest"))
    IO.puts("Written to #{Path.relative_to_cwd(file)}")
    if opts[:publish], do: publish(results, machine, file)
    # Unmet targets are for people to judge, a contender that failed is not.
    if Enum.any?(results, & &1.failed), do: System.halt(1)
  end

  # What the repository keeps.
  defp publish(results, machine, file) do
    docs = Path.expand("../docs", __DIR__)
    line = Machine.line(machine)
    table = ["# ", line, "\n\n", Report.table(results)]
    File.cp!(file, Path.join(docs, "bench.json"))
    File.write!(Path.join(docs, "bench.txt"), table)
    File.write!(Path.join(docs, "bench.svg"), Bench.Plot.svg(results, line))
    IO.puts("And to docs/bench.json, docs/bench.txt, docs/bench.svg")
  end

  defp chosen(scenarios, []), do: scenarios

  defp chosen(scenarios, only) do
    names = Enum.map(scenarios, & &1.name)

    for name <- only, name not in names do
      usage("no scenario #{name}; there are: #{Enum.join(names, ", ")}")
    end

    Enum.filter(scenarios, &(&1.name in only))
  end

  # A scenario of a function that does not exist (yet) is left out, and says so.
  defp missing(scenario) do
    missing =
      for(
        {module, function, arity} <- Map.get(scenario, :needs, []),
        not (Code.ensure_loaded?(module) and function_exported?(module, function, arity)),
        do: "#{inspect(module)}.#{function}/#{arity}"
      ) ++ for(program <- Map.get(scenario, :programs, []), not here?(program), do: "#{program}")

    if missing != [] do
      IO.puts("#{scenario.name}: left out, there is no #{Enum.join(missing, ", ")}")
    end

    missing
  end

  defp here?(:root), do: File.stat!("/proc/self").uid == 0
  defp here?(program), do: System.find_executable(program) != nil

  # A B C A B C …: whatever disturbs the machine for a while disturbs all of them.
  defp measure(scenario, contenders) do
    IO.puts("#{scenario.name}: #{scenario.about}")
    contenders = Enum.filter(contenders, &is_map_key(scenario.run, &1))
    for contender <- contenders, do: attempt(fn -> Contenders.warm_up(contender) end)

    rounds =
      for round <- 1..scenario.rounds do
        values =
          for contender <- contenders, into: %{} do
            {contender, attempt(scenario.run[contender])}
          end

        IO.puts("  #{round}/#{scenario.rounds}  " <> Report.round(scenario, contenders, values))
        values
      end

    for {metric, index} <- Enum.with_index(scenario.metrics) do
      values =
        for contender <- contenders, into: %{} do
          {contender, Enum.map(rounds, &value(&1[contender], index))}
        end

      failed = for {contender, list} <- values, :failed in list, do: contender
      result(scenario, metric, values, failed != [])
    end
  end

  defp value({:ok, list}, index), do: Enum.at(list, index)
  defp value(:failed, _), do: :failed

  defp result(scenario, metric, values, failed) do
    medians = for {contender, list} <- values, into: %{}, do: {contender, median(numbers(list))}

    ratios =
      for reference <- [:floor, :port, :system_cmd], into: %{} do
        {reference, ratio(values[:stdio], values[reference])}
      end

    judge = fn expected -> for one <- expected, do: {one, met?(one, medians[:stdio], ratios)} end

    %{
      scenario: scenario,
      metric: metric,
      values: values,
      medians: medians,
      ratios: ratios,
      target: judge.(metric.target),
      goal: judge.(metric.goal),
      failed: failed
    }
  end

  # The median of the rounds' ratios, not the ratio of medians: a slow round is slow for both.
  defp ratio(nil, _), do: nil
  defp ratio(_, nil), do: nil

  defp ratio(ours, theirs) do
    pairs = for {a, b} <- Enum.zip(ours, theirs), is_number(a), is_number(b), b != 0, do: a / b
    median(pairs)
  end

  defp met?({compare, bound, reference}, median, ratios) do
    figure = if reference == :absolute, do: median, else: ratios[reference]

    cond do
      figure == nil -> nil
      compare == :at_most -> figure <= bound
      compare == :at_least -> figure >= bound
    end
  end

  # In a process of its own, with a heap of its own; a failure is shown and measured as one.
  defp attempt(fun) do
    # By exit, since an exception would be logged as well.
    {pid, monitor} =
      spawn_monitor(fn ->
        try do
          fun.()
        catch
          kind, reason -> exit({:failed, Exception.format(kind, reason, __STACKTRACE__)})
        else
          result -> exit({:result, result})
        end
      end)

    receive do
      {:DOWN, ^monitor, _, _, {:result, result}} ->
        {:ok, result}

      {:DOWN, ^monitor, _, _, reason} ->
        why = with {:failed, text} <- reason, do: text, else: (_ -> inspect(reason))
        IO.puts(["  failed: ", why])
        :failed
    after
      @patience ->
        Process.exit(pid, :kill)
        IO.puts("  failed: no result within #{div(@patience, 1000)} s")
        :failed
    end
  end

  def stdio?, do: Code.ensure_loaded?(Stdio) and function_exported?(Stdio, :stream!, 1)

  def floor_path, do: System.get_env("STDIO_FLOOR", "")

  # Where Stdio is, for another BEAM.
  def code_paths do
    case :code.which(Stdio) do
      path when is_list(path) -> [path |> to_string() |> Path.dirname()]
      _ -> []
    end
  end

  def median([]), do: nil

  def median(list) do
    sorted = Enum.sort(list)
    half = div(length(sorted), 2)

    if rem(length(sorted), 2) == 1 do
      Enum.at(sorted, half)
    else
      (Enum.at(sorted, half - 1) + Enum.at(sorted, half)) / 2
    end
  end

  def numbers(list), do: Enum.filter(list, &is_number/1)

  defp usage(why) do
    IO.puts(
      :stderr,
      "bin/bench: #{why}\nusage: bin/bench [--quick] [--only NAME]... [--name FILE] [--publish]"
    )

    System.halt(64)
  end
end

defmodule Bench.Report do
  @moduledoc false

  @references [:floor, :port, :system_cmd]

  # One round, while it runs.
  def round(scenario, contenders, values) do
    Enum.map_join(contenders, "   ", fn contender ->
      figures =
        case values[contender] do
          {:ok, list} ->
            for {value, metric} <- Enum.zip(list, scenario.metrics), value != nil do
              "#{number(value)} #{metric.unit}"
            end

          :failed ->
            ["failed"]
        end

      "#{contender} #{Enum.join(figures, ", ")}"
    end)
  end

  def table(results) do
    header =
      ~w(scenario unit stdio port system_cmd floor ÷floor ÷port ÷system_cmd target met goal met)

    rows =
      for result <- results do
        [result.metric.name, result.metric.unit] ++
          for(contender <- [:stdio, :port, :system_cmd, :floor], do: cell(result, contender)) ++
          for(reference <- @references, do: ratio(result.ratios[reference])) ++
          expectation(result.target) ++ expectation(result.goal)
      end

    columns = Enum.zip_with([header | rows], & &1)
    widths = for column <- columns, do: column |> Enum.map(&String.length/1) |> Enum.max()
    rule = Enum.map(widths, &String.duplicate("-", &1))

    for row <- [header, rule | rows] do
      line = row |> Enum.zip(widths) |> Enum.with_index() |> Enum.map_join("  ", &pad/1)
      [String.trim_trailing(line), "\n"]
    end
  end

  # Figures to the right, words to the left.
  defp pad({{text, width}, column}) when column in 2..8, do: String.pad_leading(text, width)
  defp pad({{text, width}, _}), do: String.pad_trailing(text, width)

  defp cell(result, contender) do
    case result.values[contender] do
      nil -> ""
      list -> if :failed in list, do: "failed", else: number(result.medians[contender])
    end
  end

  defp ratio(nil), do: ""
  defp ratio(value), do: :erlang.float_to_binary(value / 1, decimals: 2)

  defp expectation([]), do: ["", ""]

  defp expectation(list) do
    met = Enum.map(list, &elem(&1, 1))

    verdict =
      cond do
        Enum.any?(met, &(&1 == false)) -> "no"
        Enum.any?(met, &is_nil/1) -> "?"
        true -> "yes"
      end

    [Enum.map_join(list, " ", &words(elem(&1, 0))), verdict]
  end

  defp words({compare, bound, :absolute}), do: "#{sign(compare)}#{bound}"
  defp words({compare, bound, reference}), do: "#{sign(compare)}#{bound}×#{reference}"

  defp sign(:at_most), do: "≤"
  defp sign(:at_least), do: "≥"

  # Three digits that count.
  def number(nil), do: ""
  def number(value) when abs(value) >= 100, do: value |> round() |> Integer.to_string()
  def number(value) when abs(value) >= 10, do: :erlang.float_to_binary(value / 1, decimals: 1)
  def number(value), do: :erlang.float_to_binary(value / 1, decimals: 2)

  def write!(results, machine, mode, name) do
    dir = Path.join(__DIR__, "results")
    File.mkdir_p!(dir)
    file = Path.join(dir, "#{name}.json")
    temporary = file <> ".tmp"

    document = [
      {"date", DateTime.utc_now() |> DateTime.truncate(:second) |> DateTime.to_iso8601()},
      {"mode", Atom.to_string(mode)},
      {"machine", machine},
      {"results", Enum.map(results, &result/1)}
    ]

    File.write!(temporary, [json(document, ""), "\n"])
    File.rename!(temporary, file)
    file
  end

  defp result(result) do
    figures =
      for {contender, list} <- Enum.sort(result.values) do
        numbers = Bench.numbers(list)

        {Atom.to_string(contender),
         [
           {"median", result.medians[contender]},
           {"min", Enum.min(numbers, fn -> nil end)},
           {"max", Enum.max(numbers, fn -> nil end)},
           {"failures", Enum.count(list, &(&1 == :failed))}
         ]}
      end

    [
      {"scenario", result.scenario.name},
      {"metric", result.metric.name},
      {"about", result.scenario.about},
      {"unit", result.metric.unit},
      {"rounds", result.scenario.rounds},
      {"figures", figures},
      {"stdio_to", for(name <- @references, do: {Atom.to_string(name), result.ratios[name]})},
      {"target", Enum.map(result.target, &expected/1)},
      {"goal", Enum.map(result.goal, &expected/1)}
    ]
  end

  defp expected({{compare, bound, reference}, met}) do
    [
      {"compare", Atom.to_string(compare)},
      {"bound", bound},
      {"reference", Atom.to_string(reference)},
      {"met", met}
    ]
  end

  # An object is a list of pairs, so that its order is kept. No package is needed for this much.
  defp json([{_, _} | _] = object, indent) do
    inner = indent <> "  "
    pairs = for {key, value} <- object, do: [inner, string(key), ": ", json(value, inner)]
    ["{\n", Enum.intersperse(pairs, ",\n"), "\n", indent, "}"]
  end

  defp json([], _), do: "[]"

  defp json(list, indent) when is_list(list) do
    inner = indent <> "  "
    items = for value <- list, do: [inner, json(value, inner)]
    ["[\n", Enum.intersperse(items, ",\n"), "\n", indent, "]"]
  end

  defp json(nil, _), do: "null"
  defp json(value, _) when is_boolean(value), do: Atom.to_string(value)
  defp json(value, _) when is_integer(value), do: Integer.to_string(value)
  defp json(value, _) when is_float(value), do: :erlang.float_to_binary(value, decimals: 3)
  defp json(value, _) when is_binary(value), do: string(value)

  defp string(text) do
    escaped =
      for <<char::utf8 <- text>>, into: "" do
        case char do
          ?" ->
            "\\\""

          ?\\ ->
            "\\\\"

          char when char < 0x20 ->
            "\\u" <> String.pad_leading(Integer.to_string(char, 16), 4, "0")

          char ->
            <<char::utf8>>
        end
      end

    [?", escaped, ?"]
  end
end

defmodule Bench.Plot do
  @moduledoc false
  # A row for each metric, a dot for each reference: how many times as good as it Stdio is, on a
  # logarithmic scale. Right of the line is better, whatever the unit.

  @references [floor: "#888888", port: "#d95f02", system_cmd: "#1b9e77"]
  @names %{floor: "floor (Rust, or bwrap)", port: "Port", system_cmd: "System.cmd"}
  @left 172
  @width 560
  @row 24
  @top 74
  # Of the scale: from 1/8 to 8 times; what lies beyond is at its end.
  @most 8

  def svg(results, machine_line) do
    rows = for result <- results, dots = dots(result), dots != [], do: {result.metric, dots}
    bottom = @top + length(rows) * @row
    width = @left + @width + 40

    [
      ~s(<svg xmlns="http://www.w3.org/2000/svg" width="#{width}" height="#{bottom + 74}" ),
      ~s(font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n),
      text(
        12,
        20,
        "Stdio compared: right of 1 is better than the reference",
        ~s(font-weight="bold")
      ),
      legend(),
      for(mark <- [0.125, 0.25, 0.5, 1, 2, 4, 8], do: mark(mark, bottom)),
      for(
        {row, index} <- Enum.with_index(rows),
        do: row(row, @top + index * @row + div(@row, 2))
      ),
      for {line, index} <- Enum.with_index(String.split(machine_line, "; ")) do
        text(12, bottom + 38 + index * 13, line, ~s(font-size="10" fill="#666666"))
      end,
      "</svg>\n"
    ]
  end

  defp dots(result) do
    for {reference, _} <- @references, ratio = result.ratios[reference], ratio > 0 do
      better = if String.ends_with?(result.metric.unit, "/s"), do: ratio, else: 1 / ratio
      {reference, better}
    end
  end

  defp legend do
    for {{reference, color}, index} <- Enum.with_index(@references) do
      x = @left + index * 190
      [dot(x, 42, color), text(x + 10, 46, @names[reference], "")]
    end
  end

  defp mark(value, bottom) do
    x = x(value)
    color = if value == 1, do: "#333333", else: "#dddddd"
    label = if value < 1, do: "1/#{round(1 / value)}", else: "#{value}"

    [
      ~s(<line x1="#{x}" y1="#{@top - 8}" x2="#{x}" y2="#{bottom}" stroke="#{color}"/>\n),
      text(x, bottom + 16, label, ~s(text-anchor="middle"))
    ]
  end

  defp row({metric, dots}, y) do
    [
      text(12, y + 4, metric.name, ""),
      for({reference, better} <- dots) do
        label =
          "#{metric.name}, #{@names[reference]}: #{:erlang.float_to_binary(better, decimals: 2)}"

        ["<g><title>#{label}</title>", dot(x(better), y, @references[reference]), "</g>\n"]
      end
    ]
  end

  defp x(value) do
    at = :math.log2(value |> min(@most) |> max(1 / @most)) / :math.log2(@most)
    round(@left + (at + 1) / 2 * @width)
  end

  defp dot(x, y, color), do: ~s(<circle cx="#{x}" cy="#{y}" r="5" fill="#{color}"/>\n)
  defp text(x, y, text, more), do: ~s(<text x="#{x}" y="#{y}" #{more}>#{text}</text>\n)
end

defmodule Bench.Machine do
  @moduledoc false

  def describe do
    [
      {"cpu", field("/proc/cpuinfo", ~r/^model name\s*:\s*(.*)$/m)},
      {"cores", :erlang.system_info(:logical_processors)},
      {"schedulers", System.schedulers_online()},
      {"memory_mib", memory()},
      {"os", field("/etc/os-release", ~r/^PRETTY_NAME="?(.*?)"?$/m)},
      {"kernel", field("/proc/sys/kernel/osrelease", ~r/^(.*)$/m)},
      {"architecture", to_string(:erlang.system_info(:system_architecture))},
      {"otp", otp()},
      {"erts", to_string(:erlang.system_info(:version))},
      {"emulator", to_string(:erlang.system_info(:emu_flavor))},
      {"elixir", System.version()},
      {"rustc", rustc()},
      {"stdio", version()}
    ]
  end

  def line(machine) do
    machine = Map.new(machine)

    "#{machine["cpu"]}, #{machine["cores"]} cores, #{machine["memory_mib"]} MiB; " <>
      "#{machine["os"]}, Linux #{machine["kernel"]}; OTP #{machine["otp"]} " <>
      "(#{machine["emulator"]}), Elixir #{machine["elixir"]}, #{machine["rustc"]}"
  end

  defp field(path, pattern) do
    with {:ok, text} <- File.read(path), [_, value] <- Regex.run(pattern, text) do
      value
    else
      _ -> nil
    end
  end

  defp memory do
    case field("/proc/meminfo", ~r/^MemTotal:\s+(\d+)/m) do
      nil -> nil
      kib -> div(String.to_integer(kib), 1024)
    end
  end

  defp otp do
    release = System.otp_release()
    file = Path.join([:code.root_dir(), "releases", release, "OTP_VERSION"])

    case File.read(file) do
      {:ok, version} -> String.trim(version)
      {:error, _} -> release
    end
  end

  defp rustc do
    case System.find_executable("rustc") do
      nil -> nil
      path -> path |> System.cmd(["--version"]) |> elem(0) |> String.trim()
    end
  end

  defp version do
    _ = Application.load(:stdio)

    case Application.spec(:stdio, :vsn) do
      nil -> nil
      version -> to_string(version)
    end
  end
end

Bench.main(System.argv())
