defmodule Stdio.Test.FakeProcfs do
  @moduledoc false
  # A directory that looks like a procfs, for what the kernel of this machine does not show.

  @doc "The directory; `%{pid => parent}` with `children` files as of a kernel that has them."
  def new(processes \\ %{}, fields \\ %{}) do
    root = empty()
    for {pid, parent} <- processes, do: add(root, pid, parent, Map.get(fields, pid, ""))
    for {pid, _} <- processes, do: children(root, pid, for({c, ^pid} <- processes, do: c))
    root
  end

  @doc "One without a process; it is removed with the test."
  def empty do
    root = Path.join(System.tmp_dir!(), "procfs-#{System.pid()}-#{System.unique_integer()}")
    File.mkdir_p!(Path.join(root, "self"))
    File.write!(Path.join(root, "uptime"), "1.00 1.00\n")
    ExUnit.Callbacks.on_exit(fn -> File.rm_rf!(root) end)
    root
  end

  def add(root, pid, parent, fields \\ "") do
    write(root, "#{pid}/status", "Name:\tp#{pid}\nPid:\t#{pid}\nPPid:\t#{parent}\n#{fields}")
  end

  def children(root, pid, children) do
    write(root, "#{pid}/task/#{pid}/children", Enum.map(children, &"#{&1} "))
  end

  def remove(root, pid), do: File.rm_rf!(Path.join(root, "#{pid}"))

  def write(root, path, text) do
    path = Path.join(root, path)
    File.mkdir_p!(Path.dirname(path))
    File.write!(path, text)
  end
end
