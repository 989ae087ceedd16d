defmodule Stdio.Test.Plain do
  @moduledoc false
  # Stdio.Process in every respect, but a module of its own: its streams go phase by phase.
  use Stdio
end

defmodule Stdio.Test.Deep do
  @moduledoc false
  # Ten tasks deep, in /tmp, with an option of its own.
  use Stdio

  @impl Stdio
  def init(config) do
    fn supervisor -> descend(supervisor, config[:depth] || 10, []) end
  end

  defp descend(_parent, 0, pipeline), do: {:ok, Enum.reverse(pipeline)}

  defp descend(parent, left, pipeline) do
    with {:ok, task} <- Stdio.Task.fork(parent),
         do: descend(task, left - 1, [Stdio.ProcessTree.task(task) | pipeline])
  end

  @impl Stdio
  def ops(config), do: Stdio.Process.ops([path: "/tmp"] ++ Keyword.delete(config, :depth))

  @impl Stdio
  def options, do: [:depth]
end

defmodule Stdio.Test.Forward do
  @moduledoc false
  # An op that is a function: `{Stdio.Test.Forward, :call, [fun | args]}`.

  def call(task, fun, arg), do: fun.(task, arg)
end
