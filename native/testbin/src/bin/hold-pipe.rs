//! Leaves a daemon that keeps stdout and stderr open for SECONDS after the leader's exit.
//! FAULTS row 23.
//!
//! `--code CODE`   the leader's exit status (0)
//! `--setsid`      the daemon leads a session of its own
//! `--late`        the daemon prints `late` just before it goes
//!
//! The leader prints `ready` when the daemon exists.
#![no_main]

use std::time::Duration;

use stdio_testbin::*;

stdio_testbin::fixture!(
    "hold-pipe MARK SECONDS [--code CODE] [--setsid] [--late] [--life S]",
    run
);

fn run(cli: &mut Cli) -> i32 {
    let code = cli.option("--code").unwrap_or(0);
    let session = Session::from_flag(cli.flag("--setsid"));
    let late = cli.flag("--late");
    cli.life();
    cli.mark();
    let seconds: f64 = cli.word("SECONDS");
    cli.done();

    let daemon = daemonise(session, || {
        sleep(Duration::try_from_secs_f64(seconds).unwrap_or_default());
        if late {
            say("late\n");
        }
        0
    });
    if let Err(error) = daemon {
        return failed("fork", error);
    }
    say("ready\n");
    code
}
