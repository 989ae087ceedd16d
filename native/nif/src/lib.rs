//! The NIF of Stdio.
//!
//! | file | noun |
//! |---|---|
//! | `launcher` | the fork server: started by the first use, restarted when it died |
//! | `stream` | one supervised program, as Elixir holds it: the resource and its NIFs |
//! | `task`, `node` | a process that serves requests: the resource and its NIFs; its state and events |
//! | `spec` | what Elixir asks for, decoded and checked |
//! | `reactor` | the I/O threads: readiness, timers, commands |
//! | `session` | one program's state machine, owned by an I/O thread |
//! | `pipe` | stdin's queue, stdout's and stderr's chunks |
//! | `fd` | descriptors: creation, limits; with `sys` the only unsafe code |
//! | `sys` | everything that names an operating system: epoll or kqueue |
//! | `notify` | the only place that sends messages |
//!
//! Rules:
//! 1. No NIF blocks a scheduler: descriptors are non-blocking, what may wait is dirty I/O
//!    (`launch`) or left to an I/O thread.
//! 2. A descriptor is closed by its owner's drop: an I/O thread owns all of a program's but
//!    stdin, which its mutex owns.
//! 3. A program's resource lives in its session until the terminal event, whatever Elixir holds:
//!    monitors vanish with their resource.

mod fd;
mod launcher;
mod node;
mod notify;
mod pipe;
mod reactor;
mod session;
mod spec;
mod stream;
mod sys;
mod task;

use rustler::{Env, Term};

mod atoms {
    rustler::atoms! {
        ok,
        error,
        wait,
        written,
        empty,
        eof,
        started,
        answered,
        best_effort,
        cgroup,
        pid_namespace,
        failed,
        exit,
        signal,
        exit_status,
        supervisor,
        fork,
        setup,
        step,
        exec,
        nil,
        launcher,
        badarg,
        undef,
        enotsup,
        epipe,
        ebadf,
        eacces,
        esrch,
        execed,
        done,
        state,
        same,
        ended,
        stopped,
        termsig,
        __struct__,
        ref_ = "ref",
        task_module = "Elixir.Stdio.Task",
    }
}

fn load(env: Env, _info: Term) -> bool {
    // The I/O threads run code of this library for as long as the node lives.
    fd::pin_library()
        && env.register::<stream::Handle>().is_ok()
        && env.register::<task::TaskHandle>().is_ok()
}

rustler::init!("Elixir.Stdio.Native", load = load);
