//! Everything that names an operating system, and the unsafe parts of receiving descriptors.

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod generated;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
mod memfd;
#[cfg(target_os = "openbsd")]
mod openbsd;
#[cfg(target_os = "linux")]
mod uapi;

#[cfg(target_os = "freebsd")]
use freebsd as os;
#[cfg(target_os = "linux")]
use linux as os;
#[cfg(target_os = "openbsd")]
use openbsd as os;

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;

pub use os::MAX_INLINE;
pub(crate) use os::{seal, tables, unseal, ABSENT};

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// What a descriptor that came along holds, into memory of this process.
fn read_body(file: &File, max: usize) -> Result<Vec<u8>, &'static str> {
    let length = file.metadata().map_or(u64::MAX, |meta| meta.len());
    let length = usize::try_from(length)
        .ok()
        .filter(|length| *length <= max)
        .ok_or("the memfd is too large")?;
    let mut body = vec![0; length];
    file.read_exact_at(&mut body, 0)
        .map_err(|_| "the memfd cannot be read")?;
    Ok(body)
}

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

/// shm_mkstemp(3): fills the template in. Close-on-exec, as all of shm_open(3).
#[cfg(target_os = "openbsd")]
fn shm_mkstemp(template: &mut [u8; 22]) -> Result<OwnedFd, Errno> {
    // SAFETY: the declaration of shm_open(3).
    unsafe extern "C" {
        fn shm_mkstemp(template: *mut libc::c_char) -> libc::c_int;
    }
    // SAFETY: the array ends with a NUL, and only its Xs are overwritten.
    let fd = Errno::result(unsafe { shm_mkstemp(template.as_mut_ptr().cast()) })?;
    // SAFETY: the number was just given to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
