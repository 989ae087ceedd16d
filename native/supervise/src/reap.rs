//! Finding and killing the processes of a tree.
//!
//! Rules:
//! 1. A direct child that has not been reaped is signalled by its pid: the number cannot be
//!    given to anybody else meanwhile.
//! 2. Any other process is signalled through a pidfd, and only if, once the pidfd is open, its
//!    parent is a process of the tree: a stranger that was given the number has another parent.
//! 3. The caller is a subreaper, so what escapes one pass (a fork that races with the walk) is a
//!    child of the caller in the next. `ECHILD` from wait means that the tree is empty.

use std::collections::{HashMap, HashSet};

use nix::unistd::{getpgid, getpid, getsid, Pid};

use crate::sys;

/// Sends the signal once to every descendant of this process; returns how many were found.
pub fn signal_descendants(signal: i32) -> usize {
    let me = getpid();
    let tree = Tree::walk(me);
    for pid in &tree.direct {
        // Ended ones and setuid programs of others: the next pass or the deadline sees to them.
        let _ = sys::kill(pid.as_raw(), signal);
    }
    for pid in &tree.deeper {
        signal_deeper(*pid, signal, &tree);
    }
    tree.direct.len() + tree.deeper.len()
}

/// SIGKILLs the direct children that are not in `spared`; returns how many there were.
pub fn kill_children_except(spared: impl Fn(Pid) -> bool) -> usize {
    let mut found = 0;
    for orphan in children_of(getpid())
        .into_iter()
        .filter(|pid| !spared(*pid))
    {
        let _ = sys::kill(orphan.as_raw(), libc::SIGKILL);
        found += 1;
    }
    found
}

/// Signals one process, if it is a descendant of this one once its pidfd is open.
pub fn signal_if_descendant(pid: Pid, signal: i32) {
    let Ok(pidfd) = sys::pidfd_open(pid) else {
        return;
    };
    let me = getpid();
    let mut ancestor = sys::parent(pid);
    while let Some(process) = ancestor {
        if process == me {
            let _ = sys::pidfd_send_signal(&pidfd, signal);
            return;
        }
        ancestor = match process.as_raw() {
            0 | 1 => None,
            _ => sys::parent(process),
        };
    }
}

/// SIGKILLs an unreaped child of this process with everything below it, in passes, until a walk
/// finds nothing below it; returns how many processes the last pass found, the child included.
///
/// What has left the child's tree by a double fork is the subreaper's. If that is this process, it
/// is found by its process group or session, as long as it has not left these too.
pub fn kill_subtree(child: Pid) -> usize {
    const PASSES: usize = 64;
    let mut seen = HashSet::new();
    for _ in 0..PASSES {
        let mut tree = Tree::walk(child);
        for orphan in orphans_of(child) {
            let _ = sys::kill(orphan.as_raw(), libc::SIGKILL);
            let below = Tree::walk(orphan);
            for pid in below.direct.iter().chain(&below.deeper) {
                signal_deeper(*pid, libc::SIGKILL, &below);
            }
            // Killed, it may stay as a zombie for a while.
            if seen.insert(orphan) {
                tree.direct.push(orphan);
            }
        }
        // From the top, so that what is about to be forked is found below a dead parent.
        let _ = sys::kill(child.as_raw(), libc::SIGKILL);
        for pid in tree.direct.iter().chain(&tree.deeper) {
            signal_deeper(*pid, libc::SIGKILL, &tree);
        }
        if tree.direct.is_empty() {
            break;
        }
    }
    1
}

/// The direct children of this process that are in the group or the session that `child` leads. It
/// has not been reaped, so both numbers mean it.
fn orphans_of(child: Pid) -> Vec<Pid> {
    let linked = |pid: &Pid| getsid(Some(*pid)) == Ok(child) || getpgid(Some(*pid)) == Ok(child);
    children_of(getpid())
        .into_iter()
        .filter(|pid| *pid != child && linked(pid))
        .collect()
}

struct Tree {
    root: Pid,
    direct: Vec<Pid>,
    deeper: Vec<Pid>,
    all: HashSet<Pid>,
}

impl Tree {
    fn walk(root: Pid) -> Self {
        let lookup = Lookup::new(root);
        let direct = lookup.children(root);
        let mut tree = Self {
            root,
            all: direct.iter().copied().collect(),
            direct,
            deeper: Vec::new(),
        };
        let mut next = tree.direct.clone();
        while let Some(pid) = next.pop() {
            for child in lookup.children(pid) {
                if tree.all.insert(child) {
                    tree.deeper.push(child);
                    next.push(child);
                }
            }
        }
        tree
    }
}

fn signal_deeper(pid: Pid, signal: i32, tree: &Tree) {
    let Ok(pidfd) = sys::pidfd_open(pid) else {
        return;
    };
    // Its parent may have been killed since the walk, and then it is this process's.
    let ours = |parent| parent == tree.root || parent == getpid() || tree.all.contains(&parent);
    if sys::parent(pid).is_some_and(ours) {
        let _ = sys::pidfd_send_signal(&pidfd, signal);
    }
}

fn children_of(pid: Pid) -> Vec<Pid> {
    Lookup::new(pid).children(pid)
}

/// Where the kernel has no `children` files, one walk over all of /proc stands for them.
enum Lookup {
    Files,
    Snapshot(HashMap<Pid, Vec<Pid>>),
}

impl Lookup {
    fn new(root: Pid) -> Self {
        if sys::children(root).is_some() {
            return Self::Files;
        }
        let mut children: HashMap<_, Vec<_>> = HashMap::new();
        for (pid, parent) in sys::parents() {
            children.entry(parent).or_default().push(pid);
        }
        Self::Snapshot(children)
    }

    fn children(&self, pid: Pid) -> Vec<Pid> {
        match self {
            Self::Files => sys::children(pid).unwrap_or_default(),
            Self::Snapshot(children) => children.get(&pid).cloned().unwrap_or_default(),
        }
    }
}
