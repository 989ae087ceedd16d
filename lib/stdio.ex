defmodule Stdio do
  @external_resource "README.md"
  @moduledoc """
  Runs programs, streams what they write, feeds what they read, and leaves nothing behind.

  #{"README.md" |> File.read!() |> String.split("<!-- MDOC -->") |> Enum.fetch!(1)}

  ## Elements

  | element | |
  |---|---|
  | `{:stdout, binary}`, `{:stderr, binary}` | a chunk, as it was read: at most `max_chunk:` bytes, not split or joined by lines; in order for each of the two |
  | `{:exit_status, 0..255}` | the program ended by itself. Last |
  | `{:termsig, atom}` | a signal ended it: `:sigkill`, `:sigterm`, …; a real-time signal is `:unknown`. Last |

  ## Who ends whom

  1. The program ends: what is left of its tree is killed, its output is read to the end, then the
     terminal element comes.
  2. The consumer stops reading, raises or throws: `kill_signal:`, after `kill_timeout:` SIGKILL to
     the whole tree; the call returns when the tree is gone.
  3. The consumer is killed, or the BEAM is: SIGKILL to the whole tree.
  4. `timeout:` passes: as 2, and the stream ends with the element of what really ended it.

  ## Messages

  A stream uses messages with a reference of its own and leaves none behind. It takes no other
  message, so streams may be nested, zipped and run side by side in one process.
  """

  use Stdio.Behaviour

  alias Stdio.{Command, Config, Phases}
  alias Stdio.Stream.Runner

  @typedoc "What to run; see the examples above."
  @type command :: Command.command()

  @type element ::
          {:stdout, binary}
          | {:stderr, binary}
          | {:exit_status, 0..255}
          | {:termsig, atom}

  @doc """
  A lazy stream of what `command` writes, ending with how it ended.

  The arguments are checked in this call; everything else happens in the process that enumerates,
  once per enumeration. The program's stdin is an empty pipe that stays open, so a program that
  reads it waits, unless `stdin: :null`.

      iex> Stdio.stream!("cat", Stdio.Process, stdin: :null) |> Enum.to_list()
      [exit_status: 0]

  Raises ArgumentError here for a malformed command or option; `Stdio.StreamError` and
  `Stdio.OpError` in the consumer when the program cannot be started.
  """
  @spec stream!(command, module, Config.t()) :: Enumerable.t()
  def stream!(command, behaviour \\ Stdio.Process, config \\ []) do
    run(command, behaviour, config, :stream, nil)
  end

  @doc """
  As `stream!/3`, and `enum` is written to the program's stdin, which is closed when it ends.

  Elements are iodata; empty ones are skipped. `enum` is enumerated in a process of its own, which
  blocks while the program does not read. A program that closes its stdin early ends the feeding
  without an error. An exception, throw or exit in `enum` is raised again in the consumer, with its
  stacktrace, once the program's tree is gone.

      iex> 1000..1 |> Stream.map(&"\#{&1}\\n") |> Stdio.pipe!("grep 442") |> Enum.to_list()
      [stdout: "442\\n", exit_status: 0]

  A program that never reads can be bounded by `timeout:`.
  """
  @spec pipe!(Enumerable.t(), command, module, Config.t()) :: Enumerable.t()
  def pipe!(enum, command, behaviour \\ Stdio.Process, config \\ []) do
    run(command, behaviour, config, :pipe, {:feed, enum})
  end

  @doc """
  The phases of `behaviour`, a keyword list, with a supervisor that exists already.

  So programs may share one that does not end with any of them:

      {:ok, supervisor} = Stdio.supervisor(:noshutdown)
      phases = Stdio.with_supervisor(Stdio.Process, supervisor)
      Stdio.stream!("echo $PPID", phases)
      Stdio.stream!("echo $PPID", phases)

  `behaviour` may also be in any of the other forms `stream!/3` takes. ArgumentError for what is
  no behaviour.
  """
  @spec with_supervisor(behaviour, t) :: keyword
  def with_supervisor(behaviour, %Stdio{} = supervisor),
    do: Phases.with_supervisor(behaviour, supervisor)

  # STAND-INS, dropped on merge: these two come with Stdio.Task and Stdio.Syscall.
  @doc false
  def supervisor(atexit \\ :shutdown, filter \\ :default, opts \\ []),
    do: Stdio.Task.answer(:supervisor, [atexit, filter, opts], {:ok, %Stdio{}})

  @doc false
  def reap(tree, signal \\ :SIGKILL), do: Stdio.Syscall.os().reap(tree, signal)

  defp run(command, Stdio.Process = behaviour, config, verb, input) do
    config = Config.validate!(config, [], verb, behaviour)
    normal = Command.normalize!(command, Config.get(config, :search))

    Runner.stream(%{
      command: command,
      normal: normal,
      config: config,
      behaviour: behaviour,
      input: input
    })
  end

  defp run(_command, behaviour, _config, _verb, _input) do
    raise ArgumentError, "unknown behaviour #{inspect(behaviour)}; available: Stdio.Process"
  end
end
