Code.require_file("mix/compile.cargo.ex", __DIR__)

defmodule Stdio.MixProject do
  use Mix.Project

  @version "0.1.0"

  def project do
    [
      app: :stdio,
      version: @version,
      elixir: "~> 1.14",
      # The NIF must be in place before a module that loads it is compiled.
      compilers: [:cargo | Mix.compilers()],
      elixirc_paths: elixirc_paths(Mix.env()),
      start_permanent: Mix.env() == :prod,
      deps: deps(),
      name: "Stdio",
      description: "A control plane for operating-system processes, on a Rust core",
      package: package(),
      docs: docs()
    ]
  end

  def application do
    [extra_applications: [:logger | test_applications(Mix.env())]]
  end

  defp test_applications(:test), do: [:crypto]
  defp test_applications(_), do: []

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_), do: ["lib"]

  # None, so that a build needs a Rust toolchain and the crates of Cargo.lock, but no Hex. A
  # package that Stdio can work with is looked for at run time (Code.ensure_loaded?/1).
  defp deps, do: []

  # All members of the Cargo workspace have to be there for cargo to read it. Without tests, guides,
  # examples and notebooks.
  defp package do
    [
      licenses: ["MIT"],
      links: %{},
      files: ~w(lib mix native bench/floor Cargo.toml Cargo.lock mix.exs .formatter.exs
                README.md CHANGELOG.md LICENSE)
    ]
  end

  # For bin/docs.
  defp docs do
    decisions = Path.wildcard("docs/decisions/*.md")
    guides = Path.wildcard("docs/*.md")

    [
      main: "readme",
      # "stdio" would be the page of the module Stdio, where the case of letters means nothing.
      extras:
        ["README.md"] ++
          guides ++
          [{"docs/bench.txt", title: "Benchmarks"}] ++
          [{"notebooks/stdio.livemd", filename: "tour"}] ++
          ~w(CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE) ++ decisions,
      groups_for_extras: [Decisions: decisions],
      # The picture of README.md, at the same place.
      assets: %{"docs" => "docs"},
      # They name what users do not see.
      skip_undefined_reference_warnings_on: decisions,
      groups_for_modules: [
        Behaviours: [Stdio.Process, Stdio.Container, Stdio.Rootless, Stdio.Jail],
        "Calls on a process": [Stdio.Task, Stdio.Op, Stdio.Seccomp, Stdio.ProcessTree],
        "This system": [~r/^Stdio\.Syscall/, Stdio.Procfs, Stdio.Signal],
        Errors: [Stdio.StreamError, Stdio.OpError]
      ]
    ]
  end
end
