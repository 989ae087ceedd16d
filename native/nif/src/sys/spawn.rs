//! posix_spawn(3) as the nix crate has it, where it does.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::spawn::{posix_spawn, PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use super::IN_NEW_SESSION;

/// Descriptors 0-2 are `fds`. A new session if that can be asked for, default dispositions, empty mask,
/// no environment.
pub fn spawn(argv: &[&CStr], fds: [BorrowedFd<'_>; 3]) -> Result<Pid, Errno> {
    let mut actions = PosixSpawnFileActions::init()?;
    for (fd, number) in fds.into_iter().zip(0..) {
        actions.add_dup2(fd.as_raw_fd(), number)?;
    }
    let mut attributes = PosixSpawnAttr::init()?;
    let mut defaults = SigSet::all();
    defaults.remove(Signal::SIGKILL);
    defaults.remove(Signal::SIGSTOP);
    attributes.set_sigdefault(&defaults)?;
    attributes.set_sigmask(&SigSet::empty())?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
            | PosixSpawnFlags::from_bits_retain(IN_NEW_SESSION),
    )?;
    let program = argv.first().ok_or(Errno::EINVAL)?;
    let no_environment: [&CStr; 0] = [];
    posix_spawn(*program, &actions, &attributes, argv, &no_environment)
}
