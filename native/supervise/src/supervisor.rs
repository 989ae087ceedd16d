//! A root: forked from the launcher, shown as `Supervise`, owner of one process tree.
//!
//! Rules:
//! 1. It is a subreaper from birth: what its tree leaves behind becomes its child. `ECHILD` from
//!    wait therefore means that nothing of the tree is left.
//! 2. It ends its tree when the program ends, when it is told to, when its control socket closes
//!    (the owner or the BEAM died) and when the lifeline closes (the launcher died).
//! 3. It reports the program's end once the tree is empty, and then ends itself.
//! 4. Its exit status is 0 if nothing of the tree is left and the NIF has been told all there is
//!    to tell. Any other end, a signal included, makes the launcher look for orphans and report.
//! 5. A signal that reaches it is forwarded once to each descendant.

use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::{getegid, geteuid, getpgid, getpid, pipe2, Pid};
use stdio_protocol::channel::{self, Receiver};
use stdio_protocol::message::{
    Escalation, Exit, FromRoot, FromTask, Plan, RootId, Stage, Start, ToNode, ToRoot, Usage,
};

use crate::reap::Killer;
use crate::sys::{self, Fork, Signals};
use crate::{exec, node, reap, task, EXIT_PROTOCOL};

/// Unkillable processes (another user's, behind a setuid program) are given up on after this.
const TEARDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// The pause between two passes of the kill loop grows from 1 ms to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// Exit status of a supervisor which had to leave something behind.
const EXIT_SURVIVORS: i32 = 3;
/// Exit status of one whose report did not get through: the launcher says that it ended.
const EXIT_UNREPORTED: i32 = 4;

/// What a supervisor gets from the launcher.
pub struct Inherited {
    pub id: RootId,
    pub control: OwnedFd,
    /// Read end; it reaches end of file when the launcher dies.
    pub lifeline: OwnedFd,
    pub signals: Signals,
    /// The launcher's, most of which no process has ever touched: a new one would cost 16 page
    /// faults to clear.
    pub receiver: Receiver,
}

struct Supervisor {
    inherited: Inherited,
    /// The first request of a root that is to serve requests instead.
    node: Option<(ToNode, Vec<OwnedFd>)>,
    /// False once nobody reads reports any more.
    connected: bool,
    program: Option<Program>,
    phase: Phase,
    usage: Usage,
    exit: Option<Exit>,
    /// Exit status of this process, if nothing survives.
    status: i32,
}

struct Program {
    pid: Pid,
    leads_namespace: bool,
    timeout: Option<Duration>,
    escalation: Escalation,
    /// Write end of the go-ahead pipe, kept when there is a timeout: the program's end of it
    /// closes at exec, which is when the time starts.
    until_exec: Option<OwnedFd>,
}

#[derive(Clone, Copy)]
enum Phase {
    /// No program yet, or it runs; its deadline if it has one.
    Running { deadline: Option<Instant> },
    /// It was asked to end.
    Ending { kill_at: Instant },
    /// Everything is being killed.
    Killing {
        give_up: Instant,
        next_pass: Instant,
        pause: Duration,
        killer: Killer,
    },
}

/// Runs in the forked child of the launcher, with the launcher's privilege.
pub fn run(inherited: Inherited) -> ! {
    for result in [sys::set_subreaper(true), sys::set_name(c"Supervise")] {
        if let Err(errno) = result {
            sys::die("prctl", errno);
        }
    }
    let mut supervisor = Supervisor {
        inherited,
        node: None,
        connected: true,
        program: None,
        phase: Phase::Running { deadline: None },
        usage: Usage::default(),
        exit: None,
        status: 0,
    };
    // Often the start is there already.
    supervisor.receive();
    loop {
        if let Some((message, fds)) = supervisor.node.take() {
            node::serve_root(supervisor.inherited, message, fds);
        }
        supervisor.turn();
    }
}

impl Supervisor {
    /// One round of the event loop.
    fn turn(&mut self) {
        if !matches!(self.phase, Phase::Killing { .. }) {
            sys::calm_down();
        }
        let ready = self.wait();
        if ready.signals {
            self.read_signal();
        }
        if ready.executed {
            self.start_clock();
        }
        if ready.control {
            self.receive();
        }
        if ready.lifeline {
            self.kill_tree();
        }
        self.advance();
    }

    fn wait(&self) -> Ready {
        let Inherited {
            control,
            lifeline,
            signals,
            ..
        } = &self.inherited;
        let until_exec = self.program.as_ref().and_then(|p| p.until_exec.as_ref());
        let killing = matches!(self.phase, Phase::Killing { .. });
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        // Both stay readable once closed, and say nothing new to a tree that is being killed.
        if !killing {
            fds.push(PollFd::new(control.as_fd(), PollFlags::POLLIN));
            fds.push(PollFd::new(lifeline.as_fd(), PollFlags::POLLIN));
            fds.extend(until_exec.map(|fd| PollFd::new(fd.as_fd(), PollFlags::empty())));
        }
        match poll(&mut fds, self.timeout()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => sys::die("poll", errno),
        }
        let ready = |index: usize| {
            fds.get(index)
                .and_then(PollFd::revents)
                .is_some_and(|events| !events.is_empty())
        };
        Ready {
            signals: ready(0),
            control: ready(1),
            lifeline: ready(2),
            executed: ready(3),
        }
    }

    fn timeout(&self) -> PollTimeout {
        let at = match self.phase {
            Phase::Running { deadline: None } => return PollTimeout::NONE,
            Phase::Running { deadline: Some(at) } | Phase::Ending { kill_at: at } => at,
            Phase::Killing { next_pass, .. } => next_pass,
        };
        let left = at.saturating_duration_since(Instant::now());
        // Rounded up: waking early would spin until the time has come.
        let millis = left.as_micros().div_ceil(1000);
        PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
    }

    /// What is due by now: passed deadlines, passes of the kill loop, children that ended.
    fn advance(&mut self) {
        let now = Instant::now();
        match self.phase {
            Phase::Running { deadline: Some(at) } if at <= now => {
                if let Some(program) = &self.program {
                    let escalation = program.escalation;
                    self.end_program(escalation);
                }
            }
            Phase::Ending { kill_at } if kill_at <= now => self.kill_tree(),
            Phase::Killing {
                give_up,
                next_pass,
                pause,
                mut killer,
            } if next_pass <= now => {
                if give_up <= now {
                    self.finish(killer.pass());
                }
                killer.pass();
                let pause = LONGEST_PAUSE.min(pause * 2);
                self.phase = Phase::Killing {
                    give_up,
                    next_pass: now + pause,
                    pause,
                    killer,
                };
                self.reap();
            }
            _ => {}
        }
    }

    fn receive(&mut self) {
        let Inherited {
            control, receiver, ..
        } = &mut self.inherited;
        match receiver.recv::<ToRoot>(control.as_fd()) {
            Ok(Some(received)) => match (received.message, received.fds) {
                (ToRoot::Start(start), fds) if self.program.is_none() => self.start(*start, fds),
                (ToRoot::Terminate(escalation), fds) if fds.is_empty() => {
                    self.end_program(escalation);
                }
                (ToRoot::Node(message), fds) if self.program.is_none() => {
                    self.node = Some((*message, fds));
                }
                (ToRoot::Start(_) | ToRoot::Terminate(_) | ToRoot::Node(_), _) => {
                    self.protocol_error();
                }
            },
            Ok(None) => {
                self.connected = false;
                self.kill_tree();
            }
            Err(error) if error.errno() == Errno::EAGAIN => {}
            Err(_) => self.protocol_error(),
        }
    }

    /// A peer that cannot be trusted to mean what it says: nothing of its tree stays.
    fn protocol_error(&mut self) {
        self.connected = false;
        self.status = i32::from(EXIT_PROTOCOL);
        self.kill_tree();
    }

    fn start(&mut self, start: Start, fds: Vec<OwnedFd>) {
        let Ok([control, stdin, stdout, stderr]) = <[OwnedFd; 4]>::try_from(fds) else {
            return self.protocol_error();
        };
        let Start {
            plan,
            timeout_ms,
            escalation,
        } = start;
        let leads_namespace = plan.namespaces.pid;
        match prepare(plan) {
            Ok(Birth::Child {
                prepared,
                go_ahead,
                parent,
            }) => {
                let descriptors = task::Descriptors {
                    control,
                    stdin,
                    stdout,
                    stderr,
                    go_ahead,
                };
                task::run(prepared, descriptors, parent)
            }
            Ok(Birth::Parent { pid, go }) => {
                let timeout = timeout_ms.map(Duration::from_millis);
                self.program = Some(Program {
                    pid,
                    leads_namespace,
                    timeout,
                    escalation,
                    until_exec: None,
                });
                // Recorded: from here on it may run.
                task::release(&go, pid);
                if let (Some(program), Some(_)) = (&mut self.program, timeout) {
                    program.until_exec = Some(go);
                }
            }
            Err((stage, errno)) => {
                let failed = FromTask::Failed {
                    stage,
                    errno: errno as i32,
                };
                if channel::send(&control, &failed, &[]).is_err() {
                    self.status = EXIT_UNREPORTED;
                }
                // There is no program whose end could be waited for.
                self.kill_tree();
            }
        }
    }

    /// The program has executed: its time runs from now on.
    fn start_clock(&mut self) {
        let Some(program) = &mut self.program else {
            return;
        };
        program.until_exec = None;
        if let (Phase::Running { .. }, Some(timeout)) = (self.phase, program.timeout) {
            self.phase = Phase::Running {
                // A timeout beyond what the clock can hold is none.
                deadline: Instant::now().checked_add(timeout),
            };
        }
    }

    fn end_program(&mut self, escalation: Escalation) {
        let Some(program) = &self.program else {
            return self.kill_tree();
        };
        match self.phase {
            Phase::Running { .. } => {}
            // A grace that has begun goes on, unless there is to be none.
            Phase::Ending { .. } if escalation.signal == libc::SIGKILL => {}
            Phase::Ending { .. } | Phase::Killing { .. } => return,
        }
        let ignored = program.leads_namespace && !sys::catches(program.pid, escalation.signal);
        if escalation.signal == libc::SIGKILL || ignored {
            return self.kill_tree();
        }
        // The leader of a group has not been reaped, so the group's number is still its own.
        let target = match getpgid(Some(program.pid)) {
            Ok(group) if group == program.pid => -program.pid.as_raw(),
            _ => program.pid.as_raw(),
        };
        let _ = sys::kill(target, escalation.signal);
        self.phase = Phase::Ending {
            kill_at: Instant::now() + Duration::from_millis(escalation.grace_ms),
        };
    }

    fn kill_tree(&mut self) {
        if matches!(self.phase, Phase::Killing { .. }) {
            return;
        }
        let now = Instant::now();
        let mut killer = Killer::default();
        killer.pass();
        let pause = Duration::from_millis(1);
        self.phase = Phase::Killing {
            give_up: now + TEARDOWN_DEADLINE,
            next_pass: now + pause,
            pause,
            killer,
        };
        self.reap();
    }

    /// One at a time: if there are more, poll says so.
    fn read_signal(&mut self) {
        let Some(signal) = self.inherited.signals.read() else {
            return;
        };
        match signal.number() {
            libc::SIGCHLD => self.reap(),
            // A broken pipe is this process's own affair.
            libc::SIGPIPE => {}
            number => {
                reap::signal_descendants(number);
            }
        }
    }

    /// Collects every child that has ended. The program's end turns into the tree's.
    fn reap(&mut self) {
        loop {
            match sys::wait_any() {
                Ok(Some(ended)) => {
                    self.usage.add(&ended.usage);
                    if self.program.as_ref().is_some_and(|p| p.pid == ended.pid) {
                        self.exit = Some(ended.exit);
                    }
                }
                Ok(None) => break,
                // Only this one says that nothing is left.
                Err(errno) if errno != Errno::ECHILD => break,
                Err(_) => {
                    if self.exit.is_some() || matches!(self.phase, Phase::Killing { .. }) {
                        self.finish(0);
                    }
                    return;
                }
            }
        }
        if self.exit.is_some() {
            self.kill_tree();
        }
    }

    fn finish(&self, survivors: usize) -> ! {
        let mut status = self.status;
        if let (true, Some(exit)) = (self.connected, self.exit) {
            let exited = FromRoot::Exited {
                exit,
                usage: self.usage,
                survivors: u32::try_from(survivors).unwrap_or(u32::MAX),
            };
            if channel::send(&self.inherited.control, &exited, &[]).is_err() {
                status = EXIT_UNREPORTED;
            }
        }
        sys::exit(if survivors == 0 {
            status
        } else {
            EXIT_SURVIVORS
        })
    }
}

/// The two sides of the birth of a program.
enum Birth {
    Parent {
        pid: Pid,
        /// Write end of the go-ahead pipe.
        go: OwnedFd,
    },
    Child {
        prepared: task::Prepared,
        go_ahead: OwnedFd,
        parent: Pid,
    },
}

/// Allocates and checks all that the child will need, then forks.
fn prepare(plan: Plan) -> Result<Birth, (Stage, Errno)> {
    let prepared = task::Prepared {
        own_ids: sys::needs_user_namespace(plan.namespaces).then(|| (geteuid(), getegid())),
        namespaces: plan.namespaces,
        steps: plan.steps,
        exec: exec::prepare(plan.exec).map_err(|errno| (Stage::Exec, errno))?,
    };
    let (go_ahead, go) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| (Stage::Fork, errno))?;
    let parent = getpid();
    match sys::fork(prepared.namespaces).map_err(|errno| (Stage::Fork, errno))? {
        Fork::Parent(pid) => Ok(Birth::Parent { pid, go }),
        Fork::Child => {
            // Closed with all the others, by number.
            let _ = go.into_raw_fd();
            Ok(Birth::Child {
                prepared,
                go_ahead,
                parent,
            })
        }
    }
}

/// Which descriptors poll(2) reported.
struct Ready {
    signals: bool,
    control: bool,
    lifeline: bool,
    executed: bool,
}
