//! posix_spawn(3), which the nix crate does not have here.

use std::ffi::{c_char, c_int, c_short, CStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

/// These functions return the errno.
fn check(errno: c_int) -> Result<(), Errno> {
    match errno {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno)),
    }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> Result<Self, Errno> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the call fills in what it is given, unless it fails.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: it did not.
        Ok(Self(unsafe { actions.assume_init() }))
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: it was initialised, and is used no more.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> Result<Self, Errno> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the call fills in what it is given, unless it fails.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: it did not.
        Ok(Self(unsafe { attributes.assume_init() }))
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: it was initialised, and is used no more.
        unsafe { libc::posix_spawnattr_destroy(&mut self.0) };
    }
}

/// Descriptors 0-2 are `fds`. Default dispositions, empty mask, no environment. There is no flag for a
/// new session: the helper makes its own.
pub fn spawn(argv: &[&CStr], fds: [BorrowedFd<'_>; 3]) -> Result<Pid, Errno> {
    let program = argv.first().ok_or(Errno::EINVAL)?;
    let mut actions = Actions::new()?;
    for (fd, number) in fds.into_iter().zip(0..) {
        let fd = fd.as_raw_fd();
        // SAFETY: `actions` is initialised; the rest are numbers.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&mut actions.0, fd, number) })?;
    }
    let mut attributes = Attributes::new()?;
    let mut defaults = SigSet::all();
    defaults.remove(Signal::SIGKILL);
    defaults.remove(Signal::SIGSTOP);
    let flags = libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK;
    let flags = c_short::try_from(flags).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `attributes` is initialised; the sets are copied.
    unsafe {
        check(libc::posix_spawnattr_setsigdefault(
            &mut attributes.0,
            defaults.as_ref(),
        ))?;
        check(libc::posix_spawnattr_setsigmask(
            &mut attributes.0,
            SigSet::empty().as_ref(),
        ))?;
        check(libc::posix_spawnattr_setflags(&mut attributes.0, flags))?;
    }
    let argv: Vec<*mut c_char> = argv
        .iter()
        .map(|word| word.as_ptr().cast_mut())
        .chain([ptr::null_mut()])
        .collect();
    let environment = [ptr::null_mut()];
    let mut pid = 0;
    // SAFETY: both arrays end with NULL, and all that they point to outlives the call, which changes
    // none of it; the rest is initialised.
    check(unsafe {
        libc::posix_spawn(
            &mut pid,
            program.as_ptr(),
            &actions.0,
            &attributes.0,
            argv.as_ptr(),
            environment.as_ptr(),
        )
    })?;
    Ok(Pid::from_raw(pid))
}
