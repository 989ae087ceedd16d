defmodule Stdio.Op do
  @moduledoc """
  Calls made in a new process before its program starts, as data.

  | op | is the call |
  |---|---|
  | `{fun, args}` | `Stdio.Task.fun(task, ...args)` |
  | `{module, fun, args}`, `{module, fun, args, opts}` | `module.fun(task, ...args)` |
  | `{fun, args, opts}` | as the first. `{a, b, c}` is read so when `b` and `c` are lists |
  | a list of ops | run in its place, as a level with a state of its own |

  The modules `:prx` and `:seccomp` are `Stdio.Task` and `Stdio.Seccomp`.

  | result | |
  |---|---|
  | `:ok` | the next op; the state is now `:ok` |
  | `{:ok, value}` | the next op; the state is now `value` |
  | a list | its ops are inserted before the remaining ones, in the same level |
  | `{:error, reason}` | no further op is run: `onerror`, then `Stdio.OpError` |
  | anything else, an exception, a throw, an exit | the same, with reason `:badop` |

  | option of an op | default | |
  |---|---|---|
  | `transform: fun/1` | | applied to what the call returned; the tables above and below are about what this gives |
  | `ignore: [posix]` | `[]` | these errors count as `:ok` |
  | `errexit: false` | `true` | any error is passed over, and the state stays as it is |
  | `state: true` | `false` | the call is `fun(state, task, ...args)` |

  The state of a level is `[]` at first. That of an inner level does not come out of it.

  Only calls that return one of the first four results need no `transform:`. Example: the user id
  decides what comes next.

      ops = [
        {:setsid, []},
        {:mkdir, ["/tmp/work", 0o700], ignore: [:eexist]},
        {:getuid, [], transform: fn 0 -> [{:setuid, [1000]}]; _ -> [] end},
        {:getcwd, []},
        {MyOps, :log_directory, [], state: true}
      ]

  Ops that need no Elixir are sent to the process several at a time; their results and errors are
  those of calls made one by one. A foreign module, `state: true` and `transform:` each cost a
  round trip.
  """

  require Logger

  alias Stdio.Op.Runner
  alias Stdio.OpError

  @type option ::
          {:state, boolean}
          | {:errexit, boolean}
          | {:ignore, [Stdio.posix()]}
          | {:transform, (term -> term)}

  @type op ::
          {fun :: atom, args :: [term]}
          | {fun :: atom, args :: [term], [option]}
          | {module, fun :: atom, args :: [term]}
          | {module, fun :: atom, args :: [term], [option]}
          | [op]

  @doc """
  Makes the tasks of a program under `supervisor` and runs `ops` in the last of them.

  `init` is called with the supervisor's task and gives the pipeline, which is returned; its last
  task is ready for exec. When a step after it fails, `onerror` is called once with that task.

  Raises `Stdio.OpError`: `init` failed or gave no task, the task is dead, or an op failed.
  """
  @spec task!(
          Stdio.t(),
          [op],
          (Stdio.Task.t() -> {:ok, Stdio.pipeline()} | {:error, Stdio.posix()}),
          (Stdio.Task.t() -> any)
        ) :: Stdio.pipeline()
  def task!(%Stdio{init: supervisor}, ops, init, onerror)
      when is_function(init, 1) and is_function(onerror, 1) do
    {pipeline, task} = fork!(init.(supervisor), init)

    with :ok <- alive(task),
         :ok <- Runner.run(task, ops) do
      pipeline
    else
      {:error, error} ->
        undo(task, onerror)
        raise error
    end
  end

  @doc false
  # As task!/4, with what follows for a stream: the last task is held as `stream` says, see task_hold of
  # Stdio.Native, and executes the program behind the ops, in one message with the last of them. If `init`
  # does no more than fork and all ops are one batch, that message is sent ahead of the fork.
  @spec exec!(Stdio.t(), [op], fun, fun, tuple, tuple) ::
          {:ok, Stdio.pipeline()} | {:error, Stdio.posix()}
  # Raises what it found if an op has filtered the exec.
  def exec!(%Stdio{init: supervisor}, ops, init, onerror, program, stream)
      when is_function(init, 1) and is_function(onerror, 1) do
    {pipeline, result} =
      case start(supervisor, ops, init, program, stream) do
        {:ok, task, pid, result} ->
          {[%{task: task, pid: pid}], result}

        {:error, reason} ->
          refused!(reason, init)

        :apart ->
          {pipeline, task} = fork!(init.(supervisor), init)
          {pipeline, exec(task, ops, program, stream)}
      end

    case result do
      :ok -> {:ok, pipeline}
      _ -> failed(result, pipeline, onerror)
    end
  end

  defp failed({_, reason}, pipeline, onerror) do
    undo(List.last(pipeline).task, onerror)
    # Those of a supervisor that others share are nobody else's to forget.
    for %{task: task} <- pipeline, do: Stdio.Task.__flush__(task)
    if is_exception(reason), do: raise(reason), else: {:error, reason}
  end

  defp start(supervisor, ops, init, program, stream) do
    if is_struct(supervisor, Stdio.Task) and init == (&Stdio.Syscall.__fork__/1),
      do: Runner.exec_ahead(ops, program, &Stdio.Task.__start__(supervisor, &1, program, stream)),
      else: :apart
  end

  defp exec(task, ops, program, stream) do
    with :ok <- alive(task) do
      Stdio.Native.task_hold(task.ref, stream)
      Runner.exec(task, ops, program)
    end
  end

  @doc false
  # Calls `onerror` with the last task of a start that failed. Its own failure must not hide what
  # went wrong first.
  @spec undo(Stdio.Task.t(), (Stdio.Task.t() -> any)) :: :ok
  def undo(task, onerror) do
    onerror.(task)
    :ok
  catch
    kind, payload ->
      Logger.error(
        "onerror of a Stdio behaviour failed: " <>
          Exception.format(kind, payload, __STACKTRACE__)
      )
  end

  defp fork!({:ok, []}, _init), do: raise(OpError.fork(:eagain))

  defp fork!({:error, reason}, init), do: refused!(reason, init)

  defp fork!({:ok, pipeline} = result, _init) when length(pipeline) > 0 do
    case List.last(pipeline) do
      %{task: task, pid: _} -> {pipeline, task}
      _ -> shape!(result)
    end
  end

  defp fork!(result, _init), do: shape!(result)

  @spec refused!(Stdio.posix(), fun) :: no_return
  defp refused!(reason, init) do
    raise reason |> OpError.fork() |> OpError.with_hint(hint(init, :__hint__, reason))
  end

  @doc false
  # Only the behaviour whose function failed knows what its errors mean; `hint` is its function that
  # says so.
  @spec hint(fun, atom, Stdio.posix()) :: String.t() | nil
  def hint(failed, hint, reason) do
    {:module, module} = Function.info(failed, :module)
    if function_exported?(module, hint, 1), do: apply(module, hint, [reason])
  end

  @spec shape!(term) :: no_return
  defp shape!(result) do
    raise ArgumentError,
          "the function that init/1 gives must return {:ok, [%{task: task, pid: os_pid}]} or " <>
            "{:error, posix}, got: #{inspect(result)}"
  end

  defp alive(task) do
    case Stdio.Task.pidof(task) do
      :noproc -> {:error, OpError.fork(:einval)}
      _ -> :ok
    end
  end
end
