//! A task as the BEAM knows it: a process that serves requests until it execs, and then a program.
//!
//! Rules:
//! 1. All tasks of a tree are served by one I/O thread, so what it learns about one it can apply
//!    to the others in order.
//! 2. The registry holds each task until its terminal event, whatever Elixir holds.
//! 3. A task ends when its parent (or the launcher, for a root) reports it. Its children end with
//!    it: they are killed, and end with SIGKILL unless their own end was reported before.
//! 4. Output is sent while there is credit, one per chunk; after the end of the process it comes
//!    regardless, at most one pipe-full of each stream. A process that escaped and holds a pipe is
//!    waited for [`ESCAPED_GRACE`].
//! 5. `Inner`'s lock is never held while another task's is taken.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{shutdown, Shutdown};
use once_cell::sync::Lazy;
use rustler::{LocalPid, Monitor, ResourceArc};
use stdio_protocol::channel::{is_busy, Datagram, Receiver};
use stdio_protocol::filter::CallFilter;
use stdio_protocol::message::{
    Escalation, Exit, Filter, FromNode, Refusal, Sequence, Setting, TaskId, ToNode, ToRoot, Usage,
};
use stdio_protocol::value::Value;

use crate::launcher::Launcher;
use crate::notify::{Listener, Notifier, Tag, Waiter};
use crate::pipe::{Chunk, Outputs, Stdin, Stream};
use crate::reactor::{self, Command, Role, Shard};
use crate::session::{After, Alarm};
use crate::task::TaskHandle;

/// CONTRACT 6.2.
const ESCAPED_GRACE: Duration = Duration::from_millis(100);
/// A supervisor gives up on unkillable processes after 5 s; one that takes longer is stuck.
const TEARDOWN_DEADLINE: Duration = Duration::from_secs(7);
const MAX_CHUNK: usize = 65_536;
/// Chunks read in one turn; then other tasks have theirs.
const CHUNKS_AT_ONCE: usize = 16;

/// Every task that has not had its terminal event.
static REGISTRY: Lazy<Mutex<HashMap<TaskId, ResourceArc<TaskHandle>>>> = Lazy::new(Mutex::default);

fn registry() -> MutexGuard<'static, HashMap<TaskId, ResourceArc<TaskHandle>>> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn find(id: TaskId) -> Option<ResourceArc<TaskHandle>> {
    registry().get(&id).cloned()
}

pub fn enter(handle: &ResourceArc<TaskHandle>) {
    registry().insert(handle.node.id, handle.clone());
}

pub fn forget(id: TaskId) {
    registry().remove(&id);
}

/// A child that was asked for and will not be: its descriptors go with it. Who has asked for more of it
/// hears of the fork alone, from now on.
fn unborn(parent: &Node, child: TaskId) {
    if let Some(child) = find(child) {
        child.node.lock().withdraw();
    }
    forget(child);
    parent.shard.command(Command::ForgetNode(child));
}

/// A child that its parent knows of, and one that this was to guard.
pub fn never_born(parent: &Node, child: TaskId, guarded: Option<TaskId>) {
    parent.lock().children.retain(|task| *task != child);
    unborn(parent, child);
    if let Some(guarded) = guarded {
        unborn(parent, guarded);
    }
}

/// What `setopt` and `getopt` know, inherited at fork. The NIF keeps them; `signaloneof` is told to
/// the helper too.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub maxchild: i64,
    pub maxforkdepth: i64,
    pub exit_status: i64,
    pub termsig: i64,
    pub flowcontrol: i64,
    pub signaloneof: i64,
    pub stdin_closed: i64,
    pub stdout_closed: i64,
    pub stderr_closed: i64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            maxchild: 65_536,
            maxforkdepth: 128,
            exit_status: 1,
            termsig: 1,
            flowcontrol: -1,
            signaloneof: 15,
            stdin_closed: 0,
            stdout_closed: 0,
            stderr_closed: 0,
        }
    }
}

pub struct Node {
    pub id: TaskId,
    pub parent: Option<TaskId>,
    pub root: TaskId,
    /// PID 1 of a namespace: the kernel ends all below it with it, and pids are its own.
    pub leads_namespace: bool,
    pub shard: Arc<Shard>,
    pub launcher: Arc<Launcher>,
    stdin: Mutex<Stdin>,
    inner: Mutex<Inner>,
}

/// What changes.
pub struct Inner {
    control: Option<OwnedFd>,
    /// Our side of it has ended; what it still says concerns nobody, but for its end.
    hung_up: bool,
    outbox: VecDeque<(Datagram, Vec<OwnedFd>)>,
    /// Requests without an answer.
    pending: HashMap<Sequence, Pending>,
    sequence: Sequence,
    pub outputs: Outputs,
    pub credit: i64,
    pub options: Options,
    pub owner: LocalPid,
    pub monitor: Option<Monitor>,
    /// Where output and the terminal event go, if not to the owner.
    pub receiver: Option<(LocalPid, Monitor)>,
    /// As its parent sees it.
    pub pid: Option<i32>,
    /// Its parent's pipeline and itself; empty for a root.
    pub pipeline: Vec<i32>,
    pub children: Vec<TaskId>,
    /// Those that it had when it ended. They may still have something to say.
    pub orphans: Vec<TaskId>,
    executing: Option<Sequence>,
    pub execed: bool,
    exit: Option<Exit>,
    pub usage: Option<Usage>,
    pub dead: bool,
    stoppers: Vec<Waiter>,
    own_filter: CallFilter,
    child_filter: CallFilter,
    /// Its parent is there for it alone, ends with it, and is nobody's concern.
    pub carried: bool,
    /// It is such a parent.
    pub carrier: bool,
    /// Not heard of yet: nobody has a handle, its output is not read, and its end is no event.
    pub nascent: bool,
    /// It has had output as such, which waits until it is introduced.
    unread: bool,
    /// Of a root: kills its cgroup, should every helper be dead.
    cgroup_kill: Option<File>,
    /// Processes that have stopped it themselves: they get no event of it.
    muted: Vec<LocalPid>,
    ownerless: bool,
    /// A stream's: told of the end before the pipes are read to theirs, which it then asks for.
    pub hold: Option<Tag>,
    /// It has been held: somebody waits for the terminal event, whatever the parent's options say.
    pub awaited: bool,
    pub max_chunk: usize,
    /// From exec on.
    pub deadline: Option<(Duration, Escalation)>,
    /// Until SIGKILL, once the escalation has begun.
    grace: Option<Duration>,
}

/// Who waits for an answer, and for what.
pub struct Pending {
    pub waiter: Waiter,
    pub kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    Root(Option<Box<Restriction>>),
    Fork(TaskId),
    /// The child answers, on its own socket; with it, one that it guards.
    Birth(TaskId, Option<TaskId>),
    Batch,
    Exec {
        /// Nobody reads what is written to its stdin then.
        stdin_null: bool,
    },
    Set,
    Restrict(Box<Restriction>),
}

/// What has to be known here too of a change, once the process has made it.
#[derive(Debug, PartialEq, Eq)]
pub struct Restriction {
    pub own: Filter,
    pub children: Filter,
    /// It is a supervisor now.
    pub signal_one_of: Option<i32>,
}

/// What a new task is connected by.
pub struct Ends {
    pub control: OwnedFd,
    pub stdin: OwnedFd,
    pub outputs: Outputs,
}

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    Dead,
    Execed,
    Errno(Errno),
}

impl Node {
    pub fn new(
        id: TaskId,
        parent: Option<&Arc<Self>>,
        launcher: Arc<Launcher>,
        owner: LocalPid,
        ends: Ends,
        leads_namespace: bool,
    ) -> Result<Self, Errno> {
        let root = parent.map_or(id, |parent| parent.root);
        let (options, credit, filter) = match parent {
            Some(parent) => {
                let inner = parent.lock();
                let options = inner.options;
                (options, options.flowcontrol, inner.child_filter.clone())
            }
            // Roots are always unlimited.
            None => (Options::default(), -1, CallFilter::default()),
        };
        Ok(Self {
            id,
            parent: parent.map(|parent| parent.id),
            root,
            leads_namespace,
            shard: reactor::shard(root)?,
            launcher,
            stdin: Mutex::new(Stdin::new(Some(ends.stdin))),
            inner: Mutex::new(Inner {
                control: Some(ends.control),
                hung_up: false,
                outbox: VecDeque::new(),
                pending: HashMap::new(),
                sequence: 0,
                outputs: ends.outputs,
                credit,
                options,
                owner,
                monitor: None,
                receiver: None,
                pid: None,
                pipeline: Vec::new(),
                children: Vec::new(),
                orphans: Vec::new(),
                executing: None,
                execed: false,
                exit: None,
                usage: None,
                dead: false,
                stoppers: Vec::new(),
                own_filter: filter.clone(),
                child_filter: filter,
                carried: false,
                carrier: false,
                nascent: true,
                unread: false,
                cgroup_kill: None,
                muted: Vec::new(),
                ownerless: false,
                hold: None,
                awaited: false,
                max_chunk: MAX_CHUNK,
                deadline: None,
                grace: None,
            }),
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stdin(&self) -> MutexGuard<'_, Stdin> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request whose answer goes to `pending.waiter`.
    pub fn ask(
        &self,
        build: impl FnOnce(Sequence) -> ToNode,
        fds: Vec<OwnedFd>,
        pending: Pending,
    ) -> Result<(), Rejected> {
        self.offer(build, fds, pending)
            .map_err(|(rejected, _)| rejected)
    }

    /// The same; descriptors that were not taken are the caller's to close.
    pub fn offer(
        &self,
        build: impl FnOnce(Sequence) -> ToNode,
        fds: Vec<OwnedFd>,
        pending: Pending,
    ) -> Result<(), (Rejected, Vec<OwnedFd>)> {
        let mut inner = self.lock();
        let refused = match &*inner {
            inner if inner.dead || inner.exit.is_some() => Some(Rejected::Dead),
            inner if inner.execed => Some(Rejected::Execed),
            inner if !inner.serves() => Some(Rejected::Dead),
            _ => None,
        };
        if let Some(rejected) = refused {
            return Err((rejected, fds));
        }
        inner.sequence += 1;
        let sequence = inner.sequence;
        let message = ToRoot::Node(Box::new(build(sequence)));
        let datagram = match Datagram::new(&message) {
            Ok(datagram) => datagram,
            Err(error) => return Err((Rejected::Errno(error.errno()), fds)),
        };
        inner.pending.insert(sequence, pending);
        inner.outbox.push_back((datagram, fds));
        if inner.flush() {
            self.shard.command(Command::FlushNode(self.id));
        }
        Ok(())
    }

    /// Sends what has no answer.
    pub fn tell(&self, message: ToNode) {
        let Ok(datagram) = Datagram::new(&ToRoot::Node(Box::new(message))) else {
            return;
        };
        let mut inner = self.lock();
        inner.outbox.push_back((datagram, Vec::new()));
        if inner.flush() {
            self.shard.command(Command::FlushNode(self.id));
        }
    }

    /// What its children's groups are sent when its socket ends.
    pub fn tell_signaloneof(&self, signal: i64) {
        self.tell(ToNode::Set {
            sequence: 0,
            setting: Setting::SignalOneOf(i32::try_from(signal).unwrap_or(0)),
        });
    }

    /// Registers everything with the I/O thread.
    pub fn register(&self) -> Result<(), Errno> {
        let inner = self.lock();
        if let Some(control) = &inner.control {
            self.shard.register(self.id, Role::Node, control)?;
        }
        for (role, stream) in STREAMS {
            if let Some(output) = inner.outputs.output(stream) {
                self.shard.register(self.id, role, output.fd())?;
            }
        }
        Ok(())
    }

    /// Sends what did not fit; true if something is left.
    pub fn flush(&self) -> bool {
        self.lock().flush()
    }

    /// Adds to the credit, or sets it, and has reading go on.
    pub fn grant(&self, change: impl FnOnce(i64) -> i64) {
        let mut inner = self.lock();
        inner.credit = change(inner.credit);
        if inner.credit != 0 {
            for (role, stream) in STREAMS {
                self.arm(&inner, role, stream);
            }
        }
    }

    /// Who asked for it is about to hear of it; `learn` what it says of itself.
    fn introduce(&self, learn: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        learn(&mut inner);
        inner.nascent = false;
        if std::mem::take(&mut inner.unread) {
            for (role, stream) in STREAMS {
                self.arm(&inner, role, stream);
            }
        }
    }

    fn arm(&self, inner: &Inner, role: Role, stream: Stream) {
        if let Some(output) = inner.outputs.output(stream) {
            let _ = self.shard.arm(self.id, role, output.fd());
        }
    }
}

const STREAMS: [(Role, Stream); 2] = [
    (Role::Stdout, Stream::Stdout),
    (Role::Stderr, Stream::Stderr),
];

impl Inner {
    /// True if something is left.
    fn flush(&mut self) -> bool {
        while let (Some((datagram, fds)), Some(control)) = (self.outbox.front(), &self.control) {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match datagram.send(control.as_fd(), &borrowed) {
                Err(error) if is_busy(error.errno()) => return true,
                // Sent, or nobody is there to read it, which the end of the socket tells.
                _ => drop(self.outbox.pop_front()),
            }
        }
        false
    }

    pub fn is_alive(&self) -> bool {
        !self.dead && self.exit.is_none()
    }

    /// Whether the NIF may answer a call that it knows the answer of. To one that cannot be asked
    /// any more, other things apply.
    pub fn allows(&self, call: &str) -> bool {
        !self.is_alive() || self.execed || self.own_filter.allows(call)
    }

    pub fn restrict(&mut self, restriction: &Restriction) {
        self.own_filter.narrow(&restriction.own);
        self.child_filter.narrow(&restriction.children);
        if let Some(signal) = restriction.signal_one_of {
            self.options.signaloneof = i64::from(signal);
            self.options.flowcontrol = 1;
        }
    }

    /// Of one that has not executed, and is not to end.
    pub fn serves(&self) -> bool {
        self.control.is_some() && !self.hung_up
    }

    /// Who gets output and the terminal event.
    fn listener(&self) -> Option<Listener> {
        if self.carrier || self.nascent {
            return None;
        }
        let hears = |pid: &LocalPid| !self.muted.contains(pid);
        let owner = Some(self.owner).filter(|owner| !self.ownerless && hears(owner));
        let (first, otherwise) = match &self.receiver {
            Some((receiver, _)) => (Some(*receiver).filter(hears), owner),
            None => (owner, None),
        };
        first.map(|first| Listener { first, otherwise })
    }

    /// What it was asked for is not to be answered any more; false if there is nothing, or all is answered.
    pub fn withdraw(&mut self) -> bool {
        !std::mem::take(&mut self.pending).is_empty()
    }

    pub fn mute(&mut self, pid: LocalPid) {
        self.muted.push(pid);
    }

    pub fn is_in_cgroup(&self) -> bool {
        self.cgroup_kill.is_some()
    }

    /// All of the tree, whoever else is at it. What is gone already is none of it.
    fn kill_cgroup(&self) {
        if let Some(mut kill) = self.cgroup_kill.as_ref() {
            let _ = kill.write(b"1");
        }
    }

    /// Our side of the control socket ends: a process that serves requests ends its children and
    /// itself. The end of the other side tells when, should a launcher die that was to report it.
    fn hang_up(&mut self) {
        if let Some(control) = &self.control {
            // One that is dead already has ended its own side.
            let _ = shutdown(control.as_raw_fd(), Shutdown::Write);
        }
        self.hung_up = true;
        self.outbox.clear();
    }

    fn disconnect(&mut self) {
        self.control = None;
        self.outbox.clear();
    }
}

enum Connection {
    Open,
    Ended,
}

/// What the I/O thread does for a task. Each function takes the handle, as events carry it.
pub struct Served<'a> {
    pub handle: &'a ResourceArc<TaskHandle>,
    pub notifier: &'a mut Notifier,
    pub receiver: &'a mut Receiver,
}

impl Served<'_> {
    fn node(&self) -> &Arc<Node> {
        &self.handle.node
    }

    pub fn ready(&mut self, role: Role) -> After {
        match role {
            Role::Node => return self.read_control(),
            Role::Stdout => self.read_output(role, Stream::Stdout),
            Role::Stderr => self.read_output(role, Stream::Stderr),
            Role::Stdin => self.node().clone().stdin().flush(self.notifier),
            _ => {}
        }
        let drain = {
            let inner = self.node().lock();
            inner.exit.is_some() && inner.hold.is_none()
        };
        if drain {
            return self.drain();
        }
        After::Wait
    }

    fn read_control(&mut self) -> After {
        match self.read_messages() {
            Connection::Open => After::Wait,
            Connection::Ended => self.control_ended(),
        }
    }

    fn read_messages(&mut self) -> Connection {
        loop {
            let node = self.node().clone();
            let (received, hung_up) = {
                let inner = node.lock();
                match &inner.control {
                    Some(control) => (
                        self.receiver.recv::<FromNode>(control.as_fd()),
                        inner.hung_up,
                    ),
                    None => return Connection::Open,
                }
            };
            match received {
                Ok(Some(_)) if hung_up => {}
                Ok(Some(received)) => {
                    node.launcher.note_heard();
                    self.message(received.message, received.fds);
                }
                Err(error) if error.errno() == Errno::EAGAIN => return Connection::Open,
                Ok(None) | Err(_) => return Connection::Ended,
            }
        }
    }

    fn message(&mut self, message: FromNode, mut fds: Vec<OwnedFd>) {
        let node = self.node().clone();
        match message {
            FromNode::Contained => node.lock().cgroup_kill = fds.pop().map(File::from),
            FromNode::Forked {
                sequence,
                task,
                pid,
            } => self.forked(sequence, task, pid),
            FromNode::Born { sequence, result } => self.born(sequence, result),
            FromNode::Done {
                sequence,
                steps,
                result,
                state,
            } => self.done(sequence, steps, &result, state.as_ref()),
            FromNode::Execing { sequence } => node.lock().executing = Some(sequence),
            FromNode::Exited { task, exit, usage } => {
                node.shard
                    .command(Command::NodeExited(task, exit, Box::new(usage)));
            }
            FromNode::Signal { signal, info } => {
                let (owner, muted) = {
                    let inner = node.lock();
                    let muted =
                        inner.carrier || inner.nascent || inner.muted.contains(&inner.owner);
                    (inner.owner, muted)
                };
                if !muted {
                    self.notifier.signal(&owner, self.handle, signal, &info);
                }
            }
        }
    }

    fn forked(&mut self, sequence: Sequence, task: TaskId, pid: i32) {
        let node = self.node().clone();
        let (pending, pipeline) = {
            let mut inner = node.lock();
            let mut pipeline = inner.pipeline.clone();
            pipeline.push(pid);
            (inner.pending.remove(&sequence), pipeline)
        };
        let Some(child) = find(task) else {
            // It was given up on, so long did this take.
            if let Some(Pending { waiter, .. }) = pending {
                self.notifier
                    .done(&waiter, 0, &Err(Refusal::Errno(libc::ESRCH)), None);
            }
            return;
        };
        child.node.introduce(|inner| {
            inner.pid = Some(pid);
            inner.pipeline = pipeline;
        });
        if let Some(pending) = pending {
            self.notifier.forked(&pending.waiter, &child);
        }
    }

    /// The answer of a child to what its parent was asked for.
    fn born(&mut self, sequence: Sequence, result: Result<(i32, Option<i32>), Refusal>) {
        let node = self.node().clone();
        let Some(parent) = node.parent.and_then(find) else {
            return;
        };
        let (pending, mut pipeline) = {
            let mut inner = parent.node.lock();
            let is_this =
                |pending: &Pending| matches!(pending.kind, Kind::Birth(task, _) if task == node.id);
            let known = inner.pending.get(&sequence).is_some_and(is_this);
            let pending = known.then(|| inner.pending.remove(&sequence)).flatten();
            (pending, inner.pipeline.clone())
        };
        let Some(Pending {
            waiter,
            kind: Kind::Birth(_, guarded),
        }) = pending
        else {
            return;
        };
        let guarded = guarded.and_then(find);
        let mut settle = |task: &ResourceArc<TaskHandle>, pid: i32| {
            pipeline.push(pid);
            task.node.introduce(|inner| {
                inner.pid = Some(pid);
                inner.pipeline.clone_from(&pipeline);
            });
        };
        match result {
            Ok((pid, child)) => {
                settle(self.handle, pid);
                if let (Some(guarded), Some(pid)) = (&guarded, child) {
                    settle(guarded, pid);
                }
                self.notifier.born(&waiter, self.handle, guarded.as_ref());
            }
            Err(refusal) => {
                never_born(&parent.node, node.id, guarded.map(|task| task.node.id));
                self.notifier.done(&waiter, 0, &Err(refusal), None);
            }
        }
    }

    fn done(
        &mut self,
        sequence: Sequence,
        steps: u32,
        result: &Result<Value, Refusal>,
        state: Option<&Value>,
    ) {
        let node = self.node().clone();
        let pending = {
            let mut inner = node.lock();
            if inner.executing == Some(sequence) {
                inner.executing = None;
            }
            inner.pending.remove(&sequence)
        };
        let Some(Pending { waiter, kind }) = pending else {
            return;
        };
        match (kind, result) {
            (Kind::Fork(child), _) => {
                never_born(&node, child, None);
                self.notifier.done(&waiter, steps, result, state);
            }
            (Kind::Birth(child, guarded), _) => {
                never_born(&node, child, guarded);
                self.notifier.done(&waiter, steps, result, state);
            }
            (Kind::Root(restriction), Ok(Value::Int(pid))) => {
                node.introduce(|inner| {
                    inner.pid = i32::try_from(*pid).ok();
                    if let Some(restriction) = restriction {
                        inner.restrict(&restriction);
                    }
                });
                self.notifier.forked(&waiter, self.handle);
            }
            (Kind::Root(_), _) => {
                self.stillborn();
                self.notifier.done(&waiter, steps, result, state);
            }
            (Kind::Restrict(restriction), Ok(_)) => {
                node.lock().restrict(&restriction);
                self.notifier.done(&waiter, steps, result, state);
            }
            _ => self.notifier.done(&waiter, steps, result, state),
        }
    }

    /// Exec succeeded; or the process is dead, or about to be, which its parent reports.
    fn control_ended(&mut self) -> After {
        let node = self.node().clone();
        let executed = {
            let mut inner = node.lock();
            inner.disconnect();
            let sequence = inner.executing.take();
            inner.execed = sequence.is_some();
            sequence.and_then(|sequence| inner.pending.remove(&sequence))
        };
        if let Some(pending) = executed {
            if pending.kind == (Kind::Exec { stdin_null: true }) {
                node.stdin().close();
            }
            self.notifier
                .done(&pending.waiter, 0, &Ok(Value::atom("ok")), None);
            return match node.lock().deadline {
                Some((after, _)) => After::Alarm(after, Alarm::Deadline),
                None => After::Wait,
            };
        }
        if node.lock().execed {
            return After::Wait;
        }
        self.fail_pending();
        node.lock().kill_cgroup();
        // A root's end without the launcher's word: it may be gone too.
        if node.parent.is_none() && !node.launcher.is_alive() {
            return self.ended(Exit::Signal(libc::SIGKILL), Usage::default());
        }
        After::Alarm(TEARDOWN_DEADLINE, Alarm::Abandon)
    }

    fn fail_pending(&mut self) {
        let pending: Vec<_> = {
            let mut inner = self.node().lock();
            inner.pending.drain().map(|(_, pending)| pending).collect()
        };
        for Pending { waiter, kind } in pending {
            match kind {
                Kind::Fork(child) => unborn(self.node(), child),
                Kind::Birth(child, guarded) => never_born(self.node(), child, guarded),
                Kind::Root(_) => self.stillborn(),
                _ => {}
            }
            // Not to be taken for a step's own error.
            let steps = if matches!(kind, Kind::Exec { .. }) {
                u32::MAX
            } else {
                0
            };
            self.notifier
                .done(&waiter, steps, &Err(Refusal::Errno(libc::ESRCH)), None);
        }
    }

    /// The request that is to be answered by this one, which its parent got.
    fn own_birth(&self) -> Option<Sequence> {
        let node = self.node();
        let parent = node.parent.and_then(find)?;
        let inner = parent.node.lock();
        let mut pending = inner.pending.iter();
        let (sequence, _) = pending
            .find(|(_, pending)| matches!(pending.kind, Kind::Birth(task, _) if task == node.id))?;
        Some(*sequence)
    }

    /// A root of which nobody will have a handle: it ends, and its end is no event.
    fn stillborn(&self) {
        self.node().lock().hang_up();
    }

    /// The process is dead.
    pub fn ended(&mut self, exit: Exit, usage: Usage) -> After {
        let node = self.node().clone();
        // What it said before may still be unread: that it executes, for one.
        self.read_messages();
        let (children, execed_now) = {
            let mut inner = node.lock();
            if inner.exit.is_some() {
                return After::Wait;
            }
            inner.exit = Some(exit);
            inner.usage = Some(usage);
            inner.kill_cgroup();
            // Its work is done: handles of dead tasks keep no descriptor.
            inner.cgroup_kill = None;
            let execed = inner.executing.take();
            inner.disconnect();
            let waiter = execed.and_then(|sequence| inner.pending.remove(&sequence));
            inner.orphans = std::mem::take(&mut inner.children);
            (inner.orphans.clone(), waiter)
        };
        // It had executed, if it said that it would, and no failure came after that.
        if let Some(pending) = execed_now {
            self.notifier
                .done(&pending.waiter, 0, &Ok(Value::atom("ok")), None);
        }
        // Not at the end of its socket, which comes too if it was never forked.
        if let Some(sequence) = self.own_birth() {
            self.born(sequence, Err(Refusal::Errno(libc::ESRCH)));
        }
        self.fail_pending();
        self.end_children(&children);
        let held = {
            let inner = node.lock();
            inner.hold.as_ref().map(|_| inner.owner)
        };
        match held {
            Some(owner) => {
                if let Some(tag) = &node.lock().hold {
                    self.notifier.ended(&owner, tag);
                }
                After::Wait
            }
            None => self.drain(),
        }
    }

    /// The stream has ended the rest of its tree.
    pub fn release(&mut self) -> After {
        let node = self.node().clone();
        let ended = {
            let mut inner = node.lock();
            inner.hold = None;
            inner.exit.is_some()
        };
        if ended {
            return self.drain();
        }
        After::Wait
    }

    /// A kill escalation: a signal to the program's group, and SIGKILL to what hangs on it after
    /// the grace.
    pub fn terminate(&mut self, escalation: Escalation) -> After {
        let node = self.node().clone();
        let Some(parent) = node.parent.and_then(find) else {
            return self.end(None);
        };
        {
            let mut inner = node.lock();
            if inner.exit.is_some() || inner.grace.is_some() {
                return After::Wait;
            }
            inner.grace = Some(Duration::from_millis(escalation.grace_ms));
        }
        if escalation.signal == libc::SIGKILL {
            parent.node.tell(ToNode::Kill { task: node.id });
            return After::Alarm(TEARDOWN_DEADLINE, Alarm::Stuck);
        }
        parent.node.tell(ToNode::Terminate {
            task: node.id,
            signal: escalation.signal,
        });
        After::Alarm(Duration::from_millis(escalation.grace_ms), Alarm::Grace)
    }

    /// Rule 3. What they were is the subreaper's now. All below it at once, so that who waits for
    /// its end finds no task of its tree alive.
    fn end_children(&mut self, children: &[TaskId]) {
        let node = self.node().clone();
        let mut pids = Vec::new();
        let mut next = children.to_vec();
        while let Some(id) = next.pop() {
            let Some(child) = find(id) else {
                continue;
            };
            let inner = child.node.lock();
            pids.extend(inner.pid.filter(|_| children.contains(&child.node.id)));
            next.extend(&inner.children);
            drop(inner);
            node.shard.command(Command::NodeExited(
                child.node.id,
                Exit::Signal(libc::SIGKILL),
                Box::default(),
            ));
        }
        if node.leads_namespace || pids.is_empty() {
            return;
        }
        if let Some(subreaper) = self.subreaper() {
            subreaper.node.tell(ToNode::Signal {
                pids,
                signal: libc::SIGKILL,
            });
        }
    }

    /// The ancestor to which its orphans have come and for which pids mean the same: PID 1 of its
    /// namespace, else the root.
    fn subreaper(&self) -> Option<ResourceArc<TaskHandle>> {
        let mut next = self.node().parent;
        while let Some(task) = next.and_then(find) {
            if task.node.leads_namespace || task.node.parent.is_none() {
                return Some(task);
            }
            next = task.node.parent;
        }
        None
    }

    fn read_output(&mut self, role: Role, stream: Stream) {
        let node = self.node().clone();
        for _ in 0..CHUNKS_AT_ONCE {
            let (chunk, listener) = {
                let mut inner = node.lock();
                if inner.nascent {
                    inner.unread = true;
                    return;
                }
                if inner.credit == 0 {
                    return;
                }
                let chunk = {
                    let size = inner.max_chunk;
                    inner.outputs.read(stream, size, false)
                };
                if inner.credit > 0 && matches!(chunk, Chunk::Data(_)) {
                    inner.credit -= 1;
                }
                (chunk, inner.listener())
            };
            match (chunk, listener) {
                (Chunk::Data(chunk), Some(listener)) => {
                    self.notifier.output(&listener, self.handle, stream, chunk);
                }
                (Chunk::Data(_), None) => {}
                (Chunk::Empty, _) => break,
                (Chunk::End, _) => return,
            }
        }
        node.arm(&node.lock(), role, stream);
    }

    /// After the end: what the pipes still hold, then the terminal event.
    pub fn drain(&mut self) -> After {
        let node = self.node().clone();
        let first = !std::mem::replace(&mut node.lock().outputs.ended, true);
        let mut open = false;
        for (role, stream) in STREAMS {
            loop {
                let (chunk, listener) = {
                    let mut inner = node.lock();
                    {
                        let size = inner.max_chunk;
                        (inner.outputs.read(stream, size, false), inner.listener())
                    }
                };
                match (chunk, listener) {
                    (Chunk::Data(chunk), Some(listener)) => {
                        self.notifier.output(&listener, self.handle, stream, chunk);
                    }
                    (Chunk::Data(_), None) => {}
                    (Chunk::Empty, _) => {
                        open = true;
                        node.arm(&node.lock(), role, stream);
                        break;
                    }
                    (Chunk::End, _) => break,
                }
            }
        }
        if !open {
            return self.finish();
        }
        if first {
            return After::Alarm(ESCAPED_GRACE, Alarm::Escaped);
        }
        After::Wait
    }

    /// The terminal event.
    pub fn finish(&mut self) -> After {
        let node = self.node().clone();
        node.stdin().fail(self.notifier);
        let parent = node.parent.and_then(find);
        let options = parent
            .as_ref()
            .map_or_else(Options::default, |parent| parent.node.lock().options);
        let (exit, listener, stoppers, awaited) = {
            let mut inner = node.lock();
            inner.outputs.close();
            inner.dead = true;
            let listener = inner.listener();
            let stoppers = std::mem::take(&mut inner.stoppers);
            (inner.exit, listener, stoppers, inner.awaited)
        };
        let wanted = match exit {
            Some(_) if awaited => true,
            Some(Exit::Status(_)) => options.exit_status != 0,
            Some(Exit::Signal(_)) => options.termsig != 0,
            None => false,
        };
        if let (Some(exit), Some(listener), true) = (exit, listener, wanted) {
            self.notifier.terminal(&listener, self.handle, exit);
        }
        // Behind the ends of its children.
        for stopper in stoppers {
            let handle = self.handle.clone();
            node.shard.command(Command::StopNode(handle, stopper));
        }
        if let Some(parent) = parent {
            parent.node.lock().children.retain(|task| *task != node.id);
            if node.lock().carried {
                parent.node.lock().hang_up();
            }
        }
        registry().remove(&node.id);
        After::Done
    }

    /// Its owner died: the process and all below it end.
    pub fn owner_down(&mut self, pid: LocalPid) -> After {
        let node = self.node().clone();
        {
            let mut inner = node.lock();
            if let Some((receiver, _)) = &inner.receiver {
                if *receiver == pid {
                    inner.receiver = None;
                }
            }
            if inner.owner != pid || inner.dead {
                return After::Wait;
            }
            inner.ownerless = true;
        }
        self.end(None)
    }

    /// Ends the process with all below it. `stopper` is told, and gets no event of it.
    pub fn end(&mut self, stopper: Option<Waiter>) -> After {
        const SIGKILL: i64 = libc::SIGKILL as i64;
        let node = self.node().clone();
        let (ended, released) = {
            let mut inner = node.lock();
            if inner.dead {
                drop(inner);
                if let Some(stopper) = stopper {
                    self.notifier.stopped(&stopper);
                }
                return After::Wait;
            }
            let unwanted = stopper.is_some() || inner.ownerless;
            inner.stoppers.extend(stopper);
            // Nobody will ask for its output, not even if it has ended already.
            let released = unwanted && inner.hold.take().is_some();
            (inner.exit.is_some(), released)
        };
        match (ended, released) {
            (true, true) => return self.drain(),
            // Its pipes are being read to their end, or its stream will ask for that.
            (true, false) => return After::Wait,
            (false, _) => {}
        }
        match node.parent.and_then(find) {
            Some(parent) => parent.node.tell(ToNode::Kill { task: node.id }),
            // A root ends its tree when its socket ends; one that has executed is the launcher's.
            None => {
                let (execed, signal) = {
                    let inner = node.lock();
                    let owned = !inner.ownerless;
                    (inner.execed, owned.then_some(inner.options.signaloneof))
                };
                if execed {
                    node.launcher.kill(node.id);
                } else if signal.is_some_and(|signal| signal != SIGKILL) {
                    // Another one is for an owner's death.
                    node.tell_signaloneof(SIGKILL);
                }
                let mut inner = node.lock();
                inner.kill_cgroup();
                inner.hang_up();
            }
        }
        After::Alarm(TEARDOWN_DEADLINE, Alarm::Stuck)
    }

    pub fn alarm(&mut self, alarm: Alarm) -> After {
        let node = self.node().clone();
        let ended = node.lock().exit.is_some();
        match alarm {
            Alarm::Escaped => self.finish(),
            Alarm::Deadline if !ended => {
                let deadline = node.lock().deadline;
                match deadline {
                    Some((_, escalation)) => self.terminate(escalation),
                    None => After::Wait,
                }
            }
            Alarm::Grace if !ended => {
                if let Some(parent) = node.parent.and_then(find) {
                    parent.node.tell(ToNode::Kill { task: node.id });
                }
                After::Alarm(TEARDOWN_DEADLINE, Alarm::Stuck)
            }
            Alarm::Stuck if !ended => {
                node.launcher.kill(node.root);
                After::Alarm(TEARDOWN_DEADLINE, Alarm::Abandon)
            }
            Alarm::Abandon if !ended => self.ended(Exit::Signal(libc::SIGKILL), Usage::default()),
            _ => After::Wait,
        }
    }

    /// The launcher is gone: roots end at the lifeline's end.
    pub fn launcher_lost(&mut self) -> After {
        let node = self.node().clone();
        if node.launcher.is_alive() || node.parent.is_some() {
            return After::Wait;
        }
        node.lock().kill_cgroup();
        let gone = {
            let inner = node.lock();
            inner.control.is_none() && !inner.execed
        };
        if gone || node.lock().execed {
            return self.ended(Exit::Signal(libc::SIGKILL), Usage::default());
        }
        After::Alarm(TEARDOWN_DEADLINE, Alarm::Abandon)
    }
}
