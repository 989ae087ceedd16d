defmodule Stdio.Stream.Feeder do
  @moduledoc false
  # Writes an enumerable to a program's stdin, in a process of its own.
  #
  # Rules:
  #
  #   1. It is not linked to the consumer. It ends with the stream (the consumer kills it) and
  #      with the consumer (a guard process kills it).
  #   2. A program that closes its stdin ends the feeding, without an error.
  #   3. What the enumerable raises, throws or exits with goes to the consumer, which raises it
  #      again: `{ref, :feed, kind, reason, stacktrace}`.

  alias Stdio.Native

  @spec start(Enumerable.t(), reference, reference) :: {pid, reference}
  def start(enum, handle, ref) do
    consumer = self()
    # As Task does it: whoever looks for the process on whose behalf this runs finds it.
    callers = [consumer | Process.get(:"$callers") || []]

    spawn_monitor(fn ->
      Process.put(:"$callers", callers)
      guard(self(), consumer)
      feed(enum, handle, ref, consumer)
    end)
  end

  defp guard(feeder, consumer) do
    spawn(fn ->
      feeding = Process.monitor(feeder)
      consuming = Process.monitor(consumer)

      receive do
        {:DOWN, ^feeding, :process, _, _} -> :ok
        {:DOWN, ^consuming, :process, _, _} -> Process.exit(feeder, :kill)
      end
    end)
  end

  defp feed(enum, handle, ref, consumer) do
    Enum.reduce_while(enum, :ok, fn data, :ok -> write(handle, IO.iodata_to_binary(data)) end)
    Native.close_stdin(handle)
  catch
    kind, reason -> send(consumer, {ref, :feed, kind, reason, __STACKTRACE__})
  end

  defp write(_handle, ""), do: {:cont, :ok}

  defp write(handle, data) do
    ref = make_ref()

    case Native.write(handle, data, ref) do
      :ok -> {:cont, :ok}
      :wait -> written(ref)
      {:error, :epipe} -> {:halt, :ok}
    end
  end

  defp written(ref) do
    receive do
      {^ref, :written} -> {:cont, :ok}
      {^ref, {:error, :epipe}} -> {:halt, :ok}
    end
  end
end
