defmodule Stdio.SetuidTest do
  # Stdio.setuid/0 with a real sudo and a real setuid bit. Each script runs in a BEAM of its own: the
  # privilege is one for the whole BEAM, and its launcher stays.
  use ExUnit.Case, async: true

  alias Stdio.Test.{Peer, Proc}

  @moduletag :testbin
  @moduletag :linux
  @moduletag timeout: 120_000

  @helper "priv/native/stdio-supervise"

  @prelude """
  ids = fn config ->
    try do
      Stdio.stream!("id -u; id -g", Stdio.Process, [uid: 0, gid: 0] ++ config)
      |> Enum.map_join(fn {:stdout, ids} -> ids; _ -> "" end)
      |> String.split()
    rescue
      error in Stdio.StreamError ->
        true = error.action == "supervisor"
        {error.reason, error.hint}
    end
  end
  say = fn term -> IO.puts("said " <> inspect(term, limit: :infinity, width: :infinity)) end
  _ = {ids, say}
  """

  # What the script prints. `as`: uid and gid. `lib`: the directory of another build.
  defp script(source, options \\ []) do
    lib = Keyword.get_lazy(options, :lib, fn -> Application.app_dir(:stdio) end)
    file = Path.join(System.tmp_dir!(), "#{Proc.mark()}.exs")
    File.write!(file, [@prelude, source])
    on_exit(fn -> File.rm(file) end)

    user =
      case options[:as] do
        nil -> []
        {uid, gid} -> ["setpriv", "--reuid=#{uid}", "--regid=#{gid}", "--clear-groups"]
      end

    words =
      user ++
        Keyword.get(options, :front, []) ++ ["elixir", "-pa", Path.join(lib, "ebin"), file]

    [program | arguments] = words
    environ = [{"HOME", System.tmp_dir!()}, {"USER", "somebody"}]
    {output, status} = System.cmd(program, arguments, stderr_to_stdout: true, env: environ)
    assert status == 0, output
    for "said " <> said <- String.split(output, "\n"), do: said
  end

  # Effective, of a process.
  defp uid(pid), do: pid |> Proc.status() |> Map.fetch!("uid") |> String.split() |> Enum.at(1)

  describe "sudo that asks for no password" do
    @describetag :sudo
    @describetag :unprivileged

    test "the helper runs as root, beside the one that does not" do
      uid = uid(Proc.os_pid())

      assert [root, plain, together, again] =
               script("""
               :ok = Stdio.setuid()
               say.(ids.([]))
               :ok = Stdio.__setuid__(false)
               say.(hd(ids.([])))
               plain = Stdio.stream!("echo a; sleep 0.5; id -u", Stdio.Process, [])
               root = Stdio.stream!("sleep 0.2; id -u", Stdio.Process, uid: 0)
               both = Stream.transform(plain, nil, fn
                 {:stdout, "a\\n"}, nil ->
                   Stdio.setuid()
                   {Enum.take(root, 1), nil}
                 element, nil -> {[element], nil}
               end)
               say.(Enum.to_list(both))
               Stdio.Task.sudo()
               say.(ids.([]))
               """)

      assert root == ~s(["0", "0"])
      assert plain == inspect(uid)
      assert together == inspect(stdout: "0\n", stdout: uid <> "\n", exit_status: 0)
      assert again == root
    end

    test "Container, Rootless, tasks and supervisors" do
      root = Path.join(System.tmp_dir!(), Proc.mark())
      on_exit(fn -> File.rm_rf!(root) end)

      assert script("""
             Application.put_env(:stdio, :path, #{inspect(root)})
             Stdio.Container.make_chroot_tree!()
             Stdio.setuid()
             say.(Enum.to_list(Stdio.stream!("id -u", Stdio.Container, uid: 65578)))
             say.(Enum.to_list(Stdio.stream!("id -u", Stdio.Rootless)))
             {:ok, task} = Stdio.Task.fork()
             say.({Stdio.Task.getuid(task), File.read!("/proc/\#{Stdio.Task.pidof(task)}/comm")})
             {:ok, %{init: supervisor}} = Stdio.supervisor()
             {:ok, child} = Stdio.Task.fork(supervisor)
             say.({Stdio.Task.setpriority(child, :prio_process, 0, -1), Stdio.Task.getuid(child)})
             """) == [
               ~s([stdout: "65578\\n", exit_status: 0]),
               ~s([stdout: "65534\\n", exit_status: 0]),
               ~s({0, "Supervise\\n"}),
               "{:ok, 0}"
             ]
    end

    test "nothing of root's survives a BEAM that is killed" do
      mark = Proc.mark()

      peer =
        Proc.peer_beam(
          ~S"""
          Stdio.setuid()
          tree = [fixture, mark, "2", "2", "--setsid", "--double-fork", "--ignore-term"]
          spawn(fn ->
            Stdio.stream!(tree, Stdio.Process, uid: 0, gid: 0)
            |> Enum.each(fn {:stdout, line} -> IO.write(line) end)
          end)
          """,
          assigns: [fixture: Proc.fixture("fork-tree"), mark: mark]
        )

      assert Peer.line(peer) == "ready"
      [pid | _] = Proc.find(mark)
      assert uid(pid) == "0"
      Peer.kill(peer)
      assert Proc.wait_until(fn -> Proc.gone?(mark) end)
    end

    test "any other command" do
      assert ["\"1\""] =
               script("""
               Stdio.Task.sudo("sudo -n -u daemon")
               say.(hd(ids.([])))
               """)
    end

    @tag :sudo_logged
    test "that logs the helper's input" do
      logged = System.fetch_env!("STDIO_SUDO_LOGGED")

      assert [line] =
               script("""
               Stdio.Task.sudo("sudo -n -u #{logged}")
               say.(ids.([]))
               """)

      assert line =~ "{:eacces, "
      assert line =~ "!log_input"
    end
  end

  describe "no sudo:" do
    @describetag :unprivileged

    @tag :no_sudo
    test "one that refuses" do
      assert [stream, task, plain] =
               script("""
               Stdio.setuid()
               say.(ids.([]))
               say.(Stdio.Task.fork())
               Stdio.__setuid__(false)
               say.(length(ids.([])))
               """)

      assert stream =~ "{:eacces, "
      assert stream =~ "/etc/sudoers.d"
      assert stream =~ @helper
      # What sudo itself had to say, in whatever words.
      assert stream =~ "It said: sudo: "
      assert task == "{:error, :eacces}"
      assert plain == "2"
    end

    test "none installed" do
      assert [stream, behaviour] =
               script("""
               System.put_env("PATH", "/nonexistent")
               Stdio.setuid()
               say.(ids.([]))
               try do
                 Enum.to_list(Stdio.stream!("true", Stdio.Container))
               rescue
                 error in Stdio.StreamError -> say.({error.action, error.reason, error.hint})
               end
               """)

      assert stream =~ "{:enoent, \"sudo is not installed"
      assert behaviour =~ "{\"supervisor\", :enoent, \"sudo is not installed"
    end

    test "one that never comes back" do
      fake = Path.join(System.tmp_dir!(), Proc.mark())
      File.write!(fake, "#!/bin/sh\nexec sleep 1000\n")
      File.chmod!(fake, 0o755)
      on_exit(fn -> File.rm!(fake) end)

      assert [hung, gone, plain] =
               script("""
               Stdio.Task.sudo("#{fake} -n")
               say.(ids.([]))
               # It was killed, by its pidfd.
               alive? = fn -> System.cmd("pgrep", ["-P", System.pid(), "sleep"]) != {"", 1} end
               say.(Stdio.Test.Proc.wait_until(fn -> not alive?.() end))
               Stdio.__setuid__(false)
               say.(length(ids.([])))
               """)

      assert hung =~ "{:etimedout, "
      assert hung =~ "did not start the helper within 5 seconds"
      assert gone == "true"
      assert plain == "2"
    end

    test "one that never gets to the helper" do
      fake = Path.join(System.tmp_dir!(), Proc.mark())
      File.write!(fake, "#!/bin/sh\nexit 3\n")
      File.chmod!(fake, 0o755)
      on_exit(fn -> File.rm!(fake) end)

      assert [line] =
               script("""
               Stdio.Task.sudo("#{fake} -n")
               say.(ids.([]))
               """)

      assert line =~ "{:eacces, "
      assert line =~ "#{fake} refused to start the helper"
    end
  end

  describe "the helper's setuid bit" do
    @describetag :root

    # A build of its own: owner, group and mode of its helper.
    setup context do
      lib = Path.join([System.tmp_dir!(), Proc.mark(), "stdio"])
      File.mkdir_p!(lib)
      on_exit(fn -> File.rm_rf!(Path.dirname(lib)) end)
      File.cp_r!(Path.join(Application.app_dir(:stdio), "ebin"), Path.join(lib, "ebin"))
      File.mkdir_p!(Path.join(lib, "priv"))
      native = Path.join(lib, "priv/native")
      File.cp_r!(Application.app_dir(:stdio, "priv/native"), native)
      File.chmod!(native, 0o755)
      helper = Path.join(native, "stdio-supervise")
      {uid, gid, mode} = context.helper
      File.chown!(helper, uid)
      File.chgrp!(helper, gid)
      File.chmod!(helper, mode)
      %{lib: lib}
    end

    @somebody {54_321, 54_321}

    @tag helper: {0, 54_321, 0o4750}
    test "makes the helper root, when that is asked for", %{lib: lib} do
      assert script(
               """
               say.(ids.([]))
               Stdio.setuid()
               say.(ids.([]))
               Stdio.__setuid__(false)
               say.(ids.([]))
               """,
               lib: lib,
               as: @somebody
             ) == [~s(["54321", "54321"]), ~s(["0", "0"]), ~s(["54321", "54321"])]
    end

    for {name, helper} <- [
          others: {0, 54_321, 0o4751},
          not_roots: {54_321, 54_321, 0o4750}
        ] do
      @tag helper: helper
      test "is refused: #{name}", %{lib: lib} do
        assert [line, plain] =
                 script(
                   """
                   Stdio.setuid()
                   say.(ids.([]))
                   Stdio.__setuid__(false)
                   say.(ids.([]))
                   """,
                   lib: lib,
                   as: @somebody
                 )

        assert line =~ "{:eacces, "
        assert line =~ "chmod 4750"
        assert plain == ~s(["54321", "54321"])
      end
    end

    @tag helper: {0, 54_321, 0o4750}
    test "has no effect under NO_NEW_PRIVS, which is told", %{lib: lib} do
      assert [line] =
               script(
                 """
                 Stdio.setuid()
                 say.(ids.([]))
                 """,
                 lib: lib,
                 as: @somebody,
                 front: ["setpriv", "--no-new-privs"]
               )

      assert line =~ "{:eacces, "
      assert line =~ "NO_NEW_PRIVS"
    end
  end

  @tag :root
  test "root needs no sudo" do
    assert script("""
           System.put_env("PATH", "/nonexistent")
           Stdio.setuid()
           say.(ids.([]))
           """) == [~s(["0", "0"])]
  end
end
