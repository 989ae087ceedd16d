defmodule Stdio.Doctor.Probe do
  @moduledoc false
  # What Stdio.Doctor judges: facts, as this system shows them when it is asked.
  #
  # Rules:
  #
  #   1. What can be tried is tried, in a process of the helper's that is there for nothing else. A
  #      kernel version says nothing about what a container around this system refuses.
  #   2. Nothing is tried in the BEAM: a seccomp filter around it may answer by a signal.
  #   3. What was started has ended when a probe returns. Should the probe be killed, it ends with its
  #      owner.

  alias Stdio.{Launcher, Native, ProcessTree}

  # In place of the errno that a call would have.
  @marker_errno 95
  @marker :eopnotsupp

  # Of a program that is over at once.
  @quick [stdin: :null, timeout: 5000, uid: 0, gid: 0]

  @doc "The probe of a check, as a function of a reader of files."
  @spec of(atom) :: (Stdio.Doctor.reader() -> term)
  def of(:helper), do: fn _read -> helper() end
  def of(:privileges), do: &privileges/1
  def of(:user_namespaces), do: fn _read -> user_namespaces() end
  def of(:subreaper), do: &subreaper/1
  def of(:pidfd), do: fn _read -> in_task(&Stdio.Task.pidfd_open(&1, Stdio.Task.getpid(&1))) end
  def of(:cgroup), do: &cgroup/1
  def of(:landlock), do: fn _read -> in_task(&Stdio.Task.landlock_abi/1) end
  def of(:seccomp), do: fn _read -> in_task(&seccomp/1) end
  def of(:descriptors), do: &descriptors/1
  def of(:processes), do: &processes/1
  def of(:init), do: &init/1

  # A root of the helper's, for as long as `fun` takes.
  defp in_task(fun) do
    with {:ok, task} <- Stdio.Task.fork() do
      try do
        fun.(task)
      after
        Stdio.Task.stop(task)
      end
    end
  end

  # {:ok, path, version} | {:error, path, hint} | {:other_version, path, its, ours}
  defp helper do
    path = Launcher.helper()

    case Launcher.ensure() do
      {:error, {_reason, hint}} ->
        {:error, path, hint}

      # It answers, or has answered when it was started; what is in the file now is the next one.
      :ok ->
        {:ok, ours} = Native.query(:version, [])

        case version(path) do
          {:error, reason} ->
            {:error, path, "It runs, but its file does not: #{reason}."}

          its ->
            if its == ours, do: {:ok, path, its}, else: {:other_version, path, its, ours}
        end
    end
  end

  # Without its socket it says who it is.
  defp version(path) do
    case Stdio.cmd([path], [stderr_to_stdout: true] ++ @quick) do
      {"stdio-supervise " <> rest, _} -> rest |> String.split(":") |> hd()
      {said, exit} -> {:error, "#{inspect(exit)} #{said}"}
    end
  rescue
    error in [Stdio.StreamError, Stdio.OpError] -> {:error, inspect(error.reason)}
  end

  defp privileges(read) do
    path = Launcher.helper()

    %{
      path: path,
      root?: Native.root?(),
      setuid: Launcher.setuid(path),
      no_new_privs?: read |> field("/proc/self/status", "NoNewPrivs") |> Kernel.==("1"),
      sudo: if(Native.root?(), do: :unneeded, else: sudo(path))
    }
  end

  # First what sudo's rules say, as a refusal may be reported to an administrator; then the helper
  # itself, which says who it is and ends.
  defp sudo(path) do
    case String.split(Launcher.default_prefix()) do
      [sudo, "-n"] ->
        cond do
          System.find_executable(sudo) == nil -> :missing
          not match?({_, 0}, sudo([sudo, "-n", "-l", path], :null)) -> :refused
          match?({"stdio-supervise " <> _, _}, sudo([sudo, "-n", path], :stdout)) -> :allowed
          true -> :refused
        end

      # Nothing like `-l` is known.
      _other ->
        :unknown
    end
  end

  defp sudo(command, stderr) do
    Stdio.cmd({:search, command}, [stderr: stderr, setuid: true, environ: :inherit] ++ @quick)
  rescue
    error in [Stdio.StreamError, Stdio.OpError] -> {error.reason, :error}
  end

  # A user namespace that is of use: ids are mapped, and its root may mount, /proc too. All of it
  # is in a mount namespace of its own, and ends with it.
  defp user_namespaces do
    in_task(fn root ->
      with namespaces = [:clone_newns, :clone_newpid],
           {:clone, {:ok, task}} <-
             {:clone, Stdio.Task.__birth__(root, namespaces, {0, 0}, [], nil)},
           private = ["none", "/", "", [:ms_rec, :ms_private], ""],
           {:mount, :ok} <- {:mount, Stdio.Task.call(task, :mount, private)},
           proc = ["proc", "/proc", "proc", [:ms_nosuid, :ms_nodev, :ms_noexec], ""],
           {:proc, :ok} <- {:proc, Stdio.Task.call(task, :mount, proc)} do
        :ok
      else
        {step, {:error, reason}} -> {:error, step, reason}
      end
    end)
  end

  # A program leaves a daemon behind, whose parent is to be the supervisor then; and whether the
  # supervisor can end it.
  defp subreaper(read) do
    with {:ok, %Stdio{init: init} = supervisor} <- Stdio.supervisor() do
      try do
        line = "sleep 60 </dev/null >/dev/null 2>&1 & echo $!"

        with pid when is_binary(pid) <- Stdio.Task.sh(init, line),
             pid = String.trim(pid),
             parent = field(read, "/proc/#{pid}/status", "PPid"),
             {:adopted, true} <- {:adopted, parent == to_string(Stdio.Task.pidof(init))},
             :ok <- Stdio.reap(%ProcessTree{supervisor: supervisor}) do
          :ok
        else
          {:adopted, false} -> {:error, :echild}
          error -> error
        end
      after
        Stdio.Task.stop(init)
      end
    end
  end

  defp cgroup(read) do
    made =
      with {:ok, %Stdio{init: init} = supervisor} <-
             Stdio.supervisor(:shutdown, {:allow, [:fork]}, containment: :cgroup) do
        guard = Stdio.containment(supervisor)
        Stdio.Task.stop(init)
        if guard == :cgroup, do: :ok, else: {:error, guard}
      end

    {made, own_cgroup(read)}
  end

  # cgroups(7): `HIERARCHY:CONTROLLERS:PATH`, version 2 is number 0.
  defp own_cgroup(read) do
    lines = String.split(read.("/proc/self/cgroup") || "", "\n")
    Enum.find_value(lines, fn line -> with "0::" <> path <- line, do: path, else: (_ -> nil) end)
  end

  # A filter is installed, and shown to hold.
  defp seccomp(task) do
    filter = [{:deny, :sys_getcwd, @marker_errno}]

    with :ok <- Stdio.Task.no_new_privs(task),
         [{Stdio.Task, :seccomp, arguments}] <- Stdio.Seccomp.deny(task, filter),
         :ok <- Stdio.Task.call(task, :seccomp, arguments) do
      case Stdio.Task.getcwd(task) do
        {:error, @marker} -> :ok
        {:error, :enotsup} -> :ok
        other -> {:no_effect, other}
      end
    end
  end

  # The BEAM's own limit was raised to the hard one when the NIF was loaded.
  defp descriptors(read) do
    {_soft, hard} = limit(read, "Max open files")
    %{max: hard, used: length(File.ls!("/proc/self/fd"))}
  end

  defp processes(read) do
    {user, _hard} = limit(read, "Max processes")
    %{user: if(Native.root?(), do: :unlimited, else: user), cgroup: pids_left(read)}
  end

  # proc_pid_limits(5): `NAME  SOFT  HARD  UNITS`
  defp limit(read, name) do
    lines = String.split(read.("/proc/self/limits") || "", "\n")

    Enum.find_value(lines, {:unknown, :unknown}, fn line ->
      with true <- String.starts_with?(line, name),
           [soft, hard | _] <- line |> String.replace_prefix(name, "") |> String.split(),
           do: {number(soft), number(hard)},
           else: (_ -> nil)
    end)
  end

  defp number(text) do
    case Integer.parse(text) do
      {number, ""} -> number
      _ -> :unlimited
    end
  end

  # What is left below pids.max of the own cgroup and all above it.
  defp pids_left(read) do
    own = own_cgroup(read) || "/"

    left =
      for directory <- upwards(own),
          place = Path.join("/sys/fs/cgroup", directory),
          max = read.(Path.join(place, "pids.max")),
          current = read.(Path.join(place, "pids.current")),
          is_integer(number(String.trim(max))),
          do: number(String.trim(max)) - number(String.trim(current))

    Enum.min(left, fn -> :unlimited end)
  end

  defp upwards("/"), do: ["/"]
  defp upwards("/" <> _ = path), do: [path | upwards(Path.dirname(path))]
  defp upwards(_), do: []

  defp init(read) do
    %{own: System.pid(), first: String.trim(read.("/proc/1/comm") || "unknown")}
  end

  # Of a file of `Name: value` lines.
  defp field(read, path, name) do
    lines = String.split(read.(path) || "", "\n")

    Enum.find_value(lines, fn line ->
      case String.split(line, ":", parts: 2) do
        [^name, value] -> String.trim(value)
        _ -> nil
      end
    end)
  end
end
