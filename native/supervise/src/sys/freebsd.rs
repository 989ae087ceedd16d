//! FreeBSD: procctl(2), jails, capsicum(4). 13.1 or later.
//!
//! Checked by the compiler only (bin/check-bsd): it has never run.

mod own;
pub mod reap;

use std::convert::Infallible;
use std::ffi::{c_int, c_uint, c_void, CStr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::unistd::Pid;

pub use own::own;

use super::{die, mark_descriptors, Vector};

/// Without the dash it would begin with the program's name.
pub const TITLE_FORMAT: &CStr = c"-%s";

/// Commands of fcntl(2) that take a number or nothing, besides those of every system.
pub const MORE_NUMERIC: &[c_int] = &[
    libc::F_READAHEAD,
    libc::F_RDAHEAD,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];

/// procctl(2) of this process.
fn control<T>(command: c_int, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: the callers give the type that the command is documented with; id 0 is this process.
    unsafe { control_raw(libc::P_PID, 0, command, ptr::from_mut(argument).cast()) }
}

/// # Safety
/// `data` is NULL, or what the command reads and writes.
unsafe fn control_raw(
    idtype: libc::idtype_t,
    id: libc::id_t,
    command: c_int,
    data: *mut c_void,
) -> Result<(), Errno> {
    // SAFETY: the caller's.
    Errno::result(unsafe { libc::procctl(idtype, id, command, data) }).map(drop)
}

/// PROC_REAP_ACQUIRE and PROC_REAP_RELEASE. A reaper stays one over exec.
pub fn set_subreaper(subreaper: bool) -> Result<(), Errno> {
    let (command, already) = match subreaper {
        true => (libc::PROC_REAP_ACQUIRE, Errno::EBUSY),
        false => (libc::PROC_REAP_RELEASE, Errno::EINVAL),
    };
    // SAFETY: both take no data.
    match unsafe { control_raw(libc::P_PID, 0, command, ptr::null_mut()) } {
        Err(errno) if errno == already => Ok(()),
        result => result,
    }
}

/// Whether a process of the same user may debug this one. PROC_TRACE_CTL, until exec.
pub fn set_inspectable(inspectable: bool) -> Result<(), Errno> {
    let mut mode = match inspectable {
        true => libc::PROC_TRACE_CTL_ENABLE,
        false => libc::PROC_TRACE_CTL_DISABLE,
    };
    control(libc::PROC_TRACE_CTL, &mut mode)
}

/// PROC_NO_NEW_PRIVS_CTL, FreeBSD 13.1
pub fn no_new_privs() -> Result<(), Errno> {
    let mut mode = libc::PROC_NO_NEW_PRIVS_ENABLE;
    control(libc::PROC_NO_NEW_PRIVS_CTL, &mut mode)
}

/// PROC_PDEATHSIG_CTL, FreeBSD 11.2
pub fn set_pdeathsig(mut signal: c_int) -> Result<(), Errno> {
    control(libc::PROC_PDEATHSIG_CTL, &mut signal)
}

/// Takes a pending signal away: its siginfo_t. sigtimedwait(2)
pub fn take_pending(signal: c_int) -> Option<Vec<u8>> {
    let at_once = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut raw = vec![0; size_of::<libc::siginfo_t>()];
    // SAFETY: sigset_t and siginfo_t are plain data of which all zero is a value; every pointer is to
    // one and outlives the call.
    let taken = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        let taken = libc::sigtimedwait(&set, &mut info, &at_once);
        ptr::copy_nonoverlapping(ptr::from_ref(&info).cast(), raw.as_mut_ptr(), raw.len());
        taken
    };
    (taken == signal).then_some(raw)
}

/// Who made the socket pair. LOCAL_PEERCRED, unix(4); the pid is there since 13.0.
pub fn peer_pid(socket: &OwnedFd) -> Option<Pid> {
    // SAFETY: xucred is plain data; zero is valid for all of it.
    let mut credentials: libc::xucred = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::xucred>()).ok()?;
    // SAFETY: both out-pointers are valid for the call, and `length` is the size of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            0,
            libc::LOCAL_PEERCRED,
            ptr::from_mut(&mut credentials).cast(),
            &mut length,
        )
    };
    Errno::result(result).ok()?;
    // SAFETY: either member of the union is plain data.
    let pid = unsafe { credentials.cr_pid__c_anonymous_union.cr_pid };
    (pid > 0).then(|| Pid::from_raw(pid))
}

/// Marks everything above 2 close-on-exec. close_range(2), FreeBSD 15; before that one by one.
pub fn keep_only_standard_descriptors_at_exec() {
    let flag = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: changes flags only.
    match Errno::result(unsafe { libc::close_range(3, c_uint::MAX, flag) }) {
        Ok(_) => {}
        Err(Errno::EINVAL) => mark_descriptors(),
        Err(errno) => die("close_range", errno),
    }
}

/// fexecve(2). Returns only on failure.
pub fn execve_descriptor(fd: RawFd, argv: &Vector, env: &Vector) -> Result<Infallible, Errno> {
    // SAFETY: both arrays end with NULL and point to strings that the vectors own.
    unsafe { libc::fexecve(fd, argv.as_ptr(), env.as_ptr()) };
    Err(Errno::last())
}

/// The mode of the file that this process executes. KERN_PROC_PATHNAME, sysctl(3)
pub fn executable_mode() -> Option<libc::mode_t> {
    let path = std::env::current_exe().ok()?;
    Some(nix::sys::stat::stat(&path).ok()?.st_mode)
}
