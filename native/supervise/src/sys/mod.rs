//! Everything that names an operating system, and all of the helper's unsafe code.

#[cfg(target_os = "linux")]
mod calls;
#[cfg(target_os = "linux")]
mod cgroup;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod mount;
#[cfg(target_os = "linux")]
mod title;
#[cfg(target_os = "linux")]
pub use {calls::*, cgroup::*, linux::*, memory::Argument, mount::*, title::*};
