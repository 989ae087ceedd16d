defmodule Stdio.ModelTest do
  # Random sequences of what can be done to a running program, against what CONTRACT 6 says of bytes,
  # credit and ends. A failure prints the sequence and its seed: STDIO_SEED=n runs that one first.
  #
  # The program is `tee /dev/stderr`, the input a pattern, so at any time both streams have to be a
  # prefix of what was written, and all of it after an end that nobody forced.
  use Stdio.Test.StreamCase

  import Bitwise, only: [<<<: 2]
  import Stdio.Test.{Fault, Tasks}
  alias Stdio.Task

  @moduletag timeout: 900_000
  @sequences 60
  @many 3_000
  # What has to happen happens within this, on a busy machine too.
  @patience 10_000

  ## Sequences

  defp seeds do
    count = size(@sequences, @many)
    first = :rand.uniform(1 <<< 32)

    case System.get_env("STDIO_SEED") do
      nil -> Enum.to_list(first..(first + count - 1))
      seed -> [String.to_integer(seed)]
    end
  end

  defp each_seed(fun) do
    for seed <- seeds() do
      :rand.seed(:exsss, seed)

      try do
        fun.()
      rescue
        error ->
          IO.puts("\n  failed with STDIO_SEED=#{seed}: #{inspect(Process.get(:sequence))}")
          reraise error, __STACKTRACE__
      end
    end
    |> length()
  end

  defp pick(weighted) do
    total = weighted |> Enum.map(&elem(&1, 0)) |> Enum.sum()

    Enum.reduce_while(weighted, :rand.uniform(total), fn {weight, item}, left ->
      if left <= weight, do: {:halt, item}, else: {:cont, left - weight}
    end)
  end

  defp bytes do
    pick([
      {1, 0},
      {4, :rand.uniform(100)},
      {4, :rand.uniform(70_000)},
      {1, :rand.uniform(400_000)}
    ])
  end

  defp action do
    case pick([
           {8, :write},
           {6, :read},
           {3, :credit},
           {2, :flowcontrol},
           {2, :garbage},
           {2, :wait},
           {1, :eof},
           {1, :kill},
           {1, :stop},
           {1, :owner_stop},
           {1, :owner_dies}
         ]) do
      :write -> {:write, bytes()}
      :credit -> {:credit, :rand.uniform(4)}
      :flowcontrol -> {:flowcontrol, pick([{2, 0}, {2, :rand.uniform(3)}, {2, -1}])}
      :kill -> {:kill, pick([{1, "KILL"}, {1, "TERM"}])}
      :wait -> {:wait, :rand.uniform(3) - 1}
      other -> other
    end
  end

  # What ends the program comes once, and a little is tried after it.
  defp sequence do
    actions = for _ <- 1..(3 + :rand.uniform(20)), do: action()
    {before, rest} = Enum.split_while(actions, &(not ending?(&1)))
    before ++ Enum.take(rest, 3)
  end

  defp ending?(action) do
    match?({:kill, _}, action) or action in [:eof, :stop, :owner_stop, :owner_dies]
  end

  ## Tasks: the owner is a process of its own, which keeps what it is sent; a third one writes

  defp owner(root, credit) do
    parent = self()

    pid =
      spawn(fn ->
        {:ok, task} = Task.fork(root)
        true = Task.setcpid(task, :flowcontrol, credit)
        argv = ["/bin/sh", "-c", "exec tee /dev/stderr", Process.get(:mark, "sh")]
        :ok = Task.execve(task, "/bin/sh", argv, ["PATH=/bin:/usr/bin"])
        send(parent, {:task, self(), task})
        own(task, %{stdout: [], stderr: [], chunks: 0, terminal: []})
      end)

    assert_receive {:task, ^pid, task}, @patience
    {pid, task}
  end

  defp own(task, seen) do
    receive do
      {stream, ^task, bytes} when stream in [:stdout, :stderr] ->
        # Nothing comes behind the end.
        [] = seen.terminal
        seen = Map.update!(seen, stream, &[&1, bytes])
        own(task, %{seen | chunks: seen.chunks + 1})

      {kind, ^task, value} when kind in [:exit_status, :termsig] ->
        own(task, %{seen | terminal: [{kind, value} | seen.terminal]})

      {:ask, from, ref, fun} ->
        send(from, {ref, fun.(seen)})
        own(task, seen)

      {:do, from, ref, fun} ->
        # What was sent before this is in the mailbox already, and is counted first.
        result = fun.()
        send(self(), {:ask, from, ref, fn seen -> {result, seen} end})
        own(task, seen)
    end
  end

  defp ask(owner, fun \\ & &1), do: request(owner, :ask, fun)
  defp have_done(owner, fun), do: request(owner, :do, fun)

  defp request(owner, kind, fun) do
    ref = make_ref()
    send(owner, {kind, self(), ref, fun})
    assert_receive {^ref, answer}, @patience
    answer
  end

  # Writes in order; the counters say how many bytes were accepted, how many writes were refused and
  # how many have an answer.
  defp writer(task) do
    counters = :counters.new(3, [])
    {spawn_link(fn -> write(task, counters) end), counters}
  end

  defp write(task, counters) do
    receive do
      {:write, offset, size} ->
        case Task.stdin(task, binary_part(pattern(), offset, size)) do
          :ok -> :counters.add(counters, 1, size)
          {:error, :epipe} -> :counters.add(counters, 2, 1)
        end

        :counters.add(counters, 3, 1)
        write(task, counters)
    end
  end

  # Before the time is up, or `:blocked` in a write, which is as it should be without credit.
  defp writer_state({_, counters}, writes, timeout) do
    if Proc.wait_until(fn -> :counters.get(counters, 3) == writes end, timeout) do
      %{accepted: :counters.get(counters, 1), refused: :counters.get(counters, 2) > 0}
    else
      :blocked
    end
  end

  defp pattern do
    with nil <- :persistent_term.get(__MODULE__, nil) do
      pattern = Stdio.Test.Fixtures.pattern(10_000_000)
      :persistent_term.put(__MODULE__, pattern)
      pattern
    end
  end

  # The model: what was asked for, the credit that is left at most, what has ended the program.
  defp run_sequence(root, mark) do
    Process.put(:mark, mark)
    credit = pick([{2, -1}, {2, 0}, {2, :rand.uniform(3)}])
    actions = sequence()
    Process.put(:sequence, {credit, actions})

    {owner, task} = owner(root, credit)
    os_pid = Task.pidof(task)

    model = %{
      root: root,
      owner: owner,
      task: task,
      writer: writer(task),
      os_pid: os_pid,
      asked: 0,
      writes: 0,
      credit: credit,
      granted_at: 0,
      ended: nil
    }

    model = Enum.reduce(actions, model, &step/2)
    finish(model)
    {writer, _} = model.writer
    Process.unlink(writer)
    Process.exit(writer, :kill)
    assert messages() == []
    assert Proc.wait_until(fn -> not Proc.alive?(os_pid) end)
  end

  defp step({:write, size}, model) do
    # Pipes and queue together hold less than this: the rest of the pattern is never reached.
    if model.asked + size > 5_000_000 do
      model
    else
      send(elem(model.writer, 0), {:write, model.asked, size})
      %{model | asked: model.asked + size, writes: model.writes + 1}
    end
  end

  defp step({:wait, ms}, model) do
    Process.sleep(ms)
    check(model)
  end

  # A chunk more, if there is anything that could come.
  defp step(:read, %{ended: nil} = model) do
    seen = ask(model.owner)
    {_, model} = credit(model, 1)

    case writer_state(model.writer, model.writes, 20) do
      %{accepted: accepted} when accepted > 0 ->
        if byte_size(out(seen, :stdout)) < accepted do
          assert Proc.wait_until(fn -> ask(model.owner).chunks > seen.chunks end, @patience)
        end

      _ ->
        :ok
    end

    check(model)
  end

  defp step(:read, model), do: check(model)
  defp step({:credit, n}, model), do: model |> credit(n) |> elem(1) |> check()

  defp step({:flowcontrol, n}, %{ended: nil} = model) do
    {true, seen} = have_done(model.owner, fn -> Task.setcpid(model.task, :flowcontrol, n) end)

    check(%{model | credit: n, granted_at: seen.chunks})
  end

  defp step({:flowcontrol, n}, model) do
    if model.ended != :owner, do: Task.setcpid(model.task, :flowcontrol, n)
    model
  end

  defp step(:garbage, model) do
    if model.ended != :owner, do: :erlang.garbage_collect(model.owner)
    :erlang.garbage_collect()
    check(model)
  end

  defp step(:eof, model) do
    assert Task.eof(model.task) in [:ok, {:error, :ebadf}, {:error, :esrch}]
    end_by(model, :eof)
  end

  defp step({:kill, signal}, model) do
    # Not a pid that somebody else has by now.
    if model.ended == nil, do: Proc.kill(model.os_pid, signal)
    end_by(model, signal)
  end

  defp step(:stop, model) do
    assert Task.stop(model.task) == :ok
    refute Proc.alive?(model.os_pid)
    end_by(model, "KILL")
  end

  defp step(:owner_stop, %{ended: :owner} = model), do: model

  defp step(:owner_stop, model) do
    {:ok, _} = have_done(model.owner, fn -> Task.stop(model.task) end)
    refute Proc.alive?(model.os_pid)
    # Nothing more is sent to who stopped it, if it was not at its end already.
    end_by(model, :silent)
  end

  defp step(:owner_dies, model) do
    kill!(model.owner)
    %{model | ended: :owner}
  end

  # The first end is the one that counts, but with an end of input whatever comes later may be
  # faster; an owner that is dead is told nothing.
  defp end_by(%{ended: nil} = model, cause), do: %{model | ended: [cause]}
  defp end_by(%{ended: :owner} = model, _), do: model
  defp end_by(model, cause), do: %{model | ended: model.ended ++ [cause]}

  defp credit(%{ended: nil} = model, n) do
    assert Task.credit(model.task, n)
    {:ok, if(model.credit < 0, do: model, else: %{model | credit: model.credit + n})}
  end

  defp credit(model, n) do
    assert Task.credit(model.task, n) in [true, false]
    {:ok, model}
  end

  defp check(%{ended: :owner} = model), do: model

  defp check(model) do
    seen = ask(model.owner)
    for stream <- [:stdout, :stderr], do: assert_prefix(seen, stream, model)

    if model.ended == nil do
      assert seen.terminal == []
      if model.credit >= 0, do: assert(seen.chunks - model.granted_at <= model.credit)
    end

    model
  end

  defp out(seen, stream), do: seen |> Map.fetch!(stream) |> IO.iodata_to_binary()

  defp assert_prefix(seen, stream, model) do
    out = out(seen, stream)
    assert byte_size(out) <= model.asked
    assert :binary.longest_common_prefix([out, pattern()]) == byte_size(out)
  end

  defp finish(%{ended: :owner} = model) do
    assert Proc.wait_until(fn -> not Proc.alive?(model.os_pid) end)
    dead(model)
  end

  defp finish(%{ended: nil} = model) do
    # Everything comes, and then the end that nobody has forced.
    true = Task.setcpid(model.task, :flowcontrol, -1)

    assert %{refused: false} = state = writer_state(model.writer, model.writes, @patience)
    assert state.accepted == model.asked
    assert Task.eof(model.task) == :ok
    assert Task.eof(model.task) in [{:error, :ebadf}, {:error, :esrch}]
    seen = terminal(model)
    assert seen.terminal == [exit_status: 0]
    for stream <- [:stdout, :stderr], do: assert(byte_size(out(seen, stream)) == model.asked)
    finished(model, seen)
  end

  defp finish(model) do
    # Whatever is left goes on: the end of the input is an end only if all of it can come out.
    Task.setcpid(model.task, :flowcontrol, -1)

    if :silent in model.ended do
      seen = ask(model.owner)
      # One that came in time is right; there is never a second.
      assert seen.terminal in ([[] | possible(model)] -- [:silent])
      dead(model)
    else
      seen = terminal(model)
      assert seen.terminal in possible(model)
      state = writer_state(model.writer, model.writes, @patience)
      assert state != :blocked

      # Nobody has cut it short: all that was accepted before came out.
      if model.ended == [:eof] do
        for stream <- [:stdout, :stderr],
            do: assert(byte_size(out(seen, stream)) >= state.accepted)

        unless state.refused, do: assert(byte_size(out(seen, :stdout)) == model.asked)
      end

      finished(model, seen)
    end
  end

  defp possible(model) do
    for cause <- model.ended do
      case cause do
        :eof -> [exit_status: 0]
        "KILL" -> [termsig: :sigkill]
        "TERM" -> [termsig: :sigterm]
        :silent -> :silent
      end
    end
  end

  defp terminal(model) do
    assert Proc.wait_until(fn -> ask(model.owner).terminal != [] end, @patience)
    ask(model.owner)
  end

  defp finished(model, seen) do
    for stream <- [:stdout, :stderr], do: assert_prefix(seen, stream, model)
    # The two streams are of one program: of one that ended by itself they are equal.
    if seen.terminal == [exit_status: 0], do: assert(out(seen, :stdout) == out(seen, :stderr))
    dead(model)
    # One end, and nothing behind it.
    assert ask(model.owner) == seen
    kill!(model.owner)
  end

  defp dead(model) do
    task = model.task
    assert Proc.wait_until(fn -> Task.pidof(task) == :noproc end)
    assert Task.stdin(task, "x") == {:error, :epipe}
    refute Task.credit(task, 1)
    assert Task.eof(task) == {:error, :esrch}
    assert Task.stop(task) == :ok
    assert Task.cpid(model.root, task) == :error
  end

  test "a program that is written to, read, starved, killed and abandoned", %{mark: mark} do
    root = root!()
    count = each_seed(fn -> run_sequence(root, mark) end)
    assert Task.cpid(root) == []
    assert Task.stop(root) == :ok
    assert messages() == []
    report("model, tasks: #{count} sequences")
  end

  ## Streams: what the consumer does at each element

  defp consume do
    case pick([
           {20, :next},
           {3, :garbage},
           {3, :wait},
           {2, :kill},
           {1, :halt},
           {1, :raise},
           {1, :nested}
         ]) do
      :wait -> {:wait, :rand.uniform(3) - 1}
      :kill -> {:kill, pick([{1, "KILL"}, {1, "TERM"}])}
      other -> other
    end
  end

  defp run_stream(mark) do
    sizes = for _ <- 1..:rand.uniform(12), do: bytes()
    script = for _ <- 1..40, do: consume()
    behaviour = pick([{3, Stdio.Process}, {1, Stdio.Test.Plain}])
    config = pick([{3, []}, {1, [max_chunk: 1000]}, {1, [stderr: :null]}])
    Process.put(:sequence, {sizes, script, behaviour, config})

    total = Enum.sum(sizes)
    {input, ^total} = Enum.map_reduce(sizes, 0, &{binary_part(pattern(), &2, &1), &2 + &1})
    argv = ["/bin/sh", "-c", "exec tee /dev/stderr", mark]

    consumed =
      try do
        input
        |> Stdio.pipe!(argv, behaviour, config)
        |> Enum.reduce_while({[], script, []}, fn element, {elements, script, done} ->
          {action, script} = List.pop_at(script, 0, :next)
          done = if action == :next, do: done, else: [action | done]
          # Kept for when it raises.
          Process.put(:elements, [element | elements])

          case act(action, element, mark) do
            :halt -> {:halt, {[element | elements], script, done}}
            _ -> {:cont, {[element | elements], script, done}}
          end
        end)
        |> then(fn {elements, _, done} -> {Enum.reverse(elements), done} end)
      rescue
        error in RuntimeError ->
          assert error.message == "as the sequence says"
          {Enum.reverse(Process.get(:elements)), [:raise]}
      end

    {elements, done} = consumed
    cut? = :halt in done or :raise in done
    terminals = for {kind, value} <- elements, kind in [:exit_status, :termsig], do: {kind, value}
    unless cut?, do: assert([_] = terminals)
    if terminals != [], do: assert(terminals == [List.last(elements)])

    streams = if config[:stderr] == :null, do: [:stdout], else: [:stdout, :stderr]

    for stream <- streams do
      out = output(elements, stream)
      assert :binary.longest_common_prefix([out, pattern()]) == byte_size(out)
      assert byte_size(out) <= total
      if terminals == [exit_status: 0], do: assert(byte_size(out) == total)
      limit = config[:max_chunk] || 65_536
      for {^stream, chunk} <- elements, do: assert(byte_size(chunk) in 1..limit)
    end

    killed = for {:kill, signal} <- done, do: {:termsig, :"sig#{String.downcase(signal)}"}
    for terminal <- terminals, do: assert(terminal in [{:exit_status, 0} | killed])
    assert messages() == []
    assert Proc.find(mark) == []
  end

  defp act({:wait, ms}, _, _), do: Process.sleep(ms)
  defp act(:garbage, _, _), do: :erlang.garbage_collect()
  defp act({:kill, signal}, _, mark), do: for(pid <- Proc.find(mark), do: Proc.kill(pid, signal))
  defp act(:raise, _, _), do: raise("as the sequence says")
  defp act(:nested, _, _), do: assert(list("echo nested") == [stdout: "nested\n", exit_status: 0])
  defp act(other, _, _), do: other

  test "a stream that is read, left, raised in, nested, and whose program is killed", %{
    mark: mark
  } do
    count = each_seed(fn -> run_stream(mark) end)
    report("model, streams: #{count} sequences")
  end

  test "consumers that die at any time", %{mark: mark} do
    count =
      each_seed(fn ->
        sizes = for _ <- 1..:rand.uniform(8), do: bytes()
        lives = :rand.uniform(12) - 1
        Process.put(:sequence, {sizes, lives})
        argv = ["/bin/sh", "-c", "exec tee /dev/stderr", mark]
        input = Enum.map(sizes, &binary_part(pattern(), 0, &1))
        consumer = spawn(fn -> input |> Stdio.pipe!(argv) |> Stream.run() end)
        Process.sleep(lives)
        kill!(consumer)
        # The feeder too, which is not linked to anything.
        assert Proc.wait_until(fn -> Proc.find(mark) == [] end)
      end)

    assert messages() == []
    report("model, dying consumers: #{count} sequences")
  end
end
