//! Descriptors: creation, limits, and with `sys` the library's unsafe code.

use std::ffi::{c_void, CStr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{fcntl, open, FcntlArg, OFlag};
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::sys::stat::{fchmod, Mode};
use nix::unistd::pipe2;
use once_cell::sync::Lazy;
use stdio_protocol::value::Limit;

use crate::sys;

/// The descriptor limit that the BEAM was started with. Reading it raises the soft limit to the
/// hard one, once; programs are given the original back.
///
/// The BEAM sizes its own tables by the start-up limit and dies on larger numbers of its own
/// (a socket, a file), so they must stay free for it: see [`keep_out_of_the_way`].
pub static STARTUP_LIMIT: Lazy<Limit> = Lazy::new(|| {
    let (cur, max) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    // Failure leaves fewer descriptors, which `emfile` will tell.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, max, max);
    Limit {
        cur: sys::limit(cur),
        max: sys::limit(max),
    }
});

/// A close-on-exec pipe: read end, write end.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    pipe2(OFlag::O_CLOEXEC)
}

/// `/dev/null`, close-on-exec.
pub fn null() -> Result<OwnedFd, Errno> {
    open(
        c"/dev/null",
        OFlag::O_RDWR | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// Sets O_NONBLOCK, which belongs to this end alone: the other end is another description.
pub fn nonblocking(fd: impl AsFd) -> Result<(), Errno> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

/// A program that runs under another uid opens `/dev/stderr` by this mode. Only
/// `/proc/PID/fd` leads here, and that asks for the same user first.
pub fn open_to_all(fd: impl AsFd) -> Result<(), Errno> {
    fchmod(fd, Mode::from_bits_truncate(0o666))
}

/// Moves a descriptor that lives as long as a program above the BEAM's start-up limit, once a
/// quarter of the numbers below it are in use.
pub fn keep_out_of_the_way(fd: OwnedFd) -> OwnedFd {
    let Ok(limit) = i32::try_from(STARTUP_LIMIT.cur) else {
        return fd;
    };
    if fd.as_raw_fd() < limit / 4 || fd.as_raw_fd() >= limit {
        return fd;
    }
    match fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(limit)) {
        // SAFETY: the kernel has just made this number, and nobody else knows it.
        Ok(high) => unsafe { OwnedFd::from_raw_fd(high) },
        // No room above: the hard limit is the start-up limit.
        Err(_) => fd,
    }
}

/// Makes the dynamic loader keep this library for good: its threads outlive a code purge.
pub fn pin_library() -> bool {
    // SAFETY: Dl_info is plain data; dladdr fills it for an address inside this library.
    let name = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        let here: *const c_void = (pin_library as fn() -> bool as *const ()).cast();
        if libc::dladdr(here, &mut info) == 0 {
            return false;
        }
        // The name belongs to the loader's entry of this library, which is loaded.
        CStr::from_ptr(info.dli_fname)
    };
    let flags = libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: RTLD_NOLOAD runs no initialiser; the name is NUL-terminated.
    !unsafe { libc::dlopen(name.as_ptr(), flags) }.is_null()
}
