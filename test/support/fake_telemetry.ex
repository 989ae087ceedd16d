defmodule Stdio.Test.FakeTelemetry do
  @moduledoc """
  A module `:telemetry` that sends what is executed to a test: `{:telemetry, name, measurements,
  metadata}`. It exists between `load/1` and `unload/0` only, as it would be optional anywhere.
  """

  @doc "Defines `:telemetry`; its events go to `pid`."
  @spec load(pid) :: :ok
  def load(pid) do
    body =
      quote do
        def execute(name, measurements, metadata) do
          send(
            :erlang.list_to_pid(unquote(:erlang.pid_to_list(pid))),
            {:telemetry, name, measurements, metadata}
          )

          :ok
        end
      end

    unload()
    Module.create(:telemetry, body, Macro.Env.location(__ENV__))
    :ok
  end

  @doc "Removes it again."
  @spec unload() :: :ok
  def unload do
    :code.purge(:telemetry)
    :code.delete(:telemetry)
    :code.purge(:telemetry)
    :ok
  end
end
