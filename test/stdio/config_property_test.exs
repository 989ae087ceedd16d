defmodule Stdio.ConfigPropertyTest do
  # FAULTS row 38, by chance: whatever is given for an option is either refused with an ArgumentError
  # before any fork, or means something to all that come after. STDIO_SEED=n repeats a run.
  use ExUnit.Case, async: true

  alias Stdio.Config
  alias Stdio.Config.Schema

  @behaviours [Stdio.Process, Stdio.Container, Stdio.Rootless]
  @rounds 20_000

  setup do
    seed = String.to_integer(System.get_env("STDIO_SEED", "#{:rand.uniform(1_000_000_000)}"))
    :rand.seed(:exsss, seed)
    %{seed: seed}
  end

  ## Terms: those that are near to right ones, and any

  @numbers [-0x8000_0000_0000_0001, -21, -20, -1, 0, 1, 19, 20, 64, 65, 255, 256, 0x110000] ++
             [
               0xFFFF_FFFE,
               0xFFFF_FFFF,
               0x1_0000_0000,
               0xFFFF_FFFF_FFFF_FFFF,
               0x1_0000_0000_0000_0000
             ]
  @atoms [:none, :host, :inherit, :pipe, :null, :stdout, :separate, :infinity, :auto, :cgroup] ++
           [:pid_namespace, :best_effort, :sigterm, :SIGKILL, :sigrtmin, :rlimit_core, :RLIMIT_AS] ++
           [:cur, :max, :ip4, :ip6, nil, true, false, :"a\0", :""]
  @binaries ["", "/", "/tmp", "a", "A=1", "=", "A=", "a\0", <<255>>, <<0xD8, 0>>, "é", ".."]

  defp term(0), do: pick([pick(@numbers), pick(@atoms), pick(@binaries), 0.5, make_ref(), self()])

  defp term(depth) do
    inner = fn -> term(depth - 1) end
    some = fn -> many(inner) end

    case :rand.uniform(9) do
      1 ->
        some.()

      2 ->
        List.to_tuple(some.())

      3 ->
        Map.new(some.(), &{&1, inner.()})

      4 ->
        Enum.map(some.(), &{&1, inner.()})

      5 ->
        some.() ++ inner.()

      6 ->
        %{cur: inner.(), max: inner.()}

      7 ->
        [{pick([:rlimit_core, :rlimit_nofile, 3]), %{cur: pick(@numbers), max: pick(@numbers)}}]

      8 ->
        :binary.bin_to_list(pick(@binaries))

      _ ->
        term(0)
    end
  end

  defp many(fun), do: Enum.map(List.duplicate(nil, :rand.uniform(4) - 1), fn _ -> fun.() end)
  defp pick(list), do: Enum.at(list, :rand.uniform(length(list)) - 1)

  # A right value of each option; anything for one that is not here.
  @right %{
    net: [:none, :host],
    environ: [:inherit, [], ["A=1", ~c"B=2"], [["C", ?=, ["x" | "y"]]]],
    uid: [0, 1, 0xFFFF_FFFE],
    gid: [0, 1, 0xFFFF_FFFE],
    groups: [[], [1, 2, 0xFFFF_FFFF]],
    fstab: [[], ["opt", ""], [~c"/opt", <<255>>]],
    path: ["/", ~c"/tmp", ["/a", ?/, ~c"b"], <<"/", 255>>],
    cd: ["/", ~c"/tmp", ["/a" | "b"]],
    hostname: ["h", ~c"host", <<255>>],
    rlimit: [%{rlimit_core: %{cur: 0, max: 0}}, [{3, %{cur: 0, max: 0xFFFF_FFFF_FFFF_FFFF}}], []],
    env: [[A: "1"], %{"B" => nil}, [{~c"C", ~c"c"}], []],
    timeout: [1, :infinity, 0x1_0000_0000_0000_0000],
    kill_signal: [:sigterm, :SIGKILL, 1, 64],
    kill_timeout: [0, 5000]
  }

  defp value(key) do
    case {:rand.uniform(4), @right} do
      {roll, %{^key => values}} when roll > 1 -> values |> pick() |> bent(roll == 2)
      _ -> term(pick([0, 0, 0, 1, 2, 3]))
    end
  end

  # Somewhere in it, something else.
  defp bent(value, false), do: value
  defp bent([head | tail], true), do: pick([[bent(head, true) | tail], [head | bent(tail, true)]])
  defp bent({key, value}, true), do: pick([{key, bent(value, true)}, {bent(key, true), value}])
  defp bent(map, true) when is_map(map), do: map |> Map.to_list() |> bent(true) |> mapped()
  defp bent(_, true), do: term(pick([0, 0, 1]))

  defp mapped(list) do
    Map.new(list)
  rescue
    ArgumentError -> list
  end

  defp config do
    config = many(fn -> with key = pick(Schema.keys()), do: {key, value(key)} end)
    if :rand.uniform(200) == 1, do: term(2), else: config
  end

  ## What is let through

  defp no_nul!(binary), do: assert(is_binary(binary) and not String.contains?(binary, <<0>>))

  defp usable!(config, behaviour) do
    environ = Config.environ(config)
    assert is_list(environ)
    Enum.each(environ, &no_nul!/1)

    for id <- [
          Config.uid(config, behaviour),
          Config.gid(config, behaviour) | Config.groups(config)
        ],
        do: assert(id in 0..0xFFFF_FFFF)

    assert Config.kill_signal(config) in 1..64
    Config.limits_ms(config)
    no_nul!(IO.iodata_to_binary(Config.hostname(config, behaviour)))
    for path <- Config.fstab(config), do: no_nul!(IO.iodata_to_binary(path))
    ops = behaviour.ops(config)
    assert is_list(ops)
    # As the native side sees them: nothing of it is refused there.
    for op <- ops, do: assert(tuple_size(op) in 2..4 and is_atom(elem(op, 0)))
  end

  defp checked(config, verb, behaviour) do
    Config.validate!(config, [], verb, behaviour)
  rescue
    error in ArgumentError ->
      assert is_binary(Exception.message(error))
      :refused
  end

  test "every value is refused, or can be used", %{seed: seed} do
    counts =
      for _ <- 1..@rounds do
        config = config()
        behaviour = pick(@behaviours)

        try do
          case checked(config, pick([:stream, :pipe]), behaviour) do
            :refused ->
              :refused

            [] ->
              :empty

            _ ->
              usable!(config, behaviour)
              :used
          end
        rescue
          error ->
            IO.puts(
              "\n  failed with STDIO_SEED=#{seed}: #{inspect(behaviour)} #{inspect(config)}"
            )

            reraise error, __STACKTRACE__
        end
      end
      |> Enum.frequencies()

    # Of both there is enough.
    assert %{refused: refused, used: used} = counts
    assert refused > @rounds / 10 and used > @rounds / 20
  end
end
