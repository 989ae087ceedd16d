defmodule Stdio.Rusage do
  @moduledoc false
  # getrusage(2), in the order of the NIF.

  @fields [
    :utime_us,
    :stime_us,
    :maxrss_kib,
    :minflt,
    :majflt,
    :inblock,
    :oublock,
    :nvcsw,
    :nivcsw
  ]

  @spec new([non_neg_integer]) :: %{atom => non_neg_integer}
  def new(values), do: @fields |> Enum.zip(values) |> Map.new()
end
