defmodule Stdio.Test.LogEvents do
  @moduledoc false
  # A handler of OTP's logger that sends every event of a process to the test:
  # `{:log, level, text, metadata}`.

  @doc "Until the test ends, or `stop/1`. `of` says which events, by their metadata."
  @spec watch((map -> boolean)) :: atom
  def watch(of) do
    id = :"stdio_test_#{System.unique_integer([:positive])}"
    :ok = :logger.add_handler(id, __MODULE__, %{config: %{pid: self(), of: of}})
    ExUnit.Callbacks.on_exit(fn -> stop(id) end)
    id
  end

  @spec stop(atom) :: :ok | {:error, term}
  def stop(id), do: :logger.remove_handler(id)

  @doc false
  def log(%{level: level, msg: message, meta: meta}, %{config: %{pid: pid, of: of}}) do
    if of.(meta), do: send(pid, {:log, level, text(message), meta})
  end

  defp text({:string, text}), do: IO.chardata_to_string(text)
  defp text(other), do: inspect(other)
end
