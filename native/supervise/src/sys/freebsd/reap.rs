//! Finding and killing the processes of a tree: the kernel does both. procctl(2), PROC_REAP_*
//!
//! Rules:
//! 1. This process is a reaper: all that descends from it, and from no reaper below it, is its own.
//!    A reaper that is below it (a task made into a supervisor) is killed with the rest, and then
//!    what it had is this one's.
//! 2. A direct child that has not been reaped is signalled by its pid. All others are signalled by the
//!    kernel, which knows whose they are.
//! 3. `ECHILD` from wait means that the tree is empty.

use std::ffi::{c_int, c_uint};
use std::mem::zeroed;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::control;
use crate::sys;

/// sys/procctl.h
#[repr(C)]
struct ReaperStatus {
    flags: c_uint,
    children: c_uint,
    descendants: c_uint,
    reaper: libc::pid_t,
    pid: libc::pid_t,
    pad: [c_uint; 15],
}

#[repr(C)]
struct ReaperPids {
    count: c_uint,
    pad: [c_uint; 15],
    pids: *mut ReaperPid,
}

#[repr(C)]
#[derive(Clone)]
struct ReaperPid {
    pid: libc::pid_t,
    subtree: libc::pid_t,
    flags: c_uint,
    pad: [c_uint; 15],
}

#[repr(C)]
struct ReaperKill {
    signal: c_int,
    flags: c_uint,
    subtree: libc::pid_t,
    killed: c_uint,
    failed: libc::pid_t,
    pad: [c_uint; 15],
}

const REAPER_PIDINFO_VALID: c_uint = 1;
const REAPER_PIDINFO_CHILD: c_uint = 2;
const REAPER_KILL_SUBTREE: c_uint = 2;

/// Everything below this process, from PROC_REAP_GETPIDS.
fn descendants() -> Vec<ReaperPid> {
    // What is forked meanwhile is found by the next one who asks.
    const MORE: usize = 64;
    // SAFETY: plain data; zero is valid for all of it.
    let mut status: ReaperStatus = unsafe { zeroed() };
    if control(libc::PROC_REAP_STATUS, &mut status).is_err() {
        return Vec::new();
    }
    let count = usize::try_from(status.descendants).unwrap_or(0) + MORE;
    // SAFETY: as above.
    let mut found = vec![unsafe { zeroed::<ReaperPid>() }; count];
    // SAFETY: as above.
    let mut request: ReaperPids = unsafe { zeroed() };
    request.count = c_uint::try_from(found.len()).unwrap_or(c_uint::MAX);
    request.pids = found.as_mut_ptr();
    if control(libc::PROC_REAP_GETPIDS, &mut request).is_err() {
        return Vec::new();
    }
    // The kernel marks those that it has filled in.
    found.retain(|entry| entry.flags & REAPER_PIDINFO_VALID != 0);
    found
}

/// How many processes were signalled.
fn kill(signal: c_int, flags: c_uint, subtree: libc::pid_t) -> usize {
    // SAFETY: plain data; zero is valid for all of it.
    let mut request: ReaperKill = unsafe { zeroed() };
    request.signal = signal;
    request.flags = flags;
    request.subtree = subtree;
    match control(libc::PROC_REAP_KILL, &mut request) {
        // ESRCH: there is none. Another errno is that of one of them, `failed`.
        Err(Errno::ESRCH) => 0,
        _ => usize::try_from(request.killed.max(1)).unwrap_or(usize::MAX),
    }
}

/// Sends the signal once to every descendant of this process; returns how many were found.
pub fn signal_descendants(signal: i32) -> usize {
    kill(signal, 0, 0)
}

/// SIGKILL to every descendant, pass by pass; returns how many a pass found.
#[derive(Clone, Copy, Default)]
pub struct Killer;

impl Killer {
    pub fn pass(&mut self) -> usize {
        signal_descendants(libc::SIGKILL)
    }
}

/// SIGKILLs the direct children that are not in `spared`; returns how many there were.
pub fn kill_children_except(spared: impl Fn(Pid) -> bool) -> usize {
    let children = descendants().into_iter().filter(is_child);
    let orphans = children.map(|entry| Pid::from_raw(entry.pid));
    let mut found = 0;
    for orphan in orphans.filter(|pid| !spared(*pid)) {
        let _ = sys::kill(orphan.as_raw(), libc::SIGKILL);
        found += 1;
    }
    found
}

fn is_child(entry: &ReaperPid) -> bool {
    entry.flags & REAPER_PIDINFO_CHILD != 0
}

/// Signals one process, if it is a descendant of this one. Only a direct child is sure to be the one
/// that was meant; between the look and the signal another one may end, and its number be another's.
pub fn signal_if_descendant(pid: Pid, signal: i32) {
    if descendants().iter().any(|entry| entry.pid == pid.as_raw()) {
        let _ = sys::kill(pid.as_raw(), signal);
    }
}

/// SIGKILLs an unreaped child of this process with everything that descends from it, whatever session
/// it is in; returns how many processes the last pass found, the child included.
pub fn kill_subtree(child: Pid) -> usize {
    const PASSES: u32 = 64;
    let _ = sys::kill(child.as_raw(), libc::SIGKILL);
    // A task is no reaper: the kernel counts what it forked to its subtree, orphans too. Zombies that
    // nobody has collected are found as well, so that the passes are bounded.
    for _ in 0..PASSES {
        if kill(libc::SIGKILL, REAPER_KILL_SUBTREE, child.as_raw()) <= 1 {
            break;
        }
    }
    1
}
