//! Everything that names an operating system, and all of the helper's unsafe code.
//!
//! | file | |
//! |---|---|
//! | `posix`, `memory` | the same everywhere |
//! | `linux`, `bsd` with `freebsd` or `openbsd` | one interface: this page |

#[cfg(any(target_os = "freebsd", target_os = "openbsd"))]
mod bsd;
#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;
mod memory;
#[cfg(target_os = "openbsd")]
mod openbsd;
mod posix;

#[cfg(any(target_os = "freebsd", target_os = "openbsd"))]
pub use bsd::*;
#[cfg(target_os = "freebsd")]
pub use freebsd::*;
#[cfg(target_os = "linux")]
pub use linux::*;
#[cfg(target_os = "openbsd")]
pub use openbsd::*;
pub use {memory::Argument, posix::*};
