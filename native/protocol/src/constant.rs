//! Names of constants, in any letter case, to the numbers that this system's headers define.
//!
//! The values are the libc crate's (`linux`, generated); what it lacks stands here and in `uapi`.

use crate::errno;
use crate::value::{BadArgument, Value};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod uapi;

/// Upper-case names and their numbers; of two names of one number the usual one comes first.
type Table = &'static [(&'static str, i64)];

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
    pub const ALL: [Self; 15] = [
        Self::Cap,
        Self::Clone,
        Self::Fcntl,
        Self::File,
        Self::Ioctl,
        Self::Mount,
        Self::Prctl,
        Self::Prio,
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

fn entries(family: Family) -> impl Iterator<Item = (&'static str, i64)> {
    tables(family).into_iter().flatten().copied()
}

fn tables(family: Family) -> [Table; 3] {
    match family {
        Family::Prio => [PRIO, &[], &[]],
        Family::Rlimit => [RLIMIT, RLIMIT_LINUX, &[]],
        Family::Signal => [SIGNAL, SIGNAL_LINUX, &[]],
        Family::File => [FILE, FILE_LINUX, &[]],
        Family::Fcntl => [FCNTL, FCNTL_LINUX, &[]],
        Family::Wait => [WAIT, &[], &[]],
        #[cfg(target_os = "linux")]
        Family::Cap => [CAP, &[], &[]],
        #[cfg(target_os = "linux")]
        Family::Clone => [linux::CLONE, &[], &[]],
        #[cfg(target_os = "linux")]
        Family::Ioctl => [linux::IOCTL, uapi::IOCTL, &[]],
        #[cfg(target_os = "linux")]
        Family::Mount => [linux::MOUNT, MOUNT_PORTABLE, &[]],
        #[cfg(target_os = "linux")]
        Family::Prctl => [linux::PRCTL, uapi::PRCTL, &[]],
        #[cfg(target_os = "linux")]
        Family::Ptrace => [linux::PTRACE, uapi::PTRACE, uapi::PTRACE_REGISTERS],
        #[cfg(target_os = "linux")]
        Family::Seccomp => [linux::SECCOMP, &[], &[]],
        #[cfg(target_os = "linux")]
        Family::Socket => [linux::SOCKET, SOCKET_TYPES, uapi::SOCKET],
        #[cfg(target_os = "linux")]
        Family::Syscall => [linux::SYSCALL, AUDIT_ARCH, &[]],
        #[cfg(not(target_os = "linux"))]
        _ => [&[], &[], &[]],
    }
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
use names;

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
    RLIMIT_AS,
];

#[cfg(not(target_os = "linux"))]
const RLIMIT_LINUX: Table = &[];
#[cfg(target_os = "linux")]
const RLIMIT_LINUX: Table = &[
    ("RLIMIT_LOCKS", 10),
    ("RLIMIT_SIGPENDING", 11),
    ("RLIMIT_MSGQUEUE", 12),
    ("RLIMIT_NICE", 13),
    ("RLIMIT_RTPRIO", 14),
    ("RLIMIT_RTTIME", 15),
    // How many there are, not one of them; deprecated in the crate because it grows.
    ("RLIMIT_NLIMITS", 16),
];

const SIGNAL: Table = names![
    SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL, SIGUSR1, SIGSEGV,
    SIGUSR2, SIGPIPE, SIGALRM, SIGTERM, SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU,
    SIGURG, SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF, SIGWINCH, SIGIO, SIGSYS,
];

#[cfg(not(target_os = "linux"))]
const SIGNAL_LINUX: Table = &[];
#[cfg(target_os = "linux")]
const SIGNAL_LINUX: Table = &[
    ("SIGPWR", libc::SIGPWR as i64),
    ("SIGSTKFLT", libc::SIGSTKFLT as i64),
    ("SIGPOLL", libc::SIGPOLL as i64),
    ("SIGIOT", libc::SIGABRT as i64),
    ("SIGCLD", libc::SIGCHLD as i64),
    ("SIGUNUSED", libc::SIGSYS as i64),
    // The C library keeps 32 and 33 for itself.
    ("SIGRTMIN", 34),
    ("SIGRTMAX", 64),
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

#[cfg(not(target_os = "linux"))]
const FILE_LINUX: Table = &[];
#[cfg(target_os = "linux")]
const FILE_LINUX: Table = names![
    O_NDELAY,
    O_DSYNC,
    O_DIRECT,
    O_LARGEFILE,
    O_NOATIME,
    O_PATH,
    O_RSYNC,
    O_TMPFILE,
    O_ASYNC,
];

const FCNTL: Table = names![F_GETFD, F_SETFD, F_GETFL, F_SETFL];

#[cfg(not(target_os = "linux"))]
const FCNTL_LINUX: Table = &[];
#[cfg(target_os = "linux")]
const FCNTL_LINUX: Table = names![
    F_GETPIPE_SZ,
    F_SETPIPE_SZ,
    F_DUPFD,
    F_DUPFD_CLOEXEC,
    F_GETOWN,
    F_SETOWN,
    F_SETLEASE,
    F_GETLEASE,
    F_NOTIFY,
    F_ADD_SEALS,
    F_GET_SEALS,
];

/// Names of mount flags that the BSDs know as well.
#[cfg(target_os = "linux")]
#[allow(clippy::unnecessary_cast)]
const MOUNT_PORTABLE: Table = &[
    ("RDONLY", libc::MS_RDONLY as i64),
    ("NOSUID", libc::MS_NOSUID as i64),
    ("NOEXEC", libc::MS_NOEXEC as i64),
    ("NOATIME", libc::MS_NOATIME as i64),
];

/// Defined for each architecture by itself.
#[cfg(target_os = "linux")]
const SOCKET_TYPES: Table = names![
    SOCK_STREAM,
    SOCK_DGRAM,
    SOCK_RAW,
    SOCK_RDM,
    SOCK_SEQPACKET,
    SOCK_DCCP,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
];

/// linux/capability.h
#[cfg(target_os = "linux")]
const CAP: Table = &[
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_DAC_READ_SEARCH", 2),
    ("CAP_FOWNER", 3),
    ("CAP_FSETID", 4),
    ("CAP_KILL", 5),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_SETPCAP", 8),
    ("CAP_LINUX_IMMUTABLE", 9),
    ("CAP_NET_BIND_SERVICE", 10),
    ("CAP_NET_BROADCAST", 11),
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_IPC_LOCK", 14),
    ("CAP_IPC_OWNER", 15),
    ("CAP_SYS_MODULE", 16),
    ("CAP_SYS_RAWIO", 17),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_PACCT", 20),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_SYS_BOOT", 22),
    ("CAP_SYS_NICE", 23),
    ("CAP_SYS_RESOURCE", 24),
    ("CAP_SYS_TIME", 25),
    ("CAP_SYS_TTY_CONFIG", 26),
    ("CAP_MKNOD", 27),
    ("CAP_LEASE", 28),
    ("CAP_AUDIT_WRITE", 29),
    ("CAP_AUDIT_CONTROL", 30),
    ("CAP_SETFCAP", 31),
    ("CAP_MAC_OVERRIDE", 32),
    ("CAP_MAC_ADMIN", 33),
    ("CAP_SYSLOG", 34),
    ("CAP_WAKE_ALARM", 35),
    ("CAP_BLOCK_SUSPEND", 36),
    ("CAP_AUDIT_READ", 37),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
    ("CAP_CHECKPOINT_RESTORE", 40),
    ("CAP_LAST_CAP", 40),
];

/// linux/audit.h: an ELF machine number with two marks. Those that Linux still runs on.
#[cfg(target_os = "linux")]
const AUDIT_ARCH: Table = {
    const BITS_64: i64 = 0x8000_0000;
    const LITTLE: i64 = 0x4000_0000;
    const N32: i64 = 0x2000_0000;
    &[
        ("AUDIT_ARCH_AARCH64", 183 | BITS_64 | LITTLE),
        ("AUDIT_ARCH_ALPHA", 0x9026 | BITS_64 | LITTLE),
        ("AUDIT_ARCH_ARM", 40 | LITTLE),
        ("AUDIT_ARCH_ARMEB", 40),
        ("AUDIT_ARCH_CSKY", 252 | LITTLE),
        ("AUDIT_ARCH_HEXAGON", 164),
        ("AUDIT_ARCH_I386", 3 | LITTLE),
        ("AUDIT_ARCH_LOONGARCH32", 258 | LITTLE),
        ("AUDIT_ARCH_LOONGARCH64", 258 | BITS_64 | LITTLE),
        ("AUDIT_ARCH_M68K", 4),
        ("AUDIT_ARCH_MICROBLAZE", 189),
        ("AUDIT_ARCH_MIPS", 8),
        ("AUDIT_ARCH_MIPS64", 8 | BITS_64),
        ("AUDIT_ARCH_MIPS64N32", 8 | BITS_64 | N32),
        ("AUDIT_ARCH_MIPSEL", 8 | LITTLE),
        ("AUDIT_ARCH_MIPSEL64", 8 | BITS_64 | LITTLE),
        ("AUDIT_ARCH_MIPSEL64N32", 8 | BITS_64 | LITTLE | N32),
        ("AUDIT_ARCH_OPENRISC", 92),
        ("AUDIT_ARCH_PARISC", 15),
        ("AUDIT_ARCH_PARISC64", 15 | BITS_64),
        ("AUDIT_ARCH_PPC", 20),
        ("AUDIT_ARCH_PPC64", 21 | BITS_64),
        ("AUDIT_ARCH_PPC64LE", 21 | BITS_64 | LITTLE),
        ("AUDIT_ARCH_RISCV32", 243 | LITTLE),
        ("AUDIT_ARCH_RISCV64", 243 | BITS_64 | LITTLE),
        ("AUDIT_ARCH_S390", 22),
        ("AUDIT_ARCH_S390X", 22 | BITS_64),
        ("AUDIT_ARCH_SH", 42),
        ("AUDIT_ARCH_SHEL", 42 | LITTLE),
        ("AUDIT_ARCH_SPARC", 2),
        ("AUDIT_ARCH_SPARC64", 43 | BITS_64),
        ("AUDIT_ARCH_X86_64", 62 | BITS_64 | LITTLE),
        ("AUDIT_ARCH_XTENSA", 94),
    ]
};

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
    #[cfg(target_os = "linux")]
    fn every_family_has_names() {
        for family in Family::ALL {
            assert!(entries(family).count() >= 3, "{family:?}");
        }
        let known = [
            (Family::Clone, "clone_newuser", 0x1000_0000),
            (Family::Mount, "ms_rdonly", 1),
            (Family::Mount, "noatime", 1024),
            (Family::Mount, "mnt_detach", 2),
            (Family::Mount, "ms_nouser", 1 << 31),
            (Family::Prctl, "pr_set_name", 15),
            (Family::Prctl, "pr_set_child_subreaper", 36),
            (Family::Prctl, "pr_set_ptracer_any", -1),
            (Family::Seccomp, "seccomp_ret_kill_process", 0x8000_0000),
            (Family::Syscall, "audit_arch_x86_64", 0xC000_003E),
            (Family::Syscall, "audit_arch_aarch64", 0xC000_00B7),
            (Family::Cap, "cap_sys_admin", 21),
            (Family::Socket, "af_unix", 1),
            (Family::Socket, "sock_stream", 1),
            (Family::Socket, "ipproto_tcp", 6),
            (Family::Ioctl, "siocgifaddr", 0x8915),
        ];
        for (family, name, number) in known {
            assert_eq!(lookup(family, name), Some(number), "{name}");
        }
        #[allow(clippy::useless_conversion)]
        let read = i64::from(libc::SYS_read);
        assert_eq!(lookup(Family::Syscall, "sys_read"), Some(read));
        assert!(lookup(Family::Ioctl, "tunsetiff").is_some());
        assert_eq!(lookup(Family::Ptrace, "ptrace_attach"), Some(16));
        assert_eq!(lookup(Family::Ptrace, "ptrace_detach"), Some(17));
        assert_eq!(lookup(Family::Socket, "pf_vsock"), Some(40));
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
