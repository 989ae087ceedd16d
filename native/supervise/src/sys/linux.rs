//! Linux: clone3, pidfds, /proc; and what stands in the files below.

mod calls;
mod cgroup;
mod events;
mod mount;
mod mount_in;
mod own;
pub mod reap;
mod title;

pub use {calls::*, cgroup::*, events::*, mount::*, own::*, title::*};

use std::convert::Infallible;
use std::ffi::{c_int, c_uint, CStr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{Gid, Pid, Uid};
use stdio_protocol::message::Namespaces;
use stdio_protocol::value::Limit;

use super::{die, Fork, Vector};

/// Sets every signal that allows it to its default action. rt_sigaction(2) itself, as the C
/// library refuses to touch two signals of its own, which a parent may have left ignored too.
pub fn default_dispositions() {
    const SIGNALS: c_int = 64;
    // handler SIG_DFL (0), no flags, no restorer, empty mask.
    let default = [0_u64; 4];
    let set_size = usize::try_from(SIGNALS / 8).unwrap_or_default();
    for signal in 1..=SIGNALS {
        // SAFETY: the array is as large as the kernel's struct sigaction on every architecture
        // (handler, flags, restorer where there is one, 64-bit mask), and SIG_DFL installs no
        // handler. The calls for SIGKILL and SIGSTOP fail, which is right.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                set_size,
            )
        };
    }
}

pub fn clear_environment() {
    // SAFETY: single-threaded (asserted at start): nobody reads the environment meanwhile.
    unsafe { libc::clearenv() };
}

/// Closes every descriptor from `first` on. close_range(2), Linux 5.9
pub fn close_from(first: c_uint) {
    // SAFETY: closing by number cannot touch memory; the callers own no OwnedFd at or above
    // `first` which is used or dropped afterwards.
    let result = unsafe { libc::close_range(first, c_uint::MAX, 0) };
    if result == -1 {
        die("close_range", Errno::last());
    }
}

/// Whether this helper makes a user namespace for what it has no privilege for.
pub fn needs_user_namespace(namespaces: Namespaces) -> bool {
    namespaces.user_if_unprivileged && !nix::unistd::geteuid().is_root()
}

/// The flags of clone(2) that make namespaces; nothing else may come from outside.
const NAMESPACES: c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;
/// CLONE_NEWTIME shares its bit with the exit signal mask of the old clone(2).
const CLONE_NEWTIME: u64 = 0x80;
pub const CLONE_NEWPID: u64 = libc::CLONE_NEWPID.unsigned_abs() as u64;
pub const CLONE_NEWUSER: u64 = libc::CLONE_NEWUSER.unsigned_abs() as u64;

/// A fork into the new namespaces that a plan asks for.
pub fn fork(namespaces: Namespaces) -> Result<Fork, Errno> {
    let mut flags = 0;
    if namespaces.net {
        flags |= libc::CLONE_NEWNET;
    }
    if namespaces.pid {
        flags |= libc::CLONE_NEWPID;
    }
    if needs_user_namespace(namespaces) {
        flags |= libc::CLONE_NEWUSER;
    }
    clone(u64::from(flags.unsigned_abs()))
}

/// clone3(2), Linux 5.3, with SIGCHLD and new namespaces; `EINVAL` for any other flag.
///
/// The raw call skips the C library's fork handlers. The process has one thread, so its
/// allocator cannot be caught in the middle, and the child may allocate.
pub fn clone(flags: u64) -> Result<Fork, Errno> {
    if flags & !(u64::from(NAMESPACES.unsigned_abs()) | CLONE_NEWTIME) != 0 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: clone_args is plain data; zero means "not used" for every field.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    // SAFETY: no CLONE_VM and no stack: the child gets a copy of the address space, as with
    // fork(2); `args` outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            ptr::from_mut(&mut args),
            std::mem::size_of::<libc::clone_args>(),
        )
    };
    match c_int::try_from(Errno::result(result)?) {
        Ok(0) => Ok(Fork::Child),
        Ok(pid) => Ok(Fork::Parent(Pid::from_raw(pid))),
        Err(_) => Err(Errno::EOVERFLOW),
    }
}

/// execveat(2) with AT_EMPTY_PATH, Linux 3.19. Returns only on failure.
pub fn execve_descriptor(fd: RawFd, argv: &Vector, env: &Vector) -> Result<Infallible, Errno> {
    // SAFETY: as execve; the path is the empty string.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd,
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(Errno::last())
}

/// Marks everything above 2 close-on-exec. close_range(2), Linux 5.11; before that one by one.
pub fn keep_only_standard_descriptors_at_exec() {
    // SAFETY: changes flags only.
    let result = unsafe {
        libc::close_range(
            3,
            c_uint::MAX,
            c_int::try_from(libc::CLOSE_RANGE_CLOEXEC).unwrap_or(4),
        )
    };
    match Errno::result(result) {
        Ok(_) => {}
        Err(Errno::EINVAL) => mark_descriptors(),
        Err(errno) => die("close_range", errno),
    }
}

fn mark_descriptors() {
    for fd in descriptors(3).into_iter().filter(|fd| *fd > 2) {
        // SAFETY: changes a flag of an open number.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
            die("fcntl", Errno::last());
        }
    }
}

/// setpriority(2)
pub fn setpriority(which: i32, who: u32, priority: i32) -> Result<(), Errno> {
    let which = c_uint::try_from(which).map_err(|_| Errno::EINVAL)?;
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::setpriority(which, who, priority) }).map(drop)
}

/// setrlimit(2)
pub fn setrlimit(resource: i32, limit: Limit) -> Result<(), Errno> {
    let resource = c_uint::try_from(resource).map_err(|_| Errno::EINVAL)?;
    let limit = libc::rlimit {
        rlim_cur: limit.cur,
        rlim_max: limit.max,
    };
    // SAFETY: `limit` is valid for the call.
    Errno::result(unsafe { libc::setrlimit(resource, &limit) }).map(drop)
}

/// The open descriptors. Without a /proc: 65536 of them from `first` on, as the kernel hands out the
/// lowest number that is free.
pub fn descriptors(first: u64) -> Vec<RawFd> {
    let listed: Option<Vec<RawFd>> = std::fs::read_dir("/proc/self/fd").ok().map(|directory| {
        let names = directory.filter_map(Result::ok);
        names
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    });
    let mut listed = listed.unwrap_or_else(|| {
        (first..=first.saturating_add(0xFFFF))
            .map_while(|fd| RawFd::try_from(fd).ok())
            .collect()
    });
    // The list's own is closed by now.
    listed.retain(|fd| {
        // SAFETY: reads a flag of a number, open or not.
        unsafe { libc::fcntl(*fd, libc::F_GETFD) != -1 }
    });
    listed
}

/// pidfd_open(2), Linux 5.3
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let fd = c_int::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just given this number to us (close-on-exec always).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The version of Landlock's interface. landlock_create_ruleset(2), Linux 5.13
pub fn landlock_abi() -> Result<c_int, Errno> {
    // LANDLOCK_CREATE_RULESET_VERSION
    const VERSION: c_uint = 1;
    // SAFETY: with this flag nothing is made, and the attribute has to be NULL and of size 0.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<libc::c_void>(),
            0_usize,
            VERSION,
        )
    };
    c_int::try_from(Errno::result(version)?).map_err(|_| Errno::EOVERFLOW)
}

/// pidfd_send_signal(2), Linux 5.1
pub fn pidfd_send_signal(pidfd: &OwnedFd, signal: i32) -> Result<(), Errno> {
    // SAFETY: a NULL siginfo means "as kill(2) would fill it"; the rest are numbers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// Direct children, from `/proc/PID/task/*/children` (CONFIG_PROC_CHILDREN), in the order that
/// the kernel gives. `None` where the file does not exist.
pub fn children(pid: Pid) -> Option<Vec<Pid>> {
    let mut found = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))
        .ok()?
        .flatten()
    {
        let list = std::fs::read_to_string(thread.path().join("children")).ok()?;
        found.extend(list.split_ascii_whitespace().filter_map(parse_pid));
    }
    Some(found)
}

/// Every process and its parent, from `/proc/PID/stat`: the slow way, for kernels without
/// `children` files.
pub fn parents() -> Vec<(Pid, Pid)> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| parse_pid(entry.file_name().to_str()?))
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect()
}

/// The parent's pid, from `/proc/PID/stat` field 4. The name before it may hold anything,
/// parentheses too, so it is read from the last one on.
pub fn parent(pid: Pid) -> Option<Pid> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
    parse_pid(rest.split_ascii_whitespace().nth(1)?)
}

fn parse_pid(text: &str) -> Option<Pid> {
    text.parse().ok().map(Pid::from_raw)
}

/// How `/proc` numbers processes: as the PID namespace does that it was mounted for, which may be an
/// outer one. Here a *number* is procfs's, a *pid* is what system calls of this process take.
pub struct Procfs {
    /// Of this process.
    me: Pid,
    /// Where NSpid has this process's namespace, if that is not the first.
    depth: Option<usize>,
}

impl Procfs {
    /// `None`: there is no `/proc`, or it belongs to a namespace that does not see this process.
    pub fn find() -> Option<Self> {
        let me = parse_pid(std::fs::read_link("/proc/self").ok()?.to_str()?)?;
        let outer = me != nix::unistd::getpid();
        let depth = outer
            .then(|| namespace_pids(me).len().checked_sub(1))
            .flatten();
        (depth.is_some() || !outer).then_some(Self { me, depth })
    }

    pub fn me(&self) -> Pid {
        self.me
    }

    /// `None`: it ended, or is in none of our namespaces.
    pub fn pid(&self, number: Pid) -> Option<Pid> {
        match self.depth {
            None => Some(number),
            Some(depth) => namespace_pids(number).get(depth).copied(),
        }
    }

    /// Of a direct child.
    pub fn number(&self, child: Pid) -> Option<Pid> {
        match self.depth {
            None => Some(child),
            Some(_) => children(self.me)?
                .into_iter()
                .find(|number| self.pid(*number) == Some(child)),
        }
    }
}

/// NSpid in `/proc/PID/status`, Linux 4.1: its pid in each namespace, from that of `/proc` on.
fn namespace_pids(number: Pid) -> Vec<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{number}/status")).unwrap_or_default();
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    pids.unwrap_or_default()
        .split_ascii_whitespace()
        .filter_map(parse_pid)
        .collect()
}

/// Ahead of every ordinary process, where that is permitted (CAP_SYS_NICE); not for what is forked
/// meanwhile. sched_setscheduler(2)
pub fn hurry() {
    if !HURRIES.swap(true, Ordering::Relaxed) {
        schedule(libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, 1);
    }
}

/// One among the others again.
pub fn calm_down() {
    if HURRIES.swap(false, Ordering::Relaxed) {
        schedule(libc::SCHED_OTHER, 0);
    }
}

static HURRIES: AtomicBool = AtomicBool::new(false);

fn schedule(policy: c_int, priority: c_int) {
    // SAFETY: sched_param is plain data; zero is valid for all of it.
    let mut parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    parameter.sched_priority = priority;
    // SAFETY: `parameter` outlives the call. Without the permission nothing changes.
    unsafe { libc::sched_setscheduler(0, policy, &parameter) };
}

/// Whether the process has a handler for the signal: bit `signal - 1` of SigCgt in
/// `/proc/PID/status`, proc(5).
pub fn catches(pid: Pid, signal: i32) -> bool {
    let caught = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    match (caught(), u32::try_from(signal)) {
        (Some(mask), Ok(signal @ 1..=64)) => mask & (1 << (signal - 1)) != 0,
        _ => false,
    }
}

/// Whether the process is PID 1 of a namespace below that of `/proc`.
pub fn leads_namespace(number: Pid) -> bool {
    let pids = namespace_pids(number);
    pids.len() > 1 && pids.last() == Some(&Pid::from_raw(1))
}

/// Maps one user and one group into the new user namespace of this process: ids inside, and those it
/// had outside. user_namespaces(7): setgroups must be denied before an unprivileged gid_map.
pub fn map_ids(uid: (u32, Uid), gid: (u32, Gid)) -> Result<(), Errno> {
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{} {} 1\n", uid.0, uid.1))?;
    write("gid_map", format!("{} {} 1\n", gid.0, gid.1))
}

/// The process that made the socket pair: readable once it has ended. It is a pidfd. SO_PEERPIDFD, Linux 6.5, unix(7)
pub fn watch_peer(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut fd: c_int = -1;
    let mut length = libc::socklen_t::try_from(std::mem::size_of::<c_int>()).ok()?;
    // SAFETY: both out-pointers are valid for the call, and `length` is the size of `fd`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            ptr::from_mut(&mut fd).cast(),
            &mut length,
        )
    };
    Errno::result(result).ok()?;
    // SAFETY: the kernel has just given this number to us (close-on-exec always).
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// In a forked child, which has no use for it.
pub fn forget_peer(peer: Option<OwnedFd>) {
    drop(peer);
}

/// Whether what this process leaves behind becomes its child. PR_SET_CHILD_SUBREAPER, prctl(2)
pub fn set_subreaper(subreaper: bool) -> Result<(), Errno> {
    prctl::set_child_subreaper(subreaper)
}

/// Whether a process of the same user can read this one's memory and take its descriptors
/// (ptrace(2), pidfd_getfd(2)). PR_SET_DUMPABLE, prctl(2)
pub fn set_inspectable(inspectable: bool) -> Result<(), Errno> {
    prctl::set_dumpable(inspectable)
}

/// What ps(1) shows as the command of this process, forked and never executed. PR_SET_NAME
pub fn set_name(name: &CStr) -> Result<(), Errno> {
    prctl::set_name(name)
}

/// PR_SET_NO_NEW_PRIVS, prctl(2)
pub fn no_new_privs() -> Result<(), Errno> {
    prctl::set_no_new_privs()
}

/// PR_SET_PDEATHSIG, prctl(2)
pub fn set_pdeathsig(signal: c_int) -> Result<(), Errno> {
    let signal = nix::sys::signal::Signal::try_from(signal)? as c_int;
    // SAFETY: takes numbers only. The kernel reads a whole register, of which an int is a half.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::c_long::from(signal)) };
    Errno::result(result).map(drop)
}

/// Permission bits, as wide as this system has them.
pub fn mode(bits: u32) -> libc::mode_t {
    bits
}

/// The NIF has it start one (POSIX_SPAWN_SETSID).
pub fn lead_session() {}

/// How many this process has, where that can be known.
pub fn threads() -> Option<usize> {
    let threads = std::fs::read_dir("/proc/self/task").ok()?;
    Some(threads.count())
}

/// The mode of the file that this process executes.
pub fn executable_mode() -> Option<libc::mode_t> {
    Some(nix::sys::stat::stat("/proc/self/exe").ok()?.st_mode)
}

/// Whether a child is PID 1 of a namespace, which never sees a signal that it does not catch.
pub fn drops_as_init(child: Pid, signal: c_int) -> bool {
    let number = Procfs::find().and_then(|procfs| procfs.number(child));
    number.is_some_and(|number| leads_namespace(number) && !catches(number, signal))
}
