//! From the start message to the report of the end.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::{getpgid, getpid, getsid, Pid};
use serde_bytes::ByteBuf;
use stdio_protocol::call::Call;
use stdio_protocol::message::{
    Escalation, Exec, Exit, FromLauncher, FromRoot, FromTask, Stage, Start, Step, ToRoot, Usage,
    Watch,
};
use stdio_protocol::value::{Limit, Path as CallPath, Prio, Resource, Signal as CallSignal};

use crate::common::*;
use crate::process::{self, wait_until, DEADLINE};

fn path(text: &str) -> CallPath {
    CallPath(bytes(text))
}

fn chdir(to: &str) -> Step {
    step(Call::Chdir { path: path(to) })
}

fn no_core() -> Step {
    step(Call::Setrlimit {
        resource: Resource(small(libc::RLIMIT_CORE)),
        limit: Limit { cur: 0, max: 0 },
    })
}

fn small(number: impl TryInto<i32>) -> i32 {
    number.try_into().unwrap_or_else(|_| panic!("large"))
}

// ---- a whole run -----------------------------------------------------------------------------

#[test]
fn a_program_from_start_to_end() {
    let helper = Helper::start();
    let mut program = helper.run(sh("echo to-stderr >&2; cat; exit 7"));
    let pid = program.started();
    assert_eq!(
        process::status(pid, "PPid"),
        helper.supervisor().to_string()
    );
    let mut stdin = File::from(program.stdin.take().unwrap());
    stdin.write_all(b"through the program").unwrap();
    drop(stdin);
    assert_eq!(program.output(), "through the program");
    assert_eq!(read_to_end(&program.stderr), "to-stderr\n");
    let (exit, usage) = program.exited_with_usage();
    assert_eq!(exit, Exit::Status(7));
    assert!(usage.maxrss_kib > 100, "{usage:?}");
    assert!(usage.minflt > 0, "{usage:?}");
    wait_until("the supervisor is reaped", || {
        process::children(helper.pid()).is_empty()
    });
    // It has said so itself.
    let more = readable(helper.control(), Instant::now() + Duration::from_millis(50));
    assert!(!more, "the launcher spoke");
    helper.serves();
}

/// The supervisor may have been there for a while: a spare one.
#[test]
fn a_program_on_a_supervisor_that_waited_for_it() {
    let helper = Helper::start();
    let root = helper.fork();
    helper.supervisor();
    let mut program = helper.run_on(root, sh("echo spare"));
    program.started();
    assert_eq!(program.output(), "spare\n");
    assert_eq!(program.exited(), Exit::Status(0));
}

#[test]
fn every_exit_status_and_fatal_signal_is_exact() {
    let helper = Helper::start();
    for status in (0..=u8::MAX)
        .step_by(15)
        .chain([1, 2, 126, 127, 128, 129, 254])
    {
        let program = helper.run(sh(&format!("exit {status}")));
        assert_eq!(program.exited(), Exit::Status(status));
    }
    let harmless = [
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGURG,
        libc::SIGWINCH,
    ];
    for number in (1..=64).filter(|number| !harmless.contains(number)) {
        let start = with_steps(sh(&format!("kill -{number} $$")), [no_core()]);
        assert_eq!(helper.run(start).exited(), Exit::Signal(number));
    }
}

#[test]
fn usage_counts_children_and_orphans() {
    let helper = Helper::start();
    let burn = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done";
    let idle = helper.run(sh("exit 0")).exited_with_usage().1;
    let child = helper.run(sh(&format!("({burn}); exit 0")));
    let child = child.exited_with_usage().1;
    // Its parent ends first: an orphan of the supervisor's. The end of the output tells that it
    // has burnt enough.
    let orphan = helper.run(sh(&format!(
        "(sh -c '{burn}; exec >&-; exit' &); exec >&-; read line"
    )));
    orphan.started();
    assert_eq!(read_to_end(&orphan.stdout), "");
    let Program { root, stdin, .. } = orphan;
    std::thread::sleep(Duration::from_millis(50));
    drop(stdin);
    let usage = match next(&root) {
        Some(FromRoot::Exited { usage, .. }) => usage,
        other => panic!("{other:?}"),
    };
    let time = |usage: &Usage| usage.utime_us + usage.stime_us;
    assert!(time(&child) > time(&idle) + 5000, "{child:?} {idle:?}");
    assert!(time(&usage) > time(&idle) + 5000, "{usage:?} {idle:?}");
}

// ---- what the program gets -------------------------------------------------------------------

#[test]
fn a_program_inherits_three_descriptors_and_default_signals() {
    let helper = Helper::start();
    // More than one at a time: the sockets of one must not get into another.
    let programs: Vec<_> = (0..5).map(|_| helper.run(sleep())).collect();
    for program in &programs {
        let pid = program.started();
        // Its loader opens and closes files of its own.
        wait_until("it has three descriptors", || {
            process::descriptors(pid).into_keys().eq([0, 1, 2])
        });
        let fds = process::descriptors(pid);
        let ends = [
            program.stdin.as_ref().unwrap(),
            &program.stdout,
            &program.stderr,
        ];
        for (fd, end) in (0..).zip(ends) {
            assert_eq!(fds[&fd], target(end), "descriptor {fd}");
        }
        for mask in ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"] {
            assert_eq!(process::status(pid, mask), "0".repeat(16), "{mask}");
        }
        assert_eq!(process::status(pid, "NoNewPrivs"), "0");
    }
}

/// Both ends of a pipe have one name.
fn target(fd: &OwnedFd) -> String {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::read_link(link).unwrap().display().to_string()
}

#[test]
fn arguments_and_environment_arrive_as_they_are() {
    let helper = Helper::start();
    let odd = [0xff, 0xfe, b' ', b'\n', b'\'', b'"', b'$', 0x80];
    let mut start = program(&["sh", "-c", "printf '%s|' \"$0\" \"$@\"; printf %s \"$ODD\""]);
    start.plan.script.exec.argv.extend([
        ByteBuf::from(b"zero".to_vec()),
        ByteBuf::new(),
        ByteBuf::from(odd.to_vec()),
    ]);
    let entry = [b"ODD=", odd.as_slice()].concat();
    start.plan.script.exec.env.push(ByteBuf::from(entry));
    let program = helper.run(start);
    program.started();
    let mut output = Vec::new();
    std::io::Read::read_to_end(&mut File::from(program.stdout), &mut output).unwrap();
    let expected = [b"zero||", odd.as_slice(), b"|", odd.as_slice()].concat();
    assert_eq!(output, expected);
}

/// More than a datagram holds: the start travels in a memfd, with the descriptors.
#[test]
fn a_megabyte_of_arguments_arrives() {
    let helper = Helper::start();
    let mut start = program(&["sh", "-c", "cat /proc/$$/cmdline | wc -c", "zero"]);
    let before: usize = start
        .plan
        .script
        .exec
        .argv
        .iter()
        .map(|a| a.len() + 1)
        .sum();
    let argument = ByteBuf::from(vec![b'x'; 100_000]);
    start.plan.script.exec.argv.extend(vec![argument; 10]);
    let mut program = helper.run(start);
    program.started();
    let expected = before + 10 * 100_001;
    assert_eq!(program.output().trim(), expected.to_string());
    assert_eq!(program.exited(), Exit::Status(0));
}

#[test]
fn no_arguments_at_all() {
    let helper = Helper::start();
    let mut start = program(&["true"]);
    start.plan.script.exec.argv.clear();
    assert_eq!(helper.run(start).exited(), Exit::Status(0));
}

// ---- failures --------------------------------------------------------------------------------

/// Names the stage and the errno, leaves nothing, and harms nobody else.
#[track_caller]
fn fails(helper: &Helper, start: Start, stage: Stage, errno: Errno) {
    let program = helper.run(start);
    assert_eq!(program.failed(), (stage, errno));
    // The task's own end is reported, with a status that means nothing.
    program.exited();
    wait_until("nothing is left", || {
        process::no_programs(&helper.mark) && helper.supervisors().is_empty()
    });
}

#[test]
fn an_exec_that_fails_says_why() {
    let helper = Helper::start();
    let file = |content: &str, mode: &str| {
        let copy = PublicCopy::new("/dev/null", mode);
        std::fs::write(&copy.file, content).unwrap();
        copy
    };
    let data = file("data", "644");
    let no_header = file("\x7fELF, but not quite", "755");
    let text_of = |path: &Path| path.display().to_string();
    let cases = [
        ("/nonexistent/program".to_owned(), Errno::ENOENT),
        ("no-such-program-anywhere".to_owned(), Errno::ENOENT),
        (text_of(&data.file), Errno::EACCES),
        ("/".to_owned(), Errno::EACCES),
        (format!("{}/below", text_of(&data.file)), Errno::ENOTDIR),
        (text_of(&no_header.file), Errno::ENOEXEC),
        (String::new(), Errno::ENOENT),
    ];
    for (name, errno) in cases {
        fails(&helper, program(&[&name, "a"]), Stage::Exec, errno);
    }
    helper.serves();
}

#[test]
fn arguments_beyond_the_kernels_limit_are_e2big() {
    let helper = Helper::start();
    let mut one = program(&["true"]);
    one.plan
        .script
        .exec
        .argv
        .push(ByteBuf::from(vec![b'x'; 128 * 1024]));
    let mut many = program(&["true"]);
    many.plan
        .script
        .exec
        .argv
        .extend(vec![ByteBuf::from(vec![b'x'; 100_000]); 80]);
    for start in [one, many] {
        fails(&helper, start, Stage::Exec, Errno::E2BIG);
    }
    helper.serves();
}

/// The NIF lets none through; the helper does not rely on it.
#[test]
fn a_nul_byte_is_refused_wherever_it_is() {
    let helper = Helper::start();
    let nul = || bytes("a\0b");
    let exec = |change: fn(&mut Exec, ByteBuf)| {
        let mut start = program(&["true"]);
        change(&mut start.plan.script.exec, nul());
        start
    };
    for start in [
        exec(|exec, nul| exec.file = nul),
        exec(|exec, nul| {
            exec.search = false;
            exec.file = nul;
        }),
        exec(|exec, nul| exec.argv.push(nul)),
        exec(|exec, nul| exec.argv[0] = nul),
        exec(|exec, nul| exec.env.push(nul)),
        exec(|exec, _| exec.env = vec![bytes("PATH=/bin\0:/usr/bin")]),
    ] {
        fails(&helper, start, Stage::Exec, Errno::EINVAL);
    }
    let start = with_steps(program(&["true"]), [chdir("/\0tmp")]);
    fails(&helper, start, Stage::Step(0), Errno::EINVAL);
    helper.serves();
}

#[test]
fn a_step_that_fails_is_named_and_ends_the_start() {
    let helper = Helper::start();
    let start = || sh("echo must not run");
    for (before, errno, failing) in [
        (0, Errno::ENOENT, chdir("/nonexistent")),
        (1, Errno::ENOTDIR, chdir("/proc/self/exe/x")),
        (
            200,
            Errno::EINVAL,
            step(Call::Setrlimit {
                resource: Resource(10_000),
                limit: NOFILE,
            }),
        ),
        (
            2,
            Errno::EINVAL,
            step(Call::SetPdeathsig {
                signal: CallSignal(1000),
            }),
        ),
        (
            3,
            Errno::EINVAL,
            step(Call::Setpriority {
                which: Prio(-1),
                who: 0,
                priority: 0,
            }),
        ),
    ] {
        let steps = std::iter::repeat_n(chdir("/"), before)
            .chain([failing])
            .chain([chdir("/tmp")]);
        let stage = Stage::Step(u32::try_from(before).unwrap());
        fails(&helper, with_steps(start(), steps), stage, errno);
    }
    helper.serves();
}

#[test]
fn errors_of_a_step_can_be_ignored_one_by_one_or_all() {
    let helper = Helper::start();
    let enoent = |ignore: &[Errno], errexit| Step {
        ignore: ignore.iter().map(|errno| *errno as i32).collect(),
        errexit,
        ..chdir("/nonexistent")
    };
    let accepted = [
        enoent(&[Errno::ENOENT], true),
        enoent(&[Errno::EPERM, Errno::ENOENT], true),
        enoent(&[], false),
        enoent(&[Errno::EPERM], false),
    ];
    let mut program = helper.run(with_steps(
        sh("pwd"),
        accepted.into_iter().chain([chdir("/")]),
    ));
    program.started();
    assert_eq!(program.output(), "/\n");
    assert_eq!(program.exited(), Exit::Status(0));
    for refused in [
        enoent(&[], true),
        enoent(&[Errno::EPERM, Errno::ENOTDIR], true),
    ] {
        let start = with_steps(sh("pwd"), [chdir("/"), refused]);
        fails(&helper, start, Stage::Step(1), Errno::ENOENT);
    }
}

/// A limit that binds one user only, so that it can be a user of the test's own.
fn as_a_user_with(limit: libc::c_int, most: u64) -> (PublicCopy, Helper) {
    let copy = PublicCopy::new(HELPER, "755");
    let user = SOMEBODY + 100 + u32::try_from(unique()).unwrap();
    let helper = Helper::spawn_file(&copy.file, |command| {
        std::os::unix::process::CommandExt::uid(command, user);
        limit_resource(command, limit, most);
    });
    helper.greet();
    (copy, helper)
}

fn limit_resource(command: &mut std::process::Command, resource: libc::c_int, most: u64) {
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    let resource = resource.unsigned_abs();
    // SAFETY: the closure makes one system call, with a structure of its own.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(command, move || {
            match libc::setrlimit(resource, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

#[test]
fn a_fork_that_fails_says_why() {
    if !is_root() {
        return excluded("root", "a user with a limit of its own");
    }
    let processes = small(libc::RLIMIT_NPROC);
    // Room for the launcher alone …
    let (_copy, helper) = as_a_user_with(processes, 1);
    let (id, root) = helper.fork();
    let errno = libc::EAGAIN;
    assert_eq!(helper.next(), Some(FromLauncher::ForkFailed { id, errno }));
    assert_eq!(next::<FromRoot>(&root), None);
    // … and for one supervisor.
    let (_copy, helper) = as_a_user_with(processes, 2);
    let program = helper.run(sleep());
    assert_eq!(program.failed(), (Stage::Fork, Errno::EAGAIN));
    program.ended_silently();
}

/// What a start needs is its supervisor's problem. FAULTS row 12.
#[test]
fn a_start_beyond_the_memory_limit_costs_its_own_process_only() {
    let helper = Helper::spawn(|command| {
        command.stderr(std::process::Stdio::null());
        limit_resource(command, small(libc::RLIMIT_AS), 100 << 20);
        limit_resource(command, small(libc::RLIMIT_CORE), 0);
    });
    helper.greet();
    let mut start = program(&["true"]);
    start.plan.script.exec.argv = vec![ByteBuf::new(); 8 << 20];
    let program = helper.run(start);
    assert_eq!(next::<FromTask>(&program.task), None);
    assert_eq!(program.exited(), Exit::Signal(libc::SIGABRT));
    helper.serves();
}

// ---- steps -----------------------------------------------------------------------------------

#[test]
fn steps_take_effect_in_order() {
    let helper = Helper::start();
    let nice = i32::try_from(process::number(getpid(), 19)).unwrap() + 1;
    let steps = [
        step(Call::Setsid {}),
        step(Call::Setpriority {
            which: Prio(small(libc::PRIO_PROCESS)),
            who: 0,
            priority: nice,
        }),
        chdir("/usr"),
        chdir("bin"),
        step(Call::Setrlimit {
            resource: Resource(small(libc::RLIMIT_NOFILE)),
            limit: Limit { cur: 20, max: 30 },
        }),
        step(Call::NoNewPrivs {}),
    ];
    let program = helper.run(with_steps(sleep(), steps));
    let pid = program.started();
    assert_eq!(getsid(Some(pid)), Ok(pid));
    assert_eq!(getpgid(Some(pid)), Ok(pid));
    assert_eq!(process::number(pid, 19), i64::from(nice));
    assert_eq!(process::status(pid, "NoNewPrivs"), "1");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let numbers: Vec<_> = line.unwrap().split_ascii_whitespace().skip(3).collect();
    assert_eq!(numbers[..2], ["20", "30"]);
    let directory = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(directory, std::fs::canonicalize("/usr/bin").unwrap());
}

#[test]
fn a_program_without_steps_stays_in_the_launchers_session() {
    let helper = Helper::start();
    let pid = helper.run(sleep()).started();
    assert_eq!(getsid(Some(pid)), getsid(Some(helper.pid())));
    assert_eq!(getpgid(Some(pid)), getpgid(Some(helper.pid())));
}

#[test]
fn setugid_changes_every_id_for_good() {
    if !is_root() {
        return excluded("root", "changing ids");
    }
    let helper = Helper::start();
    let setugid = step(Call::Setugid {
        uid: SOMEBODY,
        gid: SOMEBODY + 1,
        groups: vec![SOMEBODY + 3, SOMEBODY + 2],
    });
    let program = helper.run(with_steps(sh("exec sleep 1000 2>/dev/stderr"), [setugid]));
    let pid = program.started();
    wait_until("it sleeps", || process::status(pid, "Name") == "sleep");
    let four = |id: u32| {
        [
            id.to_string(),
            id.to_string(),
            id.to_string(),
            id.to_string(),
        ]
        .join("\t")
    };
    assert_eq!(process::status(pid, "Uid"), four(SOMEBODY));
    assert_eq!(process::status(pid, "Gid"), four(SOMEBODY + 1));
    let groups = format!("{} {}", SOMEBODY + 2, SOMEBODY + 3);
    assert_eq!(process::status(pid, "Groups"), groups);
    assert_eq!(process::status(pid, "CapEff"), "0".repeat(16));
    // Its end is still the supervisor's to bring about and to see.
    program.terminate(Signal::SIGTERM, DEADLINE);
    assert_eq!(program.exited(), Exit::Signal(libc::SIGTERM));
}

#[test]
fn setugid_does_nothing_without_privilege() {
    let copy = PublicCopy::new(HELPER, "755");
    let helper = Helper::spawn_file(&copy.file, |command| {
        if is_root() {
            std::os::unix::process::CommandExt::uid(command, SOMEBODY);
        }
    });
    helper.greet();
    let setugid = step(Call::Setugid {
        uid: 0,
        gid: 0,
        groups: vec![0],
    });
    let pid = helper.run(with_steps(sleep(), [setugid])).started();
    let expected = process::status(helper.pid(), "Uid");
    assert_eq!(process::status(pid, "Uid"), expected);
    assert!(!expected.contains("\t0\t"), "{expected}");
}

#[test]
fn a_program_can_ask_for_a_signal_at_its_parents_death() {
    let helper = Helper::start();
    let signal_number = CallSignal(libc::SIGUSR1);
    let pdeathsig = step(Call::SetPdeathsig {
        signal: signal_number,
    });
    let mut program = helper.run(with_steps(
        sh("trap 'echo orphaned' USR1; echo ready; while :; do sleep 0.01; done"),
        [pdeathsig],
    ));
    program.started();
    assert_eq!(program.line(), "ready");
    // Whose business is to kill it.
    let supervisor = helper.supervisor();
    signal(helper.pid(), Signal::SIGSTOP);
    wait_until("the launcher is stopped", || {
        process::is_stopped(helper.pid())
    });
    signal(supervisor, Signal::SIGKILL);
    assert_eq!(program.line(), "orphaned");
    signal(helper.pid(), Signal::SIGCONT);
    helper.reports(program.id);
    assert!(process::no_programs(&helper.mark));
}

/// The name is looked up in the working directory that the steps have led to.
#[test]
fn a_relative_program_is_found_from_where_the_steps_have_led() {
    let helper = Helper::start();
    let copy = PublicCopy::new("/bin/sh", "755");
    let directory = copy.file.parent().unwrap().display().to_string();
    let mut program = helper.run(with_steps(
        program(&["./copy", "-c", "echo found"]),
        [chdir(&directory)],
    ));
    program.started();
    assert_eq!(program.output(), "found\n");
}

#[test]
fn a_pid_namespace_has_its_own_init_that_takes_all_along() {
    let helper = Helper::start();
    let mut start = tree();
    start.plan.namespaces.pid = true;
    start.plan.namespaces.net = true;
    start.plan.namespaces.user_if_unprivileged = true;
    let mut program = helper.run(start);
    let pid = match next(&program.task) {
        Some(FromTask::Execing { pid }) => Pid::from_raw(pid),
        Some(FromTask::Failed { stage, errno }) => {
            let why = format!("namespaces: {stage:?}: {}", Errno::from_raw(errno));
            return excluded("userns", &why);
        }
        None => panic!("no word from the task"),
    };
    assert_eq!(program.line(), "ready");
    let inside = process::status(pid, "NSpid");
    assert_eq!(inside.split_whitespace().last(), Some("1"));
    let devices = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    assert_eq!(devices.lines().skip(2).count(), 1, "{devices}");
    // The init of a namespace ignores what it does not catch: there is no point in waiting.
    program.terminate(Signal::SIGUSR1, DEADLINE * 10);
    assert_eq!(program.exited(), Exit::Signal(libc::SIGKILL));
    assert!(process::no_programs(&helper.mark));
}

// ---- while it runs ---------------------------------------------------------------------------

#[test]
fn orphans_are_reaped_while_the_program_runs() {
    let helper = Helper::start();
    let mut program = helper.run(sh("i=0
        while [ $i -lt 100 ]; do (true &); i=$((i+1)); done
        echo done
        exec sleep 1000"));
    let pid = program.started();
    assert_eq!(program.line(), "done");
    let supervisor = helper.supervisor();
    wait_until("no child but the program, alive or dead", || {
        process::children(supervisor) == [pid]
    });
    program.says_nothing_for(Duration::from_millis(100));
}

#[test]
fn orphans_are_adopted_and_the_programs_end_is_theirs() {
    let helper = Helper::start();
    let mut program = helper.run(sh(
        "(setsid sh -c 'trap \"\" TERM HUP; echo $$; exec sleep 1000' &)
        read line
        exit 5",
    ));
    program.started();
    let orphan = Pid::from_raw(program.line().parse().unwrap());
    let supervisor = helper.supervisor();
    wait_until("the supervisor has adopted it", || {
        process::status(orphan, "PPid") == supervisor.to_string()
    });
    drop(program.stdin.take());
    assert_eq!(program.exited(), Exit::Status(5));
    assert!(process::is_gone(orphan));
}

/// The end of the output is not the end of the program.
#[test]
fn a_program_that_closes_its_output_lives_on() {
    let helper = Helper::start();
    let mut program = helper.run(sh("exec sleep 1000 >&- 2>&-"));
    program.started();
    assert_eq!(program.output(), "");
    program.says_nothing_for(Duration::from_millis(200));
    program.terminate(Signal::SIGTERM, DEADLINE);
    assert_eq!(program.exited(), Exit::Signal(libc::SIGTERM));
}

#[test]
fn two_hundred_programs_at_once() {
    let helper = Helper::start();
    let launcher = helper.pid();
    let fds = || is_root().then(|| process::descriptors(launcher).len());
    let before = fds();
    let programs: Vec<_> = (0..200_u8)
        .map(|status| helper.run(sh(&format!("read line; exit {status}"))))
        .collect();
    for program in &programs {
        program.started();
    }
    assert_eq!(helper.supervisors().len(), 200);
    assert_eq!(fds(), before, "descriptors of the launcher");
    for (status, mut program) in (0_u8..).zip(programs) {
        drop(program.stdin.take());
        assert_eq!(program.exited(), Exit::Status(status));
    }
    wait_until("all supervisors are reaped", || {
        process::children(launcher).is_empty()
    });
    assert_eq!(fds(), before, "descriptors of the launcher");
    helper.serves();
}

#[test]
fn many_programs_one_after_the_other_leave_nothing() {
    let helper = Helper::start();
    let fds = || is_root().then(|| process::descriptors(helper.pid()).len());
    helper.serves();
    let before = fds();
    for round in 0..100 {
        match round % 4 {
            0 => fails(&helper, program(&["/nope"]), Stage::Exec, Errno::ENOENT),
            1 => drop(helper.run(sleep())),
            2 => drop(helper.fork()),
            _ => helper.serves(),
        }
    }
    wait_until("all supervisors are reaped", || {
        process::children(helper.pid()).is_empty()
    });
    assert_eq!(fds(), before);
}

// ---- time ------------------------------------------------------------------------------------

fn with_timeout(mut start: Start, time: Duration, signal: i32, grace: Duration) -> Start {
    start.watch = Some(Watch {
        timeout_ms: u64::try_from(time.as_millis()).unwrap(),
        escalation: Escalation {
            signal,
            grace_ms: u64::try_from(grace.as_millis()).unwrap(),
        },
    });
    start
}

#[test]
fn a_timeout_ends_the_program_and_not_before() {
    let helper = Helper::start();
    for (millis, script, signal, expected) in [
        (300, "exec sleep 1000", libc::SIGKILL, Exit::Signal(9)),
        (300, "exec sleep 1000", libc::SIGTERM, Exit::Signal(15)),
        (
            // Long enough for the trap to be set by then.
            3000,
            "trap 'exit 4' TERM; while :; do sleep 0.01; done",
            libc::SIGTERM,
            Exit::Status(4),
        ),
    ] {
        let time = Duration::from_millis(millis);
        let begin = Instant::now();
        let program = helper.run(with_timeout(sh(script), time, signal, DEADLINE));
        program.started();
        assert_eq!(program.exited(), expected);
        let took = begin.elapsed();
        assert!(took >= time, "{took:?}");
        assert!(took < time + DEADLINE / 2, "{took:?}");
    }
}

#[test]
fn a_timeout_is_followed_by_the_grace_and_then_sigkill() {
    let helper = Helper::start();
    // Long enough for the program to ignore the signal by then.
    let (time, grace) = (Duration::from_secs(3), Duration::from_millis(300));
    let begin = Instant::now();
    let program = helper.run(with_timeout(tree(), time, libc::SIGTERM, grace));
    program.started();
    assert_eq!(program.exited(), Exit::Signal(libc::SIGKILL));
    assert!(begin.elapsed() >= time + grace, "{:?}", begin.elapsed());
    assert!(process::no_programs(&helper.mark));
}

#[test]
fn a_timeout_that_never_comes_does_no_harm() {
    let helper = Helper::start();
    for time in [u64::MAX, u64::MAX / 1000, 1 << 53, 3_000_000_000] {
        let mut start = sh("exit 6");
        start.watch = Some(Watch {
            timeout_ms: time,
            escalation: Escalation {
                signal: libc::SIGKILL,
                grace_ms: u64::MAX,
            },
        });
        assert_eq!(helper.run(start).exited(), Exit::Status(6));
    }
    // The same as a grace.
    let program = helper.run(sleep());
    program.started();
    send(
        &program.root,
        &ToRoot::Terminate(Escalation {
            signal: libc::SIGTERM,
            grace_ms: u64::MAX,
        }),
        &[],
    );
    assert_eq!(program.exited(), Exit::Signal(libc::SIGTERM));
}

/// A write lease on a program's file, fcntl(2): whoever executes it has to wait until it is given
/// back, 45 s at most (/proc/sys/fs/lease-break-time).
struct Lease {
    file: File,
}

/// Not in the `libc` crate. fcntl(2)
const F_SETSIG: libc::c_int = 10;

impl Lease {
    fn take(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let fd = file.as_raw_fd();
        // SAFETY: takes numbers only. By default the holder would be told by SIGIO, which kills;
        // SIGURG is ignored.
        unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) };
        // SAFETY: takes numbers only.
        let taken = unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK) };
        Errno::result(taken).expect("the file system knows leases");
        Self { file }
    }

    fn give_back(self) {
        // SAFETY: takes numbers only.
        let given = unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
        Errno::result(given).unwrap();
    }
}

/// The time that steps and exec take is not the program's.
#[test]
fn the_timeout_runs_from_exec() {
    let helper = Helper::start();
    let copy = PublicCopy::new("/bin/sleep", "755");
    let lease = Lease::take(&copy.file);
    let time = Duration::from_millis(300);
    let start = program(&[copy.file.to_str().unwrap(), "1000"]);
    let program = helper.run(with_timeout(start, time, libc::SIGKILL, DEADLINE));
    let pid = program.execing();
    // Three times as long in exec: it is not through yet, and must not have been ended.
    let early = readable(&program.root, Instant::now() + 3 * time);
    assert!(!early, "ended before its exec");
    assert!(!process::is_gone(pid));
    let begin = Instant::now();
    lease.give_back();
    assert_eq!(next::<FromTask>(&program.task), None);
    assert_eq!(program.exited(), Exit::Signal(libc::SIGKILL));
    let took = begin.elapsed();
    assert!(took >= time, "{took:?} after its exec");
    assert!(took < time + DEADLINE / 2, "{took:?} after its exec");
}

/// End of file after `Execing` is success, and comes with the exec, not before.
#[test]
fn the_tasks_socket_ends_with_exec() {
    let helper = Helper::start();
    let copy = PublicCopy::new("/bin/true", "755");
    let lease = Lease::take(&copy.file);
    let program = helper.run(program(&[copy.file.to_str().unwrap()]));
    program.execing();
    let early = readable(&program.task, Instant::now() + Duration::from_millis(200));
    assert!(!early, "the socket ended before exec");
    lease.give_back();
    assert_eq!(next::<FromTask>(&program.task), None);
    assert_eq!(program.exited(), Exit::Status(0));
}

/// Until its exec it is as powerful as the helper: it must not hold what is its parent's.
#[test]
fn a_task_holds_no_descriptor_but_its_own() {
    if !is_root() {
        return excluded("root", "the descriptors of a non-dumpable process");
    }
    let helper = Helper::start();
    let copy = PublicCopy::new("/bin/true", "755");
    let _lease = Lease::take(&copy.file);
    let program = helper.run(program(&[copy.file.to_str().unwrap()]));
    let fds = process::descriptors(program.execing());
    let ends = [
        program.stdin.as_ref().unwrap(),
        &program.stdout,
        &program.stderr,
    ];
    for (fd, end) in (0..).zip(ends) {
        assert_eq!(fds[&fd], target(end), "descriptor {fd}");
    }
    // Its socket, and the pipe whose end tells the supervisor of its exec.
    let others: Vec<_> = fds.range(3..).map(|(_, target)| target).collect();
    let sockets = others.iter().filter(|target| target.starts_with("socket:"));
    assert_eq!(sockets.count(), 1, "{fds:?}");
    let pipes = others.iter().filter(|target| target.starts_with("pipe:"));
    assert!(pipes.count() <= 1 && others.len() <= 2, "{fds:?}");
}

/// A task that dies before its exec has said nothing, or `Execing`; the report says how it died.
#[test]
fn a_task_killed_in_the_middle_of_its_start_is_reported() {
    let helper = Helper::start();
    let copy = PublicCopy::new("/bin/true", "755");
    let _lease = Lease::take(&copy.file);
    let program = helper.run(program(&[copy.file.to_str().unwrap()]));
    let pid = program.execing();
    signal(pid, Signal::SIGKILL);
    assert_eq!(next::<FromTask>(&program.task), None);
    assert_eq!(program.exited(), Exit::Signal(libc::SIGKILL));
}
