defmodule Stdio.Signal do
  @moduledoc """
  Signal names and numbers of this system: those of Linux on x86, arm and riscv (signal(7)), or those
  of FreeBSD and OpenBSD (signal(3)).

  Real-time signals have no names when they are reported, because their meaning is private to
  the program: they go in as integers (or `:sigrtmin`, `:sigrtmax`, on Linux) and come out as
  `:unknown`.
  """

  # In the order of their numbers, from 1 on.
  @linux ~w(sighup sigint sigquit sigill sigtrap sigabrt sigbus sigfpe sigkill sigusr1 sigsegv
            sigusr2 sigpipe sigalrm sigterm sigstkflt sigchld sigcont sigstop sigtstp sigttin
            sigttou sigurg sigxcpu sigxfsz sigvtalrm sigprof sigwinch sigio sigpwr sigsys)a

  @bsd ~w(sighup sigint sigquit sigill sigtrap sigabrt sigemt sigfpe sigkill sigbus sigsegv
          sigsys sigpipe sigalrm sigterm sigurg sigstop sigtstp sigcont sigchld sigttin sigttou
          sigio sigxcpu sigxfsz sigvtalrm sigprof sigwinch siginfo sigusr1 sigusr2)a

  # Accepted, never reported. 32 and 33 belong to Linux's C library, hence sigrtmin = 34.
  @linux_aliases [sigiot: 6, sigcld: 17, sigpoll: 29, sigunused: 31, sigrtmin: 34, sigrtmax: 64]
  @bsd_aliases [sigiot: 6, sigthr: 32]

  @systems %{
    linux: {Enum.with_index(@linux, 1), @linux_aliases},
    freebsd: {Enum.with_index(@bsd, 1), @bsd_aliases},
    openbsd: {Enum.with_index(@bsd, 1), @bsd_aliases}
  }

  {:unix, this} = :os.type()
  @this if Map.has_key?(@systems, this), do: this, else: :linux
  @names @systems[@this] |> elem(0)

  @numbers Map.new(@systems, fn {system, {names, aliases}} ->
             by_name = Map.new(names ++ aliases, fn {name, n} -> {Atom.to_string(name), n} end)
             {system, by_name}
           end)

  @typedoc "A name in any letter case (`:sigterm`, `:SIGTERM`) or a number."
  @type t :: atom | 1..64

  @doc "Whether `signal` is a known name or a number in 1..64."
  @spec valid?(term) :: boolean
  def valid?(signal), do: match?({:ok, _}, fetch(signal, @this))

  @doc """
  The number of a signal; ArgumentError when there is no such signal.

      iex> Stdio.Signal.signal_number!(:SIGTERM)
      15
      iex> Stdio.Signal.signal_number!(34)
      34
  """
  @spec signal_number!(t) :: 1..64
  def signal_number!(signal), do: __number__!(signal, @this)

  @doc false
  # As `signal_number!/1`, on one of :linux, :freebsd and :openbsd.
  @spec __number__!(t, atom) :: 1..64
  def __number__!(signal, system) do
    case fetch(signal, system) do
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

  defp fetch(number, _system) when is_integer(number) and number in 1..64, do: {:ok, number}

  defp fetch(name, system) when is_atom(name),
    do: @numbers |> Map.fetch!(system) |> Map.fetch(downcase(name))

  defp fetch(_, _), do: :error

  # No atom is made from what a caller sends.
  defp downcase(name), do: name |> Atom.to_string() |> String.downcase(:ascii)
end
