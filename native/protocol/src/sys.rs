//! The unsafe parts of receiving descriptors.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes ownership of descriptors that `recvmsg` has just installed.
///
/// Only for the numbers of one `SCM_RIGHTS` message, once.
pub(crate) fn own_received(fds: Vec<RawFd>) -> Vec<OwnedFd> {
    fds.into_iter()
        // SAFETY: recvmsg(2) has allocated each number for this message; nothing else in the
        // process knows it yet.
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect()
}
