//! OpenBSD: pledge(2), unveil(2). No subreaper, and no descriptor that stands for a process.
//!
//! Checked by the compiler only (bin/check-bsd): it has never run.

mod own;
pub mod reap;

use std::convert::Infallible;
use std::ffi::{c_int, CStr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::unistd::Pid;

pub use own::own;

use super::{mark_descriptors, Vector};

/// The program's name always comes first.
pub const TITLE_FORMAT: &CStr = c"%s";

/// Commands of fcntl(2) that take a number or nothing, besides those of every system.
pub const MORE_NUMERIC: &[c_int] = &[];

/// There is none: what loses its parent is init's.
pub fn set_subreaper(_subreaper: bool) -> Result<(), Errno> {
    Ok(())
}

/// ptrace(2) is for parents, as long as kern.global_ptrace is 0, which it is.
pub fn set_inspectable(_inspectable: bool) -> Result<(), Errno> {
    Ok(())
}

/// pledge(2) does this.
pub fn no_new_privs() -> Result<(), Errno> {
    Err(Errno::ENOSYS)
}

pub fn set_pdeathsig(_signal: c_int) -> Result<(), Errno> {
    Err(Errno::ENOSYS)
}

/// Takes a pending signal away. There is no siginfo_t to be had of it. sigwait(3)
pub fn take_pending(signal: c_int) -> Option<Vec<u8>> {
    // SAFETY: sigset_t is plain data of which all zero is a value; every pointer outlives its call.
    // This process has one thread: what is pending stays so until it is waited for.
    unsafe {
        let mut pending: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&mut pending);
        if libc::sigismember(&pending, signal) == 1 {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, signal);
            let mut taken = 0;
            libc::sigwait(&set, &mut taken);
        }
    }
    None
}

/// Who made the socket pair. SO_PEERCRED, getsockopt(2)
pub fn peer_pid(socket: &OwnedFd) -> Option<Pid> {
    // SAFETY: sockpeercred is plain data; zero is valid for all of it.
    let mut credentials: libc::sockpeercred = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::sockpeercred>()).ok()?;
    // SAFETY: both out-pointers are valid for the call, and `length` is the size of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            ptr::from_mut(&mut credentials).cast(),
            &mut length,
        )
    };
    Errno::result(result).ok()?;
    (credentials.pid > 0).then(|| Pid::from_raw(credentials.pid))
}

/// Marks what is above 2 close-on-exec.
pub fn keep_only_standard_descriptors_at_exec() {
    mark_descriptors();
}

/// There is no fexecve(2).
pub fn execve_descriptor(_fd: RawFd, _argv: &Vector, _env: &Vector) -> Result<Infallible, Errno> {
    Err(Errno::ENOSYS)
}

/// Not to be had: no process knows its own file. So a helper with the setuid bit is refused.
pub fn executable_mode() -> Option<libc::mode_t> {
    None
}
