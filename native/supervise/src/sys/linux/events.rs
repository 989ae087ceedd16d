//! Blocked signals, read from a signalfd.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{siginfo, SfdFlags, SignalFd};

/// It reports the signals of whichever process reads it, so supervisors use the one they inherit
/// (signalfd(2), "fork(2) semantics"; with poll, not epoll).
pub struct Signals(SignalFd);

/// One that was taken.
pub struct Received(siginfo);

impl Signals {
    /// Of those that are blocked.
    pub fn new(signals: &SigSet) -> Result<Self, Errno> {
        SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Self)
    }

    /// In a forked child.
    pub fn of_child(self) -> Result<Self, Errno> {
        Ok(self)
    }

    /// Without waiting.
    pub fn read(&self) -> Option<Received> {
        self.0.read_signal().ok().flatten().map(Received)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Received {
    pub fn number(&self) -> i32 {
        self.0.ssi_signo.cast_signed()
    }

    /// siginfo_t, 128 bytes: the fields that kill(2), sigqueue(3) and the kernel's SIGCHLD fill, at
    /// their places in the 64-bit structure (sigaction(2)).
    pub fn info(&self) -> Vec<u8> {
        let info = &self.0;
        let mut raw = vec![0; 128];
        let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &info.ssi_signo.to_ne_bytes());
        put(4, &info.ssi_errno.to_ne_bytes());
        put(8, &info.ssi_code.to_ne_bytes());
        put(16, &info.ssi_pid.to_ne_bytes());
        put(20, &info.ssi_uid.to_ne_bytes());
        if info.ssi_signo == libc::SIGCHLD.unsigned_abs() {
            put(24, &info.ssi_status.to_ne_bytes());
            put(32, &info.ssi_utime.to_ne_bytes());
            put(40, &info.ssi_stime.to_ne_bytes());
        } else {
            put(24, &info.ssi_ptr.to_ne_bytes());
        }
        raw
    }
}
