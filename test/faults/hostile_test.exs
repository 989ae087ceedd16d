defmodule Stdio.Faults.HostileTest do
  # FAULTS rows 28, 33 and the terminal: programs that want to get hold of what watches them, of
  # privileges, of the BEAM's terminal. Each test has its premise: what the same program can do where
  # nothing keeps it from it.
  use Stdio.Test.StreamCase

  import Stdio.Test.Fault
  alias Stdio.Test.Peer

  @moduletag :linux
  @moduletag timeout: 120_000

  # `name=outcome` lines.
  defp tries(elements) do
    {:exit_status, 0} = Oracle.terminal!(elements)
    lines = elements |> output() |> String.split("\n", trim: true)
    for line <- lines, into: %{}, do: line |> String.split("=", parts: 2) |> List.to_tuple()
  end

  defp attack(mark, words, config) do
    tries(list([Proc.fixture("attack-parent"), mark | words], config))
  end

  describe "row 28: supervisor and launcher" do
    @inspecting ~w(ptrace mem_read mem_write vm_readv fd_list pidfd_getfd environ exe)

    test "are closed to the program", %{mark: mark, launcher: launcher} do
      for words <- [[], ["#{launcher}"]], config <- [[], [net: :none], [setuid: true]] do
        tried = attack(mark, words, config)
        for name <- @inspecting, do: assert({name, tried[name]} in denials(name))
        # A user may signal what is the user's own; uids separate them where the BEAM is root.
        assert tried["kill"] == if(root?(), do: "EPERM", else: "ok")
      end
    end

    defp denials(name), do: for(errno <- ~w(EPERM EACCES), do: {name, errno})

    # Who is root on both sides may do everything; a user to programs that do not refuse it.
    test "others are not: the premise", %{mark: mark, launcher: launcher} do
      if root?() do
        tried = attack(mark, ["#{launcher}"], uid: 0)
        for name <- @inspecting -- ["exe"], do: assert({name, tried[name]} == {name, "ok"})
        # It could be written to, were it not running.
        assert tried["exe"] == "ETXTBSY"
      else
        while_running(mark, [], fn victim ->
          tried = attack(Proc.mark(), ["#{victim}"], [])
          # Yama may protect it from those that are not its parents.
          yama = File.read("/proc/sys/kernel/yama/ptrace_scope")
          if yama in [{:error, :enoent}, {:ok, "0\n"}], do: assert(tried["ptrace"] == "ok")
          for name <- ~w(kill environ fd_list), do: assert({name, tried[name]} == {name, "ok"})
        end)
      end
    end

    @tag :userns
    test "stay closed to a user namespace", %{mark: mark, launcher: launcher} do
      # All capabilities, but none over a process of the namespace outside.
      for target <- ["$PPID", "#{launcher}"] do
        line = "exec unshare --user --map-root-user #{Proc.fixture("attack-parent")} #{mark} "
        tried = tries(list(line <> target))
        for name <- @inspecting, do: assert({name, tried[name]} in denials(name))
      end
    end

    @tag :dir
    test "row 28: a script whose interpreter is whoever executes it", %{dir: dir} do
      helper = Application.app_dir(:stdio, "priv/native/stdio-supervise")
      before = File.stat!(helper)
      script = Path.join(dir, "script")
      File.write!(script, "#!/proc/self/exe\n")
      File.chmod!(script, 0o755)
      # The helper, which says that it is not for that.
      elements = list([script])
      assert Oracle.terminal!(elements) == {:exit_status, 2}
      assert output(elements, :stderr) =~ "It expects a SOCK_SEQPACKET socket"
      assert File.stat!(helper) == %{before | atime: File.stat!(helper).atime}
    end
  end

  describe "row 33: setuid programs" do
    @describetag :dir

    @tag :root
    test "give nothing", %{mark: mark, dir: dir} do
      program = Path.join(dir, "show-fds")
      File.cp!(Proc.fixture("show-fds"), program)
      File.chmod!(program, 0o6755)

      ids = fn config ->
        elements = list([program, mark], [uid: 65_600, gid: 65_601] ++ config)
        tried = tries(elements)
        {tried["uid"], tried["gid"], tried["nonewprivs"], tried["capeff"]}
      end

      none = "0000000000000000"
      assert ids.([]) == {"65600,65600,65600", "65601,65601,65601", "1", none}
      # The premise: this file system honours the bits, and so does the kernel.
      assert {"65600,0,0", "65601,0,0", "0", all} = ids.(setuid: true)
      assert all != none
      # Nor by way of other programs, or of a namespace.
      for line <- ["exec #{program} #{mark}", "unshare --user #{program} #{mark}"] do
        elements = list(line, uid: 65_600, gid: 65_601)
        refute Map.fetch!(tries(elements), "uid") =~ ~r/,0,/
      end
    end

    @tag :root
    test "nor do programs with file capabilities", %{mark: mark, dir: dir} do
      program = Path.join(dir, "show-fds")
      File.cp!(Proc.fixture("show-fds"), program)
      File.chmod!(program, 0o755)
      assert {_, 0} = System.cmd("/sbin/setcap", ["cap_net_admin,cap_sys_ptrace+ep", program])

      capabilities = fn config ->
        elements = list([program, mark], [uid: 65_600, gid: 65_601] ++ config)
        Map.fetch!(tries(elements), "capeff")
      end

      assert capabilities.([]) == "0000000000000000"
      # The premise. Bits 12 and 19, capabilities(7).
      assert capabilities.(setuid: true) == "0000000000081000"
    end

    @tag :unprivileged
    test "give nothing, in whose ever directory they are", %{mark: mark} do
      su = System.find_executable("su")
      assert Bitwise.band(File.stat!(su).mode, 0o4000) != 0
      uid = beam_uid()

      # It waits for a password.
      ids = fn config ->
        [su, "-c", mark, "root"]
        |> Stdio.stream!(Stdio.Process, config)
        |> Enum.reduce_while(nil, fn _, _ ->
          [pid | _] = await_marked(mark, 1)
          {:halt, String.split(Proc.status(pid)["uid"])}
        end)
      end

      assert ids.([]) == for(_ <- 1..4, do: "#{uid}")
      # The premise.
      assert ids.(setuid: true) == ["#{uid}", "0", "0", "0"]
    end
  end

  @terminal ~S"""
  list = fn argv -> Enum.to_list(Stdio.stream!(argv, Stdio.Process, environ: :inherit)) end
  IO.puts(for {:stdout, text} <- list.([type_tty, mark]), do: String.replace(text, "\n", " "))
  """

  test "row 28: the BEAM's terminal is not the program's", %{mark: mark} do
    peer =
      Proc.peer_beam(@terminal,
        shell: ~s(set -- #{Proc.fixture("lend-tty")} #{mark} "$@"),
        assigns: [type_tty: Proc.fixture("type-tty"), mark: mark]
      )

    assert "standard=ENOTTY open=ENXIO " <> tried = Peer.line(peer)
    Peer.stop(peer)
    # It is the user's file, if the user is one: that does not help.
    assert ["push=" <> push, "take=" <> take, "control=ENXIO"] = String.split(tried)
    assert push in ~w(EPERM EIO EACCES)
    assert take in ~w(EPERM EACCES)

    # The premise: whose terminal it is can. (Since Linux 6.2 a setting may forbid to put input in.)
    {text, 0} = System.cmd(Proc.fixture("lend-tty"), [mark, Proc.fixture("type-tty"), mark])
    assert ["standard=ENOTTY", "open=ok", push, "take=ok", "control=ok"] = String.split(text)
    allowed = File.read("/proc/sys/dev/tty/legacy_tiocsti") != {:ok, "0\n"}
    assert push == if(allowed, do: "push=ok", else: "push=EIO")
  end
end
