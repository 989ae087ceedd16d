defmodule Stdio.Native do
  @moduledoc false
  # The only NIF module; its functions stand in the order of the Rust files. None blocks a
  # scheduler. `handle` is a resource; `ref` a reference of the caller's, which tags every message
  # that comes of the call:
  #
  #   {ref, :started, os_pid}
  #   {ref, {:stdout | :stderr, chunk}}   of an armed stream, which is in hand from then on
  #   {ref, :exit, {:exit_status | :signal, n}, rusage, survivors}   the tree is gone, but for so
  #                                  many processes that could not be killed; both streams in hand
  #   {ref, :failed, place, posix}   instead of :started and :exit; place: :launcher, :supervisor, :fork,
  #                                  :setup, {:step, index}, :exec, and for a death in set-up
  #                                  {:signal | :exit_status, n}
  #   {ref, :written} | {ref, {:error, :epipe}}   to a writer that was told :wait

  @on_load :load

  def load do
    :stdio
    |> Application.app_dir("priv/native/stdio_nif")
    |> String.to_charlist()
    |> :erlang.load_nif(0)
  end

  # launcher.rs

  # :ok | {:error, {posix, what the helper said}}; dirty I/O, waits 5 s at most
  def launch(_argv), do: :erlang.nif_error(:nif_not_loaded)

  # stream.rs

  # {:ok, handle} | {:error, :launcher | posix | {:step, index, reason}}; spec.rs names the keys.
  # Both streams are armed.
  def spawn(_spec, _ref), do: :erlang.nif_error(:nif_not_loaded)
  def spawn_large(_spec, _ref), do: :erlang.nif_error(:nif_not_loaded)

  # {:ok, path} | {:error, posix}; the working directory of the BEAM
  def getcwd, do: :erlang.nif_error(:nif_not_loaded)

  # of a stream in hand: binary | :empty (armed now, unless :exit was sent) | :eof
  def read(_handle, _stream), do: :erlang.nif_error(:nif_not_loaded)
  def close_outputs(_handle), do: :erlang.nif_error(:nif_not_loaded)

  # :ok | :wait | {:error, :epipe}
  def write(_handle, _binary, _ref), do: :erlang.nif_error(:nif_not_loaded)

  # :ok | {:error, :ebadf}
  def close_stdin(_handle), do: :erlang.nif_error(:nif_not_loaded)

  # how many programs a process owns, or owned when it died and which are not gone yet
  def owned(_pid), do: :erlang.nif_error(:nif_not_loaded)

  # :ok; :exit tells when it is done. Output is dropped from now on.
  def stop(_handle, _signal, _grace_ms), do: :erlang.nif_error(:nif_not_loaded)
end
