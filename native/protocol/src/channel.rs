//! One end of a control socket: `SOCK_SEQPACKET`, one datagram per message, descriptors by
//! `SCM_RIGHTS`.
//!
//! Rules:
//! 1. The first byte of a datagram says where the body is: behind it, or in a sealed memfd that
//!    is the last descriptor of the datagram (bodies over [`MAX_INLINE`]; a 256 KiB datagram fails
//!    with EMSGSIZE on default buffers). Where there are no memfds it is an unlinked file.
//! 2. Neither direction blocks: a full socket is `EAGAIN`, for the caller to queue.
//! 3. A datagram that is truncated, malformed, or carries more than [`MAX_FDS`] descriptors ends
//!    the connection; descriptors that came with it are closed.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    recvmsg, sendmsg, socketpair, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags,
    SockFlag, SockType,
};
use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::codec::{self, Malformed};
use crate::sys;

/// Descriptors per datagram, a memfd included.
pub const MAX_FDS: usize = 8;
pub use crate::sys::MAX_INLINE;
/// The largest body. The kernel takes at most 6 MiB of arguments and environment
/// (3/4 of the 8 MiB stack limit, execve(2)), so what is larger cannot run anyway.
pub const MAX_BODY: usize = 16 * 1024 * 1024;

const INLINE: u8 = 0;
const IN_MEMFD: u8 = 1;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{call}: {errno}")]
    Os { call: &'static str, errno: Errno },
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("malformed datagram: {0}")]
    BadDatagram(&'static str),
    #[error("message of {0} bytes is too large")]
    TooLarge(usize),
}

impl Error {
    /// The errno that a user is shown.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Os { errno, .. } => *errno,
            Self::TooLarge(_) => Errno::E2BIG,
            Self::Malformed(_) | Self::BadDatagram(_) => Errno::EPROTO,
        }
    }
}

fn os(call: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Os { call, errno }
}

/// A received message with the descriptors that came along.
#[derive(Debug)]
pub struct Received<T> {
    pub message: T,
    pub fds: Vec<OwnedFd>,
}

/// A message ready to be sent, possibly more than once (after `EAGAIN`).
#[derive(Debug)]
pub struct Datagram {
    bytes: Vec<u8>,
    body: Option<OwnedFd>,
}

impl Datagram {
    pub fn new<T: Serialize>(message: &T) -> Result<Self, Error> {
        let body = codec::encode(message)?;
        if body.len() < MAX_INLINE {
            let mut bytes = Vec::with_capacity(body.len() + 1);
            bytes.push(INLINE);
            bytes.extend_from_slice(&body);
            return Ok(Self { bytes, body: None });
        }
        if body.len() > MAX_BODY {
            return Err(Error::TooLarge(body.len()));
        }
        Ok(Self {
            bytes: vec![IN_MEMFD],
            body: Some(sys::seal(&body).map_err(|(call, errno)| Error::Os { call, errno })?),
        })
    }

    /// One sendmsg(2). `EAGAIN` and `ETOOMANYREFS` mean: later.
    pub fn send(&self, socket: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let mut raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        raw.extend(self.body.as_ref().map(AsRawFd::as_raw_fd));
        debug_assert!(raw.len() <= MAX_FDS);
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        loop {
            match sendmsg::<()>(
                socket.as_raw_fd(),
                &[IoSlice::new(&self.bytes)],
                rights,
                flags,
                None,
            ) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(os("sendmsg")(errno)),
            }
        }
    }
}

/// Whether a failed send is to be tried again later.
pub fn is_busy(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EAGAIN | Errno::ETOOMANYREFS | Errno::ENOBUFS | Errno::ENOMEM
    )
}

/// Both ends of a new control socket, close-on-exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
}

/// Encodes and sends, without queueing.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), Error> {
    Datagram::new(message)?.send(socket.as_fd(), fds)
}

/// Reusable room for one datagram.
pub struct Receiver {
    buffer: Vec<u8>,
    rights: Vec<u8>,
}

impl Receiver {
    /// For the helper, which takes descriptors. There is room for all that one datagram can
    /// carry (SCM_MAX_FD, unix(7)), so that surplus ones are seen and closed.
    pub fn with_fds() -> Self {
        Self {
            rights: nix::cmsg_space!([RawFd; 253]),
            ..Self::without_fds()
        }
    }

    /// For the NIF's end of a process that serves requests: room for the memfd of a large answer.
    pub fn with_body() -> Self {
        Self {
            rights: nix::cmsg_space!([RawFd; 1]),
            ..Self::without_fds()
        }
    }

    /// For the NIF's other ends, which take none: the kernel drops what comes.
    pub fn without_fds() -> Self {
        Self {
            // One more than allowed, so that an oversized datagram shows.
            buffer: vec![0; MAX_INLINE + 1],
            rights: Vec::new(),
        }
    }

    /// One recvmsg(2). `Ok(None)` is the end of the connection; `EAGAIN` means: nothing yet.
    pub fn recv<T: DeserializeOwned>(
        &mut self,
        socket: BorrowedFd<'_>,
    ) -> Result<Option<Received<T>>, Error> {
        let Some((length, mut fds)) = self.datagram(socket)? else {
            return Ok(None);
        };
        let message = match self.buffer[..length].split_first() {
            Some((&INLINE, body)) => codec::decode(body)?,
            Some((&IN_MEMFD, [])) => {
                let memfd = fds.pop().ok_or(Error::BadDatagram("no memfd"))?;
                codec::decode(&sys::unseal(memfd, MAX_BODY).map_err(Error::BadDatagram)?)?
            }
            _ => return Err(Error::BadDatagram("unknown framing")),
        };
        Ok(Some(Received { message, fds }))
    }

    fn datagram(&mut self, socket: BorrowedFd<'_>) -> Result<Option<(usize, Vec<OwnedFd>)>, Error> {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        loop {
            let mut iov = [IoSliceMut::new(&mut self.buffer)];
            sys::forget_received(&mut self.rights);
            let rights = (!self.rights.is_empty()).then_some(self.rights.as_mut_slice());
            let received = match recvmsg::<()>(socket.as_raw_fd(), &mut iov, rights, flags) {
                Ok(received) => received,
                Err(Errno::EINTR) => continue,
                // A peer that died with unread messages of ours resets the connection. That is
                // said once; what it had sent before comes behind it.
                Err(Errno::ECONNRESET) => continue,
                Err(errno) => return Err(os("recvmsg")(errno)),
            };
            // CTRUNC: the peer sent more descriptors than this end takes, or this process has no
            // number left for them.
            if received.flags.contains(MsgFlags::MSG_CTRUNC) {
                drop(sys::own_truncated(&self.rights));
                return Err(Error::BadDatagram("descriptors were lost"));
            }
            let mut fds = Vec::new();
            for control in received.cmsgs().map_err(os("recvmsg"))? {
                if let ControlMessageOwned::ScmRights(raw) = control {
                    fds.extend(sys::own_received(raw));
                }
            }
            let too_long = received.bytes > MAX_INLINE;
            if too_long || received.flags.contains(MsgFlags::MSG_TRUNC) {
                return Err(Error::BadDatagram("too long"));
            }
            if fds.len() > MAX_FDS {
                return Err(Error::BadDatagram("too many descriptors"));
            }
            if received.bytes == 0 && fds.is_empty() {
                return Ok(None);
            }
            return Ok(Some((received.bytes, fds)));
        }
    }
}
