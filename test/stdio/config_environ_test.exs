defmodule Stdio.ConfigEnvironTest do
  # Not async: the environment of the VM is one for all tests.
  use ExUnit.Case

  alias Stdio.Config
  alias Stdio.Config.Environ

  defp environ(config), do: config |> Config.validate!() |> Config.environ()

  test "default, empty, given" do
    assert ["PATH=/sbin:" <> _, "HOME=/home"] = environ([])
    assert environ(environ: []) == []
    assert environ(environ: ["TERM=dumb", "PATH=/bin"]) == ["TERM=dumb", "PATH=/bin"]
  end

  test ":environ is iodata: integers are bytes" do
    assert environ(environ: [["A", ?=, ~c"b" | "c"], [?K, ?=, 255]]) == ["A=bc", <<"K=", 255>>]
  end

  test ":environ alone is left as it is, repetitions too" do
    assert environ(environ: ["A=1", "B=2", "A=3"]) == ["A=1", "B=2", "A=3"]
  end

  test ":env over the default" do
    assert [path, "A=1"] = environ(env: [A: "1", HOME: nil])
    assert "PATH=" <> _ = path
    assert environ(env: [PATH: "/x"]) == ["PATH=/x", "HOME=/home"]
  end

  test ":env over :environ: names keep their place, new ones follow in order" do
    assert environ(
             environ: ["A=1", "B=2", "C=3", "AB=4"],
             env: [{"Z", "9"}, {"B", "x=y"}, {"A", nil}, {"Y", "8"}]
           ) == ["B=x=y", "C=3", "AB=4", "Z=9", "Y=8"]
  end

  test ":env replaces or removes every repetition" do
    assert environ(environ: ["A=1", "B=2", "A=3"], env: [A: "x"]) == ["A=x", "B=2"]
    assert environ(environ: ["A=1", "B=2", "A=3"], env: [A: nil]) == ["B=2"]
  end

  test "a later pair of one name wins" do
    assert environ(environ: [], env: [A: "1", A: "2"]) == ["A=2"]
    assert environ(environ: [], env: [{"A", "1"}, {:A, nil}]) == []
    assert environ(environ: ["A=0"], env: [A: nil, A: "2"]) == ["A=2"]
    assert environ(environ: [], env: [A: "1", B: "2", A: "3"]) == ["A=3", "B=2"]
  end

  test "removing what is not there" do
    assert environ(environ: ["A=1"], env: [B: nil]) == ["A=1"]
  end

  test "maps; atoms, charlists and binaries; UTF-8 and invalid UTF-8" do
    env = %{:A => ~c"é€", ~c"Bé" => "2", <<"C", 255>> => <<254>>}
    assert Enum.sort(environ(environ: [], env: env)) == ["A=é€", "Bé=2", <<"C", 255, "=", 254>>]
    assert environ(environ: [], env: [A: "", B: []]) == ["A=", "B="]
  end

  test "long and many" do
    big = String.duplicate("x", 1_000_000)
    assert environ(environ: ["A=" <> big], env: [B: big]) == ["A=" <> big, "B=" <> big]

    base = for n <- 1..20_000, do: "N#{n}=#{n}"
    env = for n <- 1..20_000, do: {"N#{n}", "x"}
    assert environ(environ: base, env: env) == for(n <- 1..20_000, do: "N#{n}=x")
  end

  test ":inherit follows changes, and :env goes over it" do
    name = "STDIO_TEST_#{System.unique_integer([:positive])}"
    refute Enum.any?(environ(environ: :inherit), &String.starts_with?(&1, name))
    System.put_env(name, "é€=x")
    on_exit(fn -> System.delete_env(name) end)

    assert (name <> "=é€=x") in environ(environ: :inherit)
    assert (name <> "=2") in environ(environ: :inherit, env: [{name, "2"}])
    removed = environ(environ: :inherit, env: %{name => nil})
    refute Enum.any?(removed, &String.starts_with?(&1, name))
    assert length(removed) == map_size(System.get_env()) - 1
  end

  # The shell is needed because a port cannot be given an environment that is not text.
  @tag timeout: 60_000
  test ":inherit keeps the bytes the BEAM was started with" do
    vars = [
      {"S_RAW", "a\\377b"},
      {"S_LATIN", "\\351"},
      {"S_UTF", "\\303\\251\\342\\202\\254"},
      {"S_SMALL", "\\303\\251"},
      {"S_MIXED", "k=\\303\\251\\377"}
    ]

    expected = [
      <<"S_LATIN=", 233>>,
      <<"S_MIXED=k=é", 255>>,
      "S_NEW=é",
      <<"S_RAW=a", 255, "b">>,
      "S_SMALL=é",
      "S_UTF=é€"
    ]

    code = """
    System.put_env("S_NEW", "é")
    [environ: :inherit] |> Stdio.Config.environ() |> Enum.filter(&(&1 =~ ~r/^S_/))
    |> Enum.sort() |> :erlang.term_to_binary() |> Base.encode16() |> IO.write()
    """

    exports = Enum.map_join(vars, " ", fn {name, octal} -> ~s|#{name}="$(printf '#{octal}')"| end)
    path = Path.dirname(to_string(:code.which(Config)))
    path = if path == ".", do: Mix.Project.compile_path(), else: path

    for locale <- ["C.UTF-8", "C"] do
      script = ~s|env #{exports} LC_ALL=#{locale} elixir -pa "$1" -e "$2"|
      {out, 0} = System.cmd("/bin/sh", ["-c", script, "sh", path, code])
      environ = out |> Base.decode16!() |> :erlang.binary_to_term()
      # how the VM encodes a new variable in the C locale is its own affair
      assert environ -- ["S_NEW=é"] == expected -- ["S_NEW=é"]
      assert locale == "C" or environ == expected
    end
  end

  describe "inherited/3, which cannot tell ÿ from the byte 255 by itself" do
    test "asks the initial environment, once, and only then" do
      parent = self()

      initial = fn ->
        send(parent, :asked)
        MapSet.new([<<"A=", 255>>, <<233, "=", 233>>])
      end

      assert Environ.inherited([{~c"A", ~c"1"}, {~c"B", ~c"é€"}], :utf8, initial) ==
               ["A=1", "B=é€"]

      refute_received :asked

      assert Environ.inherited([{~c"A", [255]}, {~c"B", [255]}, {[233], [233]}], :utf8, initial) ==
               [<<"A=", 255>>, "B=ÿ", <<233, "=", 233>>]

      assert_received :asked
      refute_received :asked
    end

    test "reads it as UTF-8 where it is unknown" do
      assert Environ.inherited([{~c"A", [255]}], :utf8, fn -> MapSet.new() end) == ["A=ÿ"]
    end

    test "Latin-1 is bytes" do
      assert Environ.inherited([{~c"A", [195, 169]}], :latin1, fn -> flunk("asked") end) ==
               ["A=é"]
    end
  end
end
