defmodule ReadmeTest do
  # The examples of the README and of docs/ that say what comes of them (`#=>`), beside those of
  # the moduledoc, which are doctests.
  use ExUnit.Case

  @moduletag :linux
  @moduletag :userns

  for file <- ["README.md" | Path.wildcard("docs/*.md")],
      text = File.read!(file),
      [_, code] <- Regex.scan(~r/^```elixir\n(.*?)^```$/ms, text),
      String.contains?(code, "\n#=>") do
    [source, expected] = String.split(code, "#=>")
    name = source |> String.split("\n") |> hd()

    test "#{file}: #{name}" do
      {value, _} = Code.eval_string(unquote(source))
      {expected, _} = Code.eval_string(unquote(expected))
      assert value == expected
    end
  end

  test "there are such examples" do
    assert length(Regex.scan(~r/^#=>/m, File.read!("README.md"))) >= 2
  end
end
