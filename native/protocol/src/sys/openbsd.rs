//! OpenBSD: the names that it alone has, and bodies in unlinked files.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::stat::Mode;

use crate::constant::{names, Family, Table};

/// Unix sockets buffer 8 KiB and more.
pub const MAX_INLINE: usize = 4 * 1024;

/// Calls that only other systems have.
pub(crate) const ABSENT: &[&str] = &[
    "bind_in",
    "cap_enter",
    "cap_fcntls_get",
    "cap_fcntls_limit",
    "cap_getmode",
    "cap_ioctls_limit",
    "cap_rights_limit",
    "device_in",
    "jail",
    "jail_attach",
    "jail_remove",
    "landlock_abi",
    "limit_capabilities",
    "mkdir_in",
    "mount_in",
    "no_new_privs",
    "pidfd_open",
    "pivot_root",
    "prctl",
    "proc_in",
    "procctl",
    "remount_in",
    "seccomp",
    "set_pdeathsig",
    "setns",
    "symlink_in",
    "unshare",
];

pub(crate) fn tables(family: Family) -> [Table; 3] {
    match family {
        Family::Rlimit => [RLIMIT, &[], &[]],
        Family::Signal => [SIGNAL, &[], &[]],
        Family::File => [FILE, &[], &[]],
        Family::Fcntl => [FCNTL, &[], &[]],
        Family::Mount => [MOUNT, MOUNT_PORTABLE, &[]],
        Family::Ptrace => [PTRACE, &[], &[]],
        Family::Ioctl => [IOCTL, &[], &[]],
        Family::Socket => [SOCKET, &[], &[]],
        _ => [&[], &[], &[]],
    }
}

const RLIMIT: Table = names![
    ,
];

const SIGNAL: Table = names![SIGEMT, SIGINFO,];

const FILE: Table = names![O_ASYNC, O_DSYNC, O_EXLOCK, O_FSYNC, O_NDELAY, O_RSYNC, O_SHLOCK,];

const FCNTL: Table = names![F_DUPFD, F_DUPFD_CLOEXEC, F_GETOWN, F_SETOWN,];

const MOUNT: Table = names![
    MNT_ASYNC,
    MNT_DEFEXPORTED,
    MNT_DELEXPORT,
    MNT_DOOMED,
    MNT_EXPORTANON,
    MNT_EXPORTED,
    MNT_EXRDONLY,
    MNT_FORCE,
    MNT_LAZY,
    MNT_LOCAL,
    MNT_NOATIME,
    MNT_NODEV,
    MNT_NOEXEC,
    MNT_NOPERM,
    MNT_NOSUID,
    MNT_NOWAIT,
    MNT_QUOTA,
    MNT_RDONLY,
    MNT_RELOAD,
    MNT_ROOTFS,
    MNT_SOFTDEP,
    MNT_STALLED,
    MNT_SWAPPABLE,
    MNT_SYNCHRONOUS,
    MNT_UPDATE,
    MNT_WAIT,
    MNT_WANTRDWR,
    MNT_WXALLOWED,
];

const PTRACE: Table = names![
    PT_ATTACH,
    PT_CONTINUE,
    PT_DETACH,
    PT_FIRSTMACH,
    PT_GET_EVENT_MASK,
    PT_GET_PROCESS_STATE,
    PT_GET_THREAD_FIRST,
    PT_GET_THREAD_NEXT,
    PT_IO,
    PT_KILL,
    PT_READ_D,
    PT_READ_I,
    PT_SET_EVENT_MASK,
    PT_TRACE_ME,
    PT_WRITE_D,
    PT_WRITE_I,
];

const IOCTL: Table = names![
    FIOASYNC,
    FIOCLEX,
    FIOGETOWN,
    FIONBIO,
    FIONCLEX,
    FIONREAD,
    FIOSETOWN,
    SIOCGIFADDR,
    TIOCCBRK,
    TIOCEXCL,
    TIOCFLUSH,
    TIOCGETA,
    TIOCGETD,
    TIOCGWINSZ,
    TIOCMBIC,
    TIOCMBIS,
    TIOCMGET,
    TIOCMSET,
    TIOCM_CAR,
    TIOCM_CD,
    TIOCM_CTS,
    TIOCM_DSR,
    TIOCM_DTR,
    TIOCM_LE,
    TIOCM_RI,
    TIOCM_RNG,
    TIOCM_RTS,
    TIOCM_SR,
    TIOCM_ST,
    TIOCNXCL,
    TIOCSBRK,
    TIOCSCTTY,
    TIOCSETA,
    TIOCSETAF,
    TIOCSETAW,
    TIOCSETD,
    TIOCSTART,
    TIOCSTOP,
    TIOCSWINSZ,
];

const SOCKET: Table = names![
    AF_APPLETALK,
    AF_BLUETOOTH,
    AF_CCITT,
    AF_CHAOS,
    AF_CNT,
    AF_COIP,
    AF_DATAKIT,
    AF_DLI,
    AF_E164,
    AF_ECMA,
    AF_ENCAP,
    AF_HYLINK,
    AF_IMPLINK,
    AF_INET,
    AF_INET6,
    AF_IPX,
    AF_ISDN,
    AF_ISO,
    AF_KEY,
    AF_LAT,
    AF_LINK,
    AF_LOCAL,
    AF_MPLS,
    AF_NATM,
    AF_NS,
    AF_OSI,
    AF_PUP,
    AF_ROUTE,
    AF_SIP,
    AF_SNA,
    AF_UNIX,
    AF_UNSPEC,
    IPPROTO_AH,
    IPPROTO_CARP,
    IPPROTO_DIVERT,
    IPPROTO_DSTOPTS,
    IPPROTO_EGP,
    IPPROTO_ENCAP,
    IPPROTO_EON,
    IPPROTO_ESP,
    IPPROTO_ETHERIP,
    IPPROTO_FRAGMENT,
    IPPROTO_GGP,
    IPPROTO_GRE,
    IPPROTO_HOPOPTS,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_IDP,
    IPPROTO_IGMP,
    IPPROTO_IP,
    IPPROTO_IPCOMP,
    IPPROTO_IPIP,
    IPPROTO_IPV6,
    IPPROTO_MAX,
    IPPROTO_MOBILE,
    IPPROTO_MPLS,
    IPPROTO_NONE,
    IPPROTO_PFSYNC,
    IPPROTO_PIM,
    IPPROTO_PUP,
    IPPROTO_RAW,
    IPPROTO_ROUTING,
    IPPROTO_RSVP,
    IPPROTO_TCP,
    IPPROTO_TP,
    IPPROTO_UDP,
    PF_APPLETALK,
    PF_BLUETOOTH,
    PF_BPF,
    PF_CCITT,
    PF_CHAOS,
    PF_CNT,
    PF_COIP,
    PF_DATAKIT,
    PF_DLI,
    PF_ECMA,
    PF_ENCAP,
    PF_HYLINK,
    PF_IMPLINK,
    PF_INET,
    PF_INET6,
    PF_IPX,
    PF_ISDN,
    PF_ISO,
    PF_KEY,
    PF_LAT,
    PF_LINK,
    PF_LOCAL,
    PF_MASKOS,
    PF_MASKPROC,
    PF_MPLS,
    PF_NATM,
    PF_NS,
    PF_OSI,
    PF_PFLOW,
    PF_PIP,
    PF_PIPEX,
    PF_PUP,
    PF_R,
    PF_ROUTE,
    PF_RTIP,
    PF_SIP,
    PF_SNA,
    PF_UNIX,
    PF_UNSPEC,
    PF_W,
    PF_X,
    PF_XTP,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_RAW,
    SOCK_RDM,
    SOCK_SEQPACKET,
    SOCK_STREAM,
];

/// Names that Linux knows as well.
const MOUNT_PORTABLE: Table = &[
    ("RDONLY", libc::MNT_RDONLY as i64),
    ("NOSUID", libc::MNT_NOSUID as i64),
    ("NOEXEC", libc::MNT_NOEXEC as i64),
    ("NOATIME", libc::MNT_NOATIME as i64),
];

/// The body as a descriptor; or the call that failed. There are no memfds: the name of a shared
/// object is gone before anybody can have guessed it. shm_open(3)
pub(crate) fn seal(body: &[u8]) -> Result<OwnedFd, (&'static str, Errno)> {
    let mut template = *b"/tmp/stdio-XXXXXXXXXX\0";
    let fd = super::shm_mkstemp(&mut template).map_err(|errno| ("shm_mkstemp", errno))?;
    let name = std::ffi::CStr::from_bytes_until_nul(&template).unwrap_or(c"");
    nix::sys::mman::shm_unlink(name).map_err(|errno| ("shm_unlink", errno))?;
    let mut file = File::from(fd);
    nix::sys::stat::fchmod(&file, Mode::empty()).map_err(|errno| ("fchmod", errno))?;
    file.write_all(body)
        .map_err(|error| ("write", super::errno(&error)))?;
    Ok(OwnedFd::from(file))
}

/// Nothing is sealed, so all that counts is the copy, which is what is decoded.
pub(crate) fn unseal(file: OwnedFd, max: usize) -> Result<Vec<u8>, &'static str> {
    super::read_body(&File::from(file), max)
}
