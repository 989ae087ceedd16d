defmodule Stdio.SyscallTest do
  # Application environment.
  use ExUnit.Case, async: false
  doctest Stdio.Syscall

  alias Stdio.Syscall
  alias Stdio.Syscall.{FreeBSD, Linux, OpenBSD}

  defmodule Other do
    defdelegate procfs(), to: Stdio.Syscall
    def disable_setuid, do: [{:pledge, ["stdio", []]}]
    def set_pdeathsig, do: []
  end

  defp put_env(key, value) do
    before = Application.fetch_env(:stdio, key)
    Application.put_env(:stdio, key, value)

    on_exit(fn ->
      case before do
        {:ok, value} -> Application.put_env(:stdio, key, value)
        :error -> Application.delete_env(:stdio, key)
      end
    end)
  end

  @tag :linux
  test "os/0 by the operating system" do
    assert Syscall.os() == Linux
  end

  test "os/0 by app env; Stdio.Process takes its ops from there" do
    put_env(:syscall, Other)
    assert Syscall.os() == Other

    assert [{:setugid, _}, {:pledge, ["stdio", []]}] = Enum.take(Stdio.Process.ops([]), -2)
    assert {:setugid, _} = List.last(Stdio.Process.ops(setuid: true))
  end

  test "each module has every callback" do
    callbacks = Syscall.behaviour_info(:callbacks)
    assert length(callbacks) == 8

    for module <- [Syscall, Linux, FreeBSD, OpenBSD] do
      assert Code.ensure_loaded?(module)
      for {name, arity} <- callbacks, do: assert(function_exported?(module, name, arity))
    end
  end

  test "the defaults do nothing" do
    assert Syscall.setproctitle(:task, "title") == :ok
    assert Syscall.subreaper(:task) == :ok
    assert OpenBSD.subreaper(:task) == :ok
  end

  test "procfs" do
    for module <- [Syscall, Linux, OpenBSD], do: assert(module.procfs() == "/proc")
    assert FreeBSD.procfs() == "/compat/linux/proc"
    put_env(:procfs, "/host/proc")
    assert Linux.procfs() == "/host/proc"
    assert Syscall.procfs() == "/proc"
  end

  test "ops" do
    assert Syscall.disable_setuid() == []
    assert Linux.disable_setuid() == [{:no_new_privs, []}]
    assert FreeBSD.disable_setuid() == [{:no_new_privs, []}]
    assert [{:pledge, [promises, []]}] = OpenBSD.disable_setuid()
    assert ["stdio", "rpath" | _] = words = String.split(promises, " ")
    assert words == Enum.uniq(words)

    assert Linux.set_pdeathsig() == [{:set_pdeathsig, [9]}]
    for module <- [Syscall, FreeBSD, OpenBSD], do: assert(module.set_pdeathsig() == [])
  end

  test "a namespace that is not to be had" do
    for module <- [Syscall, FreeBSD, OpenBSD],
        config <- [[net: :none], [containment: :pid_namespace]] do
      assert module.subprocess(config).(:task) == {:error, :enotsup}
    end
  end

  test "the namespaces of Stdio.Process" do
    assert Syscall.namespaces([]) == []
    assert Syscall.namespaces(net: :host, containment: :cgroup) == []

    assert Syscall.namespaces(net: :none, containment: :pid_namespace) ==
             [:clone_newnet, :clone_newpid]
  end

  test "a tree without a supervisor has nothing to signal" do
    tree = %{supervisor: %{init: :noproc}, pipeline: []}

    for module <- [Syscall, Linux, FreeBSD, OpenBSD], signal <- [:SIGKILL, :sigterm, 9] do
      assert module.reap(tree, signal) == :ok
      assert module.reap(tree, 4242, signal) == :ok
    end
  end

  test "an unknown signal" do
    tree = %{supervisor: %{init: :noproc}, pipeline: []}

    for module <- [Syscall, Linux, FreeBSD, OpenBSD], signal <- [:signope, 0, 65] do
      assert_raise ArgumentError, ~r/invalid signal/, fn -> module.reap(tree, signal) end
      assert_raise ArgumentError, ~r/invalid signal/, fn -> module.reap(tree, 4242, signal) end
    end
  end
end
