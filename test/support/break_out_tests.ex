defmodule Stdio.Test.BreakOutTests do
  @moduledoc """
  FAULTS rows 29 to 32 for `Stdio.Container` and `Stdio.Rootless` alike, by programs made for it.
  """

  defmacro __using__(behaviour: behaviour, tag: tag) do
    quote do
      use Stdio.Test.ContainerCase, async: false
      @moduletag unquote(tag)
      @moduletag :testbin

      alias Stdio.Test.{Oracle, Proc}

      @behaviour_ unquote(behaviour)

      # In the root's /opt: what is in /tmp would be hidden.
      setup context do
        for name <- ~w(break-out write-fds attack-parent),
            do: File.cp!(Proc.fixture(name), Path.join(context.root, "opt/#{name}"))

        :ok
      end

      defp tries(name, words, context, config) do
        argv = ["/opt/#{name}", Proc.mark() | words]
        result = run_in(@behaviour_, argv, [path: context.root] ++ config)
        assert %{stderr: "", exit: {:exit_status, 0}} = result
        outcomes(result.stdout)
      end

      defp outcomes(text) do
        for line <- String.split(text, "\n", trim: true), into: %{} do
          [name, outcome] = String.split(line, "=")
          {name, outcome}
        end
      end

      # What works; `inside` is not out.
      defp worked(tried), do: for({name, "ok"} <- tried, do: name)

      @tries ~w(remount_root remount_usr setattr_root setattr_usr clone_usr umount_usr umount_dev
                umount_proc_sys mknod setns_user setns_pidfd dotdot fd_relative proc_root handle
                chroot_escape exe exe_reopened kcore sysrq core_pattern)

      test "rows 30 to 32: nothing leads out, nothing can be changed", context do
        for uid <- [0, 1000] do
          tried = tries("break-out", [], context, uid: uid)
          assert @tries -- Map.keys(tried) == []
          assert {uid, []} == {uid, worked(tried)}

          for name <- ~w(mknod setns_self remount_root remount_usr),
              do: assert(tried[name] == "EPERM")

          for name <- ~w(dotdot fd_relative), do: assert(tried[name] == "inside")
        end
      end

      test "rows 30 to 32: nor with all capabilities in namespaces made inside", context do
        for uid <- [0, 1000] do
          tried = tries("break-out", ["--nested"], context, uid: uid)
          assert @tries -- Map.keys(tried) == []
          assert {uid, ["unshare"]} == {uid, worked(tried)}
          assert tried["setns_outer"] == "EPERM"
        end
      end

      # With capabilities that a program does not get, and a root that is only chroot(2)'s.
      test "the premise: each try works where nothing is in its way", context do
        ops = fn config ->
          for op <- @behaviour_.ops(config),
              elem(op, 0) not in [:limit_capabilities, :umount2],
              do: if(elem(op, 0) == :pivot_root, do: {:chroot, ["."]}, else: op)
        end

        text =
          ["/opt/break-out", Proc.mark()]
          |> Stdio.stream!({@behaviour_, ops: ops}, path: context.root, uid: 0)
          |> Enum.map_join(fn
            {:stdout, text} -> text
            {:exit_status, 0} -> ""
          end)

        works = worked(outcomes(text))

        for name <-
              ~w(remount_root remount_usr setattr_usr clone_usr umount_usr umount_dev mount_tmpfs),
            do: assert(name in works)

        assert "chroot_escape" in works
      end

      @calls [{:deny, :sys_keyctl, 99}, {:deny, :sys_bpf, 99}]

      test "row 32: keyctl and bpf are denied by an op", context do
        for uid <- [0, 1000] do
          filter = [{Stdio.Seccomp, :deny, [@calls]}]
          tried = tries("break-out", ["--calls"], context, uid: uid, ops: filter)
          assert tried == %{"keyctl" => "EADDRNOTAVAIL", "bpf" => "EADDRNOTAVAIL"}
          # The premise.
          assert %{"keyctl" => "ok", "bpf" => bpf} =
                   tries("break-out", ["--calls"], context, uid: uid)

          assert bpf != "EADDRNOTAVAIL"
        end
      end

      # A file system that is full at its first file: the step that meets it is named.
      test "row 13: no space left, nothing behind", context do
        full = fn
          {:mount_in, [root, type, "/dev", flags, _]} ->
            {:mount_in, [root, type, "/dev", flags, "size=64k,nr_inodes=1"]}

          op ->
            op
        end

        ops = fn config -> Enum.map(@behaviour_.ops(config), full) end
        mounts = mountinfo()

        Oracle.clean(fn _ ->
          for _ <- 1..10 do
            stream = Stdio.stream!("true", {@behaviour_, ops: ops}, path: context.root)
            error = assert_raise Stdio.OpError, fn -> Enum.to_list(stream) end
            assert %{reason: :enospc, op: {Stdio.Task, :device_in, [_, _, "/dev/null"]}} = error
            assert error.message =~ "no space left on device"
          end
        end)

        assert mountinfo() == mounts
      end

      # The program's own writes, on what there is of it.
      test "row 13: the program's own are bounded too", context do
        line =
          "head -c 9000000 /dev/zero > /tmp/x; echo $?; head -c 9000000 /dev/zero > /home/x; echo $?"

        result = run_in(@behaviour_, line, path: context.root)
        assert %{stdout: "1\n1\n", stderr: text} = result
        assert text =~ "No space left on device"
      end

      test "row 29: no descriptor but 0, 1 and 2", context do
        assert %{stdout: "done\n"} =
                 run_in(@behaviour_, ["/opt/write-fds", Proc.mark()], path: context.root)
      end
    end
  end
end
