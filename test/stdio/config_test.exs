defmodule Stdio.ConfigTest do
  use ExUnit.Case, async: true
  doctest Stdio.Config

  import Stdio.Config, only: [get: 2, validate!: 1, validate!: 2, validate!: 3]
  alias Stdio.Config

  @keys ~w(net environ uid gid groups fstab path hostname setuid priority rlimit cd env search
           stdin stderr timeout kill_signal kill_timeout max_chunk containment)a

  @max32 0xFFFF_FFFF
  @max64 0xFFFF_FFFF_FFFF_FFFF
  @core %{cur: 0, max: 0}
  @paths {[
            "/",
            "rel",
            ~c"/tmp",
            "/é",
            ~c"/é€",
            <<"/", 255>>,
            ["/a", ?/, ~c"b", ["c"]],
            ["/" | "a"]
          ],
          [
            "",
            [],
            [[], ""],
            "a\0",
            ~c"a\0b",
            ["/a", "\0"],
            :path,
            nil,
            1,
            [:a],
            [-1],
            [0xD800],
            {}
          ]}
  @integers [-1, 0.5, 1.0, "1", ~c"1", nil, :one, [], %{}]

  # option => {good, bad}
  @values %{
    net: {[:none, :host], [:None, :hosts, "none", nil, true, [], 0]},
    environ:
      {[[], ["A=1"], ["A="], ["A=b=c"], [~c"A=1"], [["A", ?=, ["1" | "2"]]], :inherit]
       |> Enum.concat([[<<"A=", 255>>], ["A=1", "A=2"]]),
       ["A=1", ["A"], ["=1"], [""], ["A=\0"], ["A\0=1"], [~c"A=\0"], [:A], [1], [A: "1"]]
       |> Enum.concat([[~c"A=€"], ["A=1" | "B=2"], %{"A" => "1"}, :Inherit, nil])},
    uid: {[0, 1000, @max32 - 1], [@max32 + 1 | @integers]},
    gid: {[0, 1000, @max32 - 1], [@max32 + 1 | @integers]},
    groups:
      {[[], [0], [1, 2, 200], [@max32]],
       [[-1], [@max32 + 1], ["1"], [1 | 2], [1.0], 1, nil, %{}, [[1]]]},
    fstab:
      {[[], ["opt"], ["/opt", ""], [~c"opt", []], [<<255>>]],
       ["opt", ~c"opt", ["a\0"], [~c"\0"], [:opt], [nil], ["a" | "b"], nil, %{}]},
    path: @paths,
    hostname:
      {["h", ~c"host", String.duplicate("h", 64), <<255>>],
       ["", [], String.duplicate("h", 65), String.duplicate("é", 33), "a\0", ~c"\0"]
       |> Enum.concat([["a", "b"], :host, nil, 1])},
    setuid: {[true, false], [nil, 0, 1, "true", :yes]},
    priority: {[-20, 0, 19], [-21, 20, "x", 1.0, nil, :low]},
    rlimit:
      {[
         [],
         %{},
         [rlimit_core: @core],
         [RLIMIT_CORE: @core],
         [Rlimit_Nofile: %{cur: 1, max: @max64}],
         %{rlimit_nproc: %{cur: 1, max: 1}, RLIMIT_AS: @core},
         [{7, @core}],
         %{0 => @core, 15 => @core}
       ],
       [
         [core: @core],
         [rlimit_foo: @core],
         [rlimit_nlimits: @core],
         [{"rlimit_core", @core}],
         [{16, @core}],
         [{-1, @core}],
         [rlimit_core: 0],
         [rlimit_core: %{cur: 0}],
         [rlimit_core: %{cur: 0, max: 0, min: 0}],
         [rlimit_core: [cur: 0, max: 0]],
         [rlimit_core: %{cur: -1, max: 0}],
         [rlimit_core: %{cur: 0, max: @max64 + 1}],
         [rlimit_core: %{cur: 2, max: 1}],
         [rlimit_core: %{cur: 0.0, max: 1}],
         [rlimit_core: %{cur: 0, max: :infinity}],
         [:rlimit_core],
         :rlimit_core,
         nil,
         [{:rlimit_core, @core} | :x],
         %{rlimit_core: 1}
       ]},
    cd: @paths,
    env:
      {[
         [],
         %{},
         [A: "1", B: nil],
         %{"A" => "1", :B => ~c"é€", ~c"C" => nil},
         [{"A", ""}, {~c"B", []}, {"A", nil}],
         [{<<255>>, <<254>>}]
       ],
       [
         [{"", "1"}],
         [{[], "1"}],
         [{:"", "1"}],
         [{"A=B", "1"}],
         [{~c"=A", "1"}],
         [{:"A=", nil}],
         [{"A\0", "1"}],
         [{~c"A\0", "1"}],
         [{:"A\0", "1"}],
         [A: "\0"],
         [A: ~c"1\0"],
         [A: 1],
         [A: true],
         [A: ["a", "b"]],
         [{nil, "1"}],
         [{1, "1"}],
         ["A=1"],
         [{"A", "1"} | :x],
         %{"A" => :b},
         "A=1",
         nil
       ]},
    search: {[true, false], [nil, 1, "true", :yes]},
    stdin: {[:pipe, :null], [:none, "null", nil, true]},
    stderr: {[:separate, :stdout, :null], [:stderr, "null", nil, true]},
    timeout: {[1, 500, :infinity, 10_000_000_000_000_000_000_000], [0 | @integers]},
    kill_signal:
      {[:sigterm, :SIGTERM, :SigKill, 1, 64, 34, :sigrtmin],
       [:term, 0, 65, "SIGTERM", ~c"SIGTERM", nil, 9.0]},
    kill_timeout: {[0, 1, 5000], [:infinity | @integers]},
    max_chunk: {[1, 65_536, 1_048_576], [0, 1_048_577 | @integers]},
    containment: {[:auto, :cgroup, :pid_namespace, :best_effort], [:none, "auto", nil, true]}
  }

  defp refused(config, own \\ [], verb \\ :stream, behaviour \\ Stdio.Process) do
    run = fn -> Config.validate!(config, own, verb, behaviour) end
    assert_raise(ArgumentError, run).message
  end

  test "the table of values has every option" do
    assert Enum.sort(Map.keys(@values)) == Enum.sort(@keys)
    assert Config.Schema.keys() == @keys
  end

  for key <- @keys do
    test "#{inspect(key)}: good values come back as written" do
      {good, _} = @values[unquote(key)]

      for value <- good do
        assert validate!([{unquote(key), value}]) == [{unquote(key), value}]
      end
    end

    test "#{inspect(key)}: bad values are refused, naming option and value" do
      {_, bad} = @values[unquote(key)]

      for value <- bad do
        message = refused([{unquote(key), value}])
        prefix = "invalid value #{inspect(value)} for option #{inspect(unquote(key))}; allowed: "
        assert String.starts_with?(message, prefix)
        assert String.length(message) > String.length(prefix) + 5
      end
    end
  end

  test "messages, exactly" do
    for {key, allowed} <- [
          priority: "an integer in -20..19",
          uid: "an integer in 0..4294967295",
          groups: "a list, each element an integer in 0..4294967295",
          net: ":none or :host",
          containment: ":auto, :cgroup, :pid_namespace or :best_effort",
          setuid: "true or false",
          timeout: "an integer >= 1 or :infinity",
          kill_signal:
            "a signal name in any letter case, such as :sigterm, or an integer in 1..64",
          hostname: "text of 1..64 bytes, no NUL byte",
          path: "a non-empty path (binary, charlist or a list of these), no NUL byte",
          environ: ~s(:inherit or a list of "K=V" iodata, K not empty, no NUL byte)
        ] do
      assert refused([{key, 1.5}]) ==
               "invalid value 1.5 for option #{inspect(key)}; allowed: #{allowed}"
    end

    assert refused(priority: "x") ==
             ~s(invalid value "x" for option :priority; allowed: an integer in -20..19)
  end

  test "unknown options are refused, with those there are" do
    allowed = Enum.map_join(@keys, ", ", &inspect/1)
    assert refused(foo: 1) == "unknown option :foo (value 1); allowed: #{allowed}"
    assert refused(Net: :none) == "unknown option :Net (value :none); allowed: #{allowed}"

    assert refused([net: :none, foo: "x"], [:bar, :net]) ==
             ~s|unknown option :foo (value "x"); allowed: #{allowed}, :bar|
  end

  test "own options of a behaviour" do
    assert validate!([bar: {:any, "term"}], [:bar]) == [bar: {:any, "term"}]
    assert validate!([bar: 1, foo: nil], :any) == [bar: 1, foo: nil]
    # the shared ones are not loosened by it
    assert refused([priority: "x"], :any) =~ "invalid value"
    assert refused([priority: "x"], [:priority]) =~ "invalid value"
    assert refused([priority: "x"], [:priority]) =~ "-20..19"
  end

  test "config must be a keyword list" do
    for bad <-
          [nil, %{}, %{net: :none}, "net", :net, {:net, :none}, [:net], [{"net", :none}]] ++
            [[[net: :none]], [{:net, :none} | :x], [{:net, :none, 1}]] do
      assert refused(bad, :any) == "config must be a keyword list, got: #{inspect(bad)}"
    end

    assert validate!([]) == []
  end

  test "of two equal keys the first counts, both are validated" do
    config = [priority: 1, priority: 2]
    assert validate!(config) == config
    assert get(config, :priority) == 1
    assert refused(priority: 1, priority: "x") =~ ~s|invalid value "x"|
    assert Config.environ(environ: ["A=1"], environ: []) == ["A=1"]
    assert Config.uid(uid: 1, uid: 2) == 1
  end

  test ":net takes addresses only for Jail and behaviours of others" do
    good = [
      %{},
      %{ip4: [], ip6: []},
      %{ip4: [{127, 0, 0, 1}], ip6: [{0, 0, 0, 0, 0, 0, 0, 1}]},
      %{ip4: [{255, 255, 255, 255}]}
    ]

    bad = [
      %{ip4: [{256, 0, 0, 1}]},
      %{ip4: ["127.0.0.1"]},
      %{ip4: {127, 0, 0, 1}},
      %{ip6: [{127, 0, 0, 1}]},
      %{ip6: [{0, 0, 0, 0, 0, 0, 0, 65_536}]},
      %{ip5: []},
      %{ip4: [{1, 1, 1, 1} | :x]}
    ]

    for behaviour <- [Stdio.Jail, Some.Behaviour] do
      for net <- good ++ [:none, :host] do
        assert Config.validate!([net: net], [], :stream, behaviour) == [net: net]
      end

      for net <- bad do
        assert refused([net: net], [], :stream, behaviour) ==
                 "invalid value #{inspect(net)} for option :net; allowed: :none, :host or " <>
                   "a map %{ip4: [address tuple], ip6: [address tuple]}"
      end
    end

    for behaviour <- [Stdio.Process, Stdio.Container, Stdio.Rootless], net <- good do
      assert refused([net: net], [], :stream, behaviour) =~ "allowed: :none or :host"
    end
  end

  test ":cd and :path are one option for Process, two for the others" do
    assert refused(cd: "/", path: "/tmp") =~ "give one of them"
    config = [cd: "/", path: "/tmp"]

    for behaviour <- [Stdio.Container, Stdio.Rootless, Stdio.Jail, Some.Behaviour] do
      assert Config.validate!(config, [], :stream, behaviour) == config
    end
  end

  test "stdin: :null is not for pipe!" do
    assert refused([stdin: :null], [], :pipe) =~ "use stream!"
    assert validate!([stdin: :pipe], [], :pipe) == [stdin: :pipe]
    assert validate!([stdin: :null], [], :stream) == [stdin: :null]
  end

  test "the id that means \"unchanged\" to the kernel is refused" do
    assert refused(uid: @max32) =~ "option :uid cannot be 4294967295"
    assert refused(gid: @max32) =~ "option :gid cannot be 4294967295"
  end

  test "docs and typespec are made from the schema" do
    {:docs_v1, _, _, _, %{"en" => doc}, _, _} = Code.fetch_docs(Config)
    {:ok, types} = Code.Typespec.fetch_types(Config)
    option = for {:type, {:option, _, _} = type} <- types, do: type
    spec = option |> hd() |> Code.Typespec.type_to_quoted() |> Macro.to_string()

    for key <- @keys do
      assert doc =~ ~r/^- `:#{key}`: .*\n\n  \*Type\*: .*man7\.org.*\.$/m
      assert spec =~ ~r/\{:#{key},\s/
    end

    # where behaviours differ, all that some behaviour takes
    assert doc =~ "*Type*: :none, :host or a map %{ip4:"
    assert spec =~ "optional(:ip4)"

    # nothing is left empty
    refute doc =~ ~r/^- `:\w+`: $|\*: \./m
  end
end
