defmodule Stdio.Test.ContainerTests do
  @moduledoc """
  What holds for `Stdio.Container` and `Stdio.Rootless` alike; `tag` is what they need.

  Some run as root and try what must not work. Each tries it so that nothing on the host changes if it
  does work: the test is then the only thing that fails.
  """

  defmacro __using__(behaviour: behaviour, tag: tag) do
    quote do
      use Stdio.Test.ContainerCase, async: false
      @moduletag unquote(tag)

      alias Stdio.OpError

      @behaviour_ unquote(behaviour)

      defp run(command, context, config \\ []),
        do: run_in(@behaviour_, command, [path: context.root] ++ config)

      test "the root and what is bound in it are read-only", context do
        %{stdout: mountinfo, exit: {:exit_status, 0}} = run("cat /proc/self/mountinfo", context)
        options = &mount_options(mountinfo, &1)

        assert "ro" in options.("/") and "nosuid" in options.("/")
        for place <- ~w(/bin /sbin /usr /lib /dev /dev/null), do: assert("ro" in options.(place))

        for place <- ~w(/tmp /home /dev/shm), flag <- ~w(rw nosuid nodev noexec noatime) do
          assert flag in options.(place)
        end

        for place <- ~w(/dev /proc), flag <- ~w(nosuid nodev noexec) do
          assert flag in options.(place)
        end

        # Nothing of the host's is left: the first mount is the root.
        assert [_ | _] = lines = String.split(mountinfo, "\n", trim: true)
        [first | _] = Enum.map(lines, &Enum.at(String.split(&1), 4))
        assert first == "/"
      end

      test "without mount_setattr(2), mount(2) does the same", context do
        modern = run("cat /proc/self/mountinfo", context)
        no_setattr = {Stdio.Seccomp, :deny, [[{:deny, :sys_mount_setattr, 38}]]}

        old = run("cat /proc/self/mountinfo", context, before: [{:no_new_privs, []}, no_setattr])

        for place <- ~w(/ /bin /usr /dev /dev/null /tmp) do
          assert mount_options(old.stdout, place) == mount_options(modern.stdout, place)
        end
      end

      test "writing to them fails, also as uid 0", context do
        for uid <- [0, 1000], place <- ~w(/ /bin /sbin /usr /lib /dev) do
          # rmdir(2) of a name that is not there says EROFS first, and changes nothing anywhere.
          %{stderr: stderr, exit: exit} =
            run(["/bin/rmdir", "#{place}/stdio-x"], context, uid: uid)

          assert stderr =~ "Read-only file system"
          assert {:exit_status, 1} = exit
        end

        assert %{stdout: "in tmp\n"} = run("echo in tmp > /tmp/x; cat /tmp/x", context)
        assert %{stdout: "in home\n"} = run("echo in home > /home/x; cat /home/x", context)
        assert File.ls!(Path.join(context.root, "tmp")) == []
      end

      test "devices are the host's, their inodes are not to be changed", context do
        # chmod to the mode it has: should it ever work, it changes nothing on the host.
        line = "echo x > /dev/null; head -c 4 /dev/urandom | wc -c; chmod 666 /dev/null"
        assert %{stdout: "4\n", stderr: error} = run(line, context, uid: 0)
        assert error =~ "Read-only file system"
        assert %{stdout: devices} = run(["/bin/ls", "/dev"], context)
        all = ~w(fd full null random shm stderr stdin stdout tty urandom zero)

        assert String.split(devices) ==
                 Enum.filter(
                   all,
                   &(&1 in ~w(fd shm stderr stdin stdout) or File.exists?("/dev/#{&1}"))
                 )
      end

      test "the standard streams can be opened by name", context do
        assert %{stdout: "y\n", stderr: "x\n", exit: {:exit_status, 0}} =
                 run("echo x > /dev/stderr; echo y > /dev/stdout", context)
      end

      test "a new root, whose parent is itself", context do
        %{stdout: names} = run("cd /; cd ../../../..; pwd; ls", context)

        assert String.split(names) == [
                 "/" | Enum.sort(~w(bin sbin usr lib lib64 opt tmp home proc dev))
               ]
      end

      if File.exists?("/usr/bin/perl") do
        test "chroot and .. as uid 0 stay inside", context do
          script =
            ~s(chdir "/"; mkdir "/tmp/x"; chroot "/tmp/x" or die; chdir ".." for 1..64; ) <>
              ~s(chroot "." or die; exec "/bin/ls", "/")

          %{stdout: names} = run(["/usr/bin/perl", "-e", script], context, uid: 0)

          assert String.split(names) ==
                   Enum.sort(~w(bin sbin usr lib lib64 opt tmp home proc dev))
        end
      end

      test "mounts cannot be undone, devices made, namespaces entered, also as uid 0", context do
        for uid <- [0, 1000],
            line <- [
              "mount -o remount,bind,rw /",
              "mount -o remount,bind,rw /usr",
              "umount /usr",
              "umount -l /dev",
              "mount -t tmpfs none /tmp",
              "mknod /tmp/n c 1 3",
              "nsenter --mount=/proc/1/ns/mnt true"
            ] do
          %{stderr: stderr, exit: exit} = run(line, context, uid: uid)
          assert {line, {:exit_status, status}} = {line, exit}
          assert {line, true} = {line, status != 0}

          assert {line, true} =
                   {line,
                    stderr =~
                      ~r/not permitted|[Pp]ermission denied|must be superuser|umount failed/}
        end
      end

      test "nor in a user namespace made inside", context do
        line = """
        unshare -Urm sh -c '
          mount -o remount,bind,rw / && echo remounted
          mount -o remount,bind,rw /usr && echo remounted
          umount /usr && echo unmounted
          umount -l /bin && echo unmounted
          mknod /tmp/n c 1 3 && echo made
          test -w /usr && echo writable
          echo inside' 2> /dev/null
        """

        assert %{stdout: "inside\n"} = run(line, context)
      end

      test "limits and priority", context do
        config = [priority: 5, rlimit: [rlimit_nofile: %{cur: 99, max: 100}]]

        assert %{stdout: "99\n5\n"} =
                 run("ulimit -n; cut -d' ' -f19 /proc/self/stat", context, config)
      end

      test "no new privileges unless setuid: true", context do
        line = "grep NoNewPrivs /proc/self/status"
        assert %{stdout: "NoNewPrivs:\t1\n"} = run(line, context)
        assert %{stdout: "NoNewPrivs:\t0\n"} = run(line, context, setuid: true)
      end

      test "host name and directory", context do
        assert %{stdout: "box\n/tmp\n"} =
                 run("cat /proc/sys/kernel/hostname; pwd", context, hostname: "box", cd: "/tmp")
      end

      test "settings of the kernel cannot be written", context do
        for uid <- [0, 1000] do
          # Opened for writing, and nothing written: should it work, the host keeps its settings.
          line = "true >> /proc/sys/kernel/core_pattern || echo denied"
          assert %{stdout: "denied\n"} = run(line, context, uid: uid)
        end
      end

      test "a network of its own", context do
        assert %{stdout: "lo               DOWN           \n"} =
                 run("ip -br addr show | sed 's/00:00.*//'", context)

        assert %{stdout: ""} = run("ip --oneline -4 addr show dev lo", context)
        host = ["/bin/readlink", "/proc/self/ns/net"]
        {own, 0} = System.cmd("readlink", ["/proc/self/ns/net"])
        assert %{stdout: ^own} = run(host, context, net: :host)
        refute match?(%{stdout: ^own}, run(host, context))
      end

      test "fstab: read-only; what cannot be mounted is named", context do
        File.mkdir_p!(Path.join(context.root, "etc"))
        line = "cat /etc/passwd > /dev/null && rmdir /etc/stdio-x || echo denied"

        assert %{stdout: "denied\n", stderr: error} =
                 run(line, context, fstab: ["", "/etc"], uid: 0)

        assert error =~ "Read-only file system"

        error = assert_raise OpError, fn -> run("true", context, fstab: ["/nonexistent/x"]) end
        assert %{reason: :enoent, op: {Stdio.Task, :bind_in, arguments}} = error
        assert "/nonexistent/x" in arguments

        # The root tree has no place for it.
        error = assert_raise OpError, fn -> run("true", context, fstab: ["/var"]) end
        assert error.message =~ "make_chroot_tree!/1"
      end

      test "fstab: a relative directory is one of the application's", context do
        name = "stdio-test-#{System.unique_integer([:positive])}"
        directory = Application.app_dir(:stdio, Path.join("priv", name))
        File.mkdir_p!(directory)
        on_exit(fn -> File.rm_rf!(directory) end)
        File.write!(Path.join(directory, "file"), "relative ")
        File.mkdir_p!(Path.join(context.root, name))

        # The BEAM's own, and so the program's as uid 0.
        line = "cat /#{name}/file; touch /#{name}/new || echo denied"

        assert %{stdout: "relative denied\n", stderr: error} =
                 run(line, context, fstab: [name], uid: 0)

        assert error =~ "Read-only file system"
      end

      test "a root tree that is not there: the error says how to make one", context do
        error =
          assert_raise OpError, fn ->
            run_in(@behaviour_, "true", path: context.root <> "-none")
          end

        assert %{reason: :enoent, op: {Stdio.Task, :bind_in, _}} = error
        assert error.message =~ "Stdio.Container.make_chroot_tree!()"
      end

      test "a symbolic link in the tree leads nowhere but inside", context do
        place = &Path.join(context.root, &1)

        # To itself, seen from inside.
        File.rmdir!(place.("dev"))
        File.ln_s!("/dev", place.("dev"))
        error = assert_raise OpError, fn -> run("true", context) end
        assert %{reason: :eloop, op: {Stdio.Task, :mount_in, [_, "tmpfs", "/dev" | _]}} = error

        File.rm!(place.("dev"))
        File.ln_s!("../../../../../../../../opt", place.("dev"))
        # /opt of the root, not of the host.
        assert %{stdout: out} = run("cat /proc/self/mountinfo", context)
        assert "ro" in mount_options(out, "/opt")
      end

      test "nor does one that is swapped in meanwhile", context do
        place = &Path.join(context.root, &1)
        outside = context.root <> "-outside"
        File.mkdir_p!(outside)
        on_exit(fn -> File.rm_rf!(outside) end)
        File.ln_s!(outside, place.("link"))
        swapper = Task.async(fn -> swap(place) end)
        config = [path: context.root]
        ops = Enum.take_while(@behaviour_.ops(config), &(elem(&1, 0) != :chdir))
        before = places(mountinfo())

        for _ <- 1..25 do
          {:ok, supervisor} = @behaviour_.task(config)

          try do
            init = @behaviour_.init(config)
            pipeline = Stdio.Op.task!(supervisor, ops, init, &Stdio.Task.stop/1)
            task = List.last(pipeline).task
            {:ok, fd} = Stdio.Task.open(task, "/proc/thread-self/mountinfo", [])
            {:ok, text} = Stdio.Task.read(task, fd, 65536)

            for new <- places(text) -- before do
              assert new == context.root or String.starts_with?(new, context.root <> "/")
            end
          rescue
            # Neither of the two was there, or it was the link, which is one to nowhere inside.
            error in OpError -> assert error.reason in [:enoent, :eloop]
          after
            Stdio.Task.stop(supervisor.init)
          end
        end

        Task.shutdown(swapper, :brutal_kill)
        assert File.ls!(outside) == []
      end

      defp swap(place) do
        File.rename(place.("tmp"), place.("directory"))
        File.rename(place.("link"), place.("tmp"))
        File.rename(place.("tmp"), place.("link"))
        File.rename(place.("directory"), place.("tmp"))
        swap(place)
      end

      defp places(mountinfo),
        do:
          for(
            line <- String.split(mountinfo, "\n", trim: true),
            do: Enum.at(String.split(line), 4)
          )

      test "what is left behind ends with the program", context do
        mark = Stdio.Test.Proc.mark()
        line = "setsid sh -c 'sleep 1000; : #{mark}' & (sh -c 'sleep 1000; : #{mark}' &) ; exit 3"
        assert %{exit: {:exit_status, 3}} = run(line, context)
        assert Stdio.Test.Proc.wait_until(fn -> Stdio.Test.Proc.gone?(mark) end)
      end

      test "onexit tells whether it was running, and ends it", context do
        {running?, ending} =
          with_program(@behaviour_, "sleep 1000", [path: context.root], fn pipeline ->
            task = List.last(pipeline).task
            # The supervisor is not needed while the first task is alive, unless it is that task.
            supervisor = %Stdio{init: Stdio.Task.parent(hd(pipeline).task)}
            tree = %Stdio.ProcessTree{supervisor: supervisor, pipeline: pipeline}
            running? = @behaviour_.onexit([]).(tree)
            assert_receive {:termsig, ^task, signal}, 2000
            refute @behaviour_.onexit([]).(tree)
            {running?, signal}
          end)

        assert {running?, ending} == {true, :sigkill}
      end
    end
  end
end
