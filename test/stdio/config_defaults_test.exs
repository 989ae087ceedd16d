defmodule Stdio.ConfigDefaultsTest do
  use ExUnit.Case, async: true

  import Stdio.Config, only: [get: 2, get: 3, validate!: 1]
  alias Stdio.Config

  test "static defaults" do
    for {key, default} <- [
          net: :host,
          environ: [
            "PATH=/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/opt/sbin:/opt/bin",
            "HOME=/home"
          ],
          groups: [],
          fstab: [],
          setuid: false,
          priority: 0,
          rlimit: [rlimit_core: %{cur: 0, max: 0}],
          env: [],
          search: false,
          stdin: :pipe,
          stderr: :separate,
          timeout: :infinity,
          kill_signal: :sigkill,
          kill_timeout: 5000,
          max_chunk: 65_536,
          containment: :auto
        ] do
      assert get([], key) == default
      assert validate!([{key, default}])
    end

    for behaviour <- [Stdio.Container, Stdio.Rootless, Stdio.Jail, Some.Behaviour] do
      assert get([], :net, behaviour) == :none
    end

    for key <- [:uid, :gid, :path, :hostname, :cd, :no_such], do: assert(get([], key) == nil)
    assert get([own: 1], :own) == 1
    assert get([search: true], :search) == true
  end

  test "uid and gid" do
    default = :erlang.phash2(self(), 0xFFFF) + 0x10000
    assert Config.uid([]) == default
    assert Config.uid([], Stdio.Container) == default
    assert Config.uid([], Stdio.Rootless) == 65_534
    assert Config.uid([uid: 5], Stdio.Rootless) == 5
    assert Config.uid(uid: 0) == 0

    assert Config.gid([]) == default
    assert Config.gid(uid: 5) == 5
    assert Config.gid(uid: 5, gid: 6) == 6
    assert Config.gid([], Stdio.Rootless) == 65_534

    # Another process, another uid, but for chance: they are 65,535.
    others = for _ <- 1..3, do: Task.await(Task.async(fn -> Config.uid([]) end))
    assert Enum.any?(others, &(&1 != default))
  end

  test "groups" do
    assert Config.groups([]) == []
    assert Config.groups(groups: [3, 1]) == [3, 1]
  end

  test "hostname" do
    assert Config.hostname([uid: 7], Stdio.Container) == "stdio7"
    assert Config.hostname([], Stdio.Container) == "stdio#{Config.uid([])}"
    assert Config.hostname([], Stdio.Rootless) == "stdio"
    assert Config.hostname([hostname: ~c"hé"], Stdio.Rootless) == "hé"
  end

  test "paths as bytes" do
    assert Config.path([]) == nil
    assert Config.path([cd: "/x"], :path) == nil
    assert Config.path([cd: ~c"/é"], :cd) == "/é"
    assert Config.path(path: ["/a", [?é, "/" | <<255>>]]) == <<"/aé/", 255>>
    assert Config.fstab([]) == []
    assert Config.fstab(fstab: ["opt", "", [], ~c"/é", <<255>>]) == ["opt", "/é", <<255>>]
  end

  test "kill_signal and limits in the units of the core" do
    assert Config.kill_signal([]) == 9
    assert Config.kill_signal(kill_signal: :SIGTERM) == 15
    assert Config.kill_signal(kill_signal: 40) == 40
    assert Config.limits_ms([]) == %{timeout: :infinity, kill_timeout: 5000}
    assert Config.limits_ms(timeout: 5, kill_timeout: 0) == %{timeout: 5, kill_timeout: 0}

    huge = 10_000_000_000_000_000_000_000

    assert Config.limits_ms(timeout: huge, kill_timeout: huge) ==
             %{timeout: 2 ** 53 - 1, kill_timeout: 2 ** 53 - 1}
  end
end
