defmodule Stdio.NotebookTest do
  # The cells of notebooks/, in order and with shared bindings as Livebook evaluates them. Each says
  # what comes of it, in the block of output behind it.
  use Stdio.Test.StreamCase

  @moduletag :linux
  @moduletag :capture_log

  @path "notebooks/stdio.livemd"

  # [{heading, [{line, code, output}]}]; the first section has no heading, and the set-up in it.
  defp sections do
    {sections, _line} =
      @path
      |> File.read!()
      |> String.split(~r/^(?=## )/m)
      |> Enum.map_reduce(1, fn text, line ->
        {{text |> String.split("\n") |> hd(), cells(text, line)}, line + count(text)}
      end)

    sections
  end

  @cell ~r/^```elixir\n(.*?)^```$(?:\n+<!-- livebook:\{"output":true\} -->\n+```\n(.*?)^```$)?/ms

  defp cells(text, line) do
    for [{at, _}, {from, size} | output] <- Regex.scan(@cell, text, return: :index) do
      output = for {from, size} <- output, do: binary_part(text, from, size)
      {line + count(binary_part(text, 0, at)) + 1, binary_part(text, from, size), output}
    end
  end

  defp count(text), do: length(String.split(text, "\n")) - 1

  # In one environment, so that a variable, an alias or an import of a cell is there in the next.
  defp evaluate(sections) do
    start = {[], Code.env_for_eval(file: @path)}

    for {_heading, cells} <- sections, {line, code, output} <- cells, reduce: start do
      {binding, env} ->
        quoted = Code.string_to_quoted!(code, file: @path, line: line)
        {value, binding, env} = Code.eval_quoted_with_env(quoted, binding, env)
        assert {line, [inspect(value, pretty: true, width: 100) <> "\n"]} == {line, output}
        {binding, env}
    end
  end

  # Those that the system may not allow.
  defp rootless?({_heading, cells}),
    do: Enum.any?(cells, fn {_, code, _} -> code =~ "Stdio.Rootless" end)

  test "the set-up, which is not evaluated here: the library is there" do
    assert [{"# " <> _, [{_, code, []}]} | _] = sections()
    assert {:__block__, _, _} = Code.string_to_quoted!("#{code}\n:ok")
    assert [_, there] = Regex.run(~r/^Mix.install\(\[\{:stdio, path: (.*)\}\]\)$/m, code)

    {path, _} = Code.eval_string(there, [], file: Path.expand(@path))
    assert path == File.cwd!()
  end

  @tag :userns
  test "all of its cells" do
    [_setup | sections] = sections()
    assert length(sections) >= 10
    assert Enum.count(sections, &rootless?/1) == 1
    evaluate(sections)
  end

  test "its cells, where there are no user namespaces" do
    [_setup | sections] = sections()
    sections |> Enum.reject(&rootless?/1) |> evaluate()
  end
end
