defmodule Stdio.Command do
  @moduledoc false
  # What to execute, in the one form the core takes. See CONTRACT "Commands":
  #
  #   binary                      a shell line: /bin/sh -c binary
  #   [path | args]               execve of path, argv = the whole list
  #   {path, argv}                execve of path, argv as given, its head is argv[0]
  #   {:search, [name | args]}    the list form, with name looked up in PATH
  #
  # Elements are binaries (bytes as they are, invalid UTF-8 too) or charlists (characters,
  # encoded as UTF-8: ~c"é" is "é"). Length is the kernel's business (E2BIG).

  alias Stdio.Config.Text

  @enforce_keys [:file, :argv]
  defstruct [:file, :argv, search: false]

  @type t :: %__MODULE__{file: binary, argv: [binary], search: boolean}

  @forms "a shell line as a binary, [path | args], {path, argv} or {:search, [name | args]}"

  @doc """
  The normal form of `command`, or `:empty` when there is nothing to run (for which the caller
  raises StreamError `:enoent`, as the kernel would say). ArgumentError for anything malformed.

  `search?` is the config option `:search`; it does not concern shell lines.
  """
  @spec normalize!(Stdio.command(), boolean) :: t | :empty
  def normalize!(command, search? \\ false)

  def normalize!(line, _search?) when is_binary(line) do
    line = element!(line, line)
    %__MODULE__{file: "/bin/sh", argv: ["/bin/sh", "-c", line]}
  end

  def normalize!([], _search?), do: :empty
  def normalize!({:search, []}, _search?), do: :empty

  def normalize!({:search, [_ | _] = argv} = command, _search?) do
    [file | _] = argv = argv!(argv, command)
    %__MODULE__{file: file, argv: argv, search: true}
  end

  # An empty argv (argc = 0) is let through: it is the caller's explicit wish and execve(2) has
  # its own answer.
  def normalize!({path, argv} = command, search?)
      when (is_binary(path) or is_list(path)) and is_list(argv) do
    %__MODULE__{file: element!(path, command), argv: argv!(argv, command), search: search?}
  end

  def normalize!([_ | _] = argv, search?) do
    [file | _] = argv = argv!(argv, argv)
    %__MODULE__{file: file, argv: argv, search: search?}
  end

  def normalize!(command, _search?), do: invalid!(command, "use #{@forms}")

  defp argv!([], _command), do: []
  defp argv!([head | rest], command), do: [element!(head, command) | argv!(rest, command)]
  defp argv!(_tail, command), do: invalid!(command, "the arguments must be a proper list")

  defp element!(element, command) do
    case Text.string(element) do
      {:ok, binary} -> binary
      {:error, reason} -> invalid!(command, advice(reason, element))
    end
  end

  # ~c"echo hi" is a list too, and this is what it looks like from here.
  defp advice(:type, element) when is_integer(element) do
    "#{inspect(element)} is not an argument: give numbers as text, " <>
      "and a shell line as a binary instead of a charlist"
  end

  defp advice(:type, element) do
    "#{inspect(element)} is not an argument: every argument must be a binary or a charlist " <>
      "(convert it, for example with to_string/1)"
  end

  defp advice(:nul, element) do
    "#{inspect(element)} has a NUL byte, which cannot be passed to a program: " <>
      "remove it, or send the data through stdin"
  end

  @spec invalid!(term, String.t()) :: no_return
  defp invalid!(command, advice) do
    raise ArgumentError, "invalid command #{inspect(command)}: #{advice}"
  end
end
