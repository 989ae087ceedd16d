//! A process that serves requests: a root that was not given a program to run, or a task.
//!
//! Rules:
//! 1. Requests are served one at a time, in the order of the socket.
//! 2. Its children are known by the NIF's names; their ends are reported on this socket.
//! 3. When its socket ends, its owner is gone (or the BEAM): its children's groups get the
//!    `signaloneof` signal, after 100 ms SIGKILL, with everything below them. A root kills all that
//!    it has adopted too, and then ends; the lifeline's end does the same.
//! 4. Filters only grow narrower. A request that is filtered is refused, never an end.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::SigSet;
use nix::unistd::{
    dup2_stderr, dup2_stdin, dup2_stdout, getegid, geteuid, getpid, getppid, pipe2, Gid, Pid, Uid,
};
use serde_bytes::ByteBuf;
use stdio_protocol::channel::{self, is_busy, Datagram, Receiver};
use stdio_protocol::filter::CallFilter;
use stdio_protocol::message::{
    Birth, Exec, Filter, FromNode, Handler, Program, Redirect, Refusal, RootId, Sequence, Setting,
    Step, Supervise, TaskId, ToNode, ToRoot, User,
};
use stdio_protocol::value::Value;

use crate::call::{self, Context};
use crate::reap::Killer;
use crate::supervisor::Inherited;
use crate::sys::{self, Cgroup, Ended, Fork, Signals};
use crate::{exec, reap, task};

/// Between `signaloneof` and SIGKILL.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Unkillable processes are given up on after this.
const TEARDOWN_DEADLINE: Duration = Duration::from_secs(5);
const PASS_PAUSE: Duration = Duration::from_millis(5);
/// A peer broke the protocol.
const EXIT_PROTOCOL: i32 = 2;
const DEFAULT_SIGNAL_ONE_OF: i32 = libc::SIGTERM;

/// What its place in the tree is.
enum Place {
    /// Forked by the launcher, whose death the lifeline tells.
    Root {
        lifeline: OwnedFd,
        /// What its children are born into.
        cgroup: Option<Cgroup>,
    },
    Task,
}

struct Node {
    /// Of a root, the launcher's name for it.
    id: RootId,
    control: OwnedFd,
    signals: Signals,
    receiver: Receiver,
    place: Place,
    context: Context,
    children: HashMap<Pid, TaskId>,
    /// A pipe that ends with this process, once it has had a child that leads a PID namespace, which
    /// gets the read end: see `Context::lifeline`.
    alive: Option<(OwnedFd, OwnedFd)>,
    handlers: Handlers,
    /// A supervisor ignores SIGPIPE without the kernel's help, so that no program inherits it.
    drops_sigpipe: bool,
    own_filter: CallFilter,
    child_filter: CallFilter,
    signal_one_of: i32,
    outbox: Vec<Datagram>,
    /// Something could not be sent, and nothing will be.
    mute: bool,
}

/// What to do with each signal that the signalfd reports. Those left to the kernel (default or
/// ignored) are not blocked, and so not reported.
#[derive(Clone)]
struct Handlers([Handler; 65]);

impl Handlers {
    fn get(&self, signal: i32) -> Handler {
        usize::try_from(signal)
            .ok()
            .and_then(|signal| self.0.get(signal).copied())
            .unwrap_or(Handler::Default)
    }

    fn set(&mut self, signal: i32, handler: Handler) {
        if let Some(slot) = usize::try_from(signal)
            .ok()
            .and_then(|signal| self.0.get_mut(signal))
        {
            *slot = handler;
        }
    }
}

impl Handlers {
    /// Those of a fresh process, but for what is ignored on purpose: the program is to inherit it.
    fn renew(&mut self) {
        let fresh = Self::default();
        for (handler, fresh) in self.0.iter_mut().zip(fresh.0) {
            if *handler != Handler::Ignore {
                *handler = fresh;
            }
        }
    }
}

impl Default for Handlers {
    /// A fresh process tells its owner of every signal, and reaps by itself.
    fn default() -> Self {
        let mut handlers = Self([Handler::Info; 65]);
        for signal in [libc::SIGCHLD, libc::SIGKILL, libc::SIGSTOP] {
            handlers.set(signal, Handler::Default);
        }
        handlers
    }
}

/// A root's turn from a spare into a process that serves requests.
pub fn serve_root(inherited: Inherited, first: ToNode, fds: Vec<OwnedFd>) -> ! {
    let Inherited {
        control,
        lifeline,
        signals,
        receiver,
        id,
    } = inherited;
    let node = Node {
        id,
        control,
        signals,
        receiver,
        place: Place::Root {
            lifeline,
            cgroup: None,
        },
        context: Context::default(),
        children: HashMap::new(),
        alive: None,
        handlers: Handlers::default(),
        drops_sigpipe: false,
        own_filter: CallFilter::default(),
        child_filter: CallFilter::default(),
        signal_one_of: DEFAULT_SIGNAL_ONE_OF,
        outbox: Vec::new(),
        mute: false,
    };
    node.serve(first, fds)
}

/// Of some steps.
struct Outcome {
    done: u32,
    state: Option<Value>,
    result: Result<Value, Refusal>,
}

/// What a fork came to, in the one who hears of it.
enum Born {
    Child(Pid),
    /// In the child; `pid` is its own, as its parent sees it.
    Myself {
        pid: i32,
        besides: Vec<OwnedFd>,
    },
}

/// Why a node stops serving.
enum Stop {
    /// Its owner, the BEAM or the launcher is gone.
    Abandoned,
    /// The peer makes no sense.
    Protocol,
    /// It was asked to end.
    Asked(u8),
}

impl Node {
    fn serve(mut self, first: ToNode, fds: Vec<OwnedFd>) -> ! {
        let mut result = self.handle(first, fds);
        loop {
            if let Err(stop) = result {
                self.stop(stop);
            }
            result = self.turn();
        }
    }

    /// One round of the event loop.
    fn turn(&mut self) -> Result<(), Stop> {
        sys::calm_down();
        self.flush();
        if self.mute {
            return Err(Stop::Abandoned);
        }
        let (control, signals, lifeline) = self.wait(None);
        if signals {
            self.read_signal();
        }
        if lifeline {
            return Err(Stop::Abandoned);
        }
        if control {
            self.receive()?;
        }
        Ok(())
    }

    fn wait(&self, at_most: Option<Duration>) -> (bool, bool, bool) {
        let mut wanted = PollFlags::POLLIN;
        if !self.outbox.is_empty() {
            wanted |= PollFlags::POLLOUT;
        }
        let mut fds = vec![
            PollFd::new(self.control.as_fd(), wanted),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        if let Place::Root { lifeline, .. } = &self.place {
            fds.push(PollFd::new(lifeline.as_fd(), PollFlags::POLLIN));
        }
        let timeout = at_most.map_or(PollTimeout::NONE, |pause| {
            PollTimeout::try_from(pause).unwrap_or(PollTimeout::ZERO)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => sys::die("poll", errno),
        }
        let ready = |index: usize| {
            fds.get(index)
                .and_then(PollFd::revents)
                .is_some_and(|events| !events.is_empty())
        };
        (ready(0), ready(1), ready(2))
    }

    fn receive(&mut self) -> Result<(), Stop> {
        match self.receiver.recv::<ToRoot>(self.control.as_fd()) {
            Ok(Some(received)) => match received.message {
                ToRoot::Node(message) => self.handle(*message, received.fds),
                ToRoot::Bear | ToRoot::Watch(_) | ToRoot::Start(_) | ToRoot::Terminate(_) => {
                    Err(Stop::Protocol)
                }
            },
            Ok(None) => Err(Stop::Abandoned),
            Err(error) if error.errno() == Errno::EAGAIN => Ok(()),
            Err(_) => Err(Stop::Protocol),
        }
    }

    fn handle(&mut self, message: ToNode, fds: Vec<OwnedFd>) -> Result<(), Stop> {
        match message {
            ToNode::Root {
                sequence,
                environ,
                supervise,
                cgroup,
            } => {
                self.become_root(environ, fds)?;
                let contained = if cgroup { self.contain() } else { Ok(()) };
                let supervised = contained
                    .and_then(|()| supervise.map_or(Ok(()), |supervise| self.supervise(supervise)));
                let pid = Value::Int(i128::from(getpid().as_raw()));
                self.done(sequence, 0, supervised.map(|()| pid));
            }
            ToNode::Fork {
                sequence,
                task,
                clone,
                birth,
            } => self.fork(sequence, task, clone, birth.map(|birth| *birth), fds)?,
            ToNode::Batch { sequence, steps } => self.batch(sequence, &steps),
            ToNode::Exec {
                sequence,
                steps,
                program,
            } => self.exec(sequence, &steps, program, fds.first()),
            ToNode::Set { sequence, setting } => self.set(sequence, setting),
            ToNode::Kill { task } => self.kill_child(task),
            ToNode::Terminate { task, signal } => self.terminate_child(task, signal),
            ToNode::Reap { sequence } => self.reap_tree(sequence),
            ToNode::Signal { pids, signal } => {
                for pid in pids {
                    reap::signal_if_descendant(Pid::from_raw(pid), signal);
                }
            }
            ToNode::Exit { status } => return Err(Stop::Asked(status)),
        }
        Ok(())
    }

    /// A root gets descriptors 0-2 too; its control socket, which is fd 0, moves out of the way.
    fn become_root(&mut self, environ: Vec<ByteBuf>, fds: Vec<OwnedFd>) -> Result<(), Stop> {
        let Ok([stdin, stdout, stderr]) = <[OwnedFd; 3]>::try_from(fds) else {
            return Err(Stop::Protocol);
        };
        let moved = sys::duplicate_high(&self.control).map_err(|_| Stop::Protocol)?;
        std::mem::forget(std::mem::replace(&mut self.control, moved));
        dup2_stdin(&stdin)
            .and_then(|()| dup2_stdout(&stdout))
            .and_then(|()| dup2_stderr(&stderr))
            .map_err(|_| Stop::Protocol)?;
        self.context.environ = environ.into_iter().map(ByteBuf::into_vec).collect();
        self.protect();
        Ok(())
    }

    /// Its children will be born into a cgroup, which the NIF may kill too: it holds a descriptor for
    /// that, should every helper be dead.
    fn contain(&mut self) -> Result<(), Refusal> {
        let Place::Root { cgroup, .. } = &mut self.place else {
            return Err(Refusal::Errno(libc::ENOTSUP));
        };
        let created = Cgroup::create(getppid(), self.id)
            .and_then(|created| {
                channel::send(
                    &self.control,
                    &FromNode::Contained,
                    &[created.kill_descriptor()],
                )
                .map_err(|error| error.errno())?;
                Ok(created)
            })
            // Whatever it was, there is none.
            .map_err(|_| Refusal::Errno(libc::ENOTSUP))?;
        *cgroup = Some(created);
        Ok(())
    }

    fn cgroup(&self) -> Option<&Cgroup> {
        match &self.place {
            Place::Root { cgroup, .. } => cgroup.as_ref(),
            Place::Task => None,
        }
    }

    /// The child serves requests too, and so goes on in here.
    fn fork(
        &mut self,
        sequence: Sequence,
        task: TaskId,
        clone: u64,
        birth: Option<Birth>,
        mut fds: Vec<OwnedFd>,
    ) -> Result<(), Stop> {
        let of_child = fds.split_off(fds.len().min(4));
        let Ok(fds) = <[OwnedFd; 4]>::try_from(fds) else {
            return Err(Stop::Protocol);
        };
        let flag = birth.as_ref().map_or(0, |birth| user_namespace(birth.user));
        // Those outside of a namespace that it may be born into.
        let ids = birth.as_ref().map(|_| (geteuid(), getegid()));
        match self.give_birth(task, clone | flag, fds, of_child) {
            // The child answers.
            Ok(Born::Child(_)) if birth.is_some() => {}
            Ok(Born::Child(pid)) => self.tell(&FromNode::Forked {
                sequence,
                task,
                pid: pid.as_raw(),
            }),
            Ok(Born::Myself { pid, besides }) => {
                if let (Some(birth), Some(ids)) = (birth, ids) {
                    self.grow_up(sequence, pid, birth, ids, besides);
                }
            }
            Err(refusal) => self.done(sequence, 0, Err(refusal)),
        }
        Ok(())
    }

    fn give_birth(
        &mut self,
        task: TaskId,
        clone: u64,
        fds: [OwnedFd; 4],
        besides: Vec<OwnedFd>,
    ) -> Result<Born, Refusal> {
        let refused = |errno| Refusal::Errno(errno as i32);
        let name = if clone == 0 { "fork" } else { "clone" };
        if !self.own_filter.allows(name) {
            return Err(Refusal::Undefined);
        }
        let me = getpid();
        let (go_ahead, go) = pipe2(OFlag::O_CLOEXEC).map_err(refused)?;
        let leads_namespace = clone & sys::CLONE_NEWPID != 0;
        if leads_namespace && self.alive.is_none() {
            self.alive = Some(pipe2(OFlag::O_CLOEXEC).map_err(refused)?);
            self.protect();
        }
        match sys::clone(clone).map_err(refused)? {
            Fork::Parent(pid) => {
                self.children.insert(pid, task);
                if let Some(Err(errno)) = self.cgroup().map(|cgroup| cgroup.enter(pid)) {
                    // Its end is nobody's to hear of: the go-ahead never comes.
                    self.children.remove(&pid);
                    return Err(refused(errno));
                }
                // Recorded: from here on it may run.
                task::release(&go, pid);
                Ok(Born::Child(pid))
            }
            Fork::Child => {
                let parent = (!leads_namespace).then_some(me);
                // Closed with all the others, by number.
                let _ = go.into_raw_fd();
                let mut besides = besides;
                if let Some((lifeline, write)) = self.alive.take() {
                    let _ = write.into_raw_fd();
                    match leads_namespace {
                        true => besides.push(lifeline),
                        false => _ = lifeline.into_raw_fd(),
                    }
                }
                let [control, stdin, stdout, stderr] = fds;
                let descriptors = task::Descriptors {
                    control,
                    stdin,
                    stdout,
                    stderr,
                    go_ahead,
                };
                Ok(self.be_born(descriptors, besides, parent))
            }
        }
    }

    /// In the child: what was the parent's is closed or forgotten, then requests are served.
    fn be_born(
        &mut self,
        descriptors: task::Descriptors,
        besides: Vec<OwnedFd>,
        parent: Option<Pid>,
    ) -> Born {
        let Ok((control, go_ahead, mut besides)) = task::arrange(descriptors, besides) else {
            sys::exit(1)
        };
        let Some(pid) = task::read_pid(&File::from(go_ahead)) else {
            sys::exit(1)
        };
        // The old numbers are closed or taken by now: nothing of the parent's may be dropped.
        std::mem::forget(std::mem::replace(&mut self.control, control));
        self.handlers.renew();
        self.drops_sigpipe = false;
        let signals = match Signals::new(&self.reported()) {
            Ok(signals) => signals,
            Err(_) => sys::exit(1),
        };
        std::mem::forget(std::mem::replace(&mut self.signals, signals));
        std::mem::forget(std::mem::replace(&mut self.place, Place::Task));
        let lifeline = if parent.is_none() {
            besides.pop()
        } else {
            None
        };
        std::mem::forget(std::mem::replace(&mut self.context.lifeline, lifeline));
        self.context.parent = parent;
        self.protect();
        self.children.clear();
        self.outbox.clear();
        self.own_filter = self.child_filter.clone();
        // A task holds no descriptor but its own: its user namespace's maps can be written.
        let _ = sys::set_inspectable(true);
        Born::Myself { pid, besides }
    }

    /// What a child that is born with tasks does first. It ends if one fails.
    fn grow_up(
        &mut self,
        sequence: Sequence,
        pid: i32,
        birth: Birth,
        ids: (Uid, Gid),
        besides: Vec<OwnedFd>,
    ) {
        let Birth {
            user,
            steps,
            guards,
        } = birth;
        let result = enter_user_namespace(user, ids)
            .and_then(|()| {
                let Outcome { done, result, .. } = self.steps(&steps);
                match (usize::try_from(done) == Ok(steps.len()), result) {
                    (true, _) => Ok(()),
                    (false, Err(refusal)) => Err(refusal),
                    (false, Ok(_)) => Err(Refusal::Errno(libc::EINVAL)),
                }
            })
            .and_then(|()| {
                guards
                    .map(|(task, supervise)| self.guard(task, supervise, besides))
                    .transpose()
            });
        let result = match result {
            Ok(None) => Ok((pid, None)),
            Ok(Some(Born::Child(child))) => Ok((pid, Some(child.as_raw()))),
            // The child of this one has nothing to say.
            Ok(Some(Born::Myself { .. })) => return,
            Err(refusal) => Err(refusal),
        };
        let failed = result.is_err();
        self.tell(&FromNode::Born { sequence, result });
        if failed {
            self.stop(Stop::Asked(1));
        }
    }

    fn guard(
        &mut self,
        task: TaskId,
        supervise: Supervise,
        fds: Vec<OwnedFd>,
    ) -> Result<Born, Refusal> {
        let fds = <[OwnedFd; 4]>::try_from(fds).map_err(|_| Refusal::Errno(libc::EBADF))?;
        self.supervise(supervise)?;
        self.give_birth(task, 0, fds, Vec::new())
    }

    /// To calls, the descriptors that serving needs do not exist.
    fn protect(&mut self) {
        self.context.protected = vec![self.control.as_raw_fd(), self.signals.as_raw_fd()];
        let lifeline = self.context.lifeline.as_ref().map(AsRawFd::as_raw_fd);
        let alive = self
            .alive
            .as_ref()
            .map(|(r, w)| [r.as_raw_fd(), w.as_raw_fd()]);
        self.context.protected.extend(lifeline);
        self.context.protected.extend(alive.into_iter().flatten());
        if let Place::Root { lifeline, cgroup } = &self.place {
            self.context.protected.push(lifeline.as_raw_fd());
            let kill = cgroup.as_ref().map(Cgroup::kill_descriptor);
            self.context
                .protected
                .extend(kill.as_ref().map(AsRawFd::as_raw_fd));
        }
    }

    fn batch(&mut self, sequence: Sequence, steps: &[Step]) {
        let Outcome {
            done,
            state,
            result,
        } = self.steps(steps);
        self.tell(&FromNode::Done {
            sequence,
            steps: done,
            result,
            state,
        });
    }

    fn steps(&mut self, steps: &[Step]) -> Outcome {
        let ok = || Value::Atom("ok".to_owned());
        let mut state = None;
        let mut stopped = None;
        let mut done = 0;
        for step in steps {
            let result = if self.own_filter.allows(step.call.name()) {
                call::apply(&step.call, &mut self.context)
                    .map_err(|errno| Refusal::Errno(errno as i32))
            } else {
                Err(Refusal::Undefined)
            };
            match result {
                Err(Refusal::Errno(errno)) if step.ignore.contains(&errno) => state = Some(ok()),
                Err(Refusal::Errno(_)) if !step.errexit => {}
                Ok(value) => match state_of(&value) {
                    Some(value) => state = Some(value),
                    None => stopped = Some(Ok(value)),
                },
                Err(refusal) => stopped = Some(Err(refusal)),
            }
            if stopped.is_some() {
                break;
            }
            done += 1;
        }
        for ended in std::mem::take(&mut self.context.ended) {
            self.ended(ended);
        }
        let last = || match &state {
            None => ok(),
            Some(Value::Atom(name)) if name == "ok" => ok(),
            Some(value) => Value::Tuple(vec![ok(), value.clone()]),
        };
        let result = stopped.unwrap_or_else(|| Ok(last()));
        Outcome {
            done,
            state,
            result,
        }
    }

    /// Returns only if it fails: the process is the program then. A failure after all steps is
    /// that of the program.
    fn exec(
        &mut self,
        sequence: Sequence,
        steps: &[Step],
        program: Program,
        null: Option<&OwnedFd>,
    ) {
        // To the steps it does not exist.
        self.context.protected.extend(null.map(AsRawFd::as_raw_fd));
        let Outcome {
            done,
            state,
            result,
        } = self.steps(steps);
        self.protect();
        if usize::try_from(done) != Ok(steps.len()) {
            return self.tell(&FromNode::Done {
                sequence,
                steps: done,
                result,
                state,
            });
        }
        let name = match &program {
            Program::Path { .. } => "execve",
            Program::Search { .. } => "execvp",
            Program::Descriptor { .. } => "fexecve",
        };
        if !self.own_filter.allows(name) {
            return self.done(sequence, done, Err(Refusal::Undefined));
        }
        // The children's parent must go on serving their ends.
        if !self.children.is_empty() {
            return self.done(sequence, done, Err(Refusal::Errno(libc::EACCES)));
        }
        self.flush();
        let Err(errno) = self.try_exec(sequence, program, null);
        // It serves on.
        let _ = self.reported().thread_set_mask();
        let root = matches!(self.place, Place::Root { .. });
        let _ = sys::set_subreaper(root);
        self.done(sequence, done, Err(Refusal::Errno(errno as i32)));
    }

    fn try_exec(
        &mut self,
        sequence: Sequence,
        program: Program,
        null: Option<&OwnedFd>,
    ) -> Result<Infallible, Errno> {
        let environ = || {
            self.context
                .environ
                .iter()
                .cloned()
                .map(ByteBuf::from)
                .collect()
        };
        let prepared = match program {
            Program::Path { exec, redirect } => {
                redirect_streams(redirect, null)?;
                exec::prepare(exec)?
            }
            Program::Search { file, argv } => exec::prepare(Exec {
                file,
                argv,
                env: environ(),
                search: true,
            })?,
            Program::Descriptor { fd, argv, env } => exec::prepare_descriptor(fd, argv, env)?,
        };
        sys::keep_only_standard_descriptors_at_exec();
        // It would survive exec.
        sys::set_subreaper(false)?;
        channel::send(&self.control, &FromNode::Execing { sequence }, &[])
            .map_err(|error| error.errno())?;
        SigSet::empty().thread_set_mask()?;
        exec::apply(&prepared)
    }

    fn set(&mut self, sequence: Sequence, setting: Setting) {
        let result = match setting {
            Setting::Filter { .. } if !self.own_filter.allows("filter") => Err(Refusal::Undefined),
            Setting::Filter { own, children } => {
                self.filter(&own, &children);
                Ok(Value::Atom("ok".to_owned()))
            }
            Setting::Sigaction { .. } if !self.own_filter.allows("sigaction") => {
                Err(Refusal::Undefined)
            }
            Setting::Sigaction { signal, handler } => self
                .sigaction(signal, handler)
                .map_err(|errno| Refusal::Errno(errno as i32)),
            Setting::Forward if !self.own_filter.allows("sigaction") => Err(Refusal::Undefined),
            Setting::Forward => self
                .forward_all()
                .map_err(|errno| Refusal::Errno(errno as i32)),
            Setting::SignalOneOf(signal) => {
                self.signal_one_of = signal;
                Ok(Value::Atom("ok".to_owned()))
            }
            Setting::Supervise(supervise) => self
                .supervise(supervise)
                .map(|()| Value::Atom("ok".to_owned())),
        };
        self.done(sequence, 0, result);
    }

    /// As these calls one by one would.
    fn supervise(&mut self, supervise: Supervise) -> Result<(), Refusal> {
        let needed = ["prctl", "sigaction", "setproctitle", "setopt", "filter"];
        if !needed.iter().all(|name| self.own_filter.allows(name)) {
            return Err(Refusal::Undefined);
        }
        let Supervise {
            title,
            signal_one_of,
            own,
            children,
        } = supervise;
        sys::set_subreaper(true)
            .and_then(|()| self.forward_all())
            .and_then(|_| sys::set_title_and_name(&title))
            .map_err(|errno| Refusal::Errno(errno as i32))?;
        self.signal_one_of = signal_one_of;
        self.filter(&own, &children);
        Ok(())
    }

    fn filter(&mut self, own: &Filter, children: &Filter) {
        self.own_filter.narrow(own);
        self.child_filter.narrow(children);
    }

    fn forward_all(&mut self) -> Result<Value, Errno> {
        const FAULTS: [i32; 3] = [libc::SIGILL, libc::SIGBUS, libc::SIGSEGV];
        const KEPT: [i32; 4] = [libc::SIGKILL, libc::SIGSTOP, libc::SIGCHLD, libc::SIGPIPE];
        for signal in 1..=64 {
            let handler = match signal {
                signal if KEPT.contains(&signal) => continue,
                signal if FAULTS.contains(&signal) => Handler::Default,
                _ => Handler::Forward,
            };
            self.handlers.set(signal, handler);
        }
        self.handlers.set(libc::SIGPIPE, Handler::Info);
        sys::set_ignored(libc::SIGPIPE, false)?;
        self.drops_sigpipe = true;
        self.reported().thread_set_mask()?;
        // A supervisor from here on: its programs may not look into it (be_born turned it on).
        sys::set_inspectable(false)?;
        Ok(Value::Atom("ok".to_owned()))
    }

    fn sigaction(&mut self, signal: i32, handler: Option<Handler>) -> Result<Value, Errno> {
        if !(1..=64).contains(&signal) {
            return Err(Errno::EINVAL);
        }
        let previous = match signal {
            libc::SIGPIPE if self.drops_sigpipe => Handler::Ignore,
            signal => self.handlers.get(signal),
        };
        if let Some(handler) = handler {
            // SIGCHLD tells of children: either they are reaped here, or the owner is told.
            let handler = match (signal, handler) {
                (libc::SIGKILL | libc::SIGSTOP, _) => return Err(Errno::EINVAL),
                (libc::SIGCHLD, Handler::Ignore | Handler::Forward) => Handler::Default,
                (_, handler) => handler,
            };
            sys::set_ignored(signal, handler == Handler::Ignore)?;
            self.handlers.set(signal, handler);
            self.drops_sigpipe &= signal != libc::SIGPIPE;
            self.reported().thread_set_mask()?;
        }
        let name = match previous {
            Handler::Default => "sig_dfl",
            Handler::Ignore => "sig_ign",
            Handler::Info => "sig_info",
            Handler::Forward => "forward",
        };
        Ok(Value::Tuple(vec![
            Value::Atom("ok".to_owned()),
            Value::Atom(name.to_owned()),
        ]))
    }

    /// The signals that the signalfd reports, which are the blocked ones.
    fn reported(&self) -> SigSet {
        let mut set = SigSet::all();
        for signal in nix::sys::signal::Signal::iterator() {
            let left_to_kernel = matches!(
                self.handlers.get(signal as i32),
                Handler::Default | Handler::Ignore
            );
            if left_to_kernel && signal as i32 != libc::SIGCHLD {
                set.remove(signal);
            }
        }
        set
    }

    fn read_signal(&mut self) {
        let Some(received) = self.signals.read() else {
            return;
        };
        let signal = received.number();
        if signal == libc::SIGPIPE && self.drops_sigpipe {
            return;
        }
        let handler = self.handlers.get(signal);
        if signal == libc::SIGCHLD && handler != Handler::Info {
            self.reap();
            return;
        }
        match handler {
            Handler::Info => self.tell(&FromNode::Signal {
                signal,
                info: ByteBuf::from(received.info()),
            }),
            Handler::Forward => {
                reap::signal_descendants(signal);
            }
            Handler::Default | Handler::Ignore => {}
        }
    }

    /// Collects every child that has ended; `ECHILD` is true.
    fn reap(&mut self) -> bool {
        loop {
            match sys::wait_any() {
                Ok(Some(ended)) => self.ended(ended),
                Ok(None) => return false,
                Err(errno) => return errno == Errno::ECHILD,
            }
        }
    }

    fn ended(&mut self, ended: Ended) {
        if let Some(task) = self.children.remove(&ended.pid) {
            self.tell(&FromNode::Exited {
                task,
                exit: ended.exit,
                usage: ended.usage,
            });
        }
    }

    /// The child and everything that still hangs on it.
    fn kill_child(&mut self, task: TaskId) {
        let pid = self
            .children
            .iter()
            .find(|(_, child)| **child == task)
            .map(|(pid, _)| *pid);
        if let Some(pid) = pid {
            // Its own alone, if nobody else is in there.
            if let (Some(cgroup), 1) = (self.cgroup(), self.children.len()) {
                cgroup.kill();
            }
            reap::kill_subtree(pid);
            self.reap();
        }
    }

    fn terminate_child(&mut self, task: TaskId, signal: i32) {
        let child = self.children.iter().find(|(_, child)| **child == task);
        let Some(pid) = child.map(|(pid, _)| *pid) else {
            return;
        };
        // PID 1 of a namespace never sees what it does not catch.
        if sys::drops_as_init(pid, signal) {
            return self.kill_child(task);
        }
        let leads_group = nix::unistd::getpgid(Some(pid)) == Ok(pid);
        let target = if leads_group {
            -pid.as_raw()
        } else {
            pid.as_raw()
        };
        let _ = sys::kill(target, signal);
    }

    fn reap_tree(&mut self, sequence: Sequence) {
        let give_up = Instant::now() + TEARDOWN_DEADLINE;
        if let Some(cgroup) = self.cgroup() {
            cgroup.kill();
        }
        let mut killer = Killer::default();
        let result = loop {
            if self.reap() || killer.pass() == 0 {
                break Ok(Value::Atom("ok".to_owned()));
            }
            if give_up <= Instant::now() {
                break Err(Refusal::Errno(libc::ETIMEDOUT));
            }
            self.wait_for_child();
        };
        self.done(sequence, 0, result);
    }

    fn done(&mut self, sequence: Sequence, steps: u32, result: Result<Value, Refusal>) {
        self.tell(&FromNode::Done {
            sequence,
            steps,
            result,
            state: None,
        });
    }

    /// In order, also when the socket is full.
    fn tell(&mut self, message: &FromNode) {
        if let Ok(datagram) = Datagram::new(message) {
            self.outbox.push(datagram);
            self.flush();
        }
    }

    fn flush(&mut self) {
        while let Some(datagram) = self.outbox.first() {
            match datagram.send(self.control.as_fd(), &[]) {
                Err(error) if is_busy(error.errno()) => return,
                Ok(()) => drop(self.outbox.remove(0)),
                // Who waits for an answer that cannot be sent is told by the end of the socket.
                Err(_) => {
                    self.outbox.clear();
                    self.mute = true;
                    return;
                }
            }
        }
    }

    fn stop(&mut self, stop: Stop) -> ! {
        let status = match stop {
            Stop::Asked(status) => i32::from(status),
            Stop::Abandoned => 0,
            Stop::Protocol => EXIT_PROTOCOL,
        };
        self.end_children();
        self.remove_cgroup();
        sys::exit(status)
    }

    /// What was killed in it may take a moment to leave it. The launcher tries again if this process is
    /// not given the time.
    fn remove_cgroup(&self) {
        let give_up = Instant::now() + TEARDOWN_DEADLINE;
        while let Some(cgroup) = self.cgroup() {
            if cgroup.remove() || give_up <= Instant::now() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Rule 3.
    fn end_children(&mut self) {
        let signal = self.signal_one_of;
        let gentle = signal != 0 && signal != libc::SIGKILL && !self.children.is_empty();
        if gentle {
            for pid in self.children.keys() {
                let group = -pid.as_raw();
                if sys::kill(group, signal).is_err() {
                    let _ = sys::kill(pid.as_raw(), signal);
                }
            }
            let until = Instant::now() + LAST_WORDS;
            while Instant::now() < until && !self.reap() {
                self.wait_for_child();
            }
        }
        if let Some(cgroup) = self.cgroup() {
            cgroup.kill();
        }
        let give_up = Instant::now() + TEARDOWN_DEADLINE;
        let root = matches!(self.place, Place::Root { .. });
        let mut killer = Killer::default();
        loop {
            let left = if root {
                killer.pass()
            } else {
                let children: Vec<_> = self.children.keys().copied().collect();
                children.iter().map(|pid| reap::kill_subtree(*pid)).sum()
            };
            if self.reap() || left == 0 || give_up <= Instant::now() {
                return;
            }
            self.wait_for_child();
        }
    }

    /// A moment, or less if a signal comes.
    fn wait_for_child(&self) {
        let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(
            &mut fds,
            PollTimeout::try_from(PASS_PAUSE).unwrap_or(PollTimeout::ZERO),
        );
        while self.signals.read().is_some() {}
    }
}

/// The flag of clone(2).
fn user_namespace(user: User) -> u64 {
    match user {
        User::KeptIfUnprivileged if geteuid().is_root() => 0,
        User::KeptIfUnprivileged | User::Mapped { .. } => sys::CLONE_NEWUSER,
    }
}

/// With the ids that the process had outside.
fn enter_user_namespace(user: User, (uid, gid): (Uid, Gid)) -> Result<(), Refusal> {
    let inside = match user {
        User::KeptIfUnprivileged if uid.is_root() => return Ok(()),
        User::KeptIfUnprivileged => (uid.as_raw(), gid.as_raw()),
        User::Mapped { uid, gid } => (uid, gid),
    };
    sys::map_ids((inside.0, uid), (inside.1, gid)).map_err(|errno| Refusal::Errno(errno as i32))
}

fn redirect_streams(redirect: Redirect, null: Option<&OwnedFd>) -> Result<(), Errno> {
    let null = || null.ok_or(Errno::EBADF);
    if redirect.stdin_null {
        dup2_stdin(null()?)?;
    }
    if redirect.stderr_null {
        dup2_stderr(null()?)?;
    }
    if redirect.stderr_to_stdout {
        dup2_stderr(std::io::stdout())?;
    }
    Ok(())
}

/// What a result leaves for a later step of the same level: `:ok` itself, or the value in
/// `{:ok, value}`. Results of any other shape end a batch.
fn state_of(value: &Value) -> Option<Value> {
    match value {
        Value::Atom(name) if name == "ok" => Some(value.clone()),
        Value::Tuple(items) => match items.as_slice() {
            [Value::Atom(name), value] if name == "ok" => Some(value.clone()),
            _ => None,
        },
        _ => None,
    }
}
