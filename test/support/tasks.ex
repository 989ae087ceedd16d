defmodule Stdio.Test.Tasks do
  @moduledoc """
  For tests of `Stdio.Task`, beside `Stdio.Test.StreamCase`: tasks, their events, and processes that
  own some.
  """

  import ExUnit.Assertions
  alias Stdio.Task

  @deadline 10_000

  @spec root!() :: Task.t()
  def root! do
    assert {:ok, %Task{} = task} = Task.fork()
    task
  end

  @spec fork!(Task.t()) :: Task.t()
  def fork!(parent) do
    assert {:ok, %Task{} = task} = Task.fork(parent)
    task
  end

  @doc "A child of `parent` that runs this shell line; the mark is `$0`."
  @spec sh!(Task.t(), String.t(), String.t()) :: Task.t()
  def sh!(parent, line, mark \\ "sh") do
    task = fork!(parent)

    assert :ok =
             Task.execve(task, "/bin/sh", ["/bin/sh", "-c", line, mark], ["PATH=/bin:/usr/bin"])

    task
  end

  @doc "A child of `parent` that runs until it is ended."
  @spec sleeper!(Task.t(), String.t()) :: Task.t()
  def sleeper!(parent, mark), do: sh!(parent, "sleep 1000; :", mark)

  @doc "What comes of a task up to its terminal event: as the elements of a stream."
  @spec events(Task.t()) :: [tuple]
  def events(task) do
    receive do
      {kind, ^task, value} when kind in [:stdout, :stderr] -> [{kind, value} | events(task)]
      {kind, ^task, value} when kind in [:exit_status, :termsig] -> [{kind, value}]
    after
      @deadline -> flunk("no terminal event of #{inspect(task)} within #{@deadline} ms")
    end
  end

  @doc "Runs `fun` in another process and returns its result; the process lives on until `:done`."
  @spec elsewhere((() -> result)) :: {pid, result} when result: term
  def elsewhere(fun) do
    parent = self()
    ref = make_ref()

    pid =
      spawn(fn ->
        send(parent, {ref, fun.()})
        relay(parent, ref)
      end)

    assert_receive {^ref, result}, @deadline
    {pid, result}
  end

  # So that the test sees what the other process is sent.
  defp relay(parent, ref) do
    receive do
      :done ->
        :ok

      message ->
        send(parent, {:relayed, self(), message})
        relay(parent, ref)
    end
  end

  @doc "Ends a process of `elsewhere/1` and waits for its end."
  @spec kill!(pid) :: :ok
  def kill!(pid) do
    monitor = Process.monitor(pid)
    Process.exit(pid, :kill)
    assert_receive {:DOWN, ^monitor, :process, _, _}, @deadline
    :ok
  end

  @doc "Everything in the mailbox, which is empty afterwards."
  @spec drain() :: [term]
  def drain do
    receive do
      message -> [message | drain()]
    after
      0 -> []
    end
  end
end
