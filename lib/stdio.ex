defmodule Stdio do
  @moduledoc "TODO"

  alias Stdio.{Command, Config}
  alias Stdio.Stream.Runner

  @type element ::
          {:stdout, binary}
          | {:stderr, binary}
          | {:exit_status, 0..255}
          | {:termsig, atom}

  @spec stream!(Command.command(), module, Config.t()) :: Enumerable.t()
  def stream!(command, behaviour \\ Stdio.Process, config \\ []) do
    run(command, behaviour, config, :stream, nil)
  end

  @spec pipe!(Enumerable.t(), Command.command(), module, Config.t()) :: Enumerable.t()
  def pipe!(enum, command, behaviour \\ Stdio.Process, config \\ []) do
    run(command, behaviour, config, :pipe, {:feed, enum})
  end

  defp run(command, Stdio.Process = behaviour, config, verb, input) do
    config = Config.validate!(config, [], verb, behaviour)
    normal = Command.normalize!(command, Config.get(config, :search))

    Runner.stream(%{
      command: command,
      normal: normal,
      config: config,
      behaviour: behaviour,
      input: input
    })
  end

  defp run(_command, behaviour, _config, _verb, _input) do
    raise ArgumentError, "unknown behaviour #{inspect(behaviour)}; available: Stdio.Process"
  end
end
