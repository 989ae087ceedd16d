//! Reads stdin at RATE bytes per second and prints the number of bytes at its end. FAULTS row 15.
//!
//! `--chunk N`    bytes per read (4096)
//! `--limit N`    stops reading after N bytes: closes stdin, prints the number, exits
#![no_main]

use std::time::{Duration, Instant};

use nix::errno::Errno;
use stdio_testbin::*;

stdio_testbin::fixture!(
    "slow-read MARK RATE [--chunk N] [--limit N] [--life S]",
    run
);

fn run(cli: &mut Cli) -> i32 {
    let chunk: usize = cli.option("--chunk").unwrap_or(4096);
    let limit: usize = cli.option("--limit").unwrap_or(usize::MAX);
    cli.life();
    cli.mark();
    let rate: f64 = cli.word("RATE");
    cli.done();
    if chunk == 0 || rate <= 0.0 {
        cli.refuse("--chunk and RATE must be above 0");
    }

    let mut buffer = vec![0; chunk];
    let started = Instant::now();
    let mut length = 0;
    while length < limit {
        let room = chunk.min(limit - length);
        match nix::unistd::read(std::io::stdin(), &mut buffer[..room]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(Errno::EINTR) => {}
            Err(error) => return failed("read", error),
        }
        let due = Duration::from_secs_f64(length as f64 / rate);
        sleep(due.saturating_sub(started.elapsed()));
    }
    say(&format!("{length}\n"));
    0
}
