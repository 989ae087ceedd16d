# Finds out what this machine and user can test, says what is left out and what would enable it.
# STDIO_MUST_RUN=root,userns,... fails instead when one of those is not possible (in CI a silent
# skip would look like a pass).

defmodule Stdio.TestCapabilities do
  @moduledoc false

  # The tag, whether it can run here, what it needs.
  def all do
    root? = System.cmd("id", ["-u"]) == {"0\n", 0}
    os = elem(:os.type(), 1)

    [
      {:root, root?, "root: sudo bin/test"},
      {:unprivileged, not root?,
       "a user other than root: bin/test makes one when it runs as root"},
      {:sudo, works?("sudo", ["-n", "true"]), "sudo without a password: " <> sudoers()},
      {:no_sudo, not works?("sudo", ["-n", "true"]) and System.find_executable("sudo") != nil,
       "a sudo that refuses this user"},
      {:sudo_logged, System.get_env("STDIO_SUDO_LOGGED") != nil,
       "a user for whom sudo logs input, named by STDIO_SUDO_LOGGED: bin/test as root makes one"},
      {:userns, works?("unshare", ~w(--user --map-root-user --mount true)),
       "user namespaces: " <> enable_userns()},
      {:netns, works?("unshare", ~w(--user --map-root-user --net true)),
       "network and user namespaces: " <> enable_userns()},
      {:pid_max, os == :linux and pid_max?(),
       "user namespaces and Linux 6.14, with a pid_max for each PID namespace"},
      {:cgroup, root? and cgroup?(),
       "root and a writable cgroup v2 with cgroup.kill (Linux 5.14): " <>
         "mount -t cgroup2 cgroup2 /sys/fs/cgroup; sudo bin/test"},
      {:strace, works?("strace", ~w(-o /dev/null true)), "strace and ptrace: bin/setup"},
      {:cargo, cargo?(), "cargo for this user: bin/setup"},
      {:ip, works?("ip", ["-V"]), "ip(8): bin/setup (iproute2)"},
      {:ping, ping?(root?),
       "a ping(8) for all users: bin/setup (iputils-ping); " <>
         "setcap cap_net_raw+ep /bin/ping, or sysctl -w net.ipv4.ping_group_range='0 2147483647'"},
      {:pstree, works?("pstree", ["-V"]), "pstree(1): bin/setup (psmisc)"},
      {:testbin, testbin?(), "the programs of native/testbin: cargo, or STDIO_TESTBIN_DIR"},
      {:linux, os == :linux, "Linux"},
      {:freebsd, os == :freebsd, "FreeBSD"},
      {:openbsd, os == :openbsd, "OpenBSD"}
    ]
  end

  defp cargo?, do: works?("cargo", ["--version"])

  # bin/test builds the programs and puts them where every user can run them.
  defp testbin? do
    (System.get_env("STDIO_TESTBIN_DIR") != nil or cargo?()) and
      Stdio.Test.Fixtures.build!() == :ok
  end

  defp works?(command, args) do
    match?({_, 0}, System.cmd(command, args, stderr_to_stdout: true))
  rescue
    ErlangError -> false
  end

  # Some systems have it with the capability, some allow its sockets, and in a chroot it has neither.
  defp ping?(root?) do
    command = ~w(ping -c 1 127.0.0.1)
    nobody = ~w(setpriv --reuid=65534 --regid=65534 --clear-groups)
    [first | rest] = if root?, do: nobody ++ command, else: command
    works?(first, rest)
  end

  defp sudoers do
    user = System.get_env("USER", "USER")
    ~s(echo "#{user} ALL=(root\) NOPASSWD: ALL" >/etc/sudoers.d/stdio, on a machine for tests)
  end

  # The first switch of the kernel that is off, as the command that turns it on.
  defp enable_userns do
    switches = [
      {"kernel/unprivileged_userns_clone", "0", "1"},
      {"kernel/apparmor_restrict_unprivileged_userns", "1", "0"},
      {"user/max_user_namespaces", "0", "15000"}
    ]

    Enum.find_value(
      switches,
      "they are on, but a chroot, a container or a security module refuses them",
      fn {name, off, on} ->
        case File.read(Path.join("/proc/sys", name)) do
          {:ok, value} -> if String.trim(value) == off, do: "sysctl -w #{name}=#{on}"
          {:error, _} -> nil
        end
      end
    )
  end

  # Before 6.14 the one setting of the whole system would be changed, if this is root.
  defp pid_max? do
    Version.compare(kernel(), "6.14.0") != :lt and
      works?("unshare", ~w(-Urpf --mount-proc sh -c) ++ ["echo 400 > /proc/sys/kernel/pid_max"])
  end

  defp kernel do
    [version] = Regex.run(~r/^\d+\.\d+/, File.read!("/proc/sys/kernel/osrelease"))
    version <> ".0"
  end

  # Only a directory of our own shows whether one can be made, and whether it has cgroup.kill.
  defp cgroup? do
    with {:ok, mounts} <- File.read("/proc/self/mounts"),
         [_, mount] <- Regex.run(~r/^\S+ (\S+) cgroup2 /m, mounts),
         probe = Path.join(mount, "stdio-test-#{System.pid()}"),
         :ok <- File.mkdir(probe) do
      kill? = File.exists?(Path.join(probe, "cgroup.kill"))
      File.rmdir!(probe)
      kill?
    else
      _ -> false
    end
  end
end

capabilities = Stdio.TestCapabilities.all()
excluded = for {tag, false, needs} <- capabilities, do: {tag, needs}

must_run = System.get_env("STDIO_MUST_RUN", "") |> String.split([",", " "], trim: true)
known = for {tag, _, _} <- capabilities, do: Atom.to_string(tag)

case must_run -- known do
  [] -> :ok
  names -> Mix.raise("STDIO_MUST_RUN: unknown #{inspect(names)}; known: #{inspect(known)}")
end

for {tag, needs} <- excluded do
  if Atom.to_string(tag) in must_run do
    Mix.raise("STDIO_MUST_RUN names #{tag}, but the tests with it cannot run. Needed: #{needs}")
  end
end

unless excluded == [] do
  IO.puts("Left out here are the tests with these tags, which need:")
  for {tag, needs} <- excluded, do: IO.puts("  #{String.pad_trailing(inspect(tag), 14)} #{needs}")
end

# A message that comes is waited for as long as a busy machine takes.
ExUnit.start(exclude: Keyword.keys(excluded), assert_receive_timeout: 10_000)
