//! What ps(1) shows as a process's command line: the memory that execve(2) filled with arguments
//! and environment.

use std::ffi::CString;
use std::ptr;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::prctl;

struct Area {
    start: usize,
    /// What stood there at first.
    original: Vec<u8>,
}

/// Found once, while /proc is there to ask; forked processes have it at the same place.
static AREA: OnceLock<Option<Area>> = OnceLock::new();

/// To be called once the environment is no longer used, and before any change of the root.
pub fn remember_title_area() {
    AREA.get_or_init(find);
}

/// An empty title brings the first one back. Does nothing where the area was not found.
pub fn set_title(title: &[u8]) {
    let Some(area) = AREA.get_or_init(find) else {
        return;
    };
    let mut content = vec![0; area.original.len()];
    if title.is_empty() {
        content.copy_from_slice(&area.original);
    } else {
        // The last byte stays zero, so that what follows is never shown.
        let length = title.len().min(content.len().saturating_sub(1));
        content[..length].copy_from_slice(&title[..length]);
    }
    // SAFETY: `find` took address and length of this part of the stack from the kernel; it stays
    // mapped and writable for the life of the process. The C library no longer uses the
    // environment (cleared at start), and nobody holds a reference into the arguments, which
    // this single-threaded process reads by copies only.
    unsafe {
        let place = ptr::with_exposed_provenance_mut::<u8>(area.start);
        ptr::copy_nonoverlapping(content.as_ptr(), place, content.len());
    }
}

/// The title, and of the thread as much as fits. PR_SET_NAME, prctl(2)
pub fn set_title_and_name(title: &[u8]) -> Result<(), Errno> {
    // TASK_COMM_LEN is 16, with the NUL.
    const NAME_MAX: usize = 15;
    set_title(title);
    let name = &title[..title.len().min(NAME_MAX)];
    prctl::set_name(&CString::new(name).map_err(|_| Errno::EINVAL)?)
}

/// Fields 48-51 of /proc/self/stat: arg_start, arg_end, env_start, env_end. proc_pid_stat(5)
fn find() -> Option<Area> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may contain anything; the state after it is field 3.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<usize>().ok();
    let (start, arguments_end) = (field(48)?, field(49)?);
    let (environment, environment_end) = (field(50)?, field(51)?);
    let end = match environment == arguments_end {
        true => environment_end,
        false => arguments_end,
    };
    if start == 0 || end <= start {
        return None;
    }
    let mut original = vec![0; end - start];
    // SAFETY: as in `set_title`: the kernel named this mapped part of the stack.
    unsafe {
        let place = ptr::with_exposed_provenance::<u8>(start);
        ptr::copy_nonoverlapping(place, original.as_mut_ptr(), original.len());
    }
    Some(Area { start, original })
}
