//! Where there is nothing of what Linux alone has.

use nix::errno::Errno;
use nix::sys::resource::Resource;

use crate::{Cli, OSERR};

pub const LIMITS: [(&str, Resource); 0] = [];

/// SIGALRM ends it all the same.
pub fn end_with_parent(_parent: nix::unistd::Pid) {}

pub fn attributes(_lines: &mut Vec<String>) {}

pub fn attack(_target: i32) -> [(&'static str, Result<(), Errno>); 0] {
    []
}

pub fn break_out(_cli: &mut Cli) -> i32 {
    refuse("break-out")
}

pub fn strike() {
    std::process::exit(refuse("strike"));
}

fn refuse(name: &str) -> i32 {
    eprintln!("{name}: only on Linux");
    OSERR
}
