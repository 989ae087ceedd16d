defmodule Stdio.Faults.LoadTest do
  # FAULTS rows 10, 19 and the bound on threads, in second BEAMs that are short of descriptors or
  # are looked at from their first use of Stdio on.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault
  alias Stdio.Test.Peer

  @moduletag :testbin
  @moduletag timeout: 300_000

  setup_all do
    warm_up()
    :ok
  end

  # The rest of the peer's next line, which has to start like this.
  defp said!(peer, start, timeout \\ 60_000) do
    line = Peer.line(peer, timeout)

    if is_binary(line) and String.starts_with?(line, start) do
      String.replace_prefix(line, start, "")
    else
      more = for _ <- 1..4, do: Peer.line(peer, 300)
      Peer.stop(peer)
      flunk("expected #{inspect(start)}, the peer said #{inspect([line | more])}")
    end
  end

  # In the peer: `count` programs which all run at once, wait for a line and then exit with a
  # number of their own. Each result is what the program said and how it ended.
  @together ~S"""
  gate = spawn(fn -> Process.sleep(:infinity) end)

  wait = fn ->
    monitor = Process.monitor(gate)
    receive do {:DOWN, ^monitor, _, _, _} -> "go\n" end
  end

  start = fn count ->
    for n <- 1..count do
      Task.async(fn ->
        argv = ["/bin/sh", "-c", "echo up; read line; exit #{rem(n, 256)}", mark]

        try do
          {n, [wait] |> Stream.map(& &1.()) |> Stdio.pipe!(argv) |> Enum.to_list()}
        rescue
          error in Stdio.StreamError -> {n, {error.action, error.reason}}
        end
      end)
    end
  end

  go = fn -> Process.exit(gate, :kill) end
  exact? = fn {n, result} -> result == [stdout: "up\n", exit_status: rem(n, 256)] end
  """

  # The BEAM's own work: sockets and files, whose numbers must stay below its start-up limit, for
  # which its tables were made. State has the number of rounds, the longest of them in ms, and the
  # largest number of a socket.
  @own_work """
  defmodule Own do
    def start(path) do
      state = :atomics.new(3, [])
      {:ok, listen} = :gen_tcp.listen(0, [:binary, active: false, ip: {127, 0, 0, 1}])
      {:ok, port} = :inet.port(listen)
      spawn_link(fn -> round(listen, port, path, state) end)
      state
    end

    defp round(listen, port, path, state) do
      started = System.monotonic_time(:millisecond)
      {:ok, client} = :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, active: false])
      {:ok, server} = :gen_tcp.accept(listen)
      :ok = :gen_tcp.send(client, "ping")
      {:ok, "ping"} = :gen_tcp.recv(server, 4)
      {:ok, file} = :file.open(path, [:write, :raw])
      :ok = :file.write(file, "x")
      time = System.monotonic_time(:millisecond) - started

      :atomics.add(state, 1, 1)
      {:ok, fd} = :inet.getfd(server)
      max(state, 3, fd)
      max(state, 2, time)
      :ok = :file.close(file)
      :gen_tcp.close(client)
      :gen_tcp.close(server)
      round(listen, port, path, state)
    end

    # Many at a time, so that not only those numbers are seen which this has just given back.
    def highest(count) do
      sockets = for _ <- 1..count, {:ok, socket} <- [:gen_udp.open(0)], do: socket
      numbers = for socket <- sockets, {:ok, fd} <- [:inet.getfd(socket)], do: fd
      Enum.each(sockets, &:gen_udp.close/1)
      Enum.max(numbers)
    end

    defp max(state, index, value) do
      :atomics.put(state, index, Kernel.max(:atomics.get(state, index), value))
    end
  end

  own = Own.start(path)
  """

  @thousand @own_work <>
              @together <>
              ~S"""
              tasks = start.(count)
              all? = fn -> length(Stdio.Test.Proc.find(mark)) == count end
              all? = Stdio.Test.Proc.wait_until(all?, 60_000)
              before = :atomics.get(own, 1)
              more? = fn -> :atomics.get(own, 1) > before + 200 end
              more? = Stdio.Test.Proc.wait_until(more?, 10_000)
              IO.puts("together #{all?}, own work goes on #{more?}")
              IO.puts("highest of many #{Own.highest(500)}")
              go.()
              results = Task.await_many(tasks, 60_000)
              IO.puts("odd #{inspect(Enum.reject(results, exact?))}")
              [rounds, longest, highest] = for index <- 1..3, do: :atomics.get(own, index)
              IO.puts("own #{rounds} #{longest} #{highest}")
              """

  test "row 19: 1,000 at once under a soft limit of 1,024 descriptors", %{mark: mark} do
    path = Path.join(System.tmp_dir!(), mark)
    on_exit(fn -> File.rm(path) end)

    started = System.monotonic_time()

    peer = Proc.peer_beam(@thousand, nofile: 1024, assigns: [mark: mark, count: 1000, path: path])

    assert said!(peer, "together true, own work goes on true") == ""
    assert String.to_integer(said!(peer, "highest of many ")) < 1024
    assert said!(peer, "odd []") == ""
    time = elapsed(started)
    own = said!(peer, "own ")
    [rounds, longest, highest] = own |> String.split() |> Enum.map(&String.to_integer/1)
    assert highest < 1024
    Peer.stop(peer)

    report(
      "row 19, 1,000 at once: #{time} ms with the BEAM's start; meanwhile #{rounds} rounds of " <>
        "TCP and files, the longest #{longest} ms, highest descriptor #{highest}"
    )
  end

  # While the launcher is stopped, nothing can leave the state of being started.
  @pile_up @own_work <>
             @together <>
             ~S"""
             [exit_status: 0] = Enum.to_list(Stdio.stream!("true"))
             launcher = Stdio.Test.Fault.launcher()
             stopped? = fn -> Stdio.Test.Proc.stat(launcher).state == "T" end
             IO.puts("launcher #{launcher}")
             true = Stdio.Test.Proc.wait_until(stopped?)
             tasks = start.(count)
             waits? = &(Process.info(&1.pid, :status) == {:status, :waiting})
             Stdio.Test.Proc.wait_until(fn -> Enum.all?(tasks, waits?) end)
             before = :atomics.get(own, 1)
             more? = fn -> :atomics.get(own, 1) > before + 200 end
             more? = Stdio.Test.Proc.wait_until(more?, 2_000)
             IO.puts("own work goes on #{more?}, highest of many #{Own.highest(100)}")
             Stdio.Test.Proc.wait_until(fn -> not stopped?.() end)
             go.()
             results = Task.await_many(tasks, 60_000)
             IO.puts("odd #{inspect(Enum.reject(results, exact?))}")
             """

  test "row 19: starts that pile up leave the BEAM its descriptors", %{mark: mark} do
    path = Path.join(System.tmp_dir!(), mark)
    on_exit(fn -> File.rm(path) end)
    # The BEAM's limit is 256: what it opens itself with a larger number it cannot use.
    peer = Proc.peer_beam(@pile_up, nofile: 256, assigns: [mark: mark, count: 300, path: path])
    launcher = said!(peer, "launcher ")
    assert Proc.kill(launcher, "STOP") == :ok

    try do
      highest = said!(peer, "own work goes on true, highest of many ")
      assert String.to_integer(highest) < 256
    after
      Proc.kill(launcher, "CONT")
    end

    assert said!(peer, "odd []") == ""
    Peer.stop(peer)
  end

  # 40 BEAM's own, 4 for each program, more while one starts: some do not fit into 256.
  @scarce @together <>
            ~S"""
            # A BEAM that is not embedded loads its modules late, and needs descriptors for it.
            for app <- [:kernel, :stdlib, :elixir, :logger, :stdio] do
              Application.load(app)
              :code.ensure_modules_loaded(Application.spec(app, :modules))
            end
            results = fn tasks -> Task.await_many(tasks, 30_000) end
            tasks = start.(150)
            # Those that got no descriptors are back by now, the others wait. Until then there may be
            # none to look with.
            Stdio.Test.Proc.wait_until(fn ->
              down = Enum.count(tasks, &(not Process.alive?(&1.pid)))

              try do
                down > 0 and down + length(Stdio.Test.Proc.find(mark)) >= 150
              rescue
                File.Error -> false
              end
            end, 20_000)
            go.()
            {exact, other} = Enum.split_with(results.(tasks), exact?)
            IO.puts("refused #{length(other)} #{inspect(other |> Enum.map(&elem(&1, 1)) |> Enum.uniq())}")
            IO.puts("exact #{length(exact)}")
            # Recovered, for programs and for the BEAM's own files and sockets.
            again = for _ <- 1..20, do: Stdio.stream!("exit 7") |> Enum.to_list()
            IO.puts("again #{inspect(Enum.uniq(again))}")
            {:ok, socket} = :gen_tcp.listen(0, [])
            :gen_tcp.close(socket)
            IO.puts("file #{inspect(File.read("/proc/self/comm"))}")
            """

  test "rows 10 and 19: a hard limit of 256 descriptors", %{mark: mark} do
    peer = Proc.peer_beam(@scarce, nofile: 256, shell: "ulimit -Hn 256", assigns: [mark: mark])

    refused = said!(peer, "refused ")
    [count, reasons] = String.split(refused, " ", parts: 2)
    assert reasons == ~s([{"supervisor", :emfile}])
    exact = said!(peer, "exact ")
    assert String.to_integer(exact) + String.to_integer(count) == 150
    assert String.to_integer(exact) >= 30
    assert said!(peer, "again [[exit_status: 7]]") == ""
    assert said!(peer, ~S(file {:ok, "beam.smp\n"})) == ""
    Peer.stop(peer)
    report("row 10, hard limit 256: #{exact} of 150 ran, the others got emfile")
  end

  @threads ~S"""
  alias Stdio.Test.Proc
  # What the code server and the like do once is not Stdio's.
  Enum.each([Proc, Stdio.Test.Fault, Stdio.Test.Oracle, Task, Stream], &Code.ensure_loaded!/1)
  threads = fn -> map_size(Proc.threads()) end
  before = threads.()
  tasks = for _ <- 1..200, do: Task.async(fn -> Stdio.Test.Fault.outcome(Stdio.stream!(argv)) end)
  Proc.wait_until(fn -> length(Proc.find(mark)) == 200 end, 30_000)
  IO.puts("running #{length(Proc.find(mark))}")
  IO.puts("threads #{threads.() - before}")
  for task <- tasks, do: Task.shutdown(task, :brutal_kill)
  IO.puts("gone #{Proc.wait_until(fn -> Proc.gone?(mark) end)}")
  IO.puts("threads #{threads.() - before}")
  """

  test "200 programs take no more threads than one", %{mark: mark} do
    argv = [Proc.fixture("never-read"), mark]
    peer = Proc.peer_beam(@threads, assigns: [argv: argv, mark: mark])
    assert said!(peer, "running 200") == ""
    count = said!(peer, "threads ")
    assert String.to_integer(count) <= 4
    assert said!(peer, "gone true") == ""
    after_count = said!(peer, "threads ")
    assert String.to_integer(after_count) <= String.to_integer(count)
    Peer.stop(peer)
    report("200 programs: #{count} threads more than before the first use")
  end

  # docs/scaling.md: what bounds the number of streams of one BEAM.
  for {below, config, each} <- [
        {:its_own, [], 4},
        {:its_own, [stdin: :null], 3},
        {:its_own, [stderr: :stdout], 3},
        {:its_own, [stdin: :null, stderr: :stdout], 2},
        {:a_shared, [], 3},
        {:a_shared, [stdin: :null], 2},
        {:a_shared, [stderr: :stdout], 2},
        {:a_shared, [stdin: :null, stderr: :stdout], 1}
      ] do
    @tag run: {below, config, each}
    test "#{each} descriptors of the BEAM for a stream below #{below} supervisor, #{inspect(config)}",
         %{mark: mark, run: {below, config, each}} do
      {phases, supervisor} = below(below)
      argv = [Proc.fixture("never-read"), mark]
      me = self()
      before = map_size(Proc.fds())

      tasks =
        for _ <- 1..20 do
          Task.async(fn ->
            stream = Stdio.stream!(argv, phases, config)

            Enum.reduce_while(stream, nil, fn {:stdout, "ready\n"}, nil ->
              send(me, :ready)
              receive do: (:halt -> {:halt, nil})
            end)
          end)
        end

      for _ <- tasks, do: assert_receive(:ready, 10_000)
      # The sockets of the starts close a moment later; a spare supervisor has one.
      now = fn -> map_size(Proc.fds()) - before - 20 * each end
      assert Proc.wait_until(fn -> now.() in 0..1 end), "#{now.()} more than 20 times #{each}"
      for task <- tasks, do: send(task.pid, :halt)
      Task.await_many(tasks)
      if supervisor, do: Stdio.Task.stop(supervisor.init)
    end
  end

  defp below(:its_own), do: {Stdio.Process, nil}

  defp below(:a_shared) do
    {:ok, supervisor} = Stdio.supervisor(:noshutdown)
    {Stdio.with_supervisor(Stdio.Process, supervisor), supervisor}
  end
end
