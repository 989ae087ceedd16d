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

  # Looks, about a millisecond each. The core gives up on a stuck helper before that.
  @programs_deadline 20_000

  @typedoc "How to write, as `Stdio.Native.write/3` without the handle, to close, and to count."
  @type sink ::
          {(binary, reference -> :ok | :wait | {:error, :epipe}), (() -> term), (binary -> term)}

  @spec start(Enumerable.t(), sink, reference) :: {pid, reference}
  def start(enum, sink, ref) do
    consumer = self()
    # As Task does it: whoever looks for the process on whose behalf this runs finds it.
    callers = [consumer | Process.get(:"$callers") || []]

    spawn_monitor(fn ->
      Process.put(:"$callers", callers)
      guard(self(), consumer)
      feed(enum, sink, ref, consumer)
    end)
  end

  @doc "Ends it, if there is one; no message of it comes any more, and none is left."
  @spec stop({pid, reference} | nil, reference) :: :ok
  def stop(nil, ref), do: flush(ref)

  # Its end may have been seen already, so it is watched anew.
  def stop({pid, monitor}, ref) do
    Process.demonitor(monitor, [:flush])
    again = Process.monitor(pid)
    Process.exit(pid, :kill)

    receive do
      {:DOWN, ^again, :process, _, _} -> :ok
    end

    await_programs(pid, @programs_deadline)
    flush(ref)
  end

  # What the enumerable itself had been running, a stream in a stream, is not gone before its tree.
  defp await_programs(pid, left) do
    if left > 0 and Native.owned(pid) > 0 do
      Process.sleep(1)
      await_programs(pid, left - 1)
    end
  end

  defp flush(ref) do
    receive do
      {^ref, :feed, _kind, _reason, _stacktrace} -> :ok
    after
      0 -> :ok
    end
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

  defp feed(enum, {write, close, count}, ref, consumer) do
    # One for all: a write that has to wait is answered before the next one is made.
    answer = make_ref()

    Enum.reduce_while(enum, :ok, fn data, :ok ->
      data = IO.iodata_to_binary(data)
      written = write(write, data, answer)
      if written == {:cont, :ok}, do: count.(data)
      written
    end)

    close.()
  catch
    kind, reason -> send(consumer, {ref, :feed, kind, reason, __STACKTRACE__})
  end

  defp write(_write, "", _ref), do: {:cont, :ok}

  defp write(write, data, ref) do
    case write.(data, ref) do
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
