//! See `sys/linux/break_out.rs`; no other system has what it does.
#![no_main]

stdio_testbin::fixture!(
    "break-out MARK [--nested | --calls]",
    stdio_testbin::sys::break_out
);
