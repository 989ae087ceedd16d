//! The fork servers, as the BEAM sees them: started on first use, replaced when they have died.
//!
//! Rules:
//! 1. One at a time for each privilege: the BEAM's own (`""`), and the command in front of the
//!    helper that gives it another (`"sudo -n"`). `launch` (dirty I/O) starts it; everything else finds it running or says
//!    `{:error, :launcher}`, and Elixir launches and tries again.
//! 2. The BEAM never waits for it by pid: where SIGCHLD is ignored the kernel reaps it (ECHILD).
//! 3. One root is forked ahead (a spare), off the path from a program's request to its exec.
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
use stdio_protocol::message::{FromLauncher, RootId, ToLauncher};
use stdio_protocol::VERSION;

use crate::spec::errno_atom;
use crate::{atoms, fd, reactor, sys};

/// How long the helper has to answer, here and wherever it is asked for something.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

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
    /// A root that has been forked already, for the next program.
    spare: Mutex<Option<Root>>,
    /// The latest root that has answered.
    latest: AtomicU64,
    /// When any of its processes last said something, in ms since [`EPOCH`].
    heard: AtomicU64,
}

/// Our end of a root's control socket.
pub struct Root {
    pub id: RootId,
    pub socket: OwnedFd,
    /// It was forked ahead, so it may have died meanwhile.
    pub spare: bool,
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

    /// The spare root if there is one, else a new one.
    pub fn root(&self) -> Result<Root, Errno> {
        let spare = lock(&self.spare).take();
        match spare {
            Some(root) => Ok(root),
            None => self.new_root(false),
        }
    }

    /// A root that is forked from now on, while its socket already takes messages.
    pub fn new_root(&self, spare: bool) -> Result<Root, Errno> {
        let id = reactor::next_id();
        let (socket, peer) = channel::pair()?;
        self.send(&ToLauncher::Fork { id }, Some(peer))?;
        Ok(Root {
            id,
            socket: fd::keep_out_of_the_way(socket),
            spare,
        })
    }

    /// Has the next root forked while the last one is at work. Without one, the next program
    /// starts all the same, a fork later.
    pub fn prepare_spare(&self) {
        let mut spare = lock(&self.spare);
        if spare.is_none() {
            *spare = self.new_root(true).ok();
        }
    }

    /// It died before it had anything to do. The next program starts a fork later.
    fn forget_spare(&self, id: RootId) {
        let mut spare = lock(&self.spare);
        if spare.as_ref().is_some_and(|root| root.id == id) {
            *spare = None;
        }
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
        lock(&self.spare).take();
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

    /// One of its roots has started its program, or said why not.
    pub fn note_answer(&self, id: RootId) {
        self.latest.fetch_max(id, Ordering::Relaxed);
    }

    /// Whether a root that was asked for later has answered already.
    pub fn has_overtaken(&self, id: RootId) -> bool {
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
        spare: Mutex::default(),
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
