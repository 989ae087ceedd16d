//! Bodies in sealed memory.

use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::memfd::{memfd_create, MFdFlags};

const MEMFD_NAME: &CStr = c"stdio-message";
const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// The body as a descriptor; or the call that failed.
pub(crate) fn seal(body: &[u8]) -> Result<OwnedFd, (&'static str, Errno)> {
    let memfd = memfd_create(
        MEMFD_NAME,
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )
    .map_err(|errno| ("memfd_create", errno))?;
    let mut file = File::from(memfd);
    file.write_all(body)
        .map_err(|error| ("write", super::errno(&error)))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS)).map_err(|errno| ("fcntl(F_ADD_SEALS)", errno))?;
    Ok(OwnedFd::from(file))
}

/// The sender cannot change a sealed body any more, so its length is checked before it is read.
pub(crate) fn unseal(memfd: OwnedFd, max: usize) -> Result<Vec<u8>, &'static str> {
    let seals = fcntl(&memfd, FcntlArg::F_GET_SEALS).map_err(|_| "memfd")?;
    if SealFlag::from_bits_truncate(seals) & SEALS != SEALS {
        return Err("the memfd is not sealed");
    }
    super::read_body(&File::from(memfd), max)
}
