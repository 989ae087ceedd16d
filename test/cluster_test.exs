defmodule Stdio.ClusterTest do
  # Two nodes of a cluster, both with the recipe of docs/scaling.md: one runs the programs, the other
  # consumes them. They find each other without epmd (OTP 24), at a port that was free a moment ago.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault, only: [report: 1, await_marked: 2]
  alias Stdio.Test.Peer

  @guide File.read!("docs/scaling.md")
  @external_resource "docs/scaling.md"
  @recipe Regex.run(~r/```elixir\n(defmodule RemoteStream .*?)```/s, @guide) |> List.last()

  setup do
    {:ok, socket} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(socket)
    :gen_tcp.close(socket)
    name = "stdio#{System.unique_integer([:positive])}-#{System.pid()}"

    worker =
      Peer.start(
        @recipe <> "{:ok, _} = Task.Supervisor.start_link(name: Jobs)\nIO.puts(\"ready\")\n",
        args: node("#{name}-worker", port, "")
      )

    assert Peer.line(worker) == "ready"
    %{worker: worker, worker_name: :"#{name}-worker@127.0.0.1", name: name, port: port}
  end

  defp node(name, port, more) do
    flags =
      "-name #{name}@127.0.0.1 -setcookie stdio -start_epmd false -erl_epmd_port #{port} " <>
        "-kernel inet_dist_use_interface {127,0,0,1} " <> more

    ["--erl", flags]
  end

  # A node that does not listen, and connects.
  defp consumer(context, source, assigns \\ []) do
    Peer.start(
      @recipe <> "true = Node.connect(worker)\njobs = {Jobs, worker}\n" <> source,
      args: node("#{context.name}-consumer", context.port, "-dist_listen false"),
      assigns: [worker: context.worker_name] ++ assigns
    )
  end

  defp finish(context, peer) do
    Peer.stop(peer)
    Peer.stop(context.worker)
  end

  test "a result of the other node", context do
    peer =
      consumer(context, """
      _ = jobs
      IO.inspect(:erpc.call(worker, Stdio, :cmd, ["sh", ["-c", "cat /proc/$PPID/comm; exit 3"]]))
      """)

    assert Peer.line(peer) == ~S|{"Supervise\n", 3}|
    finish(context, peer)
  end

  test "a stream comes whole, in order, with its end", context do
    peer =
      consumer(context, """
      elements = Enum.to_list(RemoteStream.stream!(jobs, "seq 1 100000; exit 3"))
      {output, [exit_status: 3]} = Enum.split_while(elements, &match?({:stdout, _}, &1))
      text = for {:stdout, chunk} <- output, into: "", do: chunk
      IO.puts(text == Enum.map_join(1..100_000, &"\#{&1}\\n"))
      """)

    assert Peer.line(peer) == "true"
    finish(context, peer)
  end

  test "a start that fails is heard of, also by a consumer that traps exits", context do
    peer =
      consumer(context, """
      Process.flag(:trap_exit, true)

      try do
        Enum.to_list(RemoteStream.stream!(jobs, ["/nope"]))
      catch
        :exit, {{%Stdio.StreamError{reason: reason}, _}, {RemoteStream, :stream!, _}} ->
          IO.inspect(reason)
      end
      """)

    assert Peer.line(peer) == ":enoent"
    finish(context, peer)
  end

  # Two with the mark.
  @command ["/bin/sh", "-c", "setsid /bin/sh -c 'sleep 1000; :' $0 & exec yes $0"]

  test "one that is slow holds the program up, and one that halts ends it", context do
    mark = context.mark
    go = Path.join(System.tmp_dir!(), "go-#{mark}")
    on_exit(fn -> File.rm(go) end)

    peer =
      consumer(
        context,
        """
        jobs
        |> RemoteStream.stream!(command)
        |> Stream.each(fn _ ->
          IO.puts("element")
          true = Stdio.Test.Proc.wait_until(fn -> File.exists?(go) end, 30_000)
        end)
        |> Enum.take(1)

        IO.puts("halted")
        IO.inspect({:messages, Stdio.Test.Proc.messages()})
        """,
        command: @command ++ [mark],
        go: go
      )

    assert Peer.line(peer) == "element"
    [yes] = for pid <- await_marked(mark, 2), %{name: "yes"} <- [Proc.stat(pid)], do: pid
    written = fn -> File.read!("/proc/#{yes}/io") end
    # The window, the pipe and no more.
    assert Proc.wait_until(fn ->
             before = written.()
             Process.sleep(200)
             written.() == before
           end)

    File.touch!(go)
    assert Peer.line(peer) == "halted"
    assert Peer.line(peer) == "{:messages, []}"
    assert Proc.wait_until(fn -> Proc.find(mark) == [] end)
    finish(context, peer)
  end

  test "the consumer's node dies: nothing is left on the other", context do
    peer =
      consumer(
        context,
        ~S|for _ <- RemoteStream.stream!(jobs, command), do: IO.puts("element")|,
        command: @command ++ [context.mark]
      )

    assert Peer.line(peer) == "element"
    await_marked(context.mark, 2)
    Peer.kill(peer)
    assert Proc.wait_until(fn -> Proc.find(context.mark) == [] end)
    # It goes on.
    assert Proc.alive?(context.worker.os_pid)
    Peer.stop(context.worker)
  end

  test "how fast it is", context do
    peer =
      consumer(context, """
      size = fn stream -> Enum.reduce(stream, 0, fn {:stdout, chunk}, sum -> sum + byte_size(chunk); _, sum -> sum end) end
      command = "head -c 134217728 /dev/zero"
      {here, 134217728} = :timer.tc(fn -> size.(Stdio.stream!(command)) end)
      {there, 134217728} = :timer.tc(fn -> size.(RemoteStream.stream!(jobs, command)) end)
      IO.puts("128 MiB here \#{div(here, 1000)} ms, of another node \#{div(there, 1000)} ms")
      """)

    line = Peer.line(peer, 60_000)
    assert line =~ "128 MiB"
    report(line)
    finish(context, peer)
  end
end
