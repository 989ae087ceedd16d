//! The only place that sends messages to Elixir processes.
//!
//! `OwnedEnv::send_and_clear` panics on a scheduler thread, so this runs on I/O threads only.
//! Every message is a tuple whose first element is the reference that its receiver chose.

use rustler::env::SavedTerm;
use rustler::{Atom, Encoder, Env, LocalPid, OwnedBinary, OwnedEnv, Reference, ResourceArc, Term};
use stdio_protocol::constant;
use stdio_protocol::message::{Exit, Refusal, Stage, Usage};
use stdio_protocol::value::Value;

use crate::atoms;
use crate::pipe::Stream;
use crate::spec::{encode, errno_atom};
use crate::task::TaskHandle;

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
    /// The supervisor can have another program.
    pub rests: bool,
}

impl End {
    /// What is assumed where the status was lost.
    pub fn killed() -> Self {
        Self {
            exit: Exit::Signal(libc::SIGKILL),
            usage: Usage::default(),
            survivors: 0,
            rests: false,
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

/// Who gets what a task says.
pub struct Listener {
    pub first: LocalPid,
    /// If that one has died a moment ago.
    pub otherwise: Option<LocalPid>,
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

    /// Whether it has arrived. A dead receiver is no error: its monitor is on the way.
    fn send<'a>(&mut self, to: &LocalPid, build: impl FnOnce(Env<'a>) -> Term<'a>) -> bool {
        self.env.send_and_clear(to, build).is_ok()
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

    /// `{:stdout | :stderr, task, chunk}`
    pub fn output(&mut self, to: &Listener, task: &Task, stream: Stream, chunk: OwnedBinary) {
        let spare = to.otherwise.map(|owner| {
            let copy = OwnedBinary::from_slice(chunk.as_slice());
            (owner, copy)
        });
        let mut send = |to, chunk: OwnedBinary| {
            self.send(to, |env| {
                let chunk = chunk.release(env).to_term(env);
                (stream, encode_task(env, task), chunk).encode(env)
            })
        };
        if let (false, Some((owner, copy))) = (send(&to.first, chunk), spare) {
            send(&owner, copy);
        }
    }

    /// `{:exit_status, task, status}` or `{:termsig, task, signal}`
    pub fn terminal(&mut self, to: &Listener, task: &Task, exit: Exit) {
        let mut send = |to| {
            self.send(to, |env| {
                let task = encode_task(env, task);
                match exit {
                    Exit::Status(status) => (atoms::exit_status(), task, status).encode(env),
                    Exit::Signal(signal) => {
                        (atoms::termsig(), task, encode_signal(env, signal)).encode(env)
                    }
                }
            })
        };
        if let (false, Some(owner)) = (send(&to.first), to.otherwise) {
            send(&owner);
        }
    }

    /// `{:signal, task, signal, siginfo}`
    pub fn signal(&mut self, to: &LocalPid, task: &Task, signal: i32, info: &[u8]) {
        self.send(to, |env| {
            let info = OwnedBinary::from_slice(info).release(env).to_term(env);
            let (task, name) = (encode_task(env, task), encode_signal(env, signal));
            (atoms::signal(), task, name, info).encode(env)
        });
    }

    /// `{ref, {:ok, task}}`
    pub fn forked(&mut self, waiter: &Waiter, task: &Task) {
        self.send(&waiter.pid, |env| {
            let ok = (atoms::ok(), encode_task(env, task));
            (waiter.tag.encode(env), ok).encode(env)
        });
    }

    /// `{ref, {:ok, task}}`, or `{ref, {:ok, task, the one that it guards}}`
    pub fn born(&mut self, waiter: &Waiter, task: &Task, guarded: Option<&Task>) {
        let Some(guarded) = guarded else {
            return self.forked(waiter, task);
        };
        self.send(&waiter.pid, |env| {
            let ok = (
                atoms::ok(),
                encode_task(env, task),
                encode_task(env, guarded),
            );
            (waiter.tag.encode(env), ok).encode(env)
        });
    }

    /// `{ref, {:done, steps, value | {:error, posix} | :undef, :same | {:state, value}}}`
    pub fn done(
        &mut self,
        waiter: &Waiter,
        steps: u32,
        result: &Result<Value, Refusal>,
        state: Option<&Value>,
    ) {
        self.send(&waiter.pid, |env| {
            let encode = |value| encode(env, value).unwrap_or_else(|| atoms::error().encode(env));
            let result = match result {
                Ok(value) => encode(value),
                Err(Refusal::Errno(errno)) => (atoms::error(), errno_atom(env, *errno)).encode(env),
                Err(Refusal::Undefined) => atoms::undef().encode(env),
            };
            let state = match state {
                Some(value) => (atoms::state(), encode(value)).encode(env),
                None => atoms::same().encode(env),
            };
            let done = (atoms::done(), steps, result, state);
            (waiter.tag.encode(env), done).encode(env)
        });
    }

    /// `{ref, :ended}`: of a task that is held, whose output is read to its end when it is released.
    pub fn ended(&mut self, to: &LocalPid, tag: &Tag) {
        self.send(to, |env| (tag.encode(env), atoms::ended()).encode(env));
    }

    /// `{ref, :stopped}`
    pub fn stopped(&mut self, waiter: &Waiter) {
        self.send(&waiter.pid, |env| {
            (waiter.tag.encode(env), atoms::stopped()).encode(env)
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

type Task = ResourceArc<TaskHandle>;

/// `%Stdio.Task{ref: …}`: the resource's term is a reference.
pub fn encode_task<'a>(env: Env<'a>, task: &Task) -> Term<'a> {
    let pairs = [
        (atoms::__struct__(), atoms::task_module().encode(env)),
        (atoms::ref_(), task.encode(env)),
    ];
    Term::map_from_pairs(env, &pairs).unwrap_or_else(|_| atoms::error().encode(env))
}

/// `:sigterm` for 15; a real-time signal is `:unknown`.
fn encode_signal(env: Env<'_>, signal: i32) -> Term<'_> {
    Atom::from_str(env, &constant::signal_name(signal))
        .unwrap_or_else(|_| atoms::error())
        .to_term(env)
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
pub fn encode_usage<'a>(env: Env<'a>, usage: &Usage) -> Term<'a> {
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
