defmodule Stdio.Faults.InheritanceTest do
  # FAULTS rows 14, 29, 35 to 37, 42: what a program gets from a BEAM in an odd state, and what it
  # must not get. `show-fds` in ordinary circumstances is in test/stdio.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault
  alias Stdio.Test.Peer
  alias Stdio.{OpError, StreamError}

  @moduletag :testbin
  @moduletag timeout: 120_000

  setup_all do
    warm_up()
    :ok
  end

  test "row 29: every descriptor from 3 to 1023 is EBADF, also among others", %{mark: mark} do
    files = for _ <- 1..50, do: File.open!("/dev/null", [:raw])

    others =
      for _ <- 1..20, do: aside(fn -> outcome(Stdio.stream!([Proc.fixture("digest"), mark])) end)

    await_marked(mark, 20)

    tasks =
      for config <- List.duplicate([], 8) ++ [[stdin: :null, stderr: :null, timeout: 10_000]] do
        aside(fn -> list([Proc.fixture("write-fds"), mark], config) end)
      end

    for task <- tasks, do: assert(await(task) == [stdout: "done\n", exit_status: 0])

    for task <- others, do: Task.shutdown(task, :brutal_kill)
    Enum.each(files, &File.close/1)
  end

  # A BEAM that was itself left descriptors which are not close-on-exec, and ignores what it can.
  @odd ~S"""
  for signal <- [:sigchld, :sigusr1, :sigusr2, :sighup, :sigterm, :sigquit],
      do: :os.set_signal(signal, :ignore)

  [[_, ignored]] = Regex.scan(~r/^SigIgn:\s*(\S+)/m, File.read!("/proc/self/status"))
  IO.puts("ignored #{ignored}")

  born = fn ->
    [{:stdout, text}, {:exit_status, 0}] = Enum.to_list(Stdio.stream!([show_fds, mark]))
    lines = String.split(text, "\n")
    wanted = ["fds=", "sigign=", "sigblk=", "sigpnd="]
    IO.puts(lines |> Enum.filter(&String.starts_with?(&1, wanted)) |> Enum.join(" "))
  end

  born.()
  IO.puts(inspect(Enum.to_list(Stdio.stream!([write_fds, mark]))))
  # `yes` dies of SIGPIPE, which is 13.
  yes = Enum.to_list(Stdio.stream!("(yes; echo $? >&2) | head -1"))
  IO.puts(inspect(Enum.sort(yes)))
  # Nobody waits for the launcher here: it must not make a difference to its successor.
  launcher = Stdio.Test.Fault.launcher()
  Stdio.Test.Proc.wait_until(fn -> Stdio.Test.Fault.launcher() not in [nil, launcher] or
    (Enum.to_list(Stdio.stream!("true")); false) end, 20_000)
  born.()
  """

  @born "fds=0,1,2 sigign=0000000000000000 sigblk=0000000000000000 sigpnd=0000000000000000"

  test "row 42: a BEAM that ignores signals and has foreign descriptors", %{mark: mark} do
    peer =
      Proc.peer_beam(@odd,
        shell: "exec 7</dev/null 8>/dev/null",
        assigns: [
          show_fds: Proc.fixture("show-fds"),
          write_fds: Proc.fixture("write-fds"),
          mark: mark
        ]
      )

    # The premise: it does ignore SIGPIPE (bit 12) and SIGCHLD (bit 16), and has 7 and 8.
    assert "ignored " <> mask = Peer.line(peer)
    assert Bitwise.band(String.to_integer(mask, 16), 0x11000) == 0x11000
    assert %{7 => "/dev/null", 8 => "/dev/null"} = Proc.fds(peer.os_pid)

    assert Peer.line(peer) == @born
    assert Peer.line(peer) == ~S([stdout: "done\n", exit_status: 0])
    assert Peer.line(peer) == ~S([exit_status: 0, stderr: "141\n", stdout: "y\n"])
    assert Proc.kill(launcher(peer.os_pid), 9) == :ok
    assert Peer.line(peer, 30_000) == @born
    Peer.stop(peer)
  end

  @tag :dir
  test "row 14: what cannot be executed, each with its reason", %{dir: dir} do
    plain = Path.join(dir, "plain")
    File.write!(plain, "text")
    garbage = Path.join(dir, "garbage")
    File.write!(garbage, <<0, 1, 2, 3>>)
    File.chmod!(garbage, 0o755)
    orphan = Path.join(dir, "orphan")
    File.write!(orphan, "#!/no/such/interpreter\n")
    File.chmod!(orphan, 0o755)

    cases = [
      {Path.join(dir, "missing"), :enoent},
      {orphan, :enoent},
      {plain, :eacces},
      {dir, :eacces},
      {garbage, :enoexec},
      {plain <> "/below", :enotdir},
      {"/" <> String.duplicate("x", 300), :enametoolong}
    ]

    for {path, reason} <- cases do
      assert {:error, %StreamError{action: "subprocess", reason: ^reason}} =
               outcome(Stdio.stream!([path]))
    end

    assert messages() == []
  end

  test "row 35: a NUL is refused before anything is forked" do
    for bad <- [["/bin/echo", "a\0b"], ["/bin/ec\0ho"], "echo \0", {"/bin/echo", ["\0"]}] do
      assert_raise ArgumentError, fn -> Stdio.stream!(bad) end
    end

    for config <- [[environ: ["A=\0"]], [env: [{"A", "\0"}]], [cd: "/\0"]] do
      assert_raise ArgumentError, fn -> Stdio.stream!("true", Stdio.Process, config) end
    end
  end

  test "row 36: the kernel's limits, and just below them", %{mark: mark} do
    show = Proc.fixture("show-args")

    # MAX_ARG_STRLEN is 32 pages, its NUL included.
    for {size, expected} <- [{131_071, :ok}, {131_072, :e2big}, {1_000_000, :e2big}] do
      argv = [show, mark, String.duplicate("x", size)]

      case outcome(Stdio.stream!(argv)) do
        {:exit_status, 0} -> assert expected == :ok
        {:error, %StreamError{action: "subprocess", reason: reason}} -> assert reason == expected
      end
    end

    # All together: 2 MB by default, from the stack's limit.
    many = List.duplicate(String.duplicate("x", 100_000), 40)
    assert {:error, %StreamError{reason: :e2big}} = outcome(Stdio.stream!([show, mark | many]))
    some = Enum.take(many, 15)
    {[_, _ | given], _} = given(list([show, mark | some]))
    assert given == some
    # The helper is none the worse.
    assert list("true") == [exit_status: 0]
  end

  @tag :dir
  test "row 37: no argument at all, and bytes that are no text", %{mark: mark, dir: dir} do
    show = Proc.fixture("show-args")
    odd = for byte <- 1..255, into: "", do: <<byte>>
    # Linux makes an empty argv one empty string since 5.18.
    {argv, _} = given(list({show, []}))
    assert argv in [[], [""]]

    {argv, environ} = given(list([show, mark, odd, "", "ä"], environ: ["ODD=" <> odd]))
    assert argv == [show, mark, odd, "", "ä"]
    assert environ == ["ODD=" <> odd]

    directory = Path.join(dir, <<"odd-", 255, 254>>)
    File.mkdir!(directory)
    File.chmod!(directory, 0o755)
    assert list(["/bin/pwd"], cd: directory) == [stdout: directory <> "\n", exit_status: 0]
    assert output(pipe([odd], "cat")) == odd
  end

  test "typed errors leave nothing, wherever the start fails", %{mark: mark} do
    for _ <- 1..20 do
      stream = Stdio.stream!([Proc.fixture("digest"), mark], Stdio.Process, cd: "/no/such")
      assert {:error, %OpError{reason: :enoent}} = outcome(stream)
    end

    # A limit that ends the process at its start.
    for _ <- 1..20 do
      config = [rlimit: %{rlimit_as: %{cur: 4096, max: 4096}}]
      stream = Stdio.stream!([Proc.fixture("digest"), mark], Stdio.Process, config)
      assert {kind, _} = outcome(stream)
      assert kind in [:error, :termsig]
    end

    assert Proc.find(mark) == []
    assert messages() == []
  end
end
