//! Ends with an exit status or by a signal. FAULTS row 27.
//!
//! `--code N`         exits with N (0..255)
//! `--signal SIG`     sends itself SIG: a number, or a name such as TERM, sigterm
//! `--after MS`       first sleeps
//!
//! A signal that does not end the process (ignored by default, or PID 1 of a namespace) leads to
//! `survived` on stdout and exit status 0.
#![no_main]

use std::time::Duration;

use nix::sys::resource::{setrlimit, Resource};
use nix::sys::signal::Signal;
use stdio_testbin::*;

stdio_testbin::fixture!(
    "exit-with MARK --code N | --signal SIG [--after MS] [--life S]",
    run
);

fn run(cli: &mut Cli) -> i32 {
    let code: Option<u8> = cli.option("--code");
    let signal: Option<String> = cli.option("--signal");
    let after = Duration::from_millis(cli.option("--after").unwrap_or(0));
    cli.life();
    cli.mark();
    cli.done();

    sleep(after);
    match (code, signal.as_deref().map(number)) {
        (Some(code), None) => i32::from(code),
        (None, Some(Some(signal))) => kill_self(signal),
        _ => cli.refuse("give either --code or --signal"),
    }
}

fn number(name: &str) -> Option<i32> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    bare.parse().ok().or_else(|| {
        let signal: Signal = format!("SIG{bare}").parse().ok()?;
        Some(signal as i32)
    })
}

fn kill_self(signal: i32) -> i32 {
    // Core files are no part of the test.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    // SAFETY: restores default dispositions and an empty mask in a process with one thread; the
    // signal set is initialised by sigemptyset before use.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::signal(signal, libc::SIG_DFL);
        // By number, since nix has no names for real-time signals.
        if libc::kill(libc::getpid(), signal) != 0 {
            return failed("kill", nix::errno::Errno::last());
        }
    }
    say("survived\n");
    0
}
