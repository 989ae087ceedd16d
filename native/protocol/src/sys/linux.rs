//! Linux: the names that it alone has.

use super::{generated, uapi};
use crate::constant::{names, Family, Table};

pub(crate) use super::memfd::{seal, unseal};

/// Datagrams up to this size carry their body themselves.
pub const MAX_INLINE: usize = 64 * 1024;

/// Calls that only other systems have.
pub(crate) const ABSENT: &[&str] = &[
    "cap_enter",
    "cap_fcntls_get",
    "cap_fcntls_limit",
    "cap_getmode",
    "cap_ioctls_limit",
    "cap_rights_limit",
    "jail",
    "jail_attach",
    "jail_remove",
    "pledge",
    "procctl",
    "unveil",
];

pub(crate) fn tables(family: Family) -> [Table; 3] {
    match family {
        Family::Rlimit => [RLIMIT, RLIMIT_AS, &[]],
        Family::Signal => [SIGNAL, &[], &[]],
        Family::File => [FILE, &[], &[]],
        Family::Fcntl => [FCNTL, &[], &[]],
        Family::Cap => [CAP, &[], &[]],
        Family::Clone => [generated::CLONE, &[], &[]],
        Family::Ioctl => [generated::IOCTL, uapi::IOCTL, &[]],
        Family::Mount => [generated::MOUNT, MOUNT_PORTABLE, &[]],
        Family::Prctl => [generated::PRCTL, uapi::PRCTL, &[]],
        Family::Ptrace => [generated::PTRACE, uapi::PTRACE, uapi::PTRACE_REGISTERS],
        Family::Seccomp => [generated::SECCOMP, &[], &[]],
        Family::Socket => [generated::SOCKET, SOCKET_TYPES, uapi::SOCKET],
        Family::Syscall => [generated::SYSCALL, AUDIT_ARCH, &[]],
        Family::Prio | Family::Procctl | Family::Wait => [&[], &[], &[]],
    }
}

const RLIMIT_AS: Table = names![RLIMIT_AS];

const RLIMIT: Table = &[
    ("RLIMIT_LOCKS", 10),
    ("RLIMIT_SIGPENDING", 11),
    ("RLIMIT_MSGQUEUE", 12),
    ("RLIMIT_NICE", 13),
    ("RLIMIT_RTPRIO", 14),
    ("RLIMIT_RTTIME", 15),
    // How many there are, not one of them; deprecated in the crate because it grows.
    ("RLIMIT_NLIMITS", 16),
];

const SIGNAL: Table = &[
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

const FCNTL: Table = names![
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
#[allow(clippy::unnecessary_cast)]
const MOUNT_PORTABLE: Table = &[
    ("RDONLY", libc::MS_RDONLY as i64),
    ("NOSUID", libc::MS_NOSUID as i64),
    ("NOEXEC", libc::MS_NOEXEC as i64),
    ("NOATIME", libc::MS_NOATIME as i64),
];

/// Defined for each architecture by itself.
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
    use crate::constant::{entries, lookup};

    #[test]
    fn every_family_has_names() {
        // procctl(2) is FreeBSD's.
        let ours = |family: &Family| *family != Family::Procctl;
        for family in Family::ALL.into_iter().filter(ours) {
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
}
