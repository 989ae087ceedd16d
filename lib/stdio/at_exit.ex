defmodule Stdio.AtExit do
  @moduledoc false
  # What becomes of a supervisor when its stream has ended, or could not be started.

  alias Stdio.ProcessTree

  @doc """
  Does what `supervisor.atexit` says; see `t:Stdio.t/0`. `pipeline` is `[]` after a failed start.

  A function's exception goes to the caller.
  """
  @spec run(Stdio.t(), Stdio.pipeline()) :: :ok
  # Nothing was started, so there is nothing to end.
  def run(%Stdio{init: :noproc, atexit: atexit}, _pipeline) when is_atom(atexit), do: :ok

  def run(%Stdio{atexit: :noshutdown}, _pipeline), do: :ok

  def run(%Stdio{atexit: :noreap, init: init}, _pipeline) do
    Stdio.Task.stop(init)
    :ok
  end

  def run(%Stdio{atexit: :shutdown, init: init} = supervisor, pipeline) do
    # A tree that resists for longer than reap waits dies with its supervisor, at the latest.
    _ = Stdio.reap(%ProcessTree{supervisor: supervisor, pipeline: pipeline}, :SIGKILL)
    :ok
  after
    Stdio.Task.stop(init)
  end

  def run(%Stdio{atexit: atexit, init: init, state: state}, pipeline)
      when is_function(atexit, 3) do
    atexit.(init, pipeline, state)
    :ok
  end
end
