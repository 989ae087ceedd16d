//! FreeBSD and OpenBSD: kqueue(2).
//!
//! Checked by the compiler only (bin/check-bsd): it has never run.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, FdFlag, OFlag};
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
use nix::sys::signal::{kill, Signal};
use nix::unistd::{pipe2, read, Pid};

use super::{Interest, EVENTS};

const AT_ONCE: libc::timespec = libc::timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

pub struct Poller {
    queue: Kqueue,
    /// A pipe, as OpenBSD has no EVFILT_USER for long.
    wake: std::fs::File,
    woken: OwnedFd,
    token: u64,
}

pub struct Events([KEvent; EVENTS]);

impl Poller {
    /// `wake` is the token of its own wake-up.
    pub fn new(wake: u64) -> Result<Self, Errno> {
        let (woken, end) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let poller = Self {
            queue: queue()?,
            wake: end.into(),
            woken,
            token: wake,
        };
        poller.add(&poller.woken, Interest::Readable, wake)?;
        Ok(poller)
    }

    /// Ends the wait, or the next one. A full pipe does so already.
    pub fn wake(&self) {
        let _ = (&self.wake).write(&[1]);
    }

    /// What is ready already is reported too. Closing the descriptor ends it.
    pub fn add(&self, fd: impl AsFd, interest: Interest, token: u64) -> Result<(), Errno> {
        let fd = usize::try_from(fd.as_fd().as_raw_fd()).map_err(|_| Errno::EBADF)?;
        let (filter, more) = match interest {
            Interest::Writable => (EventFilter::EVFILT_WRITE, EvFlags::EV_CLEAR),
            Interest::ReadableOnce => (EventFilter::EVFILT_READ, EvFlags::EV_DISPATCH),
            // There is none for the end alone. A message before it is one event more, for which there
            // is nothing to be done yet.
            Interest::Readable | Interest::Closed => (EventFilter::EVFILT_READ, EvFlags::EV_CLEAR),
        };
        let data = isize::try_from(token).map_err(|_| Errno::EOVERFLOW)?;
        let flags = EvFlags::EV_ADD | EvFlags::EV_ENABLE | more;
        let change = KEvent::new(fd, filter, flags, FilterFlag::empty(), 0, data);
        self.queue
            .kevent(&[change], &mut [], Some(AT_ONCE))
            .map(drop)
    }

    /// One more event, which may be due at once.
    pub fn arm(&self, fd: impl AsFd, interest: Interest, token: u64) -> Result<(), Errno> {
        self.add(fd, interest, token)
    }

    /// How many events there are. Without a timeout it waits for ever.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> Result<usize, Errno> {
        let timeout = timeout.map(|left| libc::timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let count = self.queue.kevent(&[], &mut events.0, timeout)?;
        if events.tokens(count).any(|token| token == self.token) {
            // Before the commands are taken: what is written from here on is an event of its own.
            let mut bytes = [0; 64];
            while matches!(read(&self.woken, &mut bytes), Ok(1..) | Err(Errno::EINTR)) {}
        }
        Ok(count)
    }
}

impl Events {
    pub fn new() -> Self {
        let (flags, more) = (EvFlags::empty(), FilterFlag::empty());
        Self([KEvent::new(0, EventFilter::EVFILT_READ, flags, more, 0, 0); EVENTS])
    }

    /// Of the first so many.
    pub fn tokens(&self, count: usize) -> impl Iterator<Item = u64> + '_ {
        let events = self.0[..count].iter();
        events.map(|event| event.udata().cast_unsigned() as u64)
    }
}

fn queue() -> Result<Kqueue, Errno> {
    let queue = Kqueue::new()?;
    fcntl(&queue, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(queue)
}

/// A limit, as the protocol has it.
pub fn limit(value: libc::rlim_t) -> u64 {
    match value {
        libc::RLIM_INFINITY => u64::MAX,
        value => u64::try_from(value).unwrap_or(u64::MAX),
    }
}

/// What a pipe can hold at once, at most: BIG_PIPE_SIZE. The kernel does not tell.
pub fn pipe_capacity(_fd: impl AsFd) -> usize {
    64 * 1024
}

/// The kernel sees to it by itself.
pub fn grow_pipe(_fd: impl AsFd, _capacity: usize) -> bool {
    false
}

/// For posix_spawn(3), which has no such flag: the helper leaves the session of the BEAM by itself.
#[cfg(target_os = "freebsd")]
pub const IN_NEW_SESSION: libc::c_int = 0;

/// A process that this one has started, and whether it still runs. EVFILT_PROC
pub struct Process {
    pid: Pid,
    end: Kqueue,
}

impl Process {
    /// At once after its start.
    pub fn of_child(pid: Pid) -> Option<Self> {
        let number = usize::try_from(pid.as_raw()).ok()?;
        let end = queue().ok()?;
        let (filter, flags) = (EventFilter::EVFILT_PROC, EvFlags::EV_ADD);
        let change = KEvent::new(number, filter, flags, FilterFlag::NOTE_EXIT, 0, 0);
        end.kevent(&[change], &mut [], Some(AT_ONCE)).ok()?;
        Some(Self { pid, end })
    }

    /// SIGKILL, unless it has ended.
    pub fn kill(&self) {
        let mut events = Events::new();
        if self.end.kevent(&[], &mut events.0, Some(AT_ONCE)) == Ok(0) {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}
