defmodule Stdio.Config.Schema do
  @moduledoc false
  # Every config option, once. Validation, the list in the docs of `Stdio.Config` and the
  # typespec are made from this list; the order is that of the docs and of error messages.
  #
  #   type      one `Stdio.Config.Type`, or {by behaviour, for all others}
  #   default   {:value, v} | {:by, by behaviour, for all others} | :computed (see the doc text)
  #   used_by   :all, or the behaviours on which it has an effect
  #   man       where the kernel's part of it is described

  alias Stdio.Config.Type

  @uid_max 0xFFFF_FFFF
  @id {:integer, 0, @uid_max}
  @mounting [Stdio.Container, Stdio.Rootless]

  @options [
    %{
      key: :net,
      type:
        {%{
           Stdio.Process => {:enum, [:none, :host]},
           Stdio.Container => {:enum, [:none, :host]},
           Stdio.Rootless => {:enum, [:none, :host]}
         }, {:one_of, [{:enum, [:none, :host]}, :addresses]}},
      default: {:by, %{Stdio.Process => :host}, :none},
      default_doc: "Process `:host`, others `:none`",
      used_by: :all,
      doc:
        "`:none`: a network namespace of its own, without devices (Process: Linux, with a user " <>
          "namespace when not root, where the own uid is mapped to itself). `:host`: the " <>
          "network of the BEAM; Jail: all addresses of the first interface that has any, or " <>
          "those of the map",
      man: ["network_namespaces(7)", "user_namespaces(7)"]
    },
    %{
      key: :environ,
      type: {:one_of, [{:enum, [:inherit]}, :environ]},
      default:
        {:value,
         [
           "PATH=/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/opt/sbin:/opt/bin",
           "HOME=/home"
         ]},
      used_by: :all,
      doc:
        "the environment of the program; `[]` is an empty one, `:inherit` that of the BEAM, " <>
          "byte for byte",
      man: ["environ(7)", "execve(2)"]
    },
    %{
      key: :uid,
      type: @id,
      default: :computed,
      default_doc:
        "`:erlang.phash2(self(), 0xFFFF) + 0x10000`: one uid per enumerating process; " <>
          "Rootless 65534",
      used_by: :all,
      doc:
        "user of the program; Process: only when started as root, without effect otherwise. " <>
          "4294967295 is refused: the kernel reads it as \"unchanged\"",
      man: ["setresuid(2)"]
    },
    %{
      key: :gid,
      type: @id,
      default: :computed,
      default_doc: "the uid",
      used_by: :all,
      doc: "group of the program, like `:uid`",
      man: ["setresgid(2)"]
    },
    %{
      key: :groups,
      type: {:list, @id},
      default: {:value, []},
      used_by: [Stdio.Process, Stdio.Container, Stdio.Jail],
      doc: "supplementary groups, the only ones it has; Process: only when started as root",
      man: ["setgroups(2)"]
    },
    %{
      key: :fstab,
      type: {:list, :path_or_empty},
      default: {:value, []},
      used_by: @mounting,
      doc:
        "directories to be seen in the root, each bound read-only on `<path>/dir`; a relative " <>
          "one comes from `<priv>/dir`; `\"\"` is dropped; one that cannot be mounted is an " <>
          "OpError",
      man: ["mount(2)"]
    },
    %{
      key: :path,
      type: :path,
      default: :computed,
      default_doc: "Process `File.cwd!()`; others the application's `:path`, else `<priv>/root`",
      used_by: :all,
      doc: "Process: working directory; others: directory that becomes the root",
      man: ["chdir(2)", "pivot_root(2)"]
    },
    %{
      key: :hostname,
      type: {:text, 1, 64},
      default: :computed,
      default_doc: "`\"stdio<uid>\"`; Rootless `\"stdio\"`",
      used_by: @mounting ++ [Stdio.Jail],
      doc: "host name; Jail: also the name of the jail",
      man: ["sethostname(2)", "uts_namespaces(7)"]
    },
    %{
      key: :setuid,
      type: :boolean,
      default: {:value, false},
      used_by: :all,
      doc:
        "`true` leaves out NO_NEW_PRIVS, so that setuid programs and file capabilities work " <>
          "for the program",
      man: ["prctl(2) PR_SET_NO_NEW_PRIVS"]
    },
    %{
      key: :priority,
      type: {:integer, -20, 19},
      default: {:value, 0},
      default_doc: "that of the BEAM, as a rule 0",
      used_by: :all,
      doc: "nice value; less than the BEAM's needs privileges",
      man: ["setpriority(2)"]
    },
    %{
      key: :rlimit,
      type: :rlimit,
      default: {:value, [rlimit_core: %{cur: 0, max: 0}]},
      used_by: :all,
      doc:
        "resource limits, set in the order given; names in any letter case; a value replaces " <>
          "the default whole; 18446744073709551615 is infinity",
      man: ["setrlimit(2)"]
    },
    %{
      key: :cd,
      type: :path,
      default: :computed,
      default_doc: "Process: as `:path`; others `/`",
      used_by: :all,
      doc: "Process: the same as `:path`, give one of them; others: directory inside the root",
      man: ["chdir(2)"]
    },
    %{
      key: :env,
      type: :env,
      default: {:value, []},
      used_by: :all,
      doc:
        "merged over `:environ` if that is given, else over its default; `nil` removes; of " <>
          "two with one name the later wins",
      man: ["environ(7)"]
    },
    %{
      key: :search,
      type: :boolean,
      default: {:value, false},
      used_by: :all,
      doc:
        "look a program without `/` up in the `PATH` of its own environment, inside its root " <>
          "(list and `{path, argv}` commands)",
      man: ["exec(3)"]
    },
    %{
      key: :stdin,
      type: {:enum, [:pipe, :null]},
      default: {:value, :pipe},
      used_by: :all,
      doc: "`:pipe`: open, a reader blocks; `:null`: `/dev/null`, not with `pipe!`",
      man: ["null(4)"]
    },
    %{
      key: :stderr,
      type: {:enum, [:separate, :stdout, :null]},
      default: {:value, :separate},
      used_by: :all,
      doc:
        "`:stdout`: fd 2 is the same pipe as fd 1, so the order of the two is kept; `:null`: " <>
          "`/dev/null`",
      man: ["dup(2)", "null(4)"]
    },
    %{
      key: :timeout,
      type: {:one_of, [{:integer, 1, :infinity}, {:enum, [:infinity]}]},
      default: {:value, :infinity},
      used_by: :all,
      doc:
        "deadline in ms from exec on, counted natively whatever the consumer does; then " <>
          "`:kill_signal`. The stream ends with the element of what really ended the program",
      man: ["clock_gettime(2) CLOCK_MONOTONIC"]
    },
    %{
      key: :kill_signal,
      type: :signal,
      default: {:value, :sigkill},
      used_by: :all,
      doc:
        "first step of ending a program (deadline, halted consumer, Daemon shutdown): to the " <>
          "process group it leads, else to its pid. The first process of a PID namespace that " <>
          "does not catch it gets SIGKILL at once, and so does the tree of a consumer that is killed " <>
          "or shut down (`Task.shutdown/2`)",
      man: ["signal(7)", "kill(2)", "pid_namespaces(7)"]
    },
    %{
      key: :kill_timeout,
      type: {:integer, 0, :infinity},
      default: {:value, 5000},
      used_by: :all,
      doc:
        "ms from `:kill_signal` to SIGKILL of the whole tree; never delays a tree whose owner " <>
          "has died",
      man: ["signal(7)"]
    },
    %{
      key: :max_chunk,
      type: {:integer, 1, 1_048_576},
      default: {:value, 65_536},
      used_by: :all,
      doc: "largest binary of one stdout or stderr element, in bytes",
      man: ["pipe(7)"]
    },
    %{
      key: :containment,
      type: {:enum, [:auto, :cgroup, :pid_namespace, :best_effort]},
      default: {:value, :auto},
      used_by: :all,
      doc:
        "what guarantees that nothing survives. `:auto`: the PID namespace the behaviour has " <>
          "anyway, else best effort; `:cgroup`, `:pid_namespace`: that, or StreamError " <>
          "`:enotsup`. Process with `:pid_namespace`: the program is PID 1 of a new one, not " <>
          "root: in a user namespace too; `/proc` is not remounted",
      man: ["cgroups(7)", "pid_namespaces(7)"]
    }
  ]

  @by_key Map.new(@options, &{&1.key, &1})
  @keys Enum.map(@options, & &1.key)

  @type behaviour :: module

  @doc "All keys in order."
  @spec keys() :: [atom]
  def keys, do: @keys

  @doc "The type of an option for a behaviour; `:error` when there is no such option."
  @spec type(atom, behaviour) :: {:ok, Type.t()} | :error
  def type(key, behaviour) do
    case @by_key do
      %{^key => %{type: {by, other}}} when is_map(by) -> {:ok, Map.get(by, behaviour, other)}
      %{^key => %{type: type}} -> {:ok, type}
      _ -> :error
    end
  end

  @doc "The default of an option, `nil` when it is computed or there is no such option."
  @spec default(atom, behaviour) :: term
  def default(key, behaviour) do
    case @by_key do
      %{^key => %{default: {:value, value}}} -> value
      %{^key => %{default: {:by, by, other}}} -> Map.get(by, behaviour, other)
      _ -> nil
    end
  end

  @doc "The quoted union of all `{key, type}`."
  @spec typespec() :: Macro.t()
  def typespec do
    [last | rest] = @options |> Enum.map(&{&1.key, Type.spec(widest(&1.type))}) |> Enum.reverse()
    Enum.reduce(rest, last, &quote(do: unquote(&1) | unquote(&2)))
  end

  @doc "The options as a Markdown list."
  @spec list() :: String.t()
  def list do
    Enum.map_join(@options, "\n", &entry/1)
  end

  defp entry(option) do
    """
    - `#{inspect(option.key)}`: #{option.doc}.

      *Type*: #{option.type |> widest() |> Type.describe()}. *Default*: #{default_doc(option)}. \
    *Used by*: #{used_by(option.used_by)}.#{source(option.man)}
    """
  end

  defp source([]), do: ""
  defp source(pages), do: " *Source*: #{Enum.map_join(pages, ", ", &man/1)}."

  defp default_doc(%{default_doc: text}), do: text
  defp default_doc(%{default: {:value, value}}), do: "`#{inspect(value)}`"

  defp used_by(:all), do: "all"
  defp used_by(modules), do: Enum.map_join(modules, ", ", &(&1 |> Module.split() |> List.last()))

  defp man(page) do
    [_, name, section, rest] = Regex.run(~r/^([\w.]+)\((\d)\)(.*)$/, page)

    "[#{name}(#{section})](https://man7.org/linux/man-pages/man#{section}/#{name}.#{section}.html)#{rest}"
  end

  defp widest({by, other}) when is_map(by), do: other
  defp widest(type), do: type
end
