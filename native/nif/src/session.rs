//! One supervised program: the state machine that an I/O thread runs for it.
//!
//! Rules:
//! 1. The owner gets exactly one of `:failed` and `:exit`, last, once the tree is gone.
//! 2. The tree is gone when the supervisor reports the program's end; or, if the supervisor died,
//!    when the launcher reports that; or, if the launcher died too, when both sockets have ended.
//!    A session whose owner died waits for the end of the supervisor's socket instead of a report.
//! 3. A stream that was armed is read once when there is something, and the chunk is sent. Then it
//!    is the consumer's to read, until it is armed again.
//! 4. With `:exit`, both streams are the consumer's for good, which reads them to their end.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{shutdown, Shutdown};
use once_cell::sync::Lazy;
use rustler::{LocalPid, ResourceArc};
use serde::de::DeserializeOwned;
use serde::Serialize;
use stdio_protocol::channel::{self, is_busy, Datagram, Receiver};
use stdio_protocol::message::{Escalation, FromRoot, FromTask, RootId, ToRoot};

use crate::fd;
use crate::launcher::{Launcher, Root, ANSWER_DEADLINE};
use crate::notify::{End, Failure, Notifier, Tag};
use crate::pipe::{Chunk, Stream};
use crate::reactor::{Role, SessionId, Shard};
use crate::stream::{Handle, Shared};

/// A supervisor gives up on unkillable processes after 5 s; one that takes longer is stuck.
const TEARDOWN_DEADLINE: Duration = Duration::from_secs(7);
/// For a start that others have overtaken; long enough for a machine that is busy with thousands.
const OVERTAKEN_DEADLINE: Duration = Duration::from_secs(10);
/// Chunks; then other sessions have their turn, and a program that never stops writing does not
/// hold up the message that ends it.
const DISCARDED_AT_ONCE: usize = 16;
/// For the end of the launcher's socket to be noticed, after that of a supervisor's.
const DOUBT: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_millis(2);

/// What an I/O thread is woken for at a set time. `Flush` and what follows concern launchers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// Nothing has been heard of the start.
    Start,
    /// What starts the program did not fit.
    Send,
    /// A pipe is still open after the end of a task.
    Escaped,
    /// A task's program has had its time.
    Deadline,
    /// A task's program has had its grace.
    Grace,
    /// A program died in set-up, and by now it is known whether the launcher did.
    Doubt,
    /// Nor did the message that ends the program.
    Terminate(Escalation),
    /// The supervisor should have ended its tree.
    Stuck,
    /// The launcher should have ended the supervisor.
    Abandon,
    Flush,
    Reap,
    /// There may be no spare root.
    Prepare,
    /// There may be more than are needed.
    Trim,
}

/// What a step asks of the thread.
pub enum After {
    Wait,
    Alarm(Duration, Alarm),
    Done,
}

/// What starts a program: messages in this order, as far as they have not been sent.
pub struct Unsent {
    /// Ahead of the others, for a root that has no child yet.
    bear: Option<Message>,
    messages: Vec<Message>,
    sent: usize,
}

/// With the descriptors that travel along.
pub struct Message {
    to: Addressee,
    datagram: Datagram,
    fds: Vec<OwnedFd>,
}

#[derive(Clone, Copy)]
pub enum Addressee {
    Root,
    /// The root's child that waits.
    Child,
}

impl Message {
    pub fn new(to: Addressee, message: &impl Serialize, fds: Vec<OwnedFd>) -> Result<Self, Errno> {
        let datagram = Datagram::new(message).map_err(|error| error.errno())?;
        Ok(Self { to, datagram, fds })
    }

    fn send(&self, socket: &OwnedFd) -> Result<(), channel::Error> {
        let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        self.datagram.send(socket.as_fd(), &fds)
    }
}

/// How many sessions each process owns.
static OWNED: Lazy<Mutex<HashMap<LocalPid, usize>>> = Lazy::new(Mutex::default);

fn owned_by() -> MutexGuard<'static, HashMap<LocalPid, usize>> {
    OWNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sessions that a process owns, or owned when it died and which are not over yet.
pub fn owned(pid: LocalPid) -> usize {
    owned_by().get(&pid).copied().unwrap_or(0)
}

/// Counts for as long as the session is there.
pub struct Ownership(LocalPid);

impl Ownership {
    pub fn new(pid: LocalPid) -> Self {
        *owned_by().entry(pid).or_default() += 1;
        Self(pid)
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        let mut owned = owned_by();
        if let Some(count) = owned.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                owned.remove(&self.0);
            }
        }
    }
}

impl Unsent {
    pub fn new(messages: Vec<Message>) -> Self {
        Self {
            bear: None,
            messages,
            sent: 0,
        }
    }

    /// Has the root bear the child first; our end of its socket.
    pub fn bear(&mut self) -> Result<OwnedFd, Errno> {
        let (task, peer) = channel::pair()?;
        self.bear = Some(Message::new(Addressee::Root, &ToRoot::Bear, vec![peer])?);
        Ok(fd::keep_out_of_the_way(task))
    }

    /// Goes on where it left off.
    pub fn send(&mut self, root: &OwnedFd, child: &OwnedFd) -> Result<(), channel::Error> {
        if let Some(bear) = &self.bear {
            bear.send(root)?;
            self.bear = None;
        }
        while let Some(message) = self.messages.get(self.sent) {
            let socket = match message.to {
                Addressee::Root => root,
                Addressee::Child => child,
            };
            message.send(socket)?;
            self.sent += 1;
        }
        Ok(())
    }

    /// For another root.
    pub fn start_over(&mut self) {
        self.bear = None;
        self.sent = 0;
    }

    /// It may take a while.
    pub fn keep_out_of_the_way(&mut self) {
        for message in self.bear.iter_mut().chain(&mut self.messages) {
            let fds = message.fds.drain(..);
            message.fds = fds.map(fd::keep_out_of_the_way).collect();
        }
    }
}

pub struct Session {
    pub shared: Arc<Shared>,
    /// Keeps the owner's monitor.
    pub _handle: ResourceArc<Handle>,
    pub launcher: Arc<Launcher>,
    pub owner: LocalPid,
    pub _ownership: Ownership,
    pub tag: Tag,
    pub unsent: Option<Unsent>,
    pub asked: Instant,
    /// The program's own deadline, grace included: what the supervisor is to see to, and who has
    /// stopped the supervisor is not.
    pub deadline: Option<Duration>,
    pub root_id: RootId,
    /// Its socket is registered already, for an earlier program.
    pub root_watched: bool,
    /// It was a spare.
    pub forked_ahead: bool,
    pub root: Option<OwnedFd>,
    pub task: Option<OwnedFd>,
    pub progress: Progress,
}

/// What is known so far.
#[derive(Default)]
pub struct Progress {
    pid: Option<i32>,
    started: bool,
    failure: Option<Failure>,
    exit: Option<End>,
    /// The launcher has seen the supervisor's end, or has ended itself.
    root_gone: bool,
    /// An alarm has been set for an end that should come by itself.
    overdue: bool,
    /// The reason of a death in set-up was waited for.
    doubted: bool,
    /// The launcher has been asked to kill the supervisor.
    condemned: bool,
    /// Nobody listens: the owner is dead.
    orphaned: bool,
    /// The consumer has turned away: what comes is read and dropped.
    discarding: bool,
}

impl Session {
    pub fn id(&self) -> SessionId {
        self.shared.id
    }

    /// The root, if it has reported that nothing of the tree is left, and is to live on.
    pub fn into_root(self) -> Option<(Arc<Launcher>, Root)> {
        let Progress {
            exit: Some(End { rests: true, .. }),
            root_gone: false,
            condemned: false,
            orphaned: false,
            ..
        } = self.progress
        else {
            return None;
        };
        let root = Root::served(self.root_id, self.root?);
        Some((self.launcher, root))
    }

    /// Has epoll report all that this session reads. Closing a descriptor ends that.
    pub fn register(&self, shard: &Shard) -> Result<(), Errno> {
        let id = self.id();
        match &self.root {
            Some(root) if self.root_watched => shard.arm(id, Role::Root, root)?,
            Some(root) => shard.register(id, Role::Root, root)?,
            None => {}
        }
        if let Some(task) = &self.task {
            shard.register(id, Role::Task, task)?;
        }
        let outputs = self.shared.outputs();
        for (role, stream) in OUTPUTS {
            if let Some(output) = outputs.output(stream) {
                shard.register(id, role, output.fd())?;
            }
        }
        Ok(())
    }

    /// One of the session's descriptors is ready.
    pub fn ready(&mut self, role: Role, notifier: &mut Notifier) -> After {
        match role {
            Role::Task => {
                self.read_task(notifier);
                if let (true, Some(deadline)) = (self.progress.started, self.deadline.take()) {
                    let overdue = deadline.saturating_add(TEARDOWN_DEADLINE);
                    return self.settle_or(notifier, After::Alarm(overdue, Alarm::Stuck));
                }
            }
            Role::Root => self.read_root(),
            Role::Stdout => self.read_output(role, Stream::Stdout, notifier),
            Role::Stderr => self.read_output(role, Stream::Stderr, notifier),
            Role::Stdin => self.shared.stdin().flush(notifier),
            Role::Wake | Role::Launcher | Role::Node => {}
        }
        self.settle(notifier)
    }

    pub fn discard(&mut self, notifier: &mut Notifier) -> After {
        self.progress.discarding = true;
        for (role, stream) in OUTPUTS {
            self.read_output(role, stream, notifier);
        }
        self.settle(notifier)
    }

    /// Asks the supervisor to end the program.
    pub fn terminate(&mut self, escalation: Escalation, notifier: &mut Notifier) -> After {
        if self.unsent.take().is_some() {
            // Nothing has been started, and nothing will be.
            self.root = None;
            self.task = None;
            self.progress.root_gone = true;
            return self.settle(notifier);
        }
        let sent = self
            .root
            .as_ref()
            .map(|root| channel::send(root, &ToRoot::Terminate(escalation), &[]));
        match sent {
            Some(Err(error)) if is_busy(error.errno()) => {
                return After::Alarm(RETRY, Alarm::Terminate(escalation));
            }
            // It has ended meanwhile; its report is in the socket.
            Some(Err(_)) => self.read_root(),
            _ => {}
        }
        let grace = Duration::from_millis(escalation.grace_ms);
        let overdue = grace.saturating_add(TEARDOWN_DEADLINE);
        self.settle_or(notifier, After::Alarm(overdue, Alarm::Stuck))
    }

    /// The supervisor kills its tree when our side of its socket ends, and then ends itself.
    pub fn owner_down(&mut self, notifier: &mut Notifier) -> After {
        self.progress.orphaned = true;
        let hung_up = match &self.root {
            Some(root) if self.unsent.is_none() => {
                shutdown(root.as_raw_fd(), Shutdown::Write).is_ok()
            }
            _ => false,
        };
        if !hung_up {
            self.root = None;
        }
        self.task = None;
        self.unsent = None;
        self.shared.outputs().close();
        self.shared.stdin().fail(notifier);
        self.settle_or(notifier, After::Alarm(TEARDOWN_DEADLINE, Alarm::Stuck))
    }

    pub fn root_exited(&mut self, notifier: &mut Notifier) -> After {
        self.read_root();
        self.progress.root_gone = true;
        self.settle(notifier)
    }

    pub fn root_failed(&mut self, errno: i32, notifier: &mut Notifier) -> After {
        self.fail(Failure::Supervisor { errno });
        self.progress.root_gone = true;
        self.settle(notifier)
    }

    pub fn launcher_lost(&mut self, notifier: &mut Notifier) -> After {
        if self.launcher.is_alive() {
            return After::Wait;
        }
        self.read_root();
        // Supervisors end at the lifeline's end; their sockets tell when.
        if self.root.is_none() {
            self.progress.root_gone = true;
        }
        self.settle_or(notifier, After::Alarm(TEARDOWN_DEADLINE, Alarm::Abandon))
    }

    pub fn alarm(&mut self, alarm: Alarm, notifier: &mut Notifier) -> After {
        match alarm {
            Alarm::Start => return self.start_overdue(notifier),
            Alarm::Send => return self.send_start(),
            Alarm::Terminate(escalation) => return self.terminate(escalation, notifier),
            Alarm::Stuck => {
                self.progress.condemned = true;
                self.launcher.kill(self.root_id);
                return After::Alarm(TEARDOWN_DEADLINE, Alarm::Abandon);
            }
            Alarm::Abandon => {
                self.root = None;
                self.progress.root_gone = true;
            }
            Alarm::Doubt
            | Alarm::Escaped
            | Alarm::Deadline
            | Alarm::Grace
            | Alarm::Flush
            | Alarm::Reap
            | Alarm::Prepare
            | Alarm::Trim => {}
        }
        self.settle(notifier)
    }

    /// The last resort of an I/O thread that has caught a panic.
    pub fn crashed(&mut self, notifier: &mut Notifier) {
        self.shared.stdin().fail(notifier);
        self.progress.exit.get_or_insert_with(End::killed);
        self.finish(notifier);
    }

    /// Sends what starts the program; retried while the sockets, or the limit of descriptors in flight,
    /// do not allow it.
    pub fn send_start(&mut self) -> After {
        let (Some(unsent), Some(root), Some(task)) = (&mut self.unsent, &self.root, &self.task)
        else {
            return After::Wait;
        };
        match unsent.send(root, task) {
            Err(error) if is_busy(error.errno()) => return After::Alarm(RETRY, Alarm::Send),
            // Sent; or the process is dead, which its socket tells.
            Ok(()) | Err(_) => self.unsent = None,
        }
        After::Wait
    }

    fn start_overdue(&mut self, notifier: &mut Notifier) -> After {
        let answered = self.progress.pid.is_some() || self.progress.exit.is_some();
        if answered || self.progress.failure.is_some() || self.progress.orphaned {
            return After::Wait;
        }
        // Starts queue behind each other, so one that waits is late when nothing at all moves; or
        // when later ones have long been answered.
        let silence = self.launcher.silence();
        let overtaken = self.launcher.has_overtaken(self.id());
        if silence < ANSWER_DEADLINE && !(overtaken && self.asked.elapsed() >= OVERTAKEN_DEADLINE) {
            return After::Alarm(ANSWER_DEADLINE, Alarm::Start);
        }
        self.fail(Failure::Supervisor {
            errno: libc::ETIMEDOUT,
        });
        self.launcher.kill(self.root_id);
        self.root = None;
        self.settle_or(notifier, After::Alarm(TEARDOWN_DEADLINE, Alarm::Abandon))
    }

    fn settle_or(&mut self, notifier: &mut Notifier, otherwise: After) -> After {
        match self.settle(notifier) {
            After::Wait => otherwise,
            other => other,
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.progress.failure.get_or_insert(failure);
        // Nobody gets a stream of it.
        self.progress.discarding = true;
    }

    fn read_task(&mut self, notifier: &mut Notifier) {
        loop {
            match receive::<FromTask>(&mut self.task, &self.launcher) {
                Some(FromTask::Execing { pid }) => self.progress.pid = Some(pid),
                Some(FromTask::Failed { stage, errno }) => {
                    self.fail(Failure::Task { stage, errno });
                }
                None => break,
            }
        }
        if self.task.is_none() {
            self.tell_started(notifier);
        }
    }

    fn tell_started(&mut self, notifier: &mut Notifier) {
        self.launcher.note_answer(self.id());
        if let Progress {
            pid: Some(pid),
            started: false,
            failure: None,
            orphaned: false,
            ..
        } = self.progress
        {
            self.progress.started = true;
            notifier.started(&self.owner, &self.tag, pid);
        }
    }

    /// One message is all that it has to say. When nobody is to hear it, the end of the socket counts.
    fn read_root(&mut self) {
        while let Some(FromRoot::Exited {
            exit,
            usage,
            survivors,
            rests,
        }) = receive::<FromRoot>(&mut self.root, &self.launcher)
        {
            self.progress.exit = Some(End {
                exit,
                usage,
                survivors,
                rests,
            });
            if !self.progress.orphaned {
                return;
            }
        }
    }

    /// An armed stream has something. What is read is one chunk, unless nobody wants it.
    fn read_output(&mut self, role: Role, stream: Stream, notifier: &mut Notifier) {
        let mut outputs = self.shared.outputs();
        for _ in 0..DISCARDED_AT_ONCE {
            match outputs.read(stream, self.shared.max_chunk, false) {
                Chunk::Data(_) if self.progress.discarding => {}
                Chunk::Data(chunk) => {
                    return notifier.chunk(&self.owner, &self.tag, stream, chunk);
                }
                Chunk::Empty => break,
                // The consumer learns it when it reads, and the end that matters is `:exit`.
                Chunk::End => return,
            }
        }
        self.shared.arm(&outputs, role, stream);
    }

    /// What follows from what is known by now.
    fn settle(&mut self, notifier: &mut Notifier) -> After {
        if self.progress.root_gone || (self.root.is_none() && !self.launcher.is_alive()) {
            // Rule 2: the status was lost with the supervisor.
            if self.progress.pid.is_none() && !self.launcher.is_alive() {
                // Nothing has been executed, and another launcher may do better.
                self.fail(Failure::LauncherLost);
            }
            if self.progress.failure.is_none() {
                self.progress.exit.get_or_insert_with(End::killed);
            }
            self.progress.root_gone = true;
        }
        if self.progress.orphaned {
            return match &self.root {
                Some(_) if !self.progress.root_gone => After::Wait,
                _ => After::Done,
            };
        }
        // The task has spoken, if it did, before its end was reported on the other socket.
        if self.progress.exit.is_some() && self.task.is_some() {
            self.read_task(notifier);
        }
        if self.progress.failure.is_some() {
            let gone = self.progress.exit.is_some() || self.progress.root_gone;
            // A supervisor that could not fork has no program whose end to report.
            if gone || self.root.is_none() {
                return self.finish(notifier);
            }
            return self.wait_once(Alarm::Stuck);
        }
        let Some(End { exit, .. }) = self.progress.exit else {
            // The supervisor died: the launcher kills what it left, and then tells.
            return match self.root {
                Some(_) => After::Wait,
                None => self.wait_once(Alarm::Abandon),
            };
        };
        if self.progress.pid.is_none() {
            // If the launcher is dying, that was the reason; its end may be noticed a little later.
            if !std::mem::replace(&mut self.progress.doubted, true) {
                return After::Alarm(DOUBT, Alarm::Doubt);
            }
            self.fail(if self.launcher.is_alive() {
                Failure::DiedInSetup { exit }
            } else {
                Failure::LauncherLost
            });
        }
        self.finish(notifier)
    }

    /// For an end that should come without being asked for.
    fn wait_once(&mut self, alarm: Alarm) -> After {
        if std::mem::replace(&mut self.progress.overdue, true) {
            return After::Wait;
        }
        After::Alarm(TEARDOWN_DEADLINE, alarm)
    }

    /// The tree is gone.
    fn finish(&mut self, notifier: &mut Notifier) -> After {
        self.shared.stdin().fail(notifier);
        self.shared.outputs().ended = true;
        match (self.progress.failure, self.progress.exit) {
            (Some(failure), _) => {
                self.shared.outputs().close();
                notifier.failed(&self.owner, &self.tag, failure);
            }
            (None, Some(end)) => {
                self.tell_started(notifier);
                notifier.exited(&self.owner, &self.tag, &end);
            }
            (None, None) => {}
        }
        After::Done
    }
}

const OUTPUTS: [(Role, Stream); 2] = [
    (Role::Stdout, Stream::Stdout),
    (Role::Stderr, Stream::Stderr),
];

/// The next message; `None` if there is none yet, or the peer is gone (then the socket is closed).
fn receive<T: DeserializeOwned>(socket: &mut Option<OwnedFd>, launcher: &Launcher) -> Option<T> {
    let fd = socket.as_ref()?.as_fd();
    match RECEIVER.with_borrow_mut(|receiver| receiver.recv(fd)) {
        Ok(Some(received)) => {
            launcher.note_heard();
            Some(received.message)
        }
        Err(error) if error.errno() == Errno::EAGAIN => None,
        // The end; or a peer that makes no sense, which is treated as one.
        Ok(None) | Err(_) => {
            *socket = None;
            None
        }
    }
}

thread_local! {
    static RECEIVER: std::cell::RefCell<Receiver> =
        std::cell::RefCell::new(Receiver::without_fds());
}
