defmodule Stdio.Op.Call do
  @moduledoc false
  # One op, read: its forms (`Stdio.Op`) become one struct.

  @enforce_keys [:module, :fun, :args]
  defstruct [:module, :fun, :args, :transform, state: false, errexit: true, ignore: []]

  @type t :: %__MODULE__{
          module: module,
          fun: atom,
          args: [term],
          transform: nil | (term -> term),
          state: boolean,
          errexit: boolean,
          ignore: [Stdio.posix()]
        }

  # True of proper lists only; false, without an error, of everything else.
  defguardp is_proper(term) when length(term) >= 0

  @doc """
  The call an op stands for; `builtin` is the module of ops that name none.

      iex> {:ok, call} = Stdio.Op.Call.parse({:chdir, ["/"], errexit: false}, Stdio.Task)
      iex> {call.module, call.fun, call.args, call.errexit}
      {Stdio.Task, :chdir, ["/"], false}
      iex> Stdio.Op.Call.parse(:chdir, Stdio.Task)
      :error
  """
  @spec parse(term, module) :: {:ok, t} | :error
  def parse({fun, args}, builtin), do: call(builtin, fun, args, [])

  def parse({fun, args, opts}, builtin) when is_list(args) and is_list(opts),
    do: call(builtin, fun, args, opts)

  def parse({module, fun, args}, builtin), do: call(module(module, builtin), fun, args, [])

  def parse({module, fun, args, opts}, builtin),
    do: call(module(module, builtin), fun, args, opts)

  def parse(_, _builtin), do: :error

  defp module(name, builtin) when name in [:prx, Stdio.Task], do: builtin
  defp module(:seccomp, _builtin), do: Stdio.Seccomp
  defp module(name, _builtin), do: name

  defp call(module, fun, args, opts)
       when is_atom(module) and is_atom(fun) and is_proper(args) and is_proper(opts) do
    # Of an option given twice the first counts.
    opts |> Enum.reverse() |> option(%__MODULE__{module: module, fun: fun, args: args})
  end

  defp call(_module, _fun, _args, _opts), do: :error

  # A misspelt option is an error: the op would do something else than its author meant.
  defp option([], call), do: {:ok, call}

  defp option([{key, value} | opts], call)
       when (key in [:state, :errexit] and is_boolean(value)) or
              (key == :transform and is_function(value, 1)),
       do: option(opts, Map.replace!(call, key, value))

  defp option([{:ignore, errors} | opts], call) when is_proper(errors) do
    if Enum.all?(errors, &is_atom/1), do: option(opts, %{call | ignore: errors}), else: :error
  end

  defp option(_opts, _call), do: :error

  @doc "Whether the task can make this call without help from Elixir."
  @spec batch?(t, module) :: boolean
  def batch?(%__MODULE__{module: module, state: state, transform: transform}, builtin),
    do: module == builtin and not state and transform == nil

  @doc "All arguments of the call."
  @spec args(t, Stdio.Task.t(), term) :: [term]
  def args(%__MODULE__{state: true, args: args}, task, state), do: [state, task | args]
  def args(%__MODULE__{args: args}, task, _state), do: [task | args]

  @doc """
  What a result, transformed already, means for a run.

      iex> {:ok, call} = Stdio.Op.Call.parse({:mkdir, ["/x", 0o700], ignore: [:eexist]}, Stdio.Task)
      iex> Stdio.Op.Call.effect(call, {:error, :eexist})
      {:state, :ok}
      iex> Stdio.Op.Call.effect(call, {:error, :erofs})
      {:failed, :erofs}
  """
  @spec effect(t, term) ::
          :same | {:state, term} | {:branch, [term]} | {:failed, term} | :bad_result
  def effect(_call, :ok), do: {:state, :ok}
  def effect(_call, {:ok, value}), do: {:state, value}
  def effect(_call, branch) when is_proper(branch), do: {:branch, branch}

  def effect(call, {:error, reason}) do
    cond do
      reason in call.ignore -> {:state, :ok}
      not call.errexit -> :same
      true -> {:failed, reason}
    end
  end

  def effect(_call, _value), do: :bad_result
end
