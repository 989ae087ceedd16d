defmodule Stdio.BsdTest do
  # What only FreeBSD and OpenBSD can show; see docs/freebsd.md. It has never run there.
  use ExUnit.Case, async: false

  alias Stdio.Task

  defp supervisor do
    {:ok, supervisor} = Stdio.supervisor()
    on_exit(fn -> Task.stop(supervisor.init) end)
    supervisor
  end

  defp fork!(parent) do
    {:ok, task} = Task.fork(parent)
    task
  end

  defp call(task, name, arguments), do: Task.call(task, name, arguments)

  for os <- [:freebsd, :openbsd] do
    describe "#{os}" do
      @describetag os

      test "a program and its output" do
        assert Enum.to_list(Stdio.stream!("echo hello; echo world >&2")) == [
                 stdout: "hello\n",
                 stderr: "world\n",
                 exit_status: 0
               ]

        assert Enum.to_list(Stdio.pipe!(["a", "b"], "cat")) |> Keyword.get_values(:exit_status) ==
                 [0]
      end

      test "much data, both ways" do
        data = :binary.copy("0123456789abcdef", 65_536)
        output = Stdio.pipe!([data], "cat") |> Enum.to_list()
        assert output |> Keyword.get_values(:stdout) |> IO.iodata_to_binary() == data
        assert List.last(output) == {:exit_status, 0}
      end

      test "arguments that are larger than a datagram" do
        word = String.duplicate("x", 100_000)

        assert [stdout: output, exit_status: 0] =
                 Enum.to_list(
                   Stdio.stream!(["/bin/echo", word], Stdio.Process, max_chunk: 1_048_576)
                 )
                 |> join()

        assert output == word <> "\n"
      end

      test "a deadline, a signal, and what is left behind" do
        assert Enum.to_list(Stdio.stream!("sleep 100", Stdio.Process, timeout: 300)) == [
                 termsig: :sigkill
               ]

        assert Enum.to_list(Stdio.stream!("kill -USR1 $$")) == [termsig: :sigusr1]
        assert Enum.to_list(Stdio.stream!("sleep 7391 &")) == [exit_status: 0]
        assert {_, 1} = System.cmd("pgrep", ["-f", "sleep 7391"])
      end

      test "namespaces are refused" do
        assert_raise Stdio.OpError, fn ->
          Enum.to_list(Stdio.stream!("true", Stdio.Process, net: :none))
        end
      end
    end
  end

  defp join(elements) do
    {chunks, rest} = Enum.split_with(elements, &match?({:stdout, _}, &1))
    [{:stdout, chunks |> Keyword.values() |> IO.iodata_to_binary()} | rest]
  end

  describe "FreeBSD" do
    @describetag :freebsd

    test "what has escaped from its session is reaped all the same" do
      line = "daemon -f sleep 7392; sleep 0.2"
      assert Enum.to_list(Stdio.stream!(line)) == [exit_status: 0]
      assert {_, 1} = System.cmd("pgrep", ["-f", "sleep 7392"])
    end

    test "procctl" do
      task = fork!(supervisor().init)
      # struct procctl_reaper_status: flags, children, descendants, reaper, pid, pad
      status = <<0::size(80)-unit(8)>>

      assert {:ok, bytes, [bytes]} =
               call(task, :procctl, [:p_pid, 0, :proc_reap_status, [status]])

      assert byte_size(bytes) == 80
      assert call(task, :no_new_privs, []) == :ok

      assert {:ok, <<1::32-native>>, _} =
               call(task, :procctl, [:p_pid, 0, :proc_no_new_privs_status, [<<0::32>>]])
    end

    test "capsicum" do
      task = fork!(supervisor().init)
      {:ok, fd} = Task.open(task, "/etc/hosts", [:o_rdonly])
      assert call(task, :cap_rights_limit, [fd, [:cap_read, :cap_fcntl]]) == :ok
      assert call(task, :cap_fcntls_limit, [fd, [:cap_fcntl_getfl]]) == :ok
      assert {:ok, 8} = call(task, :cap_fcntls_get, [fd])
      assert call(task, :cap_ioctls_limit, [0, []]) == :ok
      assert {:error, _} = Task.lseek(task, fd, 0, 0)
      assert call(task, :cap_getmode, []) == {:ok, 0}
      assert call(task, :cap_enter, []) == :ok
      assert call(task, :cap_getmode, []) == {:ok, 1}
      assert {:error, _} = Task.open(task, "/etc/hosts", [:o_rdonly])
    end

    @tag :root
    test "a jail" do
      echo = Stdio.stream!(["./echo", "test"], Stdio.Jail, path: "/rescue")
      assert Enum.to_list(echo) == [stdout: "test\n", exit_status: 0]

      id = Stdio.stream!(["./id", "-u"], Stdio.Jail, path: "/rescue", uid: 65_578)
      assert Enum.to_list(id) == [stdout: "65578\n", exit_status: 0]

      name = Stdio.stream!(["./hostname"], Stdio.Jail, path: "/rescue", hostname: "inside")
      assert Enum.to_list(name) == [stdout: "inside\n", exit_status: 0]
    end

    @tag :root
    test "a jail is removed" do
      root = supervisor().init
      fields = %{version: 2, path: "/", hostname: "a", jailname: "a", ip4: [], ip6: []}
      {:ok, jid} = call(fork!(root), :jail, [fields])
      assert call(fork!(root), :jail_attach, [jid]) == :ok
      assert call(root, :jail_remove, [jid]) == :ok
    end
  end

  describe "OpenBSD" do
    @describetag :openbsd

    test "pledge" do
      task = fork!(supervisor().init)
      assert call(task, :pledge, ["stdio rpath proc exec unix sendfd recvfd", []]) == :ok
      assert {:error, :einval} = call(task, :pledge, ["no such promise", []])
      assert {:error, :eperm} = call(task, :pledge, ["stdio inet", []])
    end

    test "unveil" do
      task = fork!(supervisor().init)
      assert call(task, :unveil, ["/usr", "r"]) == :ok
      assert call(task, :unveil, [[], []]) == :ok
      assert {:error, :enoent} = Task.readdir(task, "/etc")
      assert {:ok, _} = Task.readdir(task, "/usr")
    end
  end
end
