defmodule Mix.Tasks.Stdio.Doctor do
  @shortdoc "Says what of Stdio works on this machine"
  @moduledoc """
  Says what of Stdio works on this machine, for this user, and what to do about the rest.

      $ mix stdio.doctor

  A line for each check of `Stdio.Doctor`, and one with advice where there is some. The exit status is
  1 if a check fails; warnings are about what not everybody needs. It takes no arguments, and starts
  no application but Stdio.
  """

  use Mix.Task

  @impl Mix.Task
  def run([]) do
    # The project is compiled and its paths are known; its applications are not started.
    Mix.Task.run("app.config")
    {:ok, _} = Application.ensure_all_started(:stdio)
    report(Stdio.doctor(), IO.ANSI.enabled?())
  end

  def run(_arguments), do: Mix.raise("mix stdio.doctor takes no arguments")

  @doc false
  # Exits with status 1 after a failure.
  @spec report([Stdio.Doctor.check()], boolean) :: :ok
  def report(checks, colour?) do
    checks |> table(colour?) |> IO.write()
    if Enum.any?(checks, &(&1.status == :fail)), do: exit({:shutdown, 1}), else: :ok
  end

  @doc false
  @spec table([Stdio.Doctor.check()], boolean) :: iodata
  def table(checks, colour?) do
    width = checks |> Enum.map(&String.length(name(&1))) |> Enum.max(fn -> 0 end)

    for check <- checks do
      advice =
        if check.advice,
          do: [String.duplicate(" ", width + 8), "-> ", check.advice, "\n"],
          else: []

      [
        IO.ANSI.format([colour(check.status), mark(check.status)], colour?),
        "  ",
        String.pad_trailing(name(check), width),
        "  ",
        check.found,
        "\n" | advice
      ]
    end
  end

  defp name(%{check: check}), do: check |> Atom.to_string() |> String.replace("_", " ")

  defp mark(:ok), do: "ok  "
  defp mark(:warn), do: "warn"
  defp mark(:fail), do: "FAIL"

  defp colour(:ok), do: :green
  defp colour(:warn), do: :yellow
  defp colour(:fail), do: :red
end
