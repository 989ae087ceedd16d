defmodule Stdio.SeccompStreamTest do
  # Stdio.Seccomp as the kernel sees it: the last op of a stream, by each of its names.
  use Stdio.Test.StreamCase

  @moduletag :linux
  @moduletag :userns

  defp denied(line, behaviour, filters, config \\ []) do
    for module <- [Stdio.Seccomp, :seccomp] do
      ops = fn config -> behaviour.ops(config) ++ [{module, :deny, [filters]}] end
      Enum.to_list(Stdio.stream!(line, {behaviour, ops: ops}, config))
    end
  end

  # 1: EPERM
  @mkdir [{:deny, :sys_mkdir, 1}, {:deny, :sys_mkdirat, 1}]

  @tag :dir
  test "a call fails with its errno, others do not", %{dir: dir} do
    line = "mkdir #{dir}/$$; touch #{dir}/file && rm #{dir}/file && echo made"

    for elements <- denied(line, Stdio.Process, @mkdir) do
      assert output(elements) == "made\n"
      assert output(elements, :stderr) =~ "Operation not permitted"
      assert Oracle.terminal!(elements) == {:exit_status, 0}
    end

    assert File.ls!(dir) == []
  end

  test "without an errno it is the end of the process, by SIGSYS" do
    for elements <- denied("echo a; uname; echo b", Stdio.Process, [{:deny, :sys_uname}]) do
      # The shell goes on when a child of its is killed.
      assert elements |> output() |> String.split() == ["a", "b"]
    end

    for elements <- denied(["/bin/uname"], Stdio.Process, [{:deny, :sys_uname}]) do
      assert elements == [termsig: :sigsys]
    end
  end

  @tag :dir
  test "in a container too", %{dir: dir} do
    for name <- ~w(bin sbin usr lib lib64 tmp home proc dev),
        do: File.mkdir!(Path.join(dir, name))

    line = "mkdir /tmp/x 2>/dev/null || echo refused"

    for elements <- denied(line, Stdio.Rootless, @mkdir, path: dir) do
      assert output(elements) == "refused\n"
    end
  end

  test "an unknown name starts nothing" do
    error =
      assert_raise Stdio.OpError, fn ->
        denied("true", Stdio.Process, [{:deny, :sys_ptrace}, {:deny, :sys_no_such_call}])
      end

    assert error.reason == :enotsup
    assert error.message =~ "\nno system calls of this system: :sys_no_such_call\n"
  end
end
