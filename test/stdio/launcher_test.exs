defmodule Stdio.LauncherTest do
  # A helper that is not there, cannot be executed or is something else. All of it happens in a
  # second BEAM with a copy of the application, whose helper is changed and mended.
  use Stdio.Test.StreamCase

  alias Stdio.Test.Peer

  @moduletag timeout: 60_000

  # Runs in the other BEAM. `kinds` are tried in order; nothing of the library is restarted.
  @source ~S"""
  alias Stdio.Test.Proc

  prepare = fn
    :missing -> :ok
    :directory -> File.mkdir!(helper)
    :plain -> File.cp!(good, helper); File.chmod!(helper, 0o644)
    :good -> File.cp!(good, helper); File.chmod!(helper, 0o755)
    :other_program -> File.cp!("/bin/true", helper); File.chmod!(helper, 0o755)
    {:file, text} -> File.write!(helper, text); File.chmod!(helper, 0o755)
  end

  # The BEAM's own children are of no interest.
  left = fn ->
    for pid <- Proc.descendants(),
        entry = Proc.stat(pid),
        entry.name not in ["erl_child_setup", "inet_gethost"],
        do: {entry.name, entry.state, Proc.cmdline(pid)}
  end

  for kind <- kinds do
    File.rm_rf!(helper)
    prepare.(kind)
    before = map_size(Proc.fds())

    result =
      try do
        Enum.to_list(Stdio.stream!("echo hello"))
      rescue
        error -> Map.from_struct(error) |> Map.put(:struct, error.__struct__)
      end

    clean? = kind == :good or Proc.wait_until(fn -> left.() == [] end, 2000)
    left = if clean?, do: [], else: left.()
    messages = Proc.messages()
    facts = %{result: result, left: left, messages: messages, fds: map_size(Proc.fds()) - before}
    IO.puts(facts |> :erlang.term_to_binary() |> Base.encode64())
  end
  """

  # What came of each of `kinds`, and the path of the changed helper.
  defp try_helpers(dir, kinds) do
    app = Application.app_dir(:stdio)
    copy = Path.join(dir, "stdio")
    {_, 0} = System.cmd("cp", ["-rL", app, copy])
    helper = Path.join(copy, "priv/native/stdio-supervise")

    peer =
      Peer.start(@source,
        # What is given later stands first in the code path.
        args: ["-pa", Path.join(copy, "ebin")],
        assigns: [
          kinds: kinds,
          helper: helper,
          good: Path.join(app, "priv/native/stdio-supervise")
        ]
      )

    try do
      results =
        for kind <- kinds do
          line = Peer.line(peer, 20_000)
          assert is_binary(line), "#{inspect(kind)}: #{inspect(line)}"
          line |> Base.decode64!() |> :erlang.binary_to_term()
        end

      {helper, results}
    after
      Peer.stop(peer)
    end
  end

  # A failure of the supervisor; returns its hint.
  defp hint!(facts, reason) do
    assert %{struct: Stdio.StreamError, action: "supervisor", reason: ^reason} = facts.result

    assert facts.result.message =~
             ~r/^error creating supervisor: "echo hello": .* \(#{reason}\)\n\n/

    assert String.ends_with?(facts.result.message, "\n\n" <> facts.result.hint)
    assert facts.left == []
    assert facts.messages == []
    # One for the epoll and one for the eventfd of each I/O thread may have come.
    assert facts.fds <= 4
    facts.result.hint
  end

  @tag :dir
  test "every kind of wrong helper has its reason and its advice; mended, it works",
       %{dir: dir} do
    # A hello of another version: inline, message 0, 7 bytes.
    other_version = "#!/bin/sh\nprintf '\\000\\000\\0079.9.9+9' >&0\nread -r _\n"

    {helper, results} =
      try_helpers(dir, [
        :missing,
        :plain,
        :directory,
        {:file, "no program at all\n"},
        :other_program,
        {:file, "#!/nonexistent/interpreter\n"},
        {:file, "#!/bin/sh\necho no luck today >&2\nexit 1\n"},
        {:file, other_version},
        {:file, "#!/bin/sh\nprintf 'garbage' >&0\nread -r _\n"},
        :good
      ])

    [missing, plain, directory, text, other, interpreter, complaint, version, garbage, good] =
      results

    hint = hint!(missing, :enoent)
    assert hint =~ helper
    assert hint =~ "mix compile"

    hint = hint!(plain, :eacces)
    assert hint =~ helper
    assert hint =~ "0755"
    assert hint!(directory, :eacces) =~ helper
    assert hint!(text, :enoexec) =~ helper
    assert hint!(interpreter, :enoent) =~ helper

    hint = hint!(other, :eproto)
    assert hint =~ helper
    assert hint =~ "mix compile --force"
    assert hint!(complaint, :eproto) =~ "It said: no luck today."
    assert hint!(version, :eproto) =~ helper
    assert hint!(garbage, :eproto) =~ helper

    assert good.result == [stdout: "hello\n", exit_status: 0]
    assert good.messages == []
  end

  @tag :dir
  test "one that does not answer is given up after five seconds, and is not left behind",
       %{dir: dir, mark: mark} do
    started = System.monotonic_time(:millisecond)
    silent = "#!/bin/sh\nexec '#{Proc.fixture("never-read")}' #{mark} >/dev/null\n"
    {helper, [silent, good]} = try_helpers(dir, [{:file, silent}, :good])
    assert System.monotonic_time(:millisecond) - started >= 5000
    hint = hint!(silent, :etimedout)
    assert hint =~ helper
    assert hint =~ "5 seconds"
    assert good.result == [stdout: "hello\n", exit_status: 0]
    # The mark is in the path of the good helper too, which ends with its BEAM.
    assert Proc.wait_until(fn -> Proc.find(mark) == [] end, 5000)
  end
end
