defmodule Stdio.StartMessagesTest do
  # A start is at most three messages, however long its list of ops: one for the supervisor, one for the
  # processes, one for the ops and the program. Each is one recvmsg(2) of a process on the way. The one
  # to the supervisor of a plain program goes ahead of the start, but before the very first, which this is.
  # One that found nothing yet (EAGAIN) was no message.
  use Stdio.Test.StreamCase

  alias Stdio.Test.Strike

  @moduletag :strace

  setup do
    dir = Strike.dir!()
    on_exit(fn -> File.rm_rf!(dir) end)
    %{dir: dir}
  end

  for {mode, tag, most, ahead} <- [
        {:process, :linux, 1, 1},
        {:pid_namespace, :userns, 1, 0},
        {:rootless, :userns, 3, 0},
        {:container, :root, 3, 0}
      ] do
    @tag tag
    @tag mode: mode, most: most, ahead: ahead
    test "#{mode}: #{most}", %{mode: mode, most: most, ahead: ahead, dir: dir} do
      calls = Strike.record_done(mode, :exits, dir)

      # The launcher sees to supervisors, of which the second is for the next program.
      parents =
        for {role, calls} <- calls,
            role not in ["launcher", "root:2", "spare:1"],
            Enum.any?(calls, &fork?/1),
            do: role

      assert parents != []

      before_clone =
        for role <- parents, call <- Enum.take_while(calls[role], &(not fork?(&1))), do: call

      assert [program] = for({role, calls} <- calls, "execve" in calls, do: role)
      assert count(before_clone) + count(calls[program]) == ahead + most, inspect(calls)
      if ahead > 0, do: assert(count(before_clone) == ahead)
    end
  end

  defp fork?(call), do: call in ["clone", "clone3", "fork", "vfork"]

  defp count(calls), do: Enum.count(calls, &(&1 == "recvmsg"))
end
