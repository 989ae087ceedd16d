defmodule Stdio.Alias do
  @moduledoc false
  # Module names of msantos/stdio 0.4's dependency under which ours are reachable, so that its
  # behaviours keep working. They are left alone where that dependency is in the code path.

  @doc "At compile time of this app: whether no one but this app has a module `name`."
  @spec free?(module) :: boolean
  def free?(name) do
    case :code.which(name) do
      :non_existing -> true
      # Compiled before, by us.
      path when is_list(path) -> Path.dirname(path) == Mix.Project.compile_path()
      _loaded -> false
    end
  end
end
