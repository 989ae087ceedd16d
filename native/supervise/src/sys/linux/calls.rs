//! System calls of the table that the nix crate does not offer, or not for plain numbers.
//!
//! A descriptor here is a number that the user names. The callers have refused those that the
//! helper itself owns (`Context::protected`), so no `OwnedFd` is closed behind its back.

use std::ffi::{c_int, c_long, c_uint, c_ulong, CStr};
use std::os::fd::RawFd;
use std::ptr;

use nix::errno::Errno;
use stdio_protocol::value::Limit;

use crate::sys::Argument;

/// getpriority(2) itself: the C library's version has results that look like errors.
pub fn getpriority(which: i32, who: u32) -> Result<i32, Errno> {
    // SAFETY: takes numbers only.
    let result = unsafe { libc::syscall(libc::SYS_getpriority, which, who) };
    // 40..1 stands for -20..19.
    let turned = i32::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)?;
    Ok(20 - turned)
}

/// getrlimit(2)
pub fn getrlimit(resource: i32) -> Result<Limit, Errno> {
    let resource = c_uint::try_from(resource).map_err(|_| Errno::EINVAL)?;
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the out-pointer is valid for the call.
    Errno::result(unsafe { libc::getrlimit(resource, &mut limit) })?;
    Ok(Limit {
        cur: limit.rlim_cur,
        max: limit.rlim_max,
    })
}

/// sethostname(2)
pub fn sethostname(name: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length describe `name`, which is only read.
    Errno::result(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// prctl(2)
pub fn prctl(option: i32, arguments: [&Argument; 4]) -> Result<c_int, Errno> {
    let [a2, a3, a4, a5] = arguments.map(Argument::word);
    // SAFETY: memory that is passed by address ends at a guard page, and outlives the call; the
    // options that change this process's memory are the user's to use (`memory`, rule 3).
    Errno::result(unsafe { libc::prctl(option, a2, a3, a4, a5) })
}

/// seccomp(2)
pub fn seccomp(operation: i32, flags: u32, argument: &Argument) -> Result<(), Errno> {
    // SAFETY: the filter and what it points to outlive the call; the kernel copies them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, argument.word()) };
    Errno::result(result).map(drop)
}

/// ptrace(2). A request that peeks gives the word as the result, which may be any number.
pub fn ptrace(request: i32, pid: i32, addr: &Argument, data: &Argument) -> Result<c_long, Errno> {
    Errno::clear();
    // Signed in one C library, unsigned in another.
    #[allow(clippy::cast_sign_loss)]
    let request = request as _;
    // SAFETY: addresses are of the other process, or of memory that ends at a guard page and
    // outlives the call.
    let result = unsafe { libc::ptrace(request, pid, addr.word(), data.word()) };
    match result {
        -1 if Errno::last_raw() != 0 => Err(Errno::last()),
        result => Ok(result),
    }
}

/// setns(2)
pub fn setns(fd: RawFd, nstype: i32) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::setns(fd, nstype) }).map(drop)
}

/// mount(2). The kernel reads a page of `data`, as far as it can; less is made up with zeros.
pub fn mount(
    source: Option<&CStr>,
    target: &CStr,
    fstype: Option<&CStr>,
    flags: u32,
    data: Option<&[u8]>,
) -> Result<(), Errno> {
    const PAGE: usize = 4096;
    let data = data.map(|data| {
        let mut page = data.to_vec();
        page.resize(data.len().max(PAGE - 1) + 1, 0);
        page
    });
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is NULL, or to a NUL-terminated string, or to at least a page that
    // ends with zero; all outlive the call.
    let result = unsafe {
        libc::mount(
            pointer(source),
            target.as_ptr(),
            pointer(fstype),
            c_ulong::from(flags),
            data.as_ref()
                .map_or(ptr::null(), |data| data.as_ptr().cast()),
        )
    };
    Errno::result(result).map(drop)
}

/// umount2(2)
pub fn umount(target: &CStr, flags: i32) -> Result<(), Errno> {
    // SAFETY: `target` is NUL-terminated.
    Errno::result(unsafe { libc::umount2(target.as_ptr(), flags) }).map(drop)
}

/// lseek(2)
pub fn lseek(fd: RawFd, offset: i64, whence: i32) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::lseek64(fd, offset, whence) }).map(drop)
}

/// Commands of fcntl(2) that take a number or nothing, besides those of every system.
pub const MORE_NUMERIC: &[c_int] = &[
    libc::F_SETLEASE,
    libc::F_GETLEASE,
    libc::F_NOTIFY,
    libc::F_GETPIPE_SZ,
    libc::F_SETPIPE_SZ,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];
