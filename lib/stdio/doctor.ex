defmodule Stdio.Doctor do
  @moduledoc """
  What of Stdio works on this machine, for this user, and what to do about the rest:
  `Stdio.doctor/0`, and `mix stdio.doctor` in a shell.

  Nothing is inferred from version numbers. Where a thing can be tried it is, in a process of the
  helper's that ends with it; each check takes 10 s at most, and leaves nothing behind but the helper
  itself, as every program does.

  | check | what is tried | `:warn` or `:fail` means |
  |---|---|---|
  | `:helper` | it is started, says its version | fail: nothing works |
  | `:privileges` | root; the setuid bit; whether sudo starts it without a password | fail: the setuid bit is open to all. That root is not to be had is no fault |
  | `:user_namespaces` | one is made, ids are mapped, /proc is mounted in it | `Stdio.Rootless`, and `net: :none` and `:pid_namespace` of other users than root, cannot be had |
  | `:subreaper` | a daemon is left behind, adopted and killed | fail: programs can escape |
  | `:pidfd` | pidfd_open(2) | fail: processes that have left their parent cannot be killed safely |
  | `:cgroup` | one is made below the helper's own, for a supervisor with `containment: :cgroup` | that cannot be had |
  | `:landlock` | its version is asked for | programs' own sandboxes cannot use it |
  | `:seccomp` | a filter is installed and holds | `Stdio.Seccomp` cannot be had |
  | `:descriptors` | the limit, and how many are in use | fewer than a few hundred programs at a time |
  | `:processes` | limits of the user and of the cgroups around | the same |
  | `:init` | who process 1 is | the BEAM is, and does not reap what others leave |
  """

  alias Stdio.Container.Hint
  alias Stdio.Doctor.Probe
  alias Stdio.Native

  @typedoc "What a check found. `advice`: what to do, or what it would take."
  @type check :: %{
          check: atom,
          status: :ok | :warn | :fail,
          found: String.t(),
          advice: String.t() | nil
        }

  @typedoc "The contents of a file, or nil."
  @type reader :: (Path.t() -> String.t() | nil)

  # All but the first three kinds need a helper that works.
  @checks [
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
  @by_helper [:user_namespaces, :subreaper, :pidfd, :cgroup, :landlock, :seccomp]

  # ms
  @deadline 10_000
  # Until what a probe that was given up had started is gone.
  @gone 5000

  # A program takes about so many descriptors of the BEAM's, and two processes.
  @descriptors_each 6
  @processes_each 2
  @few_programs 256

  @doc """
  All checks, in this order: #{Enum.map_join(@checks, ", ", &"`#{inspect(&1)}`")}.

  Options, for tests: `:read`, a reader of files; `:probes`, a keyword list of functions without
  arguments in place of those of the checks; `:deadline` in ms.
  """
  @spec run(keyword) :: [check]
  def run(options \\ []) do
    read = Keyword.get(options, :read, &read/1)
    probes = Keyword.get(options, :probes, [])
    deadline = Keyword.get(options, :deadline, @deadline)

    {checks, _} =
      Enum.map_reduce(@checks, true, fn check, helper? ->
        probe = Keyword.get_lazy(probes, check, fn -> fn -> Probe.of(check).(read) end end)
        result = result(check, helper?, probe, read, deadline)
        {result, helper? and (check != :helper or result.status == :ok)}
      end)

    checks
  end

  defp result(check, false, _probe, _read, _deadline) when check in @by_helper,
    do: finding(check, {:warn, "unknown, as the helper does not work", nil})

  defp result(check, _helper?, probe, read, deadline) do
    case bounded(probe, deadline) do
      {:ok, fact} ->
        finding(check, judge(check, fact, read))

      {:raised, message} ->
        finding(check, {:fail, "could not be looked at: #{message}", nil})

      :timeout ->
        found = "no answer within #{deadline} ms"
        finding(check, {:fail, found, "Look at the load of the machine, and try again."})
    end
  end

  defp finding(check, {status, found, advice}),
    do: %{check: check, status: status, found: found, advice: advice}

  # In a process of its own: all that it owns ends with it.
  defp bounded(probe, deadline) do
    {pid, monitor} = spawn_monitor(fn -> exit({:probed, caught(probe)}) end)

    receive do
      {:DOWN, ^monitor, :process, _pid, {:probed, outcome}} -> outcome
      {:DOWN, ^monitor, :process, _pid, reason} -> {:raised, Exception.format_exit(reason)}
    after
      deadline ->
        Process.exit(pid, :kill)
        Process.demonitor(monitor, [:flush])
        await_gone(pid, @gone)
        :timeout
    end
  end

  defp caught(probe) do
    {:ok, probe.()}
  catch
    kind, reason -> {:raised, Exception.format_banner(kind, reason, __STACKTRACE__)}
  end

  defp await_gone(pid, left) do
    if left > 0 and (Process.alive?(pid) or Native.owned(pid) > 0) do
      Process.sleep(10)
      await_gone(pid, left - 10)
    end
  end

  defp read(path) do
    case File.read(path) do
      {:ok, text} -> text
      {:error, _} -> nil
    end
  end

  ## What a fact means

  defp judge(:helper, {:ok, path, version}, _read),
    do: {:ok, "version #{version} answers, #{path}", nil}

  defp judge(:helper, {:error, path, hint}, _read), do: {:fail, "does not work, #{path}", hint}

  defp judge(:helper, {:other_version, path, its, ours}, _read) do
    {:fail, "of version #{its}, the library of #{ours}; #{path}",
     "Build both again: `mix deps.compile stdio --force`, or `mix compile --force` in its own " <>
       "checkout."}
  end

  defp judge(:privileges, %{setuid: :open, path: path}, _read) do
    {:fail, "the helper has the setuid bit, but is not root's or may be executed by anyone",
     "Whoever may start it as root is root: chown root:GROUP #{path} && chmod 4750 #{path}"}
  end

  defp judge(:privileges, %{root?: true}, read) do
    case Hint.ids(read) do
      nil -> {:ok, "root", nil}
      advice -> {:warn, "root, of a user namespace", sentence(advice)}
    end
  end

  defp judge(:privileges, %{no_new_privs?: true} = fact, _read)
       when fact.setuid == :guarded or fact.sudo != :missing do
    {:ok, "not root, and this BEAM cannot gain privileges (NO_NEW_PRIVS)",
     "Only for Stdio.setuid(): run the BEAM without it (systemd: NoNewPrivileges=no)."}
  end

  defp judge(:privileges, %{setuid: :guarded}, _read),
    do: {:ok, "not root; Stdio.setuid() has the helper's setuid bit, which is guarded", nil}

  defp judge(:privileges, %{sudo: :allowed}, _read),
    do: {:ok, "not root; Stdio.setuid() has sudo, which asks for no password", nil}

  defp judge(:privileges, %{sudo: sudo, path: path}, _read) do
    {:ok, "not root, no setuid bit, #{sudo(sudo)}",
     "Only for Stdio.setuid() and Stdio.Container; /etc/sudoers.d/stdio: " <>
       "#{System.get_env("USER") || "USER"} ALL=(root) NOPASSWD: #{path}"}
  end

  defp judge(:user_namespaces, :ok, _read), do: {:ok, "can be made, with /proc in them", nil}

  defp judge(:user_namespaces, {:error, :proc, reason}, _read) do
    advice = Hint.op(reason, {Stdio.Task, :proc_in, [nil, "", "/proc", []]})
    {:warn, "can be made, but /proc cannot be mounted in them (#{reason})", sentence(advice)}
  end

  defp judge(:user_namespaces, {:error, step, reason}, read) do
    did = %{clone: "cannot be made", map: "ids cannot be mapped", mount: "are without power"}

    advice =
      Hint.user_namespaces(reason, fn name ->
        with text when is_binary(text) <- read.("/proc/sys/" <> name), do: String.trim(text)
      end)

    {:warn, "#{Map.get(did, step, "#{step} fails")} (#{reason})", sentence(advice)}
  end

  defp judge(:subreaper, :ok, _read), do: {:ok, "a daemon was adopted and ended", nil}

  defp judge(:subreaper, {:error, reason}, _read) do
    {:fail, "a daemon was not adopted and ended (#{reason})",
     "Programs can leave processes behind here. It takes PR_SET_CHILD_SUBREAPER (prctl(2)) and " <>
       "a /proc that shows the helper's processes."}
  end

  defp judge(:pidfd, {:ok, _fd}, _read), do: {:ok, "pidfd_open(2) works", nil}

  defp judge(:pidfd, {:error, reason}, _read) do
    {:fail, "pidfd_open(2) fails (#{reason})",
     "It takes Linux 5.3, and a container around this system whose seccomp profile allows it."}
  end

  defp judge(:cgroup, {:ok, own}, _read),
    do: {:ok, "containment: :cgroup can be had below #{own}", nil}

  defp judge(:cgroup, {{:error, reason}, own}, _read) do
    where = if own, do: "below #{own}", else: "as there is no cgroup v2"

    {:warn, "containment: :cgroup cannot be had, #{where} (#{reason})",
     "It takes Linux 5.14, cgroup v2 mounted writable, and root or a delegated cgroup (systemd: " <>
       "Delegate=yes in the BEAM's unit, or systemd-run --user --scope -p Delegate=yes)."}
  end

  defp judge(:landlock, {:ok, abi}, _read), do: {:ok, "ABI #{abi}", nil}

  defp judge(:landlock, {:error, :eopnotsupp}, _read) do
    {:warn, "built in, but off", "Boot with landlock in the kernel's lsm= list."}
  end

  defp judge(:landlock, {:error, reason}, _read) do
    {:warn, "not there (#{reason})",
     "It takes Linux 5.13 with CONFIG_SECURITY_LANDLOCK, and a container around this system " <>
       "whose seccomp profile allows it. Stdio itself does not need it."}
  end

  defp judge(:seccomp, :ok, _read), do: {:ok, "a filter was installed and holds", nil}

  defp judge(:seccomp, {:no_effect, _}, _read),
    do: {:fail, "a filter was installed, and does not hold", "Do not rely on Stdio.Seccomp here."}

  defp judge(:seccomp, {:error, reason}, _read) do
    {:warn, "a filter cannot be installed (#{reason})",
     "It takes a kernel with CONFIG_SECCOMP_FILTER, and an architecture that Stdio.Seccomp " <>
       "knows."}
  end

  defp judge(:descriptors, %{max: max, used: used}, _read) when is_integer(max) do
    programs = div(max - used, @descriptors_each)
    found = "#{max} allowed, #{used} open: some #{programs} programs at a time"

    if programs < @few_programs,
      do: {:warn, found, "Raise the hard limit: ulimit -Hn, LimitNOFILE= of the BEAM's unit."},
      else: {:ok, found, nil}
  end

  defp judge(:descriptors, %{max: max, used: used}, _read),
    do: {:ok, "limit #{max}, #{used} open", nil}

  defp judge(:processes, %{user: user, cgroup: cgroup}, _read) do
    found = "limit of the user: #{user}; left in the cgroups: #{cgroup}"
    least = Enum.min(Enum.filter([user, cgroup], &is_integer/1), fn -> :unlimited end)

    if is_integer(least) and least < @few_programs * @processes_each,
      do:
        {:warn, found,
         "Raise the lower one: ulimit -u or LimitNPROC=, and pids.max (systemd: TasksMax=, " <>
           "docker: --pids-limit)."},
      else: {:ok, found, nil}
  end

  defp judge(:init, %{own: "1"}, _read) do
    {:warn, "the BEAM is process 1",
     "It does not reap the zombies of others. Have an init start it: docker run --init, tini, " <>
       "or the pod's shareProcessNamespace."}
  end

  defp judge(:init, %{own: own, first: first}, _read),
    do: {:ok, "process 1 is #{first}, the BEAM is #{own}", nil}

  # A probe of any kind that could not start: no helper, no descriptors.
  defp judge(_check, {:error, reason}, _read), do: {:fail, "could not be tried (#{reason})", nil}

  defp sudo(:missing), do: "no sudo"
  defp sudo(:refused), do: "sudo does not start the helper without a password"
  defp sudo(:unknown), do: "not looked for another way"

  defp sentence(nil), do: nil
  defp sentence(text), do: String.capitalize(String.first(text)) <> String.slice(text, 1..-1//1)
end
