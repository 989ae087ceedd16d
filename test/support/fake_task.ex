# TO BE DROPPED when the real Stdio.Task and Stdio.Syscall are merged, together with the stand-ins
# in it. Files that need it carry the tag `:fake_task`.

defmodule Stdio.Task do
  @moduledoc false
  # A task that is played by the test process: each call is looked up in its process dictionary,
  # and noted there.

  defstruct [:ref]

  @type t :: %__MODULE__{ref: reference}

  def new, do: %__MODULE__{ref: make_ref()}

  @doc "`answers`: %{fun => value | fun of the arguments}; also for Stdio and Stdio.Syscall."
  def answers(answers), do: Process.put(__MODULE__, {answers, []})

  @doc "The calls made since `answers/1`, in order: {fun, args}."
  def calls do
    {_, calls} = Process.get(__MODULE__)
    Enum.reverse(calls)
  end

  def answer(fun, args, default \\ :ok) do
    {answers, calls} = Process.get(__MODULE__, {%{}, []})
    Process.put(__MODULE__, {answers, [{fun, args} | calls]})

    case Map.get(answers, fun, default) do
      f when is_function(f) -> apply(f, args)
      value -> value
    end
  end

  def pidof(task), do: answer(:pidof, [task], 4711)
  def stop(task), do: answer(:stop, [task])
  def kill(task, pid, signal), do: answer(:kill, [task, pid, signal])
  def getresuid(task), do: answer(:getresuid, [task], {:ok, 0, 0, 0})
  def fork(task), do: answer(:fork, [task], {:ok, new()})
  def chdir(task, path), do: answer(:chdir, [task, path])
  def setsid(task), do: answer(:setsid, [task], {:ok, 1})
  def getpid(task), do: answer(:getpid, [task], 4711)
  def exit(task, status), do: answer(:exit, [task, status])
  def __batch__(_task, _calls), do: {:ok, 0, :same}
end

defmodule Stdio.Syscall do
  @moduledoc false
  def os, do: __MODULE__
  def subprocess(config), do: Stdio.Task.answer(:subprocess, [config], fn _ -> &fork/1 end)
  def reap(tree, signal), do: Stdio.Task.answer(:reap, [tree, signal])

  defp fork(supervisor) do
    {:ok, task} = Stdio.Task.fork(supervisor)
    {:ok, [Stdio.ProcessTree.task(task)]}
  end
end
