//! Calls that OpenBSD alone has.

use std::ffi::{c_char, CString};
use std::ptr;

use nix::errno::Errno;
use stdio_protocol::call::Call;
use stdio_protocol::value::{Nullable, Value};

use crate::call::{c_string, ok, Context};

/// `ENOSYS`: it is another system's.
pub fn own(call: &Call, _context: &Context) -> Result<Value, Errno> {
    match call {
        Call::Pledge {
            promises,
            execpromises,
        } => {
            let (promises, execpromises) = (string(promises)?, string(execpromises)?);
            // SAFETY: each is NULL or a NUL-terminated string that outlives the call.
            let result = unsafe { libc::pledge(pointer(&promises), pointer(&execpromises)) };
            Errno::result(result)?;
            ok()
        }
        Call::Unveil { path, perms } => {
            let (path, perms) = (string(path)?, string(perms)?);
            // SAFETY: as above.
            Errno::result(unsafe { libc::unveil(pointer(&path), pointer(&perms)) })?;
            ok()
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn string(text: &Nullable) -> Result<Option<CString>, Errno> {
    text.0.as_ref().map(|bytes| c_string(bytes)).transpose()
}

fn pointer(text: &Option<CString>) -> *const c_char {
    text.as_ref().map_or(ptr::null(), |text| text.as_ptr())
}
