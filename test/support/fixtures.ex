defmodule Stdio.Test.Fixtures do
  @moduledoc """
  The hostile programs of `native/testbin`: built once per run, found by name.

  `STDIO_TESTBIN_DIR` names a directory with the built programs. It is for a user who can read the
  tree but not build it; then nothing is built.
  """

  @root Path.expand("../..", __DIR__)

  @doc "Builds the programs, with cargo's progress on stderr; quick when they are up to date."
  @spec build!() :: :ok
  def build! do
    unless System.get_env("STDIO_TESTBIN_DIR"), do: cargo_build!()

    # One for all: they are built together.
    unless File.exists?(path("fork-tree")) do
      raise "no fixtures in #{dir()} (STDIO_TESTBIN_DIR is " <>
              "#{inspect(System.get_env("STDIO_TESTBIN_DIR"))})"
    end

    :ok
  end

  @doc "The absolute path of a fixture."
  @spec path(String.t()) :: Path.t()
  def path(name), do: Path.join(dir(), name)

  @doc "The first `length` bytes that `fill-pipe` writes: byte i is `rem(i, 251)`."
  @spec pattern(non_neg_integer) :: binary
  def pattern(length) do
    period = for byte <- 0..250, into: <<>>, do: <<byte>>
    period |> :binary.copy(div(length, 251) + 1) |> binary_part(0, length)
  end

  @doc "Lower-case hexadecimal SHA-256, as `digest` prints it."
  @spec sha256(iodata) :: String.t()
  def sha256(data), do: :crypto.hash(:sha256, data) |> Base.encode16(case: :lower)

  defp dir do
    case System.get_env("STDIO_TESTBIN_DIR") do
      nil -> Path.join(target_dir(), "release")
      dir -> Path.expand(dir)
    end
  end

  defp cargo_build! do
    cargo =
      System.find_executable("cargo") ||
        System.find_executable(Path.expand("~/.cargo/bin/cargo")) ||
        raise "cargo was not found: run bin/setup, or set STDIO_TESTBIN_DIR"

    IO.puts("Building the test fixtures with cargo in #{target_dir()}")

    # Link-time optimisation of some 15 programs takes ten times as long and makes none better.
    env = [{"CARGO_TARGET_DIR", target_dir()}, {"CARGO_PROFILE_RELEASE_LTO", "off"}]
    args = ~w(build --release --locked -p stdio-testbin)

    case System.cmd(cargo, args, cd: @root, env: env, into: IO.stream()) do
      {_, 0} -> :ok
      {_, status} -> raise "cargo #{Enum.join(args, " ")} failed with status #{status}, see above"
    end
  end

  # The directory of the Mix compiler `:cargo`, so that crates are not compiled twice.
  defp target_dir do
    cond do
      dir = System.get_env("CARGO_TARGET_DIR") ->
        Path.expand(dir)

      function_exported?(Mix.Tasks.Compile.Cargo, :target_dir, 0) ->
        apply(Mix.Tasks.Compile.Cargo, :target_dir, [])

      true ->
        Path.join(@root, "_build/stdio_cargo")
    end
  end
end
