defmodule Stdio.Test.Sink do
  @moduledoc false
  # A Collectable that tells a process what it gets: `:opened`, `{:data, data}`, `:done`, `:halted`.
  # `fun` is called with each piece of data first.

  @enforce_keys [:pid]
  defstruct [:pid, fun: &Function.identity/1]

  defimpl Collectable do
    def into(%{pid: pid, fun: fun} = sink) do
      send(pid, :opened)

      collect = fn
        sink, {:cont, data} ->
          fun.(data)
          send(pid, {:data, data})
          sink

        sink, :done ->
          send(pid, :done)
          sink

        _sink, :halt ->
          send(pid, :halted)
      end

      {sink, collect}
    end
  end
end
