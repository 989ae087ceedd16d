defmodule Stdio.OpError do
  @moduledoc """
  A step between the birth of a process and the start of its program failed.

  Raised in the process that enumerates the stream, after `onerror` has run once, nothing of the
  tree is left and no later op was attempted: a restriction that could not be applied never ends
  in a program that runs without it.

  | field | |
  |---|---|
  | `:reason` | see below |
  | `:op` | `{module, function, args}` of the failed op, `args` as they stand in it (without the task); `nil` if there was none |
  | `:message` | what happened, the call, and the ops that were not run; ends in a newline |

  | case | `:reason` | message | what to do |
  |---|---|---|---|
  | `init/1` returned `{:error, e}` | `e` | `error attempting to fork subprocess: <text> (e)` | `:eperm`: the behaviour needs root or user namespaces, see `Stdio.setuid/0`; `:eagain`: raise the process limits; `:enotsup`: not on this OS |
  | `init/1` returned `{:ok, []}` | `:eagain` | the same | return at least one task |
  | a task that is dead already | `:einval` | the same | do not reuse a pipeline |
  | an op returned `{:error, e}` | `e` | `operation returned an error: <text> (e)`, the call, the remaining ops | mend the cause; or mark the op `errexit: false` or `ignore: [e]` if the program may run without it |
  | an op returned something else | `:badop` | `** (MatchError) …`, the call, the remaining ops | give the op a `transform:` which returns `:ok`, `{:ok, state}`, a list of ops or `{:error, posix}` |
  | an op of no known form | `:badop` | what it is, the forms there are, the remaining ops | see `Stdio.Op` |
  | an op raised, threw or exited; there is no such call | `:badop` | the exception, the call, the remaining ops | correct the name or the arguments of the op |

  Where the cause is a setting of the system or a root tree that is not there, the message ends with
  a sentence on it.

  `Exception.blame/3`, which IEx, `mix run` and ExUnit call, adds to a result that is none what an op has
  to return.

  Errno texts are Erlang's (`:file.format_error/1`). `inspect/1`, and so a supervisor's report, shows
  the message in one line, without the remaining ops.
  """

  defexception [:reason, :message, :op]

  @no_match "** (MatchError) no match of right hand side value: "

  @type op :: {module, atom, [term]}
  @type t :: %__MODULE__{reason: term, message: String.t(), op: op | nil}

  @doc "`init/1` failed, returned no task, or a task is dead; `op` is `nil`."
  @spec fork(term) :: t
  def fork(reason) do
    %__MODULE__{
      reason: reason,
      message: "error attempting to fork subprocess: #{fork_text(reason)}\n"
    }
  end

  @doc "The call `op` returned `{:error, reason}`; `remaining` are the ops not run."
  @spec failed(term, op, [term]) :: t
  def failed(reason, op, remaining) do
    text = Stdio.StreamError.reason_text(reason)

    %__MODULE__{
      reason: reason,
      op: op,
      message: "operation returned an error: #{text}\n\n#{call(op)}\n\n#{rest(remaining)}"
    }
    |> with_hint(Stdio.Container.Hint.op(reason, op))
  end

  @doc "Adds what to do about it as a last paragraph; `nil` adds nothing."
  @spec with_hint(t, String.t() | nil) :: t
  def with_hint(error, nil), do: error
  def with_hint(error, hint), do: %{error | message: "#{error.message}\n#{hint}\n"}

  @doc "The call `op` returned `value`, which is none of the results an op may have."
  @spec bad_result(term, op, [term]) :: t
  def bad_result(value, op, remaining) do
    # Written out because Elixir changed the text of its own MatchError over time.
    badop(@no_match <> inspect(value), op, remaining)
  end

  @doc "The call `op` ended in an exception, a throw or an exit, given as `catch` gives it."
  @spec raised({:error | :throw | :exit, term, Exception.stacktrace()}, op, [term]) :: t
  def raised({kind, payload, stacktrace}, op, remaining) do
    badop(Exception.format_banner(kind, payload, stacktrace), op, remaining)
  end

  @doc "`op` has none of the forms of an op; nothing was called, so the field `op` is `nil`."
  @spec malformed(term, [term]) :: t
  def malformed(op, remaining) do
    %__MODULE__{
      reason: :badop,
      message:
        "** (ArgumentError) invalid op #{inspect(op, charlists: :as_lists)}; allowed: " <>
          "{fun, args}, {fun, args, opts}, {module, fun, args}, {module, fun, args, opts} and " <>
          "lists of these, with opts state:, errexit:, ignore: and transform:" <>
          "\n\n\n#{rest(remaining)}"
    }
  end

  defp badop(banner, op, remaining) do
    %__MODULE__{
      reason: :badop,
      op: op,
      message: "#{banner}\n    #{call(op)}\n\n\n#{rest(remaining)}"
    }
  end

  @doc """
  Adds what an op has to return, where an error is shown to a person: `Exception.blame/3`, which IEx,
  `mix run` and ExUnit call.
  """
  @impl true
  def blame(%{reason: :badop, message: @no_match <> _, op: {_, fun, _}} = error, stacktrace) do
    hint =
      "An op has to return :ok, {:ok, state}, a list of ops or {:error, posix}. If #{fun} itself " <>
        "returned that value, give the op a transform: {#{inspect(fun)}, [...], transform: fn _ -> :ok end}"

    {with_hint(error, hint), stacktrace}
  end

  def blame(error, stacktrace), do: {error, stacktrace}

  # Erlang's text for it, "not owner", misleads when what is missing is a privilege.
  defp fork_text(:eperm), do: "insufficient permissions (eperm)"
  defp fork_text(reason), do: Stdio.StreamError.reason_text(reason)

  defp call({module, fun, args}), do: Exception.format_mfa(module, fun, args)

  # as_lists: most lists of small integers among ops are arguments such as [9], not text.
  defp rest(ops), do: "remaining ops:\n#{inspect(ops, charlists: :as_lists)}\n"
end

defimpl Inspect, for: Stdio.OpError do
  # A supervisor that could not start its child shows the exception in this form: the message
  # without the dozens of ops that were not run, and with the sentence on what to do.
  def inspect(%{message: message}, _opts) when is_binary(message) do
    text =
      message
      |> String.split(~r/\n\n+/, trim: true)
      |> Enum.reject(&String.starts_with?(&1, "remaining ops:\n"))
      |> Enum.map_join("; ", &(&1 |> String.split() |> Enum.join(" ")))

    "#Stdio.OpError<#{text}>"
  end

  def inspect(error, opts), do: Inspect.Any.inspect(error, opts)
end
