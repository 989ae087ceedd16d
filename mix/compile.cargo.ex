defmodule Mix.Tasks.Compile.Cargo do
  @moduledoc """
  Builds the native part of Stdio with cargo and puts it into `priv/native` of the built app.

  | from | cargo call | to |
  |---|---|---|
  | `native/nif` | release profile | `priv/native/stdio_nif.so` |
  | `native/supervise` | helper profile, linked statically | `priv/native/stdio-supervise` |

  It is two calls because the flag that links the helper statically cannot build a shared library.

  Rules:

  1. Cargo runs only when a source, the lock file, this file or `RUSTFLAGS` differs from the last
     build, by content. So a built tree can be moved, or used where there is no cargo. After a
     change of toolchain the old files stay valid; `mix compile --force` asks cargo again.
  2. Nothing is written outside the build directory: `priv` is made in
     `_build/ENV/lib/stdio`, where `:code.priv_dir/1` and `mix release` look for it. Only when
     the source has a `priv` of its own, Mix makes a link to that, and the files land there.
  3. A file is replaced by a rename. A BEAM which has the old one mapped goes on with it.
  4. Cargo's own files are shared by all environments, in `_build/stdio_cargo`, or go to
     `CARGO_TARGET_DIR` if that is set.
  """

  use Mix.Task.Compiler

  @recursive true

  @root Path.dirname(__DIR__)

  # Packages of the workspace which go into neither file (tests, benches) are left out.
  @inputs [
    "Cargo.{toml,lock}",
    "rust-toolchain{,.toml}",
    ".cargo/config{,.toml}",
    "mix/compile.cargo.ex",
    "native/{protocol,nif,supervise}/**/*"
  ]

  @rustflags ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"]

  @impl true
  def run(args) do
    digest = digest()

    if "--force" not in args and fresh?(digest) do
      {:noop, []}
    else
      build()
      # A source that was edited meanwhile is seen next time: the digest is of before.
      File.mkdir_p!(Path.dirname(manifest()))
      File.write!(manifest(), digest)
      {:ok, []}
    end
  end

  @impl true
  def manifests, do: [manifest()]

  @impl true
  def clean do
    File.rm_rf!(native_dir())
    # A directory named by the user holds more than our files.
    unless user_target_dir(), do: File.rm_rf!(target_dir())
    :ok
  end

  @doc "The directory for cargo's own files, absolute."
  @spec target_dir() :: Path.t()
  def target_dir do
    # MIX_BUILD_PATH names one environment's directory; what lies beside it is not ours.
    user_target_dir() ||
      if System.get_env("MIX_BUILD_PATH") do
        Path.join(Mix.Project.build_path(), "stdio_cargo")
      else
        Mix.Project.build_path() |> Path.dirname() |> Path.join("stdio_cargo")
      end
  end

  defp user_target_dir do
    case System.get_env("CARGO_TARGET_DIR", "") do
      "" -> nil
      dir -> Path.expand(dir)
    end
  end

  defp manifest, do: Path.join(Mix.Project.manifest_path(), "compile.cargo")

  defp native_dir, do: Path.join([Mix.Project.app_path(), "priv", "native"])

  defp installed(name), do: Path.join(native_dir(), name)

  defp fresh?(digest) do
    File.read(manifest()) == {:ok, digest} and
      Enum.all?(["stdio_nif.so", "stdio-supervise"], &File.regular?(installed(&1)))
  end

  defp digest do
    files =
      File.cd!(@root, fn ->
        for pattern <- @inputs,
            file <- Path.wildcard(pattern, match_dot: true),
            File.regular?(file) do
          [file, 0, :erlang.md5(File.read!(file))]
        end
      end)

    flags = for name <- @rustflags, do: [System.get_env(name, ""), 0]
    system = List.to_string(:erlang.system_info(:system_architecture))
    [system, 0, flags, files] |> :erlang.md5() |> Base.encode16(case: :lower)
  end

  defp build do
    {cargo, host} = toolchain!()
    Mix.shell().info("Compiling the native part of Stdio with cargo, for #{host}")
    built = Path.join(target_dir(), host)

    cargo!(cargo, ~w(build --release -p stdio-nif --target #{host}), nif_flags(host), "")
    install(Path.join(built, "release/libstdio_nif.so"), "stdio_nif.so", 0o644)

    cargo!(
      cargo,
      ~w(build --profile helper -p stdio-supervise --target #{host}),
      "-C target-feature=+crt-static",
      "\nThe helper is linked statically: that needs the static C library " <>
        "(libc.a; in libc6-dev on Debian and Ubuntu, glibc-static on Fedora)."
    )

    install(Path.join(built, "helper/stdio-supervise"), "stdio-supervise", 0o755)
  end

  # Targets with musl link statically by default, which a shared library cannot.
  defp nif_flags(host), do: if(host =~ "musl", do: "-C target-feature=-crt-static", else: "")

  defp cargo!(cargo, args, flags, hint) do
    # Cargo writes its progress to stderr, which is inherited: it is seen while it happens.
    # `--target` keeps the flags away from build scripts and procedural macros.
    env = [{"CARGO_TARGET_DIR", target_dir()} | rustflags(flags)]

    case System.cmd(cargo, args ++ ["--locked"], cd: @root, env: env, into: IO.stream()) do
      {_, 0} ->
        :ok

      {_, status} ->
        Mix.raise("cargo #{Enum.join(args, " ")} failed with status #{status}, see above.#{hint}")
    end
  end

  # Adds to the flags of the user, in the variable that cargo would read first.
  defp rustflags(""), do: []

  defp rustflags(flags) do
    case System.get_env("CARGO_ENCODED_RUSTFLAGS") do
      nil -> [{"RUSTFLAGS", String.trim("#{System.get_env("RUSTFLAGS")} #{flags}")}]
      "" -> [{"CARGO_ENCODED_RUSTFLAGS", encode(flags)}]
      encoded -> [{"CARGO_ENCODED_RUSTFLAGS", encoded <> "\x1f" <> encode(flags)}]
    end
  end

  defp encode(flags), do: String.replace(flags, " ", "\x1f")

  defp install(from, name, mode) do
    to = installed(name)

    if File.read(to) != File.read(from) do
      File.mkdir_p!(native_dir())
      temp = "#{to}.#{System.pid()}.tmp"
      File.cp!(from, temp)
      File.chmod!(temp, mode)
      File.rename!(temp, to)
    end
  end

  # Cargo's path and the triple of this machine; raises if cargo is missing or too old.
  defp toolchain! do
    needed = rust_version()

    cargo =
      System.find_executable("cargo") ||
        System.find_executable(Path.expand("~/.cargo/bin/cargo")) ||
        Mix.raise("cargo was not found. " <> advice(needed))

    # From @root, because rustup chooses the toolchain by directory.
    with {output, 0} <- System.cmd(cargo, ["-vV"], cd: @root, stderr_to_stdout: true),
         [_, release] <- Regex.run(~r/^release: (\d+\.\d+\.\d+)/m, output),
         [_, host] <- Regex.run(~r/^host: (\S+)/m, output) do
      if Version.compare(release, needed) == :lt do
        Mix.raise("#{cargo} is of Rust #{release}. " <> advice(needed))
      end

      {cargo, host}
    else
      {output, status} ->
        Mix.raise("#{cargo} -vV failed with status #{status}: #{output}\n" <> advice(needed))

      nil ->
        Mix.raise("#{cargo} -vV does not tell its release and host. " <> advice(needed))
    end
  end

  defp rust_version do
    manifest = File.read!(Path.join(@root, "Cargo.toml"))
    [_, major, minor] = Regex.run(~r/^rust-version = "(\d+)\.(\d+)/m, manifest)
    "#{major}.#{minor}.0"
  end

  defp advice(needed) do
    "The native part of Stdio is built with Rust #{needed} or later. In a checkout of Stdio " <>
      "bin/setup installs it where the distribution has it; otherwise install it from " <>
      "https://rustup.rs (or run `rustup update stable`), and run the command again."
  end
end
