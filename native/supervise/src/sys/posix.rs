//! What is the same on every system.
//!
//! A descriptor that is a number is one that the user names. The callers have refused those that the
//! helper itself owns (`Context::protected`), so no `OwnedFd` is closed behind its back.

use std::convert::Infallible;
use std::ffi::{c_int, c_long, CStr, CString};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::unistd::Pid;
use stdio_protocol::message::{Exit, Usage};
use stdio_protocol::value::Timeval;

use super::{close_from, descriptors, Argument};

/// An int, whatever type it has in the C library.
#[allow(clippy::cast_possible_wrap, clippy::unnecessary_cast)]
pub const RLIMIT_NOFILE: c_int = libc::RLIMIT_NOFILE as c_int;

/// Ends this process with the protocol's status after saying why on fd 2.
pub fn die(call: &str, errno: Errno) -> ! {
    let _ = writeln!(std::io::stderr(), "stdio-supervise: {call}: {errno}");
    exit(2)
}

/// _exit(2): no atexit handler of the parent's runs in a forked child.
pub fn exit(status: i32) -> ! {
    // SAFETY: _exit(2) has no precondition.
    unsafe { libc::_exit(status) }
}

/// The two sides of a fork.
pub enum Fork {
    Parent(Pid),
    Child,
}

/// An ended child.
pub struct Ended {
    pub pid: Pid,
    pub exit: Exit,
    pub usage: Usage,
}

/// waitpid(2): the pid, 0 if nothing has happened, the status as the kernel encodes it, and the child's
/// end if that is what happened.
pub fn waitpid(pid: i32, flags: i32) -> Result<(i32, i32, Option<Ended>), Errno> {
    let mut status = 0;
    // SAFETY: rusage is plain data, and all zero is a value of it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both out-pointers are valid for the call.
    let pid = Errno::result(unsafe { libc::wait4(pid, &mut status, flags, &mut usage) })?;
    let over = pid > 0 && (libc::WIFEXITED(status) || libc::WIFSIGNALED(status));
    let ended = over.then(|| Ended {
        pid: Pid::from_raw(pid),
        exit: exit_of(status),
        usage: usage_of(&usage),
    });
    Ok((pid, status, ended))
}

/// How often a call that cannot fail otherwise is tried.
const MAX_TRIES: usize = 16;

/// wait4(2) for any child, without waiting. `Ok(None)`: none has ended; `ECHILD`: there is none. An
/// end that is not collected now may never be asked for again, so no other error is taken at its word.
pub fn wait_any() -> Result<Option<Ended>, Errno> {
    let mut status = 0;
    // SAFETY: rusage is plain data, and all zero is a value of it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    for _ in 0..MAX_TRIES {
        // SAFETY: both out-pointers are valid for the call.
        let pid = unsafe { libc::wait4(-1, &mut status, libc::WNOHANG, &mut usage) };
        return match Errno::result(pid) {
            Ok(0) => Ok(None),
            Ok(pid) => Ok(Some(Ended {
                pid: Pid::from_raw(pid),
                exit: exit_of(status),
                usage: usage_of(&usage),
            })),
            Err(Errno::ECHILD) => Err(Errno::ECHILD),
            Err(_) => continue,
        };
    }
    Err(Errno::EAGAIN)
}

fn exit_of(status: c_int) -> Exit {
    if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Status(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX))
    }
}

fn usage_of(usage: &libc::rusage) -> Usage {
    let count = |value: c_long| u64::try_from(value).unwrap_or(0);
    let micros = |time: libc::timeval| count(time.tv_sec) * 1_000_000 + count(time.tv_usec);
    Usage {
        utime_us: micros(usage.ru_utime),
        stime_us: micros(usage.ru_stime),
        maxrss_kib: count(usage.ru_maxrss),
        minflt: count(usage.ru_minflt),
        majflt: count(usage.ru_majflt),
        inblock: count(usage.ru_inblock),
        oublock: count(usage.ru_oublock),
        nvcsw: count(usage.ru_nvcsw),
        nivcsw: count(usage.ru_nivcsw),
    }
}

/// NULL-terminated arrays for execve(2), built before the fork.
pub struct Vector {
    _strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl Vector {
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect();
        Self {
            // A CString's bytes are on the heap and do not move with it.
            _strings: strings,
            pointers,
        }
    }

    pub fn as_ptr(&self) -> *const *const libc::c_char {
        self.pointers.as_ptr()
    }
}

/// execve(2). Returns only on failure.
pub fn execve(file: &CStr, argv: &Vector, env: &Vector) -> Result<Infallible, Errno> {
    // SAFETY: `file` is NUL-terminated; both arrays end with NULL and point to strings that the
    // vectors own.
    unsafe { libc::execve(file.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    Err(Errno::last())
}

/// Ignores a signal, or gives it its default action. An ignored one stays so in the program.
pub fn set_ignored(signal: c_int, ignored: bool) -> Result<(), Errno> {
    let action = if ignored {
        libc::SIG_IGN
    } else {
        libc::SIG_DFL
    };
    // SAFETY: neither installs a handler.
    let result = unsafe { libc::signal(signal, action) };
    if result == libc::SIG_ERR {
        return Err(Errno::last());
    }
    Ok(())
}

/// Whether a descriptor numbered `first` or above is open, `except` those.
pub fn uses_descriptors_from(first: u64, except: &[RawFd]) -> bool {
    descriptors(first)
        .into_iter()
        .any(|fd| u64::try_from(fd).is_ok_and(|fd| fd >= first) && !except.contains(&fd))
}

/// kill(2) with a raw number, real-time signals included. `pid` may name a group (negative).
///
/// Only for children that this process has not reaped, or groups which such a child leads.
pub fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Moves descriptors to 3 and up in their order, close-on-exec, and closes all others above 2.
pub fn keep(fds: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, Errno> {
    let fds: Vec<RawFd> = fds.into_iter().map(IntoRawFd::into_raw_fd).collect();
    let places = || 3..;
    let end = places()
        .zip(&fds)
        .map(|(place, _)| place + 1)
        .last()
        .unwrap_or(3);
    let mut sources = Vec::with_capacity(fds.len());
    for (place, fd) in places().zip(fds) {
        // None may be overwritten by another's move.
        sources.push(match fd != place && (3..end).contains(&fd) {
            // SAFETY: duplicates a descriptor that we own; the copy is closed below.
            true => Errno::result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, end) })?,
            false => fd,
        });
    }
    for (place, fd) in places().zip(&sources) {
        if *fd != place {
            // SAFETY: whatever stood there was the parent's; this process does not use it.
            Errno::result(unsafe { libc::dup3(*fd, place, libc::O_CLOEXEC) })?;
        }
    }
    close_from(end.unsigned_abs());
    // SAFETY: they were just put there, and nothing else owns them.
    Ok((3..end)
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect())
}

/// fd 0 as an owned descriptor. The helper has one control socket at a time, and it is fd 0.
pub fn own_stdin() -> OwnedFd {
    // SAFETY: fd 0 is open (`standard_descriptors`), the standard library never closes it, and
    // the helper does not read from `std::io::stdin`.
    unsafe { OwnedFd::from_raw_fd(0) }
}

/// Puts `new` in the place of `old`, which is fd 0.
pub fn replace_stdin(old: OwnedFd, new: OwnedFd) -> Result<OwnedFd, Errno> {
    // Not closed but replaced in one step: 0 must never be free for something else.
    let _ = old.into_raw_fd();
    nix::unistd::dup2_stdin(&new)?;
    Ok(own_stdin())
}

/// Puts fd 1, which no process of the helper uses, in the place of fd 0 too.
pub fn forget_stdin() -> Result<(), Errno> {
    nix::unistd::dup2_stdin(std::io::stdout())
}

/// A copy of a descriptor out of the way of 0-9, close-on-exec.
pub fn duplicate_high(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) };
    let copy = Errno::result(copy)?;
    // SAFETY: the kernel has just given this number to us.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// gethostname(2)
pub fn gethostname() -> Result<Vec<u8>, Errno> {
    // Linux allows 64 bytes.
    let mut name = vec![0_u8; 256];
    // SAFETY: pointer and length describe `name`.
    Errno::result(unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) })?;
    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or_default());
    Ok(name)
}

/// close(2)
pub fn close(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: nothing of the helper's owns the number (see above).
    Errno::result(unsafe { libc::close(fd) }).map(drop)
}

/// One read(2) of at most `count` bytes.
pub fn read(fd: RawFd, count: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; count];
    // SAFETY: pointer and length describe `bytes`.
    let result = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) };
    bytes.truncate(Errno::result(result)?.unsigned_abs());
    Ok(bytes)
}

/// One write(2).
pub fn write(fd: RawFd, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: pointer and length describe `bytes`, which is only read.
    let result = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    Errno::result(result).map(isize::unsigned_abs)
}

/// Commands of fcntl(2) that take a number or nothing.
const NUMERIC: &[c_int] = &[
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETOWN,
    libc::F_SETOWN,
];

/// fcntl(2), for commands that take a number or nothing; those that take an address are `EINVAL`.
pub fn fcntl(fd: RawFd, command: i32, argument: i64) -> Result<c_int, Errno> {
    if !NUMERIC.contains(&command) && !super::MORE_NUMERIC.contains(&command) {
        return Err(Errno::EINVAL);
    }
    let argument = c_long::try_from(argument).map_err(|_| Errno::EINVAL)?;
    // SAFETY: none of the commands above reads its argument as an address.
    Errno::result(unsafe { libc::fcntl(fd, command, argument) })
}

/// ioctl(2)
pub fn ioctl(fd: RawFd, request: u32, argument: &Argument) -> Result<c_int, Errno> {
    // An int in one C library, an unsigned long in another.
    #[allow(clippy::cast_possible_wrap)]
    let request = request as _;
    // SAFETY: memory that is passed by address ends at a guard page and outlives the call.
    Errno::result(unsafe { libc::ioctl(fd, request, argument.word()) })
}

/// socket(2), close-on-exec.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<RawFd, Errno> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })
}

/// connect(2)
pub fn connect(fd: RawFd, address: &Argument) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(address.size()).map_err(|_| Errno::EINVAL)?;
    let pointer = ptr::with_exposed_provenance::<libc::sockaddr>(address.word());
    // SAFETY: NULL, or memory of this length, which outlives the call.
    Errno::result(unsafe { libc::connect(fd, pointer, length) }).map(drop)
}

/// What select(2) is asked for one descriptor, and answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    Readable,
    Writable,
    Exceptional,
}

/// select(2) by way of ppoll(2), which has no greatest descriptor: the ready ones of `wanted`, in
/// the same order.
pub fn select(
    wanted: &[(RawFd, Readiness)],
    timeout: Option<Timeval>,
) -> Result<Vec<(RawFd, Readiness)>, Errno> {
    // What the kernel's select counts as each.
    let set = |readiness| match readiness {
        Readiness::Readable => libc::POLLIN | libc::POLLHUP | libc::POLLERR,
        Readiness::Writable => libc::POLLOUT | libc::POLLERR,
        Readiness::Exceptional => libc::POLLPRI,
    };
    let mut polled: Vec<_> = wanted
        .iter()
        .map(|(fd, readiness)| libc::pollfd {
            fd: *fd,
            events: set(*readiness),
            revents: 0,
        })
        .collect();
    // To poll, a negative number is an entry to skip.
    if wanted.iter().any(|(fd, _)| *fd < 0) {
        return Err(Errno::EBADF);
    }
    let timeout = match timeout {
        None => None,
        Some(Timeval { sec, usec }) => {
            let (seconds, rest) = (sec.saturating_add(usec / 1_000_000), usec % 1_000_000);
            Some(libc::timespec {
                tv_sec: seconds.try_into().map_err(|_| Errno::EINVAL)?,
                tv_nsec: (rest * 1000).try_into().map_err(|_| Errno::EINVAL)?,
            })
        }
    };
    let count = libc::nfds_t::try_from(polled.len()).map_err(|_| Errno::EINVAL)?;
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: `count` is the length of `polled`; the timeout is NULL or outlives the call; a NULL
    // mask leaves the mask as it is.
    Errno::result(unsafe { libc::ppoll(polled.as_mut_ptr(), count, timeout, ptr::null()) })?;
    if polled
        .iter()
        .any(|entry| entry.revents & libc::POLLNVAL != 0)
    {
        return Err(Errno::EBADF);
    }
    let ready = wanted.iter().zip(&polled);
    Ok(ready
        .filter(|((_, readiness), entry)| entry.revents & set(*readiness) != 0)
        .map(|(wanted, _)| *wanted)
        .collect())
}
