defmodule Stdio.BadInputTest do
  # What is refused is refused by the call, before anything is started. Which values are good and
  # which are not is in config_test.exs and command_test.exs; here it is about when.
  use Stdio.Test.StreamCase

  alias Stdio.Test.Peer

  @commands [
    nil,
    1,
    :ls,
    %{},
    ["a\0b"],
    "a\0b",
    ["/bin/true", "\0"],
    {"/bin/true", ["a\0"]},
    {"/bin/true\0", ["a"]},
    {:search, ["a\0"]},
    {:search, "true"},
    {:find, ["true"]},
    {"/bin/true", "a"},
    {"/bin/true", ["a"], []},
    ["/bin/true", :a],
    ["/bin/true", 1],
    ["/bin/true", nil],
    ["/bin/true", ["a", "b"]],
    ["/bin/true" | "a"],
    ~c"/bin/true",
    [~c"/bin/true", [0xD800]]
  ]

  @configs [
    [foo: 1],
    [net: :some],
    [environ: ["A"]],
    [environ: ["=1"]],
    [environ: ["A=\0"]],
    [env: [{"", "1"}]],
    [env: [{"A=B", "1"}]],
    [env: [A: "\0"]],
    [env: [A: 1]],
    [uid: -1],
    [uid: 0xFFFF_FFFF],
    [uid: 0x1_0000_0000],
    [gid: "0"],
    [groups: [-1]],
    [groups: 5],
    [path: ""],
    [path: "a\0"],
    [cd: :tmp],
    [path: "/", cd: "/"],
    [setuid: 1],
    [priority: "x"],
    [priority: 20],
    [rlimit: [rlimit_core: 0]],
    [rlimit: [rlimit_foo: %{cur: 0, max: 0}]],
    [rlimit: [rlimit_core: %{cur: 1, max: 0}]],
    [search: nil],
    [stdin: :close],
    [stderr: :stdin],
    [timeout: 0],
    [timeout: 1.5],
    [kill_signal: :sigfoo],
    [kill_signal: 65],
    [kill_timeout: -1],
    [kill_timeout: :infinity],
    [max_chunk: 0],
    [max_chunk: 1_048_577],
    [containment: :jail],
    [:net],
    :net,
    nil,
    %{net: :none}
  ]

  test "a prefix for roots" do
    for prefix <- ["sudo\0", :sudo, 1],
        do: assert_raise(ArgumentError, fn -> Stdio.Task.sudo(prefix) end)
  end

  test "an ArgumentError is raised by the call itself", %{mark: mark} do
    for command <- @commands do
      assert_raise ArgumentError, fn -> Stdio.stream!(command) end
      assert_raise ArgumentError, fn -> Stdio.pipe!([mark], command) end
    end

    for config <- @configs do
      assert_raise ArgumentError, fn -> Stdio.stream!("true", Stdio.Process, config) end
      assert_raise ArgumentError, fn -> Stdio.pipe!([mark], "true", Stdio.Process, config) end
    end

    assert_raise ArgumentError, fn ->
      Stdio.pipe!([mark], "true", Stdio.Process, stdin: :null)
    end

    for behaviour <- [Nope, nil, "Stdio.Process"] do
      assert_raise ArgumentError, fn -> Stdio.stream!("true", behaviour) end
    end

    assert messages() == []
  end

  # The helper starts with the first program and then stays, so a BEAM which has none has never
  # started anything.
  test "in a BEAM that has not run anything, the helper is not even started" do
    source = ~S"""
    alias Stdio.Test.Proc
    refused = fn run ->
      try do
        run.()
        :accepted
      rescue
        ArgumentError -> :refused
      end
    end

    helpers = fn ->
      for pid <- Proc.descendants(),
          %{name: name} <- [Proc.stat(pid)],
          name in ["stdio-supervise", "Supervise"],
          do: name
    end

    answers =
      Enum.map(commands, &refused.(fn -> Stdio.stream!(&1) end)) ++
        Enum.map(configs, &refused.(fn -> Stdio.stream!("true", Stdio.Process, &1) end)) ++
        Enum.map(configs, &refused.(fn -> Stdio.pipe!([], "true", Stdio.Process, &1) end))

    IO.puts(inspect({Enum.uniq(answers), helpers.()}))
    # A good one does not start it either, before it is enumerated.
    stream = Stdio.stream!("true")
    IO.puts(inspect(helpers.()))
    Stream.run(stream)
    IO.puts(inspect("stdio-supervise" in helpers.()))
    """

    peer = Peer.start(source, assigns: [commands: @commands, configs: @configs])

    try do
      assert Peer.line(peer) == "{[:refused], []}"
      assert Peer.line(peer) == "[]"
      assert Peer.line(peer) == "true"
    after
      Peer.stop(peer)
    end
  end
end
