//! A tree of sleeping processes: DEPTH levels below the leader, WIDTH children each.
//! FAULTS rows 2, 4, 6, 7, 17, 25, 26, 45.
//!
//! `--setsid`        every descendant leads a session of its own
//! `--double-fork`   every descendant is daemonised: its parent is gone before it runs
//! `--detach`        descendants point fds 0-2 at /dev/null (else they hold the pipes open)
//! `--ignore-term`   all ignore TERM, HUP, INT, QUIT, USR1, USR2
//! `--stop`          descendants SIGSTOP themselves; a leader that stays does so after "ready"
//! `--leader-exits CODE`  the leader exits once all exist, else it sleeps too
//!
//! Prints `ready` when all exist.
#![no_main]

use nix::sys::signal::{raise, Signal};
use stdio_testbin::*;

const USAGE_TEXT: &str = "fork-tree MARK DEPTH WIDTH [--setsid] [--double-fork] [--detach] \
     [--ignore-term] [--stop] [--leader-exits CODE] [--life S]";

stdio_testbin::fixture!(USAGE_TEXT, run);

struct Plan {
    width: usize,
    session: Session,
    double_fork: bool,
    detach: bool,
    stop: bool,
    roll: Roll,
}

fn run(cli: &mut Cli) -> i32 {
    let roll = match Roll::new() {
        Ok(roll) => roll,
        Err(error) => return failed("pipe", error),
    };
    let mut plan = Plan {
        width: 0,
        session: Session::from_flag(cli.flag("--setsid")),
        double_fork: cli.flag("--double-fork"),
        detach: cli.flag("--detach"),
        stop: cli.flag("--stop"),
        roll,
    };
    let ignore_term = cli.flag("--ignore-term");
    let leader = Leader::take(cli);
    cli.life();
    cli.mark();
    let depth: u32 = cli.word("DEPTH");
    plan.width = cli.word("WIDTH");
    cli.done();

    if ignore_term {
        ignore_polite_signals();
    }
    let expected = (1..=depth).map(|level| plan.width.pow(level)).sum();
    plant(&plan, depth);
    if let Err(error) = plan.roll.wait(expected) {
        return failed("fork", error);
    }
    say("ready\n");
    if plan.stop && leader == Leader::Stays {
        let _ = raise(Signal::SIGSTOP);
    }
    leader.finish()
}

fn plant(plan: &Plan, levels: u32) {
    if levels == 0 {
        return;
    }
    for _ in 0..plan.width {
        let planted = if plan.double_fork {
            daemonise(plan.session, || node(plan, levels - 1))
        } else {
            fork_child(|| {
                plan.session.enter();
                node(plan, levels - 1)
            })
            .map(|_| ())
        };
        if planted.is_err() {
            plan.roll.broken();
        }
    }
}

fn node(plan: &Plan, levels: u32) -> i32 {
    if plan.detach {
        detach_stdio();
    }
    plant(plan, levels);
    plan.roll.present();
    if plan.stop {
        let _ = raise(Signal::SIGSTOP);
    }
    sleep_for_ever()
}
