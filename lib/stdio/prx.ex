# Behaviours written for msantos/stdio 0.4 call the functions of a task by this module name. A
# module of that name which is in the code path already, the original for instance, wins. Ours is
# there too when this file is compiled again, so it carries a mark.
ours? = fn -> :stdio_delegates in Keyword.keys(:prx.module_info(:attributes)) end

if not Code.ensure_loaded?(:prx) or ours?.() do
  defmodule :prx do
    @moduledoc """
    The functions of `Stdio.Task` under the name they have in msantos/stdio 0.4.

    In ops, `:prx` means `Stdio.Task` in any case. This module is for direct calls in `init`,
    `onerror` and `onexit`. New code calls `Stdio.Task`.
    """

    Module.register_attribute(__MODULE__, :stdio_delegates, persist: true)
    @stdio_delegates true

    for {name, arity} <- Stdio.Task.__info__(:functions),
        not String.starts_with?(Atom.to_string(name), "__") do
      args = Macro.generate_arguments(arity, __MODULE__)

      @doc "See `Stdio.Task.#{name}/#{arity}`."
      @spec unquote(name)(unquote_splicing(Enum.map(args, fn _ -> {:term, [], []} end))) :: term
      defdelegate unquote(name)(unquote_splicing(args)), to: Stdio.Task
    end
  end
end
