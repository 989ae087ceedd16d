//! Names of constants, in any letter case, to the numbers that this system's headers define.
//!
//! The values are the libc crate's. Names of one system alone, and what the crate lacks, stand in
//! `sys`.

use crate::errno;
use crate::sys;
use crate::value::{BadArgument, Value};

/// Upper-case names and their numbers; of two names of one number the usual one comes first.
pub(crate) type Table = &'static [(&'static str, i64)];

/// The families of names that calls decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Cap,
    Clone,
    Fcntl,
    File,
    Ioctl,
    Mount,
    Prctl,
    Prio,
    /// `PROC_*`, `P_PID`, `P_PGID`.
    Procctl,
    Ptrace,
    Rlimit,
    Seccomp,
    Signal,
    Socket,
    /// `SYS_*` and `AUDIT_ARCH_*`.
    Syscall,
    Wait,
}

impl Family {
    pub const ALL: [Self; 16] = [
        Self::Cap,
        Self::Clone,
        Self::Fcntl,
        Self::File,
        Self::Ioctl,
        Self::Mount,
        Self::Prctl,
        Self::Prio,
        Self::Procctl,
        Self::Ptrace,
        Self::Rlimit,
        Self::Seccomp,
        Self::Signal,
        Self::Socket,
        Self::Syscall,
        Self::Wait,
    ];
}

/// `(Family::Rlimit, "RLIMIT_core")` → its number; `None` where this system has no such name.
pub fn lookup(family: Family, name: &str) -> Option<i64> {
    let number = entries(family)
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, number)| number)?;
    Some(match family {
        // An int in one C library, an unsigned long in another.
        Family::Ioctl => number & 0xffff_ffff,
        _ => number,
    })
}

/// `(Family::Signal, 9)` → `"sigkill"`: the usual name in lower case.
pub fn name(family: Family, number: i64) -> Option<String> {
    entries(family)
        .find(|(_, known)| *known == number)
        .map(|(name, _)| name.to_ascii_lowercase())
}

/// A signal as it is reported: `"sigkill"`, and `"unknown"` for real-time ones, whose meaning is
/// private to the program.
pub fn signal_name(number: i32) -> String {
    match number {
        32.. => "unknown".to_owned(),
        _ => name(Family::Signal, number.into()).unwrap_or_else(|| "unknown".to_owned()),
    }
}

/// The calls that need no task: `X_constant(name)`, `errno_id(number)` and `version()`.
pub fn query(call: &str, arguments: &[Value]) -> Result<Value, BadArgument> {
    let unknown = || Value::Atom("unknown".to_owned());
    let family = match call {
        "cap_constant" => Family::Cap,
        "clone_constant" => Family::Clone,
        "fcntl_constant" => Family::Fcntl,
        "file_constant" => Family::File,
        "ioctl_constant" => Family::Ioctl,
        "mount_constant" => Family::Mount,
        "prctl_constant" => Family::Prctl,
        "ptrace_constant" => Family::Ptrace,
        "rlimit_constant" => Family::Rlimit,
        "seccomp_constant" => Family::Seccomp,
        "signal_constant" => Family::Signal,
        "syscall_constant" => Family::Syscall,
        "errno_id" => {
            return match arguments {
                [Value::Int(number)] => i32::try_from(*number)
                    .map(|number| Value::Atom(errno::name(number)))
                    .map_err(|_| BadArgument::Type(0)),
                [_] => Err(BadArgument::Type(0)),
                _ => Err(BadArgument::Undefined),
            }
        }
        "version" if arguments.is_empty() => return Ok(Value::Bytes(crate::VERSION.into())),
        _ => return Err(BadArgument::Undefined),
    };
    match arguments {
        [Value::Atom(name)] => {
            Ok(lookup(family, name).map_or_else(unknown, |number| Value::Int(number.into())))
        }
        [_] => Err(BadArgument::Type(0)),
        _ => Err(BadArgument::Undefined),
    }
}

pub(crate) fn entries(family: Family) -> impl Iterator<Item = (&'static str, i64)> {
    tables(family).into_iter().flatten().copied()
}

/// What every system has, then its own.
fn tables(family: Family) -> [Table; 4] {
    let common = match family {
        Family::Prio => PRIO,
        Family::Rlimit => RLIMIT,
        Family::Signal => SIGNAL,
        Family::File => FILE,
        Family::Fcntl => FCNTL,
        Family::Wait => WAIT,
        _ => &[],
    };
    let [own, more, rest] = sys::tables(family);
    [common, own, more, rest]
}

/// The headers give the constants different types; the widest holds them all.
macro_rules! names {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), {
            #[allow(clippy::unnecessary_cast)]
            let number = libc::$name as i64;
            number
        })),*]
    };
}
pub(crate) use names;

const PRIO: Table = names![PRIO_PROCESS, PRIO_PGRP, PRIO_USER];

const WAIT: Table = names![WNOHANG, WUNTRACED, WCONTINUED];

const RLIMIT: Table = names![
    RLIMIT_CPU,
    RLIMIT_FSIZE,
    RLIMIT_DATA,
    RLIMIT_STACK,
    RLIMIT_CORE,
    RLIMIT_RSS,
    RLIMIT_NPROC,
    RLIMIT_NOFILE,
    RLIMIT_MEMLOCK,
];

const SIGNAL: Table = names![
    SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL, SIGUSR1, SIGSEGV,
    SIGUSR2, SIGPIPE, SIGALRM, SIGTERM, SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU,
    SIGURG, SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF, SIGWINCH, SIGIO, SIGSYS,
];

const FILE: Table = names![
    O_RDONLY,
    O_WRONLY,
    O_RDWR,
    O_CREAT,
    O_EXCL,
    O_NOCTTY,
    O_TRUNC,
    O_APPEND,
    O_NONBLOCK,
    O_SYNC,
    O_NOFOLLOW,
    O_CLOEXEC,
    O_DIRECTORY,
];

const FCNTL: Table = names![F_GETFD, F_SETFD, F_GETFL, F_SETFL];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_in_any_letter_case_and_unknown_ones_do_not() {
        assert_eq!(lookup(Family::Rlimit, "RLIMIT_CORE"), Some(4));
        assert_eq!(lookup(Family::Signal, "SigTerm"), Some(15));
        assert_eq!(lookup(Family::Prio, "prio_process"), Some(0));
        assert_eq!(lookup(Family::Prio, "sigterm"), None);
    }

    #[test]
    fn no_name_has_two_numbers() {
        for family in Family::ALL {
            let mut names: Vec<_> = entries(family).collect();
            names.sort_unstable();
            names.dedup();
            let all = names.len();
            names.dedup_by_key(|(name, _)| *name);
            assert_eq!(names.len(), all, "{family:?}");
        }
    }

    #[test]
    fn signals_are_reported_by_their_usual_names() {
        assert_eq!(signal_name(libc::SIGKILL), "sigkill");
        assert_eq!(signal_name(libc::SIGCHLD), "sigchld");
        assert_eq!(signal_name(libc::SIGABRT), "sigabrt");
        assert_eq!(signal_name(libc::SIGIO), "sigio");
        assert_eq!(signal_name(40), "unknown");
    }

    #[test]
    fn queries_need_no_task() {
        let atom = |name: &str| Value::Atom(name.to_owned());
        let ask = |call: &str, argument: Value| query(call, &[argument]);
        assert_eq!(ask("file_constant", atom("O_RDWR")), Ok(Value::Int(2)));
        assert_eq!(ask("file_constant", atom("foo")), Ok(atom("unknown")));
        assert_eq!(ask("errno_id", Value::Int(2)), Ok(atom("enoent")));
        assert_eq!(ask("errno_id", Value::Int(9999)), Ok(atom("unknown")));
        assert_eq!(ask("errno_id", atom("x")), Err(BadArgument::Type(0)));
        assert_eq!(ask("foo_constant", atom("x")), Err(BadArgument::Undefined));
        let version = Value::Bytes(crate::VERSION.into());
        assert_eq!(query("version", &[]), Ok(version));
    }
}
