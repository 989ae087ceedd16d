//! See `sys/linux/strike.rs`; no other system has what it does.

fn main() {
    stdio_testbin::sys::strike();
}
