//! Linux: epoll(7), eventfd(2), pidfds.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;

use super::{Interest, EVENTS};

pub struct Poller {
    epoll: Epoll,
    /// Never read: every write is an edge of its own, and a read could take away one that belongs to a
    /// command behind those that were taken.
    wake: EventFd,
}

pub struct Events([EpollEvent; EVENTS]);

impl Poller {
    /// `wake` is the token of its own wake-up.
    pub fn new(wake: u64) -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake_up = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&wake_up, event(Interest::Readable, wake))?;
        Ok(Self {
            epoll,
            wake: wake_up,
        })
    }

    /// Ends the wait, or the next one.
    pub fn wake(&self) {
        let _ = self.wake.write(1);
    }

    /// What is ready already is reported too. Closing the descriptor ends it, or adding it again.
    pub fn add(&self, fd: impl AsFd, interest: Interest, token: u64) -> Result<(), Errno> {
        match self.epoll.add(&fd, event(interest, token)) {
            Err(Errno::EEXIST) => self.arm(fd, interest, token),
            added => added,
        }
    }

    /// One more event, which may be due at once.
    pub fn arm(&self, fd: impl AsFd, interest: Interest, token: u64) -> Result<(), Errno> {
        self.epoll.modify(fd, &mut event(interest, token))
    }

    /// How many events there are. Without a timeout it waits for ever.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> Result<usize, Errno> {
        let timeout = timeout.map_or(EpollTimeout::NONE, |left| {
            // Rounded up: waking early would spin until the time has come.
            EpollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(EpollTimeout::MAX)
        });
        self.epoll.wait(&mut events.0, timeout)
    }
}

impl Events {
    pub fn new() -> Self {
        Self([EpollEvent::empty(); EVENTS])
    }

    /// Of the first so many.
    pub fn tokens(&self, count: usize) -> impl Iterator<Item = u64> + '_ {
        self.0[..count].iter().map(EpollEvent::data)
    }
}

fn event(interest: Interest, token: u64) -> EpollEvent {
    let flags = match interest {
        Interest::Writable => EpollFlags::EPOLLOUT | EpollFlags::EPOLLET,
        Interest::ReadableOnce => EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT,
        Interest::Closed => EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET,
        Interest::Readable => EpollFlags::EPOLLIN | EpollFlags::EPOLLET,
    };
    EpollEvent::new(flags, token)
}

/// A limit, as the protocol has it.
pub fn limit(value: libc::rlim_t) -> u64 {
    value
}

/// What a pipe can hold at once.
pub fn pipe_capacity(fd: impl AsFd) -> usize {
    let capacity = fcntl(fd, FcntlArg::F_GETPIPE_SZ).unwrap_or(0);
    usize::try_from(capacity).unwrap_or(0)
}

/// Has it hold so much, if it holds less (the program may have asked for more) and the user's limits
/// allow it. F_SETPIPE_SZ, fcntl(2)
pub fn grow_pipe(fd: impl AsFd, capacity: usize) -> bool {
    pipe_capacity(&fd) < capacity
        && i32::try_from(capacity).is_ok_and(|size| fcntl(fd, FcntlArg::F_SETPIPE_SZ(size)).is_ok())
}

/// For posix_spawn(3).
pub const IN_NEW_SESSION: libc::c_int = libc::POSIX_SPAWN_SETSID as libc::c_int;

/// A process that this one has started, as a pidfd.
pub struct Process(OwnedFd);

impl Process {
    /// At once after its start. pidfd_open(2), Linux 5.3
    pub fn of_child(pid: Pid) -> Option<Self> {
        // SAFETY: takes numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the kernel has just given this number to us (close-on-exec always).
        Some(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// SIGKILL through a pidfd. pidfd_send_signal(2), Linux 5.1
    pub fn kill(&self) {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a NULL siginfo means "as kill(2) would fill it"; the rest are numbers.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                libc::SIGKILL,
                no_info,
                0,
            )
        };
    }
}
