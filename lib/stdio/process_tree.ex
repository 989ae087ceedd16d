defmodule Stdio.ProcessTree do
  @moduledoc """
  A supervisor and the tasks of one program under it.

  `onexit` functions and `Stdio.reap/2` are given one.

  | field | |
  |---|---|
  | `:supervisor` | `t:Stdio.t/0` |
  | `:pipeline` | outermost task first, the last is the program; `[]` (default) when nothing was started |
  """

  alias Stdio.OpError

  @type t :: %__MODULE__{supervisor: Stdio.t(), pipeline: Stdio.pipeline()}

  defstruct supervisor: %Stdio{}, pipeline: []

  @doc """
  The entry of `task` in a pipeline, for functions that `c:Stdio.init/1` gives:

      def init(_config) do
        fn supervisor ->
          with {:ok, task} <- Stdio.Task.fork(supervisor) do
            {:ok, [Stdio.ProcessTree.task(task)]}
          end
        end
      end

  Raises `Stdio.OpError` with reason `:einval` when the task is dead.
  """
  @spec task(Stdio.Task.t()) :: %{task: Stdio.Task.t(), pid: pos_integer}
  def task(task) do
    case Stdio.Task.pidof(task) do
      :noproc -> raise OpError.fork(:einval)
      pid -> %{task: task, pid: pid}
    end
  end
end
