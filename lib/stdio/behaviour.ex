defmodule Stdio.Behaviour do
  @moduledoc false
  # What makes `Stdio` a behaviour: its struct, its callbacks and `use Stdio`. It stands apart so
  # that lib/stdio.ex holds nothing but the functions users call.

  @doc false
  # For Stdio alone: `use Stdio.Behaviour`.
  defmacro __using__(_) do
    quote do
      @typedoc """
      A supervisor, and what happens to its tree at the end of a stream.

      | field | default | |
      |---|---|---|
      | `:init` | `:noproc` | the supervisor's task |
      | `:state` | `%{}` | third argument of an `:atexit` function |
      | `:atexit` | `:shutdown` | see below |

      | `:atexit` | after every stream, and after a failed start |
      |---|---|
      | `:shutdown` | SIGKILL to all descendants, then the supervisor is stopped |
      | `:noreap` | the supervisor is stopped; its tree dies with it |
      | `:noshutdown` | nothing: the supervisor serves further streams; what it has adopted lives until `Stdio.reap` or its own end |
      | `fun/3` | `fun.(init, pipeline, state)`; the pipeline is `[]` after a failed start |
      """
      @type t :: %__MODULE__{init: Stdio.Task.t() | :noproc, state: map, atexit: atexit}

      @type atexit ::
              :shutdown
              | :noshutdown
              | :noreap
              | (init :: Stdio.Task.t(), pipeline, state :: map -> any)

      @typedoc "The tasks between the supervisor and the program, outermost first; the last becomes the program."
      @type pipeline :: [%{task: Stdio.Task.t(), pid: pos_integer}]

      @typedoc "A lower-case errno atom, such as `:enoent`."
      @type posix :: atom

      @typedoc """
      What sets a program up, and ends it: a module with the callbacks below, a keyword list of
      functions with the names of callbacks, or both. Missing functions are the module's, or those
      of `Stdio.Process`.

          Stdio.stream!("pwd", MyBehaviour)
          Stdio.stream!("pwd", ops: fn _config -> [{:chdir, ["/tmp"]}] end)
          Stdio.stream!("pwd", {MyBehaviour, onerror: fn _config -> &IO.inspect/1 end})

      `options:` is a list of the config keys it has on its own, or `:any`.
      """
      @type behaviour :: module | keyword | {module, keyword}

      defstruct init: :noproc, state: %{}, atexit: :shutdown

      @doc "Makes, or finds, the supervisor the program will run under."
      @callback task(Stdio.Config.t()) :: {:ok, t} | {:error, posix}

      @doc """
      Gives a function that forks the tasks of the program from the supervisor's task.

      An error is a `Stdio.OpError`, and so is an empty pipeline (`:eagain`).
      """
      @callback init(Stdio.Config.t()) ::
                  (Stdio.Task.t() -> {:ok, pipeline} | {:error, posix})

      @doc """
      The calls made in the last task of the pipeline before the program starts; see `Stdio.Op`.

      They replace those of the behaviour they are given over, and with them what `uid:`, `cd:`,
      `rlimit:` and the rest do there, the container itself too: `super(config) ++ [...]`, or
      `Stdio.Process.ops(config) ++ [...]`, adds to them.
      """
      @callback ops(Stdio.Config.t()) :: [Stdio.Op.op()]

      @doc """
      Gives a function that undoes a start which failed after `init`, called with the last task.

      It runs once: for a failed op, a bad result, or a program that cannot be executed. What it
      returns is ignored; if it raises, that is logged, and the failure itself is raised.
      """
      @callback onerror(Stdio.Config.t()) :: (Stdio.Task.t() -> any)

      @doc """
      Gives a function that ends what is left when the stream ends.

      True: something was still running, so its end is waited for.

          def onexit(config) do
            shipped = super(config)

            fn tree ->
              MyApp.Audit.ended(tree)
              shipped.(tree)
            end
          end
      """
      @callback onexit(Stdio.Config.t()) :: (Stdio.ProcessTree.t() -> boolean)

      @doc """
      The config keys the behaviour has on its own, or `:any`. Without it there are none.

      Any other key that `Stdio.Config` does not know is an ArgumentError.
      """
      @callback options() :: Stdio.Config.own()

      @optional_callbacks options: 0

      @doc """
      Makes the module a behaviour for `Stdio.stream!/3` and the like.

      All callbacks do what `Stdio.Process` does; define those that differ. `super` is the one
      of `Stdio.Process`.

          iex> defmodule InTmp do
          ...>   use Stdio
          ...>
          ...>   def ops(config), do: super(config) ++ [{:chdir, ["/tmp"]}]
          ...> end
          iex> InTmp.ops([]) |> List.last()
          {:chdir, ["/tmp"]}
      """
      defmacro __using__(_), do: Stdio.Behaviour.defaults()
    end
  end

  @doc false
  # The body of `use Stdio`.
  @spec defaults() :: Macro.t()
  def defaults do
    quote do
      @behaviour Stdio

      @doc false
      def task(config), do: Stdio.Process.task(config)

      @doc false
      def init(config), do: Stdio.Process.init(config)

      @doc false
      def ops(config), do: Stdio.Process.ops(config)

      @doc false
      def onerror(config), do: Stdio.Process.onerror(config)

      @doc false
      def onexit(config), do: Stdio.Process.onexit(config)

      @doc false
      def options, do: Stdio.Process.options()

      defoverridable task: 1, init: 1, ops: 1, onerror: 1, onexit: 1, options: 0
    end
  end
end
