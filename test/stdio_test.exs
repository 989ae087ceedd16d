defmodule StdioTest do
  use ExUnit.Case, async: true

  # The README's examples are part of the moduledoc.
  doctest Stdio

  test "the README's examples are among the doctests" do
    {:docs_v1, _, _, _, %{"en" => moduledoc}, _, _} = Code.fetch_docs(Stdio)
    assert moduledoc =~ "LETITCRASH"
    assert moduledoc =~ "sleep 8674"
  end

  test "another behaviour is refused with a sentence" do
    assert_raise ArgumentError, ~r/invalid behaviour Nope: there is no module Nope/, fn ->
      Stdio.stream!("true", Nope)
    end
  end
end
