//! Processes that wait for their program, and supervisors that have one after the other.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use stdio_protocol::channel;
use stdio_protocol::message::{
    Escalation, Exit, FromRoot, FromTask, RootId, Start, ToNode, ToRoot, ToTask, Watch,
};

use crate::common::*;
use crate::process::{self, wait_until, DEADLINE};

/// A supervisor whose child has no program yet.
struct Waiting {
    id: RootId,
    root: OwnedFd,
    task: OwnedFd,
    supervisor: Pid,
    child: Pid,
}

impl Waiting {
    #[track_caller]
    fn new(helper: &Helper) -> Self {
        let (id, root) = helper.fork();
        let (task, theirs) = channel::pair().unwrap();
        send(&root, &ToRoot::Bear, &[theirs.as_fd()]);
        let supervisor = helper.supervisor();
        wait_until("it has a child", || {
            process::children(supervisor).len() == 1
        });
        let child = process::children(supervisor)[0];
        wait_until("the child waits", || waits(child));
        Self {
            id,
            root,
            task,
            supervisor,
            child,
        }
    }

    /// The launcher, who would see to it too, is stopped.
    #[track_caller]
    fn ends_with_its_supervisor(self, helper: &Helper) {
        signal(helper.pid(), Signal::SIGSTOP);
        wait_until("the launcher is stopped", || {
            process::is_stopped(helper.pid())
        });
        signal(self.supervisor, Signal::SIGKILL);
        wait_until("the child has ended", || process::is_zombie(self.child));
        signal(helper.pid(), Signal::SIGCONT);
        helper.reports(self.id);
    }

    /// Has the child become this program.
    #[track_caller]
    fn become_program(self, helper: &Helper, start: Start) -> Program {
        let connections = Connections::new();
        let script = helper.marked(start).plan.script;
        send(
            &self.task,
            &ToTask::Start(Box::new(script)),
            &connections.theirs()[1..],
        );
        let mut program = connections.into_program(self.id, self.root);
        program.task = self.task;
        program
    }
}

/// In poll(2), which it is in again only after it has taken away what was signalled to it.
fn waits(pid: Pid) -> bool {
    let nothing = "0000000000000000";
    process::status(pid, "State").starts_with('S')
        && process::status(pid, "SigPnd") == nothing
        && process::status(pid, "ShdPnd") == nothing
}

fn says_nothing_for(socket: &OwnedFd, time: Duration) {
    let give_up = std::time::Instant::now() + time;
    assert!(!readable(socket, give_up), "somebody spoke");
}

// ---- the child -------------------------------------------------------------------------------

#[test]
fn the_child_that_waited_is_the_program() {
    let helper = Helper::start();
    let waiting = Waiting::new(&helper);
    let child = waiting.child;
    let mut program = waiting.become_program(&helper, sh("echo $$; exit 3"));
    assert_eq!(program.started(), child);
    assert_eq!(program.exited(), Exit::Status(3));
    assert_eq!(program.output(), format!("{child}\n"));
}

/// Neither those of the helper nor what is sent to it while it has no program.
#[test]
fn signals_before_the_program_are_not_the_programs() {
    let helper = Helper::start();
    let waiting = Waiting::new(&helper);
    for number in [
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGUSR1,
    ] {
        signal(waiting.child, number);
        // It is forwarded.
        signal(waiting.supervisor, number);
    }
    let (supervisor, child) = (waiting.supervisor, waiting.child);
    wait_until("they are taken away", || waits(supervisor) && waits(child));
    let program = waiting.become_program(&helper, sh("exit 3"));
    assert_eq!(program.exited(), Exit::Status(3));
}

#[test]
fn a_child_that_waits_ends_with_its_supervisor() {
    let helper = Helper::start();
    let waiting = Waiting::new(&helper);
    waiting.ends_with_its_supervisor(&helper);
}

#[test]
fn a_child_that_waits_ends_with_the_launcher() {
    let mut helper = Helper::start();
    let _waiting = Waiting::new(&helper);
    signal(helper.pid(), Signal::SIGKILL);
    helper.exit_status();
    helper.nothing_left();
}

/// Whoever closes its socket has other plans with its supervisor, which must not take the end of
/// the child for that of a program.
#[test]
fn the_end_of_its_socket_is_not_the_end_of_the_child() {
    let helper = Helper::start();
    for with_program in [true, false] {
        let waiting = Waiting::new(&helper);
        let (supervisor, child) = (waiting.supervisor, waiting.child);
        drop(waiting.task);
        says_nothing_for(&waiting.root, Duration::from_millis(100));
        assert!(waits(child));
        if with_program {
            let connections = Connections::new();
            let start = ToRoot::Start(Box::new(helper.marked(sh("exit 4"))));
            send(&waiting.root, &start, &connections.theirs());
            let program = connections.into_program(waiting.id, waiting.root);
            assert_ne!(program.started(), child);
            assert_eq!(program.exited(), Exit::Status(4));
        } else {
            let connections = Connections::new();
            let serve = ToNode::Root {
                sequence: 1,
                environ: vec![],
                supervise: None,
                cgroup: false,
            };
            let message = ToRoot::Node(Box::new(serve));
            send(&waiting.root, &message, &connections.theirs()[1..]);
            assert!(next::<stdio_protocol::message::FromNode>(&waiting.root).is_some());
            assert_eq!(process::children(supervisor), []);
            drop(waiting.root);
        }
        wait_until("the child is reaped", || process::is_gone(child));
        wait_until("its supervisor has ended", || {
            helper.supervisors().is_empty()
        });
    }
}

#[test]
fn a_child_that_waits_is_ended_like_a_program() {
    let helper = Helper::start();
    for grace in [Duration::ZERO, Duration::from_millis(50)] {
        let waiting = Waiting::new(&helper);
        let kind = if grace.is_zero() {
            Signal::SIGKILL
        } else {
            Signal::SIGTERM
        };
        send(&waiting.root, &terminate(kind, grace), &[]);
        match next(&waiting.root) {
            Some(FromRoot::Exited { exit, .. }) => {
                assert_eq!(exit, Exit::Signal(libc::SIGKILL));
            }
            other => panic!("{other:?}"),
        }
        assert!(process::is_gone(waiting.child));
        drop(waiting.root);
        wait_until("its supervisor has ended", || {
            helper.supervisors().is_empty()
        });
    }
}

// ---- the supervisor --------------------------------------------------------------------------

#[test]
fn one_supervisor_has_one_program_after_the_other() {
    let helper = Helper::start();
    let (id, mut root) = helper.fork();
    let supervisor = helper.supervisor();
    for (round, script) in [
        "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; exit 0",
        "exit 1",
        "(setsid sleep 1000 &); sleep 1000 & exit 2",
        "kill -TERM $$",
        "exit 4",
    ]
    .into_iter()
    .enumerate()
    {
        let program = helper.run_on((id, root), sh(script));
        program.started();
        let (exit, usage) = program.reported();
        let expected = match round {
            3 => Exit::Signal(libc::SIGTERM),
            _ => Exit::Status(u8::try_from(round).unwrap()),
        };
        assert_eq!(exit, expected);
        // That of one before is not counted again.
        if round == 1 {
            assert!(usage.utime_us + usage.stime_us < 50_000, "{usage:?}");
        }
        assert!(process::no_programs(&helper.mark));
        assert_eq!(helper.supervisors(), [supervisor]);
        assert_eq!(process::children(supervisor), []);
        root = program.root;
    }
    // One that is not executed is none the less one.
    let program = helper.run_on((id, root), program(&["/nonexistent"]));
    program.failed();
    program.reported();
    let program = helper.run_on((id, program.root), sh("exit 5"));
    assert_eq!(program.exited(), Exit::Status(5));
}

/// Descriptors, and what the last one's time and grace were.
#[test]
fn nothing_of_a_program_is_left_in_its_supervisor() {
    let helper = Helper::start();
    let (id, root) = helper.fork();
    let supervisor = helper.supervisor();
    if !is_root() {
        excluded("root", "descriptors of a non-dumpable process");
    }
    let fds = || is_root().then(|| process::descriptors(supervisor));
    let before = fds();
    let mut start = sh("exit 0");
    start.watch = Some(Watch {
        timeout_ms: 200,
        escalation: Escalation {
            signal: libc::SIGKILL,
            grace_ms: 0,
        },
    });
    let program = helper.run_on((id, root), start);
    program.reported();
    assert_eq!(fds(), before);
    let program = helper.run_on((id, program.root), sh("sleep 0.4; exit 6"));
    assert_eq!(program.exited(), Exit::Status(6));
}

/// It has a queue of them when the program ends: real-time signals are not merged.
#[test]
fn signals_to_a_supervisor_are_not_the_next_programs() {
    let helper = Helper::start();
    let program = helper.run(sh(
        "i=0; while [ $i -lt 300 ]; do kill -34 $PPID; i=$((i+1)); done; trap '' 34; exit 0",
    ));
    program.reported();
    let program = helper.run_on((program.id, program.root), sh("sleep 0.2; exit 8"));
    assert_eq!(program.exited(), Exit::Status(8));
}

/// The NIF takes the root for something else than the child's program at the same moment.
#[test]
fn a_child_that_has_ended_while_it_waited_is_in_nobodys_way() {
    let helper = Helper::start();
    let waiting = Waiting::new(&helper);
    signal(waiting.supervisor, Signal::SIGSTOP);
    wait_until("it is stopped", || process::is_stopped(waiting.supervisor));
    signal(waiting.child, Signal::SIGKILL);
    wait_until("the child has ended", || process::is_zombie(waiting.child));
    let connections = Connections::new();
    let start = ToRoot::Start(Box::new(helper.marked(sh("exit 4"))));
    send(&waiting.root, &start, &connections.theirs());
    signal(waiting.supervisor, Signal::SIGCONT);
    let program = connections.into_program(waiting.id, waiting.root);
    // Whether the signal or the request is seen first: an end that is reported is that of the program,
    // or there is none.
    match next(&program.task) {
        Some(FromTask::Execing { .. }) => assert_eq!(program.exited(), Exit::Status(4)),
        None => assert_eq!(program.exited(), Exit::Signal(libc::SIGKILL)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_supervisor_whose_child_was_killed_has_no_other_program() {
    let helper = Helper::start();
    let waiting = Waiting::new(&helper);
    signal(waiting.child, Signal::SIGKILL);
    let gone = |root: &OwnedFd| {
        let said = next(root);
        assert!(
            matches!(said, Some(FromRoot::Exited { rests: false, .. })),
            "{said:?}"
        );
        assert_eq!(next::<FromRoot>(root), None);
    };
    gone(&waiting.root);
    // It might as well have been killed before it had one.
    let program = helper.run(sh("kill -KILL $$"));
    gone(&program.root);
    wait_until("both have ended", || helper.supervisors().is_empty());
}

#[test]
fn a_child_that_is_stopped_while_it_waits_ends_with_its_supervisor() {
    let helper = Helper::start();
    let waiting = Waiting::new(&helper);
    signal(waiting.child, Signal::SIGSTOP);
    wait_until("the child is stopped", || {
        process::is_stopped(waiting.child)
    });
    waiting.ends_with_its_supervisor(&helper);
}

#[test]
fn requests_that_came_too_late_are_not_the_next_programs() {
    let helper = Helper::start();
    let program = helper.run(sh("exit 0"));
    program.reported();
    let watch = Watch {
        timeout_ms: 1,
        escalation: Escalation {
            signal: libc::SIGKILL,
            grace_ms: 0,
        },
    };
    send(&program.root, &ToRoot::Watch(watch), &[]);
    send(&program.root, &terminate(Signal::SIGKILL, DEADLINE), &[]);
    send(&program.root, &terminate(Signal::SIGTERM, DEADLINE), &[]);
    let program = helper.run_on((program.id, program.root), sh("sleep 0.1; exit 7"));
    assert_eq!(program.exited(), Exit::Status(7));
}
