defmodule Stdio.PipeSizeTest do
  # A pipe that is found full, and is read, is made larger, so that a fast program and a fast consumer
  # wait less often for each other; others stay as the kernel made them, and only so many are large at a
  # time. That one which nobody reads stays is in pipe_test.exs.
  use Stdio.Test.StreamCase

  @new 65_536
  @grown 262_144
  @at_once 64

  # So many bytes to stdout; stdin, until it holds so much, or to its end; then what both pipes hold to
  # stderr (F_GETPIPE_SZ is 1032); then stdin to its end.
  @program ~S"""
  $SIG{PIPE} = 'DEFAULT';
  $| = 1;
  my ($bytes, $awaited) = @ARGV;
  print 'x' x $bytes;
  1 while fcntl(STDIN, 1032, 0) < $awaited and sysread(STDIN, $_, 65536);
  print STDERR join(' ', map { fcntl($_, 1032, 0) } *STDIN, *STDOUT);
  1 while sysread(STDIN, $_, 65536);
  """

  defp program(bytes, awaited \\ 0),
    do: ["/usr/bin/perl", "-e", @program, "#{bytes}", "#{awaited}"]

  # Capacities of stdin and stdout. The first chunk is taken slowly: the pipe fills meanwhile.
  defp capacities(stream, told \\ fn -> :ok end) do
    stream
    |> Enum.reduce(%{bytes: 0, capacities: nil}, fn
      {:stdout, chunk}, %{bytes: bytes} = seen ->
        if bytes == 0, do: Process.sleep(500)
        %{seen | bytes: bytes + byte_size(chunk)}

      {:stderr, text}, seen ->
        told.()
        %{seen | capacities: text |> String.split() |> Enum.map(&String.to_integer/1)}

      {:exit_status, 0}, seen ->
        seen
    end)
  end

  for behaviour <- [Stdio.Process, Stdio.Test.Plain] do
    describe "#{inspect(behaviour)}:" do
      @describetag behaviour: behaviour

      test "full pipes grow", %{behaviour: behaviour} do
        input = [:binary.copy("y", 1_000_000)]
        stream = Stdio.pipe!(input, program(1_000_000, @grown), behaviour)
        assert capacities(stream) == %{bytes: 1_000_000, capacities: [@grown, @grown]}
      end

      test "others do not", %{behaviour: behaviour} do
        stream = Stdio.pipe!(["y"], program(1000), behaviour)
        assert capacities(stream) == %{bytes: 1000, capacities: [@new, @new]}
      end
    end
  end

  test "one that the program has made larger is left" do
    larger = "fcntl($_, 1031, 1048576) for *STDIN, *STDOUT;"
    [perl, flag, line | args] = program(1_000_000, 1_048_576)
    stream = Stdio.pipe!([:binary.copy("y", 2_000_000)], [perl, flag, larger <> line | args])
    assert capacities(stream) == %{bytes: 1_000_000, capacities: [1_048_576, 1_048_576]}
  end

  test "so many at a time, and others after them" do
    for _ <- 1..2 do
      told = :counters.new(1, [])

      # Nobody's input ends before all have told.
      input =
        Stream.repeatedly(fn -> Process.sleep(20) && "" end)
        |> Stream.take_while(fn _ -> :counters.get(told, 1) < @at_once + 8 end)

      sizes =
        1..(@at_once + 8)
        |> Enum.map(fn _ ->
          Task.async(fn ->
            stream = Stdio.pipe!(input, program(400_000))
            capacities(stream, fn -> :counters.add(told, 1, 1) end)
          end)
        end)
        |> Task.await_many(60_000)
        |> Enum.map(fn %{bytes: 400_000, capacities: [@new, stdout]} -> stdout end)

      assert Enum.frequencies(sizes) == %{@grown => @at_once, @new => 8}
    end
  end
end
