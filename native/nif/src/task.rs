//! Tasks as Elixir holds them: the resource behind `Stdio.Task`, and its NIFs.
//!
//! What takes a process's answer returns `:ok` and sends `{ref, answer}` later:
//! `{:ok, task}`, `{:done, steps, result}`, `:stopped`. Else `{:error, :esrch | :execed | posix}`.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use once_cell::sync::Lazy;
use rustler::{
    Atom, Binary, Encoder, Env, LocalPid, Monitor, NifTaggedEnum, Reference, Resource, ResourceArc,
    Term,
};
use serde_bytes::ByteBuf;
use stdio_protocol::channel;
use stdio_protocol::constant::{self, Family};
use stdio_protocol::message::{
    Birth, Escalation, Exec, Filter, Handler, Program, Redirect, Setting, Step, Supervise, TaskId,
    ToNode, User,
};
use stdio_protocol::value::BadArgument;

use crate::launcher;
use crate::node::{self, Ends, Kind, Node, Options, Pending, Rejected, Restriction};
use crate::notify::{Tag, Waiter};
use crate::pipe::{Outputs, Stream, Written};
use crate::reactor::{self, Command, Role};
use crate::spec::{bad_step, decode_steps, errno_atom, StderrMode, StdinMode, StepSpec};
use crate::{atoms, fd, spec};

/// The resource; its term is the reference in `%Stdio.Task{}`.
pub struct TaskHandle {
    pub node: Arc<Node>,
}

impl Resource for TaskHandle {
    const IMPLEMENTS_DOWN: bool = true;

    /// The owner, or the receiver of its output, died. Only enqueues.
    fn down<'a>(&'a self, _env: Env<'a>, pid: LocalPid, _monitor: Monitor) {
        let node = &self.node;
        node.shard.command(Command::NodeOwnerDown(node.id, pid));
    }
}

/// The flag of clone(2) that makes the child PID 1; 0 where there is none.
static NEW_PID_NAMESPACE: Lazy<u64> = Lazy::new(|| {
    let flag = constant::lookup(Family::Clone, "clone_newpid").unwrap_or(0);
    u64::try_from(flag).unwrap_or(0)
});

type Task = ResourceArc<TaskHandle>;

fn waiter(env: Env<'_>, reference: Reference<'_>) -> Waiter {
    Waiter {
        pid: env.pid(),
        tag: Tag::new(reference),
    }
}

fn answer(env: Env<'_>, result: Result<(), Rejected>) -> Term<'_> {
    match result {
        Ok(()) => atoms::ok().encode(env),
        Err(Rejected::Dead) => (atoms::error(), atoms::esrch()).encode(env),
        Err(Rejected::Execed) => (atoms::error(), atoms::execed()).encode(env),
        Err(Rejected::Errno(errno)) => (atoms::error(), errno_atom(env, errno as i32)).encode(env),
    }
}

/// Our ends and the process's: control socket, stdin, stdout, stderr.
fn ends(outputs_open_to_all: bool) -> Result<(Ends, [OwnedFd; 4]), Errno> {
    let (control, control_peer) = channel::pair()?;
    let (stdin_end, stdin) = fd::pipe()?;
    let (stdout, stdout_end) = fd::pipe()?;
    let (stderr, stderr_end) = fd::pipe()?;
    for fd in [&stdin, &stdout, &stderr] {
        fd::nonblocking(fd)?;
    }
    if outputs_open_to_all {
        for fd in [&stdin_end, &stdout_end, &stderr_end] {
            fd::open_to_all(fd)?;
        }
    }
    let ends = Ends {
        control: fd::keep_out_of_the_way(control),
        stdin: fd::keep_out_of_the_way(stdin),
        outputs: Outputs::new(
            fd::keep_out_of_the_way(stdout),
            Some(fd::keep_out_of_the_way(stderr)),
        ),
    };
    Ok((ends, [control_peer, stdin_end, stdout_end, stderr_end]))
}

fn adopt(env: Env<'_>, node: Node) -> Result<Task, Errno> {
    let handle = ResourceArc::new(TaskHandle {
        node: Arc::new(node),
    });
    let monitor = handle.monitor(Some(env), &env.pid()).ok_or(Errno::ESRCH)?;
    handle.node.lock().monitor = Some(monitor);
    node::enter(&handle);
    handle.node.shard.command(Command::AddNode(handle.clone()));
    Ok(handle)
}

/// A root. `{:error, :launcher}`: there is none, launch it. The answer is `{:ok, task}`.
#[rustler::nif]
fn task_root<'a>(
    env: Env<'a>,
    privilege: Binary<'a>,
    environ: Vec<Binary<'a>>,
    supervise: Option<SuperviseSpec<'a>>,
    cgroup: bool,
    reference: Reference<'a>,
) -> Term<'a> {
    let Some(launcher) = launcher::current(&privilege) else {
        return (atoms::error(), atoms::launcher()).encode(env);
    };
    let made = launcher.root(false).and_then(|root| {
        launcher.report(root.id)?;
        let (mut ends, [_, stdin, stdout, stderr]) = ends(launcher.changes_users())?;
        ends.control = root.socket;
        let node = Node::new(root.id, None, launcher.clone(), env.pid(), ends, false)?;
        Ok((adopt(env, node)?, vec![stdin, stdout, stderr]))
    });
    let (handle, fds) = match made {
        Ok(made) => made,
        Err(errno) => {
            launcher.note_failure(errno);
            return answer(env, Err(Rejected::Errno(errno)));
        }
    };
    let environ = environ
        .iter()
        .map(|entry| ByteBuf::from(entry.as_slice()))
        .collect();
    let (supervise, restriction) = supervise.map(split).unzip();
    let pending = Pending {
        waiter: waiter(env, reference),
        kind: Kind::Root(restriction),
    };
    let build = |sequence| ToNode::Root {
        sequence,
        environ,
        supervise,
        cgroup,
    };
    answer(env, handle.node.ask(build, fds, pending))
}

/// `{title, signaloneof, own filter, children's filter}`
type SuperviseSpec<'a> = (Binary<'a>, i32, FilterSpec, FilterSpec);

/// What the process is told, and what is to be kept here.
fn split(spec: SuperviseSpec<'_>) -> (Supervise, Box<Restriction>) {
    let (title, signal_one_of, own, children) = spec;
    let (own, children) = (Filter::from(own), Filter::from(children));
    let restriction = Restriction {
        own: own.clone(),
        children: children.clone(),
        signal_one_of: Some(signal_one_of),
    };
    let supervise = Supervise {
        title: ByteBuf::from(title.as_slice()),
        signal_one_of,
        own,
        children,
    };
    (supervise, Box::new(restriction))
}

/// Makes a supervisor of it. The answer is `{:done, 0, :ok | error}`.
#[rustler::nif]
fn task_supervise<'a>(
    env: Env<'a>,
    task: Task,
    spec: SuperviseSpec<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    let (supervise, restriction) = split(spec);
    let kind = Kind::Restrict(restriction);
    set(env, &task, Setting::Supervise(supervise), kind, reference)
}

/// A child that serves requests. The answer is `{:ok, task}` or `{:done, 0, error}`.
#[rustler::nif]
fn task_fork<'a>(env: Env<'a>, parent: Task, clone: u64, reference: Reference<'a>) -> Term<'a> {
    let node = &parent.node;
    let (child, fds) = match make_child(env, node, clone, 1) {
        Ok(made) => made,
        Err(errno) => return answer(env, Err(Rejected::Errno(errno))),
    };
    let asked =
        ask_fork(env, node, child.node.id, clone, fds, reference).map_err(|(rejected, _)| rejected);
    if asked.is_err() {
        node::never_born(node, child.node.id, None);
    }
    answer(env, asked)
}

fn ask_fork(
    env: Env<'_>,
    parent: &Node,
    task: TaskId,
    clone: u64,
    fds: Vec<OwnedFd>,
    reference: Reference<'_>,
) -> Result<(), (Rejected, Vec<OwnedFd>)> {
    let build = |sequence| ToNode::Fork {
        sequence,
        task,
        clone,
        birth: None,
    };
    let pending = Pending {
        waiter: waiter(env, reference),
        kind: Kind::Fork(task),
    };
    parent.offer(build, fds, pending)
}

/// The ids of the user namespace, if not the parent's; steps; to guard another child as a supervisor.
type BirthSpec<'a> = (
    Option<(u32, u32)>,
    Vec<StepSpec<'a>>,
    Option<SuperviseSpec<'a>>,
);

/// A child that first does what `birth` says, in the same message. The answer is `{:ok, task}`, `{:ok, task,
/// the child that it guards}`, or `{:done, 0, error}`.
#[rustler::nif]
fn task_birth<'a>(
    env: Env<'a>,
    parent: Task,
    clone: u64,
    birth: BirthSpec<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    let node = &parent.node;
    let (ids, steps, supervise) = birth;
    let steps = match decode_steps(env, &steps) {
        Ok(steps) => steps,
        Err(bad) => return bad_step(env, bad),
    };
    let generations = if supervise.is_some() { 2 } else { 1 };
    let (child, mut fds) = match make_child(env, node, clone, generations) {
        Ok(made) => made,
        Err(errno) => return answer(env, Err(Rejected::Errno(errno))),
    };
    let guards = supervise.map(|spec| {
        let (supervise, restriction) = split(spec);
        // Before the other one is made, which inherits of it.
        child.node.lock().restrict(&restriction);
        let (guarded, more) = make_child(env, &child.node, 0, 1)?;
        fds.extend(more);
        Ok((guarded.node.id, supervise))
    });
    let task = child.node.id;
    let guards = match guards.transpose() {
        Ok(guards) => guards,
        Err(errno) => {
            node::never_born(node, task, None);
            return answer(env, Err(Rejected::Errno(errno)));
        }
    };
    let guarded = guards.as_ref().map(|(guarded, _)| *guarded);
    let user = match ids {
        Some((uid, gid)) => User::Mapped { uid, gid },
        None => User::KeptIfUnprivileged,
    };
    let build = |sequence| ToNode::Fork {
        sequence,
        task,
        clone,
        birth: Some(Box::new(Birth {
            user,
            steps,
            guards,
        })),
    };
    let pending = Pending {
        waiter: waiter(env, reference),
        kind: Kind::Birth(task, guarded),
    };
    let asked = node.ask(build, fds, pending);
    if asked.is_err() {
        node::never_born(node, task, guarded);
    }
    answer(env, asked)
}

/// For another child, and so many generations below the node.
fn has_too_many(node: &Node, generations: i64) -> bool {
    let inner = node.lock();
    let depth = i64::try_from(inner.pipeline.len()).unwrap_or(i64::MAX);
    let live = i64::try_from(inner.children.len()).unwrap_or(i64::MAX);
    live >= inner.options.maxchild || depth.saturating_add(generations) > inner.options.maxforkdepth
}

/// Known here and to its parent, and what it is to get. EAGAIN: too many, it and the `generations` that
/// begin with it.
fn make_child(
    env: Env<'_>,
    parent: &Arc<Node>,
    clone: u64,
    generations: i64,
) -> Result<(Task, Vec<OwnedFd>), Errno> {
    if has_too_many(parent, generations) {
        return Err(Errno::EAGAIN);
    }
    let (ends, fds) = ends(parent.launcher.changes_users())?;
    let leads_namespace = clone & *NEW_PID_NAMESPACE != 0;
    let node = Node::new(
        reactor::next_id(),
        Some(parent),
        parent.launcher.clone(),
        env.pid(),
        ends,
        leads_namespace,
    )?;
    let child = adopt(env, node)?;
    parent.lock().children.push(child.node.id);
    Ok((child, fds.into()))
}

/// Steps in order. The answer is `{:done, steps done, result}`.
/// `{:error, {:step, index, :undef | :enotsup | {:badarg, position}}}`: nothing was sent.
#[rustler::nif]
fn task_batch<'a>(
    env: Env<'a>,
    task: Task,
    steps: Vec<StepSpec<'a>>,
    reference: Reference<'a>,
) -> Term<'a> {
    let steps: Vec<Step> = match decode_steps(env, &steps) {
        Ok(steps) => steps,
        Err(bad) => return bad_step(env, bad),
    };
    let pending = Pending {
        waiter: waiter(env, reference),
        kind: Kind::Batch,
    };
    let build = |sequence| ToNode::Batch { sequence, steps };
    answer(env, task.node.ask(build, Vec::new(), pending))
}

#[derive(NifTaggedEnum)]
enum ProgramSpec<'a> {
    Path(Binary<'a>, Vec<Binary<'a>>, Vec<Binary<'a>>),
    /// As a path; searched or not; stdin, stderr.
    Stream(
        Binary<'a>,
        Vec<Binary<'a>>,
        Vec<Binary<'a>>,
        bool,
        StdinMode,
        StderrMode,
    ),
    Search(Binary<'a>, Vec<Binary<'a>>),
    Descriptor(i32, Vec<Binary<'a>>, Vec<Binary<'a>>),
}

/// The steps as of `task_batch`, then the program. The answer is `{:done, steps done, result}`: `:ok`
/// if it runs, and an error after all steps is the program's.
#[rustler::nif]
fn task_exec<'a>(
    env: Env<'a>,
    task: Task,
    steps: Vec<StepSpec<'a>>,
    program: ProgramSpec<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    exec(env, &task, &steps, program, reference)
}

/// The same for arguments and environments that take a while to copy.
#[rustler::nif(schedule = "DirtyIo")]
fn task_exec_large<'a>(
    env: Env<'a>,
    task: Task,
    steps: Vec<StepSpec<'a>>,
    program: ProgramSpec<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    exec(env, &task, &steps, program, reference)
}

fn exec<'a>(
    env: Env<'a>,
    task: &Task,
    steps: &[StepSpec<'a>],
    program: ProgramSpec<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    let steps = match decode_steps(env, steps) {
        Ok(steps) => steps,
        Err(bad) => return bad_step(env, bad),
    };
    if !task.node.lock().children.is_empty() {
        return answer(env, Err(Rejected::Errno(Errno::EACCES)));
    }
    answer(
        env,
        ask_exec(&task.node, steps, program, waiter(env, reference)),
    )
}

fn ask_exec(
    node: &Node,
    steps: Vec<Step>,
    program: ProgramSpec<'_>,
    waiter: Waiter,
) -> Result<(), Rejected> {
    let stdin_null = matches!(&program, ProgramSpec::Stream(.., StdinMode::Null, _));
    let (program, fds) = read_program(program).map_err(Rejected::Errno)?;
    let pending = Pending {
        waiter,
        kind: Kind::Exec { stdin_null },
    };
    let build = |sequence| ToNode::Exec {
        sequence,
        steps,
        program,
    };
    node.ask(build, fds, pending)
}

/// With the descriptors that go with it.
fn read_program(program: ProgramSpec<'_>) -> Result<(Program, Vec<OwnedFd>), Errno> {
    let bytes = |binary: &Binary<'_>| ByteBuf::from(binary.as_slice());
    let list = |list: &[Binary<'_>]| list.iter().map(bytes).collect::<Vec<_>>();
    let mut fds = Vec::new();
    let program = match &program {
        ProgramSpec::Path(file, argv, environ) => Program::Path {
            exec: Exec {
                file: bytes(file),
                argv: list(argv),
                env: list(environ),
                search: false,
            },
            redirect: Redirect::default(),
        },
        ProgramSpec::Stream(file, argv, environ, search, stdin, stderr) => {
            let redirect = Redirect {
                stdin_null: *stdin == StdinMode::Null,
                stderr_null: *stderr == StderrMode::Null,
                stderr_to_stdout: *stderr == StderrMode::Stdout,
            };
            if redirect.stdin_null || redirect.stderr_null {
                fds.push(fd::null()?);
            }
            Program::Path {
                exec: Exec {
                    file: bytes(file),
                    argv: list(argv),
                    env: list(environ),
                    search: *search,
                },
                redirect,
            }
        }
        ProgramSpec::Search(file, argv) => Program::Search {
            file: bytes(file),
            argv: list(argv),
        },
        ProgramSpec::Descriptor(fd, argv, environ) => Program::Descriptor {
            fd: *fd,
            argv: list(argv),
            env: list(environ),
        },
    };
    Ok((program, fds))
}

/// As the stream of a task wants it: the tag of its end, if it has something to do then; the size of
/// chunks, credit; and ms from exec to an escalation, a signal and ms of grace.
type StreamSpec<'a> = (Option<Reference<'a>>, usize, i64, Option<(u64, i32, u64)>);

/// A child that finds its steps and its program as it is born, so that nobody waits for its birth. The first
/// reference is that of `task_fork`'s answer, the second that of `task_exec`'s, which comes if the first is
/// `{:ok, task}`, perhaps before it; if it is not, perhaps before it. ENOTSUP: should the parent die in
/// between, nobody would end the program. `{:error, :answered}`: the parent has ended meanwhile, and
/// only the second is answered.
///
/// Not to be called on a dirty scheduler: an owner that is killed there has its tasks ended at once, and this
/// one might be born after that.
#[rustler::nif]
fn task_start<'a>(
    env: Env<'a>,
    parent: Task,
    steps: Vec<StepSpec<'a>>,
    program: ProgramSpec<'a>,
    stream: StreamSpec<'a>,
    (forked, execed): (Reference<'a>, Reference<'a>),
) -> Term<'a> {
    let steps = match decode_steps(env, &steps) {
        Ok(steps) => steps,
        Err(bad) => return bad_step(env, bad),
    };
    let node = &parent.node;
    // The orphans of these are the launcher's to kill, or the kernel's.
    if node.parent.is_some() && !node.leads_namespace {
        return answer(env, Err(Rejected::Errno(Errno::ENOTSUP)));
    }
    let (child, fds) = match make_child(env, node, 0, 1) {
        Ok(made) => made,
        Err(errno) => return answer(env, Err(Rejected::Errno(errno))),
    };
    hold(&child.node, stream);
    // What is sent first is there first.
    let task = child.node.id;
    if let Err(rejected) = ask_exec(&child.node, steps, program, waiter(env, execed)) {
        node::never_born(node, task, None);
        return answer(env, Err(rejected));
    }
    let Err((rejected, unsent)) = ask_fork(env, node, task, 0, fds, forked) else {
        return answer(env, Ok(()));
    };
    let withdrawn = child.node.lock().withdraw();
    node::never_born(node, task, None);
    // Not before: the end of its socket would be an answer.
    drop(unsent);
    if withdrawn {
        return answer(env, Err(rejected));
    }
    (atoms::error(), atoms::answered()).encode(env)
}

#[derive(NifTaggedEnum)]
enum FilterSpec {
    Unchanged,
    Deny(Vec<String>),
    Allow(Vec<String>),
}

impl From<FilterSpec> for Filter {
    fn from(spec: FilterSpec) -> Self {
        match spec {
            FilterSpec::Unchanged => Self::Unchanged,
            FilterSpec::Deny(names) => Self::Deny(names),
            FilterSpec::Allow(names) => Self::Allow(names),
        }
    }
}

/// The answer is `{:done, 0, :ok | error}`.
#[rustler::nif]
fn task_filter<'a>(
    env: Env<'a>,
    task: Task,
    own: FilterSpec,
    children: FilterSpec,
    reference: Reference<'a>,
) -> Term<'a> {
    let (own, children) = (Filter::from(own), Filter::from(children));
    let kind = Kind::Restrict(Box::new(Restriction {
        own: own.clone(),
        children: children.clone(),
        signal_one_of: None,
    }));
    set(
        env,
        &task,
        Setting::Filter { own, children },
        kind,
        reference,
    )
}

/// Whether what the NIF does by itself is filtered.
#[rustler::nif]
fn task_allows(task: Task, call: String) -> bool {
    task.node.lock().allows(&call)
}

/// Its parent, a root, ends with it.
#[rustler::nif]
fn task_carry(task: Task) -> Atom {
    if let Some(parent) = task.node.parent.and_then(node::find) {
        parent.node.lock().carrier = true;
        task.node.lock().carried = true;
    }
    atoms::ok()
}

/// What guards what is below it: `:cgroup`, `:pid_namespace` or `:best_effort`.
#[rustler::nif]
fn task_containment(task: Task) -> Atom {
    let mut next = Some(task);
    let mut found = atoms::best_effort();
    while let Some(task) = next {
        if task.node.lock().is_in_cgroup() {
            return atoms::cgroup();
        }
        if task.node.leads_namespace {
            found = atoms::pid_namespace();
        }
        next = task.node.parent.and_then(node::find);
    }
    found
}

#[derive(rustler::NifUnitEnum)]
enum HandlerSpec {
    SigDfl,
    SigIgn,
    SigInfo,
    Forward,
}

/// The answer is `{:done, 0, {:ok, previous} | error}`.
#[rustler::nif]
fn task_sigaction<'a>(
    env: Env<'a>,
    task: Task,
    signal: i32,
    handler: Option<HandlerSpec>,
    reference: Reference<'a>,
) -> Term<'a> {
    let handler = handler.map(|handler| match handler {
        HandlerSpec::SigDfl => Handler::Default,
        HandlerSpec::SigIgn => Handler::Ignore,
        HandlerSpec::SigInfo => Handler::Info,
        HandlerSpec::Forward => Handler::Forward,
    });
    set(
        env,
        &task,
        Setting::Sigaction { signal, handler },
        Kind::Set,
        reference,
    )
}

/// A supervisor's signal handlers. The answer is `{:done, 0, :ok | error}`.
#[rustler::nif]
fn task_forward<'a>(env: Env<'a>, task: Task, reference: Reference<'a>) -> Term<'a> {
    set(env, &task, Setting::Forward, Kind::Set, reference)
}

fn set<'a>(
    env: Env<'a>,
    task: &Task,
    setting: Setting,
    kind: Kind,
    reference: Reference<'a>,
) -> Term<'a> {
    let pending = Pending {
        waiter: waiter(env, reference),
        kind,
    };
    let build = |sequence| ToNode::Set { sequence, setting };
    answer(env, task.node.ask(build, Vec::new(), pending))
}

/// The process ends by itself, as its terminal event tells. `{:error, :eacces}` with live children.
#[rustler::nif]
fn task_exit<'a>(env: Env<'a>, task: Task, status: u8) -> Term<'a> {
    let refused = {
        let inner = task.node.lock();
        match (inner.is_alive(), inner.execed, inner.children.is_empty()) {
            (false, ..) => Some(Rejected::Dead),
            (_, true, _) => Some(Rejected::Execed),
            // It has ended; how, its parent is about to tell.
            _ if !inner.serves() => Some(Rejected::Dead),
            (_, _, false) => Some(Rejected::Errno(Errno::EACCES)),
            _ => None,
        }
    };
    if let Some(refused) = refused {
        return answer(env, Err(refused));
    }
    task.node.tell(ToNode::Exit { status });
    answer(env, Ok(()))
}

/// The answer is `:stopped`, once the process and all below it are gone. The caller gets no event of
/// any of them from now on.
#[rustler::nif]
fn task_stop<'a>(env: Env<'a>, task: Task, reference: Reference<'a>) -> Atom {
    mute(&task, env.pid());
    let waiter = waiter(env, reference);
    let carrier = task
        .node
        .lock()
        .carried
        .then_some(task.node.parent)
        .flatten();
    let stopped = carrier.and_then(node::find).unwrap_or(task);
    let shard = stopped.node.shard.clone();
    shard.command(Command::StopNode(stopped, waiter));
    atoms::ok()
}

fn mute(task: &Task, pid: LocalPid) {
    let children = {
        let mut inner = task.node.lock();
        inner.mute(pid);
        [inner.children.as_slice(), &inner.orphans].concat()
    };
    for child in children.into_iter().filter_map(node::find) {
        mute(&child, pid);
    }
}

/// Makes this the task of a stream, which gets its terminal event in any case. With a reference
/// `{ref, :ended}` comes to its owner when the process has ended, and its pipes are read to their end
/// after `task_release`.
#[rustler::nif]
fn task_hold<'a>(task: Task, stream: StreamSpec<'a>) -> Atom {
    hold(&task.node, stream);
    atoms::ok()
}

fn hold(node: &Node, (reference, max_chunk, credit, deadline): StreamSpec<'_>) {
    {
        let mut inner = node.lock();
        inner.hold = reference.map(Tag::new);
        inner.awaited = true;
        inner.max_chunk = max_chunk;
        inner.deadline = deadline.map(|(after_ms, signal, grace_ms)| {
            let escalation = Escalation { signal, grace_ms };
            (Duration::from_millis(after_ms), escalation)
        });
    }
    node.grant(|_| credit.max(-1));
}

#[rustler::nif]
fn task_release(task: Task) -> Atom {
    task.node.shard.command(Command::ReleaseNode(task.node.id));
    atoms::ok()
}

/// The escalation begins now.
#[rustler::nif]
fn task_terminate(task: Task, signal: i32, grace_ms: u64) -> Atom {
    let node = &task.node;
    let escalation = Escalation { signal, grace_ms };
    node.shard
        .command(Command::TerminateNode(node.id, escalation));
    atoms::ok()
}

/// SIGKILLs all that is below it. The answer is `{:done, 0, :ok | error, …}`.
#[rustler::nif]
fn task_reap<'a>(env: Env<'a>, task: Task, reference: Reference<'a>) -> Term<'a> {
    let pending = Pending {
        waiter: waiter(env, reference),
        kind: Kind::Set,
    };
    let build = |sequence| ToNode::Reap { sequence };
    answer(env, task.node.ask(build, Vec::new(), pending))
}

/// `{pid | nil, parent | nil, pipeline, execed, alive}`
#[rustler::nif]
fn task_info<'a>(env: Env<'a>, task: Task) -> Term<'a> {
    let parent = task.node.parent.and_then(node::find);
    let inner = task.node.lock();
    let alive = inner.is_alive();
    (
        inner.pid,
        parent,
        inner.pipeline.clone(),
        inner.execed,
        alive,
    )
        .encode(env)
}

/// Whether both hang on the same root, dead or alive.
#[rustler::nif]
fn task_same_tree(task: Task, other: Task) -> bool {
    task.node.root == other.node.root
}

/// `{utime, stime, maxrss, …}` as a list once the process has ended, else `nil`.
#[rustler::nif]
fn task_usage<'a>(env: Env<'a>, task: Task) -> Term<'a> {
    match task.node.lock().usage {
        Some(usage) => crate::notify::encode_usage(env, &usage),
        None => atoms::nil().encode(env),
    }
}

/// Live children: `[{task, pid, execed, fds open {stdin, stdout, stderr}, credit, signaloneof}]`.
#[rustler::nif]
fn task_children<'a>(env: Env<'a>, task: Task) -> Term<'a> {
    let children = task.node.lock().children.clone();
    let children: Vec<Term<'a>> = children
        .into_iter()
        .filter_map(node::find)
        .filter_map(|child| {
            let inner = child.node.lock();
            let pid = inner.pid.filter(|_| inner.is_alive())?;
            let open = (
                child.node.stdin().is_open(),
                inner.outputs.output(Stream::Stdout).is_some(),
                inner.outputs.output(Stream::Stderr).is_some(),
            );
            let (execed, credit) = (inner.execed, inner.credit);
            let signaloneof = inner.options.signaloneof;
            drop(inner);
            Some((child, pid, execed, open, credit, signaloneof).encode(env))
        })
        .collect();
    children.encode(env)
}

fn option<'o>(options: &'o mut Options, name: &str) -> Option<(&'o mut i64, i64)> {
    let slot = match name {
        "maxchild" => (&mut options.maxchild, i64::from(i32::MAX)),
        "maxforkdepth" => (&mut options.maxforkdepth, 255),
        "exit_status" => (&mut options.exit_status, i64::from(i32::MAX)),
        "termsig" => (&mut options.termsig, i64::from(i32::MAX)),
        "flowcontrol" => (&mut options.flowcontrol, i64::from(i32::MAX)),
        "signaloneof" => (&mut options.signaloneof, 64),
        "stdin_closed" => (&mut options.stdin_closed, i64::from(i32::MAX)),
        "stdout_closed" => (&mut options.stdout_closed, i64::from(i32::MAX)),
        "stderr_closed" => (&mut options.stderr_closed, i64::from(i32::MAX)),
        _ => return None,
    };
    Some(slot)
}

/// `true`, or `false` if the option is unknown, the value refused or the task dead.
#[rustler::nif]
fn task_setopt(task: Task, name: String, value: i64) -> bool {
    let mut inner = task.node.lock();
    let live = i64::try_from(inner.children.len()).unwrap_or(i64::MAX);
    let usable = inner.is_alive() && !inner.execed;
    let Some((slot, most)) = option(&mut inner.options, &name).filter(|_| usable) else {
        return false;
    };
    let value = if name == "flowcontrol" {
        value.max(-1)
    } else {
        value
    };
    if value > most || (name == "maxchild" && value < live) {
        return false;
    }
    *slot = value;
    drop(inner);
    if name == "signaloneof" {
        task.node.tell_signaloneof(value);
    }
    true
}

#[rustler::nif]
fn task_getopt<'a>(env: Env<'a>, task: Task, name: String) -> Term<'a> {
    let mut inner = task.node.lock();
    let usable = inner.is_alive() && !inner.execed;
    match option(&mut inner.options, &name).filter(|_| usable) {
        Some((slot, _)) => slot.encode(env),
        None => false.encode(env),
    }
}

/// Of a child: sets its credit, or what its own children are sent. False for a root or a dead task.
#[rustler::nif]
fn task_setcpid(task: Task, name: String, value: i64) -> bool {
    let node = &task.node;
    if node.parent.is_none() || !node.lock().is_alive() {
        return false;
    }
    match name.as_str() {
        "flowcontrol" => node.grant(|_| value.max(-1)),
        "signaloneof" if (0..=64).contains(&value) => {
            node.lock().options.signaloneof = value;
            if !node.lock().execed {
                node.tell_signaloneof(value);
            }
        }
        _ => return false,
    }
    true
}

/// Adds credit; no effect when it is unlimited.
#[rustler::nif]
fn task_credit(task: Task, chunks: i64) -> bool {
    let node = &task.node;
    if !node.lock().is_alive() {
        return false;
    }
    node.grant(|credit| {
        if credit < 0 {
            credit
        } else {
            credit.saturating_add(chunks)
        }
    });
    true
}

/// As `write`; `{:error, :epipe}` also for a dead task.
#[rustler::nif]
fn task_write<'a>(
    env: Env<'a>,
    task: Task,
    data: Binary<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    let node = &task.node;
    let mut stdin = node.stdin();
    let written = stdin.write(data, || waiter(env, reference));
    if stdin.is_pending() {
        if let Some(fd) = stdin.unwatched() {
            let _ = node.shard.register(node.id, Role::Stdin, fd);
        } else if stdin.stopped_early() {
            node.shard.command(Command::Stdin(node.id));
        }
    }
    match written {
        Written::Done => atoms::ok().encode(env),
        Written::Waiting => atoms::wait().encode(env),
        Written::Closed => (atoms::error(), atoms::epipe()).encode(env),
    }
}

#[derive(rustler::NifUnitEnum, Clone, Copy)]
enum StandardStream {
    Stdin,
    Stdout,
    Stderr,
}

/// Closes our end. `{:error, :ebadf}`: it was closed already.
#[rustler::nif]
fn task_eof<'a>(env: Env<'a>, task: Task, stream: StandardStream) -> Term<'a> {
    let node = &task.node;
    if !node.lock().is_alive() {
        return (atoms::error(), atoms::esrch()).encode(env);
    }
    let closed = match stream {
        StandardStream::Stdin => node.stdin().close(),
        StandardStream::Stdout => node.lock().outputs.stdout.take().is_some(),
        StandardStream::Stderr => node.lock().outputs.stderr.take().is_some(),
    };
    if closed {
        atoms::ok().encode(env)
    } else {
        (atoms::error(), atoms::ebadf()).encode(env)
    }
}

/// Owner only: `{:error, :eacces}`. `{:error, :badarg}`: the new owner is dead.
#[rustler::nif]
fn task_controlling_process<'a>(env: Env<'a>, task: Task, pid: LocalPid) -> Term<'a> {
    let refused = {
        let inner = task.node.lock();
        match (inner.is_alive(), inner.owner == env.pid()) {
            (false, _) => Some(atoms::esrch()),
            (_, false) => Some(atoms::eacces()),
            _ => None,
        }
    };
    if let Some(reason) = refused {
        return (atoms::error(), reason).encode(env);
    }
    let Some(monitor) = task.monitor(Some(env), &pid) else {
        return (atoms::error(), atoms::badarg()).encode(env);
    };
    let previous = {
        let mut inner = task.node.lock();
        inner.owner = pid;
        inner.monitor.replace(monitor)
    };
    if let Some(previous) = previous {
        task.demonitor(Some(env), &previous);
    }
    atoms::ok().encode(env)
}

/// Redirects output and the terminal event.
#[rustler::nif]
fn task_stdio<'a>(env: Env<'a>, task: Task, pid: LocalPid) -> Term<'a> {
    if !task.node.lock().is_alive() {
        return (atoms::error(), atoms::esrch()).encode(env);
    }
    let Some(monitor) = task.monitor(Some(env), &pid) else {
        return (atoms::error(), atoms::badarg()).encode(env);
    };
    let previous = task.node.lock().receiver.replace((pid, monitor));
    if let Some((_, previous)) = previous {
        task.demonitor(Some(env), &previous);
    }
    atoms::ok().encode(env)
}

/// The calls that need no task: `X_constant`, `errno_id`, `version`. `{:ok, value}`, or `:undef` or
/// `{:badarg, position}`.
#[rustler::nif]
fn query<'a>(env: Env<'a>, name: Atom, arguments: Vec<Term<'a>>) -> Term<'a> {
    match spec::query(env, name, &arguments) {
        Ok(value) => (atoms::ok(), value).encode(env),
        Err(BadArgument::Undefined) => atoms::undef().encode(env),
        Err(BadArgument::Type(position) | BadArgument::UnknownConstant(position)) => {
            (atoms::badarg(), position).encode(env)
        }
    }
}

/// Name, arguments (name and shape each), how many of the last may be left out, documentation.
type CallRow = (
    &'static str,
    Vec<(&'static str, &'static str)>,
    usize,
    &'static str,
);

/// The table of calls, as far as this system has them.
#[rustler::nif]
fn calls() -> Vec<CallRow> {
    stdio_protocol::call::rows()
        .map(|row| (row.name, row.arguments.to_vec(), row.optional, row.doc))
        .collect()
}
