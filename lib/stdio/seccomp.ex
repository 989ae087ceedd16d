defmodule Stdio.Seccomp do
  @moduledoc """
  Denies system calls to a program, by a
  [seccomp(2)](https://man7.org/linux/man-pages/man2/seccomp.2.html) filter. Linux only.

  The op, which belongs last, after `no_new_privs` (without it, or root, the kernel refuses the
  filter with `:eacces`):

      {Stdio.Seccomp, :deny, [[{:deny, :sys_ptrace}, {:deny, :sys_socket, 13}]]}

  | entry | the system call |
  |---|---|
  | `{:deny, name}` | kills the process by SIGSYS (SECCOMP_RET_KILL_PROCESS, Linux 4.14) |
  | `{:deny, name, errno}` | is not made and fails with `errno`, an integer in 0..4095; 0 makes it a success that does nothing |

  1. A system call of another architecture than the program's own (i386 on x86-64, x32 too, arm on
     aarch64) kills the process, whichever it is: the numbers of the filter are not its numbers.
  2. All entries apply. Of several for one call `{:deny, name}` counts, else the first.
  3. What is not named is allowed. A deny list is not a sandbox: kernels get new system calls, and
     many can be had by another name (`openat`, `openat2`; `clone`, `clone3`). io_uring makes calls
     that no filter sees.
  4. The filter holds for the program and all its descendants, for good. The `execve` that starts
     the program is under it, too.
  """

  import Bitwise

  @compile {:no_warn_undefined, [Stdio.Task]}

  @typedoc "An entry; `name` is a `SYS_*` constant in any letter case."
  @type filter :: {:deny, name :: atom} | {:deny, name :: atom, errno :: 0..4095}

  @typedoc "A branch of ops; see CONTRACT, \"Ops\"."
  @type branch :: [{Stdio.Task, :seccomp, [term]}]

  # linux/bpf_common.h
  @bpf_ld_w_abs 0x20
  @bpf_jeq_k 0x15
  @bpf_jge_k 0x35
  @bpf_ret_k 0x06

  # linux/seccomp.h: the fields of struct seccomp_data, and actions with 16 bits of data.
  @data_nr 0
  @data_arch 4
  @kill_process 0x8000_0000
  @errno 0x0005_0000
  @allow 0x7FFF_0000

  # The first number of an x32 system call, which has the architecture of x86-64.
  @x32_syscall_bit 0x4000_0000

  @doc """
  The filter as a branch: ops which the caller runs next.

      iex> [{Stdio.Task, :seccomp, [:seccomp_set_mode_filter, 0, [<<len::16-native>>, _, {:ptr, program}]]}] =
      ...>   Stdio.Seccomp.deny(:task, [{:deny, :sys_ptrace}], fn _task, _name -> 1 end)
      iex> byte_size(program) == 8 * len
      true

  `{:error, :enotsup}` if a name, or the architecture, is unknown; `{:error, posix}` if the task
  cannot be asked. ArgumentError for a malformed entry.
  """
  @spec deny(term, [filter]) :: branch | {:error, atom}
  def deny(task, filters), do: deny(task, filters, &syscall_constant/2)

  @doc false
  # `resolve.(task, name)` is the number of a constant, `:unknown` or `{:error, posix}`.
  @spec deny(term, [filter], (term, atom -> integer | :unknown | {:error, atom})) ::
          branch | {:error, atom}
  def deny(task, filters, resolve) do
    entries = entries!(filters)

    with {:ok, arch} <- known(audit_arch()),
         {:ok, number} <- number(resolve.(task, arch)),
         {:ok, denied} <- denied(entries, &resolve.(task, &1)) do
      program = program(arch, number, denied)
      length = program |> byte_size() |> div(8)

      # struct sock_fprog, with the gap before its pointer.
      pad = <<0::size((:erlang.system_info({:wordsize, :external}) - 2) * 8)>>
      fprog = [<<length::16-native>>, pad, {:ptr, program}]
      [{Stdio.Task, :seccomp, [:seccomp_set_mode_filter, 0, fprog]}]
    end
  end

  @doc false
  # For Stdio.OpError: which of the names in these filters, which deny/2 has refused, are none.
  @spec __hint__([filter]) :: String.t() | nil
  def __hint__(filters) do
    known? = &match?({:ok, n} when is_integer(n), Stdio.Native.query(:syscall_constant, [&1]))

    case Enum.reject(Enum.map(filters, &elem(&1, 1)), known?) do
      [] -> nil
      names -> "no system calls of this system: #{Enum.map_join(names, ", ", &inspect/1)}"
    end
  end

  # Which names there are is the helper's to say: it knows the headers it was built with.
  defp syscall_constant(task, name), do: Stdio.Task.call(task, :syscall_constant, [name])

  defp entries!(filters) when length(filters) >= 0, do: Enum.map(filters, &entry!/1)

  defp entries!(other) do
    raise ArgumentError,
          "invalid seccomp filters #{inspect(other)}; allowed: a list of entries. As an op: " <>
            "{Stdio.Seccomp, :deny, [[deny: :sys_ptrace]]}"
  end

  defp entry!({:deny, name}) when is_atom(name), do: {name, @kill_process}

  defp entry!({:deny, name, errno}) when is_atom(name) and errno in 0..4095,
    do: {name, @errno ||| errno}

  defp entry!(other) do
    raise ArgumentError,
          "invalid seccomp entry #{inspect(other)}; allowed: {:deny, name}, " <>
            "{:deny, name, errno in 0..4095}"
  end

  defp denied(entries, resolve) do
    entries
    |> Enum.reduce_while([], fn {name, action}, denied ->
      case number(resolve.(name)) do
        {:ok, number} -> {:cont, [{number, action} | denied]}
        error -> {:halt, error}
      end
    end)
    |> case do
      {:error, _} = error -> error
      denied -> {:ok, denied |> Enum.reverse() |> strictest()}
    end
  end

  # One for each call, so the program cannot outgrow the kernel's 4096 instructions.
  defp strictest(denied) do
    {kill, fail} = Enum.split_with(denied, &match?({_, @kill_process}, &1))
    Enum.uniq_by(kill ++ fail, &elem(&1, 0))
  end

  defp known(:enotsup), do: {:error, :enotsup}
  defp known(arch), do: {:ok, arch}

  defp number(number) when is_integer(number), do: {:ok, number}
  defp number(:unknown), do: {:error, :enotsup}
  defp number({:error, _} = error), do: error

  # Every test is followed by its own verdict, so no jump is longer than 1. Offsets have 8 bits.
  defp program(arch, arch_number, denied) do
    IO.iodata_to_binary([
      load(@data_arch),
      jump(@bpf_jeq_k, arch_number, 1, 0),
      return(@kill_process),
      load(@data_nr),
      x32(arch),
      for({number, action} <- denied, do: [jump(@bpf_jeq_k, number, 0, 1), return(action)]),
      return(@allow)
    ])
  end

  defp x32(:audit_arch_x86_64),
    do: [jump(@bpf_jge_k, @x32_syscall_bit, 0, 1), return(@kill_process)]

  defp x32(_arch), do: []

  defp load(offset), do: instruction(@bpf_ld_w_abs, 0, 0, offset)
  defp jump(code, value, jt, jf), do: instruction(code, jt, jf, value)
  defp return(action), do: instruction(@bpf_ret_k, 0, 0, action)

  # struct sock_filter
  defp instruction(code, jt, jf, k), do: <<code::16-native, jt::8, jf::8, k::32-native>>

  @doc """
  The constant of the architecture that the BEAM was built for, which is the helper's too:
  `:audit_arch_x86_64`, `:audit_arch_aarch64`, `:audit_arch_arm`, `:audit_arch_i386`,
  `:audit_arch_riscv64` or, for any other, `:enotsup`.
  """
  @spec audit_arch() :: atom
  def audit_arch, do: :system_architecture |> :erlang.system_info() |> audit_arch()

  @doc false
  @spec audit_arch(charlist) :: atom
  def audit_arch(architecture) do
    [cpu | _] = architecture |> to_string() |> String.split("-")

    cond do
      cpu in ["x86_64", "amd64"] -> :audit_arch_x86_64
      cpu in ["aarch64", "arm64"] -> :audit_arch_aarch64
      # Not the big-endian ones, armv7b and so on: another constant.
      cpu =~ ~r/^arm(v\d\w*)?(?<!b)$/ -> :audit_arch_arm
      cpu =~ ~r/^i[3-6]86$/ -> :audit_arch_i386
      cpu == "riscv64" -> :audit_arch_riscv64
      true -> :enotsup
    end
  end
end
