//! Shows what a program was born with, one key=value per line. FAULTS rows 27, 29, 33, 41, 42.
//!
//!     fds=0,1,2              open descriptors, without the one used to list them
//!     fd.N=TARGET            what each is
//!     nonblock.N=0|1         O_NONBLOCK of each
//!     sigign= sigblk= sigcgt= sigpnd=   masks as in /proc/self/status (hexadecimal)
//!     pid= ppid= pgid= sid=  parent=NAME    the parent's name
//!     uid= gid=              real,effective,saved
//!     groups=                comma-separated
//!     nonewprivs= seccomp= capeff=   as in /proc/self/status
//!     dumpable= subreaper= pdeathsig=   from prctl(2)
//!     nofile= nproc= core= as=      limits as soft,hard
//!     umask= nice= cwd= comm= argc= environ=    the last: number of variables
//!
//! A line that cannot be had reads `key=ERRNO`, e.g. `groups=ENOENT` without /proc.
#![no_main]

use std::os::fd::{AsRawFd, RawFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::resource::{getrlimit, Resource};
use nix::sys::stat::{umask, Mode};
use nix::unistd::{getcwd, getpgrp, getpid, getppid, getresgid, getresuid, getsid};
use stdio_testbin::*;

stdio_testbin::fixture!("show-fds MARK", run);

fn run(cli: &mut Cli) -> i32 {
    cli.mark();
    cli.done();

    let mut lines = Vec::new();
    descriptors(&mut lines);
    status(&mut lines);
    identity(&mut lines);
    limits(&mut lines);
    lines.push(String::new());
    say(&lines.join("\n"));
    0
}

fn errno_name(error: Errno) -> String {
    format!("{error:?}")
}

fn descriptors(lines: &mut Vec<String>) {
    let fds = open_descriptors();
    let list: Vec<String> = fds.iter().map(ToString::to_string).collect();
    lines.push(format!("fds={}", list.join(",")));
    for fd in fds {
        let target = match nix::fcntl::readlink(format!("/proc/self/fd/{fd}").as_str()) {
            Ok(path) => path.to_string_lossy().into_owned(),
            Err(error) => errno_name(error),
        };
        lines.push(format!("fd.{fd}={target}"));
        // SAFETY: F_GETFL only reads the flags of whatever has this number.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        let nonblock = flags >= 0 && flags & libc::O_NONBLOCK != 0;
        lines.push(format!("nonblock.{fd}={}", u8::from(nonblock)));
    }
}

fn open_descriptors() -> Vec<RawFd> {
    let listed = Dir::open("/proc/self/fd", OFlag::O_RDONLY, Mode::empty()).map(|mut dir| {
        let own = dir.as_raw_fd();
        dir.iter()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok())
            .filter(|fd| *fd != own)
            .collect()
    });
    let mut fds: Vec<RawFd> = listed.unwrap_or_else(|_| {
        // No /proc here: ask for each number.
        (0..65536)
            // SAFETY: F_GETFD only reads the flags of whatever has this number.
            .filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0)
            .collect()
    });
    fds.sort_unstable();
    fds
}

fn status(lines: &mut Vec<String>) {
    let wanted = [
        ("SigIgn", "sigign"),
        ("SigBlk", "sigblk"),
        ("SigCgt", "sigcgt"),
        ("SigPnd", "sigpnd"),
        ("NoNewPrivs", "nonewprivs"),
        ("Seccomp", "seccomp"),
        ("CapEff", "capeff"),
        ("Groups", "groups"),
        ("Name", "comm"),
    ];
    match std::fs::read_to_string("/proc/self/status") {
        Ok(text) => {
            for (name, key) in wanted {
                let value = text
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                    .unwrap_or("");
                let words: Vec<&str> = value.split_whitespace().collect();
                lines.push(format!("{key}={}", words.join(",")));
            }
        }
        Err(error) => {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
            lines.extend(wanted.map(|(_, key)| format!("{key}={}", errno_name(errno))));
        }
    }
}

fn identity(lines: &mut Vec<String>) {
    let parent = std::fs::read_to_string(format!("/proc/{}/comm", getppid()));
    lines.push(format!("pid={}", getpid()));
    lines.push(format!("ppid={}", getppid()));
    lines.push(format!("parent={}", parent.unwrap_or_default().trim_end()));
    lines.push(format!("pgid={}", getpgrp()));
    lines.push(match getsid(None) {
        Ok(sid) => format!("sid={sid}"),
        Err(error) => format!("sid={}", errno_name(error)),
    });
    lines.push(match getresuid() {
        Ok(id) => format!("uid={},{},{}", id.real, id.effective, id.saved),
        Err(error) => format!("uid={}", errno_name(error)),
    });
    lines.push(match getresgid() {
        Ok(id) => format!("gid={},{},{}", id.real, id.effective, id.saved),
        Err(error) => format!("gid={}", errno_name(error)),
    });
    let mask = umask(Mode::empty());
    lines.push(format!("umask={:03o}", mask.bits()));
    // SAFETY: getpriority takes integers and reads one.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    lines.push(format!("nice={nice}"));
    lines.push(match getcwd() {
        Ok(path) => format!("cwd={}", path.display()),
        Err(error) => format!("cwd={}", errno_name(error)),
    });
    lines.push(format!("environ={}", std::env::vars_os().count()));
    stdio_testbin::sys::attributes(lines);
}

fn limits(lines: &mut Vec<String>) {
    let limits = [
        ("nofile", Resource::RLIMIT_NOFILE),
        ("nproc", Resource::RLIMIT_NPROC),
        ("core", Resource::RLIMIT_CORE),
    ];
    for (key, resource) in limits.into_iter().chain(stdio_testbin::sys::LIMITS) {
        lines.push(match getrlimit(resource) {
            Ok((soft, hard)) => format!("{key}={soft},{hard}"),
            Err(error) => format!("{key}={}", errno_name(error)),
        });
    }
}
