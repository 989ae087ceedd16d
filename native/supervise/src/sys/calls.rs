//! System calls of the table that the nix crate does not offer, or not for plain numbers.
//!
//! A descriptor here is a number that the user names. The callers have refused those that the
//! helper itself owns (`Context::protected`), so no `OwnedFd` is closed behind its back.

use std::ffi::{c_int, c_long, c_uint, c_ulong, CStr};
use std::os::fd::RawFd;
use std::ptr;

use nix::errno::Errno;
use stdio_protocol::value::{Limit, Timeval};

use super::Argument;

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

/// gethostname(2)
pub fn gethostname() -> Result<Vec<u8>, Errno> {
    // Linux allows 64 bytes.
    let mut name = vec![0_u8; 256];
    // SAFETY: pointer and length describe `name`.
    Errno::result(unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) })?;
    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or_default());
    Ok(name)
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

/// lseek(2)
pub fn lseek(fd: RawFd, offset: i64, whence: i32) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::lseek64(fd, offset, whence) }).map(drop)
}

/// fcntl(2), for commands that take a number or nothing; those that take an address are `EINVAL`.
pub fn fcntl(fd: RawFd, command: i32, argument: i64) -> Result<c_int, Errno> {
    const NUMERIC: &[c_int] = &[
        libc::F_DUPFD,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_GETOWN,
        libc::F_SETOWN,
        libc::F_SETLEASE,
        libc::F_GETLEASE,
        libc::F_NOTIFY,
        libc::F_GETPIPE_SZ,
        libc::F_SETPIPE_SZ,
        libc::F_ADD_SEALS,
        libc::F_GET_SEALS,
    ];
    if !NUMERIC.contains(&command) {
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
