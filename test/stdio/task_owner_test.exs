defmodule Stdio.TaskOwnerTest do
  # Who gets a task's events and how many, who feeds it, and whose end is its end.
  use Stdio.Test.StreamCase
  import Stdio.Test.Tasks
  alias Stdio.Task

  setup do
    %{root: root!()}
  end

  describe "options" do
    test "setopt, getopt", %{root: root} do
      defaults = [
        maxchild: 65_536,
        maxforkdepth: 128,
        exit_status: 1,
        termsig: 1,
        flowcontrol: -1,
        signaloneof: 15,
        stdin_closed: 0,
        stdout_closed: 0,
        stderr_closed: 0
      ]

      for {name, value} <- defaults do
        assert {name, Task.getopt(root, name)} == {name, value}

        assert Task.setopt(
                 root,
                 name |> Atom.to_string() |> String.upcase() |> String.to_atom(),
                 3
               )

        assert Task.getopt(root, name) == 3
      end

      child = fork!(root)
      assert for({name, _} <- defaults, do: Task.getopt(child, name)) == List.duplicate(3, 9)
      refute Task.setopt(root, :signaloneof, 65)
      refute Task.setopt(root, :unknown, 1)
      assert Task.getopt(root, :unknown) == false
      assert Task.setopt(root, :flowcontrol, -7)
      assert Task.getopt(root, :flowcontrol) == -1
      assert_raise ArgumentError, fn -> Task.setopt(root, :maxchild, -1) end
    end

    test "cpid, getcpid, setcpid", %{root: root} do
      child = fork!(root)
      pid = Task.pidof(child)

      assert %{
               pid: ^pid,
               exec: false,
               fdctl: fdctl,
               stdin: stdin,
               stdout: stdout,
               stderr: stderr,
               flowcontrol: -1,
               signaloneof: 15
             } = map = Task.cpid(root, child)

      assert Enum.all?([fdctl, stdin, stdout, stderr], &(&1 >= 0))
      assert Task.cpid(root, pid) == map
      assert Task.cpid(root) == [map]
      assert Task.cpid(root, 1) == :error
      assert Task.cpid(root, root) == :error

      assert Task.setcpid(child, :flowcontrol, 5)
      assert Task.getcpid(child, :flowcontrol) == 5
      assert Task.setcpid(root, pid, :FlowControl, 6)
      assert Task.getcpid(root, pid, :flowcontrol) == 6
      assert Task.setcpid(root, map, :signaloneof, 9)
      assert Task.getcpid(root, child, :signaloneof) == 9
      assert Task.setcpid(child, :flowcontrol, -3)
      assert Task.getcpid(child, :flowcontrol) == -1
      refute Task.setcpid(child, :pid, 1)
      refute Task.setcpid(root, 1, :flowcontrol, 1)
      refute Task.setcpid(root, :flowcontrol, 1)
      assert Task.getcpid(child, :unknown) == false
      assert Task.getcpid(root, 1, :flowcontrol) == false

      assert Task.eof(child, :stdin) == :ok
      assert Task.getcpid(child, :stdin) == -1
    end
  end

  describe "credit" do
    setup %{root: root} do
      assert Task.setopt(root, :flowcontrol, 0)
      %{cat: sh!(root, "echo first; while read line; do echo $line; done")}
    end

    test "nothing, one by one, more", %{cat: cat} do
      assert Task.getcpid(cat, :flowcontrol) == 0
      refute_receive {_, ^cat, _}, 100
      assert Task.setcpid(cat, :flowcontrol, 1)
      assert_receive {:stdout, ^cat, "first\n"}, 5000
      assert Task.stdin(cat, "second\n") == :ok
      refute_receive {_, ^cat, _}, 100
      assert Task.credit(cat, 1)
      assert_receive {:stdout, ^cat, "second\n"}, 5000
      assert Task.getcpid(cat, :flowcontrol) == 0
      assert Task.setcpid(cat, :flowcontrol, -1)
      assert Task.credit(cat, 5)
      assert Task.getcpid(cat, :flowcontrol) == -1
      assert Task.stdin(cat, "third\n") == :ok
      assert_receive {:stdout, ^cat, "third\n"}, 5000
      assert_raise ArgumentError, fn -> Task.credit(cat, 0) end
    end

    test "what is left comes after the end", %{cat: cat} do
      assert Task.stdin(cat, "a\n") == :ok
      assert Task.eof(cat) == :ok
      elements = events(cat)
      assert output(elements) == "first\na\n"
      assert List.last(elements) == {:exit_status, 0}
      assert Task.credit(cat, 1) == false
    end

    test "a full pipe blocks the program", %{root: root, mark: mark} do
      yes = sh!(root, "yes; :", mark)
      refute_receive {_, ^yes, _}, 100
      assert Task.setcpid(yes, :flowcontrol, 3)
      for _ <- 1..3, do: assert_receive({:stdout, ^yes, _}, 5000)
      refute_receive {_, ^yes, _}, 100
      assert Task.eof(yes, :stdout) == :ok
      assert [{:exit_status, _}] = events(yes) |> Enum.reject(&match?({:stderr, _}, &1))
    end
  end

  describe "stdin" do
    test "before exec, and its end", %{root: root} do
      task = fork!(root)
      assert Task.stdin(task, [?a, "b", [~c"c"]]) == :ok
      assert Task.eof(task) == :ok
      assert Task.execve(task, ["/bin/cat"], []) == :ok
      assert events(task) == [stdout: "abc", exit_status: 0]
      assert Task.stdin(task, "d") == {:error, :epipe}
      assert Task.eof(task) == {:error, :esrch}
    end

    test "closed twice", %{root: root, mark: mark} do
      task = sleeper!(root, mark)
      assert Task.eof(task, :stdin) == :ok
      assert Task.eof(task, :stdin) == {:error, :ebadf}
      assert Task.stdin(task, "a") == {:error, :epipe}
      assert Task.eof(task, :stderr) == :ok
      assert Task.eof(task, :stderr) == {:error, :ebadf}
    end

    test "the parent's way", %{root: root} do
      task = fork!(root)
      assert Task.execve(task, ["/bin/cat"], []) == :ok
      assert Task.eof(root, 1) == {:error, :esrch}
      assert Task.eof(root, task, :stderr) == :ok
      assert Task.eof(root, Task.pidof(task), :stderr) == {:error, :ebadf}
      assert Task.eof(root, task) == :ok
      assert events(task) == [exit_status: 0]
    end

    test "blocks its caller alone, until the task ends", %{root: root, mark: mark} do
      task = sleeper!(root, mark)
      writer = Elixir.Task.async(fn -> Task.stdin(task, String.duplicate("a", 1_000_000)) end)
      assert Elixir.Task.yield(writer, 100) == nil
      assert is_integer(Task.getpid(root))
      assert Task.execed(task)
      assert Task.stop(task) == :ok
      assert Elixir.Task.await(writer, 10_000) == {:error, :epipe}
    end

    test "calls are not interleaved", %{root: root} do
      task = fork!(root)
      assert Task.execve(task, ["/bin/cat"], []) == :ok

      writers =
        for letter <- ?a..?j do
          Elixir.Task.async(fn -> Task.stdin(task, String.duplicate(<<letter>>, 100_000)) end)
        end

      assert Elixir.Task.await_many(writers, 20_000) == List.duplicate(:ok, 10)
      assert Task.eof(task) == :ok
      output = task |> events() |> output()
      assert byte_size(output) == 1_000_000
      runs = for <<run::binary-size(100_000) <- output>>, do: run
      assert Enum.sort(runs) == for(letter <- ?a..?j, do: String.duplicate(<<letter>>, 100_000))
    end
  end

  describe "owners" do
    test "the caller of fork, whoever owns the parent", %{root: root} do
      {other, task} = elsewhere(fn -> sh!(root, "read _; echo a") end)
      assert Task.stdin(task, "x\n") == :ok
      assert_receive {:relayed, ^other, {:stdout, ^task, "a\n"}}, 5000
      assert_receive {:relayed, ^other, {:exit_status, ^task, 0}}, 5000
      assert messages() == []
    end

    test "controlling_process", %{root: root, mark: mark} do
      task = sh!(root, "cat; :", mark)
      {other, refused} = elsewhere(fn -> Task.controlling_process(task, self()) end)
      assert refused == {:error, :eacces}

      {dead, :ok} = elsewhere(fn -> :ok end)
      kill!(dead)
      assert Task.controlling_process(task, dead) == {:error, :badarg}
      assert Task.stdin(task, "mine\n") == :ok
      assert_receive {:stdout, ^task, "mine\n"}, 5000

      assert Task.controlling_process(task, other) == :ok
      assert Task.controlling_process(task, self()) == {:error, :eacces}
      assert Task.stdin(task, "yours\n") == :ok
      assert_receive {:relayed, ^other, {:stdout, ^task, "yours\n"}}, 5000

      kill!(other)
      assert Proc.wait_until(fn -> Proc.gone?(mark) end, 5000)
      # Its end is reported a little later.
      assert Proc.wait_until(fn -> Task.pidof(task) == :noproc end, 5000)
      assert Task.controlling_process(task, self()) == {:error, :esrch}
      assert messages() == []
    end

    test "stdio: output elsewhere, and back when that dies", %{root: root} do
      task = sh!(root, "cat")
      {other, :ok} = elsewhere(fn -> :ok end)
      assert Task.stdio(task, other) == :ok
      assert Task.stdin(task, "a") == :ok
      assert_receive {:relayed, ^other, {:stdout, ^task, "a"}}, 5000
      kill!(other)
      assert Task.stdio(task, other) == {:error, :badarg}
      assert Task.stdin(task, "b") == :ok
      assert_receive {:stdout, ^task, "b"}, 5000

      # At once, too. It takes a while until everybody has heard of this one's death, and the core is among
      # the last.
      other = spawn(fn -> receive(do: (:die -> :ok)) end)
      monitors = for _ <- 1..50_000, do: Process.monitor(other)
      assert Task.stdio(task, other) == :ok
      send(other, :die)
      assert_receive {:DOWN, _, :process, ^other, :normal}
      assert Task.stdin(task, "c") == :ok
      assert_receive {:stdout, ^task, "c"}, 5000
      for monitor <- monitors, do: Process.demonitor(monitor, [:flush])

      assert Task.eof(task) == :ok
      assert events(task) == [exit_status: 0]
      assert Task.stdio(task, self()) == {:error, :esrch}
    end

    test "the death of a root's owner: the tree dies, other owners hear of theirs", %{mark: mark} do
      {owner, root} = elsewhere(fn -> root!() end)
      pid = Task.pidof(root)
      mine = sleeper!(root, mark)
      waiting = fork!(root)
      kill!(owner)
      assert events(mine) == [termsig: :sigkill]
      assert events(waiting) == [termsig: :sigkill]
      assert Proc.wait_until(fn -> Proc.gone?(mark) and not Proc.alive?(pid) end, 5000)
      assert Task.fork(root) == {:error, :esrch}
    end

    test "the death of a child's owner: that child and what is below", %{root: root, mark: mark} do
      {owner, {middle, _leaf}} =
        elsewhere(fn ->
          middle = fork!(root)
          {middle, sleeper!(middle, mark)}
        end)

      mine = sleeper!(middle, mark)
      kill!(owner)
      assert events(mine) == [termsig: :sigkill]
      assert Proc.wait_until(fn -> Proc.gone?(mark) end, 5000)
      assert Proc.wait_until(fn -> Task.pidof(middle) == :noproc end)
      assert Task.sh(root, "echo alive") == "alive\n"
    end
  end
end
