defmodule Stdio.Config.Type do
  @moduledoc false
  # The types of the schema as data. Each says three things of itself: which values it has, how
  # it is called in a message, and its typespec.

  alias Stdio.Config.{Environ, Text}

  @type t ::
          :boolean
          | :path
          | :path_or_empty
          | :environ
          | :env
          | :rlimit
          | :signal
          | :addresses
          | {:enum, [atom]}
          | {:integer, integer, integer | :infinity}
          | {:text, pos_integer, pos_integer}
          | {:list, t}
          | {:one_of, [t]}

  # getrlimit(2) of Linux, then those only the BSDs have: which of them this system knows is
  # for the helper to say.
  @rlimits ~w(cpu fsize data stack core rss nproc nofile memlock as locks sigpending msgqueue
              nice rtprio rttime sbsize vmem npts swap kqueues umtxp)
  @rlimit_names MapSet.new(@rlimits, &("rlimit_" <> &1))
  @rlimit_max 0xFFFF_FFFF_FFFF_FFFF

  @doc "Whether `value` is of the type."
  @spec valid?(t, term) :: boolean
  def valid?(:boolean, value), do: is_boolean(value)
  def valid?(:path, value), do: match?({:ok, <<_, _::binary>>}, Text.chardata(value))
  def valid?(:path_or_empty, value), do: match?({:ok, _}, Text.chardata(value))
  def valid?(:environ, value), do: every?(value, &match?({:ok, _}, Environ.entry(&1)))
  def valid?(:env, value), do: match?({:ok, _}, Environ.pairs(value))
  def valid?(:rlimit, value) when is_map(value), do: valid?(:rlimit, Map.to_list(value))
  def valid?(:rlimit, value), do: every?(value, &rlimit?/1)
  def valid?(:signal, value), do: Stdio.Signal.valid?(value)

  def valid?(:addresses, value) when is_map(value),
    do: Enum.all?(Map.to_list(value), &addresses?/1)

  def valid?(:addresses, _), do: false
  def valid?({:enum, atoms}, value), do: value in atoms
  def valid?({:integer, min, :infinity}, value), do: is_integer(value) and value >= min
  def valid?({:integer, min, max}, value), do: is_integer(value) and value in min..max
  def valid?({:list, type}, value), do: every?(value, &valid?(type, &1))
  def valid?({:one_of, types}, value), do: Enum.any?(types, &valid?(&1, value))

  def valid?({:text, min, max}, value) do
    case Text.string(value) do
      {:ok, text} -> byte_size(text) in min..max
      {:error, _} -> false
    end
  end

  @doc "The type in words, to follow `allowed: `."
  @spec describe(t) :: String.t()
  def describe(:boolean), do: "true or false"
  def describe(:path), do: "a non-empty path (binary, charlist or a list of these), no NUL byte"
  def describe(:path_or_empty), do: "a path (binary, charlist or a list of these), no NUL byte"
  def describe(:environ), do: ~s(a list of "K=V" iodata, K not empty, no NUL byte)
  def describe(:signal), do: Stdio.Signal.allowed()
  def describe(:addresses), do: "a map %{ip4: [address tuple], ip6: [address tuple]}"
  def describe({:enum, atoms}), do: atoms |> Enum.map(&inspect/1) |> join()
  def describe({:integer, min, :infinity}), do: "an integer >= #{min}"
  def describe({:integer, min, max}), do: "an integer in #{min}..#{max}"
  def describe({:text, min, max}), do: "text of #{min}..#{max} bytes, no NUL byte"
  def describe({:list, type}), do: "a list, each element #{describe(type)}"
  def describe({:one_of, types}), do: types |> Enum.flat_map(&alternatives/1) |> join()

  def describe(:env) do
    "a map, a keyword list or a list of {key, value | nil}; keys binary, charlist or atom, " <>
      "not empty, without `=`; values binary or charlist; no NUL byte"
  end

  def describe(:rlimit) do
    "a map or a list of {limit, %{cur: n, max: n}}, n in 0..#{@rlimit_max} and cur <= max; " <>
      "limits #{Enum.map_join(@rlimits, ", ", &":rlimit_#{&1}")} or their numbers"
  end

  @doc "The quoted typespec."
  @spec spec(t) :: Macro.t()
  def spec(:boolean), do: quote(do: boolean)
  def spec(:path), do: quote(do: IO.chardata())
  def spec(:path_or_empty), do: quote(do: IO.chardata())
  def spec(:environ), do: quote(do: [iodata])
  def spec(:signal), do: quote(do: atom | 1..64)
  def spec({:enum, atoms}), do: union(atoms)
  def spec({:integer, 0, :infinity}), do: quote(do: non_neg_integer)
  def spec({:integer, 1, :infinity}), do: quote(do: pos_integer)
  def spec({:integer, min, max}), do: quote(do: unquote(min)..unquote(max))
  def spec({:text, _, _}), do: quote(do: binary | charlist)
  def spec({:list, type}), do: [spec(type)]
  def spec({:one_of, types}), do: types |> Enum.map(&spec/1) |> union()

  def spec(:addresses) do
    quote do
      %{
        optional(:ip4) => [:inet.ip4_address()],
        optional(:ip6) => [:inet.ip6_address()]
      }
    end
  end

  def spec(:env) do
    quote do
      [{atom | binary | charlist, binary | charlist | nil}]
      | %{optional(atom | binary | charlist) => binary | charlist | nil}
    end
  end

  def spec(:rlimit) do
    quote do
      [{atom | non_neg_integer, %{cur: non_neg_integer, max: non_neg_integer}}]
      | %{
          optional(atom | non_neg_integer) => %{cur: non_neg_integer, max: non_neg_integer}
        }
    end
  end

  defp rlimit?({const, %{cur: cur, max: max} = limit})
       when map_size(limit) == 2 and is_integer(cur) and is_integer(max) do
    rlimit_const?(const) and 0 <= cur and cur <= max and max <= @rlimit_max
  end

  defp rlimit?(_), do: false

  # 16 limits on Linux, 15 on FreeBSD, 9 on OpenBSD.
  defp rlimit_const?(const) when is_integer(const), do: const in 0..15

  defp rlimit_const?(const) when is_atom(const) do
    MapSet.member?(@rlimit_names, const |> Atom.to_string() |> String.downcase(:ascii))
  end

  defp rlimit_const?(_), do: false

  defp addresses?({:ip4, list}), do: every?(list, &:inet.is_ipv4_address/1)
  defp addresses?({:ip6, list}), do: every?(list, &:inet.is_ipv6_address/1)
  defp addresses?(_), do: false

  # Enum.all?/2 raises on an improper list, which is just one more wrong type here.
  defp every?([], _), do: true
  defp every?([head | rest], fun), do: fun.(head) and every?(rest, fun)
  defp every?(_, _), do: false

  defp alternatives({:enum, atoms}), do: Enum.map(atoms, &inspect/1)
  defp alternatives(type), do: [describe(type)]

  defp join([one]), do: one
  defp join(texts), do: Enum.join(Enum.drop(texts, -1), ", ") <> " or " <> List.last(texts)

  defp union(types) do
    [last | rest] = Enum.reverse(types)
    Enum.reduce(rest, last, &quote(do: unquote(&1) | unquote(&2)))
  end
end
