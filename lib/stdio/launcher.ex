defmodule Stdio.Launcher do
  @moduledoc false
  # Starting the helper: where it is, and what to tell a person when it cannot be had.

  alias Stdio.Native

  @doc "Makes sure that a launcher runs. `{:error, {posix, hint}}` says what to do about it."
  @spec ensure() :: :ok | {:error, {atom, String.t()}}
  def ensure, do: ensure(2)

  defp ensure(tries) do
    helper = helper()

    case Native.launch([helper]) do
      :ok -> :ok
      # It ended without a word, as one does that is killed at its start: once more.
      {:error, {:eproto, ""}} when tries > 1 -> ensure(tries - 1)
      {:error, {reason, said}} -> {:error, {reason, hint(reason, helper, String.trim(said))}}
    end
  end

  @spec helper() :: Path.t()
  def helper, do: Application.app_dir(:stdio, "priv/native/stdio-supervise")

  defp hint(:enoent, helper, _said) do
    "The helper is missing: it is expected at #{helper}. Build it with `mix compile` in the " <>
      "project that depends on :stdio (for a release: build the release again)."
  end

  defp hint(:eacces, helper, _said) do
    "The helper at #{helper} cannot be executed. Give it mode 0755, and see that no directory " <>
      "above it is closed to this user and that its file system is not mounted noexec."
  end

  defp hint(:eproto, helper, said) do
    "The helper at #{helper} is not the one that this version of :stdio was built with. Build " <>
      "both again: `mix deps.compile stdio --force`, or `mix compile --force` in its own " <>
      "checkout." <> said(said)
  end

  defp hint(:etimedout, helper, said) do
    "The helper at #{helper} did not answer within 5 seconds." <> said(said)
  end

  defp hint(reason, helper, said) do
    "The helper at #{helper} could not be started: #{:file.format_error(reason)}." <> said(said)
  end

  defp said(""), do: ""
  defp said(text), do: " It said: #{text}"
end
