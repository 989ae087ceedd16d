//! The I/O threads. Each has a [`Poller`] of its own (epoll, kqueue) and owns the sessions that were given to it,
//! so a session's state needs no lock.
//!
//! Rules:
//! 1. There are [`THREADS`] of them, however many programs run.
//! 2. Output is registered one-shot: a stream that its consumer reads by itself, or does not read,
//!    costs this thread nothing, however much the program writes. All else is edge-triggered.
//! 3. The thread registers a session's descriptors itself; what is ready by then is reported at
//!    once.
//! 4. A panic while one session is served ends that session with an error event, not the thread.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::os::fd::AsFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{unbounded, Receiver, Sender};
use nix::errno::Errno;
use once_cell::sync::Lazy;
use rustler::{LocalPid, ResourceArc};
use stdio_protocol::channel;
use stdio_protocol::message::{Escalation, Exit, FromLauncher, RootId, TaskId, Usage};

use crate::launcher::{self, Launcher, ANSWER_DEADLINE};
use crate::node::Served;
use crate::notify::{Notifier, Waiter};
use crate::session::{After, Alarm, Session};
use crate::sys::{Events, Interest, Poller};
use crate::task::TaskHandle;

/// One thread saturates a core at several GB/s; the second keeps one flood from delaying all.
const THREADS: usize = 2;
/// Between two attempts to send what a socket did not take.
const RETRY: Duration = Duration::from_millis(2);
/// Between two looks at a launcher that is ending.
const REAP_PAUSE: Duration = Duration::from_millis(100);
const REAP_TRIES: u32 = 20;
const ENDED_EARLY: usize = 256;
/// From the start of a program on a spare root to the look for another one.
const SPARE_PAUSE: Duration = Duration::from_millis(5);
/// Between two looks at spares that are not needed.
const TRIM_PAUSE: Duration = Duration::from_millis(30);

/// What a descriptor is to its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Role {
    /// The thread's own wake-up.
    Wake,
    Launcher,
    Root,
    Task,
    Stdin,
    Stdout,
    Stderr,
    /// The control socket of a task that serves requests.
    Node,
}

impl Role {
    const ALL: [Self; 8] = [
        Self::Wake,
        Self::Launcher,
        Self::Root,
        Self::Task,
        Self::Stdin,
        Self::Stdout,
        Self::Stderr,
        Self::Node,
    ];

    /// The number that the poller keeps: the session's id, and in the lowest three bits the role.
    fn token(self, id: SessionId) -> u64 {
        (id << 3) | self as u64
    }

    fn of(token: u64) -> (SessionId, Self) {
        let role = usize::try_from(token & 7).unwrap_or_default();
        (token >> 3, Self::ALL[role.min(Self::ALL.len() - 1)])
    }
}

pub enum Command {
    Add(Box<Session>),
    /// Nobody reads the output any more: throw it away, so that the program can end.
    Discard(SessionId),
    /// stdin has a queue, or is to be closed.
    Stdin(SessionId),
    Terminate(SessionId, Escalation),
    OwnerDown(SessionId),
    Launcher(Arc<Launcher>),
    FlushLauncher,
    RootExited(RootId, Exit, Box<Usage>),
    RootFailed(RootId, i32),
    LauncherLost,
    AddNode(ResourceArc<TaskHandle>),
    /// It was never born.
    ForgetNode(TaskId),
    /// Requests wait for room.
    FlushNode(TaskId),
    NodeExited(TaskId, Exit, Box<Usage>),
    NodeOwnerDown(TaskId, LocalPid),
    StopNode(ResourceArc<TaskHandle>, Waiter),
    ReleaseNode(TaskId),
    TerminateNode(TaskId, Escalation),
}

/// One I/O thread, as others see it.
pub struct Shard {
    poller: Poller,
    awake: AtomicBool,
    commands: Sender<Command>,
}

static SHARDS: Lazy<Result<Vec<Arc<Shard>>, Errno>> =
    Lazy::new(|| (0..THREADS).map(Shard::start).collect());

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Names a session. Another program of the same root is another session.
pub type SessionId = u64;

/// For sessions, roots, tasks: no two things have the same.
pub fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// The thread that serves a root, and with it all of its programs and tasks.
pub fn shard(id: RootId) -> Result<Arc<Shard>, Errno> {
    let shards = SHARDS.as_ref().map_err(|errno| *errno)?;
    // Every second id may be a session's, so the last bits alone would favour a thread.
    let spread = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let index = usize::try_from(spread).unwrap_or_default() % shards.len();
    Ok(shards[index].clone())
}

/// The launcher's socket is served by the first thread.
pub fn watch_launcher(launcher: Arc<Launcher>) {
    if let Ok(shard) = shard(0) {
        shard.command(Command::Launcher(launcher));
    }
}

pub fn flush_launcher_soon() {
    if let Ok(shard) = shard(0) {
        shard.command(Command::FlushLauncher);
    }
}

fn broadcast(command: impl Fn() -> Command) {
    for shard in SHARDS.iter().flatten() {
        shard.command(command());
    }
}

impl Shard {
    fn start(index: usize) -> Result<Arc<Self>, Errno> {
        let poller = Poller::new(Role::Wake.token(0))?;
        let (commands, inbox) = unbounded();
        let shard = Arc::new(Self {
            poller,
            awake: AtomicBool::new(false),
            commands,
        });
        let thread = Thread {
            shard: shard.clone(),
            inbox,
            sessions: HashMap::new(),
            served: HashMap::new(),
            nodes: HashMap::new(),
            receiver: channel::Receiver::with_body(),
            alarms: BinaryHeap::new(),
            notifier: Notifier::new(),
            launchers: Vec::new(),
            flushing: false,
            looks: BTreeMap::new(),
            early: VecDeque::new(),
        };
        std::thread::Builder::new()
            .name(format!("stdio_io_{index}"))
            .spawn(move || thread.run())
            .map_err(|_| Errno::EAGAIN)?;
        Ok(shard)
    }

    /// Queues a command and makes sure that the thread looks.
    pub fn command(&self, command: Command) {
        let _ = self.commands.send(command);
        if !self.awake.swap(true, Ordering::AcqRel) {
            self.poller.wake();
        }
    }

    /// What is ready already is reported too. Closing the descriptor ends it.
    pub fn register(&self, id: SessionId, role: Role, fd: impl AsFd) -> Result<(), Errno> {
        self.poller.add(fd, interest(role), role.token(id))
    }

    /// One more event of a one-shot registration, which may be due at once.
    pub fn arm(&self, id: SessionId, role: Role, fd: impl AsFd) -> Result<(), Errno> {
        self.poller.arm(fd, interest(role), role.token(id))
    }
}

fn interest(role: Role) -> Interest {
    match role {
        Role::Stdin => Interest::Writable,
        Role::Stdout | Role::Stderr => Interest::ReadableOnce,
        // What the task says matters once it has said all: exec, or its end, closes the socket.
        Role::Task => Interest::Closed,
        _ => Interest::Readable,
    }
}

struct Thread {
    shard: Arc<Shard>,
    inbox: Receiver<Command>,
    sessions: HashMap<SessionId, Session>,
    /// The session that each root serves.
    served: HashMap<RootId, SessionId>,
    nodes: HashMap<TaskId, ResourceArc<TaskHandle>>,
    alarms: BinaryHeap<Reverse<(Instant, SessionId, Alarm)>>,
    notifier: Notifier,
    receiver: channel::Receiver,
    /// The launcher whose socket this thread serves, and earlier ones that are ending.
    launchers: Vec<(Arc<Launcher>, u32)>,
    /// An alarm is set for what launchers' sockets did not take.
    flushing: bool,
    /// Launchers whose spares an alarm is set for.
    looks: BTreeMap<Alarm, Vec<Arc<Launcher>>>,
    /// Roots that ended before their session was known here, as one does that was forked ahead and
    /// killed before it was told anything; or were not forked, for this reason. The latest
    /// [`ENDED_EARLY`].
    early: VecDeque<(RootId, Option<i32>)>,
}

impl Thread {
    fn run(mut self) {
        let mut events = Events::new();
        loop {
            let count = match self.shard.poller.wait(&mut events, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(_) => return self.give_up(),
            };
            // Before the inbox is read: what is sent from here on wakes again.
            self.shard.awake.swap(false, Ordering::AcqRel);
            while let Ok(command) = self.inbox.try_recv() {
                self.handle(command);
            }
            for token in events.tokens(count) {
                self.event(token);
            }
            self.ring();
        }
    }

    /// Without a poller nothing can be learned any more: every session ends, and its tree with it.
    fn give_up(mut self) {
        for (_, mut session) in self.sessions.drain() {
            session.crashed(&mut self.notifier);
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let Reverse((at, ..)) = self.alarms.peek()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    fn event(&mut self, token: u64) {
        let (id, role) = Role::of(token);
        match role {
            // The commands have been taken above.
            Role::Wake => {}
            Role::Launcher => self.launcher_readable(),
            role if self.nodes.contains_key(&id) => self.serve_node(id, |node| node.ready(role)),
            role => self.serve(id, |session, notifier| session.ready(role, notifier)),
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Add(session) => {
                let id = session.id();
                let now = Instant::now();
                self.set(id, now + ANSWER_DEADLINE, Alarm::Start);
                if session.unsent.is_some() {
                    self.set(id, now + RETRY, Alarm::Send);
                }
                let registered = session.register(&self.shard);
                let root = session.root_id;
                let forked_ahead = session.forked_ahead;
                let launcher = session.launcher.clone();
                self.served.insert(root, id);
                self.sessions.insert(id, *session);
                match self.early(root) {
                    Some(None) => self.serve(id, Session::root_exited),
                    Some(Some(errno)) => {
                        self.serve(id, |session, notifier| session.root_failed(errno, notifier))
                    }
                    None => {}
                }
                if let Err(errno) = registered {
                    self.serve(id, |session, notifier| {
                        session.root_failed(errno as i32, notifier)
                    });
                }
                if forked_ahead {
                    self.prepare_later(launcher);
                } else {
                    // It came too late for this one, so it may for the next.
                    launcher.prepare_spare();
                }
            }
            Command::Discard(id) => self.serve(id, Session::discard),
            Command::Stdin(id) => {
                self.serve(id, |session, notifier| session.ready(Role::Stdin, notifier))
            }
            Command::Terminate(id, escalation) => self.serve(id, |session, notifier| {
                session.terminate(escalation, notifier)
            }),
            Command::OwnerDown(id) => self.serve(id, Session::owner_down),
            Command::RootExited(id, exit, usage) if self.nodes.contains_key(&id) => {
                self.serve_node(id, |node| node.ended(exit, *usage));
            }
            Command::RootExited(id, ..) => match self.served.get(&id) {
                Some(session) => self.serve(*session, Session::root_exited),
                None => self.note_early(id, None),
            },
            Command::RootFailed(id, _) if self.nodes.contains_key(&id) => {
                let killed = Exit::Signal(libc::SIGKILL);
                self.serve_node(id, |node| node.ended(killed, Usage::default()));
            }
            Command::RootFailed(id, errno) => {
                if let Some(session) = self.served.get(&id) {
                    self.serve(*session, |session, notifier| {
                        session.root_failed(errno, notifier)
                    });
                } else {
                    self.note_early(id, Some(errno));
                }
            }
            Command::LauncherLost => {
                let ids: Vec<_> = self.sessions.keys().copied().collect();
                for id in ids {
                    self.serve(id, Session::launcher_lost);
                }
                let ids: Vec<_> = self.nodes.keys().copied().collect();
                for id in ids {
                    self.serve_node(id, |node| node.launcher_lost());
                }
            }
            Command::AddNode(task) => {
                let id = task.node.id;
                let registered = task.node.register();
                let launcher = task.node.launcher.clone();
                self.nodes.insert(id, task);
                if self.early(id).is_some() {
                    let killed = Exit::Signal(libc::SIGKILL);
                    self.serve_node(id, |node| node.ended(killed, Usage::default()));
                }
                if registered.is_err() {
                    self.serve_node(id, |node| node.end(None));
                }
                launcher.prepare_spare();
            }
            Command::ForgetNode(id) => drop(self.nodes.remove(&id)),
            Command::FlushNode(id) => self.set(id, Instant::now() + RETRY, Alarm::Send),
            Command::NodeExited(id, exit, usage) => {
                self.serve_node(id, |node| node.ended(exit, *usage));
            }
            Command::NodeOwnerDown(id, pid) => self.serve_node(id, |node| node.owner_down(pid)),
            Command::StopNode(task, waiter) => self.stop_node(&task, waiter),
            Command::ReleaseNode(id) => self.serve_node(id, |node| node.release()),
            Command::TerminateNode(id, escalation) => {
                self.serve_node(id, |node| node.terminate(escalation));
            }
            Command::Launcher(launcher) => {
                if self.watch(&launcher).is_err() {
                    launcher.lost();
                }
                self.launchers.push((launcher, REAP_TRIES));
            }
            Command::FlushLauncher => self.flush_soon(),
        }
    }

    /// One alarm, however many have asked.
    fn flush_soon(&mut self) {
        if !std::mem::replace(&mut self.flushing, true) {
            self.set(0, Instant::now() + RETRY, Alarm::Flush);
        }
    }

    fn watch(&self, launcher: &Launcher) -> Result<(), Errno> {
        let socket = launcher.socket().ok_or(Errno::EPIPE)?;
        self.shard.register(0, Role::Launcher, &socket)
    }

    /// Runs one step of a session and does what follows from it.
    fn serve(&mut self, id: SessionId, step: impl FnOnce(&mut Session, &mut Notifier) -> After) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let notifier = &mut self.notifier;
        let after = catch_unwind(AssertUnwindSafe(|| step(session, notifier)));
        match after {
            Ok(After::Wait) => {}
            Ok(After::Alarm(delay, alarm)) => self.set(id, Instant::now() + delay, alarm),
            Ok(After::Done) => {
                if let Some((launcher, root)) = self.remove(id).and_then(Session::into_root) {
                    launcher.take_back(root);
                    self.trim_later(launcher);
                }
            }
            Err(_) => {
                // The panic hook has printed the place. Dropping the session closes its sockets,
                // which ends the tree.
                if let Some(mut session) = self.remove(id) {
                    session.crashed(&mut self.notifier);
                }
            }
        }
    }

    fn note_early(&mut self, root: RootId, errno: Option<i32>) {
        launcher::forget_spare(root);
        self.early.push_back((root, errno));
        if self.early.len() > ENDED_EARLY {
            self.early.pop_front();
        }
    }

    fn early(&self, root: RootId) -> Option<Option<i32>> {
        let early = self.early.iter().find(|(id, _)| *id == root);
        early.map(|(_, errno)| *errno)
    }

    fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        self.served.remove(&session.root_id);
        Some(session)
    }

    /// Most programs have ended by then, and their roots are there for the next ones.
    fn prepare_later(&mut self, launcher: Arc<Launcher>) {
        self.look_later(launcher, SPARE_PAUSE, Alarm::Prepare);
    }

    fn trim_later(&mut self, launcher: Arc<Launcher>) {
        self.look_later(launcher, TRIM_PAUSE, Alarm::Trim);
    }

    /// One alarm of a kind for each launcher.
    fn look_later(&mut self, launcher: Arc<Launcher>, pause: Duration, alarm: Alarm) {
        let looks = self.looks.entry(alarm).or_default();
        if !looks.iter().any(|other| Arc::ptr_eq(other, &launcher)) {
            if looks.is_empty() {
                self.alarms
                    .push(Reverse((Instant::now() + pause, 0, alarm)));
            }
            looks.push(launcher);
        }
    }

    fn serve_node(&mut self, id: TaskId, step: impl FnOnce(&mut Served<'_>) -> After) {
        let Some(handle) = self.nodes.get(&id).cloned() else {
            return;
        };
        let mut served = Served {
            handle: &handle,
            notifier: &mut self.notifier,
            receiver: &mut self.receiver,
        };
        match catch_unwind(AssertUnwindSafe(|| step(&mut served))) {
            Ok(After::Wait) => {}
            Ok(After::Alarm(delay, alarm)) => self.set(id, Instant::now() + delay, alarm),
            Ok(After::Done) | Err(_) => drop(self.nodes.remove(&id)),
        }
    }

    /// Also for a task that is dead: its stopper waits for the answer.
    fn stop_node(&mut self, task: &ResourceArc<TaskHandle>, waiter: Waiter) {
        if self.nodes.contains_key(&task.node.id) {
            self.serve_node(task.node.id, |node| node.end(Some(waiter)));
        } else {
            self.notifier.stopped(&waiter);
        }
    }

    fn flush_node(&mut self, id: TaskId, now: Instant) {
        let left = self.nodes.get(&id).is_some_and(|task| task.node.flush());
        if left {
            self.set(id, now + RETRY, Alarm::Send);
        }
    }

    fn set(&mut self, id: SessionId, at: Instant, alarm: Alarm) {
        self.alarms.push(Reverse((at, id, alarm)));
    }

    fn ring(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, id, alarm))) = self.alarms.peek().copied() {
            if at > now {
                return;
            }
            self.alarms.pop();
            match alarm {
                Alarm::Flush => {
                    self.flushing = false;
                    let left = self
                        .launchers
                        .iter()
                        .any(|(launcher, _)| launcher.is_alive() && launcher.flush());
                    if left {
                        self.flush_soon();
                    }
                }
                Alarm::Reap => self.reap_launchers(now),
                Alarm::Prepare => {
                    for launcher in self.looks.remove(&alarm).into_iter().flatten() {
                        if launcher.was_wanted_within(SPARE_PAUSE) {
                            self.prepare_later(launcher);
                        } else {
                            launcher.prepare_spare();
                        }
                    }
                }
                Alarm::Trim => {
                    for launcher in self.looks.remove(&alarm).into_iter().flatten() {
                        if launcher.trim_spares(TRIM_PAUSE) {
                            self.trim_later(launcher);
                        }
                    }
                }
                Alarm::Send if self.nodes.contains_key(&id) => self.flush_node(id, now),
                alarm if self.nodes.contains_key(&id) => {
                    self.serve_node(id, |node| node.alarm(alarm));
                }
                alarm => self.serve(id, |session, notifier| session.alarm(alarm, notifier)),
            }
        }
    }

    fn launcher_readable(&mut self) {
        let mut receiver = channel::Receiver::without_fds();
        let mut lost = false;
        for (launcher, _) in &self.launchers {
            while let Some(socket) = launcher.socket() {
                match receiver.recv::<FromLauncher>(socket.as_fd()) {
                    Ok(Some(received)) => {
                        launcher.note_heard();
                        forward(received.message);
                    }
                    Err(error) if error.errno() == Errno::EAGAIN => break,
                    Ok(None) | Err(_) => {
                        launcher.lost();
                        launcher.note_end();
                        lost = true;
                    }
                }
            }
        }
        if lost {
            broadcast(|| Command::LauncherLost);
            self.set(0, Instant::now() + REAP_PAUSE, Alarm::Reap);
        }
    }

    fn reap_launchers(&mut self, now: Instant) {
        self.launchers.retain_mut(|(launcher, tries)| {
            if launcher.has_ended() {
                *tries = tries.saturating_sub(1);
            }
            !launcher.has_ended() || (*tries > 0 && !launcher.reaped())
        });
        if self
            .launchers
            .iter()
            .any(|(launcher, _)| launcher.has_ended())
        {
            self.set(0, now + REAP_PAUSE, Alarm::Reap);
        }
    }
}

fn forward(message: FromLauncher) {
    let (id, command) = match message {
        FromLauncher::Exited { id, exit, usage } => {
            (id, Command::RootExited(id, exit, Box::new(usage)))
        }
        FromLauncher::ForkFailed { id, errno } => (id, Command::RootFailed(id, errno)),
        FromLauncher::Hello { .. } => return,
    };
    if let Ok(shard) = shard(id) {
        shard.command(command);
    }
}
