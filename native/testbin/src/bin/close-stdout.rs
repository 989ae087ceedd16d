//! Prints `closing`, closes stdout, lives on for MS, then exits with CODE (0): the end of output
//! is not the exit. FAULTS row 22.
//!
//! `--stderr` closes stderr too.
#![no_main]

use std::os::fd::AsFd;
use std::time::Duration;

use stdio_testbin::*;

stdio_testbin::fixture!("close-stdout MARK MS [CODE] [--stderr] [--life S]", run);

fn run(cli: &mut Cli) -> i32 {
    let stderr_too = cli.flag("--stderr");
    cli.life();
    cli.mark();
    let linger = Duration::from_millis(cli.word("MS"));
    let code = cli.optional_word("CODE").unwrap_or(0);
    cli.done();

    say("closing\n");
    if let Err(error) = close_standard(std::io::stdout().as_fd()) {
        return failed("close", error);
    }
    if stderr_too {
        let _ = close_standard(std::io::stderr().as_fd());
    }
    sleep(linger);
    code
}
