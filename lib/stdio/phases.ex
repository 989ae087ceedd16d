defmodule Stdio.Phases do
  @moduledoc false
  # A behaviour, in any of the forms users may give, as the functions that will be called:
  #
  #   module              its callbacks
  #   keyword             phases; the missing ones from Stdio.Process
  #   {module, keyword}   phases; the missing ones from the module
  #
  # Rules:
  #
  #   1. The functions of a module are external captures, so whether a phase is the shipped one can
  #      be asked: `phases.ops == &Stdio.Process.ops/1`.
  #   2. `module` is the one whose ops run, because the meaning of some options depends on it.
  #   3. Of a phase given twice the first counts, as for all keyword lists; both are validated.

  @callbacks [:task, :init, :ops, :onerror, :onexit]
  @phases @callbacks ++ [:options]

  @enforce_keys [:module, :options | @callbacks]
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          module: module,
          options: Stdio.Config.own(),
          task: (Stdio.Config.t() -> {:ok, Stdio.t()} | {:error, Stdio.posix()}),
          init:
            (Stdio.Config.t() ->
               (Stdio.Task.t() -> {:ok, Stdio.pipeline()} | {:error, Stdio.posix()})),
          ops: (Stdio.Config.t() -> [Stdio.Op.op()]),
          onerror: (Stdio.Config.t() -> (Stdio.Task.t() -> any)),
          onexit: (Stdio.Config.t() -> (Stdio.ProcessTree.t() -> boolean))
        }

  @doc """
  The phases of a behaviour, or ArgumentError with a sentence.

      iex> phases = Stdio.Phases.new!(ops: fn _ -> [{:chdir, ["/tmp"]}] end)
      iex> phases.ops.([])
      [{:chdir, ["/tmp"]}]
      iex> phases.onerror == &Stdio.Process.onerror/1
      true
      iex> Stdio.Phases.new!(op: fn _ -> [] end)
      ** (ArgumentError) unknown phase :op; allowed: :task, :init, :ops, :onerror, :onexit, :options
  """
  @spec new!(Stdio.behaviour() | term) :: t
  def new!(behaviour) do
    {base, given} = split!(behaviour)
    Enum.each(given, &phase!/1)
    loaded!(base, behaviour)

    functions = for name <- @callbacks, do: {name, function!(base, name, given)}
    options = Keyword.get_lazy(given, :options, fn -> options!(base) end)

    struct!(__MODULE__, [
      {:module, source(functions[:ops], base)},
      {:options, options} | functions
    ])
  end

  @doc "The phases of a behaviour as a keyword list, with `task` giving `supervisor`."
  @spec with_supervisor(Stdio.behaviour(), Stdio.t()) :: keyword
  def with_supervisor(behaviour, %Stdio{} = supervisor) do
    phases = new!(behaviour)

    for name <- @phases do
      case name do
        :task -> {:task, &given(supervisor, phases, &1)}
        name -> {name, Map.fetch!(phases, name)}
      end
    end
  end

  # Containment that was asked for has to be what the supervisor gives; but containers are PID
  # namespaces wherever they are started.
  defp given(supervisor, phases, config) do
    wanted = Stdio.Config.get(config, :containment)
    namespace? = phases.module in [Stdio.Container, Stdio.Rootless]

    if wanted == :auto or (wanted == :pid_namespace and namespace?) or
         wanted == Stdio.containment(supervisor),
       do: {:ok, supervisor},
       else: {:error, :enotsup}
  end

  defp split!(module) when is_atom(module), do: {module, []}
  defp split!({module, given} = both) when is_atom(module), do: {module, keyword!(given, both)}
  defp split!(given), do: {Stdio.Process, keyword!(given, given)}

  defp keyword!(given, behaviour) do
    if Keyword.keyword?(given), do: given, else: shape!(behaviour)
  end

  @spec shape!(term) :: no_return
  defp shape!(behaviour) do
    raise ArgumentError,
          "invalid behaviour #{inspect(behaviour)}; allowed: a module, a keyword list of " <>
            "phases, or {module, keyword list of phases}"
  end

  defp phase!({:options, :any}), do: :ok

  defp phase!({:options, options}) do
    if atoms?(options), do: :ok, else: invalid!(:options, options, "a list of atoms, or :any")
  end

  defp phase!({name, fun}) when name in @callbacks do
    if is_function(fun, 1),
      do: :ok,
      else: invalid!(name, fun, "a function of one argument, the config")
  end

  defp phase!({name, _}) do
    raise ArgumentError,
          "unknown phase #{inspect(name)}; allowed: #{Enum.map_join(@phases, ", ", &inspect/1)}" <>
            if(name in Stdio.Config.Schema.keys(), do: option(name), else: "")
  end

  defp option(name), do: ". It is an option, after the behaviour: Stdio.Process, #{name}: ..."

  @spec invalid!(atom, term, String.t()) :: no_return
  defp invalid!(name, value, allowed) do
    raise ArgumentError,
          "invalid value #{inspect(value)} for phase #{inspect(name)}; allowed: #{allowed}"
  end

  defp loaded!(module, behaviour) do
    case Code.ensure_loaded(module) do
      {:module, _} ->
        :ok

      {:error, reason} ->
        raise ArgumentError,
              "invalid behaviour #{inspect(behaviour)}: there is no module " <>
                "#{inspect(module)} (#{inspect(reason)})"
    end
  end

  defp function!(base, name, given) do
    Keyword.get_lazy(given, name, fn ->
      if function_exported?(base, name, 1) do
        Function.capture(base, name, 1)
      else
        raise ArgumentError,
              "#{inspect(base)} is not a behaviour: it has no function #{name}/1; `use Stdio` " <>
                "in it defines those it does not have"
      end
    end)
  end

  defp options!(base) do
    options = if function_exported?(base, :options, 0), do: base.options(), else: []

    if options == :any or atoms?(options) do
      options
    else
      raise ArgumentError,
            "invalid value #{inspect(options)} of #{inspect(base)}.options(); allowed: a list " <>
              "of atoms, or :any"
    end
  end

  # The guard is true of proper lists only.
  defp atoms?(list) when length(list) >= 0, do: Enum.all?(list, &is_atom/1)
  defp atoms?(_), do: false

  # with_supervisor/2 gives a keyword list of captures: their module is the one that matters.
  defp source(ops, base) do
    case Function.info(ops) |> Keyword.take([:type, :name, :module]) |> Map.new() do
      %{type: :external, name: :ops, module: module} -> module
      _ -> base
    end
  end
end
