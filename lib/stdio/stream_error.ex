defmodule Stdio.StreamError do
  @moduledoc """
  A program could not be started.

  Raised in the process that enumerates the stream, after everything that had been started was
  undone: no process, descriptor or message is left behind, and no link ever kills the caller.

  | field | |
  |---|---|
  | `:reason` | lower-case errno atom, see [errno(3)](https://man7.org/linux/man-pages/man3/errno.3.html) |
  | `:action` | `"supervisor"`: the tree could not be set up; `"subprocess"`: the program could not be executed |
  | `:message` | `error creating <action>: <command>: <text> (<reason>)`, then a blank line and the hint, if there is one |
  | `:hint` | what to do about it on this machine, or `nil` |

  ## Reasons for `"supervisor"`

  | reason | case | what to do |
  |---|---|---|
  | any | the behaviour's `task/1` returned `{:error, reason}` | see that behaviour |
  | `:enoent` | the helper program is missing | build it; the hint says where it is expected and how |
  | `:eacces` | the helper is not executable, or has the setuid bit but not mode 4750 and owner root | correct its mode or owner; mount its file system without `noexec` |
  | `:eacces` | `sudo` or `doas` refused, or asked for a password | add the line in the hint to sudoers or doas.conf |
  | `:eproto` | the helper is of another version | rebuild it together with the library |
  | `:enotsup` | the `containment:` asked for is impossible here, or is not that of the given supervisor | provide what the hint names, or use `containment: :auto` |
  | `:etimedout` | the helper did not answer within 5 s | look at the load of the machine and at `sudo`'s configuration, then try again |
  | `:emfile` | no descriptors left | raise `ulimit -n`, or run fewer programs at once |

  ## Reasons for `"subprocess"`

  The errno of [execve(2)](https://man7.org/linux/man-pages/man2/execve.2.html), after all ops
  have succeeded.

  | reason | case | what to do |
  |---|---|---|
  | `:enoent` | no such program, or its `#!` interpreter or ELF loader is missing; the command `[]`; nothing found in `PATH` | check the path as seen *inside* the new root; use `{:search, [name]}` for a look-up in `PATH` |
  | `:eacces` | not executable, a directory on the way cannot be searched, a file system mounted `noexec`; `PATH` has only non-executable files of that name | check modes for the uid the program runs with |
  | `:e2big` | arguments and environment are larger than the kernel allows, or one string is over 128 KiB | send the data through stdin |
  | `:enoexec` | not a binary for this machine, and no `#!` line | add the `#!` line, or run it by its interpreter |
  | `:enotdir`, `:eloop`, `:enametoolong` | malformed path | correct the path |
  | `:etxtbsy` | the program file is open for writing | close it first |
  | `:eperm` | forbidden by a security module, or a setuid program on a `nosuid` or traced process | see the system's log |
  | `:enomem`, `:eagain` | out of memory, or over the process limit of the new uid ([getrlimit(2)](https://man7.org/linux/man-pages/man2/getrlimit.2.html), RLIMIT_NPROC) | raise the limit |
  | `:eagain` with a hint | the process died during set-up; the hint names the signal | check `rlimit:` and seccomp filters among the ops |

  What fails between the two, in `init/1` or in an op, is a `Stdio.OpError`.
  """

  defexception [:reason, :action, :message, :hint]

  @type t :: %__MODULE__{
          reason: atom,
          action: String.t(),
          message: String.t(),
          hint: String.t() | nil
        }

  @doc """
  Builds the exception from `:action`, `:reason`, `:command` (as the caller wrote it) and, if
  there is one, `:hint`.

      iex> e = Stdio.StreamError.exception(
      ...>   action: "subprocess", reason: :enoent, command: ["/nope", "a"])
      iex> e.message
      ~s|error creating subprocess: ["/nope", "a"]: no such file or directory (enoent)|
  """
  @impl true
  @spec exception(keyword) :: t
  def exception(opts) do
    action = Keyword.fetch!(opts, :action)
    reason = Keyword.fetch!(opts, :reason)
    command = Keyword.fetch!(opts, :command)
    hint = opts[:hint] || hint(action, reason, command)

    message = "error creating #{action}: #{inspect(command)}: #{reason_text(reason)}"
    %__MODULE__{reason: reason, action: action, hint: hint, message: with_hint(message, hint)}
  end

  defp hint("subprocess", :enoexec, _command) do
    "It is no binary for this machine and has no #! line: add one, or run it by its interpreter."
  end

  defp hint("subprocess", :enoent, [path | _]) when is_binary(path) do
    if Path.type(path) == :absolute and File.exists?(path) do
      "#{path} is there. What is missing is the interpreter in its #! line or its ELF loader, or, " <>
        "behind a root of its own, the file itself: see `fstab:`."
    else
      bare_name(path)
    end
  end

  defp hint(_action, _reason, _command), do: nil

  defp bare_name(path) do
    if path != "" and not String.contains?(path, "/") do
      "Without `search: true`, or {:search, #{inspect([path])}}, the program of a list is a file of the " <>
        "working directory."
    end
  end

  defp with_hint(message, nil), do: message
  defp with_hint(message, hint), do: message <> "\n\n" <> hint

  @doc false
  # `no such file or directory (enoent)`. The texts are Erlang's; an errno it does not know is
  # "unknown POSIX error". Behaviours written by users may return any term as a reason.
  @spec reason_text(term) :: String.t()
  def reason_text(reason) when is_atom(reason) do
    "#{:file.format_error(reason)} (#{Atom.to_string(reason)})"
  end

  def reason_text(reason), do: "unknown error (#{inspect(reason)})"
end
