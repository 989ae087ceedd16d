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
  # and becomes the launcher with this privilege
  def launch(_privilege, _argv, _root_or_anyone), do: :erlang.nif_error(:nif_not_loaded)

  # whether the BEAM's effective user is root
  def root?, do: :erlang.nif_error(:nif_not_loaded)

  # stream.rs

  # {:ok, handle} | {:error, :launcher | posix | {:step, index, reason}}; spec.rs names the keys.
  # Both streams are armed.
  def spawn(_spec, _ref), do: :erlang.nif_error(:nif_not_loaded)
  def spawn_large(_spec, _ref), do: :erlang.nif_error(:nif_not_loaded)

  # {:ok, path} | {:error, posix}; the working directory of the BEAM
  def getcwd, do: :erlang.nif_error(:nif_not_loaded)

  # of a stream in hand: binary | :empty (armed now, unless :exit was sent, or it will be read again) | :eof
  def read(_handle, _stream, _again?), do: :erlang.nif_error(:nif_not_loaded)
  def readable(_handle, _stream), do: :erlang.nif_error(:nif_not_loaded)
  def close_outputs(_handle), do: :erlang.nif_error(:nif_not_loaded)

  # :ok | :wait | {:error, :epipe}
  def write(_handle, _binary, _ref), do: :erlang.nif_error(:nif_not_loaded)

  # :ok | {:error, :ebadf}
  def close_stdin(_handle), do: :erlang.nif_error(:nif_not_loaded)

  # how many programs a process owns, or owned when it died and which are not gone yet
  def owned(_pid), do: :erlang.nif_error(:nif_not_loaded)

  # :ok; :exit tells when it is done. Output is dropped from now on.
  def stop(_handle, _signal, _grace_ms), do: :erlang.nif_error(:nif_not_loaded)

  # task.rs; what a process answers comes as {ref, answer}:
  #
  #   {ref, {:ok, task}}   of task_root and task_fork
  #   {ref, {:done, steps, value | {:error, posix} | :undef, :same | {:state, value}}}
  #   {ref, :stopped}
  #
  # :ok | {:error, :esrch | :execed | posix | :launcher}
  # supervise: nil | {title, signaloneof, own filter, children's filter}
  # cgroup: whether its children are born into one of their own
  def task_root(_privilege, _environ, _supervise, _cgroup, _ref),
    do: :erlang.nif_error(:nif_not_loaded)

  def task_supervise(_task, _supervise, _ref), do: :erlang.nif_error(:nif_not_loaded)
  def task_fork(_task, _clone_flags, _ref), do: :erlang.nif_error(:nif_not_loaded)
  # birth: {{uid, gid} | nil, steps as of task_batch, supervise as of task_root}
  # {ref, {:ok, task}} | {ref, {:ok, task, guarded}}
  def task_birth(_task, _clone_flags, _birth, _ref), do: :erlang.nif_error(:nif_not_loaded)
  def task_batch(_task, _steps, _ref), do: :erlang.nif_error(:nif_not_loaded)
  # steps as of task_batch first
  def task_exec(_task, _steps, _program, _ref), do: :erlang.nif_error(:nif_not_loaded)
  def task_exec_large(_task, _steps, _program, _ref), do: :erlang.nif_error(:nif_not_loaded)

  # task_fork and task_exec in one; stream: {ref | nil, max_chunk, credit, {after, signal, grace} | nil} as of
  # task_hold; refs: {of the fork, of the exec}; the second may be answered too if the first is refused, before
  # it; {:error, :answered}: the second is, and nothing else has come of it
  def task_start(_task, _steps, _program, _stream, _refs), do: :erlang.nif_error(:nif_not_loaded)
  def task_filter(_task, _own, _children, _ref), do: :erlang.nif_error(:nif_not_loaded)
  def task_sigaction(_task, _signal, _handler, _ref), do: :erlang.nif_error(:nif_not_loaded)
  def task_forward(_task, _ref), do: :erlang.nif_error(:nif_not_loaded)
  def task_exit(_task, _status), do: :erlang.nif_error(:nif_not_loaded)
  def task_stop(_task, _ref), do: :erlang.nif_error(:nif_not_loaded)

  # of the task of a stream; {ref, :ended} comes to its owner, if a ref is given
  def task_hold(_task, _stream), do: :erlang.nif_error(:nif_not_loaded)
  def task_release(_task), do: :erlang.nif_error(:nif_not_loaded)
  def task_terminate(_task, _signal, _grace), do: :erlang.nif_error(:nif_not_loaded)
  def task_reap(_task, _ref), do: :erlang.nif_error(:nif_not_loaded)

  def task_info(_task), do: :erlang.nif_error(:nif_not_loaded)
  def task_same_tree(_task, _other), do: :erlang.nif_error(:nif_not_loaded)
  def task_usage(_task), do: :erlang.nif_error(:nif_not_loaded)
  def task_children(_task), do: :erlang.nif_error(:nif_not_loaded)
  def task_setopt(_task, _name, _value), do: :erlang.nif_error(:nif_not_loaded)
  def task_getopt(_task, _name), do: :erlang.nif_error(:nif_not_loaded)
  # whether what follows is allowed by the task's filter
  def task_allows(_task, _call), do: :erlang.nif_error(:nif_not_loaded)
  def task_carry(_task), do: :erlang.nif_error(:nif_not_loaded)
  # :cgroup | :pid_namespace | :best_effort
  def task_containment(_task), do: :erlang.nif_error(:nif_not_loaded)
  def task_setcpid(_task, _name, _value), do: :erlang.nif_error(:nif_not_loaded)
  def task_credit(_task, _chunks), do: :erlang.nif_error(:nif_not_loaded)
  def task_write(_task, _binary, _ref), do: :erlang.nif_error(:nif_not_loaded)
  def task_eof(_task, _stream), do: :erlang.nif_error(:nif_not_loaded)
  def task_controlling_process(_task, _pid), do: :erlang.nif_error(:nif_not_loaded)
  def task_stdio(_task, _pid), do: :erlang.nif_error(:nif_not_loaded)

  # of X_constant, errno_id and version: {:ok, value} | :undef | {:badarg, position}
  def query(_name, _arguments), do: :erlang.nif_error(:nif_not_loaded)

  # [{name, [{argument, shape}], how many of the last may be left out, documentation}]
  def calls, do: :erlang.nif_error(:nif_not_loaded)
end
