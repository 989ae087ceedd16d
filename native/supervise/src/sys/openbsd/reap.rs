//! Finding and killing the processes of a tree, by the kernel's list of processes. sysctl(2)
//!
//! Best effort, by name:
//! 1. A direct child that has not been reaped is signalled by its pid.
//! 2. What descends from a child is found by parents; what has lost its parent, which is init's then,
//!    by the session or process group that a child leads. What has left both is not found.
//! 3. Between a look and a signal a process that is no child may end, and its number be another's.

use std::collections::HashSet;
use std::ffi::c_int;
use std::ptr;

use nix::unistd::{getpid, Pid};

use crate::sys;

struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    group: i32,
}

/// All of the system. KERN_PROC_ALL
fn processes() -> Vec<Process> {
    // What is forked between the two calls.
    const MORE: usize = 64;
    let size = size_of::<libc::kinfo_proc>();
    let mut length = 0;
    list(&mut [], &mut length);
    let mut room = Vec::with_capacity(length / size + MORE);
    length = room.capacity() * size;
    if !list(room.spare_capacity_mut(), &mut length) {
        return Vec::new();
    }
    // SAFETY: the kernel has filled in `length` bytes, whole structures of plain data.
    unsafe { room.set_len(length / size) };
    let process = |found: &libc::kinfo_proc| Process {
        pid: found.p_pid,
        parent: found.p_ppid,
        session: found.p_sid,
        group: found.p__pgid,
    };
    room.iter().map(process).collect()
}

fn list(room: &mut [std::mem::MaybeUninit<libc::kinfo_proc>], length: &mut usize) -> bool {
    let int = |number: usize| c_int::try_from(number).unwrap_or(c_int::MAX);
    let (size, count) = (size_of::<libc::kinfo_proc>(), room.len());
    let name = [
        libc::CTL_KERN,
        libc::KERN_PROC,
        libc::KERN_PROC_ALL,
        0,
        int(size),
        // Asked for the length alone, it tells that of all.
        if count == 0 {
            c_int::MAX / 1024
        } else {
            int(count)
        },
    ];
    let place = match count {
        0 => ptr::null_mut(),
        _ => room.as_mut_ptr().cast(),
    };
    // SAFETY: the name has six numbers; `length` is the size of `room`, or there is none.
    let result = unsafe { libc::sysctl(name.as_ptr(), 6, place, length, ptr::null_mut(), 0) };
    result == 0
}

/// The children of this process, and what is below or beside them (rule 2), children first.
fn tree() -> (Vec<Pid>, Vec<Pid>) {
    let all = processes();
    let me = getpid().as_raw();
    let children: Vec<i32> = of_parent(&all, me).collect();
    let led = |number: i32| children.contains(&number);
    let beside = all
        .iter()
        .filter(|found| led(found.session) || led(found.group));
    let beside = beside.map(|found| found.pid);
    let known = beside.filter(|pid| *pid != me && !led(*pid));
    let below = walk(&all, children.clone(), known);
    let pids = |numbers: Vec<i32>| numbers.into_iter().map(Pid::from_raw).collect();
    (pids(children), pids(below))
}

fn of_parent(all: &[Process], parent: i32) -> impl Iterator<Item = i32> + '_ {
    let found = all.iter().filter(move |found| found.parent == parent);
    found.map(|found| found.pid)
}

/// `known`, and all that is below them and below `roots`.
fn walk(all: &[Process], roots: Vec<i32>, known: impl Iterator<Item = i32>) -> Vec<i32> {
    let mut below: Vec<i32> = known.collect();
    let mut seen: HashSet<i32> = roots.iter().chain(&below).copied().collect();
    let mut next = [roots, below.clone()].concat();
    while let Some(parent) = next.pop() {
        for pid in of_parent(all, parent) {
            if seen.insert(pid) {
                below.push(pid);
                next.push(pid);
            }
        }
    }
    below
}

fn signal_all(pids: &[Pid], signal: i32) {
    for pid in pids {
        let _ = sys::kill(pid.as_raw(), signal);
    }
}

/// Sends the signal once to every descendant that is found; returns how many these are.
pub fn signal_descendants(signal: i32) -> usize {
    let (children, below) = tree();
    signal_all(&children, signal);
    signal_all(&below, signal);
    children.len() + below.len()
}

/// SIGKILL to every descendant, pass by pass; returns how many a pass found.
#[derive(Clone, Copy, Default)]
pub struct Killer;

impl Killer {
    pub fn pass(&mut self) -> usize {
        signal_descendants(libc::SIGKILL)
    }
}

/// SIGKILLs the direct children that are not in `spared`; returns how many there were. There is no
/// subreaper, so what a dead supervisor has left is not among them.
pub fn kill_children_except(spared: impl Fn(Pid) -> bool) -> usize {
    let (mut children, _) = tree();
    children.retain(|pid| !spared(*pid));
    signal_all(&children, libc::SIGKILL);
    children.len()
}

/// Signals one process, if it is found to be a descendant of this one.
pub fn signal_if_descendant(pid: Pid, signal: i32) {
    let (children, below) = tree();
    if children.contains(&pid) || below.contains(&pid) {
        let _ = sys::kill(pid.as_raw(), signal);
    }
}

/// SIGKILLs an unreaped child of this process with everything below it, and what is in the session or
/// the group that it leads, in passes, until none finds a new one; returns 1, for the child.
pub fn kill_subtree(child: Pid) -> usize {
    const PASSES: u32 = 64;
    let root = child.as_raw();
    let mut seen = HashSet::new();
    for _ in 0..PASSES {
        let all = processes();
        let beside = all
            .iter()
            .filter(|found| found.session == root || found.group == root)
            .map(|found| found.pid)
            .filter(|pid| *pid != root);
        let below = walk(&all, vec![root], beside);
        let _ = sys::kill(root, libc::SIGKILL);
        let mut found = false;
        for pid in below {
            let _ = sys::kill(pid, libc::SIGKILL);
            // Killed, it may stay as a zombie for a while.
            found |= seen.insert(pid);
        }
        if !found {
            break;
        }
    }
    1
}
