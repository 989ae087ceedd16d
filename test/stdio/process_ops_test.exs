defmodule Stdio.ProcessOpsTest do
  use ExUnit.Case, async: true
  doctest Stdio.Process

  defp ops(config), do: Stdio.Process.ops(config)

  test "defaults, in the order of the contract" do
    uid = :erlang.phash2(self(), 0xFFFF) + 0x10000

    assert ops([]) == [
             {:setsid, []},
             {:chdir, [File.cwd!()]},
             {:setrlimit, [:rlimit_core, %{cur: 0, max: 0}]},
             {:setugid, [uid, uid, []]},
             {:no_new_privs, []},
             {:set_pdeathsig, [9]}
           ]
  end

  test "everything given" do
    config = [
      priority: 10,
      path: ["/tmp", ~c"/é"],
      rlimit: [RLIMIT_NOFILE: %{cur: 5, max: 6}, rlimit_core: %{cur: 1, max: 1}],
      uid: 1000,
      gid: 1001,
      groups: [5, 6],
      setuid: true
    ]

    assert ops(config) == [
             {:setsid, []},
             {:setpriority, [:prio_process, 0, 10]},
             {:chdir, ["/tmp/é"]},
             {:setrlimit, [:RLIMIT_NOFILE, %{cur: 5, max: 6}]},
             {:setrlimit, [:rlimit_core, %{cur: 1, max: 1}]},
             {:setugid, [1000, 1001, [5, 6]]},
             {:set_pdeathsig, [9]}
           ]
  end

  test ":rlimit replaces the default and may be a map" do
    assert ops(rlimit: []) |> Keyword.get_values(:setrlimit) == []

    assert ops(rlimit: %{rlimit_cpu: %{cur: 1, max: 2}}) |> Keyword.get_values(:setrlimit) ==
             [[:rlimit_cpu, %{cur: 1, max: 2}]]
  end

  test ":cd is :path" do
    assert ops(cd: ~c"/tmp")[:chdir] == ["/tmp"]
  end

  test "the gid follows the uid" do
    assert ops(uid: 7)[:setugid] == [7, 7, []]
    assert ops(uid: 7, gid: 8)[:setugid] == [7, 8, []]
  end

  test "setuid: false is the default" do
    assert {:no_new_privs, []} in ops(setuid: false)
    refute {:no_new_privs, []} in ops(setuid: true)
  end
end
