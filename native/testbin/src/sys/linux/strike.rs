//! Runs the helper under ptrace(2) and strikes at one system call of one of its processes: kills
//! processes before the call is made, or has the call fail. FAULTS rows 3, 4, 5, 7 and 9.
//!
//! Unlike the other programs here it has no MARK: it stands in front of the helper as sudo would
//! (app env `:exec`), `strike PLAN HELPER [ARG...]`. PLAN is a file of lines, and is removed when it
//! has been read, so that the next launcher with the same prefix runs untouched:
//!
//! ```text
//! log FILE              what happens is appended to it
//! at ROLE COUNT         before the COUNTth system call of this process
//! kill ROLE...          SIGKILL for these, in order, ...
//! pause MICROSECONDS    ... with this between one and the next
//! error ERRNO           or: the call is not made, and fails
//! follow                programs are traced too, not only the helper
//! ```
//!
//! Roles: `launcher`, `root:1`, `root:2`, ... in the order of their births; likewise `task:1`, ... below
//! `root:1`, and `spare:1`, ... below the others; and `beam`, the parent of this process, whose end is
//! waited for. Lines of the log:
//!
//! ```text
//! born ROLE PID [init]
//! call ROLE COUNT NUMBER NAME
//! again ROLE COUNT      it has failed with EAGAIN
//! fired NANOSECONDS     since the epoch
//! exec ROLE
//! end ROLE
//! ```
//!
//! It ends when the last traced process has. If it is killed, they go on without it.

use std::collections::HashMap;
use std::ffi::{c_int, c_long, c_uint, c_void, CString};
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::ptr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const USAGE: &str = "usage: strike PLAN HELPER [ARG...]\n";
const LIFE_SECONDS: c_uint = 300;
/// How long the end of the BEAM is waited for.
const BEAM_DEADLINE_MS: c_int = 10_000;
const LAUNCHER: &str = "launcher";
const FIRST_ROOT: &str = "root:1";
const OTHER: &str = "other";

#[derive(Default)]
struct Plan {
    log: Option<File>,
    at: Option<(String, u64)>,
    kill: Vec<String>,
    pause: Duration,
    error: Option<i32>,
    follow: bool,
}

struct Tracee {
    role: String,
    calls: u64,
    /// To be put in the place of the result of the call that it is in.
    result: Option<i32>,
    program: bool,
}

struct Tracer {
    plan: Plan,
    beam: i32,
    tracees: HashMap<i32, Tracee>,
    /// By pid.
    roots: HashMap<i32, u32>,
    tasks: u32,
    spares: u32,
    fired: bool,
    due: Vec<(Instant, String)>,
}

pub fn run() {
    let mut words = std::env::args_os().skip(1);
    let (Some(path), argv) = (words.next(), words.collect::<Vec<_>>()) else {
        eprint!("{USAGE}");
        std::process::exit(crate::USAGE);
    };
    let argv: Vec<CString> = argv
        .into_iter()
        .filter_map(|word| CString::new(word.into_vec()).ok())
        .collect();
    if argv.is_empty() {
        eprint!("{USAGE}");
        std::process::exit(crate::USAGE);
    }
    let text = std::fs::read_to_string(&path).ok();
    let Some(plan) = text.map(|text| parse(&text)) else {
        exec(&argv);
    };
    let _ = std::fs::remove_file(&path);
    // SAFETY: takes a number; SIGALRM ends this process.
    unsafe { libc::alarm(LIFE_SECONDS) };
    let launcher = start(&argv);
    let mut tracer = Tracer {
        plan,
        // SAFETY: no precondition.
        beam: unsafe { libc::getppid() },
        tracees: HashMap::new(),
        roots: HashMap::new(),
        tasks: 0,
        spares: 0,
        fired: false,
        due: Vec::new(),
    };
    tracer.adopt(launcher, LAUNCHER.to_owned());
    tracer.run();
}

fn parse(text: &str) -> Plan {
    let mut plan = Plan::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["log", path] => {
                plan.log = File::options().append(true).create(true).open(path).ok();
            }
            ["at", role, count] => {
                plan.at = count.parse().ok().map(|count| ((*role).to_owned(), count));
            }
            ["kill", roles @ ..] => plan.kill = roles.iter().map(|r| (*r).to_owned()).collect(),
            ["pause", micros] => plan.pause = Duration::from_micros(micros.parse().unwrap_or(0)),
            ["error", errno] => plan.error = errno.parse().ok(),
            ["follow"] => plan.follow = true,
            [] => {}
            _ => {
                eprintln!("strike: not a line of a plan: {line}");
                std::process::exit(crate::USAGE);
            }
        }
    }
    plan
}

fn exec(argv: &[CString]) -> ! {
    let mut pointers: Vec<_> = argv.iter().map(|word| word.as_ptr()).collect();
    pointers.push(ptr::null());
    // SAFETY: `pointers` is a NULL-terminated array of strings that `argv` owns.
    unsafe {
        // Rust's start-up has it ignored.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::execv(pointers[0], pointers.as_ptr());
        libc::_exit(crate::OSERR)
    }
}

/// The launcher, seized, about to exec.
fn start(argv: &[CString]) -> i32 {
    let mut pipe = [0; 2];
    let mut byte = 0_u8;
    // SAFETY: single-threaded; the pointers are valid for the calls. The child only waits and execs.
    unsafe {
        if libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            std::process::exit(crate::OSERR);
        }
        let pid = libc::fork();
        if pid == 0 {
            libc::read(pipe[0], ptr::from_mut(&mut byte).cast(), 1);
            exec(argv);
        }
        let options = libc::PTRACE_O_TRACESYSGOOD
            | libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACEVFORK
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEEXEC;
        let seized = pid > 0 && ptrace(libc::PTRACE_SEIZE, pid, 0, i64::from(options));
        libc::write(pipe[1], ptr::from_ref(&byte).cast(), 1);
        if !seized {
            eprintln!("strike: ptrace: {}", std::io::Error::last_os_error());
            libc::kill(pid, libc::SIGKILL);
            std::process::exit(crate::OSERR);
        }
        // The socket and the pipe have to end when the helper's do.
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        for fd in 0..3 {
            libc::dup2(null, fd);
        }
        pid
    }
}

/// A request with numbers as arguments. False: the process is not there any more.
fn ptrace(request: c_uint, pid: i32, address: c_long, data: c_long) -> bool {
    // SAFETY: none of the requests made here takes `data` for a pointer.
    unsafe { libc::ptrace(request, pid, address, data) != -1 }
}

impl Tracer {
    fn log(&mut self, line: &str) {
        if let Some(log) = &mut self.plan.log {
            let _ = log.write_all(format!("{line}\n").as_bytes());
        }
    }

    fn adopt(&mut self, pid: i32, role: String) {
        let init = if is_init(pid) { " init" } else { "" };
        self.log(&format!("born {role} {pid}{init}"));
        let tracee = Tracee {
            role,
            calls: 0,
            result: None,
            program: false,
        };
        self.tracees.insert(pid, tracee);
    }

    fn run(&mut self) {
        loop {
            let now = Instant::now();
            while let Some((_, role)) = self.due.first().filter(|(at, _)| *at <= now).cloned() {
                self.due.remove(0);
                self.kill(&role);
            }
            let flags = if self.due.is_empty() {
                libc::__WALL
            } else {
                libc::__WALL | libc::WNOHANG
            };
            let mut status = 0;
            // SAFETY: `status` is valid for the call.
            let pid = unsafe { libc::waitpid(-1, &mut status, flags) };
            match pid {
                0 => std::thread::sleep(Duration::from_micros(100)),
                pid if pid > 0 => self.event(pid, status),
                _ => return,
            }
        }
    }

    fn event(&mut self, pid: i32, status: c_int) {
        if !libc::WIFSTOPPED(status) {
            if let Some(tracee) = self.tracees.remove(&pid) {
                self.log(&format!("end {}", tracee.role));
            }
            return;
        }
        let signal = libc::WSTOPSIG(status);
        match status >> 16 {
            libc::PTRACE_EVENT_STOP if !self.tracees.contains_key(&pid) => self.newborn(pid),
            libc::PTRACE_EVENT_STOP if signal != libc::SIGTRAP => {
                ptrace(libc::PTRACE_LISTEN, pid, 0, 0);
            }
            libc::PTRACE_EVENT_EXEC => self.executed(pid),
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_CLONE => self.forked(pid),
            0 if signal == libc::SIGTRAP | 0x80 => self.call(pid),
            0 => {
                ptrace(libc::PTRACE_SYSCALL, pid, 0, i64::from(signal));
            }
            _ => resume(pid),
        }
    }

    /// Numbers roots in the order in which the launcher forks them: it does not go on to the next before
    /// this is seen, while two of its children may be seen in any order.
    fn forked(&mut self, pid: i32) {
        let is_launcher = |tracee: &Tracee| tracee.role == LAUNCHER;
        if self.tracees.get(&pid).is_some_and(is_launcher) {
            let mut child: libc::c_ulong = 0;
            // SAFETY: PTRACE_GETEVENTMSG stores an unsigned long at `data`.
            let result = unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, pid, 0, &raw mut child) };
            if let (0, Ok(child)) = (result, i32::try_from(child)) {
                self.root(child);
            }
        }
        resume(pid);
    }

    fn root(&mut self, pid: i32) -> u32 {
        if let Some(number) = self.roots.get(&pid) {
            return *number;
        }
        let number = u32::try_from(self.roots.len()).map_or(0, |count| count + 1);
        self.roots.insert(pid, number);
        number
    }

    /// Its parent says what it is.
    fn newborn(&mut self, pid: i32) {
        let parent = status_line(pid, "PPid:").and_then(|parent| parent.parse().ok());
        let parent = parent.and_then(|parent: i32| self.tracees.get(&parent));
        let role = match parent {
            Some(parent) if parent.program => None,
            Some(parent) if parent.role == LAUNCHER => Some(format!("root:{}", self.root(pid))),
            Some(parent) if parent.role == FIRST_ROOT || parent.role.starts_with("task:") => {
                self.tasks += 1;
                Some(format!("task:{}", self.tasks))
            }
            Some(_) => {
                self.spares += 1;
                Some(format!("spare:{}", self.spares))
            }
            // Its parent is dead already.
            None => Some(OTHER.to_owned()),
        };
        match role {
            Some(role) => {
                self.adopt(pid, role);
                resume(pid);
            }
            None => {
                ptrace(libc::PTRACE_DETACH, pid, 0, 0);
            }
        }
    }

    fn executed(&mut self, pid: i32) {
        let follow = self.plan.follow;
        let Some(tracee) = self.tracees.get_mut(&pid) else {
            return resume(pid);
        };
        let role = tracee.role.clone();
        if role == LAUNCHER {
            return resume(pid);
        }
        tracee.program = true;
        self.log(&format!("exec {role}"));
        if follow {
            resume(pid);
        } else {
            // A program's children are nobody's concern, so it is not forgotten.
            ptrace(libc::PTRACE_DETACH, pid, 0, 0);
        }
    }

    fn call(&mut self, pid: i32) {
        let stop = syscall_stop(pid);
        let Some(tracee) = self.tracees.get_mut(&pid) else {
            return resume(pid);
        };
        let number = match stop {
            Some(Stop::Entry(number)) => number,
            Some(Stop::Exit(result)) => {
                if let Some(errno) = tracee.result.take() {
                    set_result(pid, errno);
                } else if result == -i64::from(libc::EAGAIN) {
                    let line = format!("again {} {}", tracee.role, tracee.calls);
                    self.log(&line);
                }
                return resume(pid);
            }
            None => return resume(pid),
        };
        tracee.calls += 1;
        let (role, calls) = (tracee.role.clone(), tracee.calls);
        self.log(&format!("call {role} {calls} {number} {}", name(number)));
        let due = self.plan.at.as_ref().is_some_and(|at| *at == (role, calls));
        if due && !self.fired {
            self.fired = true;
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            self.log(&format!("fired {}", now.map_or(0, |now| now.as_nanos())));
            if let (Some(errno), Some(tracee)) = (self.plan.error, self.tracees.get_mut(&pid)) {
                tracee.result = Some(errno);
                skip_call(pid);
            }
            let mut at = Instant::now();
            for (index, role) in self.plan.kill.clone().into_iter().enumerate() {
                if index == 0 {
                    self.kill(&role);
                } else {
                    at += self.plan.pause;
                    self.due.push((at, role));
                }
            }
            if self.plan.pause.is_zero() {
                for (_, role) in std::mem::take(&mut self.due) {
                    self.kill(&role);
                }
            }
        }
        resume(pid);
    }

    fn kill(&self, role: &str) {
        if role == "beam" {
            return end_beam(self.beam);
        }
        let victims = self.tracees.iter().filter(|(_, t)| t.role == role);
        for (pid, _) in victims {
            // SAFETY: takes numbers; the process is traced by this one, and so not reaped.
            unsafe { libc::kill(*pid, libc::SIGKILL) };
        }
    }
}

/// The others stay where they are until it is dead.
fn end_beam(beam: i32) {
    // SAFETY: takes numbers; this process's parent, which is asked for again, as it may have died.
    unsafe {
        if libc::getppid() != beam {
            return;
        }
        let pidfd = libc::syscall(libc::SYS_pidfd_open, beam, 0);
        libc::kill(beam, libc::SIGKILL);
        let mut poll = libc::pollfd {
            fd: c_int::try_from(pidfd).unwrap_or(-1),
            events: libc::POLLIN,
            revents: 0,
        };
        libc::poll(&mut poll, 1, BEAM_DEADLINE_MS);
        libc::close(poll.fd);
    }
}

fn resume(pid: i32) {
    ptrace(libc::PTRACE_SYSCALL, pid, 0, 0);
}

/// Where it has stopped. PTRACE_GET_SYSCALL_INFO, Linux 5.3
enum Stop {
    /// It is about to make the system call of this number.
    Entry(u64),
    /// It comes out of one with this result.
    Exit(i64),
}

fn syscall_stop(pid: i32) -> Option<Stop> {
    const GET_SYSCALL_INFO: c_uint = 0x420e;
    const ENTRY: u8 = 1;
    const EXIT: u8 = 2;
    // op and architecture, two addresses, then the number and its arguments, or the result.
    let mut info = [0_u64; 11];
    let size = std::mem::size_of_val(&info);
    // SAFETY: the kernel writes at most `size` bytes to `info`.
    let result = unsafe {
        libc::ptrace(
            GET_SYSCALL_INFO,
            pid,
            size,
            info.as_mut_ptr().cast::<c_void>(),
        )
    };
    match info[0].to_ne_bytes()[0] {
        _ if result <= 0 => None,
        ENTRY => Some(Stop::Entry(info[3])),
        EXIT => Some(Stop::Exit(info[3].cast_signed())),
        _ => None,
    }
}

#[cfg(target_arch = "x86_64")]
fn skip_call(pid: i32) {
    ptrace(
        libc::PTRACE_POKEUSER,
        pid,
        8 * i64::from(libc::ORIG_RAX),
        -1,
    );
}

#[cfg(target_arch = "x86_64")]
fn set_result(pid: i32, errno: i32) {
    let offset = 8 * i64::from(libc::RAX);
    ptrace(libc::PTRACE_POKEUSER, pid, offset, -i64::from(errno));
}

#[cfg(not(target_arch = "x86_64"))]
fn skip_call(_pid: i32) {
    eprintln!("strike: errors are for x86_64 only");
    std::process::exit(crate::USAGE);
}

#[cfg(not(target_arch = "x86_64"))]
fn set_result(_pid: i32, _errno: i32) {}

fn status_line(pid: i32, key: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(value.trim().to_owned())
}

/// PID 1 of a namespace below that of this process.
fn is_init(pid: i32) -> bool {
    let pids = status_line(pid, "NSpid:").unwrap_or_default();
    let pids: Vec<_> = pids.split_whitespace().collect();
    pids.len() > 1 && pids.last() == Some(&"1")
}

/// Of the calls that helpers make; of others the number says enough.
fn name(number: u64) -> &'static str {
    macro_rules! find {
        ($($call:ident)*) => {
            $(if i64::try_from(number) == Ok(libc::$call) {
                return stringify!($call).trim_start_matches("SYS_");
            })*
        };
    }
    #[cfg(target_arch = "x86_64")]
    find! {
        SYS_fstat SYS_mkdir SYS_getrlimit SYS_arch_prctl SYS_setrlimit SYS_poll SYS_dup2
        SYS_newfstatat SYS_readlink SYS_open SYS_stat SYS_lstat SYS_access
    }
    find! {
        SYS_read SYS_write SYS_close SYS_lseek SYS_mmap SYS_mprotect SYS_munmap SYS_brk
        SYS_rt_sigaction SYS_rt_sigprocmask SYS_ioctl SYS_writev SYS_madvise SYS_dup
        SYS_getpid SYS_socket SYS_socketpair SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg
        SYS_shutdown SYS_bind SYS_getsockname SYS_getpeername SYS_setsockopt SYS_getsockopt
        SYS_clone SYS_execve SYS_exit SYS_wait4 SYS_kill SYS_uname SYS_fcntl SYS_ftruncate
        SYS_getcwd SYS_chdir SYS_fchdir SYS_umask SYS_getuid SYS_getgid SYS_setuid
        SYS_setgid SYS_geteuid SYS_getegid SYS_setpgid SYS_getppid SYS_setsid SYS_getgroups
        SYS_setgroups SYS_setresuid SYS_getresuid SYS_setresgid SYS_getresgid SYS_getpgid
        SYS_getsid SYS_sigaltstack SYS_statfs SYS_prctl SYS_chroot SYS_mount SYS_umount2
        SYS_sethostname SYS_gettid SYS_futex SYS_getdents64 SYS_set_tid_address
        SYS_exit_group SYS_openat SYS_mkdirat SYS_fchmod SYS_fchmodat SYS_readlinkat
        SYS_unlinkat SYS_symlinkat SYS_ppoll SYS_set_robust_list SYS_signalfd4 SYS_dup3
        SYS_pipe2 SYS_prlimit64 SYS_sendmmsg SYS_setns SYS_seccomp SYS_getrandom
        SYS_memfd_create SYS_execveat SYS_statx SYS_rseq SYS_pidfd_send_signal
        SYS_pidfd_open SYS_clone3 SYS_close_range SYS_openat2 SYS_open_tree SYS_move_mount
        SYS_fsopen SYS_fsconfig SYS_fsmount SYS_mount_setattr SYS_capset SYS_capget
        SYS_pivot_root SYS_clock_nanosleep SYS_unshare SYS_fstatfs SYS_faccessat2
        SYS_restart_syscall SYS_setpriority SYS_tgkill SYS_landlock_create_ruleset
        SYS_landlock_add_rule SYS_landlock_restrict_self
    }
    "?"
}
