//! Linux: clone3, wait4, pidfds, /proc.

use std::convert::Infallible;
use std::ffi::{c_int, c_long, c_uint, CStr, CString};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::signalfd::siginfo;
use nix::unistd::{Gid, Pid, Uid};
use stdio_protocol::message::{Exit, Namespaces, Usage};
use stdio_protocol::value::Limit;

/// Ends this process with the protocol's status after saying why on fd 2.
pub fn die(call: &str, errno: Errno) -> ! {
    let _ = writeln!(std::io::stderr(), "stdio-supervise: {call}: {errno}");
    exit(2)
}

/// _exit(2): no atexit handler of the parent's runs in a forked child.
pub fn exit(status: i32) -> ! {
    // SAFETY: _exit(2) has no precondition.
    unsafe { libc::_exit(status) }
}

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

/// The two sides of a fork.
pub enum Fork {
    Parent(Pid),
    Child,
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

/// An ended child.
pub struct Ended {
    pub pid: Pid,
    pub exit: Exit,
    pub usage: Usage,
}

/// waitpid(2): the pid, 0 if nothing has happened, the status as the kernel encodes it, and the child's
/// end if that is what happened.
pub fn waitpid(pid: i32, flags: i32) -> Result<(i32, i32, Option<Ended>), Errno> {
    let mut status = 0;
    // SAFETY: rusage is plain data, and all zero is a value of it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both out-pointers are valid for the call.
    let pid = Errno::result(unsafe { libc::wait4(pid, &mut status, flags, &mut usage) })?;
    let over = pid > 0 && (libc::WIFEXITED(status) || libc::WIFSIGNALED(status));
    let ended = over.then(|| Ended {
        pid: Pid::from_raw(pid),
        exit: exit_of(status),
        usage: usage_of(&usage),
    });
    Ok((pid, status, ended))
}

/// How often a call that cannot fail otherwise is tried.
const MAX_TRIES: usize = 16;

/// wait4(2) for any child, without waiting. `Ok(None)`: none has ended; `ECHILD`: there is none. An
/// end that is not collected now may never be asked for again, so no other error is taken at its word.
pub fn wait_any() -> Result<Option<Ended>, Errno> {
    let mut status = 0;
    // SAFETY: rusage is plain data, and all zero is a value of it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    for _ in 0..MAX_TRIES {
        // SAFETY: both out-pointers are valid for the call.
        let pid = unsafe { libc::wait4(-1, &mut status, libc::WNOHANG, &mut usage) };
        return match Errno::result(pid) {
            Ok(0) => Ok(None),
            Ok(pid) => Ok(Some(Ended {
                pid: Pid::from_raw(pid),
                exit: exit_of(status),
                usage: usage_of(&usage),
            })),
            Err(Errno::ECHILD) => Err(Errno::ECHILD),
            Err(_) => continue,
        };
    }
    Err(Errno::EAGAIN)
}

fn exit_of(status: c_int) -> Exit {
    if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Status(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX))
    }
}

fn usage_of(usage: &libc::rusage) -> Usage {
    let count = |value: c_long| u64::try_from(value).unwrap_or(0);
    let micros = |time: libc::timeval| count(time.tv_sec) * 1_000_000 + count(time.tv_usec);
    Usage {
        utime_us: micros(usage.ru_utime),
        stime_us: micros(usage.ru_stime),
        maxrss_kib: count(usage.ru_maxrss),
        minflt: count(usage.ru_minflt),
        majflt: count(usage.ru_majflt),
        inblock: count(usage.ru_inblock),
        oublock: count(usage.ru_oublock),
        nvcsw: count(usage.ru_nvcsw),
        nivcsw: count(usage.ru_nivcsw),
    }
}

/// NULL-terminated arrays for execve(2), built before the fork.
pub struct Vector {
    _strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl Vector {
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect();
        Self {
            // A CString's bytes are on the heap and do not move with it.
            _strings: strings,
            pointers,
        }
    }
}

/// execve(2). Returns only on failure.
pub fn execve(file: &CStr, argv: &Vector, env: &Vector) -> Result<Infallible, Errno> {
    // SAFETY: `file` is NUL-terminated; both arrays end with NULL and point to strings that the
    // vectors own.
    unsafe { libc::execve(file.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr()) };
    Err(Errno::last())
}

/// execveat(2) with AT_EMPTY_PATH, Linux 3.19. Returns only on failure.
pub fn execve_descriptor(fd: RawFd, argv: &Vector, env: &Vector) -> Result<Infallible, Errno> {
    // SAFETY: as execve; the path is the empty string.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd,
            c"".as_ptr(),
            argv.pointers.as_ptr(),
            env.pointers.as_ptr(),
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

/// Ignores a signal, or gives it its default action. An ignored one stays so in the program.
pub fn set_ignored(signal: c_int, ignored: bool) -> Result<(), Errno> {
    let action = if ignored {
        libc::SIG_IGN
    } else {
        libc::SIG_DFL
    };
    // SAFETY: neither installs a handler.
    let result = unsafe { libc::signal(signal, action) };
    if result == libc::SIG_ERR {
        return Err(Errno::last());
    }
    Ok(())
}

/// siginfo_t, 128 bytes, from what signalfd gives: the fields that kill(2), sigqueue(3) and the
/// kernel's SIGCHLD fill, at their places in the 64-bit structure (sigaction(2)).
pub fn siginfo(info: &siginfo) -> Vec<u8> {
    let mut raw = vec![0; 128];
    let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &info.ssi_signo.to_ne_bytes());
    put(4, &info.ssi_errno.to_ne_bytes());
    put(8, &info.ssi_code.to_ne_bytes());
    put(16, &info.ssi_pid.to_ne_bytes());
    put(20, &info.ssi_uid.to_ne_bytes());
    if info.ssi_signo == libc::SIGCHLD.unsigned_abs() {
        put(24, &info.ssi_status.to_ne_bytes());
        put(32, &info.ssi_utime.to_ne_bytes());
        put(40, &info.ssi_stime.to_ne_bytes());
    } else {
        put(24, &info.ssi_ptr.to_ne_bytes());
    }
    raw
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

/// Whether a descriptor numbered `first` or above is open, `except` those.
pub fn uses_descriptors_from(first: u64, except: &[RawFd]) -> bool {
    descriptors(first)
        .into_iter()
        .any(|fd| u64::try_from(fd).is_ok_and(|fd| fd >= first) && !except.contains(&fd))
}

/// The open descriptors. Without a /proc: 65536 of them from `first` on, as the kernel hands out the
/// lowest number that is free.
fn descriptors(first: u64) -> Vec<RawFd> {
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

/// kill(2) with a raw number, real-time signals included. `pid` may name a group (negative).
///
/// Only for children that this process has not reaped, or groups which such a child leads.
pub fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
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

/// Moves descriptors to 3 and up in their order, close-on-exec, and closes all others above 2.
pub fn keep(fds: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, Errno> {
    let fds: Vec<RawFd> = fds.into_iter().map(IntoRawFd::into_raw_fd).collect();
    let places = || 3..;
    let end = places()
        .zip(&fds)
        .map(|(place, _)| place + 1)
        .last()
        .unwrap_or(3);
    let mut sources = Vec::with_capacity(fds.len());
    for (place, fd) in places().zip(fds) {
        // None may be overwritten by another's move.
        sources.push(match fd != place && (3..end).contains(&fd) {
            // SAFETY: duplicates a descriptor that we own; the copy is closed below.
            true => Errno::result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, end) })?,
            false => fd,
        });
    }
    for (place, fd) in places().zip(&sources) {
        if *fd != place {
            // SAFETY: whatever stood there was the parent's; this process does not use it.
            Errno::result(unsafe { libc::dup3(*fd, place, libc::O_CLOEXEC) })?;
        }
    }
    close_from(end.unsigned_abs());
    // SAFETY: they were just put there, and nothing else owns them.
    Ok((3..end)
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect())
}

/// fd 0 as an owned descriptor. The helper has one control socket at a time, and it is fd 0.
pub fn own_stdin() -> OwnedFd {
    // SAFETY: fd 0 is open (`standard_descriptors`), the standard library never closes it, and
    // the helper does not read from `std::io::stdin`.
    unsafe { OwnedFd::from_raw_fd(0) }
}

/// Puts `new` in the place of `old`, which is fd 0.
pub fn replace_stdin(old: OwnedFd, new: OwnedFd) -> Result<OwnedFd, Errno> {
    // Not closed but replaced in one step: 0 must never be free for something else.
    let _ = old.into_raw_fd();
    nix::unistd::dup2_stdin(&new)?;
    Ok(own_stdin())
}

/// The process that made the socket pair, as a pidfd. SO_PEERPIDFD, Linux 6.5, unix(7)
pub fn peer_pidfd(socket: &OwnedFd) -> Option<OwnedFd> {
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

/// A copy of a descriptor out of the way of 0-9, close-on-exec.
pub fn duplicate_high(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) };
    let copy = Errno::result(copy)?;
    // SAFETY: the kernel has just given this number to us.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
