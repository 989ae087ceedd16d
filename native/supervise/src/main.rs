//! `stdio-supervise`: launcher, supervisors and tasks in one static, single-threaded executable.
//!
//! The BEAM starts it once per node as the **launcher** (possibly through sudo, then as root).
//! The launcher forks **supervisors**; a supervisor forks a **task**, which becomes the program.
//!
//! | file | role |
//! |---|---|
//! | `sanitize` | what is made sure of before a byte of input is read |
//! | `launcher` | the fork server, its socket is fd 0 |
//! | `supervisor` | owns one process tree and ends it |
//! | `task` | between fork and exec |
//! | `node` | a root or task that serves requests until it execs |
//! | `exec`, `call` | what a plan can ask for |
//! | `sys` | everything that names an operating system, and all unsafe code; in it |
//! | `sys/*/reap` | finding and killing the processes of a tree |
//! | `sys/*/own` | calls of one system alone |

mod call;
mod exec;
mod launcher;
mod node;
mod sanitize;
mod supervisor;
mod sys;
mod task;

use std::process::ExitCode;

use sys::reap;

/// A peer that breaks the protocol, or a start that is not the NIF's.
const EXIT_PROTOCOL: u8 = 2;

// Runs as whoever started it: the BEAM's user, or root by sudo or the setuid bit. Nothing of the
// caller (environment, descriptors, signals, arguments) is trusted.
fn main() -> ExitCode {
    sys::default_dispositions();
    sanitize::block_signals();
    sanitize::standard_descriptors();
    sys::close_from(3);
    if sanitize::settle_ids() {
        sanitize::refuse_open_executable();
        sanitize::forget_caller();
    }
    sys::clear_environment();
    sys::lead_session();
    sys::remember_title_area();
    sanitize::refuse_inspection();
    sanitize::assert_single_threaded();

    let control = match sanitize::control_socket() {
        Some(control) => control,
        None => {
            eprintln!(
                "stdio-supervise {}: the helper of the Elixir library Stdio, which starts it by \
                 itself.\nIt expects a SOCK_SEQPACKET socket as descriptor 0.",
                stdio_protocol::VERSION
            );
            return ExitCode::from(EXIT_PROTOCOL);
        }
    };
    launcher::run(control, sanitize::signals())
}
