//! Ids, limits, environment, signals, children.

use nix::errno::Errno;
use nix::unistd::{self, Gid, Pid, Uid};
use stdio_protocol::constant;
use stdio_protocol::value::{Limit, Value, WaitFlags};

use super::{int, ok, ok_value, Context};
use crate::sys;

pub fn setsid() -> Result<Value, Errno> {
    ok_value(int(unistd::setsid()?.as_raw()))
}

pub fn getsid(pid: i32) -> Result<Value, Errno> {
    let leader = unistd::getsid(Some(Pid::from_raw(pid)))?;
    ok_value(int(leader.as_raw()))
}

pub fn setpgid(pid: i32, pgid: i32) -> Result<Value, Errno> {
    unistd::setpgid(Pid::from_raw(pid), Pid::from_raw(pgid))?;
    ok()
}

pub fn getpgrp() -> Result<Value, Errno> {
    Ok(int(unistd::getpgrp().as_raw()))
}

pub fn getpid() -> Result<Value, Errno> {
    Ok(int(unistd::getpid().as_raw()))
}

pub fn getuid() -> Result<Value, Errno> {
    Ok(int(unistd::getuid().as_raw()))
}

pub fn getgid() -> Result<Value, Errno> {
    Ok(int(unistd::getgid().as_raw()))
}

pub fn getresuid() -> Result<Value, Errno> {
    let ids = unistd::getresuid()?;
    let ids = [ids.real, ids.effective, ids.saved];
    Ok(Value::ok_with(ids.map(|id| int(id.as_raw()))))
}

pub fn getresgid() -> Result<Value, Errno> {
    let ids = unistd::getresgid()?;
    let ids = [ids.real, ids.effective, ids.saved];
    Ok(Value::ok_with(ids.map(|id| int(id.as_raw()))))
}

pub fn setuid(uid: u32) -> Result<Value, Errno> {
    unistd::setuid(Uid::from_raw(uid))?;
    ok()
}

pub fn setgid(gid: u32) -> Result<Value, Errno> {
    unistd::setgid(Gid::from_raw(gid))?;
    ok()
}

pub fn setresuid(real: u32, effective: u32, saved: u32) -> Result<Value, Errno> {
    let [real, effective, saved] = [real, effective, saved].map(Uid::from_raw);
    unistd::setresuid(real, effective, saved)?;
    ok()
}

pub fn setresgid(real: u32, effective: u32, saved: u32) -> Result<Value, Errno> {
    let [real, effective, saved] = [real, effective, saved].map(Gid::from_raw);
    unistd::setresgid(real, effective, saved)?;
    ok()
}

pub fn setgroups(groups: &[u32]) -> Result<Value, Errno> {
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    unistd::setgroups(&groups)?;
    ok()
}

pub fn getgroups() -> Result<Value, Errno> {
    let groups = unistd::getgroups()?.into_iter();
    ok_value(Value::List(groups.map(|gid| int(gid.as_raw())).collect()))
}

/// Groups first and the user id last, while root still may.
pub fn setugid(uid: u32, gid: u32, groups: &[u32]) -> Result<Value, Errno> {
    if !unistd::geteuid().is_root() {
        return ok();
    }
    setgroups(groups)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // The forbidden thing must not work.
    if uid != 0 && setresuid(0, 0, 0).is_ok() {
        return Err(Errno::EPERM);
    }
    ok()
}

pub fn setpriority(which: i32, who: u32, priority: i32) -> Result<Value, Errno> {
    sys::setpriority(which, who, priority)?;
    ok()
}

pub fn getpriority(which: i32, who: u32) -> Result<Value, Errno> {
    ok_value(int(sys::getpriority(which, who)?))
}

/// No descriptor in use may lie beyond the new limit of them; the helper's own end with exec, and do
/// not count.
pub fn setrlimit(context: &Context, resource: i32, limit: Limit) -> Result<Value, Errno> {
    let nofile = resource == sys::RLIMIT_NOFILE;
    if nofile && sys::uses_descriptors_from(limit.cur, &context.protected) {
        return Err(Errno::EINVAL);
    }
    sys::setrlimit(resource, limit)?;
    ok()
}

pub fn getrlimit(resource: i32) -> Result<Value, Errno> {
    let limit = sys::getrlimit(resource)?;
    ok_value(Value::Map(vec![
        (Value::atom("cur"), int(limit.cur)),
        (Value::atom("max"), int(limit.max)),
    ]))
}

pub fn gethostname() -> Result<Value, Errno> {
    ok_value(Value::Bytes(sys::gethostname()?))
}

pub fn sethostname(name: &[u8]) -> Result<Value, Errno> {
    sys::sethostname(name)?;
    ok()
}

pub fn environ(context: &Context) -> Result<Value, Errno> {
    let entries = context.environ.iter().cloned().map(Value::Bytes);
    Ok(Value::List(entries.collect()))
}

/// What stands after `NAME=`.
fn value_of<'a>(entry: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    entry.strip_prefix(name)?.strip_prefix(b"=")
}

fn is_variable_name(name: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&b'=')
}

pub fn getenv(context: &Context, name: &[u8]) -> Result<Value, Errno> {
    let found = context
        .environ
        .iter()
        .find_map(|entry| value_of(entry, name))
        .filter(|_| is_variable_name(name));
    Ok(found.map_or_else(
        || Value::atom("false"),
        |value| Value::Bytes(value.to_vec()),
    ))
}

pub fn setenv(
    context: &mut Context,
    name: &[u8],
    value: &[u8],
    overwrite: bool,
) -> Result<Value, Errno> {
    if !is_variable_name(name) {
        return Err(Errno::EINVAL);
    }
    let entry = [name, b"=", value].concat();
    let existing = context
        .environ
        .iter()
        .position(|entry| value_of(entry, name).is_some());
    match existing {
        None => context.environ.push(entry),
        Some(position) if overwrite => context.environ[position] = entry,
        Some(_) => {}
    }
    ok()
}

pub fn unsetenv(context: &mut Context, name: &[u8]) -> Result<Value, Errno> {
    if !is_variable_name(name) {
        return Err(Errno::EINVAL);
    }
    context
        .environ
        .retain(|entry| value_of(entry, name).is_none());
    ok()
}

pub fn clearenv(context: &mut Context) -> Result<Value, Errno> {
    context.environ.clear();
    ok()
}

pub fn setproctitle(title: &[u8]) -> Result<Value, Errno> {
    sys::set_title(title);
    ok()
}

/// The pid is the user's word, as in kill(1): a task has no authority beyond the user's own.
pub fn kill(pid: i32, signal: i32) -> Result<Value, Errno> {
    sys::kill(pid, signal)?;
    ok()
}

pub fn waitpid(context: &mut Context, pid: i32, flags: WaitFlags) -> Result<Value, Errno> {
    let (pid, status, ended) = sys::waitpid(pid, flags.as_int())?;
    context.ended.extend(ended);
    let tagged = |tag, value| Value::Tuple(vec![Value::atom(tag), value]);
    let signal = |number| Value::Atom(constant::signal_name(number));
    let change = match status {
        _ if pid == 0 => None,
        status if libc::WIFEXITED(status) => {
            Some(tagged("exit_status", int(libc::WEXITSTATUS(status))))
        }
        status if libc::WIFSIGNALED(status) => {
            Some(tagged("termsig", signal(libc::WTERMSIG(status))))
        }
        status if libc::WIFSTOPPED(status) => {
            Some(tagged("stopsig", signal(libc::WSTOPSIG(status))))
        }
        status if libc::WIFCONTINUED(status) => Some(Value::atom("continued")),
        _ => None,
    };
    let changes = Value::List(change.into_iter().collect());
    Ok(Value::ok_with([int(pid), int(status), changes]))
}
