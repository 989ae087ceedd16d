defmodule Stdio.Config.Environ do
  @moduledoc false
  # The program's environment: `:environ` (a list, or the BEAM's own), overridden by `:env`.

  alias Stdio.Config.Text

  @doc "One `K=V` entry as a binary; a name must not be empty."
  @spec entry(term) :: {:ok, binary} | :error
  def entry(value) do
    with {:ok, entry} <- Text.iodata(value), [<<_, _::binary>>, _] <- split(entry) do
      {:ok, entry}
    else
      _ -> :error
    end
  end

  @doc "`:env` in any of its forms as a list of `{k, v | nil}` with binaries, in order."
  @spec pairs(term) :: {:ok, [{binary, binary | nil}]} | :error
  def pairs(env) when is_map(env), do: env |> Map.to_list() |> pairs()
  def pairs([]), do: {:ok, []}

  def pairs([{key, value} | rest]) do
    with {:ok, key} <- key(key), {:ok, value} <- value(value), {:ok, rest} <- pairs(rest) do
      {:ok, [{key, value} | rest]}
    else
      _ -> :error
    end
  end

  def pairs(_), do: :error

  @doc """
  Merges `pairs` over `base`, a list of `K=V`. A later pair wins over an earlier one of the same
  name. A name keeps its place in `base` (repetitions go away), new ones follow in order.
  """
  @spec merge([binary], [{binary, binary | nil}]) :: [binary]
  def merge(base, []), do: base

  def merge(base, pairs) do
    env = Map.new(pairs)
    {merged, left} = Enum.flat_map_reduce(base, env, &override(&1, &2, env))
    names = pairs |> Enum.map(&elem(&1, 0)) |> Enum.uniq()
    merged ++ for(name <- names, value = left[name], do: name <> "=" <> value)
  end

  defp override(entry, left, env) do
    [name | _] = split(entry)

    case {env, left} do
      {%{^name => value}, %{^name => _}} when value != nil ->
        {[name <> "=" <> value], Map.delete(left, name)}

      {%{^name => _}, _} ->
        {[], left}

      _ ->
        {[entry], left}
    end
  end

  @doc """
  The BEAM's environment as it is now, `System.put_env/2` included, as the bytes it consists of.
  """
  @spec inherited() :: [binary]
  def inherited, do: inherited(:os.env(), :file.native_name_encoding(), &initial/0)

  @doc false
  # The VM hands out names and values as characters. It decodes them by its file name encoding,
  # and where that fails byte by byte, so with UTF-8 [255] is either "ÿ" or the lone byte 0xFF
  # (likewise for every other list of characters up to 255). Only then is the environment the
  # VM was started with asked, where the kernel keeps the bytes. It is not the first choice
  # because it does not know about changes, and because it may be unreadable.
  @spec inherited([{charlist, charlist}], :utf8 | :latin1, (() -> MapSet.t(binary))) :: [binary]
  def inherited(vars, :latin1, _initial) do
    for {name, value} <- vars, do: IO.iodata_to_binary([name, ?=, value])
  end

  def inherited(vars, _utf8, initial) do
    {entries, _} = Enum.map_reduce(vars, initial, &undecode/2)
    entries
  end

  defp undecode({name, value}, initial) do
    case for(n <- readings(name), v <- readings(value), do: n <> "=" <> v) do
      [entry] ->
        {entry, initial}

      [utf8 | others] ->
        initial = if is_function(initial), do: initial.(), else: initial
        {Enum.find(others, utf8, &MapSet.member?(initial, &1)), initial}
    end
  end

  # What `chars` may have been: UTF-8 first, then single bytes where that makes a difference.
  defp readings(chars) do
    utf8 = List.to_string(chars)

    if Enum.any?(chars, &(&1 > 127)) and Enum.all?(chars, &(&1 < 256)),
      do: [utf8, IO.iodata_to_binary(chars)],
      else: [utf8]
  end

  defp initial do
    case File.read("/proc/self/environ") do
      {:ok, block} -> block |> :binary.split(<<0>>, [:global]) |> MapSet.new()
      {:error, _} -> MapSet.new()
    end
  end

  defp key(nil), do: :error
  defp key(key) when is_atom(key), do: key |> Atom.to_string() |> key()

  defp key(key) do
    with {:ok, <<_, _::binary>> = name} <- Text.string(key), [_] <- split(name) do
      {:ok, name}
    else
      _ -> :error
    end
  end

  defp value(nil), do: {:ok, nil}
  defp value(value), do: Text.string(value)

  defp split(entry), do: :binary.split(entry, "=")
end
