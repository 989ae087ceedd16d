//! Calls that Linux alone has: namespaces, prctl, seccomp, capabilities, mounts below a root.

use std::os::fd::IntoRawFd;

use nix::errno::Errno;
use nix::unistd::{self, Pid};
use stdio_protocol::call::Call;
use stdio_protocol::value::{Capability, CloneFlags, Cstruct, Path, PtrArg, SeccompFlags, Value};

use super::mount_in;
use crate::call::{int, ok, ok_value, os, Context};
use crate::sys::Argument;

/// `ENOSYS`: it is another system's.
#[rustfmt::skip]
pub fn own(call: &Call, context: &Context) -> Result<Value, Errno> {
    match call {
        Call::Prctl { option, a2, a3, a4, a5 } => prctl(option.0, [a2, a3, a4, a5]),
        Call::Seccomp { operation, flags, arguments } => seccomp(operation.0, *flags, arguments),
        Call::Unshare { flags } => unshare(*flags),
        Call::Setns { fd, nstype } => setns(context.own(*fd)?, *nstype),
        Call::PivotRoot { new, old } => pivot_root(new, old),
        Call::BindIn { root, source, target, flags } => mount_in::bind_in(root, source, target, *flags),
        Call::DeviceIn { root, source, target } => mount_in::device_in(root, source, target),
        Call::MountIn { root, fstype, target, flags, data } => mount_in::mount_in(root, &fstype.0, target, *flags, data),
        Call::ProcIn { root, target, flags } => mount_in::proc_in(root, target, *flags),
        Call::RemountIn { root, target, flags } => mount_in::remount_in(root, target, *flags),
        Call::MkdirIn { root, path, mode } => mount_in::mkdir_in(root, path, *mode),
        Call::SymlinkIn { root, target, path } => mount_in::symlink_in(root, target, path),
        Call::LimitCapabilities { keep } => limit_capabilities(keep),
        Call::PidfdOpen { pid } => pidfd_open(*pid),
        Call::LandlockAbi {} => landlock_abi(),
        _ => Err(Errno::ENOSYS),
    }
}

fn pidfd_open(pid: i32) -> Result<Value, Errno> {
    let fd = super::pidfd_open(Pid::from_raw(pid))?;
    ok_value(int(fd.into_raw_fd()))
}

/// Also when it is root's. No capability is lost before the next exec.
fn limit_capabilities(keep: &[Capability]) -> Result<Value, Errno> {
    let bit = |capability: &Capability| {
        u32::try_from(capability.0)
            .ok()
            .and_then(|number| 1_u64.checked_shl(number))
            .ok_or(Errno::EINVAL)
    };
    let keep = keep
        .iter()
        .try_fold(0, |set, capability| Ok::<_, Errno>(set | bit(capability)?))?;
    super::limit_capabilities(keep)?;
    ok()
}

fn prctl(option: i32, arguments: [&PtrArg; 4]) -> Result<Value, Errno> {
    let [a2, a3, a4, a5] = arguments.map(Argument::new);
    let arguments = [&a2?, &a3?, &a4?, &a5?];
    let result = super::prctl(option, arguments)?;
    let echoes = arguments.into_iter().map(Argument::echo);
    Ok(Value::ok_with([int(result)].into_iter().chain(echoes)))
}

fn seccomp(operation: i32, flags: SeccompFlags, filter: &Cstruct) -> Result<Value, Errno> {
    super::seccomp(operation, flags.0, &Argument::structure(filter)?)?;
    ok()
}

fn landlock_abi() -> Result<Value, Errno> {
    ok_value(int(super::landlock_abi()?))
}

fn unshare(flags: CloneFlags) -> Result<Value, Errno> {
    // SAFETY: takes a number only. The kernel reads a whole register, of which an int is a half.
    let result = unsafe { libc::syscall(libc::SYS_unshare, libc::c_long::from(flags.as_int())) };
    Errno::result(result)?;
    ok()
}

fn setns(fd: i32, nstype: CloneFlags) -> Result<Value, Errno> {
    super::setns(fd, nstype.as_int())?;
    ok()
}

fn pivot_root(new: &Path, old: &Path) -> Result<Value, Errno> {
    unistd::pivot_root(os(new), os(old))?;
    ok()
}
