//! Namespaces, mounts, prctl, seccomp, ptrace.

use nix::errno::Errno;
use nix::sched::CloneFlags as Namespaces;
use nix::unistd::{self, getppid};
use stdio_protocol::value::{
    Capability, CloneFlags, Cstruct, Data, MountFlags, Path, PtrArg, SeccompFlags, Text, Value,
};

use super::{c_string, int, ok, ok_value, os, Context};
use crate::sys::{self, Argument};

pub fn no_new_privs() -> Result<Value, Errno> {
    nix::sys::prctl::set_no_new_privs()?;
    ok()
}

/// Also when it is root's. No capability is lost before the next exec.
pub fn limit_capabilities(keep: &[Capability]) -> Result<Value, Errno> {
    let bit = |capability: &Capability| {
        u32::try_from(capability.0)
            .ok()
            .and_then(|number| 1_u64.checked_shl(number))
            .ok_or(Errno::EINVAL)
    };
    let keep = keep
        .iter()
        .try_fold(0, |set, capability| Ok::<_, Errno>(set | bit(capability)?))?;
    sys::limit_capabilities(keep)?;
    ok()
}

/// The signal is sent when the parent ends from now on; if it has ended before, `ESRCH`.
pub fn set_pdeathsig(signal: i32, context: &Context) -> Result<Value, Errno> {
    let signal = nix::sys::signal::Signal::try_from(signal)?;
    nix::sys::prctl::set_pdeathsig(signal)?;
    match context.parent {
        Some(parent) if getppid() != parent => Err(Errno::ESRCH),
        _ => ok(),
    }
}

pub fn prctl(option: i32, arguments: [&PtrArg; 4]) -> Result<Value, Errno> {
    let [a2, a3, a4, a5] = arguments.map(Argument::new);
    let arguments = [&a2?, &a3?, &a4?, &a5?];
    let result = sys::prctl(option, arguments)?;
    let echoes = arguments.into_iter().map(Argument::echo);
    Ok(Value::ok_with([int(result)].into_iter().chain(echoes)))
}

pub fn seccomp(operation: i32, flags: SeccompFlags, filter: &Cstruct) -> Result<Value, Errno> {
    sys::seccomp(operation, flags.0, &Argument::structure(filter)?)?;
    ok()
}

pub fn landlock_abi() -> Result<Value, Errno> {
    ok_value(int(sys::landlock_abi()?))
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

pub fn unshare(flags: CloneFlags) -> Result<Value, Errno> {
    nix::sched::unshare(Namespaces::from_bits_retain(flags.as_int()))?;
    ok()
}

pub fn setns(fd: i32, nstype: CloneFlags) -> Result<Value, Errno> {
    sys::setns(fd, nstype.as_int())?;
    ok()
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

pub fn pivot_root(new: &Path, old: &Path) -> Result<Value, Errno> {
    unistd::pivot_root(os(new), os(old))?;
    ok()
}

pub fn chroot(path: &Path) -> Result<Value, Errno> {
    unistd::chroot(os(path))?;
    ok()
}
