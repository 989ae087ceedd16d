//! One supervised program as Elixir holds it: `spawn`, `read`, `write`, `stop`.
//!
//! Who reads stdout and stderr, rules:
//! 1. A stream is either armed, and then the I/O thread sends the next chunk; or in the consumer's
//!    hand, which reads it by its own NIF call. Both are armed at the start.
//! 2. A chunk that was sent puts its stream into the consumer's hand. A read that finds nothing
//!    arms it, unless the consumer says that it will look again.
//! 3. After `:exit` both are in the consumer's hand for good.
//!
//! So a busy stream costs no thread switch and no message, an idle one no polling, and at most
//! one chunk of each stream is under way to a slow consumer.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustler::{
    Atom, Binary, Encoder, Env, LocalPid, Monitor, OwnedBinary, Reference, Resource, ResourceArc,
    Term,
};
use stdio_protocol::channel::{self, is_busy};
use stdio_protocol::message::{Escalation, Namespaces, Start, ToRoot, ToTask};

use crate::launcher::{self, is_gone, Launcher, Root};
use crate::notify::{Tag, Waiter};
use crate::pipe::{Chunk, Outputs, Stdin, Stream, Written};
use crate::reactor::{self, Command, Role, SessionId, Shard};
use crate::session::{Addressee, Message, Ownership, Progress, Session, Unsent};
use crate::spec::{bad_step, errno_atom, Spec, StderrMode, StdinMode};
use crate::{atoms, fd, session};

/// What a program's handle and its session have in common.
pub struct Shared {
    pub id: SessionId,
    shard: Arc<Shard>,
    stdin: Mutex<Stdin>,
    outputs: Mutex<Outputs>,
    pub max_chunk: usize,
}

impl Shared {
    pub fn stdin(&self) -> MutexGuard<'_, Stdin> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the I/O thread write what is queued.
    fn watch_stdin(&self, stdin: &mut Stdin) -> Result<(), Errno> {
        if let Some(fd) = stdin.unwatched() {
            return self.shard.register(self.id, Role::Stdin, fd.as_fd());
        }
        // The pipe may have room left, and then no event comes.
        if stdin.stopped_early() {
            self.shard.command(Command::Stdin(self.id));
        }
        Ok(())
    }

    pub fn outputs(&self) -> MutexGuard<'_, Outputs> {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The I/O thread sends the next chunk of this stream. An error would be a bug of ours; the
    /// stream then ends with the program.
    pub fn arm(&self, outputs: &Outputs, role: Role, stream: Stream) {
        if let Some(output) = outputs.output(stream) {
            let _ = self.shard.arm(self.id, role, output.fd());
        }
    }
}

/// The resource.
pub struct Handle {
    shared: Arc<Shared>,
}

impl Resource for Handle {
    const IMPLEMENTS_DOWN: bool = true;

    /// The owner died. Only enqueues: this runs on a scheduler.
    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, _monitor: Monitor) {
        let shared = &self.shared;
        shared.shard.command(Command::OwnerDown(shared.id));
    }
}

/// Both ends of everything that a program is connected by.
struct Connections {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    /// stdin, stdout, stderr.
    program: Vec<OwnedFd>,
}

impl Connections {
    fn new(spec: &Spec<'_>, launcher: &Launcher) -> Result<Self, Errno> {
        let (stdin_end, stdin) = match spec.stdin {
            StdinMode::Pipe => {
                let (read, write) = fd::pipe()?;
                (read, Some(ours(write)?))
            }
            StdinMode::Null => (fd::null()?, None),
        };
        let (stdout, stdout_end) = fd::pipe()?;
        let (stderr, stderr_end) = match spec.stderr {
            StderrMode::Separate => {
                let (read, write) = fd::pipe()?;
                (Some(ours(read)?), write)
            }
            StderrMode::Stdout => (None, stdout_end.try_clone().map_err(|_| Errno::EMFILE)?),
            StderrMode::Null => (None, fd::null()?),
        };
        let pipes = [
            (&stdin_end, spec.stdin == StdinMode::Pipe),
            (&stdout_end, true),
            (&stderr_end, spec.stderr == StderrMode::Separate),
        ];
        if launcher.changes_users() {
            for (end, _) in pipes.iter().filter(|(_, is_pipe)| *is_pipe) {
                fd::open_to_all(end)?;
            }
        }
        Ok(Self {
            stdin,
            stdout: ours(stdout)?,
            stderr,
            program: vec![stdin_end, stdout_end, stderr_end],
        })
    }
}

/// An end that the BEAM keeps as long as the program lives.
fn ours(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    fd::nonblocking(&fd)?;
    Ok(fd::keep_out_of_the_way(fd))
}

/// Starts a program for the calling process, which becomes its owner. `{:ok, handle}`; what
/// becomes of it is told by messages `{ref, …}`, see `notify`.
///
/// `{:error, :launcher}`: there is none, launch it. `{:error, posix}`.
/// `{:error, {:step, index, :undef | :enotsup | {:badarg, position}}}`.
#[rustler::nif]
fn spawn<'a>(env: Env<'a>, spec: Spec<'a>, reference: Reference<'a>) -> Term<'a> {
    spawn_program(env, &spec, reference)
}

/// The same for arguments and environments that take a while to copy.
#[rustler::nif(schedule = "DirtyIo")]
fn spawn_large<'a>(env: Env<'a>, spec: Spec<'a>, reference: Reference<'a>) -> Term<'a> {
    spawn_program(env, &spec, reference)
}

fn spawn_program<'a>(env: Env<'a>, spec: &Spec<'a>, reference: Reference<'a>) -> Term<'a> {
    let start = match spec.start(env) {
        Ok(start) => start,
        Err(bad) => return bad_step(env, bad),
    };
    let Some(launcher) = launcher::current(&spec.privilege) else {
        return (atoms::error(), atoms::launcher()).encode(env);
    };
    let started = Connections::new(spec, &launcher).and_then(|mut connections| {
        let owner = Owner {
            env,
            tag: Tag::new(reference),
            max_chunk: spec.max_chunk,
            deadline: spec
                .timeout
                .map(|timeout| Duration::from_millis(timeout.saturating_add(spec.kill_timeout))),
        };
        let request = Request::new(start, std::mem::take(&mut connections.program))?;
        connect(owner, launcher, request, connections)
    });
    match started {
        Ok(handle) => (atoms::ok(), handle).encode(env),
        Err(errno) if is_gone(errno) => (atoms::error(), atoms::launcher()).encode(env),
        Err(errno) => (atoms::error(), errno_atom(env, errno as i32)).encode(env),
    }
}

struct Owner<'a> {
    env: Env<'a>,
    tag: Tag,
    max_chunk: usize,
    deadline: Option<Duration>,
}

/// What starts a program.
struct Request {
    unsent: Unsent,
    /// Our end of the socket of a child that is born for it alone.
    task: Option<OwnedFd>,
}

impl Request {
    fn new(start: Start, mut standard: Vec<OwnedFd>) -> Result<Self, Errno> {
        // Only its birth gives a process namespaces.
        if start.plan.namespaces != Namespaces::default() {
            let (task, task_peer) = channel::pair()?;
            standard.insert(0, task_peer);
            let start = ToRoot::Start(Box::new(start));
            let start = Message::new(Addressee::Root, &start, standard)?;
            return Ok(Self {
                unsent: Unsent::new(vec![start]),
                task: Some(fd::keep_out_of_the_way(task)),
            });
        }
        let mut messages = Vec::with_capacity(2);
        if let Some(watch) = start.watch {
            let watch = ToRoot::Watch(watch);
            messages.push(Message::new(Addressee::Root, &watch, Vec::new())?);
        }
        let script = ToTask::Start(Box::new(start.plan.script));
        messages.push(Message::new(Addressee::Child, &script, standard)?);
        Ok(Self {
            unsent: Unsent::new(messages),
            task: None,
        })
    }

    /// Sends it to a root, or its child; what does not fit now is left to the I/O thread.
    fn send(mut self, launcher: &Launcher) -> Result<Sent, Errno> {
        loop {
            let mut root = launcher.root(self.task.is_none())?;
            let waiting = match (&self.task, root.task.take()) {
                (Some(_), _) => None,
                (None, Some(waiting)) => Some(waiting),
                (None, None) => Some(self.unsent.bear()?),
            };
            let task = self.task.as_ref().or(waiting.as_ref());
            let task = task.ok_or(Errno::EPROTO)?;
            let unsent = match self.unsent.send(&root.socket, task) {
                Ok(()) => None,
                Err(error) if is_busy(error.errno()) => {
                    self.unsent.keep_out_of_the_way();
                    Some(self.unsent)
                }
                // It died while it waited.
                Err(_) if root.spare => {
                    self.unsent.start_over();
                    continue;
                }
                // It has ended, and why is to be heard on the sockets.
                Err(error) if is_gone(error.errno()) => None,
                Err(error) => return Err(error.errno()),
            };
            return Ok(Sent {
                root,
                task: self.task.or(waiting).ok_or(Errno::EPROTO)?,
                unsent,
            });
        }
    }
}

/// A start that is under way.
struct Sent {
    root: Root,
    task: OwnedFd,
    unsent: Option<Unsent>,
}

/// The start message goes out first, the I/O thread is told meanwhile: it takes the program longer
/// to be executed than the thread to look.
fn connect(
    owner: Owner<'_>,
    launcher: Arc<Launcher>,
    request: Request,
    connections: Connections,
) -> Result<ResourceArc<Handle>, Errno> {
    let sent = request
        .send(&launcher)
        .inspect_err(|errno| launcher.note_failure(*errno))?;
    // Where an earlier program of this root was.
    let shard = reactor::shard(sent.root.id)?;
    let shared = Arc::new(Shared {
        id: reactor::next_id(),
        shard: shard.clone(),
        stdin: Mutex::new(Stdin::new(connections.stdin)),
        outputs: Mutex::new(Outputs::new(connections.stdout, connections.stderr)),
        max_chunk: owner.max_chunk,
    });
    let handle = ResourceArc::new(Handle {
        shared: shared.clone(),
    });
    let pid = owner.env.pid();
    if handle.monitor(Some(owner.env), &pid).is_none() {
        return Err(Errno::ESRCH);
    }
    shard.command(Command::Add(Box::new(Session {
        shared,
        _handle: handle.clone(),
        launcher,
        owner: pid,
        _ownership: Ownership::new(pid),
        tag: owner.tag,
        unsent: sent.unsent,
        asked: Instant::now(),
        deadline: owner.deadline,
        root_id: sent.root.id,
        root_watched: sent.root.watched,
        forked_ahead: sent.root.spare,
        root: Some(sent.root.socket),
        task: Some(sent.task),
        progress: Progress::default(),
    })));
    Ok(handle)
}

/// `:ok` when all is written or queued; `:wait`: `{ref, :written}` or `{ref, {:error, :epipe}}`
/// will come; `{:error, :epipe}`.
#[rustler::nif]
fn write<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    data: Binary<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    let shared = &handle.shared;
    let mut stdin = shared.stdin();
    let written = stdin.write(data, || Waiter {
        pid: env.pid(),
        tag: Tag::new(reference),
    });
    if stdin.is_pending() && shared.watch_stdin(&mut stdin).is_err() {
        return (atoms::error(), atoms::epipe()).encode(env);
    }
    match written {
        Written::Done => atoms::ok().encode(env),
        Written::Waiting => atoms::wait().encode(env),
        Written::Closed => (atoms::error(), atoms::epipe()).encode(env),
    }
}

/// Closes stdin once everything accepted is written. `{:error, :ebadf}`: it was closed already.
#[rustler::nif]
fn close_stdin<'a>(env: Env<'a>, handle: ResourceArc<Handle>) -> Term<'a> {
    if handle.shared.stdin().close() {
        atoms::ok().encode(env)
    } else {
        (atoms::error(), atoms::ebadf()).encode(env)
    }
}

/// The next chunk of a stream that is in the caller's hand; `:empty` (it is armed now, if the
/// program lives and the caller will not look `again`); `:eof`.
#[rustler::nif]
fn read<'a>(env: Env<'a>, handle: ResourceArc<Handle>, stream: Stream, again: bool) -> Term<'a> {
    let shared = &handle.shared;
    let mut outputs = shared.outputs();
    match outputs.read(stream, shared.max_chunk, again) {
        Chunk::Data(chunk) => chunk.release(env).to_term(env),
        Chunk::Empty => {
            if !again && !outputs.ended {
                let role = match stream {
                    Stream::Stdout => Role::Stdout,
                    Stream::Stderr => Role::Stderr,
                };
                shared.arm(&outputs, role, stream);
            }
            atoms::empty().encode(env)
        }
        Chunk::End => atoms::eof().encode(env),
    }
}

/// Whether a read of a stream in the caller's hand would find something, its end included. Unlike read(2)
/// it does not take the pipe's lock from a program that writes.
#[rustler::nif]
fn readable(handle: ResourceArc<Handle>, stream: Stream) -> bool {
    handle.shared.outputs().readable(stream)
}

/// The BEAM's working directory. `File.cwd/0` asks the file server, which asks a dirty scheduler:
/// a tenth of the time that a program takes to start.
#[rustler::nif]
fn getcwd(env: Env<'_>) -> Term<'_> {
    match std::env::current_dir() {
        Ok(path) => {
            let path = OwnedBinary::from_slice(path.as_os_str().as_bytes());
            (atoms::ok(), path.release(env)).encode(env)
        }
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            (atoms::error(), errno_atom(env, errno)).encode(env)
        }
    }
}

/// How many programs a process owns, or owned when it died and which are not gone yet.
#[rustler::nif]
fn owned(pid: LocalPid) -> usize {
    session::owned(pid)
}

/// Closes both outputs, whoever still holds their other ends.
#[rustler::nif]
fn close_outputs(handle: ResourceArc<Handle>) -> Atom {
    handle.shared.outputs().close();
    atoms::ok()
}

/// Ends the program: `signal`, and after `grace_ms` SIGKILL to its tree. Its output is dropped
/// from now on. `:exit` tells when it is done.
#[rustler::nif]
fn stop(handle: ResourceArc<Handle>, signal: i32, grace_ms: u64) -> Atom {
    let shared = &handle.shared;
    let escalation = Escalation { signal, grace_ms };
    shared.shard.command(Command::Discard(shared.id));
    shared
        .shard
        .command(Command::Terminate(shared.id, escalation));
    atoms::ok()
}
