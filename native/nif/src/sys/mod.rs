//! Everything that names an operating system: what an I/O thread waits with, and a little more.

#[cfg(any(target_os = "freebsd", target_os = "openbsd"))]
mod bsd;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "openbsd")]
mod openbsd;
#[cfg(not(target_os = "openbsd"))]
mod spawn;

#[cfg(any(target_os = "freebsd", target_os = "openbsd"))]
pub use bsd::*;
#[cfg(target_os = "linux")]
pub use linux::*;
#[cfg(target_os = "openbsd")]
pub use openbsd::spawn;
#[cfg(not(target_os = "openbsd"))]
pub use spawn::spawn;

/// Taken from the kernel at a time.
const EVENTS: usize = 64;

/// What a descriptor is watched for. All but the second are told of each change once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    Readable,
    /// One event, then none until it is armed again.
    ReadableOnce,
    Writable,
    /// The other end was closed.
    Closed,
}
