//! Tries to get hold of another process, by default its parent, and prints the outcome of each
//! try, `name=ok` or `name=ERRNO`. FAULTS row 28.
//!
//!     ptrace=  mem_read=  mem_write=  vm_readv=  fd_list=  pidfd_getfd=  environ=  kill=  exe=
//!
//! `kill` sends signal 0 only. An attached target is let go again. `exe` opens the executable for
//! writing, at once and by way of a reference to it, and writes nothing (ETXTBSY means that only
//! its being executed is in the way).
#![no_main]

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{getppid, Pid};
use stdio_testbin::*;

stdio_testbin::fixture!("attack-parent MARK [PID] [--life S]", run);

fn run(cli: &mut Cli) -> i32 {
    cli.life();
    cli.mark();
    let target = cli.optional_word("PID").unwrap_or(getppid().as_raw());
    cli.done();

    report("kill", kill(Pid::from_raw(target), None));
    report("mem_read", open(target, "mem", Access::Read));
    report("mem_write", open(target, "mem", Access::Write));
    report("environ", read(target, "environ"));
    report("fd_list", list(target));
    report("exe", open_executable(target));
    linux(target);
    0
}

fn report(name: &str, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => say(&format!("{name}=ok\n")),
        Err(error) => say(&format!("{name}={error:?}\n")),
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

enum Access {
    Read,
    Write,
}

fn open(pid: i32, file: &str, access: Access) -> Result<(), Errno> {
    let mut options = OpenOptions::new();
    match access {
        Access::Read => options.read(true),
        Access::Write => options.write(true),
    };
    let opened = options.open(format!("/proc/{pid}/{file}"));
    opened.map(drop).map_err(errno)
}

fn read(pid: i32, file: &str) -> Result<(), Errno> {
    let bytes = std::fs::read(format!("/proc/{pid}/{file}"));
    bytes.map(drop).map_err(errno)
}

fn list(pid: i32) -> Result<(), Errno> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(errno)? {
        std::fs::read_link(entry.map_err(errno)?.path()).map_err(errno)?;
    }
    Ok(())
}

/// As runc was overwritten.
fn open_executable(pid: i32) -> Result<(), Errno> {
    open(pid, "exe", Access::Write).or_else(|_| {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_PATH);
        let reference = options.open(format!("/proc/{pid}/exe")).map_err(errno)?;
        let path = format!("/proc/self/fd/{}", reference.as_raw_fd());
        let opened = OpenOptions::new().write(true).open(path);
        opened.map(drop).map_err(errno)
    })
}

#[cfg(target_os = "linux")]
fn linux(target: i32) {
    report("ptrace", seize(target));
    report("vm_readv", read_memory(target));
    report("pidfd_getfd", steal_descriptor(target));
}

#[cfg(not(target_os = "linux"))]
fn linux(_target: i32) {}

#[cfg(target_os = "linux")]
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
#[cfg(target_os = "linux")]
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

#[cfg(target_os = "linux")]
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
