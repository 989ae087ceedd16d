defmodule Stdio.Test.Bpf do
  @moduledoc false
  # Runs a classic BPF program as the kernel runs a seccomp filter: bpf(4), and the checks of
  # seccomp_check_filter() and bpf_check_classic() in Linux. An error raises.

  import Bitwise

  @max_instructions 4096

  @doc "The verdict on `data`, a map with the `nr` and `arch` of struct seccomp_data."
  def run(program, data) do
    instructions = decode(program)
    run(instructions, 0, nil, <<data.nr::32-native, data.arch::32-native, 0::size(56)-unit(8)>>)
  end

  @doc "Whether the kernel would take it; an ok that the program's every path returns."
  def check!(program) do
    instructions = decode(program)
    size = tuple_size(instructions)
    true = size in 1..@max_instructions
    {0x06, _, _, _} = elem(instructions, size - 1)

    for {{code, jt, jf, k}, at} <- Enum.with_index(Tuple.to_list(instructions)) do
      case code do
        0x20 -> true = rem(k, 4) == 0 and k < 64
        0x05 -> true = at + 1 + k < size
        jump when (jump &&& 0x07) == 0x05 -> true = at + 1 + max(jt, jf) < size
        0x06 -> :ok
      end
    end

    :ok
  end

  defp decode(program) do
    0 = rem(byte_size(program), 8)

    for(
      <<code::16-native, jt::8, jf::8, k::32-native <- program>>,
      do: {code, jt, jf, k}
    )
    |> List.to_tuple()
  end

  defp run(instructions, at, a, data) do
    {code, jt, jf, k} = elem(instructions, at)
    jump = fn test -> run(instructions, at + 1 + if(test, do: jt, else: jf), a, data) end

    case code do
      # BPF_LD | BPF_W | BPF_ABS
      0x20 ->
        <<value::32-native>> = binary_part(data, k, 4)
        run(instructions, at + 1, value, data)

      # BPF_JMP | BPF_JA, then with BPF_K: JEQ, JGT, JGE, JSET
      0x05 ->
        run(instructions, at + 1 + k, a, data)

      0x15 ->
        jump.(a == k)

      0x25 ->
        jump.(a > k)

      0x35 ->
        jump.(a >= k)

      0x45 ->
        jump.((a &&& k) != 0)

      # BPF_RET | BPF_K
      0x06 ->
        verdict(k)
    end
  end

  defp verdict(0x8000_0000), do: :kill_process
  defp verdict(0x7FFF_0000), do: :allow
  defp verdict(value) when (value &&& 0xFFFF_0000) == 0x0005_0000, do: {:errno, value &&& 0xFFFF}
end
