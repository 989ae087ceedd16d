//! Reads stdin to its end and prints `LENGTH SHA256`. FAULTS row 16, `pipe!` in full.
#![no_main]

use nix::errno::Errno;
use sha2::{Digest, Sha256};
use stdio_testbin::*;

stdio_testbin::fixture!("digest MARK [--life S]", run);

fn run(cli: &mut Cli) -> i32 {
    cli.life();
    cli.mark();
    cli.done();

    let mut hash = Sha256::new();
    let mut length = 0;
    let mut buffer = vec![0; 65536];
    loop {
        match nix::unistd::read(std::io::stdin(), &mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                hash.update(&buffer[..count]);
                length += count;
            }
            Err(Errno::EINTR) => {}
            Err(error) => return failed("read", error),
        }
    }
    say(&format!(
        "{length} {}
",
        hex(&hash.finalize())
    ));
    0
}
