defmodule Stdio.SeccompTest do
  use ExUnit.Case, async: true

  # The example needs an architecture that is known here.
  if Stdio.Seccomp.audit_arch() != :enotsup, do: doctest(Stdio.Seccomp)

  alias Stdio.Seccomp
  alias Stdio.Test.Bpf

  @native 0xC000_003E
  @foreign 0x4000_0003

  # Names are sys_N, numbered N; the architecture of the BEAM is that of x86-64.
  defp resolve(:task, name) do
    case Atom.to_string(name) do
      "audit_arch_" <> _ -> @native
      "sys_unknown" -> :unknown
      "sys_" <> number -> String.to_integer(number)
    end
  end

  defp deny(filters), do: Seccomp.deny(:task, filters, &resolve/2)

  # Numbers make atoms: bounded by the tests.
  defp sys(number), do: :"sys_#{number}"

  defp program(filters) do
    assert [{Stdio.Task, :seccomp, [:seccomp_set_mode_filter, 0, fprog]}] = deny(filters)
    assert [<<length::16-native>>, pad, {:ptr, program}] = fprog
    assert byte_size(pad) == :erlang.system_info({:wordsize, :external}) - 2
    assert byte_size(program) == 8 * length
    assert Bpf.check!(program) == :ok
    program
  end

  defp verdict(program, nr, arch \\ @native), do: Bpf.run(program, %{nr: nr, arch: arch})

  test "without errno: the process is killed; with one: the call fails; all else is allowed" do
    program = program([{:deny, sys(59)}, {:deny, sys(0), 1}, {:deny, sys(101), 4095}])

    for nr <- 0..700 do
      expected = %{59 => :kill_process, 0 => {:errno, 1}, 101 => {:errno, 4095}}
      assert verdict(program, nr) == Map.get(expected, nr, :allow)
    end
  end

  test "a foreign architecture is killed, whatever it calls" do
    for filters <- [[], [{:deny, sys(1), 5}]], program = program(filters), nr <- 0..700 do
      assert verdict(program, nr, @foreign) == :kill_process
      assert verdict(program, nr, 0) == :kill_process
    end
  end

  if Stdio.Seccomp.audit_arch() == :audit_arch_x86_64 do
    test "x32 is killed" do
      program = program([{:deny, sys(1), 5}])

      for nr <- 0..700 do
        assert verdict(program, 0x4000_0000 + nr) == :kill_process
      end

      assert verdict(program, 0x3FFF_FFFF) == :allow
      assert verdict(program, 0xFFFF_FFFF) == :kill_process
    end
  end

  test "all entries apply: the first, the last, and more than 255 of them" do
    for count <- [1, 2, 254, 255, 256, 257, 600] do
      program = program(for nr <- 1..count, do: {:deny, sys(nr), nr})
      assert verdict(program, 0) == :allow
      for nr <- 1..count, do: assert(verdict(program, nr) == {:errno, nr})
      assert verdict(program, count + 1) == :allow
    end
  end

  test "no entry" do
    for nr <- 0..700, do: assert(verdict(program([]), nr) == :allow)
  end

  test "of several for one call the kill counts, else the first" do
    program =
      program([{:deny, sys(1), 5}, {:deny, sys(1)}, {:deny, sys(2), 6}, {:deny, sys(2), 7}])

    assert verdict(program, 1) == :kill_process
    assert verdict(program, 2) == {:errno, 6}
  end

  test "repeated entries do not make the program longer" do
    filters = List.duplicate({:deny, sys(1), 5}, 5000)
    assert program(filters) == program([{:deny, sys(1), 5}])
  end

  test "the constant of the architecture is asked for, too; a negative number has 32 bits" do
    arch = Seccomp.audit_arch()

    negative = fn
      :task, ^arch -> @native - 0x1_0000_0000
      task, name -> resolve(task, name)
    end

    [{_, _, [_, _, [_, _, {:ptr, program}]]}] = Seccomp.deny(:task, [{:deny, sys(1)}], negative)
    assert program == program([{:deny, sys(1)}])
  end

  test "an unknown name, at any place" do
    assert deny([{:deny, :sys_unknown}]) == {:error, :enotsup}

    assert deny([{:deny, sys(1)}, {:deny, :sys_unknown, 1}, {:deny, sys(2)}]) ==
             {:error, :enotsup}

    assert Seccomp.deny(:task, [], fn _, _ -> :unknown end) == {:error, :enotsup}
  end

  test "the task's error" do
    assert Seccomp.deny(:task, [], fn _, _ -> {:error, :esrch} end) == {:error, :esrch}
  end

  test "a malformed entry raises before the task is asked" do
    for entry <- [
          {:allow, sys(1)},
          {:deny, "sys_1"},
          {:deny, sys(1), -1},
          {:deny, sys(1), 4096},
          {:deny, sys(1), :eacces},
          sys(1)
        ] do
      assert_raise ArgumentError, ~r/invalid seccomp entry/, fn ->
        Seccomp.deny(:task, [{:deny, sys(1)}, entry], fn _, _ -> flunk("asked") end)
      end
    end
  end

  test "what is no list says so, and how an op is written" do
    for filters <- [{:deny, sys(1)}, sys(1), [{:deny, sys(1)} | sys(1)]] do
      assert_raise ArgumentError, ~r/invalid seccomp filters .*allowed: a list/, fn ->
        Seccomp.deny(:task, filters, fn _, _ -> flunk("asked") end)
      end
    end
  end

  test "audit_arch/0 by the architecture of the BEAM" do
    for {architecture, constant} <- [
          {~c"x86_64-pc-linux-gnu", :audit_arch_x86_64},
          {~c"amd64-portbld-freebsd13.2", :audit_arch_x86_64},
          {~c"aarch64-unknown-linux-gnu", :audit_arch_aarch64},
          {~c"aarch64_be-unknown-linux-gnu", :enotsup},
          {~c"arm-unknown-linux-gnueabihf", :audit_arch_arm},
          {~c"armv7l-unknown-linux-gnueabihf", :audit_arch_arm},
          {~c"armv7-nerves-linux-gnueabihf", :audit_arch_arm},
          {~c"armv7b-unknown-linux-gnueabi", :enotsup},
          {~c"armeb-unknown-linux-gnueabi", :enotsup},
          {~c"i686-pc-linux-gnu", :audit_arch_i386},
          {~c"riscv64-unknown-linux-gnu", :audit_arch_riscv64},
          {~c"riscv32-unknown-linux-gnu", :enotsup},
          {~c"mips-unknown-linux-gnu", :enotsup},
          {~c"win32", :enotsup}
        ] do
      assert {architecture, Seccomp.audit_arch(architecture)} == {architecture, constant}
    end
  end

  test ":seccomp is the same, for ops of 0.4" do
    assert :seccomp.audit_arch() == Seccomp.audit_arch()
    assert function_exported?(:seccomp, :deny, 2)
  end
end
