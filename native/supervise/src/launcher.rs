//! The fork server: one per node and privilege. It forks supervisors and reaps them.
//!
//! Rules:
//! 1. It is a subreaper. A child that is not one of its supervisors is an orphan of a dead
//!    supervisor, and is killed.
//! 2. A root that ended otherwise than with status 0 may have left orphans. Its end is reported
//!    after they are dead.
//! 3. It holds the only write end of the lifeline: its death is every supervisor's end of file.
//! 4. When its control socket closes, or the process at its other end is dead, the BEAM is gone: it
//!    closes the lifeline, waits for its
//!    supervisors to end their trees, kills those that do not, and ends.

use std::collections::VecDeque;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::{geteuid, getpid, pipe2, Pid};
use stdio_protocol::channel::{is_busy, Datagram, Receiver};
use stdio_protocol::message::{Exit, FromLauncher, Namespaces, RootId, ToLauncher};
use stdio_protocol::value::Limit;
use stdio_protocol::VERSION;

use crate::supervisor::{self, Inherited};
use crate::sys::{self, Fork, Signals};
use crate::{reap, EXIT_PROTOCOL};

/// How long supervisors have to end their trees after the BEAM's death, before they are killed
/// and their trees become the launcher's to kill. A supervisor itself gives up after 5 s.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(6);
/// How long orphans are chased before the end of their root is reported all the same.
const ORPHAN_DEADLINE: Duration = Duration::from_secs(5);
/// The pause between two looks at orphans.
const ORPHAN_PAUSE: Duration = Duration::from_millis(5);

struct Launcher {
    control: OwnedFd,
    /// The BEAM: a copy of its end of the socket, inherited by whatever it forked, cannot keep
    /// the trees alive. `None` where the kernel does not tell (Linux before 6.5).
    peer: Option<OwnedFd>,
    signals: Signals,
    lifeline_read: OwnedFd,
    /// `None` once the BEAM is gone.
    lifeline: Option<OwnedFd>,
    roots: HashMap<Pid, RootId>,
    /// Those whose end is reported even if it is a clean one.
    reported: HashSet<RootId>,
    /// Ended roots whose orphans are being chased, with the time to give up.
    chased: Vec<(FromLauncher, Instant)>,
    outbox: VecDeque<Datagram>,
    greeted: bool,
    kill_roots_at: Option<Instant>,
}

/// The helper's main loop. Runs with whatever privilege the helper was started with.
pub fn run(control: OwnedFd, signals: Signals) -> ExitCode {
    if let Err(errno) = sys::set_subreaper(true) {
        sys::die("prctl(PR_SET_CHILD_SUBREAPER)", errno);
    }
    let (lifeline_read, lifeline) = match pipe2(OFlag::O_CLOEXEC) {
        Ok((read, write)) => (read, Some(write)),
        Err(errno) => sys::die("pipe2", errno),
    };
    let mut launcher = Launcher {
        peer: sys::watch_peer(&control),
        control,
        signals,
        lifeline_read,
        lifeline,
        roots: HashMap::new(),
        reported: HashSet::new(),
        chased: Vec::new(),
        outbox: VecDeque::new(),
        greeted: false,
        kill_roots_at: None,
    };
    let mut receiver = Receiver::with_fds();
    loop {
        match launcher.turn(&mut receiver) {
            Turn::Next => {}
            Turn::End(code) => return code,
            Turn::Child { id, control } => launcher.become_supervisor(id, control, receiver),
        }
    }
}

/// What a round of the event loop comes to.
enum Turn {
    Next,
    End(ExitCode),
    /// This process is the child of a fork.
    Child {
        id: RootId,
        control: OwnedFd,
    },
}

impl Launcher {
    /// One round of the event loop.
    fn turn(&mut self, receiver: &mut Receiver) -> Turn {
        let (control, signals, peer_died) = self.wait();
        // Requests first: what was asked about a root before it ended counts.
        if (control || signals) && self.lifeline.is_some() {
            match self.receive(receiver) {
                Ok(None) => {}
                Ok(Some((id, control))) => return Turn::Child { id, control },
                // The trees of a peer that breaks the protocol end with the lifeline.
                Err(ProtocolError) => return Turn::End(ExitCode::from(EXIT_PROTOCOL)),
            }
        }
        if signals {
            self.drain_signals();
        }
        if peer_died {
            self.begin_shutdown();
        }
        self.chase_orphans();
        self.flush();
        self.shutdown()
    }

    /// Whether there is something on the control socket, a signal, the end of the BEAM.
    fn wait(&self) -> (bool, bool, bool) {
        let mut events = PollFlags::POLLIN;
        if !self.outbox.is_empty() {
            events |= PollFlags::POLLOUT;
        }
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if self.lifeline.is_some() {
            fds.push(PollFd::new(self.control.as_fd(), events));
            fds.extend(
                self.peer
                    .iter()
                    .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
            );
        }
        let timeout = if self.chased.is_empty() && self.lifeline.is_some() {
            PollTimeout::NONE
        } else {
            PollTimeout::try_from(ORPHAN_PAUSE).unwrap_or(PollTimeout::ZERO)
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => sys::die("poll", errno),
        }
        let ready = |index: usize| {
            fds.get(index)
                .and_then(PollFd::revents)
                .is_some_and(|events| !events.is_empty())
        };
        (ready(1), ready(0), ready(2))
    }

    /// Takes everything that has arrived. `Some` in the child of a fork.
    fn receive(
        &mut self,
        receiver: &mut Receiver,
    ) -> Result<Option<(RootId, OwnedFd)>, ProtocolError> {
        loop {
            match receiver.recv::<ToLauncher>(self.control.as_fd()) {
                Ok(Some(received)) => {
                    if let Some(child) = self.handle(received.message, received.fds)? {
                        return Ok(Some(child));
                    }
                }
                Ok(None) => {
                    self.begin_shutdown();
                    return Ok(None);
                }
                Err(error) if error.errno() == Errno::EAGAIN => return Ok(None),
                Err(_) => return Err(ProtocolError),
            }
        }
    }

    fn handle(
        &mut self,
        message: ToLauncher,
        mut fds: Vec<OwnedFd>,
    ) -> Result<Option<(RootId, OwnedFd)>, ProtocolError> {
        match (message, fds.pop(), fds.as_slice()) {
            (ToLauncher::Hello { version, nofile }, None, []) if !self.greeted => {
                self.greet(&version, nofile).map(|()| None)
            }
            (ToLauncher::Fork { id }, Some(control), []) if self.greeted => {
                Ok(self.fork(id, control))
            }
            (ToLauncher::Kill { id }, None, []) if self.greeted => {
                self.kill(id);
                Ok(None)
            }
            (ToLauncher::Report { id }, None, []) if self.greeted => {
                self.reported.insert(id);
                Ok(None)
            }
            _ => Err(ProtocolError),
        }
    }

    fn greet(&mut self, version: &[u8], nofile: Limit) -> Result<(), ProtocolError> {
        self.greeted = true;
        self.send(&FromLauncher::Hello {
            version: VERSION.as_bytes().to_vec().into(),
            uid: geteuid().as_raw(),
        });
        if version != VERSION.as_bytes() {
            self.flush();
            return Err(ProtocolError);
        }
        sys::remove_stale_cgroups();
        // The BEAM has raised its own limit; programs get the one it was started with. It may
        // lie above what is allowed here (another user's helper): then ours stays.
        let _ = sys::setrlimit(sys::RLIMIT_NOFILE, nofile);
        Ok(())
    }

    /// `Some` in the child.
    fn fork(&mut self, id: RootId, control: OwnedFd) -> Option<(RootId, OwnedFd)> {
        match sys::fork(Namespaces::default()) {
            Ok(Fork::Parent(pid)) => {
                self.roots.insert(pid, id);
                None
            }
            Ok(Fork::Child) => Some((id, control)),
            Err(errno) => {
                self.send(&FromLauncher::ForkFailed {
                    id,
                    errno: errno as i32,
                });
                None
            }
        }
    }

    /// In the child: the lifeline's write end goes before anything else can fail, and the
    /// launcher's control socket is replaced as fd 0.
    fn become_supervisor(self, id: RootId, control: OwnedFd, receiver: Receiver) -> ! {
        drop(self.lifeline);
        sys::forget_peer(self.peer);
        let signals = self
            .signals
            .of_child()
            .unwrap_or_else(|errno| sys::die("kqueue", errno));
        sys::replace_stdin(self.control, control).map_or_else(
            |errno| sys::die("dup2", errno),
            |control| {
                supervisor::run(Inherited {
                    id,
                    control,
                    lifeline: self.lifeline_read,
                    signals,
                    receiver,
                })
            },
        )
    }

    fn kill(&self, id: RootId) {
        // A root that is not in the map has been reaped: there is nothing to kill.
        for (pid, _) in self.roots.iter().filter(|(_, root)| **root == id) {
            let _ = sys::kill(pid.as_raw(), libc::SIGKILL);
        }
    }

    fn drain_signals(&mut self) {
        while self.signals.read().is_some() {}
        while let Ok(Some(ended)) = sys::wait_any() {
            let Some(id) = self.roots.remove(&ended.pid) else {
                continue;
            };
            // Status 0: its tree is empty, and it has said so itself.
            let reported = self.reported.remove(&id);
            if ended.exit != Exit::Status(0) || reported {
                let exited = FromLauncher::Exited {
                    id,
                    exit: ended.exit,
                    usage: ended.usage,
                };
                self.chased.push((exited, Instant::now() + ORPHAN_DEADLINE));
            }
        }
    }

    /// Kills what dead supervisors have left, and reports these roots once nothing is left.
    fn chase_orphans(&mut self) {
        if self.chased.is_empty() {
            return;
        }
        let orphans = reap::kill_children_except(|pid| self.roots.contains_key(&pid));
        let me = getpid();
        let gone = |exited: &FromLauncher| match exited {
            FromLauncher::Exited { id, .. } => sys::end_cgroup_of(me, *id),
            _ => true,
        };
        let now = Instant::now();
        let (done, chased) = std::mem::take(&mut self.chased)
            .into_iter()
            .partition(|(exited, give_up)| (gone(exited) && orphans == 0) || *give_up <= now);
        self.chased = chased;
        for (exited, _) in done {
            self.send(&exited);
        }
    }

    /// The BEAM is gone: every supervisor ends its tree when the lifeline ends.
    fn begin_shutdown(&mut self) {
        self.lifeline = None;
        self.kill_roots_at = Some(Instant::now() + SHUTDOWN_GRACE);
    }

    /// After the BEAM's death: done when no child is left.
    fn shutdown(&mut self) -> Turn {
        let Some(kill_at) = self.kill_roots_at else {
            return Turn::Next;
        };
        if self.roots.is_empty() && self.chased.is_empty() {
            return Turn::End(ExitCode::SUCCESS);
        }
        if kill_at <= Instant::now() {
            for pid in self.roots.keys() {
                let _ = sys::kill(pid.as_raw(), libc::SIGKILL);
            }
        }
        Turn::Next
    }

    fn send(&mut self, message: &FromLauncher) {
        if let Ok(datagram) = Datagram::new(message) {
            self.outbox.push_back(datagram);
        }
    }

    fn flush(&mut self) {
        while let Some(datagram) = self.outbox.front() {
            match datagram.send(self.control.as_fd(), &[]) {
                Err(error) if is_busy(error.errno()) => return,
                // Sent, or nobody is there to read it.
                _ => drop(self.outbox.pop_front()),
            }
        }
    }
}

/// The peer is not the NIF that this helper was built with.
struct ProtocolError;
