defmodule Stdio.Test.Script do
  @moduledoc """
  Runs an example of `examples/` as the program it is: `mix run examples/NAME.exs -- …`, with a
  deadline. Its stderr is dropped.
  """

  import ExUnit.Assertions
  alias Stdio.Test.Proc

  @examples Path.expand("../../examples", __DIR__)
  @directories ~w(bin sbin usr lib lib64 opt tmp home proc dev)
  @deadline 30_000

  @type t :: %{port: port, os_pid: Proc.os_pid()}

  @doc "Starts it; it is killed when the test ends, should it still be there."
  @spec start(String.t(), [String.t()]) :: t
  def start(name, args) do
    ebin = Application.app_dir(:stdio, "ebin")
    elixir = System.find_executable("elixir")
    line = "exec \"$@\" 2> /dev/null"
    # As Mix does, which leaves a `--` to the script.
    argv = ["-c", line, "sh", elixir, "-pa", ebin, Path.join(@examples, name), "--" | args]
    options = [:binary, :exit_status, line: 65_536, args: argv]
    port = Port.open({:spawn_executable, "/bin/sh"}, options)
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    %{start: start} = Proc.stat(os_pid)

    # The start time tells it from another with its pid.
    ExUnit.Callbacks.on_exit(fn ->
      if match?(%{start: ^start}, Proc.stat(os_pid)), do: Proc.kill(os_pid)
    end)

    %{port: port, os_pid: os_pid}
  end

  @doc "The lines it writes and its exit status."
  @spec run(String.t(), [String.t()]) :: {[String.t()], non_neg_integer}
  def run(name, args), do: name |> start(args) |> finish()

  @doc "The lines from here on and the exit status."
  @spec finish(t) :: {[String.t()], non_neg_integer}
  def finish(%{port: port} = script) do
    receive do
      {^port, {:data, {_, line}}} ->
        {lines, status} = finish(script)
        {[line | lines], status}

      {^port, {:exit_status, status}} ->
        {[], status}
    after
      @deadline -> flunk("the script does not end")
    end
  end

  @doc "Waits for a line."
  @spec until(t, String.t()) :: :ok
  def until(%{port: port} = script, expected) do
    receive do
      {^port, {:data, {_, ^expected}}} -> :ok
      {^port, {:data, _}} -> until(script, expected)
      {^port, {:exit_status, status}} -> flunk("the script has ended: #{status}")
    after
      @deadline -> flunk("the script does not say #{expected}")
    end
  end

  @doc "A root tree for containers, which all users can read; it is removed when the test ends."
  @spec root_tree(String.t()) :: Path.t()
  def root_tree(mark) do
    root = Path.join(System.tmp_dir!(), "root-" <> mark)
    Enum.each(@directories, &File.mkdir_p!(Path.join(root, &1)))
    File.chmod!(root, 0o755)
    ExUnit.Callbacks.on_exit(fn -> File.rm_rf!(root) end)
    root
  end
end
