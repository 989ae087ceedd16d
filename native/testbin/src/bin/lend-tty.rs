//! Gives a program a terminal to control: a new pseudo-terminal becomes that of its session. Its
//! standard streams stay what they are, STDIO_TEST_TTY names the terminal. FAULTS row 28.
//!
//! The program keeps this pid. A child of its reads what the terminal prints and keeps it open,
//! until the program ends.
#![no_main]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::unistd::{execv, setsid};
use stdio_testbin::*;

stdio_testbin::fixture!("lend-tty MARK PROGRAM [ARGUMENT...]", run);

fn run(cli: &mut Cli) -> i32 {
    cli.mark();
    let program = cli.rest();
    // A leader of a session cannot start one, and needs not.
    let _ = setsid();
    match lend().and_then(|()| execv(program.first().ok_or(Errno::EINVAL)?, &program)) {
        Ok(never) => match never {},
        Err(error) => failed("lend-tty", error),
    }
}

fn lend() -> Result<(), Errno> {
    let (mut terminal, mut lead) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: two numbers of ours are written, nothing else is asked for.
    Errno::result(unsafe {
        libc::openpty(
            &raw mut lead,
            &raw mut terminal,
            none,
            none.cast(),
            none.cast(),
        )
    })?;
    // SAFETY: both are open from now on, for as long as this process and its child live.
    let (lead, terminal) = unsafe {
        (
            BorrowedFd::borrow_raw(lead),
            BorrowedFd::borrow_raw(terminal),
        )
    };
    // SAFETY: takes an integer; 0 does not steal it.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    let path = nix::unistd::ttyname(terminal)?;
    std::env::set_var("STDIO_TEST_TTY", path);
    let closing = |fd: BorrowedFd| {
        let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
        nix::fcntl::fcntl(fd, flags)
    };
    closing(lead.as_fd())?;
    closing(terminal.as_fd())?;
    let parent = nix::unistd::getpid();
    fork_child(|| {
        stdio_testbin::sys::end_with_parent(parent);
        detach_stdio();
        let mut buffer = [0; 1024];
        while matches!(nix::unistd::read(lead, &mut buffer), Ok(1..)) {}
        0
    })
    .map(drop)
}
