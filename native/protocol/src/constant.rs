//! Names of constants, in any letter case, to the numbers that this system's headers define.

/// The families of names that calls decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Prio,
    Rlimit,
    Signal,
}

/// `(Family::Rlimit, "RLIMIT_core")` → its number; `None` where this system has no such name.
pub fn lookup(family: Family, name: &str) -> Option<i32> {
    let name = name.to_ascii_lowercase();
    table(family)
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

/// `15` → `"sigterm"`; `None` for a real-time signal.
pub fn name_of_signal(signal: i32) -> Option<&'static str> {
    SIGNAL
        .iter()
        .find(|(_, number)| *number == signal)
        .map(|(name, _)| *name)
}

fn table(family: Family) -> &'static [(&'static str, i32)] {
    match family {
        Family::Prio => PRIO,
        Family::Rlimit => RLIMIT,
        Family::Signal => SIGNAL,
    }
}

/// The resource and priority numbers are unsigned in glibc's headers; all are small.
macro_rules! small {
    ($constant:expr) => {{
        #[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast)]
        let number = $constant as i32;
        number
    }};
}

const PRIO: &[(&str, i32)] = &[
    ("prio_process", small!(libc::PRIO_PROCESS)),
    ("prio_pgrp", small!(libc::PRIO_PGRP)),
    ("prio_user", small!(libc::PRIO_USER)),
];

const RLIMIT: &[(&str, i32)] = &[
    ("rlimit_cpu", small!(libc::RLIMIT_CPU)),
    ("rlimit_fsize", small!(libc::RLIMIT_FSIZE)),
    ("rlimit_data", small!(libc::RLIMIT_DATA)),
    ("rlimit_stack", small!(libc::RLIMIT_STACK)),
    ("rlimit_core", small!(libc::RLIMIT_CORE)),
    ("rlimit_rss", small!(libc::RLIMIT_RSS)),
    ("rlimit_nproc", small!(libc::RLIMIT_NPROC)),
    ("rlimit_nofile", small!(libc::RLIMIT_NOFILE)),
    ("rlimit_memlock", small!(libc::RLIMIT_MEMLOCK)),
    ("rlimit_as", small!(libc::RLIMIT_AS)),
    #[cfg(target_os = "linux")]
    ("rlimit_locks", small!(libc::RLIMIT_LOCKS)),
    #[cfg(target_os = "linux")]
    ("rlimit_sigpending", small!(libc::RLIMIT_SIGPENDING)),
    #[cfg(target_os = "linux")]
    ("rlimit_msgqueue", small!(libc::RLIMIT_MSGQUEUE)),
    #[cfg(target_os = "linux")]
    ("rlimit_nice", small!(libc::RLIMIT_NICE)),
    #[cfg(target_os = "linux")]
    ("rlimit_rtprio", small!(libc::RLIMIT_RTPRIO)),
    #[cfg(target_os = "linux")]
    ("rlimit_rttime", small!(libc::RLIMIT_RTTIME)),
];

const SIGNAL: &[(&str, i32)] = &[
    ("sighup", libc::SIGHUP),
    ("sigint", libc::SIGINT),
    ("sigquit", libc::SIGQUIT),
    ("sigill", libc::SIGILL),
    ("sigtrap", libc::SIGTRAP),
    ("sigabrt", libc::SIGABRT),
    ("sigbus", libc::SIGBUS),
    ("sigfpe", libc::SIGFPE),
    ("sigkill", libc::SIGKILL),
    ("sigusr1", libc::SIGUSR1),
    ("sigsegv", libc::SIGSEGV),
    ("sigusr2", libc::SIGUSR2),
    ("sigpipe", libc::SIGPIPE),
    ("sigalrm", libc::SIGALRM),
    ("sigterm", libc::SIGTERM),
    ("sigchld", libc::SIGCHLD),
    ("sigcont", libc::SIGCONT),
    ("sigstop", libc::SIGSTOP),
    ("sigtstp", libc::SIGTSTP),
    ("sigttin", libc::SIGTTIN),
    ("sigttou", libc::SIGTTOU),
    ("sigurg", libc::SIGURG),
    ("sigxcpu", libc::SIGXCPU),
    ("sigxfsz", libc::SIGXFSZ),
    ("sigvtalrm", libc::SIGVTALRM),
    ("sigprof", libc::SIGPROF),
    ("sigwinch", libc::SIGWINCH),
    ("sigio", libc::SIGIO),
    #[cfg(target_os = "linux")]
    ("sigpwr", libc::SIGPWR),
    #[cfg(target_os = "linux")]
    ("sigstkflt", libc::SIGSTKFLT),
    ("sigsys", libc::SIGSYS),
];

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
}
