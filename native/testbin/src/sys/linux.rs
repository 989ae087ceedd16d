//! What Linux alone has.

pub mod break_out;
pub mod strike;

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::sys::resource::Resource;
use nix::unistd::Pid;

use crate::USAGE;

/// Those that not every system has.
pub const LIMITS: [(&str, Resource); 1] = [("as", Resource::RLIMIT_AS)];

/// Ends this process with `parent`, which may have ended already.
pub fn end_with_parent(parent: Pid) {
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if nix::unistd::getppid() != parent {
        std::process::exit(0);
    }
}

/// Those of the process that only Linux has.
pub fn attributes(lines: &mut Vec<String>) {
    let mut subreaper: libc::c_int = 0;
    let mut pdeathsig: libc::c_int = 0;
    // SAFETY: these prctl options store one int at the given, valid address, or take no address.
    let dumpable = unsafe {
        libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut subreaper);
        libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut pdeathsig);
        libc::prctl(libc::PR_GET_DUMPABLE)
    };
    lines.push(format!("dumpable={dumpable}"));
    lines.push(format!("subreaper={subreaper}"));
    lines.push(format!("pdeathsig={pdeathsig}"));
}

/// What came of each try to get hold of another process by what only Linux has.
pub fn attack(target: i32) -> [(&'static str, Result<(), Errno>); 4] {
    [
        ("exe", open_executable(target)),
        ("ptrace", seize(target)),
        ("vm_readv", read_memory(target)),
        ("pidfd_getfd", steal_descriptor(target)),
    ]
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// As runc was overwritten.
fn open_executable(pid: i32) -> Result<(), Errno> {
    let opened = OpenOptions::new()
        .write(true)
        .open(format!("/proc/{pid}/exe"));
    opened.map(drop).or_else(|_| {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_PATH);
        let reference = options.open(format!("/proc/{pid}/exe")).map_err(errno)?;
        let path = format!("/proc/self/fd/{}", reference.as_raw_fd());
        let opened = OpenOptions::new().write(true).open(path);
        opened.map(drop).map_err(errno)
    })
}

fn seize(target: i32) -> Result<(), Errno> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: SEIZE and DETACH take no memory of ours; a seized target keeps running.
    unsafe {
        Errno::result(libc::ptrace(libc::PTRACE_SEIZE, target, none, none))?;
        libc::ptrace(libc::PTRACE_DETACH, target, none, none);
    }
    Ok(())
}

/// Reads one byte at an address that is mapped in us; EFAULT would mean that we were let in.
fn read_memory(target: i32) -> Result<(), Errno> {
    use std::io::IoSliceMut;

    use nix::sys::uio::{process_vm_readv, RemoteIoVec};

    let mut byte = [0; 1];
    let base = std::ptr::from_ref(&USAGE).addr();
    let remote = [RemoteIoVec { base, len: 1 }];
    let local = &mut [IoSliceMut::new(&mut byte)];
    match process_vm_readv(Pid::from_raw(target), local, &remote) {
        Ok(_) | Err(Errno::EFAULT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn steal_descriptor(target: i32) -> Result<(), Errno> {
    // SAFETY: both calls take integers; each descriptor they return is new and ours alone.
    let (pidfd, stolen) = unsafe {
        let pidfd = Errno::result(libc::syscall(libc::SYS_pidfd_open, target, 0))?;
        let pidfd = OwnedFd::from_raw_fd(i32::try_from(pidfd).map_err(|_| Errno::EBADF)?);
        let number = std::os::fd::AsRawFd::as_raw_fd(&pidfd);
        let stolen = Errno::result(libc::syscall(libc::SYS_pidfd_getfd, number, 0, 0))?;
        let stolen = OwnedFd::from_raw_fd(i32::try_from(stolen).map_err(|_| Errno::EBADF)?);
        (pidfd, stolen)
    };
    drop((pidfd, stolen));
    Ok(())
}
