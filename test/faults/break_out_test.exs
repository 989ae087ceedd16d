defmodule Stdio.Faults.BreakOutOfContainerTest do
  # FAULTS rows 29 to 32.
  use Stdio.Test.BreakOutTests, behaviour: Stdio.Container, tag: :root
end

defmodule Stdio.Faults.BreakOutOfRootlessTest do
  # FAULTS rows 28 to 32.
  use Stdio.Test.BreakOutTests, behaviour: Stdio.Rootless, tag: :userns

  test "row 28: the supervisor inside is closed to the program", context do
    for config <- [[], [uid: 0], [uid: 0, setuid: true]] do
      tried = tries("attack-parent", ["1"], context, config)
      assert worked(tried) in [["kill"], []]
      for name <- ~w(ptrace vm_readv pidfd_getfd), do: assert(tried[name] == "EPERM")
      for name <- ~w(mem_read mem_write exe environ), do: assert(tried[name] == "EACCES")
    end
  end

  test "row 28: signals do not end it", context do
    # It is PID 1 of its namespace, and forwards what it gets.
    line = "trap '' TERM; kill -KILL 1; kill -STOP 1; kill -TERM 1; sleep 0.2; echo still"

    for uid <- [0, 1000] do
      result = run_in(Stdio.Rootless, line, path: context.root, uid: uid)
      assert %{stdout: "still\n", exit: {:exit_status, 0}} = result
    end
  end
end
