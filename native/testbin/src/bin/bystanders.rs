//! Short-lived processes that nobody has any business with: tells how many were signalled. With few
//! pids to go round, one of them soon has the pid of whatever has just ended. FAULTS row 43.
//!
//! Keeps COUNT of them going, each for a few milliseconds and some for longer, and prints `ready`.
//! After MS milliseconds, or at the end of its standard input, it prints
//!
//!     forked=N signalled=N first=SIGNAL
//!
//! and ends. They have no handlers: each signal but SIGCHLD, SIGCONT, SIGURG and SIGWINCH ends one,
//! which is seen.
#![no_main]

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{waitpid, WaitStatus};
use stdio_testbin::*;

stdio_testbin::fixture!("bystanders MARK COUNT MS [--life S]", run);

fn run(cli: &mut Cli) -> i32 {
    cli.life();
    cli.mark();
    let count: u64 = cli.word("COUNT");
    let ms = cli.word("MS");
    cli.done();

    let end = Instant::now() + Duration::from_millis(ms);
    let (mut forked, mut signalled, mut first, mut living) = (0, 0, 0, 0);
    say("ready\n");
    loop {
        let over = Instant::now() >= end || input_ended();
        while !over && living < count {
            match fork_child(|| stand_by(forked)) {
                Ok(_) => {
                    forked += 1;
                    living += 1;
                }
                // No pid is free.
                Err(_) => break,
            }
        }
        if living == 0 {
            if over {
                break;
            }
            sleep(Duration::from_millis(1));
            continue;
        }
        match waitpid(None, None) {
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                if signalled == 0 {
                    first = signal as i32;
                }
                signalled += 1;
                living -= 1;
            }
            Ok(_) => living -= 1,
            Err(Errno::EINTR) => {}
            Err(error) => return failed("waitpid", error),
        }
    }
    say(&format!(
        "forked={forked} signalled={signalled} first={first}\n"
    ));
    0
}

/// A group of its own half of the time: groups are signalled by number too.
fn stand_by(number: u64) -> i32 {
    if number.is_multiple_of(2) {
        Session::Own.enter();
    }
    let ms = if number.is_multiple_of(16) {
        20
    } else {
        number % 4
    };
    sleep(Duration::from_millis(ms));
    0
}

fn input_ended() -> bool {
    let mut poll = libc::pollfd {
        fd: std::os::fd::AsRawFd::as_raw_fd(&std::io::stdin().as_fd()),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure of ours.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
}
