//! Tries to write a byte to every fd from 3 to MAX (1023) and prints those that did not give
//! EBADF, then `done`. FAULTS row 29.
//!
//!     fd 5 wrote                    the byte went out
//!     fd 6 EAGAIN                   open, but the write failed
//!     fd 7 open                     EBADF, yet open: it is for reading only
#![no_main]

use std::fmt::Write;

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal};
use stdio_testbin::*;

stdio_testbin::fixture!("write-fds MARK [MAX]", run);

fn run(cli: &mut Cli) -> i32 {
    cli.mark();
    let max = cli.optional_word("MAX").unwrap_or(1023);
    cli.done();

    set_signal(Signal::SIGPIPE, SigHandler::SigIgn);
    let mut report = String::new();
    for fd in 3..=max {
        // SAFETY: writes one byte of ours to a number nobody here owns; that it may belong to
        // somebody else is what is being tested.
        let written = unsafe { libc::write(fd, c"!".as_ptr().cast(), 1) };
        let error = Errno::last();
        // SAFETY: F_GETFD only reads the flags of whatever has this number.
        let open = unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
        let _ = match (written, error) {
            (0.., _) => writeln!(report, "fd {fd} wrote"),
            (_, Errno::EBADF) if open => writeln!(report, "fd {fd} open"),
            (_, Errno::EBADF) => Ok(()),
            (_, error) => writeln!(report, "fd {fd} {error:?}"),
        };
    }
    say(&report);
    say("done\n");
    0
}
