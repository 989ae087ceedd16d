//! Everything that names an operating system.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod other;

use nix::errno::Errno;

/// Puts a byte into the input of a terminal. TIOCSTI
#[cfg(not(target_os = "openbsd"))]
pub fn push(fd: i32, byte: u8) -> Result<(), Errno> {
    let request = libc::TIOCSTI as std::ffi::c_ulong;
    // SAFETY: reads one byte of ours.
    Errno::result(unsafe { libc::ioctl(fd, request, &raw const byte) }).map(drop)
}

/// OpenBSD has done away with it.
#[cfg(target_os = "openbsd")]
pub fn push(_fd: i32, _byte: u8) -> Result<(), Errno> {
    Err(Errno::ENOTTY)
}

#[cfg(target_os = "linux")]
pub use linux::{
    attack, attributes, break_out::run as break_out, end_with_parent, strike::run as strike, LIMITS,
};
#[cfg(not(target_os = "linux"))]
pub use other::*;
