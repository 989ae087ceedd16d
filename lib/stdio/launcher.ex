defmodule Stdio.Launcher do
  @moduledoc false
  # Starting the helper: where it is, as whom it runs, and what to tell a person when it cannot be
  # had.
  #
  # There is one launcher for each privilege. A privilege is a command in front of the helper's
  # path; `""` is the BEAM's own user. The current one is app env `:exec`, as CONTRACT 1.1 has it.

  alias Stdio.Native

  import Bitwise

  @type privilege :: String.t()

  @setuid_bit 0o4000
  @executable_by_others 0o001
  @unprivileged "--unprivileged"

  @doc "What later supervisors are started with."
  @spec privilege() :: privilege
  def privilege, do: Application.get_env(:stdio, :exec, "")

  @spec put_privilege(iodata) :: :ok
  def put_privilege(prefix),
    do: Application.put_env(:stdio, :exec, prefix |> IO.iodata_to_binary() |> String.trim())

  @doc "The command that this system's users know, which asks for no password."
  @spec default_prefix() :: privilege
  def default_prefix do
    case :os.type() do
      {:unix, :openbsd} -> "doas"
      _ -> "sudo -n"
    end
  end

  @doc """
  Makes sure that a launcher with this privilege runs. `{:error, {posix, hint}}` says what to do
  about it.
  """
  @spec ensure(privilege) :: :ok | {:error, {atom, String.t()}}
  def ensure(privilege \\ privilege()) do
    helper = helper()

    with {:ok, way} <- way(privilege, helper) do
      launch(privilege, way, helper, 2)
    end
  end

  @spec helper() :: Path.t()
  def helper, do: Application.app_dir(:stdio, "priv/native/stdio-supervise")

  # How to start it: {what is in front of it, its arguments, who it has to be}.
  defp way("", helper) do
    case setuid(helper) do
      :none -> {:ok, {[], [], :anyone}}
      _bit -> {:ok, {[], [@unprivileged], :anyone}}
    end
  end

  defp way(prefix, helper) do
    default? = prefix == default_prefix()

    case default? && setuid(helper) do
      :guarded ->
        {:ok, {[], [], :root}}

      :open ->
        {:error,
         {:eacces,
          "The helper at #{helper} has the setuid bit, but is not root's or may be executed by " <>
            "anyone, and it does as root whatever it is told: chown root:GROUP and chmod 4750 it, " <>
            "with the BEAM's user in GROUP."}}

      _none ->
        # Root needs nobody's leave.
        if default? and Native.root?(),
          do: {:ok, {[], [], :root}},
          else: found(String.split(prefix), if(default?, do: :root, else: :anyone))
    end
  end

  defp found([program | arguments], runs_as) do
    case executable(program) do
      nil ->
        {:error,
         {:enoent,
          "#{program} is not installed, or not in the PATH of the BEAM. Install it, or give the " <>
            "helper the setuid bit (see Stdio.setuid/0), or call Stdio.__setuid__(false)."}}

      path ->
        {:ok, {[path | arguments], [], runs_as}}
    end
  end

  defp executable("/" <> _ = path), do: if(File.exists?(path), do: path)
  defp executable(name), do: System.find_executable(name)

  @doc "The helper's setuid bit; `:open`: anyone could use it."
  @spec setuid(Path.t()) :: :none | :guarded | :open
  def setuid(helper) do
    case File.stat(helper) do
      {:ok, %{mode: mode}} when (mode &&& @setuid_bit) == 0 -> :none
      {:ok, %{mode: mode, uid: 0}} when (mode &&& @executable_by_others) == 0 -> :guarded
      {:ok, _} -> :open
      {:error, _} -> :none
    end
  end

  defp launch(privilege, {front, arguments, runs_as} = way, helper, tries) do
    case Native.launch(privilege, front ++ [helper | arguments], runs_as) do
      :ok ->
        :ok

      # It ended without a word, as one does that is killed at its start: once more.
      {:error, {:eproto, ""}} when tries > 1 ->
        launch(privilege, way, helper, tries - 1)

      {:error, {reason, said}} ->
        {:error, explain(front, reason, helper, String.trim(said))}
    end
  end

  defp explain([], :eperm, helper, _said) do
    {:eacces,
     "The setuid bit of the helper at #{helper} has no effect. Is its file system mounted " <>
       "nosuid, or does the BEAM run with NO_NEW_PRIVS (systemd: NoNewPrivileges=no)?"}
  end

  defp explain([], reason, helper, said), do: {reason, hint(reason, helper, said)}

  defp explain([program | _], :eperm, _helper, _said),
    do: {:eacces, "#{program} started the helper, but not as root."}

  # What it is told on its descriptor 0 never reached it: something stands in between.
  defp explain([program | _], :eproto, helper, "stdio-supervise" <> _) do
    {:eacces,
     "#{program} gives the helper another standard input than the one it was started with, as " <>
       "sudo does to log it. In /etc/sudoers.d/stdio: " <>
       "Defaults!#{helper} !log_input, !log_output, !use_pty"}
  end

  defp explain([program | _], :eproto, helper, said) do
    {:eacces,
     "#{program} refused to start the helper." <>
       said(said) <> " To allow it, #{allow(program, helper)}"}
  end

  defp explain([program | _], :etimedout, _helper, said) do
    {:etimedout,
     "#{program} did not start the helper within 5 seconds. Does it ask for something?" <>
       said(said)}
  end

  defp explain([program | _], reason, _helper, said),
    do: {reason, "#{program} could not be started: #{:file.format_error(reason)}." <> said(said)}

  defp allow(program, helper) do
    user = System.get_env("USER") || "USER"

    case Path.basename(program) do
      "doas" -> "add to /etc/doas.conf: permit nopass #{user} as root cmd #{helper}"
      _ -> "add to /etc/sudoers.d/stdio: #{user} ALL=(root) NOPASSWD: #{helper}"
    end
  end

  defp hint(:enoent, helper, _said) do
    "The helper is missing: it is expected at #{helper}. Build it with `mix compile` in the " <>
      "project that depends on :stdio (for a release: build the release again)."
  end

  defp hint(:eacces, helper, _said) do
    "The helper at #{helper} cannot be executed. Give it mode 0755 (0750 with the setuid bit, " <>
      "and this user in its group), and see that no directory above it is closed to this user " <>
      "and that its file system is not mounted noexec."
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

  defp said(text) do
    if String.ends_with?(text, [".", "!", "?"]),
      do: " It said: #{text}",
      else: " It said: #{text}."
  end
end
