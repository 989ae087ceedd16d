//! Never reads stdin; prints `ready` and sleeps. FAULTS row 15.
//!
//! `--for MS` exits with 0 after MS instead of sleeping on.
#![no_main]

use std::time::Duration;

use stdio_testbin::*;

stdio_testbin::fixture!("never-read MARK [--for MS] [--life S]", run);

fn run(cli: &mut Cli) -> i32 {
    let limit: Option<u64> = cli.option("--for");
    cli.life();
    cli.mark();
    cli.done();

    say("ready\n");
    match limit {
        Some(ms) => sleep(Duration::from_millis(ms)),
        None => sleep_for_ever(),
    }
    0
}
