defmodule Stdio.Task do
  @moduledoc """
  A process that makes system calls when asked to, until it becomes a program.

  A task is forked from the helper (`fork/0`: a root) or from another task. Each function below runs
  in that process, not in the BEAM, and affects it alone. `execve/4` and its kin turn it into a
  program.

      iex> {:ok, root} = Stdio.Task.fork()
      iex> {:ok, task} = Stdio.Task.fork(root)
      iex> :ok = Stdio.Task.chdir(task, "/tmp")
      iex> {:ok, "/tmp"} = Stdio.Task.getcwd(task)
      iex> :ok = Stdio.Task.execve(task, "/bin/echo", ["/bin/echo", "hi"], [])
      iex> receive do {:stdout, ^task, output} -> output end
      "hi\\n"
      iex> receive do {:exit_status, ^task, status} -> status end
      0
      iex> Stdio.Task.stop(root)
      :ok

  ## Messages

  | message | when |
  |---|---|
  | `{:stdout, task, binary}`, `{:stderr, task, binary}` | it writes; at most 65536 bytes |
  | `{:exit_status, task, 0..255}`, `{:termsig, task, signal}` | it ended: exactly one of the two, last |
  | `{:signal, task, signal, siginfo}` | it got a signal whose handler is `:sig_info` |

  They go to its owner, which is the process that forked it (see `controlling_process/2`, `stdio/2`).
  When the owner dies, the process and everything below it is killed.

  ## Failures

  | failure | result |
  |---|---|
  | the operating system refuses; a constant is unknown | `{:error, posix}`; `{:error, :enotsup}` |
  | an argument has the wrong type or range, or a NUL byte | ArgumentError, and nothing was sent |
  | the call is filtered, or not to be had on this system | UndefinedFunctionError |
  | the process is a program by now | ErlangError, `original: :eacces` |
  | the process is dead | `{:error, :esrch}`, unless the function says otherwise |

  No call ever exits, links to or kills its caller. Any process may call; calls on one task are
  made in the order of their arrival.
  """

  alias Stdio.{Launcher, Native, Signal}

  @enforce_keys [:ref]
  defstruct [:ref]

  defguardp is_proper(list) when length(list) >= 0
  defguardp is_int32(number) when number in -0x8000_0000..0x7FFF_FFFF

  @typedoc "Opaque; two handles of one process are equal. Valid on the node that made it."
  @type t :: %__MODULE__{ref: reference}
  @type os_pid :: pos_integer
  @type posix :: atom
  @type const :: atom | integer
  @typedoc "Environment entries, `KEY=value` each."
  @type env :: [iodata]
  @type stream :: :stdin | :stdout | :stderr
  @typedoc "Calls that are denied, or all that are allowed; `[]`: as it is."
  @type filter :: [atom] | {:allow | :deny, [atom]}

  @typep step :: {atom, [term], [posix], boolean}
  @typep exec_answer ::
           {:exec, :ok | {:error, posix} | {:raised, Exception.t()}}
           | {:ok, non_neg_integer, :same | {:state, term}}
           | {:stop, non_neg_integer, term, :same | {:state, term}}

  @max_chunk 65_536
  # Of a program that runs; after which it is given up on. ms.
  @stop_deadline 15_000
  # In place of the number of steps: the process died with the exec still to come.
  @died 0xFFFF_FFFF

  ## Life cycle

  # Of a root: what was forked ahead may be dying, one after the other, and their launcher with them.
  @tries 5

  @doc """
  A new root: a supervisor process that has no program yet. The caller becomes its owner.

  `{:error, posix}` if the helper cannot be started.
  """
  @spec fork() :: {:ok, t} | {:error, posix}
  def fork, do: root(Launcher.privilege(), nil, false, @tries)

  @doc false
  # A root that is a supervisor from the start. One message, as __supervise__/3 is.
  # `cgroup`: its tree lives in one of its own.
  @spec __supervisor__(binary, filter, boolean) :: {:ok, t} | {:error, posix}
  def __supervisor__(title, filter, cgroup),
    do: root(Launcher.privilege(), supervise_spec(title, filter), cgroup, @tries)

  @doc false
  # The steps of Stdio.supervise/3 on Linux.
  @spec __supervise__(t, binary, filter) :: :ok | {:error, posix}
  def __supervise__(%__MODULE__{} = task, title, filter) do
    ref = make_ref()

    case Native.task_supervise(task.ref, supervise_spec(title, filter), ref) do
      :ok -> ref |> await_done() |> result({:filter, [task, filter, []]})
      other -> result(other, {:filter, [task, filter, []]})
    end
  end

  # :signaloneof 9
  defp supervise_spec(title, filter), do: {title, 9, filter_spec(filter), :unchanged}

  defp root(_privilege, _supervise, _cgroup, 0), do: {:error, :eagain}

  defp root(privilege, supervise, cgroup, tries) do
    ref = make_ref()

    environ = Stdio.Config.Environ.inherited()
    asked = Native.task_root(privilege, environ, supervise, cgroup, ref)

    case if(asked == :ok, do: await_task(ref), else: asked) do
      {:ok, task} ->
        {:ok, limited(task)}

      # One number on Linux, with this name.
      {:error, :eopnotsupp} ->
        {:error, :enotsup}

      # `:esrch`: the one that was forked ahead has died meanwhile.
      {:error, reason} when reason in [:launcher, :epipe, :econnreset, :esrch] ->
        case Launcher.ensure(privilege) do
          :ok -> root(privilege, supervise, cgroup, tries - 1)
          {:error, {reason, _hint}} -> {:error, reason}
        end

      {:error, reason} ->
        {:error, reason}
    end
  end

  # The application's, which all that is forked from it inherits.
  defp limited(task) do
    for name <- [:maxchild, :maxforkdepth],
        value = Application.get_env(:stdio, name),
        do: Native.task_setopt(task.ref, Atom.to_string(name), value)

    task
  end

  @doc """
  Puts `sudo -n` (OpenBSD: `doas`) in front of the helper that later roots are forked by, so that
  they run as root; see `Stdio.setuid/0`.
  """
  @spec sudo() :: :ok
  def sudo, do: Launcher.put_privilege(Launcher.default_prefix())

  @doc """
  Any other command, words separated by blanks; `""` is none. For the whole BEAM, and for roots that
  are forked from now on: those that there are stay what they are.

      Stdio.Task.sudo("sudo -n -u deploy")
  """
  @spec sudo(iodata) :: :ok
  def sudo(prefix), do: prefix |> text!() |> Launcher.put_privilege()

  @doc """
  A child of `task`. The caller becomes its owner, whoever owns the parent. fork(2)

  `{:error, :eagain}` over the parent's `:maxchild` or `:maxforkdepth`.
  """
  @spec fork(t) :: {:ok, t} | {:error, posix}
  def fork(%__MODULE__{} = task), do: new(task, 0, {:fork, [task]})
  def fork(task), do: wrong!(:fork, [task])

  @doc "A child in new namespaces: `:clone_newpid` and its kin, in any letter case. clone(2), Linux"
  @spec clone(t, integer | [const]) :: {:ok, t} | {:error, posix}
  def clone(%__MODULE__{} = task, flags) do
    case clone_flags(flags) do
      {:ok, flags} -> new(task, flags, {:clone, [task, flags]})
      :error -> {:error, :enotsup}
    end
  end

  def clone(task, flags), do: wrong!(:clone, [task, flags])

  @doc false
  # A clone in a user namespace, in which its parent's user and group have these ids; with `nil` they
  # have their own, and root gets no user namespace. The child runs `ops` first, all of which have to
  # go well. With a `title` and `filter` it then becomes a supervisor, as by __supervise__/3, and forks the
  # second task. One message.
  @spec __birth__(
          t,
          [const],
          {non_neg_integer, non_neg_integer} | nil,
          [{atom, [term]}],
          {binary, filter} | nil
        ) :: {:ok, t} | {:ok, t, t} | {:error, posix}
  def __birth__(%__MODULE__{} = task, flags, ids, ops, supervise) do
    steps = for {name, arguments} <- ops, do: {name, arguments, [], true}
    supervise = with {title, filter} <- supervise, do: supervise_spec(title, filter)

    case clone_flags(flags) do
      {:ok, flags} -> born(task, flags, {ids, steps, supervise}, {:clone, [task, flags]})
      :error -> {:error, :enotsup}
    end
  end

  defp born(task, flags, birth, call) do
    ref = make_ref()

    case Native.task_birth(task.ref, flags, birth, ref) do
      :ok -> ref |> await_task() |> result(call)
      other -> result(other, call)
    end
  end

  defp clone_flags(flags) when is_integer(flags) and flags >= 0, do: {:ok, flags}

  defp clone_flags(flags) when is_proper(flags) do
    Enum.reduce_while(flags, {:ok, 0}, fn flag, {:ok, sum} ->
      case clone_flag(flag) do
        number when is_integer(number) -> {:cont, {:ok, Bitwise.bor(sum, number)}}
        :unknown -> {:halt, :error}
      end
    end)
  end

  defp clone_flags(flags),
    do: raise(ArgumentError, "flags must be an integer or a list, not #{inspect(flags)}")

  defp clone_flag(number) when is_integer(number), do: number

  defp clone_flag(name) when is_atom(name) do
    {:ok, number} = Native.query(:clone_constant, [name])
    number
  end

  defp clone_flag(other),
    do: raise(ArgumentError, "not an atom or an integer: #{inspect(other)}")

  defp new(task, flags, call) do
    ref = make_ref()

    case Native.task_fork(task.ref, flags, ref) do
      :ok -> ref |> await_task() |> result(call)
      other -> result(other, call)
    end
  end

  defp await_task(ref) do
    receive do
      {^ref, {:ok, task}} -> {:ok, task}
      {^ref, {:ok, task, guarded}} -> {:ok, task, guarded}
      {^ref, {:done, _, result, _}} -> result
    end
  end

  @doc """
  Turns the task into a program; the path is `argv`'s head. execve(2)

  `{:error, :eacces}` while it has live children. The program starts with descriptors 0-2 alone,
  an empty signal mask and default dispositions, except for signals set to `:sig_ign` on purpose.
  """
  @spec execve(t, [iodata, ...], env) :: :ok | {:error, posix}
  def execve(%__MODULE__{} = task, [path | _] = argv, env) do
    program = {:path, path!(path), texts!(argv), texts!(env)}
    exec(task, program, {:execve, [task, argv, env]})
  end

  def execve(task, argv, env), do: wrong!(:execve, [task, argv, env])

  @doc "As `execve/3`, with the path apart: `argv`'s head is what the program sees as its name."
  @spec execve(t, iodata, [iodata], env) :: :ok | {:error, posix}
  def execve(%__MODULE__{} = task, path, argv, env) do
    program = {:path, path!(path), texts!(argv), texts!(env)}
    exec(task, program, {:execve, [task, path, argv, env]})
  end

  def execve(task, path, argv, env), do: wrong!(:execve, [task, path, argv, env])

  @doc """
  As `execve/4`, with `file` looked up along PATH of the task's environment, which is also the
  program's. execvp(3)
  """
  @spec execvp(t, [iodata, ...]) :: :ok | {:error, posix}
  def execvp(%__MODULE__{} = task, [file | _] = argv),
    do: exec(task, {:search, text!(file), texts!(argv)}, {:execvp, [task, argv]})

  def execvp(task, argv), do: wrong!(:execvp, [task, argv])

  @doc "As `execvp/2`, with the file apart."
  @spec execvp(t, iodata, [iodata]) :: :ok | {:error, posix}
  def execvp(%__MODULE__{} = task, file, argv),
    do: exec(task, {:search, text!(file), texts!(argv)}, {:execvp, [task, file, argv]})

  def execvp(task, file, argv), do: wrong!(:execvp, [task, file, argv])

  @doc """
  Executes what an open descriptor names. It is closed in the program, so a `#!` script cannot be
  run this way. fexecve(3), Linux and FreeBSD
  """
  @spec fexecve(t, non_neg_integer, [iodata], env) :: :ok | {:error, posix}
  def fexecve(%__MODULE__{} = task, fd, argv, env) when is_int32(fd) do
    exec(task, {:descriptor, fd, texts!(argv), texts!(env)}, {:fexecve, [task, fd, argv, env]})
  end

  def fexecve(task, fd, argv, env), do: wrong!(:fexecve, [task, fd, argv, env])

  @doc false
  # The exec of a stream, with which the last steps of its ops travel. As __batch__/2; `{:exec, result}`
  # once all of them went well. `:raised`: an op has filtered it.
  @spec __exec__(t, [step], tuple) :: exec_answer
  def __exec__(%__MODULE__{} = task, calls, program) do
    ref = make_ref()

    case native_exec(task, calls, program, ref) do
      :ok ->
        await_exec(ref, length(calls))

      result when calls == [] ->
        {:exec, exec_result(result)}

      {:error, {:step, _, _}} ->
        __batch__(task, calls)

      # Made by itself, each of them raises.
      {:error, :execed} ->
        {:ok, 0, :same}

      {:error, reason} ->
        {:stop, 0, {:error, reason}, :same}
    end
  end

  defp await_exec(ref, size) do
    receive do
      {^ref, {:done, _, :ok, :same}} -> {:exec, :ok}
      {^ref, {:done, @died, error, :same}} -> {:exec, error}
      {^ref, {:done, ^size, result, _state}} -> {:exec, exec_result(result)}
      {^ref, {:done, done, :undef, state}} -> {:ok, done, state}
      {^ref, {:done, done, result, state}} -> {:stop, done, result, state}
    end
  end

  @doc false
  # fork/1, a hold and __exec__/3 in one step: the child finds its steps and its program as it is born. The
  # pid is that of a child which may have ended by now. `:apart`: they are to be made one by one; nothing
  # is left of the attempt.
  @spec __start__(t, [step], tuple, tuple) ::
          {:ok, t, os_pid, exec_answer} | {:error, posix} | :apart
  def __start__(%__MODULE__{} = task, calls, program, stream) do
    {forked, execed} = refs = {make_ref(), make_ref()}

    case not large?(program) && Native.task_start(task.ref, calls, program, stream, refs) do
      :ok ->
        with {:ok, child} <- await_task(forked) do
          answer = await_exec(execed, length(calls))
          {pid, _parent, _pipeline, _execed, _alive} = Native.task_info(child.ref)
          {:ok, child, pid, answer}
        else
          refused ->
            receive do: ({^execed, _} -> :ok), after: (0 -> :ok)
            result(refused, {:fork, [task]})
        end

      {:error, :answered} ->
        receive do: ({^execed, _} -> :apart)

      _ ->
        :apart
    end
  end

  # An op has turned the task into a program already.
  defp exec_result({:error, :execed}), do: {:error, :eacces}

  defp exec_result(:undef),
    do: {:raised, %UndefinedFunctionError{module: __MODULE__, function: :execve, arity: 4}}

  defp exec_result(result), do: result

  @doc false
  # SIGKILL to all that is below the task, until nothing is.
  @spec __reap__(t) :: :ok | {:error, posix}
  def __reap__(%__MODULE__{} = task) do
    ref = make_ref()

    case Native.task_reap(task.ref, ref) do
      :ok -> await_done(ref)
      {:error, _} = error -> error
    end
  end

  defp exec(task, program, call) do
    ref = make_ref()

    case native_exec(task, [], program, ref) do
      :ok -> ref |> await_done() |> result(call)
      other -> result(other, call)
    end
  end

  defp native_exec(task, calls, program, ref) do
    if large?(program),
      do: Native.task_exec_large(task.ref, calls, program, ref),
      else: Native.task_exec(task.ref, calls, program, ref)
  end

  # From here on copying arguments and environment takes a while: dirty I/O.
  defp large?(program), do: :erlang.external_size(program) > 64 * 1024

  defp text!(text) do
    case Stdio.Config.Text.iodata(text) do
      {:ok, binary} -> binary
      {:error, _} -> raise ArgumentError, "not iodata without a NUL byte: #{inspect(text)}"
    end
  end

  defp path!(path) do
    case text!(path) do
      "" -> raise ArgumentError, "an empty path: #{inspect(path)}"
      path -> path
    end
  end

  defp texts!(list) when is_proper(list), do: Enum.map(list, &text!/1)
  defp texts!(other), do: raise(ArgumentError, "not a list: #{inspect(other)}")

  @doc """
  The task ends by itself, with this status (its lowest eight bits). exit(3)

  `{:error, :eacces}` while it has live children.
  """
  @spec exit(t, integer) :: :ok | {:error, posix}
  def exit(%__MODULE__{} = task, status) when is_integer(status) do
    allowed!(task, {:exit, [task, status]})
    result(Native.task_exit(task.ref, Bitwise.band(status, 255)), {:exit, [task, status]})
  end

  def exit(task, status), do: wrong!(:exit, [task, status])

  @doc """
  Ends the process and everything below it with SIGKILL; of a root, its whole tree.

  Returns when they are gone. Any process may call it, any number of times, and gets no event of
  them from then on.
  """
  @spec stop(t) :: :ok
  def stop(%__MODULE__{} = task) do
    ref = make_ref()
    :ok = Native.task_stop(task.ref, ref)

    receive do
      {^ref, :stopped} -> :ok
    after
      @stop_deadline -> :ok
    end
  end

  def stop(task), do: wrong!(:stop, [task])

  @doc """
  Hands the task over to another process, which gets all its events from now on.

  `{:error, :eacces}` unless the caller owns it; `{:error, :badarg}` for a dead or remote process.
  """
  @spec controlling_process(t, pid) :: :ok | {:error, :eacces | :badarg | :esrch}
  def controlling_process(%__MODULE__{} = task, pid) when node(pid) == node(),
    do: Native.task_controlling_process(task.ref, pid)

  def controlling_process(%__MODULE__{}, pid) when is_pid(pid), do: {:error, :badarg}
  def controlling_process(task, pid), do: wrong!(:controlling_process, [task, pid])

  @doc "Sends output and the terminal event to `pid`; back to the owner when `pid` dies."
  @spec stdio(t, pid) :: :ok | {:error, :badarg | :esrch}
  def stdio(%__MODULE__{} = task, pid) when node(pid) == node(),
    do: Native.task_stdio(task.ref, pid)

  def stdio(%__MODULE__{}, pid) when is_pid(pid), do: {:error, :badarg}
  def stdio(task, pid), do: wrong!(:stdio, [task, pid])

  @doc """
  Writes to the standard input. Returns when all is written or queued (64 KiB at most), and blocks
  the caller until then.

  `{:error, :epipe}`: the reader is gone, the task is dead, or its stdin was closed.
  """
  @spec stdin(t, iodata) :: :ok | {:error, :epipe}
  def stdin(%__MODULE__{} = task, data) do
    ref = make_ref()

    case Native.task_write(task.ref, IO.iodata_to_binary(data), ref) do
      :wait ->
        receive do
          {^ref, :written} -> :ok
          {^ref, {:error, :epipe}} -> {:error, :epipe}
        end

      result ->
        result
    end
  end

  def stdin(task, data), do: wrong!(:stdin, [task, data])

  @doc """
  Closes our end of a standard stream; of `:stdin`, after everything accepted was written.

  `{:error, :ebadf}`: it was closed already.
  """
  @spec eof(t, stream | t | os_pid) :: :ok | {:error, :ebadf | :esrch}
  def eof(task, stream \\ :stdin)

  def eof(%__MODULE__{} = task, stream) when stream in [:stdin, :stdout, :stderr],
    do: Native.task_eof(task.ref, stream)

  def eof(parent, child), do: eof(parent, child, :stdin)

  @doc "As `eof/2`, by the parent and the child's task or process id; `{:error, :esrch}`: none such."
  @spec eof(t, t | os_pid, stream) :: :ok | {:error, :ebadf | :esrch}
  def eof(%__MODULE__{} = parent, child, stream)
      when stream in [:stdin, :stdout, :stderr] and
             (is_struct(child, __MODULE__) or is_int32(child)) do
    case Enum.find(children(parent), &child?(&1, child)) do
      nil -> {:error, :esrch}
      {ref, _map} -> Native.task_eof(ref, stream)
    end
  end

  def eof(parent, child, stream), do: wrong!(:eof, [parent, child, stream])

  ## Introspection

  @doc "The process id as its parent sees it; of a root, the helper's. `:noproc` when it is dead."
  @spec pidof(t) :: os_pid | :noproc
  def pidof(%__MODULE__{} = task) do
    case Native.task_info(task.ref) do
      {pid, _parent, _pipeline, _execed, true} when is_integer(pid) -> pid
      _ -> :noproc
    end
  end

  def pidof(task), do: wrong!(:pidof, [task])

  @doc "The task that forked it; `:noproc` for a root and for a dead task."
  @spec parent(t) :: t | :noproc
  def parent(%__MODULE__{} = task) do
    case Native.task_info(task.ref) do
      {_pid, parent, _pipeline, _execed, true} when is_reference(parent) ->
        %__MODULE__{ref: parent}

      _ ->
        :noproc
    end
  end

  def parent(task), do: wrong!(:parent, [task])

  @doc "The process ids from the root's child down to it; `[]` for a root and for a dead task."
  @spec pipeline(t) :: [os_pid]
  def pipeline(%__MODULE__{} = task) do
    case Native.task_info(task.ref) do
      {_pid, _parent, pipeline, _execed, true} -> pipeline
      _ -> []
    end
  end

  def pipeline(task), do: wrong!(:pipeline, [task])

  @doc "Whether it is a program by now; `false` when it is dead."
  @spec execed(t) :: boolean
  def execed(%__MODULE__{} = task) do
    {_pid, _parent, _pipeline, execed, alive} = Native.task_info(task.ref)
    execed and alive
  end

  def execed(task), do: wrong!(:execed, [task])

  @doc """
  What it used, with the descendants it waited for, once it has ended; `nil` before. getrusage(2)
  """
  @spec rusage(t) :: map | nil
  def rusage(%__MODULE__{} = task) do
    case Native.task_usage(task.ref) do
      nil -> nil
      values -> Stdio.Rusage.new(values)
    end
  end

  def rusage(task), do: wrong!(:rusage, [task])

  @doc "Its live children."
  @spec cpid(t) :: [map] | {:error, :esrch}
  def cpid(%__MODULE__{} = task) do
    in_call_mode!(task, {:cpid, [task]})

    if pidof(task) == :noproc,
      do: {:error, :esrch},
      else: for({_ref, map} <- children(task), do: map)
  end

  def cpid(task), do: wrong!(:cpid, [task])

  @doc "One of its live children, by its task or process id; `:error` if it has none such."
  @spec cpid(t, t | os_pid) :: map | :error | {:error, :esrch}
  def cpid(%__MODULE__{} = task, child) do
    in_call_mode!(task, {:cpid, [task, child]})
    if pidof(task) == :noproc, do: {:error, :esrch}, else: find_child(task, child)
  end

  def cpid(task, child), do: wrong!(:cpid, [task, child])

  defp find_child(task, child) do
    case Enum.find(children(task), &child?(&1, child)) do
      nil -> :error
      {_ref, map} -> map
    end
  end

  defp children(task), do: task.ref |> Native.task_children() |> Enum.map(&child/1)

  # The descriptors are markers: open or closed. -2: it has executed.
  defp child({ref, pid, execed, {stdin, stdout, stderr}, credit, signaloneof}) do
    mark = fn open, number -> if open, do: number, else: -1 end

    {ref,
     %{
       pid: pid,
       exec: execed,
       fdctl: if(execed, do: -2, else: 3),
       stdin: mark.(stdin, 0),
       stdout: mark.(stdout, 1),
       stderr: mark.(stderr, 2),
       flowcontrol: credit,
       signaloneof: signaloneof
     }}
  end

  defp child?({ref, _map}, %__MODULE__{ref: wanted}), do: ref == wanted
  defp child?({_ref, %{pid: pid}}, %{pid: wanted}), do: pid == wanted
  defp child?({_ref, %{pid: pid}}, wanted), do: pid == wanted

  @doc """
  Sets an option; `false` if it is unknown, refused or the task is dead. Children inherit them.

  | option | default | |
  |---|---|---|
  | `:maxchild`, `:maxforkdepth` | 65536, 128 | limits of live children and of generations |
  | `:exit_status`, `:termsig` | 1 | 0: that event of its children is not sent |
  | `:flowcontrol` | -1 | credit that later children start with; -1: unlimited |
  | `:signaloneof` | 15 | sent to the children's groups when the task's owner is gone |
  """
  @spec setopt(t, const, integer) :: boolean
  def setopt(%__MODULE__{} = task, option, value) when is_atom(option) and is_integer(value) do
    name = key(option)

    if value < 0 and name != "flowcontrol" do
      raise ArgumentError, "the option #{option} takes no negative value"
    end

    in_call_mode!(task, {:setopt, [task, option, value]})
    Native.task_setopt(task.ref, name, value)
  end

  def setopt(task, option, value), do: wrong!(:setopt, [task, option, value])

  @doc "An option's value; `false` if it is unknown or the task is dead."
  @spec getopt(t, const) :: integer | false
  def getopt(%__MODULE__{} = task, option) when is_atom(option) do
    in_call_mode!(task, {:getopt, [task, option]})
    Native.task_getopt(task.ref, key(option))
  end

  def getopt(task, option), do: wrong!(:getopt, [task, option])

  @doc """
  Sets `:flowcontrol` (the credit itself) or `:signaloneof` of a child. `false` for a root, a dead
  task, another option. It is the parent's filter that has to allow it.
  """
  @spec setcpid(t, const, integer) :: boolean
  def setcpid(%__MODULE__{} = child, option, value) when is_atom(option) and is_integer(value) do
    with %__MODULE__{} = parent <- parent(child),
         do: allowed!(parent, {:setcpid, [parent, child, option, value]})

    Native.task_setcpid(child.ref, key(option), value)
  end

  def setcpid(child, option, value), do: wrong!(:setcpid, [child, option, value])

  @doc "As `setcpid/3`, by the parent and the child's task, process id or `cpid/2` map."
  @spec setcpid(t, t | os_pid | map, const, integer) :: boolean
  def setcpid(%__MODULE__{} = parent, child, option, value)
      when is_atom(option) and is_integer(value) do
    case Enum.find(children(parent), &child?(&1, child)) do
      nil -> false
      {ref, _map} -> setcpid(%__MODULE__{ref: ref}, option, value)
    end
  end

  def setcpid(parent, child, option, value),
    do: wrong!(:setcpid, [parent, child, option, value])

  @doc "A value of a child's `cpid/2` map; `false` if there is none."
  @spec getcpid(t, const) :: term
  def getcpid(%__MODULE__{} = child, key) when is_atom(key) do
    case parent(child) do
      :noproc -> false
      parent -> getcpid(parent, child, key)
    end
  end

  def getcpid(child, key), do: wrong!(:getcpid, [child, key])

  @doc "As `getcpid/2`, by the parent."
  @spec getcpid(t, t | os_pid, const) :: term
  def getcpid(%__MODULE__{} = parent, child, key) when is_atom(key) do
    allowed!(parent, {:getcpid, [parent, child, key]})

    case find_child(parent, child) do
      %{} = map -> Enum.find_value(map, false, fn {k, v} -> "#{k}" == key(key) and v end)
      _ -> false
    end
  end

  def getcpid(parent, child, key), do: wrong!(:getcpid, [parent, child, key])

  @doc "Adds `n` chunks to the credit; no effect when it is unlimited. `false` for a dead task."
  @spec credit(t, pos_integer) :: boolean
  def credit(%__MODULE__{} = task, n) when is_integer(n) and n >= 1,
    do: Native.task_credit(task.ref, n)

  def credit(task, n), do: wrong!(:credit, [task, n])

  defp key(atom), do: atom |> Atom.to_string() |> String.downcase()

  # These calls are answered here, without asking the process.
  defp allowed!(task, {name, _arguments} = call),
    do: Native.task_allows(task.ref, Atom.to_string(name)) || undefined(call)

  # As the calls that are made in the process, which a program does not make.
  defp in_call_mode!(task, call) do
    allowed!(task, call)
    if execed(task), do: result({:error, :execed}, call)
  end

  ## Restrictions and signals

  @doc "`filter(task, calls, calls)`"
  @spec filter(t, filter) :: :ok | {:error, posix}
  def filter(task, calls), do: filter(task, calls, calls)

  @doc """
  Restricts what the task, and what its later children, may be asked for.

  A list denies these calls, `{:allow, list}` everything else, `[]` changes nothing. Restrictions
  only grow. A call that is filtered raises UndefinedFunctionError.
  """
  @spec filter(t, filter, filter) :: :ok | {:error, posix}
  def filter(%__MODULE__{} = task, calls, subprocess_calls) do
    ref = make_ref()
    own = filter_spec(calls)
    children = filter_spec(subprocess_calls)
    call = {:filter, [task, calls, subprocess_calls]}

    case Native.task_filter(task.ref, own, children, ref) do
      :ok -> ref |> await_done() |> result(call)
      other -> result(other, call)
    end
  end

  def filter(task, calls, subprocess_calls), do: wrong!(:filter, [task, calls, subprocess_calls])

  defp filter_spec([]), do: :unchanged

  defp filter_spec({:allow, names}) when is_proper(names),
    do: {:allow, Enum.map(names, &Atom.to_string/1)}

  defp filter_spec({:deny, names}) when is_proper(names) do
    unknown = Enum.reject(names, &(&1 in filterable()))

    if unknown != [] do
      raise ArgumentError, "unknown calls in a deny filter: #{inspect(unknown)}"
    end

    {:deny, Enum.map(names, &Atom.to_string/1)}
  end

  defp filter_spec(names) when is_proper(names), do: filter_spec({:deny, names})

  defp filter_spec(other),
    do:
      raise(
        ArgumentError,
        "not a list of calls, {:allow, list} or {:deny, list}: #{inspect(other)}"
      )

  @doc """
  Sets what the task does with a signal; `{:ok, previous}`. sigaction(2)

  | handler | |
  |---|---|
  | `:sig_dfl`, `:sig_ign` | as usual; an ignored signal stays ignored in the program |
  | `:sig_info` | the owner gets `{:signal, task, name, siginfo}`; the default of a fresh task |
  | `:forward` | every living descendant gets it, once |
  | `[]`, `""` | nothing: asks only |

  `{:error, :einval}` for SIGKILL and SIGSTOP.
  """
  @spec sigaction(t, const, atom | [] | binary) :: {:ok, atom} | {:error, posix}
  def sigaction(%__MODULE__{} = task, signal, handler) do
    with {:ok, signal} <- signal(signal), {:ok, handler} <- handler(handler) do
      ref = make_ref()
      call = {:sigaction, [task, signal, handler]}

      case Native.task_sigaction(task.ref, signal, handler, ref) do
        :ok -> ref |> await_done() |> result(call)
        other -> result(other, call)
      end
    end
  end

  def sigaction(task, signal, handler), do: wrong!(:sigaction, [task, signal, handler])

  @doc false
  # The handlers of a supervisor, in one step.
  @spec __forward__(t) :: :ok | {:error, posix}
  def __forward__(%__MODULE__{} = task) do
    ref = make_ref()

    case Native.task_forward(task.ref, ref) do
      :ok -> ref |> await_done() |> result({:sigaction, [task]})
      other -> result(other, {:sigaction, [task]})
    end
  end

  defp signal(signal) when is_integer(signal), do: {:ok, signal}

  defp signal(signal) when is_atom(signal) do
    if Signal.valid?(signal), do: {:ok, Signal.signal_number!(signal)}, else: {:error, :enotsup}
  end

  defp signal(other), do: raise(ArgumentError, "not a signal: #{inspect(other)}")

  defp handler(empty) when empty in [[], ""], do: {:ok, nil}

  defp handler(handler) when is_atom(handler) do
    case key(handler) do
      "sig_dfl" -> {:ok, :sig_dfl}
      "sig_ign" -> {:ok, :sig_ign}
      "sig_info" -> {:ok, :sig_info}
      "forward" -> {:ok, :forward}
      _ -> {:error, :enotsup}
    end
  end

  defp handler(other), do: raise(ArgumentError, "not a handler: #{inspect(other)}")

  ## Calls

  # The table is made from there.
  @external_resource "native/protocol/src/call.rs"
  @calls Native.calls()
  @by_hand ~w(fork clone execve execvp fexecve exit filter sigaction setopt getopt setcpid getcpid cpid)a

  # Not filtered, as they work on a program too.
  @in_the_beam ~w(pidof parent pipeline execed stdin eof stop credit controlling_process stdio)a ++
                 ~w(rusage cmd sh)a

  # Of other systems: denied there, a filter for all of them may name them here too.
  @elsewhere ~w(procctl jail jail_attach jail_remove cap_enter cap_getmode cap_rights_limit)a ++
               ~w(cap_fcntls_limit cap_fcntls_get cap_ioctls_limit pledge unveil)a

  defp filterable,
    do: @by_hand ++ @elsewhere ++ for({name, _, _, _} <- @calls, do: String.to_atom(name))

  for {name, arguments, optional, doc} <- @calls,
      arity <- (length(arguments) - optional)..length(arguments) do
    function = String.to_atom(name)
    taken = Enum.take(arguments, arity)
    variables = for {argument, _} <- taken, do: Macro.var(String.to_atom(argument), nil)
    shapes = Enum.map_join(taken, fn {argument, shape} -> "\n- `#{argument}`: #{shape}" end)
    types = Enum.map(taken, fn _ -> {:term, [], []} end)

    @doc String.trim(doc) <> "\n" <> shapes
    @spec unquote(function)(t, unquote_splicing(types)) :: term
    def unquote(function)(%__MODULE__{} = task, unquote_splicing(variables)),
      do: request(task, unquote(function), unquote(variables))

    def unquote(function)(task, unquote_splicing(variables)),
      do: wrong!(unquote(function), [task | unquote(variables)])
  end

  @doc """
  Makes a call by its name; raises UndefinedFunctionError if there is none such.

  Three are here only. `:X_constant` with `[name]` is a number, or `:unknown`, where X is `cap`,
  `clone`, `fcntl`, `file`, `ioctl`, `mount`, `prctl`, `ptrace`, `rlimit`, `seccomp`, `signal` or
  `syscall`; `:errno_id` with `[number]` is an atom; `:version` is that of the library and, behind
  `+`, of the messages it and the helper understand.

      iex> {:ok, task} = Stdio.Task.fork()
      iex> Stdio.Task.call(task, :errno_id, [2])
      :enoent
      iex> Stdio.Task.call(task, :signal_constant, [:sigterm])
      15
      iex> Stdio.Task.stop(task)
      :ok
  """
  @spec call(t, atom, [term]) :: term
  def call(%__MODULE__{} = task, name, arguments) when is_atom(name) and is_proper(arguments) do
    if name in @by_hand or name in @in_the_beam,
      do: apply(__MODULE__, name, [task | arguments]),
      else: query(task, name, arguments)
  end

  def call(task, name, arguments), do: wrong!(:call, [task, name, arguments])

  # Constants are known in the BEAM, and yet asked of a process that serves calls.
  defp query(task, name, arguments) do
    case Native.query(name, arguments) do
      {:ok, value} -> served(task, value)
      {:badarg, _} -> raise ArgumentError, "#{name}: wrong argument in #{inspect(arguments)}"
      :undef -> request(task, name, arguments)
    end
  end

  defp served(task, value) do
    case Native.task_info(task.ref) do
      {_, _, _, _, false} -> {:error, :esrch}
      {_, _, _, true, _} -> raise ErlangError, original: :eacces
      _ -> value
    end
  end

  defp request(task, name, arguments) do
    ref = make_ref()
    call = {name, [task | arguments]}

    case Native.task_batch(task.ref, [{name, arguments, [], true}], ref) do
      :ok -> ref |> await_done() |> result(call)
      other -> result(other, call)
    end
  end

  @doc false
  # The side of a task in a run of ops: see Stdio.Op.Runner.
  @spec __batch__(t, [step]) ::
          {:ok, non_neg_integer, :same | {:state, term}}
          | {:stop, non_neg_integer, term, :same | {:state, term}}
  def __batch__(%__MODULE__{} = task, calls) do
    ref = make_ref()

    case Native.task_batch(task.ref, calls, ref) do
      :ok ->
        receive do
          # Filtered: made by itself, it raises.
          {^ref, {:done, done, :undef, state}} -> {:ok, done, state}
          {^ref, {:done, done, _, state}} when done == length(calls) -> {:ok, done, state}
          {^ref, {:done, done, result, state}} -> {:stop, done, result, state}
        end

      # Unknown, or with wrong arguments; nothing was sent.
      {:error, {:step, 0, _}} ->
        {:ok, 0, :same}

      {:error, {:step, index, _}} ->
        __batch__(task, Enum.take(calls, index))

      {:error, :execed} ->
        {:ok, 0, :same}

      {:error, reason} ->
        {:stop, 0, {:error, reason}, :same}
    end
  end

  defp await_done(ref) do
    receive do
      {^ref, {:done, _steps, result, _state}} -> result
    end
  end

  defp result({:error, :execed}, _call), do: raise(ErlangError, original: :eacces)
  defp result(:undef, call), do: undefined(call)
  defp result({:error, {:step, _, :undef}}, call), do: undefined(call)
  defp result({:error, {:step, _, :enotsup}}, _call), do: {:error, :enotsup}

  defp result({:error, {:step, _, {:badarg, position}}}, {name, [_task | arguments]}) do
    raise ArgumentError,
          "#{name}: argument #{position + 1} has the wrong type or range: " <>
            inspect(Enum.at(arguments, position))
  end

  defp result(result, _call), do: result

  @spec wrong!(atom, [term]) :: no_return
  defp wrong!(name, arguments) do
    raise ArgumentError,
          "wrong type or range: " <> Exception.format_mfa(__MODULE__, name, arguments)
  end

  @spec undefined({atom, [term]}) :: no_return
  defp undefined({name, arguments}) do
    raise UndefinedFunctionError, module: __MODULE__, function: name, arity: length(arguments)
  end

  ## Programs run to their end

  @doc """
  Runs a program as a child of the task to its end; its output, stdout and stderr together.

  Its status is dropped.
  """
  @spec cmd(t, [iodata, ...]) :: binary | {:error, posix}
  def cmd(%__MODULE__{} = task, [file | _] = argv) do
    program = {:search, text!(file), texts!(argv)}

    with {:ok, child} <- fork(task) do
      ref = make_ref()
      # Whatever the options of the task: all of its output, and to hear of its end.
      Native.task_hold(child.ref, {ref, @max_chunk, -1, nil})

      try do
        with :ok <- exec(child, program, {:execvp, [child, argv]}), do: collect(child, ref, [])
      after
        stop(child)
        flush(child, ref)
      end
    end
  end

  def cmd(task, argv), do: wrong!(:cmd, [task, argv])

  @doc "As `cmd/2`, of a shell line."
  @spec sh(t, iodata) :: binary | {:error, posix}
  def sh(task, line), do: cmd(task, ["/bin/sh", "-c", line])

  defp collect(child, ref, output) do
    receive do
      {stream, ^child, chunk} when stream in [:stdout, :stderr] ->
        collect(child, ref, [output, chunk])

      {^ref, :ended} ->
        Native.task_release(child.ref)
        collect(child, ref, output)

      {ending, ^child, _} when ending in [:exit_status, :termsig] ->
        IO.iodata_to_binary(output)
    end
  end

  # Of one that ended before it was a program.
  defp flush(child, ref) do
    receive do: ({^ref, :ended} -> :ok), after: (0 -> :ok)
    __flush__(child)
  end

  @doc false
  # Forgets the messages of a task that are there.
  @spec __flush__(t) :: :ok
  def __flush__(%__MODULE__{} = task) do
    receive do
      {_event, ^task, _} -> __flush__(task)
      {:signal, ^task, _, _} -> __flush__(task)
    after
      0 -> :ok
    end
  end

  defimpl Inspect do
    # The task of a program that was started in one step.
    def inspect(%{ref: nil}, _opts), do: "#Stdio.Task<dead>"

    def inspect(task, _opts) do
      case Native.task_info(task.ref) do
        {nil, _, _, _, _} -> "#Stdio.Task<dead>"
        {pid, _, _, _, true} -> "#Stdio.Task<#{pid}>"
        {pid, _, _, _, false} -> "#Stdio.Task<#{pid} dead>"
      end
    end
  end
end
