//! The fork servers, as the BEAM sees them: started on first use, replaced when they have died.
//!
//! Rules:
//! 1. One at a time for each privilege: the BEAM's own (`""`), and the command in front of the
//!    helper that gives it another (`"sudo -n"`). `launch` (dirty I/O) starts it; everything else finds it running or says
//!    `{:error, :launcher}`, and Elixir launches and tries again.
//! 2. The BEAM never waits for it by pid: where SIGCHLD is ignored the kernel reaps it (ECHILD).
//! 3. Roots wait ahead of their programs (spares), off the path from a request to exec; each with the
//!    process that will be the program, if the last request was for one that can be told so late what it
//!    is. A root that has reported the end of its tree is a spare again. If none has come back a while
//!    after the last one was taken, one is forked.
//! 4. A full socket queues; the I/O thread sends what is queued when there is room.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{open, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::stat::Mode;
use nix::sys::wait::{waitpid, WaitPidFlag};
use nix::unistd::{geteuid, Pid};
use once_cell::sync::Lazy;
use rustler::{Binary, Encoder, Env, Term};
use stdio_protocol::channel::{self, is_busy, Datagram, Receiver};
use stdio_protocol::message::{FromLauncher, RootId, ToLauncher, ToRoot};
use stdio_protocol::VERSION;

use crate::reactor::SessionId;
use crate::spec::errno_atom;
use crate::{atoms, fd, reactor, sys};

/// How long the helper has to answer, here and wherever it is asked for something.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// One for the next program, and the one that was there while the last one ran.
const ENOUGH_SPARES: usize = 2;
/// When there were too few a moment ago. As many programs at a time get a root that is there already.
const MOST_SPARES: usize = 16;
const LACK: Duration = Duration::from_millis(200);

/// Held while a launcher is being started.
static STARTING: Lazy<Mutex<()>> = Lazy::new(Mutex::default);
/// By privilege.
static CURRENT: Lazy<Mutex<HashMap<Vec<u8>, Arc<Launcher>>>> = Lazy::new(Mutex::default);
/// Time zero of [`Launcher::heard`].
static EPOCH: Lazy<Instant> = Lazy::new(Instant::now);

pub struct Launcher {
    /// Until it has ended: handles of dead tasks keep this struct for as long as they are kept.
    socket: Mutex<Option<Arc<OwnedFd>>>,
    pid: Pid,
    /// Programs may be given other users than the BEAM's.
    changes_users: bool,
    /// False as soon as anybody has noticed its end.
    alive: AtomicBool,
    ended: AtomicBool,
    outbox: Mutex<VecDeque<(Datagram, Option<OwnedFd>)>>,
    spares: Mutex<Spares>,
    /// The latest session that has been answered.
    latest: AtomicU64,
    /// When any of its processes last said something, in ms since [`EPOCH`].
    heard: AtomicU64,
}

/// Our end of a root's control socket.
pub struct Root {
    pub id: RootId,
    pub socket: OwnedFd,
    /// That of its child, if it has one that waits for a program.
    pub task: Option<OwnedFd>,
    /// It was forked ahead, so it may have died meanwhile.
    pub spare: bool,
    /// An I/O thread watches its socket, on behalf of an earlier program.
    pub watched: bool,
}

impl Root {
    /// One that has had a program.
    pub fn served(id: RootId, socket: OwnedFd) -> Self {
        Self {
            id,
            socket,
            task: None,
            spare: false,
            watched: true,
        }
    }

    /// Neither it nor its child has ended: one that is killed hangs up before its child learns it.
    fn is_silent(&self) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
    }

    /// `child`: it forks the process that will be the next program.
    fn into_spare(self, child: bool) -> Result<Self, Errno> {
        let mut task = None;
        if child {
            let (ours, peer) = channel::pair()?;
            channel::send(&self.socket, &ToRoot::Bear, &[peer.as_fd()]).map_err(|e| e.errno())?;
            task = Some(fd::keep_out_of_the_way(ours));
        }
        Ok(Self {
            task,
            spare: true,
            ..self
        })
    }
}

/// Roots for the next programs, the latest last.
#[derive(Default)]
struct Spares {
    roots: Vec<Root>,
    /// The fewest there were since [`Launcher::trim_spares`] looked, ...
    idle: usize,
    /// ... which was then.
    looked: Option<Instant>,
    /// When one was last asked for, ...
    wanted: Option<Instant>,
    /// ... and when there was none.
    missed: Option<Instant>,
    /// The last request was for a root with a child.
    with_child: bool,
}

impl Spares {
    fn take(&mut self, with_child: bool) -> Option<Root> {
        self.with_child = with_child;
        self.wanted = Some(Instant::now());
        let fits = |root: &Root| root.task.is_some() == with_child;
        let place = self.roots.iter().rposition(fits);
        let root = match place {
            Some(place) => Some(self.roots.remove(place)),
            None => self.roots.pop(),
        };
        if root.is_none() {
            self.missed = self.wanted;
        }
        self.idle = self.idle.min(self.roots.len());
        root
    }

    fn add(&mut self, root: Root) {
        self.roots.extend(root.into_spare(self.with_child));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The running launcher with this privilege, if there is one.
pub fn current(privilege: &[u8]) -> Option<Arc<Launcher>> {
    lock(&CURRENT)
        .get(privilege)
        .filter(|launcher| launcher.is_alive())
        .cloned()
}

/// The other end of a socket is.
pub fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::EPIPE | Errno::ECONNRESET)
}

/// A root that nobody has asked anything of died.
pub fn forget_spare(id: RootId) {
    for launcher in lock(&CURRENT).values() {
        launcher.forget_spare(id);
    }
}

impl Launcher {
    pub fn socket(&self) -> Option<Arc<OwnedFd>> {
        lock(&self.socket).clone()
    }

    pub fn changes_users(&self) -> bool {
        self.changes_users
    }

    /// A spare root if there is one, else a new one. `with_child`: for a program that its child can
    /// be; it may have none yet.
    pub fn root(&self, with_child: bool) -> Result<Root, Errno> {
        loop {
            let spare = lock(&self.spares).take(with_child);
            match spare {
                Some(root) if root.is_silent() => return Ok(root),
                Some(_) => {}
                None => return self.new_root(),
            }
        }
    }

    /// A root that is forked from now on, while its socket already takes messages.
    fn new_root(&self) -> Result<Root, Errno> {
        let id = reactor::next_id();
        let (socket, peer) = channel::pair()?;
        self.send(&ToLauncher::Fork { id }, Some(peer))?;
        Ok(Root {
            id,
            socket: fd::keep_out_of_the_way(socket),
            task: None,
            spare: false,
            watched: false,
        })
    }

    /// Has the next root forked while the last one is at work. Without one, the next program
    /// starts all the same, some forks later.
    pub fn prepare_spare(&self) {
        let mut spares = lock(&self.spares);
        if spares.roots.is_empty() {
            if let Ok(root) = self.new_root() {
                spares.add(root);
            }
        }
    }

    /// A root whose tree is gone, as it has reported, is a spare again; or ends, if there are enough.
    pub fn take_back(&self, root: Root) {
        let mut spares = lock(&self.spares);
        let missed = spares.missed.is_some_and(|at| at.elapsed() < LACK);
        let enough = if missed { MOST_SPARES } else { ENOUGH_SPARES };
        if spares.roots.len() < enough && self.is_alive() {
            spares.add(root);
        }
    }

    /// Whether a root was asked for less than `pause` ago.
    pub fn was_wanted_within(&self, pause: Duration) -> bool {
        let wanted = lock(&self.spares).wanted;
        wanted.is_some_and(|wanted| wanted.elapsed() < pause)
    }

    /// Ends those spares that have not been needed for a while, but for one; and all but one if none
    /// was. True: there are others still.
    pub fn trim_spares(&self, a_while: Duration) -> bool {
        let mut spares = lock(&self.spares);
        // Every I/O thread asks.
        if spares.looked.is_some_and(|at| at.elapsed() < a_while) {
            return spares.roots.len() > 1;
        }
        spares.looked = Some(Instant::now());
        let but_one = spares.roots.len().saturating_sub(1);
        let unneeded = match spares.wanted {
            Some(wanted) if wanted.elapsed() < a_while => spares.idle.saturating_sub(1),
            _ => but_one,
        };
        let unneeded = unneeded.min(but_one);
        spares.roots.drain(..unneeded);
        spares.idle = spares.roots.len();
        spares.roots.len() > 1
    }

    /// It died before it had anything to do. The next program starts some forks later.
    fn forget_spare(&self, id: RootId) {
        lock(&self.spares).roots.retain(|root| root.id != id);
    }

    /// Has the end of a root reported however it ends.
    pub fn report(&self, id: RootId) -> Result<(), Errno> {
        self.send(&ToLauncher::Report { id }, None)
    }

    /// Ends a root that does not answer any more.
    pub fn kill(&self, id: RootId) {
        let _ = self.send(&ToLauncher::Kill { id }, None);
    }

    fn send(&self, message: &ToLauncher, control: Option<OwnedFd>) -> Result<(), Errno> {
        let datagram = Datagram::new(message).map_err(|error| error.errno())?;
        let mut outbox = lock(&self.outbox);
        if !self.is_alive() {
            return Err(Errno::EPIPE);
        }
        outbox.push_back((datagram, control));
        if outbox.len() == 1 {
            self.send_queued(&mut outbox)?;
        }
        if let Some((_, control)) = outbox.back_mut() {
            // It may take a while.
            *control = control.take().map(fd::keep_out_of_the_way);
            reactor::flush_launcher_soon();
        }
        Ok(())
    }

    /// Sends what fits; true if something is left.
    pub fn flush(&self) -> bool {
        let mut outbox = lock(&self.outbox);
        // A dead launcher is noticed by the end of its socket.
        let _ = self.send_queued(&mut outbox);
        !outbox.is_empty()
    }

    fn send_queued(&self, outbox: &mut VecDeque<(Datagram, Option<OwnedFd>)>) -> Result<(), Errno> {
        let socket = self.socket().ok_or(Errno::EPIPE)?;
        while let Some((datagram, control)) = outbox.front() {
            let fds: Vec<_> = control.iter().map(AsFd::as_fd).collect();
            match datagram.send(socket.as_fd(), &fds) {
                Ok(()) => drop(outbox.pop_front()),
                Err(error) if is_busy(error.errno()) => return Ok(()),
                Err(error) => {
                    outbox.clear();
                    return Err(error.errno());
                }
            }
        }
        Ok(())
    }

    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// Its socket has ended. It is gone, or about to be.
    pub fn lost(&self) {
        {
            // Nothing is queued any more once this is said: what is in there would hold the other
            // ends of sockets, which then would not end.
            let mut outbox = lock(&self.outbox);
            self.alive.store(false, Ordering::Release);
            outbox.clear();
        }
        lock(&self.spares).roots.clear();
    }

    /// It was asked for something, in vain. If its socket has ended, the I/O thread will see that
    /// too, perhaps only after the next try.
    pub fn note_failure(&self, errno: Errno) {
        if is_gone(errno) {
            self.lost();
        }
    }

    /// The I/O thread has read its socket to the end.
    pub fn note_end(&self) {
        self.ended.store(true, Ordering::Release);
        lock(&self.socket).take();
    }

    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Collects the zombie, where the BEAM does not ignore SIGCHLD; true when there is none (any
    /// more).
    pub fn reaped(&self) -> bool {
        !matches!(
            waitpid(self.pid, Some(WaitPidFlag::WNOHANG)),
            Ok(nix::sys::wait::WaitStatus::StillAlive)
        )
    }

    /// This session's program has started, or it is known why not.
    pub fn note_answer(&self, id: SessionId) {
        self.latest.fetch_max(id, Ordering::Relaxed);
    }

    /// Whether one that was asked for later has been answered already.
    pub fn has_overtaken(&self, id: SessionId) -> bool {
        self.latest.load(Ordering::Relaxed) > id
    }

    /// One of its processes has said something.
    pub fn note_heard(&self) {
        let now = u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
    }

    /// Time since anything was heard. Starts queue behind each other, so one that waits is late
    /// only when nothing at all moves.
    pub fn silence(&self) -> Duration {
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        EPOCH.elapsed().saturating_sub(heard)
    }
}

/// Why no launcher could be started: an errno, and what it (or sudo in front of it) said.
struct LaunchError {
    errno: Errno,
    said: Vec<u8>,
}

impl From<Errno> for LaunchError {
    fn from(errno: Errno) -> Self {
        Self {
            errno,
            said: Vec::new(),
        }
    }
}

/// Who a launcher has to run as.
#[derive(rustler::NifUnitEnum, Clone, Copy, PartialEq, Eq)]
enum RunsAs {
    Root,
    Anyone,
}

/// `:ok`, also if one runs already, or `{:error, {posix, text}}`; `:eperm`: it is not root.
#[rustler::nif(schedule = "DirtyIo")]
fn launch<'a>(
    env: Env<'a>,
    privilege: Binary<'a>,
    argv: Vec<Binary<'a>>,
    runs_as: RunsAs,
) -> Term<'a> {
    let _one_at_a_time = lock(&STARTING);
    if current(&privilege).is_some() {
        return atoms::ok().encode(env);
    }
    let changes_users = geteuid().is_root() || !privilege.is_empty();
    match start(&argv, runs_as, changes_users) {
        Ok(launcher) => {
            reactor::watch_launcher(launcher.clone());
            lock(&CURRENT).insert(privilege.to_vec(), launcher);
            atoms::ok().encode(env)
        }
        Err(LaunchError { errno, said }) => {
            let said = String::from_utf8_lossy(&said).into_owned();
            (atoms::error(), (errno_atom(env, errno as i32), said)).encode(env)
        }
    }
}

/// Whether the BEAM's effective user is root.
#[rustler::nif(name = "root?")]
fn is_root() -> bool {
    geteuid().is_root()
}

fn start(
    argv: &[Binary<'_>],
    runs_as: RunsAs,
    changes_users: bool,
) -> Result<Arc<Launcher>, LaunchError> {
    let nofile = *fd::STARTUP_LIMIT;
    let argv = argv
        .iter()
        .map(|argument| CString::new(argument.as_slice()).map_err(|_| Errno::EINVAL))
        .collect::<Result<Vec<_>, _>>()?;
    let (socket, theirs) = channel::pair()?;
    let socket = Arc::new(fd::keep_out_of_the_way(socket));
    let (said, says) = fd::pipe()?;
    let pid = spawn(&argv, &theirs, &says)?;
    // At once: where SIGCHLD is ignored, the number is free again as soon as it ends.
    let process = sys::Process::of_child(pid);
    drop((theirs, says));
    let launcher = Launcher {
        socket: Mutex::new(Some(socket.clone())),
        pid,
        changes_users,
        alive: AtomicBool::new(true),
        ended: AtomicBool::new(false),
        outbox: Mutex::default(),
        spares: Mutex::default(),
        latest: AtomicU64::new(0),
        heard: AtomicU64::new(0),
    };
    launcher.note_heard();
    let hello = ToLauncher::Hello {
        version: VERSION.as_bytes().to_vec().into(),
        nofile,
    };
    let greeted = match launcher.send(&hello, None) {
        // It has ended before a word was said, on either side.
        Err(Errno::EPIPE | Errno::ECONNRESET) => Err(Errno::EPROTO),
        sent => sent.and_then(|()| greeting(&socket, runs_as)),
    };
    match greeted {
        Ok(()) => Ok(Arc::new(launcher)),
        // The socket closes with `launcher`, and a helper ends with its socket; whatever else was
        // found in its place need not.
        Err(errno) => {
            if let Some(process) = &process {
                process.kill();
            }
            // Collected if it is a zombie by now; where it is not, nobody waits for it.
            launcher.reaped();
            Err(LaunchError {
                errno,
                said: read_all(said),
            })
        }
    }
}

/// posix_spawn(3): new session, default dispositions, empty mask; fd 0 is the control socket,
/// fd 2 a pipe for whatever goes wrong before the greeting. Descriptors of others are the
/// helper's to close.
fn spawn(argv: &[CString], control: &OwnedFd, says: &OwnedFd) -> Result<Pid, Errno> {
    let null = open(
        c"/dev/null",
        OFlag::O_WRONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let argv: Vec<&CStr> = argv.iter().map(CString::as_c_str).collect();
    sys::spawn(&argv, [control.as_fd(), null.as_fd(), says.as_fd()])
}

/// Waits for the helper's first message, which says its version.
fn greeting(socket: &OwnedFd, runs_as: RunsAs) -> Result<(), Errno> {
    let give_up = Instant::now() + ANSWER_DEADLINE;
    let mut receiver = Receiver::without_fds();
    loop {
        match receiver.recv::<FromLauncher>(socket.as_fd()) {
            Ok(Some(received)) => {
                return match received.message {
                    FromLauncher::Hello { version, .. } if version != VERSION.as_bytes() => {
                        Err(Errno::EPROTO)
                    }
                    FromLauncher::Hello { uid, .. } if runs_as == RunsAs::Root && uid != 0 => {
                        Err(Errno::EPERM)
                    }
                    FromLauncher::Hello { .. } => Ok(()),
                    _ => Err(Errno::EPROTO),
                }
            }
            // It has ended without a word on the socket.
            Ok(None) => return Err(Errno::EPROTO),
            Err(error) if error.errno() == Errno::EAGAIN => {}
            Err(error) => return Err(error.errno()),
        }
        let left = give_up.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(Errno::ETIMEDOUT),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// What is in the pipe by now. Non-blocking: a helper that hangs still holds the other end.
fn read_all(said: OwnedFd) -> Vec<u8> {
    let mut text = Vec::new();
    if fd::nonblocking(&said).is_ok() {
        let _ = File::from(said).take(16 * 1024).read_to_end(&mut text);
    }
    text
}
