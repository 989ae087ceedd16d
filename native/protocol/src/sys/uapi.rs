//! From Linux's own headers: what the libc crate lacks, or has with one C library only.
//! All are part of the kernel's interface and the same on every architecture that is built for.

use crate::constant::Table;

/// linux/sockios.h, asm-generic/sockios.h
pub(super) const IOCTL: Table = &[
    ("FIOGETOWN", 0x8903),
    ("FIOSETOWN", 0x8901),
    ("SIOCADDDLCI", 0x8980),
    ("SIOCATMARK", 0x8905),
    ("SIOCBRADDBR", 0x89a0),
    ("SIOCBRADDIF", 0x89a2),
    ("SIOCBRDELBR", 0x89a1),
    ("SIOCBRDELIF", 0x89a3),
    ("SIOCDELDLCI", 0x8981),
    ("SIOCDEVPRIVATE", 0x89f0),
    ("SIOCGIFVLAN", 0x8982),
    ("SIOCGPGRP", 0x8904),
    ("SIOCINQ", 0x541b),
    ("SIOCOUTQ", 0x5411),
    ("SIOCPROTOPRIVATE", 0x89e0),
    ("SIOCRTMSG", 0x890d),
    ("SIOCSIFVLAN", 0x8983),
    ("SIOCSPGRP", 0x8902),
];

/// linux/prctl.h
pub(super) const PRCTL: Table = &[
    ("PR_GET_IO_FLUSHER", 58),
    ("PR_GET_SPECULATION_CTRL", 52),
    ("PR_GET_TAGGED_ADDR_CTRL", 56),
    ("PR_MTE_TAG_MASK", 524280),
    ("PR_MTE_TAG_SHIFT", 3),
    ("PR_MTE_TCF_ASYNC", 4),
    ("PR_MTE_TCF_MASK", 6),
    ("PR_MTE_TCF_NONE", 0),
    ("PR_MTE_TCF_SHIFT", 1),
    ("PR_MTE_TCF_SYNC", 2),
    ("PR_PAC_APDAKEY", 4),
    ("PR_PAC_APDBKEY", 8),
    ("PR_PAC_APGAKEY", 16),
    ("PR_PAC_APIAKEY", 1),
    ("PR_PAC_APIBKEY", 2),
    ("PR_PAC_GET_ENABLED_KEYS", 61),
    ("PR_PAC_RESET_KEYS", 54),
    ("PR_PAC_SET_ENABLED_KEYS", 60),
    ("PR_SET_IO_FLUSHER", 57),
    ("PR_SET_SPECULATION_CTRL", 53),
    ("PR_SET_SYSCALL_USER_DISPATCH", 59),
    ("PR_SET_TAGGED_ADDR_CTRL", 55),
    ("PR_SME_GET_VL", 64),
    ("PR_SME_SET_VL", 63),
    ("PR_SME_SET_VL_ONEXEC", 262144),
    ("PR_SME_VL_INHERIT", 131072),
    ("PR_SME_VL_LEN_MASK", 65535),
    ("PR_SPEC_DISABLE", 4),
    ("PR_SPEC_DISABLE_NOEXEC", 16),
    ("PR_SPEC_ENABLE", 2),
    ("PR_SPEC_FORCE_DISABLE", 8),
    ("PR_SPEC_INDIRECT_BRANCH", 1),
    ("PR_SPEC_L1D_FLUSH", 2),
    ("PR_SPEC_NOT_AFFECTED", 0),
    ("PR_SPEC_PRCTL", 1),
    ("PR_SPEC_STORE_BYPASS", 0),
    ("PR_SVE_GET_VL", 51),
    ("PR_SVE_SET_VL", 50),
    ("PR_SVE_SET_VL_ONEXEC", 262144),
    ("PR_SVE_VL_INHERIT", 131072),
    ("PR_SVE_VL_LEN_MASK", 65535),
    ("PR_SYS_DISPATCH_OFF", 0),
    ("PR_SYS_DISPATCH_ON", 1),
    ("PR_TAGGED_ADDR_ENABLE", 1),
];

/// linux/ptrace.h
pub(super) const PTRACE: Table = &[
    ("PTRACE_DETACH", 17),
    ("PTRACE_GET_RSEQ_CONFIGURATION", 0x420f),
    ("PTRACE_GET_SYSCALL_INFO", 0x420e),
    ("PTRACE_PEEKUSR", 3),
    ("PTRACE_POKEUSR", 6),
    ("PTRACE_SECCOMP_GET_FILTER", 0x420c),
    ("PTRACE_SECCOMP_GET_METADATA", 0x420d),
];

/// linux/socket.h
pub(super) const SOCKET: Table = &[
    ("AF_DECnet", 12),
    ("AF_IB", 27),
    ("AF_KCM", 41),
    ("AF_MCTP", 45),
    ("AF_MPLS", 28),
    ("AF_NFC", 39),
    ("AF_QIPCRTR", 42),
    ("AF_SMC", 43),
    ("AF_VSOCK", 40),
    ("AF_XDP", 44),
    ("PF_DECnet", 12),
    ("PF_IB", 27),
    ("PF_KCM", 41),
    ("PF_MCTP", 45),
    ("PF_MPLS", 28),
    ("PF_NFC", 39),
    ("PF_QIPCRTR", 42),
    ("PF_SMC", 43),
    ("PF_VSOCK", 40),
    ("PF_XDP", 44),
];

/// asm/ptrace.h: only these architectures have them.
#[cfg(any(target_arch = "x86_64", target_arch = "x86", target_arch = "arm"))]
pub(super) const PTRACE_REGISTERS: Table = &[
    ("PTRACE_GETREGS", 12),
    ("PTRACE_SETREGS", 13),
    ("PTRACE_GETFPREGS", 14),
    ("PTRACE_SETFPREGS", 15),
];
#[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "arm")))]
pub(super) const PTRACE_REGISTERS: Table = &[];
