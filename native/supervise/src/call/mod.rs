//! What a step of a plan does, in the task, before exec.

use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{
    chdir, geteuid, getppid, setgroups, setresgid, setresuid, setsid, Gid, Pid, Uid,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use stdio_protocol::call::Call;
use stdio_protocol::value::Value;

use crate::sys;

/// What a task knows about its birth.
#[derive(Default)]
pub struct Context {
    /// The parent's pid as getppid(2) will give it; `None` across a PID namespace.
    pub parent: Option<Pid>,
    /// `KEY=value` each.
    pub environ: Vec<Vec<u8>>,
}

/// Runs one call in this process. Every call was checked when it was decoded.
pub fn apply(call: &Call, context: &mut Context) -> Result<Value, Errno> {
    match call {
        Call::Setsid {} => setsid().map(drop),
        Call::Setpriority {
            which,
            who,
            priority,
        } => sys::setpriority(which.0, *who, *priority),
        Call::Chdir { path } => chdir(OsStr::from_bytes(&path.0)),
        Call::Setrlimit { resource, limit } => sys::setrlimit(resource.0, *limit),
        Call::Setugid { uid, gid, groups } => setugid(*uid, *gid, groups),
        Call::NoNewPrivs {} => prctl::set_no_new_privs(),
        Call::SetPdeathsig { signal } => set_pdeathsig(signal.0, context),
    }
    .map(|()| Value::Atom("ok".to_owned()))
}

/// Groups first and the user id last, while root still may.
fn setugid(uid: u32, gid: u32, groups: &[u32]) -> Result<(), Errno> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&groups)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // The forbidden thing must not work.
    let root = Uid::from_raw(0);
    if !uid.is_root() && setresuid(root, root, root).is_ok() {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// The signal is sent when the parent ends from now on; if it has ended before, `ESRCH`.
fn set_pdeathsig(signal: i32, context: &Context) -> Result<(), Errno> {
    let signal = nix::sys::signal::Signal::try_from(signal)?;
    prctl::set_pdeathsig(signal)?;
    match context.parent {
        Some(parent) if getppid() != parent => Err(Errno::ESRCH),
        _ => Ok(()),
    }
}
