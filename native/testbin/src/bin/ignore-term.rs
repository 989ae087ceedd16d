//! Sleeps and does not go when asked politely. FAULTS row 26, `:kill_signal` escalation.
//!
//! Ignores TERM, HUP, INT, QUIT, USR1, USR2. With `--report` TERM is caught instead, and `term` is
//! printed for each one. Prints `ready` first.
#![no_main]

use nix::sys::signal::{sigprocmask, SigSet, SigmaskHow, Signal};
use stdio_testbin::*;

stdio_testbin::fixture!("ignore-term MARK [--report] [--life S]", run);

fn run(cli: &mut Cli) -> i32 {
    let report = cli.flag("--report");
    cli.life();
    cli.mark();
    cli.done();

    ignore_polite_signals();
    if !report {
        say("ready\n");
        sleep_for_ever();
    }
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set_signal(Signal::SIGTERM, nix::sys::signal::SigHandler::SigDfl);
    if let Err(error) = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None) {
        return failed("sigprocmask", error);
    }
    say("ready\n");
    loop {
        if set.wait().is_ok() {
            say("term\n");
        }
    }
}
