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

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    /// As the kernel writes it: a header, then the numbers. `length` is what the header claims.
    fn control(level: i32, length: usize, numbers: &[RawFd]) -> Vec<u8> {
        // SAFETY: a cmsghdr is three integers (and padding), so zeros are one.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        header.cmsg_level = level;
        header.cmsg_type = libc::SCM_RIGHTS;
        // Other systems have a socklen_t here.
        #[allow(clippy::useless_conversion)]
        let length = length.try_into().unwrap();
        header.cmsg_len = length;
        let mut bytes = vec![0; data_start()];
        // SAFETY: the buffer is as large as a header, or larger, and bytes have no alignment.
        unsafe {
            bytes
                .as_mut_ptr()
                .cast::<libc::cmsghdr>()
                .write_unaligned(header);
        }
        for number in numbers {
            bytes.extend(number.to_ne_bytes());
        }
        bytes
    }

    fn data_start() -> usize {
        // SAFETY: only computes.
        unsafe { libc::CMSG_LEN(0) as usize }
    }

    fn descriptors(count: usize) -> Vec<RawFd> {
        (0..count)
            .map(|_| File::open("/dev/null").unwrap().into_raw_fd())
            .collect()
    }

    #[test]
    fn what_was_installed_of_a_list_that_did_not_fit_is_owned() {
        let numbers = descriptors(3);
        let whole = data_start() + size_of_val(&numbers[..]);
        // The header tells the length of what was installed; the room may have more in it.
        let room = control(libc::SOL_SOCKET, whole, &[&numbers[..], &[-1, -1]].concat());
        let owned = own_truncated(&room);
        let raw: Vec<_> = owned.iter().map(AsRawFd::as_raw_fd).collect();
        assert_eq!(raw, numbers);
    }

    #[test]
    fn a_header_that_claims_more_than_the_room_has_stops_at_its_end() {
        let numbers = descriptors(2);
        let mut room = control(libc::SOL_SOCKET, 10_000, &numbers);
        // Half a number is none.
        room.extend([1, 2]);
        let owned = own_truncated(&room);
        let raw: Vec<_> = owned.iter().map(AsRawFd::as_raw_fd).collect();
        assert_eq!(raw, numbers);
    }

    #[test]
    fn nothing_is_owned_of_another_message_or_of_none() {
        let numbers = descriptors(1);
        let whole = data_start() + size_of_val(&numbers[..]);
        assert!(own_truncated(&control(libc::SOL_SOCKET + 1, whole, &numbers)).is_empty());
        assert!(own_truncated(&control(libc::SOL_SOCKET, 0, &numbers)).is_empty());
        assert!(
            own_truncated(&control(libc::SOL_SOCKET, whole, &numbers)[..HEADER - 1]).is_empty()
        );
        let mut room = control(libc::SOL_SOCKET, whole, &numbers);
        forget_received(&mut room);
        assert!(own_truncated(&room).is_empty());
        // Still ours to close.
        drop(own_received(numbers));
    }
}
