defmodule Stdio.Stream do
  @moduledoc """
  Functions for what `Stdio.stream!/3` and `Stdio.pipe!/4` return: whole lines, one program's
  output as the input of another, and limits to the number of elements.

  They work on any enumerable of such elements, are lazy, and use neither processes nor messages.

  ## Windows of time

  1. `ratelimit/3` and `ratelimit/4` number the elements of a window of `ms` milliseconds: 1, 2, …
  2. The first window starts when the stream is enumerated, each further one with the first
     element that comes after the last window has passed. That element is number 1.
  3. A reducer decides what becomes of an element. It may start a window itself, by returning the
     accumulator with the time in `:t` and the element's number in the new window as `:count`.
  4. `ratelimit/4` does not count a terminal element: what follows it, in streams that were
     concatenated, has its number. For `ratelimit/3` it is an element like any other.
  """

  @typedoc "An output element, or a terminal one."
  @type element :: Stdio.element()

  @typedoc """
  The state of `ratelimit/4`: when the window started (monotonic time in ms), the two limits, and
  the number of the current element in the window.
  """
  @type window :: %{t: integer, limit: pos_integer, ms: pos_integer, count: pos_integer}

  @typedoc "As for `Stream.transform/3`; the accumulator is the window."
  @type reducer :: (term, window -> {Enumerable.t(), window} | {:halt, window})

  @outputs [:stdout, :stderr]
  @terminals [:exit_status, :termsig]

  @doc """
  A reducer for `Stream.transform/3` which turns elements into what `Stdio.pipe!/4` takes: the
  bytes of both outputs; the terminal element ends it.

      iex> Stdio.stream!("echo test; kill $$")
      ...> |> Stream.transform([], &Stdio.Stream.stdout_to_stderr/2)
      ...> |> Stdio.pipe!("sed 's/t/_/g'")
      ...> |> Enum.to_list()
      [stdout: "_es_\\n", exit_status: 0]
  """
  @spec stdout_to_stderr(element, acc) :: {[binary], acc} | {:halt, acc} when acc: term
  def stdout_to_stderr({output, chunk}, acc) when output in @outputs, do: {[chunk], acc}
  def stdout_to_stderr({terminal, _}, acc) when terminal in @terminals, do: {:halt, acc}

  @doc """
  Splits the chunks of stdout and of stderr, each by itself, into lines with their `"\\n"`.

      iex> [stdout: "a\\nb", stderr: "x", stdout: "c\\nd", exit_status: 0]
      ...> |> Stdio.Stream.lines()
      ...> |> Enum.to_list()
      [stdout: "a\\n", stdout: "bc\\n", stdout: "d", stderr: "x", exit_status: 0]

  A last line without `"\\n"` comes before the terminal element, stdout's first, or at the end of a
  stream that has none. Lines are bytes: they need not be UTF-8, and `"\\r"` is a byte as any other.
  Their length is not bounded, and a line is held until it is complete. Other elements are passed.

  A line may share memory with the chunk it came from: copy the few that are kept of many
  (`:binary.copy/1`).
  """
  @spec lines(Enumerable.t()) :: Enumerable.t()
  def lines(stream) do
    none = fn -> %{stdout: [], stderr: []} end
    Stream.transform(stream, none, &line/2, &{rest(&1), &1}, fn _held -> :ok end)
  end

  # `held` are the parts of each output's unfinished line, last part first: joined once, when the
  # line is complete, so a line costs its length however many chunks it comes in.
  defp line({output, chunk}, held) when output in @outputs do
    case :binary.matches(chunk, "\n") do
      [] -> {[], hold(held, output, chunk)}
      [{first, 1} | more] -> split(chunk, output, first + 1, more, held)
    end
  end

  defp line({terminal, _} = element, held) when terminal in @terminals do
    {rest(held) ++ [element], %{held | stdout: [], stderr: []}}
  end

  defp line(other, held), do: {[other], held}

  defp split(chunk, output, size, more, held) do
    line = join(Map.fetch!(held, output), binary_part(chunk, 0, size))
    {lines, tail} = split(chunk, output, size, more)
    {[{output, line} | lines], hold(%{held | output => []}, output, tail)}
  end

  defp split(chunk, output, start, [{newline, 1} | more]) do
    next = newline + 1
    {lines, tail} = split(chunk, output, next, more)
    {[{output, binary_part(chunk, start, next - start)} | lines], tail}
  end

  defp split(chunk, _output, start, []) do
    {[], binary_part(chunk, start, byte_size(chunk) - start)}
  end

  defp hold(held, _output, ""), do: held
  defp hold(held, output, part), do: Map.update!(held, output, &[part | &1])

  defp join([], last), do: last
  defp join(parts, last), do: IO.iodata_to_binary(:lists.reverse(parts, [last]))

  defp rest(held) do
    for output <- @outputs, [last | parts] <- [Map.fetch!(held, output)] do
      {output, join(parts, last)}
    end
  end

  @doc """
  Passes at most `limit` elements in a window of `ms` milliseconds and drops the others, terminal
  ones too; `ratelimit(stream, limit, ms, &Stdio.Stream.stdio_drop/2)` keeps those.

      iex> 1..1000 |> Stdio.Stream.ratelimit(3, 60_000) |> Enum.to_list()
      [1, 2, 3]
  """
  @spec ratelimit(Enumerable.t(), pos_integer, pos_integer) :: Enumerable.t()
  def ratelimit(stream, limit, ms), do: windows(stream, limit, ms, &drop/2, fn _ -> true end)

  defp drop(_element, %{count: count, limit: limit} = window) when count > limit,
    do: {[], window}

  defp drop(element, window), do: {[element], window}

  @doc """
  Gives each element and the `t:window/0` it falls in to `reducer`, whose result is that of the
  reducer of `Stream.transform/3`: `{enumerable, window}`, or `{:halt, window}` to end the stream.

  `window.count` is the number of the element, from 1 on and beyond the limit. The numbers go on
  from the window that the reducer returns, so it returns the one it was given unless it starts a
  new one.

      iex> mark = fn
      ...>   _element, %{count: count, limit: limit} = window when count > limit + 1 ->
      ...>     {:halt, window}
      ...>
      ...>   element, %{count: count} = window ->
      ...>     {[{count, element}], window}
      ...> end
      iex> ["a", "b", "c", "d"] |> Stdio.Stream.ratelimit(2, 60_000, mark) |> Enum.to_list()
      [{1, "a"}, {2, "b"}, {3, "c"}]
  """
  @spec ratelimit(Enumerable.t(), pos_integer, pos_integer, reducer) :: Enumerable.t()
  def ratelimit(stream, limit, ms, reducer) when is_function(reducer, 2) do
    windows(stream, limit, ms, reducer, &(not terminal?(&1)))
  end

  defp windows(stream, limit, ms, reducer, counted?)
       when is_integer(limit) and limit > 0 and is_integer(ms) and ms > 0 do
    start = fn -> %{t: now(), limit: limit, ms: ms, count: 1} end
    judge = fn element, window -> judge(element, current(window), reducer, counted?) end
    Stream.transform(stream, start, judge, fn _window -> :ok end)
  end

  defp windows(_stream, limit, ms, _reducer, _counted?) do
    raise ArgumentError,
          "limit and ms must be positive integers, got: #{inspect(limit)}, #{inspect(ms)}"
  end

  # Between two elements `count` is the number of the next one.
  defp judge(element, window, reducer, counted?) do
    with {elements, %{count: count} = window} when elements != :halt <-
           reducer.(element, window) do
      {elements, if(counted?.(element), do: %{window | count: count + 1}, else: window)}
    end
  end

  defp current(%{t: t, ms: ms} = window) do
    case now() do
      now when now - t >= ms -> %{window | t: now, count: 1}
      _ -> window
    end
  end

  defp terminal?({terminal, _}) when terminal in @terminals, do: true
  defp terminal?(_element), do: false

  @doc """
  A reducer for `ratelimit/4`: output over the limit waits until the window has passed, and is
  number 1 of a new one. Nothing is lost: the program blocks while its consumer sleeps.

  Terminal elements pass at once and are not counted.

      iex> ["abcd"]
      ...> |> Stdio.pipe!("cat")
      ...> |> Stdio.Stream.ratelimit(1, 10, &Stdio.Stream.stdio_block/2)
      ...> |> Enum.to_list()
      [stdout: "abcd", exit_status: 0]
  """
  @spec stdio_block(element, window) :: {[element], window}
  def stdio_block({output, _} = element, %{count: count, limit: limit} = window)
      when output in @outputs and count > limit do
    # A reducer called by hand may come after the window's end.
    Process.sleep(max(window.t + window.ms - now(), 0))
    {[element], %{window | t: now(), count: 1}}
  end

  def stdio_block(element, window), do: {[element], window}

  @doc """
  A reducer for `ratelimit/4`: output over the limit is dropped; terminal elements always pass.

      iex> [stdout: "1", stderr: "2", stdout: "3", exit_status: 0]
      ...> |> Stdio.Stream.ratelimit(2, 60_000, &Stdio.Stream.stdio_drop/2)
      ...> |> Enum.to_list()
      [stdout: "1", stderr: "2", exit_status: 0]
  """
  @spec stdio_drop(element, window) :: {[element], window}
  def stdio_drop({output, _} = element, window) when output in @outputs,
    do: drop(element, window)

  def stdio_drop(element, window), do: {[element], window}

  defp now, do: System.monotonic_time(:millisecond)
end
