//! The messages. One datagram is one message; the enums are closed and derive their codec.
//!
//! | socket | towards the helper | towards the NIF |
//! |---|---|---|
//! | the launcher's (its fd 0) | [`ToLauncher`] | [`FromLauncher`] |
//! | a root's that runs one program | [`ToRoot`]: [`ToRoot::Start`] | [`FromRoot`] |
//! | that program's, until it execs | [`ToTask`], if it waits | [`FromTask`] |
//! | a root's or task's that serves calls | [`ToRoot`]: the rest | [`FromNode`] |

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::call::Call;
use crate::value::{Limit, Value};

/// Names one root process for the life of the launcher.
pub type RootId = u64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToLauncher {
    /// The first message. `nofile` is the descriptor limit that the BEAM was started with:
    /// programs get it, whatever the BEAM has raised its own to.
    Hello { version: ByteBuf, nofile: Limit },
    /// Fork a root process. Descriptors: its control socket.
    Fork { id: RootId },
    /// SIGKILL a root that no longer answers; its tree becomes the launcher's to kill.
    Kill { id: RootId },
    /// Report the end of this root however it ends: it serves requests, or will be a program.
    Report { id: RootId },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromLauncher {
    /// `uid`: who it runs as, by sudo, the setuid bit or neither.
    Hello {
        version: ByteBuf,
        uid: u32,
    },
    ForkFailed {
        id: RootId,
        errno: i32,
    },
    /// A root ended otherwise than with status 0, or was to be reported; the orphans that it left
    /// are dead too.
    Exited {
        id: RootId,
        exit: Exit,
        usage: Usage,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToRoot {
    /// Start the program in a new child. Descriptors: the task's control socket, its stdin, stdout,
    /// stderr. A child that waits ends.
    Start(Box<Start>),
    /// End the program: the signal to its process group, SIGKILL to the tree after the grace.
    Terminate(Escalation),
    /// Anything else makes the process serve requests, until it execs or ends. A child that waits
    /// ends.
    Node(Box<ToNode>),
    /// Have a child that waits for the program that it will be. Descriptors: the child's control
    /// socket.
    Bear,
    /// How long the program may run that the waiting child will be.
    Watch(Watch),
}

/// Names a task for as long as its tree lives; chosen by the NIF.
pub type TaskId = u64;
/// Names a request; the answer carries it.
pub type Sequence = u64;

/// What a process that serves requests can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToNode {
    /// Makes a root serve requests. Descriptors: stdin, stdout, stderr, for what it may exec.
    /// `environ` is the BEAM's environment when it asked. The answer's value is the pid.
    Root {
        sequence: Sequence,
        environ: Vec<ByteBuf>,
        supervise: Option<Supervise>,
        /// Its children are born into a cgroup of its own, or it fails with `ENOTSUP`.
        cgroup: bool,
    },
    /// A child that serves requests too. Descriptors: its control socket, stdin, stdout, stderr; with
    /// `guards`, the same of its own child after these. `clone` holds CLONE_NEW* flags. With `birth`,
    /// the child answers in its parent's place, on its own socket, with `Born`.
    Fork {
        sequence: Sequence,
        task: TaskId,
        clone: u64,
        birth: Option<Box<Birth>>,
    },
    /// The steps in order, up to the first one that fails and is not passed over.
    Batch {
        sequence: Sequence,
        steps: Vec<Step>,
    },
    /// The steps as in `Batch`; if all go well, the program.
    Exec {
        sequence: Sequence,
        steps: Vec<Step>,
        program: Program,
    },
    Set {
        sequence: Sequence,
        setting: Setting,
    },
    /// SIGKILL a child and its descendants.
    Kill {
        task: TaskId,
    },
    /// Signal the process group that a child leads, else the child alone.
    Terminate {
        task: TaskId,
        signal: i32,
    },
    /// SIGKILL every descendant until none is left, for some seconds at most.
    Reap {
        sequence: Sequence,
    },
    /// Signal these descendants, which another process forked: each is checked to be one.
    Signal {
        pids: Vec<i32>,
        signal: i32,
    },
    Exit {
        status: u8,
    },
}

/// What a child does before it is one that anybody can ask for anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    pub user: User,
    pub steps: Vec<Step>,
    /// It becomes a supervisor, and forks this child.
    pub guards: Option<(TaskId, Supervise)>,
}

/// The user namespace that a child is born into. user_namespaces(7)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    /// In it, the parent's ids are these.
    Mapped { uid: u32, gid: u32 },
    /// In it they are what they are outside; there is none where the parent is root.
    KeptIfUnprivileged,
}

/// The three ways to exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// execve(2). Descriptors: `/dev/null`, if `redirect` asks for it.
    Path { exec: Exec, redirect: Redirect },
    /// execvp(3): searched along the PATH of the task's environment, which is the program's.
    Search { file: ByteBuf, argv: Vec<ByteBuf> },
    /// fexecve(3)
    Descriptor {
        fd: i32,
        argv: Vec<ByteBuf>,
        env: Vec<ByteBuf>,
    },
}

/// What becomes of the standard streams at exec.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    pub stdin_null: bool,
    pub stderr_null: bool,
    pub stderr_to_stdout: bool,
}

/// What concerns the serving itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Setting {
    /// Restrict what this process, and its later children, may be asked for.
    Filter {
        own: Filter,
        children: Filter,
    },
    /// `None` asks only.
    Sigaction {
        signal: i32,
        handler: Option<Handler>,
    },
    /// A supervisor's handlers in one step: every signal that can be is forwarded, but those
    /// which mean a fault of the process itself, and SIGPIPE, SIGCHLD.
    Forward,
    /// What the children's groups are sent when the control socket ends.
    SignalOneOf(i32),
    Supervise(Supervise),
}

/// All that makes a supervisor of a process, in this order: a subreaper, `Forward`, its title and
/// name, `SignalOneOf`, `Filter`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supervise {
    pub title: ByteBuf,
    pub signal_one_of: i32,
    pub own: Filter,
    pub children: Filter,
}

/// Names of calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Filter {
    Unchanged,
    Deny(Vec<String>),
    Allow(Vec<String>),
}

/// What a process does with a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handler {
    Default,
    Ignore,
    /// The owner is told.
    Info,
    /// Every descendant gets it, once.
    Forward,
}

/// What a process that serves requests says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromNode {
    /// Of a root, once. Descriptor: its cgroup's `cgroup.kill`.
    Contained,
    Forked {
        sequence: Sequence,
        task: TaskId,
        /// As this process sees it.
        pid: i32,
    },
    /// The answer of a child to the request that its parent got. `pid` is its own, as its parent sees
    /// it; `child` that of the one it guards, as itself does. A child that fails ends.
    Born {
        sequence: Sequence,
        result: Result<(i32, Option<i32>), Refusal>,
    },
    /// What a batch came to: how many steps went well, and the last one's value; or the outcome of
    /// the next one, which did not: a value other than `:ok` and `{:ok, _}`, or a refusal.
    /// `state` is what the last of those that went well gave: `:ok`, or the value in `{:ok, _}`.
    Done {
        sequence: Sequence,
        steps: u32,
        result: Result<Value, Refusal>,
        state: Option<Value>,
    },
    /// The last message before execve; end of file after it means that the program runs.
    Execing {
        sequence: Sequence,
    },
    /// A child ended; what it left behind of its own is another's to see to.
    Exited {
        task: TaskId,
        exit: Exit,
        usage: Usage,
    },
    Signal {
        signal: i32,
        info: ByteBuf,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    Errno(i32),
    /// Filtered, or not to be had on this system.
    Undefined,
}

/// A kill escalation: `signal` first; if that is not SIGKILL, SIGKILL to all after `grace_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Escalation {
    pub signal: i32,
    pub grace_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    pub plan: Plan,
    pub watch: Option<Watch>,
}

/// Time from exec to `escalation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    pub timeout_ms: u64,
    pub escalation: Escalation,
}

/// Everything that happens between fork and exec, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub namespaces: Namespaces,
    pub script: Script,
}

/// What a process does to become the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    pub steps: Vec<Step>,
    pub exec: Exec,
}

/// Namespaces that the task is born into. namespaces(7)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    pub net: bool,
    pub pid: bool,
    /// A user namespace with the caller's own ids mapped to themselves, where the helper has
    /// no privilege to make the others without one.
    pub user_if_unprivileged: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub call: Call,
    /// errno values that count as success.
    pub ignore: Vec<i32>,
    /// False: any error counts as success.
    pub errexit: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    pub file: ByteBuf,
    pub argv: Vec<ByteBuf>,
    /// `KEY=value` each.
    pub env: Vec<ByteBuf>,
    /// Look `file` up along the PATH of `env`.
    pub search: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromRoot {
    /// The program ended and nothing of its tree is left (`survivors` counts what could not be
    /// killed within the deadline: processes of another user behind a setuid program).
    Exited {
        exit: Exit,
        usage: Usage,
        survivors: u32,
        /// It waits for the next program; otherwise it ends.
        rests: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToTask {
    /// Become the program. Descriptors: stdin, stdout, stderr.
    Start(Box<Script>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromTask {
    /// The last message before execve; end of file after it means that the program runs.
    /// `pid` is the process id as the root sees it.
    Execing {
        pid: i32,
    },
    Failed {
        stage: Stage,
        errno: i32,
    },
}

/// Where a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    Fork,
    /// Descriptors, user namespace maps: what the helper does by itself around the plan.
    Setup,
    /// The step with this index.
    Step(u32),
    Exec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    Status(u8),
    Signal(i32),
}

/// What the program and its reaped descendants used. getrusage(2)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub utime_us: u64,
    pub stime_us: u64,
    pub maxrss_kib: u64,
    pub minflt: u64,
    pub majflt: u64,
    pub inblock: u64,
    pub oublock: u64,
    pub nvcsw: u64,
    pub nivcsw: u64,
}

impl Usage {
    /// Sums, and the larger of the two peaks, as the kernel does for waited-for children.
    pub fn add(&mut self, other: &Self) {
        self.utime_us += other.utime_us;
        self.stime_us += other.stime_us;
        self.maxrss_kib = self.maxrss_kib.max(other.maxrss_kib);
        self.minflt += other.minflt;
        self.majflt += other.majflt;
        self.inblock += other.inblock;
        self.oublock += other.oublock;
        self.nvcsw += other.nvcsw;
        self.nivcsw += other.nivcsw;
    }
}
