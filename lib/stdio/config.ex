defmodule Stdio.Config do
  @moduledoc """
  The options of `Stdio.stream!/3`, `Stdio.pipe!/4`, `Stdio.cmd/3` and `Stdio.Daemon`: a keyword
  list, validated before any process is started.

  #{Stdio.Config.Schema.list()}

  `<priv>` is the `priv` directory of the application `:stdio`.

  Of an option given twice the first counts, as for all keyword lists; both are validated.
  Text and paths: a binary goes to the kernel as it is, valid UTF-8 or not; an integer in a list
  is a character, encoded as UTF-8. In `:environ`, which is iodata, it is a byte. A NUL byte is
  refused everywhere.

  A behaviour that has options of its own names them in `options/0`; anything else that is not in
  the list is an ArgumentError:

      unknown option :foo (value 1); allowed: :net, :environ, …
      invalid value "x" for option :priority; allowed: an integer in -20..19

  ## For authors of behaviours

  Callbacks receive the list as the caller wrote it and fill in defaults themselves, with the
  functions below. Where a default depends on the behaviour, the last argument names it.
  """

  alias Stdio.Config.{Environ, Schema, Text, Type}

  @typedoc "One option of the list above."
  @type option :: unquote(Schema.typespec())

  @typedoc "What callbacks receive; may have own keys of the behaviour."
  @type t :: [option | {atom, term}]

  @typedoc "Keys a behaviour has on its own."
  @type own :: [atom] | :any

  # 285,000 years. Keeps arithmetic on deadlines in 64 bits, without an upper bound for users.
  @ms_max 0x1F_FFFF_FFFF_FFFF
  @unchanged 0xFFFF_FFFF

  @doc """
  Returns `config` as written, or raises ArgumentError.

  `own` are the behaviour's own keys, `verb` tells `pipe!` from the rest, and `behaviour` is the
  module whose ops will run, as the meaning of `:net` and `:cd` depends on it.

      iex> Stdio.Config.validate!(priority: 5)
      [priority: 5]
      iex> Stdio.Config.validate!(priority: "x")
      ** (ArgumentError) invalid value "x" for option :priority; allowed: an integer in -20..19
  """
  @spec validate!(term, own, :stream | :pipe, module) :: t
  def validate!(config, own \\ [], verb \\ :stream, behaviour \\ Stdio.Process) do
    if not Keyword.keyword?(config) do
      raise ArgumentError, "config must be a keyword list, got: #{inspect(config)}"
    end

    Enum.each(config, &option!(&1, own, behaviour))
    combination!(config, verb, behaviour)
    config
  end

  defp option!({key, value}, own, behaviour) do
    case Schema.type(key, behaviour) do
      {:ok, type} -> Type.valid?(type, value) || invalid!(key, value, Type.describe(type))
      :error -> own == :any or key in own or unknown!(key, value, own)
    end
  end

  @spec invalid!(atom, term, String.t()) :: no_return
  defp invalid!(key, value, allowed) do
    raise ArgumentError,
          "invalid value #{inspect(value)} for option #{inspect(key)}; allowed: #{allowed}"
  end

  @spec unknown!(atom, term, [atom]) :: no_return
  defp unknown!(key, value, own) do
    allowed = Enum.map_join(Enum.uniq(Schema.keys() ++ own), ", ", &inspect/1)

    raise ArgumentError,
          "unknown option #{inspect(key)} (value #{inspect(value)}); allowed: #{allowed}"
  end

  # Values that are fine one by one and cannot mean anything together, or do harm.
  defp combination!(config, verb, behaviour) do
    cond do
      behaviour == Stdio.Process and config[:cd] != nil and config[:path] != nil ->
        raise ArgumentError,
              "options :cd and :path are both the working directory here; give one of them"

      verb == :pipe and config[:stdin] == :null ->
        raise ArgumentError,
              "option stdin: :null cannot be used with pipe!, whose input goes to stdin; " <>
                "use stream!"

      key = Enum.find([:uid, :gid], &(config[&1] == @unchanged)) ->
        raise ArgumentError,
              "option #{inspect(key)} cannot be #{@unchanged}: the kernel reads this number as " <>
                "-1, \"unchanged\", and the program would keep the ids of its parent"

      true ->
        :ok
    end
  end

  @doc """
  The value of an option, else its default; `nil` when that is computed (see the functions
  below) and for own keys.

      iex> Stdio.Config.get([], :net)
      :host
      iex> Stdio.Config.get([], :net, Stdio.Container)
      :none
  """
  @spec get(t, atom, module) :: term
  def get(config, key, behaviour \\ Stdio.Process) do
    case Keyword.fetch(config, key) do
      {:ok, value} -> value
      :error -> Schema.default(key, behaviour)
    end
  end

  @doc """
  The environment of the program, a list of `K=V` binaries: `:environ` with `:env` merged over it.

      iex> Stdio.Config.environ(environ: ["A=1", "B=2"], env: [A: nil, C: "3"])
      ["B=2", "C=3"]
  """
  @spec environ(t) :: [binary]
  def environ(config) do
    {:ok, pairs} = config |> get(:env) |> Environ.pairs()
    config |> get(:environ) |> entries() |> Environ.merge(pairs)
  end

  defp entries(:inherit), do: Environ.inherited()
  defp entries(environ), do: Enum.map(environ, &IO.iodata_to_binary/1)

  @doc "User id of the program. The default is stable within the calling process."
  @spec uid(t, module) :: 0..0xFFFF_FFFF
  def uid(config, behaviour \\ Stdio.Process)

  def uid(config, Stdio.Rootless), do: Keyword.get(config, :uid, 65_534)

  def uid(config, _behaviour) do
    Keyword.get_lazy(config, :uid, fn -> :erlang.phash2(self(), 0xFFFF) + 0x10000 end)
  end

  @doc "Group id of the program; by default the uid."
  @spec gid(t, module) :: 0..0xFFFF_FFFF
  def gid(config, behaviour \\ Stdio.Process) do
    Keyword.get_lazy(config, :gid, fn -> uid(config, behaviour) end)
  end

  @doc "Supplementary groups of the program."
  @spec groups(t) :: [0..0xFFFF_FFFF]
  def groups(config), do: get(config, :groups)

  @doc "Host name, a binary."
  @spec hostname(t, module) :: binary
  def hostname(config, behaviour \\ Stdio.Process) do
    case {Keyword.fetch(config, :hostname), behaviour} do
      {{:ok, name}, _} -> bytes(name)
      {:error, Stdio.Rootless} -> "stdio"
      {:error, _} -> "stdio#{uid(config, behaviour)}"
    end
  end

  @doc "The paths of `:fstab` as binaries, empty ones dropped."
  @spec fstab(t) :: [binary]
  def fstab(config),
    do: for(path <- get(config, :fstab), path = bytes(path), path != "", do: path)

  @doc "The option `:path` or `:cd` as a binary, `nil` if it is not given."
  @spec path(t, :path | :cd) :: binary | nil
  def path(config, key \\ :path) when key in [:path, :cd] do
    case Keyword.fetch(config, key) do
      {:ok, path} -> bytes(path)
      :error -> nil
    end
  end

  @doc "The number of `:kill_signal`."
  @spec kill_signal(t) :: 1..64
  def kill_signal(config), do: config |> get(:kill_signal) |> Stdio.Signal.signal_number!()

  @doc "`:timeout` and `:kill_timeout` in ms, finite ones less than 2^53."
  @spec limits_ms(t) :: %{timeout: pos_integer | :infinity, kill_timeout: non_neg_integer}
  def limits_ms(config) do
    %{timeout: limit(get(config, :timeout)), kill_timeout: limit(get(config, :kill_timeout))}
  end

  defp limit(:infinity), do: :infinity
  defp limit(ms), do: min(ms, @ms_max)

  # Only for what has passed validate!/4.
  defp bytes(chardata) do
    {:ok, binary} = Text.chardata(chardata)
    binary
  end
end
