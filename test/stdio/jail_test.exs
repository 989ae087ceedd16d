defmodule Stdio.JailTest do
  # Application environment.
  use ExUnit.Case, async: false
  doctest Stdio.Jail

  alias Stdio.{Jail, StreamError}

  defp jail(config) do
    [{:jail, [jail]}] = Enum.filter(Jail.ops(config), &match?({:jail, _}, &1))
    jail
  end

  test "the ops in their order" do
    config = [
      path: "/rescue",
      hostname: "web",
      uid: 1001,
      gid: 1002,
      groups: [7],
      priority: 5,
      cd: "/dir",
      rlimit: [rlimit_core: %{cur: 0, max: 0}, rlimit_nofile: %{cur: 9, max: 10}],
      net: %{ip4: [{127, 0, 0, 1}]}
    ]

    jail = %{
      version: 2,
      path: "/rescue",
      hostname: "web",
      jailname: "web",
      ip4: [{127, 0, 0, 1}],
      ip6: []
    }

    assert Jail.ops(config) == [
             {:setsid, []},
             {:setpriority, [:prio_process, 0, 5]},
             {:jail, [jail]},
             {:chdir, ["/dir"]},
             {:setrlimit, [:rlimit_core, %{cur: 0, max: 0}]},
             {:setrlimit, [:rlimit_nofile, %{cur: 9, max: 10}]},
             {:setgroups, [[7]]},
             {:setresgid, [1002, 1002, 1002]},
             {:setresuid, [1001, 1001, 1001]},
             {:no_new_privs, []}
           ]
  end

  test "the defaults: no address, a name and ids by the process, no new privileges" do
    uid = Stdio.Config.uid([])
    ops = Jail.ops(path: "/rescue")

    assert jail(path: "/rescue") ==
             %{
               version: 2,
               path: "/rescue",
               hostname: "stdio#{uid}",
               jailname: "stdio#{uid}",
               ip4: [],
               ip6: []
             }

    assert [:setsid, :jail, :chdir, :setrlimit, :setgroups, :setresgid, :setresuid, :no_new_privs] ==
             Enum.map(ops, &elem(&1, 0))

    assert {:chdir, ["/"]} in ops
    refute {:no_new_privs, []} in Jail.ops(path: "/rescue", setuid: true)
  end

  test "no op needs Elixir, so that all travel in one message" do
    for {name, arguments} <- Jail.ops(net: :none) do
      assert is_atom(name) and is_list(arguments)
      refute Enum.any?(arguments, &is_function/1)
    end
  end

  test "the root is the application's, unless :path is given" do
    before = Application.fetch_env(:stdio, :path)
    Application.put_env(:stdio, :path, "/jails/a")

    on_exit(fn ->
      case before do
        {:ok, path} -> Application.put_env(:stdio, :path, path)
        :error -> Application.delete_env(:stdio, :path)
      end
    end)

    assert jail([]).path == "/jails/a"
    assert jail(path: ~c"/rescue").path == "/rescue"
  end

  test "the addresses" do
    local = {0, 0, 0, 0, 0, 0, 0, 1}

    interfaces = [
      {~c"pflog0", [flags: [:up]]},
      {~c"em0", flags: [:up], addr: {10, 0, 0, 1}, netmask: {255, 0, 0, 0}, addr: local},
      {~c"lo0", addr: {127, 0, 0, 1}}
    ]

    assert Jail.__addresses__(:none, interfaces) == %{ip4: [], ip6: []}
    assert Jail.__addresses__(:host, interfaces) == %{ip4: [{10, 0, 0, 1}], ip6: [local]}
    assert Jail.__addresses__(:host, []) == %{ip4: [], ip6: []}
    assert Jail.__addresses__(%{ip6: [local]}, interfaces) == %{ip4: [], ip6: [local]}

    assert %{ip4: ip4, ip6: ip6} = jail(net: :host)
    assert Enum.all?(ip4, &:inet.is_ipv4_address/1) and Enum.all?(ip6, &:inet.is_ipv6_address/1)
  end

  test "options are validated before anything is started" do
    for {config, text} <- [
          {[net: :lo0], "option :net"},
          {[net: %{ip4: [{256, 0, 0, 1}]}], "option :net"},
          {[net: %{ip6: [{127, 0, 0, 1}]}], "option :net"},
          {[hostname: ""], "option :hostname"},
          {[jid: 1], "unknown option :jid"}
        ] do
      assert_raise ArgumentError, ~r/#{text}/, fn ->
        Stdio.stream!(["./echo"], Jail, config)
      end
    end
  end

  @tag :linux
  test "elsewhere the start fails, and says what it takes" do
    for start <- [
          fn -> Stdio.stream!(["./echo", "test"], Jail, path: "/rescue") end,
          fn -> Stdio.pipe!(["a"], ["./cat"], {Jail, []}, path: "/rescue") end
        ] do
      error = assert_raise StreamError, fn -> Enum.to_list(start.()) end
      assert %{reason: :enotsup, action: "supervisor"} = error
      assert error.hint =~ "Stdio.Jail needs FreeBSD, and this is linux"
      assert error.hint =~ "Stdio.Rootless"
    end

    assert Jail.task([]) == {:error, :enotsup}
    refute_received _
  end

  test "the hint is for what this behaviour has to say" do
    assert Jail.__task_hint__(:enotsup, {:unix, :openbsd}) =~ "this is openbsd"
    assert Jail.__task_hint__(:enotsup, {:unix, :freebsd}) == nil
    assert Jail.__task_hint__(:emfile, {:unix, :linux}) == nil

    op = {Stdio.Task, :jail, [:task, %{}]}
    assert Stdio.Container.Hint.op(:eperm, op) =~ "needs root"
  end
end
