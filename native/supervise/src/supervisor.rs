//! A root: forked from the launcher, shown as `Supervise`, owner of one process tree.
//!
//! Rules:
//! 1. It is a subreaper from birth: what its tree leaves behind becomes its child. `ECHILD` from
//!    wait therefore means that nothing of the tree is left.
//! 2. It ends its tree when the program ends, when it is told to, when its control socket closes
//!    (the owner or the BEAM died) and when the lifeline closes (the launcher died).
//! 3. It reports the program's end once the tree is empty, and is then as it was before: it can be
//!    asked for another program, and ends with its control socket.
//! 4. Its exit status is 0 if nothing of the tree is left and the NIF has been told all there is
//!    to tell. Any other end, a signal included, makes the launcher look for orphans and report.
//! 5. A signal that reaches it is forwarded once to each descendant.
//! 6. Unless the program is to be born into namespaces, its process is there before it, and waits.

use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::{getegid, geteuid, getpgid, getpid, pipe2, Pid};
use stdio_protocol::channel::{self, Receiver};
use stdio_protocol::message::{
    Escalation, Exit, FromRoot, FromTask, Namespaces, Plan, RootId, Stage, Start, ToNode, ToRoot,
    Usage, Watch,
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
    /// What this process is to go on as.
    become_other: Option<Other>,
    /// False once nobody reads reports any more.
    connected: bool,
    /// It has had a program, and reported its end.
    rested: bool,
    /// There is to be no other program: somebody has killed its child, and not at its request.
    tired: bool,
    program: Option<Program>,
    phase: Phase,
    usage: Usage,
    exit: Option<Exit>,
    /// Exit status of this process, if nothing survives.
    status: i32,
}

impl Program {
    /// Its end of the go-ahead pipe is closed: it has executed something, or ended.
    fn is_under_way(&self) -> bool {
        let mut fds = [PollFd::new(self.go.as_fd(), PollFlags::empty())];
        !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
    }

    /// Waits for its end; whether it has come.
    fn await_end(&self, flags: i32) -> bool {
        loop {
            match sys::waitpid(self.pid.as_raw(), flags) {
                Err(Errno::EINTR) => {}
                Ok((_, _, ended)) => return ended.is_some(),
                Err(_) => return false,
            }
        }
    }
}

enum Other {
    /// A root that serves requests; the first one.
    Node(Box<ToNode>, Vec<OwnedFd>),
    /// The child of a fork.
    Child {
        control: OwnedFd,
        go_ahead: OwnedFd,
        parent: Pid,
    },
}

struct Program {
    pid: Pid,
    /// It was born before its program was known. Who tells it is the NIF.
    waited: bool,
    leads_namespace: bool,
    /// What is to happen from exec on, until that has been seen.
    watch: Option<Watch>,
    /// Write end of the go-ahead pipe. The child's end closes at exec, which is when the time starts;
    /// and the child sees by it that this process has ended.
    go: OwnedFd,
}

#[derive(Clone, Copy)]
enum Phase {
    /// No program yet, or it runs; until then if it may not for ever.
    Running {
        until: Option<(Instant, Escalation)>,
    },
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
        become_other: None,
        connected: true,
        rested: false,
        tired: false,
        program: None,
        phase: Phase::Running { until: None },
        usage: Usage::default(),
        exit: None,
        status: 0,
    };
    // Often the first request is there already.
    supervisor.receive();
    loop {
        match supervisor.become_other.take() {
            Some(Other::Node(message, fds)) => {
                node::serve_root(supervisor.inherited, *message, fds)
            }
            Some(Other::Child {
                control,
                go_ahead,
                parent,
            }) => supervisor.become_child(control, go_ahead, parent),
            None => supervisor.turn(),
        }
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
        if self.become_other.is_some() {
            return;
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
        let until_exec = self
            .program
            .as_ref()
            .and_then(|program| program.watch.map(|_| &program.go));
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
            Phase::Running { until: None } => return PollTimeout::NONE,
            Phase::Running {
                until: Some((at, _)),
            }
            | Phase::Ending { kill_at: at } => at,
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
            Phase::Running {
                until: Some((at, escalation)),
            } if at <= now => self.end_program(escalation),
            Phase::Ending { kill_at } if kill_at <= now => self.kill_tree(),
            Phase::Killing {
                give_up,
                next_pass,
                pause,
                mut killer,
            } if next_pass <= now => {
                if give_up <= now {
                    let survivors = killer.pass();
                    self.report(survivors, false);
                    sys::exit(EXIT_SURVIVORS);
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
                (ToRoot::Bear, fds) if self.program.is_none() => self.bear(fds),
                (ToRoot::Watch(watch), fds) if fds.is_empty() => {
                    // Without one it has ended meanwhile.
                    if let Some(program) = &mut self.program {
                        program.watch = Some(watch);
                    }
                }
                (ToRoot::Start(start), fds) if self.dismiss_child() => self.start(*start, fds),
                (ToRoot::Terminate(escalation), fds) if fds.is_empty() => {
                    self.end_program(escalation);
                }
                (ToRoot::Node(message), fds) if self.dismiss_child() => {
                    self.become_other = Some(Other::Node(message, fds));
                }
                _ => self.protocol_error(),
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
        let Start { plan, watch } = start;
        let leads_namespace = plan.namespaces.pid;
        let prepared = match prepare(plan) {
            Ok(prepared) => prepared,
            Err(errno) => return self.fork_failed(&control, Stage::Exec, errno),
        };
        match birth(prepared.namespaces) {
            Ok(Birth::Child { go_ahead, parent }) => {
                let descriptors = task::Descriptors {
                    control,
                    stdin,
                    stdout,
                    stderr,
                    go_ahead,
                };
                task::run(prepared, descriptors, parent)
            }
            Ok(Birth::Parent { pid, go }) => self.record(Program {
                pid,
                waited: false,
                leads_namespace,
                watch,
                go,
            }),
            Err(errno) => self.fork_failed(&control, Stage::Fork, errno),
        }
    }

    /// From here on it may run.
    fn record(&mut self, program: Program) {
        let program = self.program.insert(program);
        task::release(&program.go, program.pid);
    }

    /// A child that is there when its program comes: neither the fork nor this process's wake-up stands
    /// between a start and its exec.
    fn bear(&mut self, fds: Vec<OwnedFd>) {
        let Ok([control]) = <[OwnedFd; 1]>::try_from(fds) else {
            return self.protocol_error();
        };
        match birth(Namespaces::default()) {
            Ok(Birth::Child { go_ahead, parent }) => {
                self.become_other = Some(Other::Child {
                    control,
                    go_ahead,
                    parent,
                });
            }
            Ok(Birth::Parent { pid, go }) => self.record(Program {
                pid,
                waited: true,
                leads_namespace: false,
                watch: None,
                go,
            }),
            Err(errno) => self.fork_failed(&control, Stage::Fork, errno),
        }
    }

    /// In the child.
    fn become_child(self, control: OwnedFd, go_ahead: OwnedFd, parent: Pid) -> ! {
        // What comes in its place takes it away.
        let _ = self.inherited.control.into_raw_fd();
        task::wait(control, go_ahead, parent, self.inherited.receiver)
    }

    /// There is no program whose end could be waited for.
    fn fork_failed(&mut self, control: &OwnedFd, stage: Stage, errno: Errno) {
        let failed = FromTask::Failed {
            stage,
            errno: errno as i32,
        };
        if channel::send(control, &failed, &[]).is_err() {
            self.status = EXIT_UNREPORTED;
        }
        self.kill_tree();
    }

    /// Ends the child that waits for a program; true if there is none now.
    fn dismiss_child(&mut self) -> bool {
        let Some(program) = self.program.as_ref() else {
            return true;
        };
        if !program.waited {
            return false;
        }
        // Killed by somebody else a moment ago; or it does nothing but wait, and so ends at once.
        let ended = program.await_end(libc::WNOHANG) || {
            let waits = !program.is_under_way();
            waits && sys::kill(program.pid.as_raw(), libc::SIGKILL).is_ok() && program.await_end(0)
        };
        if ended {
            self.program = None;
        }
        ended
    }

    /// The program has executed: its time runs from now on.
    fn start_clock(&mut self) {
        let watch = self
            .program
            .as_mut()
            .and_then(|program| program.watch.take());
        if let (Phase::Running { .. }, Some(watch)) = (self.phase, watch) {
            let timeout = Duration::from_millis(watch.timeout_ms);
            self.phase = Phase::Running {
                // A timeout beyond what the clock can hold is none.
                until: Instant::now()
                    .checked_add(timeout)
                    .map(|at| (at, watch.escalation)),
            };
        }
    }

    fn end_program(&mut self, escalation: Escalation) {
        let Some(program) = &self.program else {
            // It has ended meanwhile; or there is to be none.
            if !self.rested {
                self.kill_tree();
            }
            return;
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
                    if let Some(program) = self.program.as_ref().filter(|p| p.pid == ended.pid) {
                        self.exit = Some(ended.exit);
                        // Perhaps before it had a program. A start that takes this end for its own
                        // program's must find nobody who begins it all the same.
                        self.tired = program.waited
                            && ended.exit == Exit::Signal(libc::SIGKILL)
                            && matches!(self.phase, Phase::Running { .. });
                    }
                }
                Ok(None) => break,
                // Only this one says that nothing is left.
                Err(errno) if errno != Errno::ECHILD => break,
                Err(_) => {
                    if self.exit.is_some() || matches!(self.phase, Phase::Killing { .. }) {
                        self.finish();
                    }
                    return;
                }
            }
        }
        if self.exit.is_some() {
            self.kill_tree();
        }
    }

    /// The kernel has said that this process has no child. It ends too, unless it is as good as new.
    fn finish(&mut self) {
        self.program = None;
        let rests = self.status == 0 && !self.tired;
        match self.report(0, rests) {
            Some(true) if rests => self.rest(),
            Some(true) | None => sys::exit(self.status),
            Some(false) => sys::exit(EXIT_UNREPORTED),
        }
    }

    /// Whether the end of the tree could be reported; `None` if it is not to be.
    fn report(&self, survivors: usize, rests: bool) -> Option<bool> {
        let exited = FromRoot::Exited {
            exit: self.exit.filter(|_| self.connected)?,
            usage: self.usage,
            survivors: u32::try_from(survivors).unwrap_or(u32::MAX),
            rests,
        };
        Some(channel::send(&self.inherited.control, &exited, &[]).is_ok())
    }

    /// Nothing of the tree is left, so whatever comes below this process from now on is the next one's.
    fn rest(&mut self) {
        // What was still to be forwarded to the last one is not for the next.
        while self.inherited.signals.read().is_some() {}
        self.phase = Phase::Running { until: None };
        self.usage = Usage::default();
        self.exit = None;
        self.rested = true;
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
        go_ahead: OwnedFd,
        parent: Pid,
    },
}

fn birth(namespaces: Namespaces) -> Result<Birth, Errno> {
    let (go_ahead, go) = pipe2(OFlag::O_CLOEXEC)?;
    let parent = getpid();
    Ok(match sys::fork(namespaces)? {
        Fork::Parent(pid) => Birth::Parent { pid, go },
        Fork::Child => {
            // Closed with all the others, by number.
            let _ = go.into_raw_fd();
            Birth::Child { go_ahead, parent }
        }
    })
}

/// Allocates and checks all that a child will need.
fn prepare(plan: Plan) -> Result<task::Prepared, Errno> {
    Ok(task::Prepared {
        own_ids: sys::needs_user_namespace(plan.namespaces).then(|| (geteuid(), getegid())),
        namespaces: plan.namespaces,
        steps: plan.script.steps,
        exec: exec::prepare(plan.script.exec)?,
    })
}

/// Which descriptors poll(2) reported.
struct Ready {
    signals: bool,
    control: bool,
    lifeline: bool,
    executed: bool,
}
