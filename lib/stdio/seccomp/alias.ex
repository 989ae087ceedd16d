if Stdio.Alias.free?(:seccomp) do
  defmodule :seccomp do
    @moduledoc false
    # Stdio.Seccomp under the name that ops written for msantos/stdio 0.4 use.

    @spec deny(term, [Stdio.Seccomp.filter()]) :: [tuple] | {:error, atom}
    defdelegate deny(task, filters), to: Stdio.Seccomp

    @spec audit_arch() :: atom
    defdelegate audit_arch(), to: Stdio.Seccomp
  end
end
