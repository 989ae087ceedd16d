//! N processes, each of which forks and exits in a loop, so that its pid changes all the time and
//! a kill by pid comes too late. FAULTS rows 21, 43.
//!
//! `--pause-us U`         rest between two hops (0)
//! `--setsid`             every hop starts a session of its own
//! `--leader-exits CODE`  the leader exits once all hop, else it sleeps
//!
//! Prints `ready` when all N hop. Without a pause they leave zombies faster than a slow init reaps
//! them, and then no pid is left for anybody: have them run below a subreaper that reaps.
#![no_main]

use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::{fork, ForkResult};
use stdio_testbin::*;

stdio_testbin::fixture!(
    "hopper MARK N [--pause-us U] [--setsid] [--leader-exits CODE] [--life S]",
    run
);

fn run(cli: &mut Cli) -> i32 {
    let pause = Duration::from_micros(cli.option("--pause-us").unwrap_or(0));
    let session = Session::from_flag(cli.flag("--setsid"));
    let leader = Leader::take(cli);
    cli.life();
    cli.mark();
    let count: usize = cli.word("N");
    cli.done();

    set_signal(Signal::SIGCHLD, SigHandler::SigIgn);
    let roll = match Roll::new() {
        Ok(roll) => roll,
        Err(error) => return failed("pipe", error),
    };
    for _ in 0..count {
        if let Err(error) = fork_child(|| hop(&roll, pause, session)) {
            return failed("fork", error);
        }
    }
    if let Err(error) = roll.wait(count) {
        return failed("fork", error);
    }
    say("ready\n");
    leader.finish()
}

fn hop(roll: &Roll, pause: Duration, session: Session) -> i32 {
    let mut announced = false;
    while !expired() {
        if !pause.is_zero() {
            sleep(pause);
        }
        // SAFETY: fixtures have one thread, so the child may do whatever the parent may.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { .. }) => leave(0),
            Ok(ForkResult::Child) => {
                session.enter();
                if !announced {
                    roll.present();
                    announced = true;
                }
            }
            // No pid or memory right now: try again, which is what makes it a pest.
            Err(_) => {}
        }
    }
    0
}
