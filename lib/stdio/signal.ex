defmodule Stdio.Signal do
  @moduledoc """
  Signal names and numbers, as Linux numbers them on x86, arm and riscv (signal(7)).

  Real-time signals have no names when they are reported, because their meaning is private to
  the program: they go in as integers (or `:sigrtmin`, `:sigrtmax`) and come out as `:unknown`.
  """

  @names [
    sighup: 1,
    sigint: 2,
    sigquit: 3,
    sigill: 4,
    sigtrap: 5,
    sigabrt: 6,
    sigbus: 7,
    sigfpe: 8,
    sigkill: 9,
    sigusr1: 10,
    sigsegv: 11,
    sigusr2: 12,
    sigpipe: 13,
    sigalrm: 14,
    sigterm: 15,
    sigstkflt: 16,
    sigchld: 17,
    sigcont: 18,
    sigstop: 19,
    sigtstp: 20,
    sigttin: 21,
    sigttou: 22,
    sigurg: 23,
    sigxcpu: 24,
    sigxfsz: 25,
    sigvtalrm: 26,
    sigprof: 27,
    sigwinch: 28,
    sigio: 29,
    sigpwr: 30,
    sigsys: 31
  ]

  # Accepted, never reported. 32 and 33 belong to the C library, hence sigrtmin = 34.
  @aliases [sigiot: 6, sigcld: 17, sigpoll: 29, sigunused: 31, sigrtmin: 34, sigrtmax: 64]

  @numbers Map.new(@names ++ @aliases, fn {name, number} -> {Atom.to_string(name), number} end)

  @typedoc "A name in any letter case (`:sigterm`, `:SIGTERM`) or a number."
  @type t :: atom | 1..64

  @doc "Whether `signal` is a known name or a number in 1..64."
  @spec valid?(term) :: boolean
  def valid?(signal), do: match?({:ok, _}, fetch(signal))

  @doc """
  The number of a signal; ArgumentError when there is no such signal.

      iex> Stdio.Signal.signal_number!(:SIGTERM)
      15
      iex> Stdio.Signal.signal_number!(34)
      34
  """
  @spec signal_number!(t) :: 1..64
  def signal_number!(signal) do
    case fetch(signal) do
      {:ok, number} ->
        number

      :error ->
        raise ArgumentError, "invalid signal #{inspect(signal)}; allowed: #{allowed()}"
    end
  end

  @doc """
  The name a signal is reported by: a lower-case atom, or `:unknown`.

      iex> Stdio.Signal.signal_name(9)
      :sigkill
      iex> Stdio.Signal.signal_name(40)
      :unknown
  """
  @spec signal_name(integer) :: atom
  for {name, number} <- @names do
    def signal_name(unquote(number)), do: unquote(name)
  end

  def signal_name(number) when is_integer(number), do: :unknown

  @doc "What is accepted, in words, for messages and docs."
  @spec allowed() :: String.t()
  def allowed, do: "a signal name in any letter case, such as :sigterm, or an integer in 1..64"

  defp fetch(number) when is_integer(number) and number in 1..64, do: {:ok, number}
  defp fetch(name) when is_atom(name), do: Map.fetch(@numbers, downcase(name))
  defp fetch(_), do: :error

  # No atom is made from what a caller sends.
  defp downcase(name), do: name |> Atom.to_string() |> String.downcase(:ascii)
end
