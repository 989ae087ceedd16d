defmodule Stdio.Test.ContainerCase do
  @moduledoc """
  Runs one program in a behaviour by `Stdio.Op.task!` and `Stdio.Task`, and collects what it wrote.

  Every test gets a root tree of its own, which all users can read (`context.root`), and checks that
  nothing is left of its processes and of its mounts.
  """

  use ExUnit.CaseTemplate

  alias Stdio.Test.Oracle

  @directories ~w(bin sbin usr lib lib64 opt tmp home proc dev)

  using do
    quote do
      import Stdio.Test.ContainerCase
    end
  end

  setup do
    root =
      Path.join(
        System.tmp_dir!(),
        "stdio-root-#{System.pid()}-#{System.unique_integer([:positive])}"
      )

    Enum.each(@directories, &File.mkdir_p!(Path.join(root, &1)))
    File.chmod!(root, 0o755)
    on_exit(fn -> File.rm_rf!(root) end)
    {:ok, root: root}
  end

  @type result :: %{stdout: binary, stderr: binary, exit: tuple}

  @doc """
  `command` is a line for the shell, or an argv. Options besides those of the config: `ops:`, which
  come after those of the behaviour, and `before:`, which come ahead of them.
  """
  @spec run_in(module, binary | [binary], keyword) :: result
  def run_in(behaviour, command, config) do
    with_program(behaviour, command, config, fn pipeline ->
      collect(List.last(pipeline).task, %{stdout: "", stderr: ""})
    end)
  end

  @doc "As `run_in/3`, with what to do while the program runs."
  @spec with_program(module, binary | [binary], keyword, (Stdio.pipeline() -> result)) :: result
        when result: term
  def with_program(behaviour, command, config, fun) do
    {extra, config} = Keyword.split(config, [:ops, :before])
    mounts = mountinfo()

    result =
      Oracle.clean(
        fn _mark ->
          {:ok, supervisor} = behaviour.task(config)

          try do
            pipeline = start(supervisor, behaviour, command, config, extra)
            result = fun.(pipeline)

            behaviour.onexit(config).(%Stdio.ProcessTree{
              supervisor: supervisor,
              pipeline: pipeline
            })

            result
          after
            Stdio.Task.stop(supervisor.init)
            flush()
          end
        end,
        except: [:fds, :threads, :helper_fds, :descendants]
      )

    if mountinfo() != mounts, do: raise("the mounts of the host have changed")
    result
  end

  defp start(supervisor, behaviour, command, config, extra) do
    ops = Keyword.get(extra, :before, []) ++ behaviour.ops(config) ++ Keyword.get(extra, :ops, [])

    pipeline = Stdio.Op.task!(supervisor, ops, behaviour.init(config), behaviour.onerror(config))

    task = List.last(pipeline).task
    true = Stdio.Task.setcpid(task, :flowcontrol, -1)
    :ok = Stdio.Task.execve(task, argv(command), Stdio.Config.environ(config))
    pipeline
  end

  defp argv(command) when is_binary(command), do: ["/bin/sh", "-c", command]
  defp argv(command), do: command

  defp collect(task, output) do
    receive do
      {stream, ^task, chunk} when stream in [:stdout, :stderr] ->
        collect(task, Map.update!(output, stream, &(&1 <> chunk)))

      {ending, ^task, value} when ending in [:exit_status, :termsig] ->
        Map.put(output, :exit, {ending, value})
    after
      10_000 -> raise "no end after 10 s: #{inspect(output)}"
    end
  end

  # Events of tasks that were killed in the end are nobody's.
  defp flush do
    receive do
      {event, %Stdio.Task{}, _} when event in [:stdout, :stderr, :exit_status, :termsig] ->
        flush()
    after
      0 -> :ok
    end
  end

  def mountinfo, do: File.read!("/proc/self/mountinfo")

  @doc "The mount options of a mount point, from `mountinfo` as a program printed it."
  @spec mount_options(binary, binary) :: [binary]
  def mount_options(mountinfo, place) do
    for line <- String.split(mountinfo, "\n", trim: true),
        [_id, _parent, _dev, _root, ^place, options | _] <- [String.split(line)],
        option <- String.split(options, ","),
        do: option
  end
end
