defmodule Untrusted do
  @moduledoc """
  Runs a script that somebody else has written, in a room of its own, and gives back what it says.

      Untrusted.run("echo hello; id -u")
      #=> {:ok, "hello\\n65534\\n"}

  | it is kept from | by |
  |---|---|
  | the host's files, but for programs and libraries, which are read-only | a root tree of its own (`Stdio.Rootless`) |
  | the network | a network namespace, in which the loopback device is down, too |
  | other processes | a PID namespace |
  | privileges | NO_NEW_PRIVS, a user namespace |
  | running for ever, with whatever it has started | `:timeout`, which counts outside the BEAM |
  | CPU time, memory, files, descriptors | rlimits, for each of its processes |
  | filling the BEAM's memory | `:max_output`, beyond which it is killed; at most a few chunks are under way |
  | some system calls that it does not need, and that have been ways out before | `Stdio.Seccomp` |

  What keeps it is the kernel: see SECURITY.md. Memory is limited for each process, the number of
  processes for a user other than root only; for limits of all of it together run the BEAM in a cgroup
  (systemd: `MemoryMax=`, `TasksMax=`).

  The root tree has to exist: `Stdio.Container.make_chroot_tree!/1`.
  """

  # The kernel has a limit of 128 KiB for one argument.
  @max_script 100_000

  @defaults [
    interpreter: ["/bin/sh", "-c"],
    timeout: 2000,
    max_output: 65_536,
    memory: 256 * 1024 * 1024,
    cpu_seconds: 2,
    path: nil
  ]

  # With EPERM in place of the call.
  @eperm 1
  @denied [
    :sys_ptrace,
    :sys_bpf,
    :sys_unshare,
    :sys_setns,
    :sys_keyctl,
    :sys_add_key,
    :sys_request_key,
    :sys_io_uring_setup,
    :sys_perf_event_open,
    :sys_userfaultfd
  ]

  @type failure ::
          {:exit_status, 1..255}
          | {:termsig, atom}
          | :too_much_output
          | :too_long
          | {:not_started, String.t()}

  @doc """
  `{:ok, output}`, stdout and stderr together, or `{:error, failure, output}` with what it had said
  until then. `{:termsig, :sigkill}` is its deadline, or its CPU time.

  Options: `:interpreter` (argv, to which the script is added), `:timeout` (ms), `:max_output`,
  `:memory` (bytes), `:cpu_seconds`, `:path` (the root tree).
  """
  @spec run(String.t(), keyword) :: {:ok, binary} | {:error, failure, binary}
  def run(script, opts \\ [])
  def run(script, _opts) when byte_size(script) > @max_script, do: {:error, :too_long, ""}

  def run(script, opts) do
    opts = Keyword.validate!(opts, @defaults)

    (opts[:interpreter] ++ [script])
    |> Stdio.stream!({Stdio.Rootless, ops: &ops/1}, config(opts))
    |> Enum.reduce_while({[], 0}, &collect(&1, &2, opts[:max_output]))
    |> result()
  rescue
    error in [Stdio.StreamError, Stdio.OpError] ->
      {:error, {:not_started, Exception.message(error)}, ""}
  end

  defp config(opts) do
    limit = fn n -> %{cur: n, max: n} end

    rlimit = [
      rlimit_core: limit.(0),
      rlimit_cpu: limit.(opts[:cpu_seconds]),
      rlimit_as: limit.(opts[:memory]),
      rlimit_fsize: limit.(1024 * 1024),
      rlimit_nofile: limit.(64),
      rlimit_nproc: limit.(32)
    ]

    config = [
      environ: ["PATH=/bin:/usr/bin", "HOME=/home", "LANG=C.UTF-8"],
      hostname: "sandbox",
      cd: "/home",
      stdin: :null,
      stderr: :stdout,
      priority: 10,
      timeout: opts[:timeout],
      rlimit: rlimit
    ]

    if opts[:path], do: [path: opts[:path]] ++ config, else: config
  end

  # After all else, as it is under the filter from then on.
  defp ops(config) do
    Stdio.Rootless.ops(config) ++
      [{Stdio.Seccomp, :deny, [for(call <- @denied, do: {:deny, call, @eperm})]}]
  end

  # Halting a stream kills what it is of, before it returns.
  defp collect({:stdout, chunk}, {output, size}, max) when size + byte_size(chunk) > max,
    do: {:halt, {:too_much_output, [output | binary_part(chunk, 0, max - size)]}}

  defp collect({:stdout, chunk}, {output, size}, _max),
    do: {:cont, {[output | chunk], size + byte_size(chunk)}}

  defp collect(terminal, {output, _size}, _max), do: {:cont, {terminal, output}}

  defp result({{:exit_status, 0}, output}), do: {:ok, IO.iodata_to_binary(output)}
  defp result({failure, output}), do: {:error, failure, IO.iodata_to_binary(output)}
end
