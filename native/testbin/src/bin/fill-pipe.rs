//! Writes BYTES of a deterministic pattern (byte i is i % 251). FAULTS rows 15, 16, 17, 24.
//!
//! `--to stdout|stderr|both`  where to (stdout); both: BYTES to each, in alternating chunks
//! `--chunk N`                bytes per write (65536)
//! `--rate BYTES_PER_S`       not faster than that
//! `--digest`                 at the end prints `LENGTH SHA256` to the other stream
//! `--linger MS`              lives on for MS after the last byte
#![no_main]

use std::time::{Duration, Instant};

use nix::errno::Errno;
use sha2::{Digest, Sha256};
use stdio_testbin::*;

stdio_testbin::fixture!(
    "fill-pipe MARK BYTES [--to stdout|stderr|both] [--chunk N] [--rate BYTES_PER_S] [--digest] \
     [--linger MS] [--life S]",
    run
);

fn run(cli: &mut Cli) -> i32 {
    let to: String = cli.option("--to").unwrap_or_else(|| "stdout".into());
    let chunk: usize = cli.option("--chunk").unwrap_or(65536);
    let rate: Option<f64> = cli.option("--rate");
    let digest = cli.flag("--digest");
    let linger = Duration::from_millis(cli.option("--linger").unwrap_or(0));
    cli.life();
    cli.mark();
    let total: u64 = cli.word("BYTES");
    cli.done();
    let (out, err) = match to.as_str() {
        "stdout" => (true, false),
        "stderr" => (false, true),
        "both" => (true, true),
        _ => cli.refuse("--to: bad value"),
    };
    if chunk == 0 || (digest && out && err) {
        cli.refuse("--chunk 0, or --digest without a free stream");
    }

    let bytes = pattern(chunk + PATTERN_PERIOD);
    let mut hash = Sha256::new();
    let started = Instant::now();
    let mut done: u64 = 0;
    while done < total {
        let length = usize::try_from(total - done).unwrap_or(chunk).min(chunk);
        let start = usize::try_from(done % PATTERN_PERIOD as u64).unwrap_or(0);
        let part = &bytes[start..start + length];
        if digest {
            hash.update(part);
        }
        if let Err(error) = put(out, err, part) {
            return failed("write", error);
        }
        done += length as u64;
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64(done as f64 / rate);
            sleep(due.saturating_sub(started.elapsed()));
        }
    }
    if digest {
        let line = format!("{done} {}\n", hex(&hash.finalize()));
        if out {
            complain(&line);
        } else {
            say(&line);
        }
    }
    sleep(linger);
    0
}

fn put(out: bool, err: bool, part: &[u8]) -> Result<(), Errno> {
    if out {
        write_all(std::io::stdout(), part)?;
    }
    if err {
        write_all(std::io::stderr(), part)?;
    }
    Ok(())
}
