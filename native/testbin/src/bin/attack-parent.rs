//! Tries to get hold of another process, by default its parent, and prints the outcome of each
//! try, `name=ok` or `name=ERRNO`. FAULTS row 28.
//!
//!     ptrace=  mem_read=  mem_write=  vm_readv=  fd_list=  pidfd_getfd=  environ=  kill=  exe=
//!
//! `kill` sends signal 0 only. An attached target is let go again. `exe` opens the executable for
//! writing, at once and by way of a reference to it, and writes nothing (ETXTBSY means that only
//! its being executed is in the way).
#![no_main]

use std::fs::OpenOptions;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{getppid, Pid};
use stdio_testbin::*;

stdio_testbin::fixture!("attack-parent MARK [PID] [--life S]", run);

fn run(cli: &mut Cli) -> i32 {
    cli.life();
    cli.mark();
    let target = cli.optional_word("PID").unwrap_or(getppid().as_raw());
    cli.done();

    report("kill", kill(Pid::from_raw(target), None));
    report("mem_read", open(target, "mem", Access::Read));
    report("mem_write", open(target, "mem", Access::Write));
    report("environ", read(target, "environ"));
    report("fd_list", list(target));
    for (name, outcome) in stdio_testbin::sys::attack(target) {
        report(name, outcome);
    }
    0
}

fn report(name: &str, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => say(&format!("{name}=ok\n")),
        Err(error) => say(&format!("{name}={error:?}\n")),
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

enum Access {
    Read,
    Write,
}

fn open(pid: i32, file: &str, access: Access) -> Result<(), Errno> {
    let mut options = OpenOptions::new();
    match access {
        Access::Read => options.read(true),
        Access::Write => options.write(true),
    };
    let opened = options.open(format!("/proc/{pid}/{file}"));
    opened.map(drop).map_err(errno)
}

fn read(pid: i32, file: &str) -> Result<(), Errno> {
    let bytes = std::fs::read(format!("/proc/{pid}/{file}"));
    bytes.map(drop).map_err(errno)
}

fn list(pid: i32) -> Result<(), Errno> {
    let mut seen = Err(Errno::ENOENT);
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(errno)? {
        match std::fs::read_link(entry.map_err(errno)?.path()).map_err(errno) {
            Ok(_) => seen = Ok(()),
            // Closed meanwhile.
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    seen
}
