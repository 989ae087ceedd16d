defmodule Stdio.StartMessagesTest do
  # A start is at most three messages, however long its list of ops: one for the supervisor, one for the
  # processes, one for the ops and the program. Each is one recvmsg(2) of a process on the way.
  use Stdio.Test.StreamCase

  alias Stdio.Test.Strike

  @moduletag :strace

  setup do
    dir = Strike.dir!()
    on_exit(fn -> File.rm_rf!(dir) end)
    %{dir: dir}
  end

  for {mode, tag, most} <- [
        {:process, :linux, 1},
        {:pid_namespace, :userns, 1},
        {:rootless, :userns, 3},
        {:container, :root, 3}
      ] do
    @tag tag
    @tag mode: mode, most: most
    test "#{mode}: #{most}", %{mode: mode, most: most, dir: dir} do
      {calls, _} = Strike.record(mode, :exits, dir)

      parents =
        for {role, calls} <- calls, role != "launcher", Enum.any?(calls, &fork?/1), do: role

      assert parents != []

      before_clone =
        for role <- parents, call <- Enum.take_while(calls[role], &(not fork?(&1))), do: call

      program = List.last(Enum.sort(Map.keys(calls)))
      assert "execve" in calls[program]
      assert count(before_clone) + count(calls[program]) == most, inspect(calls)
    end
  end

  defp fork?(call), do: call in ["clone", "clone3", "fork", "vfork"]

  defp count(calls), do: Enum.count(calls, &(&1 == "recvmsg"))
end
