defmodule Stdio.PackagingTest do
  @moduledoc """
  The library as its users get it: the files of the package, in a directory with a space in its
  path, as a dependency of another project, and inside a release.
  """

  use ExUnit.Case, async: true

  @moduletag :cargo
  @moduletag :slow
  # Most of it is cargo's link-time optimisation.
  @moduletag timeout: 600_000

  @mix_exs """
  defmodule Consumer.MixProject do
    use Mix.Project

    def project do
      [app: :consumer, version: "1.0.0", deps: [{:stdio, path: "../stdio"}]]
    end
  end
  """

  @consumer """
  defmodule Consumer do
    def hello(word) do
      Stdio.stream!({:search, ["echo", "hello", word]}) |> Enum.to_list()
    end
  end
  """

  # Each entry of the list names something, and what is built from it does not get in by accident.
  @built ~w(target _build deps priv .git)

  setup_all do
    # The same path each time, or cargo's cache would keep a build for each.
    dir = Path.join(Mix.Project.build_path(), "packaging test")
    File.rm_rf!(dir)
    on_exit(fn -> File.rm_rf!(dir) end)
    source = Path.join(dir, "stdio")
    consumer = Path.join(dir, "consumer")

    for from <- packaged() do
      to = Path.join(source, from)
      File.mkdir_p!(Path.dirname(to))
      File.cp_r!(from, to)
    end

    File.mkdir_p!(Path.join(consumer, "lib"))
    File.write!(Path.join(consumer, "mix.exs"), @mix_exs)
    File.write!(Path.join(consumer, "lib/consumer.ex"), @consumer)

    before = tree(source)
    compiled = mix!(consumer, ["compile"])
    %{source: source, consumer: consumer, before: before, compiled: compiled}
  end

  test "has what Hex asks for, and nothing that was built" do
    project = Mix.Project.config()
    assert [_ | _] = project[:package][:licenses]
    assert is_map(project[:package][:links])
    assert String.length(project[:description]) in 1..300

    for pattern <- project[:package][:files] do
      assert Path.wildcard(pattern, match_dot: true) != [], "no file is called #{pattern}"
    end

    for file <- Enum.flat_map(packaged(), &[&1 | tree(&1)]) do
      assert Path.split(file) -- @built == Path.split(file), "#{file} is in the package"
      refute Path.extname(file) in ~w(.so .beam .a .rlib), "#{file} is in the package"
    end
  end

  test "builds as a dependency and writes nothing into its source", context do
    assert context.compiled =~ "cargo"
    assert tree(context.source) == context.before
  end

  test "a second build does not call cargo", %{consumer: consumer} do
    refute mix!(consumer, ["compile"]) =~ "cargo"
  end

  test "runs in the project", %{consumer: consumer} do
    output = mix!(consumer, ["run", "-e", ~S|IO.inspect(Consumer.hello("project"))|])
    assert output =~ ~S|[stdout: "hello project\n", exit_status: 0]|
  end

  test "runs in a release, which may be moved", %{consumer: consumer} do
    moved = Path.join(Path.dirname(consumer), "moved release")
    mix!(consumer, ["release", "--quiet"])
    File.rename!(Path.join(consumer, "_build/prod/rel/consumer"), moved)

    # The NIF and the helper of there, and not those of the build.
    code = ~S"""
    IO.inspect(Consumer.hello("release"))
    priv = :code.priv_dir(:stdio) |> Path.join("native") |> Path.expand()
    IO.puts("priv: #{priv}")
    "/proc/self/maps" |> File.read!() |> then(&Regex.run(~r{/.*/stdio_nif\.so}, &1)) |> IO.puts()
    for exe <- Path.wildcard("/proc/[0-9]*/exe"), {:ok, path} <- [File.read_link(exe)] do
      if path == priv <> "/stdio-supervise", do: IO.puts("helper is there")
    end
    """

    output = run!(Path.join(moved, "bin/consumer"), ["eval", code], cd: "/")
    assert output =~ ~S|[stdout: "hello release\n", exit_status: 0]|
    assert output =~ "priv: #{moved}/lib/stdio-"
    assert output =~ ~r{^#{Regex.escape(moved)}/lib/stdio-[^/]+/priv/native/stdio_nif\.so$}m
    assert output =~ "helper is there"
  end

  # What the README tells a newcomer to do, with its own words.
  @tag :userns
  test "the README's background job, in a new project", %{source: source} do
    dir = Path.dirname(source)
    readme = File.read!("README.md")
    [_, section] = String.split(readme, "\n## A background job, from nothing\n")
    [section | _] = String.split(section, "\n## ")
    [create, run] = for [_, code] <- Regex.scan(~r/^```sh\n(.*?)^```$/ms, section), do: code

    sh!(create, dir)
    project = Path.join(dir, "my_app")

    # Its block for mix.exs takes the place of the function of that name.
    [_, deps] = Regex.run(~r/^# mix.exs\n(defp deps do\n.*?^end\n)/ms, readme)
    mix_exs = Path.join(project, "mix.exs")
    new = Regex.replace(~r/^  defp deps do\n.*?^  end\n/ms, File.read!(mix_exs), fn _ -> deps end)
    assert new =~ deps
    File.write!(mix_exs, new)

    files = Regex.scan(~r/^```elixir\n# (lib\/\S+)\n(.*?)^```$/ms, section)
    assert length(files) == 2
    for [_, file, code] <- files, do: File.write!(Path.join(project, file), code)

    [run | expected] = String.split(run, ~r/^#=> /m)
    assert length(expected) == 2
    output = sh!(run, project)
    refute output =~ "warning:"
    assert String.ends_with?(output, "Generated my_app app\n" <> Enum.join(expected))
  end

  test "the helper is static, and both files have the modes they need", %{consumer: consumer} do
    native = Path.join(consumer, "_build/prod/lib/stdio/priv/native")
    assert Enum.sort(File.ls!(native)) == ["stdio-supervise", "stdio_nif.so"]

    helper = Path.join(native, "stdio-supervise")
    assert Bitwise.band(File.stat!(helper).mode, 0o777) == 0o755
    # 3 is PT_INTERP, which names the dynamic linker.
    refute 3 in elf_segments(helper)
    assert 1 in elf_segments(helper)
  end

  # As Hex takes them: a directory is everything in it.
  defp packaged do
    for pattern <- Mix.Project.config()[:package][:files],
        file <- Path.wildcard(pattern, match_dot: true),
        do: file
  end

  defp tree(dir), do: Path.wildcard(Path.join(dir, "**"), match_dot: true)

  # The types of the program headers of a 64-bit little-endian ELF file.
  defp elf_segments(path) do
    elf = File.read!(path)

    <<0x7F, "ELF", 2, 1, _::binary-size(26), offset::little-64, _::binary-size(14),
      size::little-16, count::little-16, _::binary>> = elf

    for n <- Enum.take(0..count, count) do
      <<type::little-32>> = binary_part(elf, offset + n * size, 4)
      type
    end
  end

  defp mix!(dir, args), do: run!("mix", args, cd: dir, env: build_env())

  defp sh!(lines, dir), do: run!("/bin/sh", ["-e", "-c", lines], cd: dir, env: build_env())

  # Cargo's cache of this project: the crates of others are built already.
  defp build_env do
    [
      {"MIX_ENV", "prod"},
      {"MIX_BUILD_PATH", nil},
      {"MIX_BUILD_ROOT", nil},
      {"CARGO_TARGET_DIR", Mix.Tasks.Compile.Cargo.target_dir()}
    ]
  end

  defp run!(command, args, opts) do
    {output, status} = System.cmd(command, args, [stderr_to_stdout: true] ++ opts)
    assert status == 0, "#{command} #{Enum.join(args, " ")} ended with #{status}:\n#{output}"
    output
  end
end
