defmodule Stdio.DoctorTest do
  # Stdio.doctor/0 as it is here, each judgement by facts that are put in its place, and the Mix task.
  use Stdio.Test.StreamCase, async: false

  import ExUnit.CaptureIO
  import Stdio.Test.LogEvents, only: [watch: 1]

  alias Mix.Tasks.Stdio.Doctor, as: MixTask
  alias Stdio.Doctor

  @all [
    :helper,
    :privileges,
    :user_namespaces,
    :subreaper,
    :pidfd,
    :cgroup,
    :landlock,
    :seccomp,
    :descriptors,
    :processes,
    :init
  ]

  # Facts of a system where all is well.
  @well [
    helper: {:ok, "/helper", "1.0"},
    privileges: %{
      path: "/helper",
      root?: false,
      setuid: :none,
      no_new_privs?: false,
      sudo: :missing
    },
    user_namespaces: :ok,
    subreaper: :ok,
    pidfd: {:ok, 3},
    cgroup: {:ok, "/x"},
    landlock: {:ok, 7},
    seccomp: :ok,
    descriptors: %{max: 100_000, used: 10},
    processes: %{user: :unlimited, cgroup: :unlimited},
    init: %{own: "77", first: "systemd"}
  ]

  defp probes(facts) do
    for {check, fact} <- Keyword.merge(@well, facts), do: {check, fn -> fact end}
  end

  # One check, with this fact in its place.
  defp judged(check, fact, options \\ []) do
    [probes: probes([{check, fact}])]
    |> Keyword.merge(options)
    |> Doctor.run()
    |> Enum.find(&(&1.check == check))
  end

  defp shape!(checks) do
    assert Enum.map(checks, & &1.check) == @all

    for check <- checks do
      assert Map.keys(check) |> Enum.sort() == [:advice, :check, :found, :status]
      assert check.status in [:ok, :warn, :fail]
      assert is_binary(check.found) and check.found != ""
      assert check.advice == nil or is_binary(check.advice)
      # One line each, for the table.
      refute check.found =~ "\n"
      refute check.advice && check.advice =~ "\n"
    end

    checks
  end

  describe "here" do
    test "every check has its say, and nothing is left" do
      log = watch(fn _ -> true end)
      checks = Oracle.clean(fn _mark -> Stdio.doctor() end, within: 5000)
      Stdio.Test.LogEvents.stop(log)
      by_name = Map.new(shape!(checks), &{&1.check, &1})

      # The tests would not run otherwise.
      for check <- [:helper, :subreaper, :pidfd, :privileges] do
        assert {check, :ok} == {check, by_name[check].status}, inspect(by_name[check])
      end

      assert by_name.helper.found =~ Stdio.Launcher.helper()
      assert messages() |> Enum.reject(&match?({:log, :debug, _, _}, &1)) == []
    end

    test "twice at once", %{mark: mark} do
      Oracle.clean(fn _ ->
        [one, two] =
          [1, 2]
          |> Enum.map(fn _ -> Task.async(&Stdio.doctor/0) end)
          |> Task.await_many(60_000)

        for {a, b} <- Enum.zip(one, two),
            do: assert({a.check, a.status} == {b.check, b.status}, inspect({a, b}))
      end)

      assert Proc.find(mark) == []
    end

    @tag :userns
    test "user namespaces, where the tests have them" do
      assert %{status: :ok} = find(:user_namespaces)
    end

    @tag :cgroup
    test "a cgroup, where the tests have one" do
      assert %{status: :ok} = find(:cgroup)
    end

    @tag :root
    test "root" do
      assert %{status: :ok, found: "root"} = find(:privileges)
    end

    @tag :sudo
    @tag :unprivileged
    test "sudo that asks for no password" do
      assert %{status: :ok, found: found} = find(:privileges)
      assert found =~ "sudo, which asks for no password"
    end

    @tag :no_sudo
    @tag :unprivileged
    test "sudo that refuses" do
      assert %{status: :ok, found: found, advice: advice} = find(:privileges)
      assert found =~ "sudo does not start the helper"
      assert advice =~ "NOPASSWD: " <> Stdio.Launcher.helper()
    end

    defp find(check), do: Enum.find(Stdio.doctor(), &(&1.check == check))
  end

  describe "judgements" do
    test "all is well" do
      checks = shape!(Doctor.run(probes: probes([])))
      assert Enum.uniq_by(checks, & &1.status) |> Enum.map(& &1.status) == [:ok]
    end

    test "the helper: what needs it is not looked at" do
      for fact <- [{:error, "/helper", "Do this."}, {:other_version, "/helper", "2", "1"}] do
        never = for {check, _} <- @well, do: {check, fn -> raise "looked at #{check}" end}
        harmless = [:privileges, :descriptors, :processes, :init]
        probes = Keyword.merge(never, Keyword.take(probes([]), harmless))
        checks = shape!(Doctor.run(probes: Keyword.put(probes, :helper, fn -> fact end)))

        assert %{status: :fail, advice: <<_, _::binary>>} = hd(checks)

        for check <- checks, check.check not in [:helper | harmless] do
          assert %{status: :warn, found: "unknown" <> _, advice: nil} = check
        end
      end
    end

    test "privileges" do
      fact = @well[:privileges]
      path = fact.path

      assert %{status: :fail, advice: advice} = judged(:privileges, %{fact | setuid: :open})
      assert advice =~ "chown root:GROUP #{path} && chmod 4750 #{path}"
      # For root too: the others on the machine have it.
      assert %{status: :fail} = judged(:privileges, %{fact | setuid: :open, root?: true})

      assert %{status: :ok, found: "root", advice: nil} =
               judged(:privileges, %{fact | root?: true, sudo: :unneeded}, read: fn _ -> nil end)

      podman = %{"/proc/self/uid_map" => "0 1000 1\n1 524288 65536\n"}

      assert %{status: :warn, advice: advice} =
               judged(:privileges, %{fact | root?: true, sudo: :unneeded}, read: &podman[&1])

      assert advice =~ "0..65536"

      for {change, said} <- [
            {[setuid: :guarded], "guarded"},
            {[sudo: :allowed], "asks for no password"},
            {[sudo: :refused], "sudo does not start the helper"},
            {[sudo: :missing], "no sudo"},
            {[sudo: :unknown], "not looked"},
            {[setuid: :guarded, no_new_privs?: true], "NO_NEW_PRIVS"},
            {[sudo: :refused, no_new_privs?: true], "NO_NEW_PRIVS"}
          ] do
        assert %{status: :ok, found: found} =
                 judged(:privileges, Map.merge(fact, Map.new(change)))

        assert found =~ said
      end
    end

    test "user namespaces: the switch that is off is named" do
      for {name, value, command} <- [
            {"kernel/apparmor_restrict_unprivileged_userns", "1\n", "=0"},
            {"kernel/unprivileged_userns_clone", "0\n", "=1"},
            {"user/max_user_namespaces", "0\n", "=15000"}
          ] do
        read = fn path -> if path == "/proc/sys/" <> name, do: value end

        for step <- [:clone, :map, :mount] do
          fact = {:error, step, :eperm}

          assert %{status: :warn, advice: advice} = judged(:user_namespaces, fact, read: read)
          assert advice =~ "sysctl -w " <> String.replace(name, "/", ".") <> command
        end
      end

      none = [read: fn _ -> nil end]

      assert %{status: :warn, advice: "No setting forbids" <> _} =
               judged(:user_namespaces, {:error, :clone, :eperm}, none)

      assert %{status: :warn, found: found, advice: advice} =
               judged(:user_namespaces, {:error, :proc, :eperm}, none)

      assert found =~ "/proc cannot be mounted"
      assert advice =~ "unmasked"
      assert %{status: :warn} = judged(:user_namespaces, {:error, :ids, :esrch}, none)
    end

    test "what programs can escape by is a failure" do
      assert %{status: :fail, advice: <<_, _::binary>>} = judged(:subreaper, {:error, :echild})
      assert %{status: :fail, advice: <<_, _::binary>>} = judged(:pidfd, {:error, :enosys})
      assert %{status: :fail} = judged(:seccomp, {:no_effect, {:ok, "/"}})
    end

    test "what not everybody needs is a warning" do
      assert %{status: :warn, found: found} = judged(:cgroup, {{:error, :eacces}, "/user.slice"})
      assert found =~ "below /user.slice (eacces)"
      assert %{status: :warn, found: found} = judged(:cgroup, {{:error, :enotsup}, nil})
      assert found =~ "no cgroup v2"
      assert %{status: :warn, advice: "Boot" <> _} = judged(:landlock, {:error, :eopnotsupp})
      assert %{status: :warn, advice: "It takes" <> _} = judged(:landlock, {:error, :enosys})
      assert %{status: :warn} = judged(:seccomp, {:error, :enotsup})
    end

    test "limits" do
      assert %{status: :ok} = judged(:descriptors, %{max: :unlimited, used: 7})
      assert %{status: :ok} = judged(:descriptors, %{max: 1_000_000, used: 7})
      assert %{status: :warn, advice: advice} = judged(:descriptors, %{max: 1024, used: 100})
      assert advice =~ "LimitNOFILE"

      for fact <- [%{user: 100, cgroup: :unlimited}, %{user: :unlimited, cgroup: 100}] do
        assert %{status: :warn, advice: "Raise" <> _} = judged(:processes, fact)
      end

      assert %{status: :ok} = judged(:processes, %{user: 60_000, cgroup: 9000})
    end

    test "process 1" do
      assert %{status: :warn, advice: advice} = judged(:init, %{own: "1", first: "beam.smp"})
      assert advice =~ "docker run --init"
      assert %{status: :ok, found: "process 1 is systemd" <> _} = judged(:init, @well[:init])
    end
  end

  describe "probes read" do
    # What the probe of `check` makes of these files.
    defp probed(check, files) do
      read = fn path -> Map.get(files, path) end
      Doctor.Probe.of(check).(read)
    end

    test "limits of the user and of all cgroups around" do
      limits = "Max processes             63431                64000                processes\n"

      files = %{
        "/proc/self/limits" => limits,
        "/proc/self/cgroup" => "4:memory:/a\n0::/a/b\n",
        "/sys/fs/cgroup/a/b/pids.max" => "max\n",
        "/sys/fs/cgroup/a/b/pids.current" => "5\n",
        "/sys/fs/cgroup/a/pids.max" => "100\n",
        "/sys/fs/cgroup/a/pids.current" => "40\n"
      }

      user = if root?(), do: :unlimited, else: 63_431
      assert probed(:processes, files) == %{user: user, cgroup: 60}
      assert %{cgroup: :unlimited} = probed(:processes, %{})
    end

    test "descriptors: the hard limit, which the BEAM has raised its own to" do
      limits = "Max open files            1024                 4096                 files\n"
      assert %{max: 4096, used: used} = probed(:descriptors, %{"/proc/self/limits" => limits})
      assert used > 3
      assert %{max: :unknown} = probed(:descriptors, %{})
    end

    test "process 1" do
      assert probed(:init, %{"/proc/1/comm" => "tini\n"}) == %{own: System.pid(), first: "tini"}
    end

    test "NO_NEW_PRIVS of the BEAM" do
      for {text, expected} <- [{"Name:\tx\nNoNewPrivs:\t1\n", true}, {"NoNewPrivs:\t0\n", false}] do
        assert %{no_new_privs?: ^expected} = probed(:privileges, %{"/proc/self/status" => text})
      end
    end

    test "a daemon that /proc does not show as adopted" do
      assert probed(:subreaper, %{}) == {:error, :echild}
    end

    test "where the own cgroup is" do
      assert {_, "/a b"} = probed(:cgroup, %{"/proc/self/cgroup" => "1:x:/\n0::/a b\n"})
      assert {_, nil} = probed(:cgroup, %{})
    end
  end

  describe "a probe" do
    test "that raises, exits or throws is a failure of its check" do
      for bad <- [fn -> raise "no" end, fn -> exit(:no) end, fn -> throw(:no) end] do
        checks = shape!(Doctor.run(probes: Keyword.put(probes([]), :seccomp, bad)))
        assert %{status: :fail, found: found} = Enum.find(checks, &(&1.check == :seccomp))
        assert found =~ "could not be looked at"
        assert Enum.count(checks, &(&1.status != :ok)) == 1
      end

      assert messages() == []
    end

    test "that could not start is one too" do
      for check <- [:subreaper, :pidfd] do
        assert %{status: :fail, found: found} = judged(check, {:error, :emfile})
        assert found =~ "emfile"
      end

      assert %{status: :fail, found: "could not be tried (emfile)"} =
               judged(:user_namespaces, {:error, :emfile})
    end

    test "that takes too long is given up, with all it has started" do
      Oracle.clean(fn mark ->
        hang = fn -> Stdio.stream!(["/bin/sh", "-c", "sleep 100; :", mark]) |> Enum.to_list() end

        {elapsed, checks} =
          timed(fn -> Doctor.run(probes: Keyword.put(probes([]), :pidfd, hang), deadline: 300) end)

        assert %{status: :fail, found: "no answer" <> _} =
                 Enum.find(checks, &(&1.check == :pidfd))

        assert elapsed < 5000
        assert Proc.find(mark) == []
        assert messages() == []
      end)
    end
  end

  describe "mix stdio.doctor" do
    @checks [
      %{check: :helper, status: :ok, found: "fine", advice: nil},
      %{check: :user_namespaces, status: :warn, found: "none", advice: "Make some."},
      %{check: :init, status: :fail, found: "bad", advice: nil}
    ]

    test "a table that is aligned, without colour" do
      assert @checks |> MixTask.table(false) |> IO.iodata_to_binary() == """
             ok    helper           fine
             warn  user namespaces  none
                                    -> Make some.
             FAIL  init             bad
             """
    end

    test "with colour" do
      table = @checks |> MixTask.table(true) |> IO.iodata_to_binary()
      assert table =~ "\e[32mok  \e[0m  helper"
      assert table =~ "\e[33mwarn\e[0m"
      assert table =~ "\e[31mFAIL\e[0m"
    end

    test "the exit status is 1 if a check fails, and only then" do
      assert capture_io(fn ->
               assert catch_exit(MixTask.report(@checks, false)) == {:shutdown, 1}
             end) =~ "FAIL"

      fine = Enum.reject(@checks, &(&1.status == :fail))
      assert capture_io(fn -> assert MixTask.report(fine, false) == :ok end) =~ "warn"
    end

    test "here" do
      output = capture_io(fn -> MixTask.run([]) end)
      lines = String.split(output, "\n", trim: true)
      checks = Enum.reject(lines, &String.starts_with?(&1, " "))
      assert length(checks) == length(@all)
      for line <- checks, do: assert(line =~ ~r/^(ok  |warn)  [a-z ]{15}  \S/)
      refute output =~ "\e["
    end

    test "takes no arguments" do
      assert_raise Mix.Error, fn -> MixTask.run(["-x"]) end
    end
  end
end
