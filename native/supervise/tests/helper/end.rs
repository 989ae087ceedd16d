//! Everything that ends a tree. Nothing of it is left, and its end is told once. FAULTS rows 2, 6,
//! 8, 25 and 26.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{shutdown, Shutdown};
use nix::unistd::Pid;
use stdio_protocol::call::Call;
use stdio_protocol::message::{Exit, FromLauncher, FromRoot, Start, ToLauncher};

use crate::common::*;
use crate::process::{self, wait_until, DEADLINE};

const KILLED: Exit = Exit::Signal(libc::SIGKILL);

/// A grace that no test waits for.
const NEVER: Duration = Duration::from_secs(1000);

// ---- by request ------------------------------------------------------------------------------

#[test]
fn terminate_sends_the_signal_and_reports_what_it_did() {
    let helper = Helper::start();
    for number in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR2] {
        let program = helper.run(sleep());
        program.started();
        program.terminate(number, NEVER);
        assert_eq!(program.exited(), Exit::Signal(number as i32));
    }
    let mut program = helper.run(sh("trap 'exit 8' TERM; echo ready
        while :; do sleep 0.01; done"));
    program.started();
    assert_eq!(program.line(), "ready");
    program.terminate(Signal::SIGTERM, NEVER);
    assert_eq!(program.exited(), Exit::Status(8));
}

#[test]
fn terminate_takes_what_the_program_leaves_along() {
    let helper = Helper::start();
    let mut program = helper.run(sh("(setsid sh -c 'trap \"\" TERM; exec sleep 1000' &)
        echo ready
        exec sleep 1000"));
    program.started();
    assert_eq!(program.line(), "ready");
    program.terminate(Signal::SIGTERM, NEVER);
    assert_eq!(program.exited(), Exit::Signal(libc::SIGTERM));
    assert!(process::no_programs(&helper.mark));
}

#[test]
fn terminate_kills_after_the_grace_and_not_before() {
    let helper = Helper::start();
    let grace = Duration::from_millis(400);
    let program = helper.run_tree();
    let begin = Instant::now();
    program.terminate(Signal::SIGTERM, grace);
    if readable(&program.root, begin + grace / 2) {
        assert!(begin.elapsed() >= grace, "the supervisor spoke");
    }
    assert_eq!(program.exited(), KILLED);
    assert!(process::no_programs(&helper.mark));
    let took = begin.elapsed();
    assert!(took >= grace, "{took:?}");
    assert!(took < grace + DEADLINE / 2, "{took:?}");
}

#[test]
fn terminate_with_sigkill_needs_no_grace() {
    let helper = Helper::start();
    let program = helper.run_tree();
    program.terminate(Signal::SIGKILL, NEVER);
    assert_eq!(program.exited(), KILLED);
    assert!(process::no_programs(&helper.mark));
}

/// Whoever does not want to wait any more says so.
#[test]
fn sigkill_overrides_a_grace_that_has_begun() {
    let helper = Helper::start();
    let program = helper.run_tree();
    program.terminate(Signal::SIGTERM, NEVER);
    program.says_nothing_for(Duration::from_millis(100));
    program.terminate(Signal::SIGKILL, NEVER);
    assert_eq!(program.exited(), KILLED);
}

#[test]
fn the_end_of_the_socket_overrides_a_grace_that_has_begun() {
    let helper = Helper::start();
    let program = helper.run_tree();
    program.terminate(Signal::SIGTERM, NEVER);
    program.says_nothing_for(Duration::from_millis(100));
    drop(program);
    helper.no_tree();
}

/// The signal goes to the process group, if the program leads one.
#[test]
fn terminate_reaches_the_group_that_the_program_leads() {
    let helper = Helper::start();
    let script = "trap 'wait; exit 9' TERM
        sh -c 'trap \"echo child; exit\" TERM; echo ready; while :; do sleep 0.01; done' &
        while :; do sleep 0.01; done";
    let mut program = helper.run(with_steps(sh(script), [step(Call::Setsid {})]));
    program.started();
    assert_eq!(program.line(), "ready");
    program.terminate(Signal::SIGTERM, NEVER);
    assert_eq!(program.exited(), Exit::Status(9));
    assert_eq!(program.output(), "child\n");
}

/// Without a group of its own it shares the launcher's, and the other programs'.
#[test]
fn terminate_reaches_no_other_group() {
    let helper = Helper::start();
    let bystander = helper.run(sleep());
    bystander.started();
    let program = helper.run(sleep());
    program.started();
    program.terminate(Signal::SIGTERM, NEVER);
    assert_eq!(program.exited(), Exit::Signal(libc::SIGTERM));
    helper.serves_next_to(&bystander);
    bystander.says_nothing_for(Duration::from_millis(100));
}

#[test]
fn terminate_before_a_start_ends_the_supervisor() {
    let helper = Helper::start();
    let (_id, root) = helper.fork();
    send(&root, &terminate(Signal::SIGTERM, NEVER), &[]);
    assert_eq!(next::<()>(&root), None);
    helper.serves();
}

#[test]
fn a_stopped_tree_can_be_killed() {
    let helper = Helper::start();
    let program = helper.run_tree();
    for pid in process::programs(&helper.mark) {
        signal(pid, Signal::SIGSTOP);
    }
    program.terminate(Signal::SIGTERM, Duration::from_millis(100));
    assert_eq!(program.exited(), KILLED);
    assert!(process::no_programs(&helper.mark));
}

/// A setuid program's process belongs to another user, whom an unprivileged supervisor cannot
/// kill. It is given up on after 5 s, counted, and after another 5 s by the launcher.
#[test]
fn what_cannot_be_killed_is_counted() {
    if !is_root() {
        return excluded("root", "a setuid file of root's");
    }
    let copy = PublicCopy::new(HELPER, "755");
    let become_root = PublicCopy::new("/usr/bin/setpriv", "4755");
    if become_root.is_nosuid() {
        return excluded("suid", "the temporary directory is mounted nosuid");
    }
    let helper = Helper::spawn_file(&copy.file, |command| {
        std::os::unix::process::CommandExt::uid(command, SOMEBODY);
    });
    helper.greet();
    let setuid = become_root.file.display();
    let mut program = helper.run(sh(&format!(
        "{setuid} --reuid 0 sh -c 'id -ru; exec sleep 1000' &
        read line"
    )));
    program.started();
    assert_eq!(program.line(), "0");
    drop(program.stdin.take());
    match next(&program.root) {
        Some(FromRoot::Exited {
            exit: Exit::Status(_),
            survivors: 1,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    helper.reports(program.id);
    assert_eq!(process::programs(&helper.mark).len(), 1);
}

/// The end of the program and a request for it may cross. The report is the supervisor's last
/// word, and an unread request resets the connection.
#[test]
fn a_report_survives_a_request_that_came_too_late() {
    let helper = Helper::start();
    let mut program = helper.run(sh("read line; exit 42"));
    program.started();
    let supervisor = helper.supervisor();
    // While the program's end is the first thing that the supervisor will see …
    signal(supervisor, Signal::SIGSTOP);
    wait_until("it is stopped", || process::is_stopped(supervisor));
    drop(program.stdin.take());
    let ended = process::children(supervisor)[0];
    wait_until("the program has ended", || process::is_zombie(ended));
    // … the request is there already.
    program.terminate(Signal::SIGTERM, NEVER);
    program.terminate(Signal::SIGTERM, NEVER);
    signal(supervisor, Signal::SIGCONT);
    assert_eq!(program.exited(), Exit::Status(42));
    wait_until("the supervisor has ended", || process::is_gone(supervisor));
}

// ---- by the end of a socket ------------------------------------------------------------------

#[test]
fn a_closed_root_socket_ends_the_tree() {
    let helper = Helper::start();
    let program = helper.run_tree();
    let supervisor = helper.supervisor();
    drop(program.root);
    helper.no_tree();
    wait_until("the supervisor is reaped", || process::is_gone(supervisor));
    helper.serves();
}

/// The NIF closes its direction only, to see when it is done.
#[test]
fn a_root_socket_closed_in_one_direction_ends_the_tree() {
    let helper = Helper::start();
    let program = helper.run_tree();
    shutdown(program.root.as_raw_fd(), Shutdown::Write).unwrap();
    // Nobody is interested in how it ended.
    program.ended_silently();
    assert!(process::no_programs(&helper.mark));
    helper.serves();
}

#[test]
fn a_closed_root_socket_ends_a_supervisor_without_a_program() {
    let helper = Helper::start();
    let (_id, root) = helper.fork();
    let supervisor = helper.supervisor();
    drop(root);
    wait_until("the supervisor is reaped", || process::is_gone(supervisor));
    helper.serves();
}

#[test]
fn a_closed_control_socket_ends_everything() {
    let mut helper = Helper::start();
    let program = helper.run_tree();
    let (_id, idle) = helper.fork();
    let failed = helper.run(program_that_fails());
    failed.failed();
    helper.control = None;
    assert_eq!(helper.exit_status().code(), Some(0));
    helper.nothing_left();
    // The roots' sockets were open all the time.
    assert_eq!(program.exited(), KILLED);
    assert_eq!(next::<()>(&idle), None);
}

fn program_that_fails() -> Start {
    program(&["/nonexistent"])
}

/// FAULTS row 8. The launcher waits 6 s for its supervisors.
#[test]
fn a_stopped_supervisor_cannot_keep_its_tree_alive() {
    let mut helper = Helper::start();
    let program = helper.run_tree();
    let supervisor = helper.supervisor();
    signal(supervisor, Signal::SIGSTOP);
    wait_until("it is stopped", || process::is_stopped(supervisor));
    helper.control = None;
    // It does nothing itself, and nothing for it.
    program.says_nothing_for(Duration::from_secs(1));
    assert_eq!(helper.exit_status().code(), Some(0));
    helper.nothing_left();
}

// ---- by a death ------------------------------------------------------------------------------

#[test]
fn the_death_of_the_launcher_ends_every_tree() {
    let mut helper = Helper::start();
    let programs = [helper.run_tree(), helper.run(sleep())];
    programs[1].started();
    let (_id, idle) = helper.fork();
    wait_until("three supervisors", || helper.supervisors().len() == 3);
    helper.process.kill().unwrap();
    helper.process.wait().unwrap();
    for program in programs {
        assert_eq!(program.exited(), KILLED);
    }
    assert_eq!(next::<()>(&idle), None);
    helper.nothing_left();
}

#[test]
fn the_death_of_a_supervisor_ends_its_tree_before_it_is_told() {
    let helper = Helper::start();
    let program = helper.run_tree();
    let tree = process::programs(&helper.mark);
    let supervisor = helper.supervisor();
    // Another supervisor's orphan is none of the launcher's.
    let mut bystander = helper.run(sh("(sleep 1000 &); echo ready; exec sleep 1000"));
    bystander.started();
    assert_eq!(bystander.line(), "ready");
    signal(supervisor, Signal::SIGKILL);
    helper.reports(program.id);
    let left: Vec<_> = tree
        .into_iter()
        .filter(|pid| !process::is_gone(*pid))
        .collect();
    assert_eq!(left, []);
    program.ended_silently();
    helper.serves_next_to(&bystander);
    assert_eq!(process::programs(&helper.mark).len(), 2);
}

/// A supervisor can also be killed by the program.
#[test]
fn a_program_that_kills_its_supervisor_dies_too() {
    let helper = Helper::start();
    let program = helper.run(sh("(setsid sleep 1000 &); kill -9 $PPID; exec sleep 1000"));
    helper.reports(program.id);
    assert!(process::no_programs(&helper.mark));
    helper.serves();
}

#[test]
fn the_launcher_kills_a_supervisor_on_request() {
    let helper = Helper::start();
    let program = helper.run_tree();
    // No such root: nothing happens.
    helper.send(&ToLauncher::Kill { id: unique() }, &[]);
    program.says_nothing_for(Duration::from_millis(100));
    helper.send(&ToLauncher::Kill { id: program.id }, &[]);
    helper.reports(program.id);
    assert!(process::no_programs(&helper.mark));
    program.ended_silently();
    // The pid has been given back: to be killed again is nothing.
    helper.send(&ToLauncher::Kill { id: program.id }, &[]);
    helper.serves();
}

#[test]
fn a_stopped_supervisor_is_killed_on_request() {
    let helper = Helper::start();
    let program = helper.run_tree();
    signal(helper.supervisor(), Signal::SIGSTOP);
    helper.send(&ToLauncher::Kill { id: program.id }, &[]);
    helper.reports(program.id);
    assert!(process::no_programs(&helper.mark));
}

/// Many at once: each root is reported once, and all orphans are dead.
#[test]
fn the_deaths_of_many_supervisors_are_each_told_once() {
    let helper = Helper::start();
    let programs: Vec<_> = (0..20)
        .map(|_| helper.run(sh("(setsid sleep 1000 &); exec sleep 1000")))
        .collect();
    for program in &programs {
        program.started();
    }
    for supervisor in helper.supervisors() {
        signal(supervisor, Signal::SIGKILL);
    }
    let mut reported: Vec<_> = programs
        .iter()
        .map(|_| match helper.next() {
            Some(FromLauncher::Exited { id, .. }) => id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(process::no_programs(&helper.mark));
    reported.sort_unstable();
    assert_eq!(reported, programs.iter().map(|p| p.id).collect::<Vec<_>>());
    helper.serves();
}

/// Launcher and supervisor at once: nobody is left to do anything, except by the deaths of those
/// above. Best effort without a namespace; here the program itself is all there is.
#[test]
fn nothing_of_the_helper_outlives_launcher_and_beam() {
    let mut helper = Helper::start();
    let programs: Vec<_> = (0..5).map(|_| helper.run_tree()).collect();
    drop(programs);
    helper.process.kill().unwrap();
    helper.control = None;
    helper.process.wait().unwrap();
    helper.nothing_left();
}

// ---- the BEAM --------------------------------------------------------------------------------

/// Names the helper to be started by [`plays_the_beam`].
const ROLE: &str = "STDIO_TEST_ROLE";

/// Not a test but a process that the next one starts and kills: a BEAM whose sockets are
/// inherited by a stranger.
#[test]
#[ignore = "a role that other tests start"]
fn plays_the_beam() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let helper = Helper::start();
    let program = helper.run_tree();
    let copies = [helper.control(), &program.root].map(|fd| fd.try_clone().unwrap());
    let [control, root]: [OwnedFd; 2] = copies;
    let mut stranger = Command::new("sleep")
        .arg("1000")
        .stdin(control)
        .stdout(root)
        .spawn()
        .unwrap();
    eprintln!("\nplaying {} {}", helper.mark, stranger.id());
    stranger.wait().unwrap();
}

/// FAULTS row 1, with a copy of its sockets in a process that lives on: their end never comes.
#[test]
fn the_death_of_the_beam_ends_everything_whoever_holds_its_sockets() {
    let mut beam = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "end::plays_the_beam", "--ignored", "--nocapture"])
        .env(ROLE, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(beam.stderr.take().unwrap()).lines();
    let line = lines
        .map_while(Result::ok)
        .find(|line| line.starts_with("playing"));
    let line = line.expect("the role did not start");
    let words: Vec<_> = line.split(' ').collect();
    let (mark, stranger) = (words[1], Pid::from_raw(words[2].parse().unwrap()));

    beam.kill().unwrap();
    beam.wait().unwrap();
    let begin = Instant::now();
    while !process::nothing_left(mark) && begin.elapsed() < DEADLINE {
        std::thread::sleep(Duration::from_millis(5));
    }
    let gone = process::nothing_left(mark);
    let held = !process::is_gone(stranger);
    signal(stranger, Signal::SIGKILL);
    process::sweep(mark);
    assert!(held, "the sockets were to be held");
    assert!(gone, "something has survived the BEAM");
}

// ---- signals ---------------------------------------------------------------------------------

/// Once to each, wherever it has gone.
#[test]
fn a_signal_to_the_supervisor_is_forwarded_to_its_descendants() {
    let helper = Helper::start();
    let listen =
        |name: &str| format!("trap \"echo {name}\" HUP; echo ready; while :; do sleep 0.02; done");
    let (session, orphan, leader) = (listen("session"), listen("orphan"), listen("leader"));
    let mut program = helper.run(sh(&format!(
        "setsid sh -c '{session}' &
        (sh -c '{orphan}' &)
        {leader}"
    )));
    program.started();
    let ready: Vec<_> = (0..3).map(|_| program.line()).collect();
    assert_eq!(ready, ["ready"; 3]);
    for _ in 0..2 {
        signal(helper.supervisor(), Signal::SIGHUP);
        let mut heard: Vec<_> = (0..3).map(|_| program.line()).collect();
        heard.sort_unstable();
        assert_eq!(heard, ["leader", "orphan", "session"]);
    }
    let more = readable(&program.stdout, Instant::now() + Duration::from_millis(200));
    assert!(!more, "heard twice");
    program.says_nothing_for(Duration::ZERO);
}

#[test]
fn a_tree_that_ends_of_a_forwarded_signal_is_reported() {
    let helper = Helper::start();
    let program = helper.run(sleep());
    program.started();
    signal(helper.supervisor(), Signal::SIGHUP);
    assert_eq!(program.exited(), Exit::Signal(libc::SIGHUP));
}

#[test]
fn signals_do_not_end_a_supervisor() {
    let helper = Helper::start();
    let program = helper.run_tree();
    let supervisor = helper.supervisor();
    for number in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGPIPE,
        Signal::SIGCHLD,
        Signal::SIGWINCH,
    ] {
        signal(supervisor, number);
    }
    program.says_nothing_for(Duration::from_millis(300));
    assert_eq!(helper.supervisor(), supervisor);
}
