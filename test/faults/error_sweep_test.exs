defmodule Stdio.Faults.ErrorSweepTest do
  # FAULTS rows 9 and 12. Row 9: a system call of launcher, supervisors or tasks fails, with an errno that may make no
  # sense for it, during start, run and stop. The stream ends as if nothing had been, or with a typed
  # error; EINTR is survived. Nothing hangs, nothing is left, and the next start works.
  #
  # Here a sample of these system calls; all of them with STDIO_FULL=1 (bin/soak).
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault
  alias Stdio.Test.Strike

  @moduletag :strace
  @moduletag timeout: :infinity

  @errors [eperm: 1, eintr: 4, eagain: 11, enomem: 12, emfile: 24]
  # These cannot fail for a caller that does not err itself; a close that was not made is a leak.
  @infallible ~w(rt_sigprocmask rt_sigaction close close_range exit_group exit munmap brk getpid getppid gettid getuid geteuid
                 getgid getegid umask set_tid_address rt_sigreturn alarm)

  # What does not return EINTR: the kernel restarts it, or never sleeps in it.
  @uninterrupted ~w(rt_sigaction rt_sigprocmask prctl clone3 execve dup2 dup3 fcntl pipe2 signalfd4 mmap
                    mprotect madvise sigaltstack arch_prctl set_robust_list rseq prlimit64 getrlimit
                    setrlimit setsockopt getsockopt getsockname socketpair lseek ioctl fstat stat lstat
                    newfstatat statx setsid setpgid getpgid getsid kill pidfd_open pidfd_send_signal
                    setresuid setresgid setgroups setuid setgid capset capget seccomp sethostname
                    setpriority chdir fchdir chroot mkdir mkdirat mount umount2 pivot_root mount_setattr
                    move_mount open_tree fsopen fsconfig fsmount getdents64 readlink readlinkat uname
                    unshare setns clone unlinkat symlinkat fchmod fchmodat faccessat2 access
                    landlock_create_ruleset landlock_add_rule landlock_restrict_self getrandom ?)

  setup do
    dir = Strike.dir!()
    on_exit(fn -> File.rm_rf!(dir) end)
    %{dir: dir}
  end

  for {mode, tag} <- [
        process: :linux,
        shared: :linux,
        pid_namespace: :userns,
        rootless: :userns,
        container: :root
      ] do
    @tag tag
    @tag mode: mode
    test "#{mode}: a failing call is an error of the stream, or none", %{mode: mode, dir: dir} do
      results =
        for {ending, point, error} <- sample(points(mode, dir)) do
          progress("#{mode}, #{error}")
          result = Strike.at(mode, ending, point, [error: @errors[error]], dir)
          {{ending, point, error}, result}
        end

      struck = for {_, %{fired: true} = result} <- results, do: result
      failed = Enum.count(struck, &match?({:error, _}, &1.outcome))
      left = Enum.count(struck, &(&1.survivors != []))

      report(
        "#{mode}, failing calls: #{length(struck)} (#{length(results) - length(struck)} not " <>
          "reached), typed errors: #{failed}, survivors at #{left}"
      )

      bad = for {where, result} <- results, not good?(where, result), do: explain(where, result)
      assert Enum.join(bad, "\n") == ""
      assert list("true") == [exit_status: 0]
    end
  end

  test "row 12: a helper with little address space", %{mark: mark, launcher: own} do
    on_exit(fn -> Application.put_env(:stdio, :exec, "") end)

    outcomes =
      for kib <- [0, 64, 256, 512, 768, 1024, 1280, 1536, 2048, 4096, 65_536] do
        Application.put_env(:stdio, :exec, "prlimit --as=#{kib * 1024}")
        # The program has the limit too, and may not get as far as its first instruction.
        outcome = await(aside(fn -> outcome(Stdio.stream!(["/bin/true", mark])) end))
        stop_launchers_but(own)
        {kib, outcome}
      end

    assert {_, {:error, %Stdio.StreamError{}}} = List.first(outcomes)
    assert {_, {:exit_status, 0}} = List.last(outcomes)

    for {kib, outcome} <- outcomes do
      typed? =
        match?({:error, %module{}} when module in [Stdio.StreamError, Stdio.OpError], outcome)

      assert typed? or match?({kind, _} when kind in [:exit_status, :termsig], outcome),
             "#{kib} KiB: #{inspect(outcome)}"
    end

    Application.put_env(:stdio, :exec, "")
    assert list("true") == [exit_status: 0]
  end

  # Those with a privilege of their own; each ends with its socket or by this.
  defp stop_launchers_but(own) do
    for {pid, %{name: "stdio-supervise"}} <- Proc.table(),
        pid != own and pid in Proc.children(Proc.os_pid()),
        do: Proc.kill(pid)
  end

  defp points(mode, dir) do
    for ending <- [:exits, :halted],
        {role, names} <- elem(Strike.record(mode, ending, dir), 0),
        {name, at} <- Enum.with_index(names, 1),
        name not in @infallible,
        {error, _} <- @errors,
        error != :eintr or name not in @uninterrupted,
        do: {{ending, {role, at}, error}, name}
  end

  # The parent's word to its child, of four bytes; the one time that an end is asked for. A sample
  # seldom meets them.
  defp sample(points) do
    once =
      for {{_, _, error}, name} = point <- points,
          {error, name} in [eintr: "write", enomem: "wait4"],
          do: point

    sample =
      spaced(points, sample_size(12, length(points))) ++
        spaced(once, sample_size(8, length(once)))

    for {point, _name} <- Enum.uniq(sample), do: point
  end

  defp progress(text), do: if(size(false, true), do: IO.write("\r\e[K  #{text}"))

  defp good?({ending, _, error}, %{outcome: outcome, survivors: [], call: call}) do
    # A run may make its calls in another order than the recorded one.
    survived? = error == :eintr and call not in @uninterrupted and call not in @infallible

    case outcome do
      {:error, _} when survived? -> false
      {:termsig, _} when survived? -> false
      _ -> Strike.expected?(ending, outcome)
    end
  end

  defp good?(_, _), do: false

  defp explain({ending, {role, at}, error}, result) do
    "#{ending}, #{error} for call #{at} of #{role} (#{result.call}): " <>
      "#{inspect(result.outcome)}, left: #{inspect(result.survivors)}\n" <>
      Enum.join(Enum.take(String.split(result.log, "\n"), -12), "\n")
  end
end
