//! The state that the helper puts itself in before it reads anything.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::{open, OFlag};
use nix::sys::signal::SigSet;
use nix::sys::socket::{getsockopt, sockopt, AddressFamily, SockType, SockaddrLike};
use nix::sys::stat::{umask, Mode};
use nix::unistd::{
    chdir, getegid, geteuid, getgid, getuid, setgroups, setresgid, setresuid, Gid, Uid,
};

use crate::sys::{self, Signals};

/// Everything that can be blocked is, and read from a descriptor instead: a supervisor forwards
/// signals, it does not die of them. The launcher ends when its socket does, not by a signal, so
/// that a service manager's SIGTERM to all cannot cost the trees their supervisor.
pub fn block_signals() {
    SigSet::all()
        .thread_set_mask()
        .unwrap_or_else(|errno| sys::die("sigprocmask", errno));
}

/// Where the blocked signals are read.
pub fn signals() -> Signals {
    Signals::new(&SigSet::all()).unwrap_or_else(|errno| sys::die("signalfd", errno))
}

/// A closed descriptor among 0-2 would be given to the next thing opened, and written to.
pub fn standard_descriptors() {
    while let Ok(fd) = open(c"/dev/null", OFlag::O_RDWR, Mode::empty()) {
        if fd.as_raw_fd() > 2 {
            return;
        }
        std::mem::forget(fd);
    }
}

/// What a caller may ask for on the command line: to be served without the setuid bit's privilege.
pub const UNPRIVILEGED: &str = "--unprivileged";

/// With the setuid bit only the effective id is root's. Either the caller's groups and real id go,
/// so that nobody but root can signal or inspect the helper; or, when the caller wants no privilege,
/// the root id goes. `true`: this process has become root by its setuid bit.
pub fn settle_ids() -> bool {
    let (caller, group) = (getuid(), getgid());
    if geteuid() == caller && getegid() == group {
        return false;
    }
    if !geteuid().is_root() || std::env::args_os().any(|word| word == UNPRIVILEGED) {
        setresgid(group, group, group)
            .and_then(|()| setresuid(caller, caller, caller))
            .unwrap_or_else(|errno| sys::die("setresuid", errno));
        return false;
    }
    let root = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])
        .and_then(|()| setresgid(root.1, root.1, root.1))
        .and_then(|()| setresuid(root.0, root.0, root.0))
        .unwrap_or_else(|errno| sys::die("setresuid", errno));
    true
}

/// Beside what is undone for every caller. Resource limits stay: they only restrict.
pub fn forget_caller() {
    umask(Mode::from_bits_truncate(0o022));
    chdir("/").unwrap_or_else(|errno| sys::die("chdir", errno));
}

/// The helper runs as root whatever its caller asks, so nobody but root and one group may be able
/// to call it.
pub fn refuse_open_executable() {
    let mode = sys::executable_mode().unwrap_or(0o777);
    if mode & 0o001 != 0 {
        eprintln!(
            "stdio-supervise: refused: it has the setuid bit and anyone may execute it. \
             chown root:GROUP and chmod 4750 it."
        );
        std::process::exit(1);
    }
}

/// A program of the same user can neither read the helper's memory nor take its descriptors.
pub fn refuse_inspection() {
    sys::set_inspectable(false).unwrap_or_else(|errno| sys::die("prctl(PR_SET_DUMPABLE)", errno));
}

/// Forked children of a threaded process may not allocate; ours do.
pub fn assert_single_threaded() {
    if let Some(threads) = sys::threads() {
        assert_eq!(threads, 1, "the helper must have one thread");
    }
}

/// fd 0, if it is what the NIF passes.
pub fn control_socket() -> Option<OwnedFd> {
    let control = sys::own_stdin();
    let kind = getsockopt(&control, sockopt::SockType).ok()?;
    let family =
        nix::sys::socket::getsockname::<nix::sys::socket::SockaddrStorage>(control.as_raw_fd())
            .ok()?
            .family();
    (kind == SockType::SeqPacket && family == Some(AddressFamily::Unix)).then_some(control)
}
