defmodule Stdio.Config.Text do
  @moduledoc false
  # Elixir terms → the byte strings the kernel takes. One rule for names, arguments and paths:
  # a binary is data and goes through as it is, valid UTF-8 or not; an integer in a list is a
  # character and becomes UTF-8, so ~c"é" means "é" (as with List.to_string/1, not as in iodata).
  # A NUL byte would cut the string short in C, so it is an error here, before any fork.

  @type error :: {:error, :type | :nul}

  defguardp is_char(c) when c in 0..0xD7FF or c in 0xE000..0x10FFFF

  @doc "A binary or a charlist."
  @spec string(term) :: {:ok, binary} | error
  def string(value) when is_binary(value), do: no_nul(value)
  def string(value), do: if(charlist?(value), do: chardata(value), else: {:error, :type})

  @doc "A binary, a charlist, or lists of these nested in any way."
  @spec chardata(term) :: {:ok, binary} | error
  def chardata(value) do
    with {:ok, list} <- encode(value), do: list |> IO.iodata_to_binary() |> no_nul()
  end

  @doc "iodata: here integers are bytes."
  @spec iodata(term) :: {:ok, binary} | error
  def iodata(value) when is_binary(value), do: no_nul(value)

  def iodata(value) when is_list(value) do
    value |> IO.iodata_to_binary() |> no_nul()
  rescue
    ArgumentError -> {:error, :type}
  end

  def iodata(_), do: {:error, :type}

  defp charlist?([]), do: true
  defp charlist?([c | rest]) when is_integer(c), do: charlist?(rest)
  defp charlist?(_), do: false

  defp encode([]), do: {:ok, []}
  defp encode(value) when is_binary(value), do: {:ok, value}

  defp encode([c | rest]) when is_integer(c) and is_char(c) do
    with {:ok, rest} <- encode(rest), do: {:ok, [<<c::utf8>> | rest]}
  end

  defp encode([head | rest]) when is_binary(head) or is_list(head) do
    with {:ok, head} <- encode(head), {:ok, rest} <- encode(rest), do: {:ok, [head | rest]}
  end

  defp encode(_), do: {:error, :type}

  defp no_nul(value) do
    case :binary.match(value, <<0>>) do
      :nomatch -> {:ok, value}
      _ -> {:error, :nul}
    end
  end
end
