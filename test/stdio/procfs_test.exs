defmodule Stdio.ProcfsTest do
  use ExUnit.Case, async: true

  # Its examples are about the procfs of this machine.
  if :os.type() == {:unix, :linux}, do: doctest(Stdio.Procfs)

  alias Stdio.Procfs

  import Stdio.Test.FakeProcfs, only: [write: 3]

  # Without a list of children; `threads: false` without a directory for it.
  defp fake(processes, options \\ []) do
    root = Stdio.Test.FakeProcfs.empty()

    for {pid, parent} <- processes do
      Stdio.Test.FakeProcfs.add(root, pid, parent)
      if options[:threads] != false, do: File.mkdir_p!(Path.join(root, "#{pid}/task/#{pid}"))
    end

    root
  end

  describe "ps/1" do
    test "names in lower case, values trimmed, lowest id first" do
      root = fake(%{})

      status =
        "Name:\ta: b\\n\nState:\tS (sleeping)\nPid:\t10\nPPid:\t2\nVmRSS:\t   120 kB\n" <>
          "Groups:\t \nUid:\t1\t2\t3\t4\n"

      write(root, "10/status", status)
      write(root, "9/status", "Name:\tx\nPid:\t9\n")

      assert Procfs.ps(root) == [
               %{"name" => "x", "pid" => "9"},
               %{
                 "name" => "a: b\\n",
                 "state" => "S (sleeping)",
                 "pid" => "10",
                 "ppid" => "2",
                 "vmrss" => "120 kB",
                 "groups" => "",
                 "uid" => "1\t2\t3\t4"
               }
             ]
    end

    test "a name that is not UTF-8" do
      root = fake(%{})
      write(root, "3/status", <<"Name:\t", 0xFF, 0xC3, "\nPid:\t3\n">>)
      assert Procfs.ps(root) == [%{"name" => <<0xFF, 0xC3>>, "pid" => "3"}]
    end

    test "a process that has vanished is left out, and what is no process" do
      root = fake(%{5 => 1})
      File.mkdir_p!(Path.join(root, "6"))
      File.mkdir_p!(Path.join(root, "7x"))
      File.mkdir_p!(Path.join(root, "sys"))
      assert [%{"pid" => "5"}] = Procfs.ps(root)
    end

    test "no procfs" do
      assert Procfs.ps("/nonexistent") == []
      assert Procfs.children(0, "/nonexistent") == []
      assert Procfs.children(1, "/nonexistent") == []
    end

    @tag :linux
    test "this system's" do
      pids = for process <- Procfs.ps(), do: process["pid"]
      assert "1" in pids
      assert System.pid() in pids
      own = Enum.find(Procfs.ps(), &(&1["pid"] == System.pid()))
      assert %{"name" => _, "ppid" => _, "state" => _} = own
    end

    @tag :linux
    test "while processes come and go" do
      churn = Task.async(fn -> for _ <- 1..50, do: System.cmd("true", []) end)
      for _ <- 1..20, process <- Procfs.ps(), do: assert(process["pid"])
      Task.await(churn, 30_000)
    end
  end

  describe "children/2" do
    test "0 lists everything, lowest first" do
      assert Procfs.children(0, fake(%{100 => 1, 20 => 1, 3 => 2, 1 => 0})) == [1, 3, 20, 100]
    end

    test "direct children of all threads, lowest first, each once" do
      root = fake(%{1 => 0, 20 => 1, 30 => 20})
      write(root, "1/task/1/children", "30 20 \n")
      write(root, "1/task/7/children", "4 20 ")
      write(root, "20/task/20/children", "")
      assert Procfs.children(1, root) == [4, 20, 30]
      assert Procfs.children(20, root) == []
    end

    test "a thread that has vanished does not start the walk" do
      root = fake(%{1 => 0, 20 => 1, 30 => 20})
      write(root, "1/task/1/children", "20 ")
      File.mkdir_p!(Path.join(root, "1/task/8"))
      assert Procfs.children(1, root) == [20]
    end

    test "without such files: all descendants" do
      processes = %{1 => 0, 50 => 1, 20 => 50, 30 => 20, 40 => 1, 60 => 2, 2 => 0}

      for options <- [[], [threads: false]] do
        root = fake(processes, options)
        assert Procfs.children(1, root) == [20, 30, 40, 50]
        assert Procfs.children(50, root) == [20, 30]
        assert Procfs.children(30, root) == []
      end
    end

    test "the walk ends where a snapshot has a cycle, and does without a parent" do
      root = fake(%{5 => 7, 6 => 5, 7 => 6, 8 => 8})
      write(root, "9/status", "Pid:\t9\n")
      assert Procfs.children(5, root) == [6, 7]
      assert Procfs.children(8, root) == []
    end

    test "no such process" do
      assert Procfs.children(77, fake(%{1 => 0, 2 => 77})) == []
    end

    test "an id is not negative" do
      assert_raise FunctionClauseError, fn -> Procfs.children(-1) end
    end

    @tag :linux
    test "of this system: direct ones only" do
      line = "sh -c 'echo $$; sleep 8391; :' & echo $$; wait"
      port = Port.open({:spawn_executable, "/bin/sh"}, [:binary, line: 99, args: ["-c", line]])
      assert_receive {^port, {:data, {:eol, one}}}, 5000
      assert_receive {^port, {:data, {:eol, other}}}, 5000
      {:os_pid, outer} = Port.info(port, :os_pid)
      [inner] = Enum.map([one, other], &String.to_integer/1) -- [outer]
      assert Procfs.children(outer) == [inner]
      assert [_sleep] = eventually(fn -> Procfs.children(inner) end)
      assert 1 = hd(Procfs.children(0))
      System.cmd("kill", Enum.map([outer, inner | Procfs.children(inner)], &to_string/1))
    end
  end

  describe "descendants/2" do
    test "parents before their children, each once, whatever their ids" do
      root = Stdio.Test.FakeProcfs.new(%{1 => 0, 50 => 1, 20 => 50, 30 => 20, 40 => 1})
      assert Procfs.descendants(1, root) == [40, 50, 20, 30]
      assert Procfs.descendants(50, root) == [20, 30]
      assert Procfs.descendants(30, root) == []
      assert Procfs.descendants(99, root) == []
    end

    test "a snapshot with a cycle, and with one that is gone" do
      root = Stdio.Test.FakeProcfs.new(%{5 => 7, 6 => 5, 7 => 6})
      write(root, "7/task/7/children", "5 6 8 ")
      assert Procfs.descendants(5, root) == [6, 7, 8]
    end

    test "without a list of children" do
      assert Procfs.descendants(1, fake(%{1 => 0, 50 => 1, 20 => 50, 2 => 0})) == [20, 50]
    end
  end

  defp eventually(fun, tries \\ 500) do
    with [] when tries > 0 <- fun.() do
      Process.sleep(10)
      eventually(fun, tries - 1)
    end
  end
end
