//! Mounts, roots, privileges, ptrace. Calls of one system alone: see `sys::own`.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::{self, getppid};
use stdio_protocol::value::{Data, MountFlags, Path, PtrArg, Text, Value};

use super::{c_string, int, ok, os, Context};
use crate::sys::{self, Argument};

pub fn no_new_privs() -> Result<Value, Errno> {
    sys::no_new_privs()?;
    ok()
}

/// The signal is sent when the parent ends from now on; if it has ended before, `ESRCH`.
pub fn set_pdeathsig(signal: i32, context: &Context) -> Result<Value, Errno> {
    sys::set_pdeathsig(signal)?;
    match parent_has_ended(context)? {
        true => Err(Errno::ESRCH),
        false => ok(),
    }
}

/// getppid(2) is 0 across a PID namespace, before and after.
fn parent_has_ended(context: &Context) -> Result<bool, Errno> {
    match (context.parent, &context.lifeline) {
        (Some(parent), _) => Ok(getppid() != parent),
        (None, Some(lifeline)) => {
            // Hanging up is reported unasked.
            let mut fds = [PollFd::new(lifeline.as_fd(), PollFlags::empty())];
            Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
        }
        (None, None) => Ok(false),
    }
}

pub fn ptrace(request: i32, pid: i32, addr: &PtrArg, data: &PtrArg) -> Result<Value, Errno> {
    let (addr, data) = (Argument::new(addr)?, Argument::new(data)?);
    let result = sys::ptrace(request, pid, &addr, &data)?;
    #[allow(clippy::useless_conversion)]
    let result = i64::from(result);
    Ok(Value::ok_with([
        int(result),
        addr.contents(),
        data.contents(),
    ]))
}

/// An empty source, type or data is NULL.
pub fn mount(
    source: &Text,
    target: &Path,
    fstype: &Text,
    flags: MountFlags,
    data: &Data,
) -> Result<Value, Errno> {
    let nullable = |text: &Text| match text.0.is_empty() {
        true => Ok(None),
        false => c_string(&text.0).map(Some),
    };
    sys::mount(
        nullable(source)?.as_deref(),
        &c_string(&target.0)?,
        nullable(fstype)?.as_deref(),
        flags.0,
        (!data.0.is_empty()).then_some(data.0.as_slice()),
    )?;
    ok()
}

pub fn umount(path: &Path, flags: i32) -> Result<Value, Errno> {
    sys::umount(&c_string(&path.0)?, flags)?;
    ok()
}

pub fn chroot(path: &Path) -> Result<Value, Errno> {
    unistd::chroot(os(path))?;
    ok()
}
