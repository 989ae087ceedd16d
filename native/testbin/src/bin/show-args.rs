//! Prints what execve(2) handed over, raw, each item followed by a NUL: `argc=N`, the N arguments
//! (argv[0] included), then the environment. Takes anything; MARK is whatever a test puts in.
//! FAULTS rows 35-37, 41.
#![no_main]

use std::ffi::{c_char, c_int, CStr};

#[no_mangle]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let mut bytes = format!("argc={argc}\0").into_bytes();
    let mut word = argv;
    // SAFETY: argv is a NULL-terminated array of C strings, and so is environ; nothing has changed
    // them since execve.
    unsafe {
        while !(*word).is_null() {
            bytes.extend_from_slice(CStr::from_ptr(*word).to_bytes_with_nul());
            word = word.add(1);
        }
        let mut variable = environ;
        while !variable.is_null() && !(*variable).is_null() {
            bytes.extend_from_slice(CStr::from_ptr(*variable).to_bytes_with_nul());
            variable = variable.add(1);
        }
    }
    match stdio_testbin::write_all(std::io::stdout(), &bytes) {
        Ok(()) => 0,
        Err(error) => stdio_testbin::failed("write", error),
    }
}

extern "C" {
    static environ: *const *const c_char;
}
