//! Tries to put input into a terminal that is not its own, and to make it its own. Prints the
//! outcome of each try, `name=ok` or `name=ERRNO`. FAULTS row 28.
//!
//!     standard=   TIOCSTI on fds 0-2, the last outcome
//!     open=       of /dev/tty, the controlling terminal
//!     push=       TIOCSTI on TTY
//!     take=       TIOCSCTTY on TTY, which is led by another session
//!     control=    /dev/tty after all that
//!
//! TTY is the one that `lend-tty` gave, if it is not named. What is put in is a line of its own: `#`.
#![no_main]

use std::ffi::c_ulong;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use stdio_testbin::*;

stdio_testbin::fixture!("type-tty MARK [TTY]", run);

fn run(cli: &mut Cli) -> i32 {
    cli.life();
    cli.mark();
    let lent = std::env::var("STDIO_TEST_TTY").unwrap_or_default();
    let tty: String = cli.optional_word("TTY").unwrap_or(lent);
    cli.done();

    let standard = (0..=2).map(push).reduce(|all, one| all.or(one));
    report("standard", standard.unwrap_or(Ok(())));
    report("open", open("/dev/tty", 0).map(drop));
    match open(&tty, libc::O_NOCTTY) {
        Ok(tty) => {
            report("push", push(tty.as_raw_fd()));
            report("take", control(tty.as_raw_fd()));
        }
        Err(error) => {
            report("push", Err(error));
            report("take", Err(error));
        }
    }
    // Without O_NOCTTY it would become the controlling one if nobody led it.
    drop(open(&tty, 0));
    report("control", open("/dev/tty", 0).map(drop));
    0
}

fn report(name: &str, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => say(&format!("{name}=ok\n")),
        Err(error) => say(&format!("{name}={error:?}\n")),
    }
}

fn open(path: &str, flags: i32) -> Result<File, Errno> {
    let mut options = OpenOptions::new();
    let opened = options
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path);
    opened.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

fn push(fd: i32) -> Result<(), Errno> {
    for byte in b"#\n" {
        stdio_testbin::sys::push(fd, *byte)?;
    }
    Ok(())
}

fn control(fd: i32) -> Result<(), Errno> {
    // SAFETY: takes an integer; 1 would steal it, with privileges.
    Errno::result(unsafe { libc::ioctl(fd, libc::TIOCSCTTY as c_ulong, 1) }).map(drop)
}
