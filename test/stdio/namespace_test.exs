defmodule Stdio.NamespaceTest do
  # net: :none and :containment. Root needs no user namespace for them, everybody else does.
  use Stdio.Test.StreamCase

  defp namespace(pid, name), do: File.read_link!("/proc/#{pid}/ns/#{name}")
  defp own(name), do: namespace("self", name)

  # Which of the namespaces are not the BEAM's.
  defp new(mark, config) do
    while_running(mark, config, fn pid ->
      for name <- ~w(cgroup ipc mnt net pid user uts), namespace(pid, name) != own(name), do: name
    end)
  end

  test "by default all namespaces are the BEAM's", %{mark: mark} do
    for config <- [[], [net: :host], [containment: :auto], [containment: :best_effort]] do
      assert new(mark, config) == []
    end
  end

  for {who, tags} <- [root: [:root], others: [:unprivileged, :userns, :netns]] do
    describe "as #{who}, net: :none" do
      @describetag user_namespace: if(who == :root, do: [], else: ["user"])
      for tag <- tags, do: @describetag(tag)

      test "is a network namespace of its own", %{mark: mark, user_namespace: user} do
        assert new(mark, net: :none) == ["net" | user]
      end

      test "has one interface, which is down" do
        lines = list("cat /proc/net/dev", net: :none) |> output() |> String.split("\n")

        assert for([_, name] <- Enum.map(lines, &Regex.run(~r/^\s*(\S+):/, &1)), do: name) == [
                 "lo"
               ]

        assert list("ip address show up", net: :none) == [exit_status: 0]
      end

      test "changes nobody's ids", %{mark: mark} do
        keys = ~w(uid gid groups nonewprivs parent)
        assert Map.take(born_with(mark, net: :none), keys) == Map.take(born_with(mark), keys)
      end
    end

    describe "as #{who}, containment: :pid_namespace" do
      @describetag user_namespace: if(who == :root, do: [], else: ["user"])
      for tag <- tags, do: @describetag(tag)
      @pid_namespace [containment: :pid_namespace]

      test "makes the program PID 1 of a new one", %{mark: mark, user_namespace: user} do
        assert list("echo $$", @pid_namespace) == [stdout: "1\n", exit_status: 0]
        assert new(mark, @pid_namespace) == ["pid" | user]
        assert new(mark, [net: :none] ++ @pid_namespace) == ["net", "pid" | user]
      end

      test "changes nobody's ids, and keeps /proc", %{mark: mark} do
        keys = ~w(uid gid groups nonewprivs)
        assert Map.take(born_with(mark, @pid_namespace), keys) == Map.take(born_with(mark), keys)
        assert list("test -d /proc/#{Proc.os_pid()}", @pid_namespace) == [exit_status: 0]
      end

      test "makes the kernel ignore signals that PID 1 does not catch", %{mark: mark} do
        for signal <- ["TERM", "KILL", "SEGV"] do
          command = [Proc.fixture("exit-with"), mark, "--signal", signal]
          assert list(command, @pid_namespace) == [stdout: "survived\n", exit_status: 0]
        end

        assert list("exit 137", @pid_namespace) == [exit_status: 137]
      end

      test "takes everything along that is in it", %{mark: mark} do
        flags = ~w(--setsid --double-fork --ignore-term)
        command = [Proc.fixture("fork-tree"), mark, "2", "2" | flags]

        assert list(command ++ ["--leader-exits", "3"], @pid_namespace) ==
                 [stdout: "ready\n", exit_status: 3]

        assert Proc.find(mark) == []
        stream = Stdio.stream!(command, Stdio.Process, @pid_namespace)
        assert Enum.take(stream, 1) == [stdout: "ready\n"]
        assert Proc.find(mark) == []
        assert messages() == []
      end

      test "PID 1 gets SIGKILL at once when it does not catch :kill_signal", %{mark: mark} do
        config = [kill_signal: :sigterm, kill_timeout: 20_000] ++ @pid_namespace

        # One that has the default action, which the kernel does not take for PID 1; one that
        # ignores it, which comes to the same.
        for name <- ["never-read", "ignore-term"] do
          run = &list([Proc.fixture(name), mark], [timeout: &1] ++ config)
          {timeout, elapsed, elements} = with_timeout(run)
          assert elements == [stdout: "ready\n", termsig: :sigkill]
          assert elapsed - timeout < 9_500
        end

        config = [timeout: 30_000] ++ config
        stream = Stdio.stream!([Proc.fixture("never-read"), mark], Stdio.Process, config)
        {elapsed, [stdout: "ready\n"]} = timed(fn -> Enum.take(stream, 1) end)
        assert elapsed < 10_000
      end

      test "PID 1 that catches :kill_signal has its time" do
        line = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
        config = [kill_signal: :sigterm, kill_timeout: 20_000] ++ @pid_namespace
        {_, _, elements} = with_timeout(&list(line, [timeout: &1] ++ config))
        assert Oracle.terminal!(elements) == {:exit_status, 7}
      end
    end
  end

  test "without user namespaces the error says what is missing" do
    source = """
    for config <- [[containment: :pid_namespace], [net: :none]] do
      error =
        try do
          Enum.to_list(Stdio.stream!("true", Stdio.Process, config))
        rescue
          error -> error
        end

      message = if is_exception(error), do: Exception.message(error), else: inspect(error)
      IO.puts(inspect({Map.get(error, :__struct__), Map.get(error, :reason), message}))
    end
    """

    limit = "echo 0 >/proc/sys/user/max_user_namespaces && exec \"$@\""
    ebin = Application.app_dir(:stdio, "ebin")
    elixir = [System.find_executable("elixir"), "-pa", ebin, "-e", source]
    args = ["--user", "--keep-caps", "/bin/sh", "-c", limit, "sh" | elixir]
    {output, status} = System.cmd("unshare", args, stderr_to_stdout: true)
    assert status == 0, output
    assert [pid_namespace, net] = String.split(output, "\n", trim: true)
    assert pid_namespace =~ "{Stdio.StreamError, :enotsup,"
    assert pid_namespace =~ "user namespaces"
    assert net =~ "{Stdio.OpError, :"
    assert net =~ "error attempting to fork subprocess"
  end

  @tag :userns
  test "root of a user namespace without other ids is told so" do
    source = """
    error =
      try do
        Enum.to_list(Stdio.stream!("true"))
      rescue
        error -> error
      end

    IO.puts(inspect({error.__struct__, error.reason, Exception.message(error)}))
    IO.puts(inspect(Enum.find(Stdio.doctor(), &(&1.check == :privileges))))
    """

    elixir = [System.find_executable("elixir"), "-pa", Application.app_dir(:stdio, "ebin")]
    args = ["--user", "--map-root-user" | elixir] ++ ["-e", source]
    {output, status} = System.cmd("unshare", args, stderr_to_stdout: true)
    assert status == 0, output
    assert [error, check] = String.split(output, "\n", trim: true) |> Enum.take(-2)
    assert error =~ "{Stdio.OpError, :eperm,"
    assert error =~ "user namespace that forbids setgroups(2)"
    assert check =~ "status: :warn"
    assert check =~ "user namespace that forbids setgroups(2)"
  end
end
