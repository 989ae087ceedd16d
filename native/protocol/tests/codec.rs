//! The codec is total, allocates no more than its input justifies, and loses nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_bytes::ByteBuf;
use stdio_protocol::call::{rows, Call, Row, TABLE};
use stdio_protocol::channel::MAX_BODY;
use stdio_protocol::codec::{decode, encode};
use stdio_protocol::constant::{lookup, Family};
use stdio_protocol::message::{
    Birth, Escalation, Exec, Exit, Filter, FromLauncher, FromNode, FromRoot, FromTask, Handler,
    Namespaces, Plan, Program, Redirect, Refusal, Script, Setting, Stage, Start, Step, Supervise,
    ToLauncher, ToNode, ToRoot, ToTask, Usage, User, Watch,
};
use stdio_protocol::value::{BadArgument, Limit, Prio, Signal, Value};

// ---- allocation ------------------------------------------------------------------------------

/// Counts what the current thread holds, and the most that it has held.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every request goes to the system's allocator unchanged; the counters are plain cells
// without a destructor, so they neither allocate nor outlive their thread's storage.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.get().wrapping_add(layout.size());
        HELD.set(held);
        PEAK.set(PEAK.get().max(held));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // What another thread allocated may be freed here.
        HELD.set(HELD.get().saturating_sub(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `run` held at one time, beyond what the thread held before.
fn peak_of<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = run();
    (result, PEAK.get().saturating_sub(before))
}

/// serde reserves at most 1 MiB for a list ahead of what it has seen; messages nest lists three
/// deep, values at most `MAX_DEPTH`.
const AHEAD: usize = 10 << 20;
/// The shortest element of a list in bytes is a [`Step`] (3); what it becomes in memory, with the
/// old and the new room of a growing list counted both, is the factor.
const FACTOR: usize = 128;

/// Decodes within the bound, whatever comes out.
fn decode_bounded<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let start = Instant::now();
    let (result, peak) = peak_of(|| decode::<T>(bytes));
    assert!(
        peak <= AHEAD + FACTOR * bytes.len(),
        "{peak} bytes held for {} of input",
        bytes.len()
    );
    assert!(start.elapsed() < Duration::from_secs(5), "took too long");
    result.ok()
}

/// As every message type of the protocol.
fn decode_as_everything(bytes: &[u8]) {
    check_total::<ToLauncher>(bytes);
    check_total::<FromLauncher>(bytes);
    check_total::<ToRoot>(bytes);
    check_total::<FromRoot>(bytes);
    check_total::<ToTask>(bytes);
    check_total::<FromTask>(bytes);
    check_total::<FromNode>(bytes);
    check_total::<Value>(bytes);
}

/// What decodes at all can be encoded, and means the same afterwards.
fn check_total<T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) {
    if let Some(message) = decode_bounded::<T>(bytes) {
        let again = encode(&message).unwrap();
        assert_eq!(decode::<T>(&again).unwrap(), message);
    }
}

// ---- generators ------------------------------------------------------------------------------

fn bytes() -> impl Strategy<Value = ByteBuf> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..40).prop_map(ByteBuf::from),
        1 => vec(any::<u8>(), 0..4000).prop_map(ByteBuf::from),
    ]
}

fn limit() -> impl Strategy<Value = Limit> {
    (any::<u64>(), any::<u64>()).prop_map(|(cur, max)| Limit { cur, max })
}

fn integers<T: Arbitrary<Strategy: 'static> + Into<i128>>() -> BoxedStrategy<Value> {
    any::<T>().prop_map(|n| Value::Int(n.into())).boxed()
}

fn map(names: [&'static str; 2]) -> BoxedStrategy<Value> {
    let pair = |name: &str, n: u64| (Value::atom(name), Value::Int(n.into()));
    any::<[u64; 2]>()
        .prop_map(move |[first, second]| {
            Value::Map(vec![pair(names[1], second), pair(names[0], first)])
        })
        .boxed()
}

fn cstruct() -> impl Strategy<Value = Value> {
    let pointer = |value| Value::Tuple(vec![Value::atom("ptr"), value]);
    let binary = || vec(any::<u8>(), 0..40).prop_map(Value::Bytes);
    let element = prop_oneof![
        binary(),
        binary().prop_map(pointer),
        (0_u16..1000).prop_map(move |n| pointer(Value::Int(n.into()))),
    ];
    vec(element, 0..8).prop_map(Value::List)
}

/// Whatever Elixir may write where the table shows this shape.
fn argument(shape: &'static str) -> BoxedStrategy<Value> {
    let data = |from: u8| vec(from.., 0..40).prop_map(Value::Bytes).boxed();
    match shape {
        "int32" => integers::<i32>(),
        "uint32" => integers::<u32>(),
        "int64" => integers::<i64>(),
        "uint64" => integers::<u64>(),
        "list" => vec(0..i32::MAX, 0..70)
            .prop_map(|items| {
                Value::List(items.into_iter().map(|n| Value::Int(n.into())).collect())
            })
            .boxed(),
        "path" => vec(1_u8.., 1..40).prop_map(Value::Bytes).boxed(),
        "data without NUL" => data(1),
        "data" => data(0),
        "ignored" => value().boxed(),
        "%{cur: uint64, max: uint64}" => map(["cur", "max"]),
        "[] | %{sec: uint64, usec: uint64}" => {
            prop_oneof![Just(Value::List(vec![])), map(["sec", "usec"])].boxed()
        }
        "cstruct | []" => cstruct().boxed(),
        "integer | const | binary | cstruct | []" => prop_oneof![
            integers::<i64>(),
            integers::<u64>(),
            Just(Value::atom("cap_net_raw")),
            data(0),
            cstruct(),
        ]
        .boxed(),
        flags if flags.starts_with("flags (") => prop_oneof![
            integers::<u32>(),
            vec(integers::<i32>(), 0..4).prop_map(Value::List),
        ]
        .boxed(),
        constant if constant.starts_with("const (") => integers::<i32>(),
        shape => panic!("no generator for {shape}"),
    }
}

/// A row of the table and arguments that fit it.
fn invocation() -> impl Strategy<Value = (&'static Row, Vec<Value>)> {
    let here: Vec<_> = rows().collect();
    (select(here), any::<bool>()).prop_flat_map(|(row, all)| {
        let left_out = if all { 0 } else { row.optional };
        let given = &row.arguments[..row.arguments.len() - left_out];
        let arguments: Vec<_> = given.iter().map(|(_, shape)| argument(shape)).collect();
        (Just(row), arguments)
    })
}

fn call() -> impl Strategy<Value = Call> {
    invocation().prop_map(|(row, arguments)| Call::decode(row.name, arguments).unwrap())
}

fn step() -> impl Strategy<Value = Step> {
    (call(), vec(any::<i32>(), 0..4), any::<bool>()).prop_map(|(call, ignore, errexit)| Step {
        call,
        ignore,
        errexit,
    })
}

fn exec() -> impl Strategy<Value = Exec> {
    (
        bytes(),
        vec(bytes(), 0..6),
        vec(bytes(), 0..6),
        any::<bool>(),
    )
        .prop_map(|(file, argv, env, search)| Exec {
            file,
            argv,
            env,
            search,
        })
}

fn namespaces() -> impl Strategy<Value = Namespaces> {
    any::<[bool; 3]>().prop_map(|[net, pid, user_if_unprivileged]| Namespaces {
        net,
        pid,
        user_if_unprivileged,
    })
}

fn escalation() -> impl Strategy<Value = Escalation> {
    (any::<i32>(), any::<u64>()).prop_map(|(signal, grace_ms)| Escalation { signal, grace_ms })
}

fn start() -> impl Strategy<Value = Start> {
    let plan =
        (namespaces(), script()).prop_map(|(namespaces, script)| Plan { namespaces, script });
    (plan, option::of(watch())).prop_map(|(plan, watch)| Start { plan, watch })
}

/// Boxed, as are others: what makes all messages at once would take more stack than a test has.
fn script() -> BoxedStrategy<Script> {
    (vec(step(), 0..8), exec())
        .prop_map(|(steps, exec)| Script { steps, exec })
        .boxed()
}

fn watch() -> impl Strategy<Value = Watch> {
    (any::<u64>(), escalation()).prop_map(|(timeout_ms, escalation)| Watch {
        timeout_ms,
        escalation,
    })
}

fn to_task() -> impl Strategy<Value = ToTask> {
    script().prop_map(|script| ToTask::Start(Box::new(script)))
}

fn to_launcher() -> impl Strategy<Value = ToLauncher> {
    prop_oneof![
        (bytes(), limit()).prop_map(|(version, nofile)| ToLauncher::Hello { version, nofile }),
        any::<u64>().prop_map(|id| ToLauncher::Fork { id }),
        any::<u64>().prop_map(|id| ToLauncher::Kill { id }),
        any::<u64>().prop_map(|id| ToLauncher::Report { id }),
    ]
}

fn from_launcher() -> impl Strategy<Value = FromLauncher> {
    prop_oneof![
        (bytes(), any::<u32>()).prop_map(|(version, uid)| FromLauncher::Hello { version, uid }),
        (any::<u64>(), any::<i32>()).prop_map(|(id, errno)| FromLauncher::ForkFailed { id, errno }),
        (any::<u64>(), exit(), usage()).prop_map(|(id, exit, usage)| FromLauncher::Exited {
            id,
            exit,
            usage
        }),
    ]
}

fn to_root() -> impl Strategy<Value = ToRoot> {
    prop_oneof![
        3 => start().prop_map(|start| ToRoot::Start(Box::new(start))),
        1 => escalation().prop_map(ToRoot::Terminate),
        1 => Just(ToRoot::Bear),
        1 => watch().prop_map(ToRoot::Watch),
        3 => to_node().prop_map(|message| ToRoot::Node(Box::new(message))),
    ]
}

fn names() -> impl Strategy<Value = Vec<String>> {
    vec("[a-z_]{0,12}", 0..6)
}

fn filter() -> impl Strategy<Value = Filter> {
    prop_oneof![
        Just(Filter::Unchanged),
        names().prop_map(Filter::Deny),
        names().prop_map(Filter::Allow),
    ]
}

fn handler() -> impl Strategy<Value = Handler> {
    prop_oneof![
        Just(Handler::Default),
        Just(Handler::Ignore),
        Just(Handler::Info),
        Just(Handler::Forward),
    ]
}

fn supervise() -> impl Strategy<Value = Supervise> {
    (bytes(), any::<i32>(), filter(), filter()).prop_map(|(title, signal_one_of, own, children)| {
        Supervise {
            title,
            signal_one_of,
            own,
            children,
        }
    })
}

fn setting() -> impl Strategy<Value = Setting> {
    prop_oneof![
        (filter(), filter()).prop_map(|(own, children)| Setting::Filter { own, children }),
        (any::<i32>(), option::of(handler()))
            .prop_map(|(signal, handler)| Setting::Sigaction { signal, handler }),
        Just(Setting::Forward),
        any::<i32>().prop_map(Setting::SignalOneOf),
        supervise().prop_map(Setting::Supervise),
    ]
}

fn program() -> impl Strategy<Value = Program> {
    let list = || vec(bytes(), 0..4);
    prop_oneof![
        (exec(), any::<[bool; 3]>()).prop_map(|(exec, [stdin, stderr, joined])| Program::Path {
            exec,
            redirect: Redirect {
                stdin_null: stdin,
                stderr_null: stderr,
                stderr_to_stdout: joined,
            },
        }),
        (bytes(), list()).prop_map(|(file, argv)| Program::Search { file, argv }),
        (any::<i32>(), list(), list()).prop_map(|(fd, argv, env)| Program::Descriptor {
            fd,
            argv,
            env
        }),
    ]
}

fn birth() -> impl Strategy<Value = Birth> {
    let user = prop_oneof![
        any::<[u32; 2]>().prop_map(|[uid, gid]| User::Mapped { uid, gid }),
        Just(User::KeptIfUnprivileged),
    ];
    let guards = option::of((any::<u64>(), supervise()));
    (user, vec(step(), 0..3), guards).prop_map(|(user, steps, guards)| Birth {
        user,
        steps,
        guards,
    })
}

fn to_node() -> impl Strategy<Value = ToNode> {
    prop_oneof![
        (
            any::<u64>(),
            vec(bytes(), 0..6),
            option::of(supervise()),
            any::<bool>()
        )
            .prop_map(|(sequence, environ, supervise, cgroup)| ToNode::Root {
                sequence,
                environ,
                supervise,
                cgroup,
            }),
        (any::<[u64; 3]>(), option::of(birth())).prop_map(|([sequence, task, clone], birth)| {
            ToNode::Fork {
                sequence,
                task,
                clone,
                birth: birth.map(Box::new),
            }
        }),
        (any::<u64>(), vec(step(), 0..6))
            .prop_map(|(sequence, steps)| ToNode::Batch { sequence, steps }),
        (any::<u64>(), vec(step(), 0..6), program()).prop_map(|(sequence, steps, program)| {
            ToNode::Exec {
                sequence,
                steps,
                program,
            }
        }),
        (any::<u64>(), setting()).prop_map(|(sequence, setting)| ToNode::Set { sequence, setting }),
        any::<u64>().prop_map(|task| ToNode::Kill { task }),
        (any::<u64>(), any::<i32>()).prop_map(|(task, signal)| ToNode::Terminate { task, signal }),
        any::<u64>().prop_map(|sequence| ToNode::Reap { sequence }),
        (vec(any::<i32>(), 0..6), any::<i32>())
            .prop_map(|(pids, signal)| ToNode::Signal { pids, signal }),
        any::<u8>().prop_map(|status| ToNode::Exit { status }),
    ]
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        any::<i32>().prop_map(Refusal::Errno),
        Just(Refusal::Undefined)
    ]
}

fn simple_value() -> BoxedStrategy<Value> {
    prop_oneof![
        any::<i64>().prop_map(|n| Value::Int(n.into())),
        "[a-z_]{0,12}".prop_map(Value::Atom),
        vec(any::<u8>(), 0..40).prop_map(Value::Bytes),
    ]
    .boxed()
}

fn from_node() -> impl Strategy<Value = FromNode> {
    let result = prop_oneof![simple_value().prop_map(Ok), refusal().prop_map(Err),];
    let pids = (any::<i32>(), option::of(any::<i32>()));
    let born = prop_oneof![pids.prop_map(Ok), refusal().prop_map(Err)];
    prop_oneof![
        Just(FromNode::Contained),
        (any::<u64>(), any::<u64>(), any::<i32>()).prop_map(|(sequence, task, pid)| {
            FromNode::Forked {
                sequence,
                task,
                pid,
            }
        }),
        (
            any::<u64>(),
            any::<u32>(),
            result,
            option::of(simple_value())
        )
            .prop_map(|(sequence, steps, result, state)| FromNode::Done {
                sequence,
                steps,
                result,
                state,
            }),
        (any::<u64>(), born).prop_map(|(sequence, result)| FromNode::Born { sequence, result }),
        any::<u64>().prop_map(|sequence| FromNode::Execing { sequence }),
        (any::<u64>(), exit(), usage()).prop_map(|(task, exit, usage)| FromNode::Exited {
            task,
            exit,
            usage
        }),
        (any::<i32>(), bytes()).prop_map(|(signal, info)| FromNode::Signal { signal, info }),
    ]
}

fn exit() -> impl Strategy<Value = Exit> {
    prop_oneof![
        any::<u8>().prop_map(Exit::Status),
        any::<i32>().prop_map(Exit::Signal),
    ]
}

fn usage() -> impl Strategy<Value = Usage> {
    any::<[u64; 9]>().prop_map(
        |[utime_us, stime_us, maxrss_kib, minflt, majflt, inblock, oublock, nvcsw, nivcsw]| Usage {
            utime_us,
            stime_us,
            maxrss_kib,
            minflt,
            majflt,
            inblock,
            oublock,
            nvcsw,
            nivcsw,
        },
    )
}

fn from_root() -> impl Strategy<Value = FromRoot> {
    (exit(), usage(), any::<u32>(), any::<bool>()).prop_map(|(exit, usage, survivors, rests)| {
        FromRoot::Exited {
            exit,
            usage,
            survivors,
            rests,
        }
    })
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![
        Just(Stage::Fork),
        Just(Stage::Setup),
        any::<u32>().prop_map(Stage::Step),
        Just(Stage::Exec),
    ]
}

fn from_task() -> impl Strategy<Value = FromTask> {
    prop_oneof![
        any::<i32>().prop_map(|pid| FromTask::Execing { pid }),
        (stage(), any::<i32>()).prop_map(|(stage, errno)| FromTask::Failed { stage, errno }),
    ]
}

/// A valid encoding of any message.
fn encoded() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        encoding(to_launcher()),
        encoding(from_launcher()),
        encoding(to_root()),
        encoding(from_root()),
        encoding(to_task()),
        encoding(from_task()),
        encoding(from_node()),
    ]
}

fn encoding<T: Serialize + Debug>(
    messages: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Vec<u8>> {
    messages
        .prop_map(|message| encode(&message).unwrap())
        .boxed()
}

/// A new variant does not compile here until the generators above make it too.
#[allow(dead_code)]
fn every_variant_is_generated(
    (to_launcher, from_launcher): (ToLauncher, FromLauncher),
    (to_root, from_root): (ToRoot, FromRoot),
    (to_task, from_task, from_node): (ToTask, FromTask, FromNode),
    (stage, exit): (Stage, Exit),
) {
    match to_launcher {
        ToLauncher::Hello { .. }
        | ToLauncher::Fork { .. }
        | ToLauncher::Kill { .. }
        | ToLauncher::Report { .. } => {}
    }
    match from_launcher {
        FromLauncher::Hello { .. }
        | FromLauncher::ForkFailed { .. }
        | FromLauncher::Exited { .. } => {}
    }
    match to_root {
        ToRoot::Start(_) | ToRoot::Terminate(_) | ToRoot::Bear | ToRoot::Watch(_) => {}
        ToRoot::Node(message) => match *message {
            ToNode::Root { .. }
            | ToNode::Fork { .. }
            | ToNode::Batch { .. }
            | ToNode::Exec { .. }
            | ToNode::Set { .. }
            | ToNode::Kill { .. }
            | ToNode::Terminate { .. }
            | ToNode::Reap { .. }
            | ToNode::Signal { .. }
            | ToNode::Exit { .. } => {}
        },
    }
    match from_node {
        FromNode::Contained
        | FromNode::Forked { .. }
        | FromNode::Born { .. }
        | FromNode::Done { .. }
        | FromNode::Execing { .. }
        | FromNode::Exited { .. }
        | FromNode::Signal { .. } => {}
    }
    match from_root {
        FromRoot::Exited { .. } => {}
    }
    match to_task {
        ToTask::Start(_) => {}
    }
    match from_task {
        FromTask::Execing { .. } | FromTask::Failed { .. } => {}
    }
    match stage {
        Stage::Fork | Stage::Setup | Stage::Step(_) | Stage::Exec => {}
    }
    match exit {
        Exit::Status(_) | Exit::Signal(_) => {}
    }
}

// ---- round trips -----------------------------------------------------------------------------

/// There and back; every strict prefix and every extension of it is malformed.
fn round_trip<T>(message: &T, cut: usize, tail: &[u8]) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let bytes = encode(message).unwrap();
    prop_assert_eq!(&decode_bounded::<T>(&bytes).unwrap(), message);
    let cut = cut % bytes.len();
    prop_assert!(
        decode_bounded::<T>(&bytes[..cut]).is_none(),
        "cut to {}",
        cut
    );
    let longer = [bytes.as_slice(), tail].concat();
    prop_assert!(
        decode_bounded::<T>(&longer).is_none(),
        "with {} trailing bytes",
        tail.len()
    );
    Ok(())
}

fn tail() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn to_launcher_round_trips(message in to_launcher(), cut: usize, tail in tail()) {
        round_trip(&message, cut, &tail)?;
    }

    #[test]
    fn from_launcher_round_trips(message in from_launcher(), cut: usize, tail in tail()) {
        round_trip(&message, cut, &tail)?;
    }

    #[test]
    fn to_root_round_trips(message in to_root(), cut: usize, tail in tail()) {
        round_trip(&message, cut, &tail)?;
    }

    #[test]
    fn from_root_round_trips(message in from_root(), cut: usize, tail in tail()) {
        round_trip(&message, cut, &tail)?;
    }

    #[test]
    fn to_task_round_trips(message in to_task(), cut: usize, tail in tail()) {
        round_trip(&message, cut, &tail)?;
    }

    #[test]
    fn from_task_round_trips(message in from_task(), cut: usize, tail in tail()) {
        round_trip(&message, cut, &tail)?;
    }

    #[test]
    fn from_node_round_trips(message in from_node(), cut: usize, tail in tail()) {
        round_trip(&message, cut, &tail)?;
    }

    #[test]
    fn calls_round_trip(message in call(), cut: usize, tail in tail()) {
        round_trip(&message, cut, &tail)?;
    }

    // ---- totality ----------------------------------------------------------------------------

    #[test]
    fn arbitrary_bytes_decode_to_something_or_nothing(bytes in vec(any::<u8>(), 0..4096)) {
        decode_as_everything(&bytes);
    }

    /// Small bytes are tags and lengths far more often than arbitrary ones.
    #[test]
    fn plausible_bytes_decode_to_something_or_nothing(bytes in vec(0_u8..8, 0..400)) {
        decode_as_everything(&bytes);
    }

    #[test]
    fn mutated_messages_decode_to_something_or_nothing(
        original in encoded(),
        mutations in vec((any::<usize>(), mutation()), 1..6),
    ) {
        let mut bytes = original;
        for (position, mutation) in mutations {
            mutation.apply(&mut bytes, position);
        }
        decode_as_everything(&bytes);
    }

    /// Wherever a length stands, it may claim anything.
    #[test]
    fn a_huge_length_is_refused_without_making_room_for_it(
        original in encoded(),
        position: usize,
        claimed in prop_oneof![
            Just(u64::MAX),
            Just(u64::from(u32::MAX)),
            Just(1 << 40),
            Just(isize::MAX.unsigned_abs() as u64),
            (1_u64 << 20)..(1 << 34),
        ],
    ) {
        let position = position % original.len();
        let mut bytes = original[..position].to_vec();
        bytes.extend(encode(&claimed).unwrap());
        bytes.extend(&original[position + 1..]);
        decode_as_everything(&bytes);
    }

    // ---- the table of calls ------------------------------------------------------------------

    #[test]
    fn no_arguments_make_the_table_panic(
        name in prop_oneof![
            3 => (0..TABLE.len()).prop_map(|row| TABLE[row].name.to_owned()),
            1 => "[a-z_]{0,20}",
        ],
        arguments in vec(value(), 0..5),
    ) {
        let given = arguments.len();
        let fits = rows().any(|row| row.name == name && row.takes(given));
        match Call::decode(&name, arguments) {
            Ok(call) => {
                prop_assert_eq!(call.name(), name);
                let bytes = encode(&call).unwrap();
                prop_assert_eq!(decode_bounded::<Call>(&bytes), Some(call));
            }
            Err(BadArgument::Undefined) => prop_assert!(!fits),
            Err(BadArgument::Type(position) | BadArgument::UnknownConstant(position)) => {
                prop_assert!(fits);
                prop_assert!(position < given);
            }
        }
    }

    #[test]
    fn one_bad_argument_is_named(
        (row, mut arguments) in invocation(),
        position: usize,
        bad in bad_value(),
    ) {
        if arguments.is_empty() {
            return Ok(());
        }
        let position = position % arguments.len();
        arguments[position] = bad;
        let expected = match row.arguments[position].1 {
            "ignored" => None,
            _ => Some(BadArgument::Type(position)),
        };
        prop_assert_eq!(Call::decode(row.name, arguments).err(), expected);
    }

    #[test]
    fn values_round_trip(value in value(), cut: usize, tail in tail()) {
        round_trip(&value, cut, &tail)?;
    }

    #[test]
    fn constants_are_known_by_name_in_any_letter_case(upper in vec(any::<bool>(), 13)) {
        let spell = |name: &str| -> Value {
            Value::Atom(
                name.chars()
                    .zip(upper.iter().chain(std::iter::repeat(&false)))
                    .map(|(letter, upper)| match upper {
                        true => letter.to_ascii_uppercase(),
                        false => letter,
                    })
                    .collect(),
            )
        };
        prop_assert_eq!(
            Call::decode("set_pdeathsig", vec![spell("sigterm")]),
            Ok(Call::SetPdeathsig { signal: Signal(15) })
        );
        prop_assert_eq!(
            Call::decode("setpriority", vec![spell("prio_user"), Value::Int(0), Value::Int(0)]),
            Ok(Call::Setpriority { which: Prio(2), who: 0, priority: 0 })
        );
    }

    #[test]
    fn looking_up_a_constant_is_total(name in "\\PC{0,40}") {
        for family in Family::ALL {
            let _ = lookup(family, &name);
        }
    }
}

#[derive(Debug, Clone)]
enum Mutation {
    Flip(u8),
    Set(u8),
    Insert(u8),
    Remove,
    Truncate,
    Repeat,
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (0_u8..8).prop_map(|bit| Mutation::Flip(1 << bit)),
        any::<u8>().prop_map(Mutation::Set),
        any::<u8>().prop_map(Mutation::Insert),
        Just(Mutation::Remove),
        Just(Mutation::Truncate),
        Just(Mutation::Repeat),
    ]
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>, position: usize) {
        if bytes.is_empty() {
            return;
        }
        let position = position % bytes.len();
        match self {
            Self::Flip(mask) => bytes[position] ^= mask,
            Self::Set(byte) => bytes[position] = *byte,
            Self::Insert(byte) => bytes.insert(position, *byte),
            Self::Remove => drop(bytes.remove(position)),
            Self::Truncate => bytes.truncate(position),
            Self::Repeat => bytes.extend_from_within(position..),
        }
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<i128>().prop_map(Value::Int),
        any::<i32>().prop_map(|n| Value::Int(n.into())),
        any::<u64>().prop_map(|n| Value::Int(n.into())),
        "[a-zA-Z_]{0,16}".prop_map(Value::Atom),
        prop_oneof![
            Just("sigterm"),
            Just("RLIMIT_core"),
            Just("prio_user"),
            Just("cur")
        ]
        .prop_map(|name| Value::Atom(name.to_owned())),
        vec(any::<u8>(), 0..40).prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(3, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::List),
            vec((inner.clone(), inner.clone()), 0..4).prop_map(Value::Map),
            vec(inner, 0..4).prop_map(Value::Tuple),
        ]
    })
}

/// Fits no argument of any call, but what is ignored.
fn bad_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Int(i128::MAX)),
        Just(Value::Int(i128::from(u64::MAX) + 1)),
        Just(Value::Tuple(vec![])),
        Just(Value::List(vec![Value::Tuple(vec![])])),
        Just(Value::Map(vec![])),
        Just(Value::Map(vec![(Value::Atom("cur".into()), Value::Int(1))])),
    ]
}

/// The generator has to know every row of the table, or nothing above means much.
#[test]
fn every_row_of_the_table_is_generated() {
    let mut runner = TestRunner::deterministic();
    let mut unseen: Vec<_> = rows().map(|row| row.name).collect();
    for _ in 0..1000 {
        let call = call().new_tree(&mut runner).unwrap().current();
        unseen.retain(|name| *name != call.name());
    }
    assert!(unseen.is_empty(), "{unseen:?}");
}

// ---- worst cases -----------------------------------------------------------------------------

fn minimal() -> Start {
    Start {
        plan: Plan {
            namespaces: Namespaces::default(),
            script: Script {
                steps: vec![],
                exec: Exec {
                    file: ByteBuf::new(),
                    argv: vec![],
                    env: vec![],
                    search: false,
                },
            },
        },
        watch: None,
    }
}

/// The most memory for the least input: lists of the shortest elements.
#[test]
fn the_densest_messages_stay_within_the_bound() {
    const LENGTH: usize = 1 << 20;
    let empty = vec![ByteBuf::new(); LENGTH];
    let shortest = Step {
        call: Call::Setsid {},
        ignore: vec![],
        errexit: true,
    };
    let mut messages = vec![minimal(); 4];
    messages[0].plan.script.exec.argv.clone_from(&empty);
    messages[1].plan.script.exec.env = empty;
    messages[2].plan.script.steps = vec![shortest.clone(); LENGTH / 3];
    messages[3].plan.script.steps = vec![Step {
        ignore: vec![0; LENGTH],
        ..shortest
    }];
    for message in messages {
        let bytes = encode(&ToRoot::Start(Box::new(message.clone()))).unwrap();
        let decoded = decode_bounded::<ToRoot>(&bytes).unwrap();
        assert_eq!(decoded, ToRoot::Start(Box::new(message)));
    }
}

/// Nothing but lengths, each claiming the most: what can be nested claims at every level.
#[test]
fn lengths_all_the_way_are_refused_at_once() {
    for claim in [u64::MAX, 1 << 62, 1 << 32, MAX_BODY as u64] {
        let mut bytes = vec![0];
        while bytes.len() < 1 << 16 {
            bytes.extend(encode(&claim).unwrap());
        }
        for skip in 0..16 {
            decode_as_everything(&bytes[skip..]);
        }
    }
}

#[test]
fn nothing_and_unknown_tags_are_malformed() {
    assert!(decode::<ToLauncher>(&[]).is_err());
    assert!(decode::<ToRoot>(&[]).is_err());
    for tag in 3..=u8::MAX {
        assert!(decode::<ToLauncher>(&[tag, 0, 0, 0]).is_err(), "{tag}");
    }
    for tag in 2..=u8::MAX {
        assert!(decode::<ToRoot>(&[tag, 0, 0]).is_err(), "{tag}");
    }
    // A call that is not in the table, where the first step's call stands.
    let mut start = minimal();
    start.plan.script.steps.push(Step {
        call: Call::Setsid {},
        ignore: vec![],
        errexit: true,
    });
    let mut bytes = encode(&ToRoot::Start(Box::new(start))).unwrap();
    // Tag, three booleans, the number of steps.
    assert_eq!(bytes[..6], [0, 0, 0, 0, 1, 0]);
    bytes[5] = u8::try_from(TABLE.len()).unwrap();
    assert!(decode::<ToRoot>(&bytes).is_err());
}

#[test]
fn booleans_and_options_have_two_values() {
    let bytes = encode(&ToRoot::Start(Box::new(minimal()))).unwrap();
    assert!(decode::<ToRoot>(&bytes).is_ok());
    for position in 1..4 {
        let mut bytes = bytes.clone();
        bytes[position] = 2;
        assert!(decode::<ToRoot>(&bytes).is_err(), "{position}");
    }
}
