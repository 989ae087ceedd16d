defmodule Stdio.SignalTest do
  use ExUnit.Case, async: true
  doctest Stdio.Signal

  import Stdio.Signal

  # As printed by `kill -l`, so a slip in the module's own table shows.
  @table """
  1 hup 2 int 3 quit 4 ill 5 trap 6 abrt 7 bus 8 fpe 9 kill 10 usr1 11 segv 12 usr2 13 pipe
  14 alrm 15 term 16 stkflt 17 chld 18 cont 19 stop 20 tstp 21 ttin 22 ttou 23 urg 24 xcpu
  25 xfsz 26 vtalrm 27 prof 28 winch 29 io 30 pwr 31 sys
  """
  @signals @table |> String.split() |> Enum.chunk_every(2)

  test "all 31 names, in any letter case, and back" do
    assert length(@signals) == 31

    for [number, name] <- @signals do
      number = String.to_integer(number)
      lower = :"sig#{name}"
      assert signal_number!(lower) == number
      assert signal_number!(:"SIG#{String.upcase(name)}") == number
      assert signal_number!(:"Sig#{String.capitalize(name)}") == number
      assert signal_name(number) == lower
    end
  end

  # sys/signal.h of FreeBSD and of OpenBSD.
  @bsd """
  1 hup 2 int 3 quit 4 ill 5 trap 6 abrt 7 emt 8 fpe 9 kill 10 bus 11 segv 12 sys 13 pipe 14 alrm
  15 term 16 urg 17 stop 18 tstp 19 cont 20 chld 21 ttin 22 ttou 23 io 24 xcpu 25 xfsz 26 vtalrm
  27 prof 28 winch 29 info 30 usr1 31 usr2
  """

  test "the numbers of other systems" do
    for [number, name] <- @bsd |> String.split() |> Enum.chunk_every(2),
        system <- [:freebsd, :openbsd] do
      assert Stdio.Signal.__number__!(:"SIG#{String.upcase(name)}", system) ==
               String.to_integer(number)
    end

    assert Stdio.Signal.__number__!(:sigusr1, :linux) == 10
    assert Stdio.Signal.__number__!(34, :freebsd) == 34

    for name <- [:sigpwr, :sigrtmin, :sigstkflt],
        do: assert_raise(ArgumentError, fn -> Stdio.Signal.__number__!(name, :freebsd) end)

    assert_raise ArgumentError, fn -> Stdio.Signal.__number__!(:siginfo, :linux) end
  end

  test "aliases are accepted and not reported" do
    assert Enum.map([:sigiot, :SIGPOLL, :sigcld, :sigunused], &signal_number!/1) == [
             6,
             29,
             17,
             31
           ]

    assert signal_name(6) == :sigabrt
    assert signal_name(29) == :sigio
    assert signal_name(17) == :sigchld
    assert signal_name(31) == :sigsys
  end

  test "real-time signals are numbers; reported as :unknown" do
    assert signal_number!(:SIGRTMIN) == 34
    assert signal_number!(:sigrtmax) == 64

    for number <- 32..64 do
      assert signal_number!(number) == number
      assert signal_name(number) == :unknown
    end

    assert signal_name(0) == :unknown
    assert signal_name(65) == :unknown
  end

  test "numbers outside 1..64, unknown names and other types are refused" do
    for bad <- [0, 65, -9, 1.0, :kill, :sigfoo, nil, true, "SIGKILL", ~c"sigkill", [9]] do
      refute valid?(bad), inspect(bad)
      error = assert_raise ArgumentError, fn -> signal_number!(bad) end
      assert error.message == "invalid signal #{inspect(bad)}; allowed: #{allowed()}"
    end

    assert valid?(1) and valid?(64) and valid?(:SigTerm)
  end
end
