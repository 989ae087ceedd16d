//! The only place that sends messages to Elixir processes.
//!
//! `OwnedEnv::send_and_clear` panics on a scheduler thread, so this runs on I/O threads only.
//! Every message is a tuple whose first element is the reference that its receiver chose.

use rustler::env::SavedTerm;
use rustler::{Encoder, Env, LocalPid, OwnedBinary, OwnedEnv, Reference, Term};
use stdio_protocol::message::{Exit, Stage, Usage};

use crate::atoms;
use crate::pipe::Stream;
use crate::spec::errno_atom;

/// A reference kept outside of any process.
pub struct Tag {
    env: OwnedEnv,
    reference: SavedTerm,
}

impl Tag {
    pub fn new(reference: Reference) -> Self {
        let env = OwnedEnv::new();
        let reference = env.save(reference);
        Self { env, reference }
    }

    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        self.env.run(|own| self.reference.load(own).in_env(env))
    }
}

/// A process that waits for a message.
pub struct Waiter {
    pub pid: LocalPid,
    pub tag: Tag,
}

/// How a program ended.
#[derive(Debug, Clone, Copy)]
pub struct End {
    pub exit: Exit,
    pub usage: Usage,
    /// Processes of its tree that could not be killed.
    pub survivors: u32,
}

impl End {
    /// What is assumed where the status was lost.
    pub fn killed() -> Self {
        Self {
            exit: Exit::Signal(libc::SIGKILL),
            usage: Usage::default(),
            survivors: 0,
        }
    }
}

/// Who failed: Elixir turns it into the right exception.
#[derive(Debug, Clone, Copy)]
pub enum Failure {
    /// The launcher could not fork the supervisor, or nothing answered.
    Supervisor {
        errno: i32,
    },
    /// The launcher died before the program was executed.
    LauncherLost,
    Task {
        stage: Stage,
        errno: i32,
    },
    /// The task ended before it could become the program, or say why not.
    DiedInSetup {
        exit: Exit,
    },
}

/// One I/O thread's sender; its environment is reused from message to message.
pub struct Notifier {
    env: OwnedEnv,
}

impl Notifier {
    pub fn new() -> Self {
        Self {
            env: OwnedEnv::new(),
        }
    }

    /// A dead receiver is no error: its owner monitor is on the way.
    fn send<'a>(&mut self, to: &LocalPid, build: impl FnOnce(Env<'a>) -> Term<'a>) {
        let _ = self.env.send_and_clear(to, build);
    }

    /// `{ref, {:stdout | :stderr, chunk}}`
    pub fn chunk(&mut self, to: &LocalPid, tag: &Tag, stream: Stream, chunk: OwnedBinary) {
        self.send(to, |env| {
            let chunk = chunk.release(env).to_term(env);
            (tag.encode(env), (stream, chunk)).encode(env)
        });
    }

    /// `{ref, :started, os_pid}`
    pub fn started(&mut self, to: &LocalPid, tag: &Tag, pid: i32) {
        self.send(to, |env| {
            (tag.encode(env), atoms::started(), pid).encode(env)
        });
    }

    /// `{ref, :failed, where, errno}`; `where` is `:launcher`, `:supervisor`, `:fork`, `:setup`, `{:step, n}`,
    /// `:exec` or `{:signal, n}` / `{:exit_status, n}` for a death in set-up.
    pub fn failed(&mut self, to: &LocalPid, tag: &Tag, failure: Failure) {
        self.send(to, |env| {
            let (place, errno) = match failure {
                Failure::LauncherLost => (atoms::launcher().encode(env), libc::EAGAIN),
                Failure::Supervisor { errno } => (atoms::supervisor().encode(env), errno),
                Failure::Task { stage, errno } => (encode_stage(env, stage), errno),
                Failure::DiedInSetup { exit } => (encode_exit(env, exit), libc::EAGAIN),
            };
            let errno = errno_atom(env, errno);
            (tag.encode(env), atoms::failed(), place, errno).encode(env)
        });
    }

    /// `{ref, :exit, {:exit_status | :signal, n}, rusage, survivors}`
    pub fn exited(&mut self, to: &LocalPid, tag: &Tag, end: &End) {
        self.send(to, |env| {
            let exit = encode_exit(env, end.exit);
            let usage = encode_usage(env, &end.usage);
            (tag.encode(env), atoms::exit(), exit, usage, end.survivors).encode(env)
        });
    }

    /// `{ref, :written}` or `{ref, {:error, :epipe}}`
    pub fn written(&mut self, waiter: &Waiter, result: Result<(), ()>) {
        self.send(&waiter.pid, |env| {
            let result = match result {
                Ok(()) => atoms::written().encode(env),
                Err(()) => (atoms::error(), atoms::epipe()).encode(env),
            };
            (waiter.tag.encode(env), result).encode(env)
        });
    }
}

fn encode_stage(env: Env<'_>, stage: Stage) -> Term<'_> {
    match stage {
        Stage::Fork => atoms::fork().encode(env),
        Stage::Setup => atoms::setup().encode(env),
        Stage::Step(index) => (atoms::step(), index).encode(env),
        Stage::Exec => atoms::exec().encode(env),
    }
}

fn encode_exit(env: Env<'_>, exit: Exit) -> Term<'_> {
    match exit {
        Exit::Status(status) => (atoms::exit_status(), status).encode(env),
        Exit::Signal(signal) => (atoms::signal(), signal).encode(env),
    }
}

/// In the order of CONTRACT's map; Elixir names the fields.
fn encode_usage<'a>(env: Env<'a>, usage: &Usage) -> Term<'a> {
    let fields = [
        usage.utime_us,
        usage.stime_us,
        usage.maxrss_kib,
        usage.minflt,
        usage.majflt,
        usage.inblock,
        usage.oublock,
        usage.nvcsw,
        usage.nivcsw,
    ];
    fields.as_slice().encode(env)
}
