//! What the NIF and the helper say to each other, and how it travels.
//!
//! | module | holds |
//! |---|---|
//! | [`message`] | the closed enums, one datagram each |
//! | [`call`] | the one table of system calls: decoding, names and documentation come from it |
//! | [`constant`] | names of constants (`:rlimit_core`) to the numbers of this system |
//! | [`filter`] | which calls a process may be asked for; both sides keep to it |
//! | [`codec`] | bytes to messages and back; total, with bounded allocation |
//! | [`channel`] | `SOCK_SEQPACKET` with `SCM_RIGHTS`, large bodies as sealed memfds |
//!
//! Unsafe code, and all that names an operating system, stands in [`sys`] alone.

pub mod call;
pub mod channel;
pub mod codec;
pub mod constant;
pub mod errno;
pub mod filter;
pub mod message;
mod sys;
pub mod value;

/// Both sides must agree on this string exactly; the helper refuses any other peer with
/// `eproto`. The number after `+` counts changes of the message types.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "+9");
