//! Finding and killing the processes of a tree.
//!
//! Rules:
//! 1. A direct child that has not been reaped is signalled by its pid: the number cannot be
//!    given to anybody else meanwhile.
//! 2. Any other process is signalled through a pidfd, and only if, once the pidfd is open, its
//!    parent is a process of the tree: a stranger that was given the number has another parent.
//! 3. The caller is a subreaper, so what escapes one pass (a fork that races with the walk) is a
//!    child of the caller in the next. `ECHILD` from wait means that the tree is empty.
//! 4. `/proc` may number processes as an outer PID namespace does, see [`Procfs`]. PID 1 of a
//!    namespace needs no walk for all of it.

use std::collections::{HashMap, HashSet};

use nix::unistd::{getpgid, getpid, getsid, Pid};

use crate::sys::{self, Procfs};

/// Sends the signal once to every descendant of this process; returns how many were found (for
/// PID 1 of a namespace: 1 if there was any).
pub fn signal_descendants(signal: i32) -> usize {
    if is_init() {
        // The kernel walks: all in this namespace and those below it are descendants.
        return usize::from(sys::kill(-1, signal).is_ok());
    }
    let Some(procfs) = Procfs::find() else {
        return 0;
    };
    let tree = Tree::walk(&procfs, procfs.me());
    tree.signal(signal);
    tree.len()
}

/// Processes.
const MANY: usize = 64;

/// SIGKILL to every descendant, pass by pass; returns how many a pass found.
///
/// The first passes are cheap and end nearly every tree. One that forks faster than it is killed, or
/// replaces what dies, is stopped first, from the top, until a walk finds nobody who runs: what is
/// stopped does not fork, and notices no death.
#[derive(Clone, Copy, Default)]
pub struct Killer {
    passes: u32,
}

impl Killer {
    const CHEAP: u32 = 3;

    pub fn pass(&mut self) -> usize {
        self.passes = self.passes.saturating_add(1);
        if is_init() {
            return signal_descendants(libc::SIGKILL);
        }
        let Some(procfs) = Procfs::find() else {
            return 0;
        };
        let mut tree = Tree::walk(&procfs, procfs.me());
        if self.passes > Self::CHEAP || tree.len() >= MANY {
            stop_below(None);
            tree = Tree::walk(&procfs, procfs.me());
        }
        tree.signal(libc::SIGKILL);
        tree.len()
    }
}

/// SIGSTOP to every descendant of this process, or of a child of it and that too, until a walk meets
/// no new one, or there are ever more.
fn stop_below(child: Option<Pid>) {
    const WALKS: usize = 16;
    if let Some(child) = child {
        let _ = sys::kill(child.as_raw(), libc::SIGSTOP);
    }
    let mut stopped = HashSet::new();
    for _ in 0..WALKS {
        let Some(procfs) = Procfs::find() else {
            return;
        };
        let start = match child {
            None => Some(procfs.me()),
            Some(child) => procfs.number(child),
        };
        let before = stopped.len();
        let mut next: Vec<_> = start.into_iter().collect();
        while let Some(parent) = next.pop() {
            for number in sys::children(parent).unwrap_or_default() {
                // Stopped before its children are looked up, so that they are all there.
                if stopped.insert(number) {
                    hurry_if_many(stopped.len());
                    stop(&procfs, number, parent);
                }
                next.push(number);
            }
        }
        if stopped.len() == before {
            return;
        }
    }
}

/// Signals a process if it still is a child of the one that was just read, or was inherited from
/// that one by this process.
fn stop(procfs: &Procfs, number: Pid, parent: Pid) {
    let Some(pid) = procfs.pid(number) else {
        return;
    };
    let Ok(pidfd) = sys::pidfd_open(pid) else {
        return;
    };
    let is_ours = |found| found == parent || found == procfs.me();
    if procfs.pid(number) == Some(pid) && sys::parent(number).is_some_and(is_ours) {
        let _ = sys::pidfd_send_signal(&pidfd, libc::SIGSTOP);
    }
}

/// SIGKILLs the direct children that are not in `spared`; returns how many there were.
pub fn kill_children_except(spared: impl Fn(Pid) -> bool) -> usize {
    let mut found = 0;
    for orphan in children_of_this().into_iter().filter(|pid| !spared(*pid)) {
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
    let Some(procfs) = Procfs::find() else {
        return;
    };
    let tree = Tree::walk(&procfs, procfs.me());
    if tree.numbers().any(|number| procfs.pid(number) == Some(pid)) {
        let _ = sys::pidfd_send_signal(&pidfd, signal);
    }
}

/// SIGKILLs an unreaped child of this process with everything below it, in passes, until a walk
/// finds nothing below it; returns how many processes the last pass found, the child included.
///
/// What has left the child's tree by a double fork is the subreaper's. If that is this process, it
/// is found by its process group or session, as long as it has not left these too.
pub fn kill_subtree(child: Pid) -> usize {
    const PASSES: u32 = 64;
    let number = Procfs::find().and_then(|procfs| procfs.number(child));
    if number.is_some_and(sys::leads_namespace) {
        // The kernel ends all that is in there, and then it.
        let _ = sys::kill(child.as_raw(), libc::SIGKILL);
        return 1;
    }
    let mut seen = HashSet::new();
    for pass in 0..PASSES {
        if pass >= Killer::CHEAP {
            stop_below(Some(child));
        }
        let Some(procfs) = Procfs::find() else {
            let _ = sys::kill(child.as_raw(), libc::SIGKILL);
            break;
        };
        let below = procfs
            .number(child)
            .map(|number| Tree::walk(&procfs, number));
        let mut found = 0;
        for orphan in orphans_of(child) {
            let _ = sys::kill(orphan.as_raw(), libc::SIGKILL);
            if let Some(number) = procfs.number(orphan) {
                let tree = Tree::walk(&procfs, number);
                tree.signal(libc::SIGKILL);
            }
            // Killed, it may stay as a zombie for a while.
            found += usize::from(seen.insert(orphan));
        }
        // From the top, so that what is about to be forked is found below a dead parent.
        let _ = sys::kill(child.as_raw(), libc::SIGKILL);
        if let Some(tree) = below {
            tree.signal(libc::SIGKILL);
            found += tree.direct.len();
        }
        if found == 0 {
            break;
        }
    }
    1
}

/// PID 1 of a namespace: no helper is that of a whole system.
fn is_init() -> bool {
    getpid().as_raw() == 1
}

/// The direct children of this process that are in the group or the session that `child` leads. It
/// has not been reaped, so both numbers mean it.
fn orphans_of(child: Pid) -> Vec<Pid> {
    let linked = |pid: &Pid| getsid(Some(*pid)) == Ok(child) || getpgid(Some(*pid)) == Ok(child);
    children_of_this()
        .into_iter()
        .filter(|pid| *pid != child && linked(pid))
        .collect()
}

/// What is below a process, in procfs's numbers.
struct Tree<'p> {
    procfs: &'p Procfs,
    root: Pid,
    direct: Vec<Pid>,
    deeper: Vec<Pid>,
    all: HashSet<Pid>,
}

impl<'p> Tree<'p> {
    fn walk(procfs: &'p Procfs, root: Pid) -> Self {
        let lookup = Lookup::new(root);
        let direct = lookup.children(root);
        hurry_if_many(direct.len());
        let mut tree = Self {
            procfs,
            root,
            all: direct.iter().copied().collect(),
            direct,
            deeper: Vec::new(),
        };
        let mut next = tree.direct.clone();
        while let Some(number) = next.pop() {
            for child in lookup.children(number) {
                if tree.all.insert(child) {
                    tree.deeper.push(child);
                    next.push(child);
                    hurry_if_many(tree.all.len());
                }
            }
        }
        tree
    }

    fn numbers(&self) -> impl Iterator<Item = Pid> + '_ {
        self.direct.iter().chain(&self.deeper).copied()
    }

    fn len(&self) -> usize {
        self.direct.len() + self.deeper.len()
    }

    /// Ended ones and setuid programs of others: the next pass or the deadline sees to them.
    fn signal(&self, signal: i32) {
        // Unreaped children of this process keep their pids.
        let ours = self.root == self.procfs.me();
        for number in &self.direct {
            match self.procfs.pid(*number) {
                Some(pid) if ours => drop(sys::kill(pid.as_raw(), signal)),
                Some(pid) => self.signal_checked(*number, pid, signal),
                None => {}
            }
        }
        for number in &self.deeper {
            if let Some(pid) = self.procfs.pid(*number) {
                self.signal_checked(*number, pid, signal);
            }
        }
    }

    fn signal_checked(&self, number: Pid, pid: Pid, signal: i32) {
        let Ok(pidfd) = sys::pidfd_open(pid) else {
            return;
        };
        let me = self.procfs.me();
        // Its parent may have been killed since the walk, and then it is this process's.
        let ours = |parent| parent == self.root || parent == me || self.all.contains(&parent);
        let same = self.procfs.pid(number) == Some(pid);
        if same && sys::parent(number).is_some_and(ours) {
            let _ = sys::pidfd_send_signal(&pidfd, signal);
        }
    }
}

/// Thousands that spin would leave no time for walking and killing them. The event loop calms down
/// again.
fn hurry_if_many(found: usize) {
    if found >= MANY {
        sys::hurry();
    }
}

fn children_of_this() -> Vec<Pid> {
    let Some(procfs) = Procfs::find() else {
        return Vec::new();
    };
    let numbers = Lookup::new(procfs.me()).children(procfs.me());
    let pids = numbers.into_iter();
    pids.filter_map(|number| procfs.pid(number)).collect()
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
        for (number, parent) in sys::parents() {
            children.entry(parent).or_default().push(number);
        }
        Self::Snapshot(children)
    }

    fn children(&self, number: Pid) -> Vec<Pid> {
        match self {
            Self::Files => sys::children(number).unwrap_or_default(),
            Self::Snapshot(children) => children.get(&number).cloned().unwrap_or_default(),
        }
    }
}
