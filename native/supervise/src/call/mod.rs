//! What a call does, in the task, before exec.
//!
//! | file | calls |
//! |---|---|
//! | `process` | ids, limits, environment, signals, children |
//! | `isolation` | mounts, roots, privileges, ptrace |
//! | `file` | paths, descriptors, sockets |
//! | `sys::own` | what one system alone has |

mod file;
mod isolation;
mod process;
#[cfg(test)]
mod tests;

use std::ffi::{CString, OsStr};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::unistd::Pid;
use stdio_protocol::call::Call;
use stdio_protocol::value::{Path, Value};

use crate::sys::{self, Ended};

/// What calls need to know of the task, and what they change of it.
#[derive(Default)]
pub struct Context {
    /// The parent's pid as getppid(2) will give it; `None` across a PID namespace.
    pub parent: Option<Pid>,
    /// There, the read end of a pipe that hangs up when the parent ends.
    pub lifeline: Option<OwnedFd>,
    /// The environment that calls see, `KEY=value` each.
    pub environ: Vec<Vec<u8>>,
    /// Descriptors that the helper itself uses: to calls they do not exist.
    pub protected: Vec<RawFd>,
    /// Children that a call has waited for: nobody else will see their end.
    pub ended: Vec<Ended>,
}

impl Context {
    /// A descriptor that calls may use.
    pub fn own(&self, fd: RawFd) -> Result<RawFd, Errno> {
        match self.protected.contains(&fd) {
            true => Err(Errno::EBADF),
            false => Ok(fd),
        }
    }
}

/// A call that a signal interrupts is made again; its caller blocks all signals and can only have
/// been stopped (signal(7)). Not the two for which EINTR does not mean "not done", and not for ever.
const MAX_INTERRUPTIONS: usize = 16;

/// Runs one call in this process. Every call was checked when it was decoded.
pub fn apply(call: &Call, context: &mut Context) -> Result<Value, Errno> {
    for _ in 0..MAX_INTERRUPTIONS {
        match once(call, context) {
            Err(Errno::EINTR) if !matches!(call, Call::Close { .. } | Call::Connect { .. }) => {}
            result => return result,
        }
    }
    Err(Errno::EINTR)
}

#[rustfmt::skip]
fn once(call: &Call, context: &mut Context) -> Result<Value, Errno> {
    match call {
        Call::Setsid {} => process::setsid(),
        Call::Setpriority { which, who, priority } => process::setpriority(which.0, *who, *priority),
        Call::Chdir { path } => file::chdir(path),
        Call::Setrlimit { resource, limit } => process::setrlimit(context, resource.0, *limit),
        Call::Setugid { uid, gid, groups } => process::setugid(*uid, *gid, groups),
        Call::NoNewPrivs {} => isolation::no_new_privs(),
        Call::SetPdeathsig { signal } => isolation::set_pdeathsig(signal.0, context),

        Call::Getuid {} => process::getuid(),
        Call::Getgid {} => process::getgid(),
        Call::Getpgrp {} => process::getpgrp(),
        Call::Getpid {} => process::getpid(),
        Call::Getresuid {} => process::getresuid(),
        Call::Getresgid {} => process::getresgid(),
        Call::Getsid { pid } => process::getsid(*pid),
        Call::Setpgid { pid, pgid } => process::setpgid(*pid, *pgid),
        Call::Setuid { uid } => process::setuid(*uid),
        Call::Setgid { gid } => process::setgid(*gid),
        Call::Setresuid { real, effective, saved } => process::setresuid(*real, *effective, *saved),
        Call::Setresgid { real, effective, saved } => process::setresgid(*real, *effective, *saved),
        Call::Setgroups { groups } => process::setgroups(groups),
        Call::Getgroups {} => process::getgroups(),
        Call::Getrlimit { resource } => process::getrlimit(resource.0),
        Call::Gethostname {} => process::gethostname(),
        Call::Sethostname { name } => process::sethostname(&name.0),
        Call::Getcwd {} => file::getcwd(),
        Call::Getpriority { which, who } => process::getpriority(which.0, *who),
        Call::Environ {} => process::environ(context),
        Call::Getenv { name } => process::getenv(context, &name.0),
        Call::Setenv { name, value, overwrite } => process::setenv(context, &name.0, &value.0, *overwrite != 0),
        Call::Unsetenv { name } => process::unsetenv(context, &name.0),
        Call::Clearenv {} => process::clearenv(context),
        Call::Setproctitle { title } => process::setproctitle(&title.0),
        Call::Kill { pid, signal } => process::kill(*pid, signal.0),
        Call::Waitpid { pid, flags } => process::waitpid(context, *pid, *flags),

        Call::Ptrace { request, pid, addr, data } => isolation::ptrace(request.0, *pid, addr, data),
        Call::Mount { source, target, fstype, flags, data, options: _ } => isolation::mount(source, target, fstype, *flags, data),
        Call::Umount { path } => isolation::umount(path, 0),
        Call::Umount2 { path, flags } => isolation::umount(path, flags.as_int()),
        Call::Chroot { path } => isolation::chroot(path),

        Call::Open { path, flags, mode } => file::open(path, *flags, *mode),
        Call::Close { fd } => file::close(context.own(*fd)?),
        Call::Read { fd, count } => file::read(context.own(*fd)?, *count),
        Call::Write { fd, data } => file::write(context.own(*fd)?, &data.0),
        Call::WriteFile { path, data } => file::write_file(path, &data.0),
        Call::Lseek { fd, offset, whence } => file::lseek(context.own(*fd)?, *offset, *whence),
        Call::Fcntl { fd, command, argument } => file::fcntl(context.own(*fd)?, command.0, *argument),
        Call::Readdir { path } => file::readdir(path),
        Call::Mkdir { path, mode } => file::mkdir(path, *mode),
        Call::Rmdir { path } => file::rmdir(path),
        Call::Unlink { path } => file::unlink(path),
        Call::Mkfifo { path, mode } => file::mkfifo(path, *mode),
        Call::Chmod { path, mode } => file::chmod(path, *mode),
        Call::Chown { path, uid, gid } => file::chown(path, *uid, *gid),
        Call::Link { old, new } => file::link(old, new),
        Call::Symlink { target, path } => file::symlink(target, path),
        Call::Ioctl { fd, request, argument } => file::ioctl(context.own(*fd)?, request.0, argument),
        Call::Socket { domain, kind, protocol } => file::socket(domain.0, kind.0, protocol.0),
        Call::Connect { fd, address } => file::connect(context.own(*fd)?, address),
        Call::Select { read, write, except, timeout } => file::select(context, [read, write, except], timeout.0),

        // Of one system alone.
        call => sys::own(call, context),
    }
}

pub fn ok() -> Result<Value, Errno> {
    Ok(Value::atom("ok"))
}

pub fn int(number: impl Into<i128>) -> Value {
    Value::Int(number.into())
}

/// `{:ok, value}`
pub fn ok_value(value: Value) -> Result<Value, Errno> {
    Ok(Value::ok_with([value]))
}

pub fn os(path: &Path) -> &OsStr {
    OsStr::from_bytes(&path.0)
}

pub fn c_string(bytes: &[u8]) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno::EINVAL)
}

fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
