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

/// What was installed of a descriptor list that did not fit (`MSG_CTRUNC`), from the room given to
/// `recvmsg`; nix lists none of them. Nothing, if [`forget_received`] came before and none was.
///
/// Unix sockets give one `SCM_RIGHTS` message at most, and it comes first.
pub(crate) fn own_truncated(rights: &[u8]) -> Vec<OwnedFd> {
    let Some(header) = rights.first_chunk::<HEADER>() else {
        return Vec::new();
    };
    // SAFETY: a cmsghdr is three integers, so any bytes of its size are one.
    let header: libc::cmsghdr = unsafe { header.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
        return Vec::new();
    }
    // SAFETY: only computes where the data begin.
    let start = unsafe { libc::CMSG_LEN(0) } as usize;
    // Other systems have a socklen_t here.
    #[allow(clippy::unnecessary_cast)]
    let length = header.cmsg_len as usize;
    let end = rights.len().min(length);
    let numbers = rights.get(start..end).unwrap_or_default();
    own_received(
        numbers
            .chunks_exact(size_of::<RawFd>())
            .filter_map(|bytes| Some(RawFd::from_ne_bytes(bytes.try_into().ok()?)))
            .collect(),
    )
}

/// Before `recvmsg`: what an earlier one wrote there is not to be owned twice.
pub(crate) fn forget_received(rights: &mut [u8]) {
    if let Some(header) = rights.first_chunk_mut::<HEADER>() {
        header.fill(0);
    }
}

const HEADER: usize = size_of::<libc::cmsghdr>();
