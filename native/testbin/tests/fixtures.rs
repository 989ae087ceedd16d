//! The fixtures have to be right before anything is concluded from them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

fn run(program: &str, args: &[&str]) -> Output {
    bare(program).args(args).output().unwrap()
}

/// A command that inherits fds 0-2 only, whatever this test was started with.
fn bare(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    // SAFETY: close_range is one system call, allowed between fork and exec; CLOEXEC leaves the
    // descriptor by which the standard library reports a failed exec.
    unsafe {
        command.pre_exec(|| {
            libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed());
            Ok(())
        });
    }
    command
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn marked(mark: &str) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let found = line.split(|byte| *byte == 0).any(|w| w == mark.as_bytes());
        found.then_some(Pid::from_raw(pid))
    });
    pids.collect()
}

/// Kills by mark until nothing is left: what the code under test has to do better.
fn sweep(mark: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let pids = marked(mark);
        if pids.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "still there: {pids:?}");
        for pid in pids {
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn mark(name: &str) -> String {
    format!("testbin-{name}-{}", std::process::id())
}

/// Starts a fixture, returns once it has printed `ready`.
fn ready(program: &str, args: &[&str]) -> std::process::Child {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    child
}

#[test]
fn fork_tree_has_every_process() {
    for options in [
        &[][..],
        &["--setsid", "--double-fork", "--ignore-term", "--detach"],
        &["--stop"],
    ] {
        let mark = mark(&format!("tree{}", options.len()));
        let mut args = vec![mark.as_str(), "2", "3"];
        args.extend(options);
        let mut leader = ready(env!("CARGO_BIN_EXE_fork-tree"), &args);
        assert_eq!(marked(&mark).len(), 1 + 3 + 9, "{options:?}");
        sweep(&mark);
        leader.wait().unwrap();
    }
}

#[test]
fn fork_tree_leader_exits_and_leaves_the_rest() {
    let mark = mark("leader");
    let args = [mark.as_str(), "1", "2", "--detach", "--leader-exits", "9"];
    let output = run(env!("CARGO_BIN_EXE_fork-tree"), &args);
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(marked(&mark).len(), 2);
    sweep(&mark);
}

#[test]
fn fork_bomb_replaces_its_dead() {
    let mark = mark("bomb");
    let mut leader = ready(env!("CARGO_BIN_EXE_fork-bomb"), &[&mark, "8"]);
    let before: Vec<Pid> = marked(&mark);
    assert_eq!(before.len(), 9);
    let own = Pid::from_raw(i32::try_from(leader.id()).unwrap());
    let victims: Vec<&Pid> = before.iter().filter(|pid| **pid != own).take(2).collect();
    for pid in &victims {
        kill(**pid, Signal::SIGKILL).unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while marked(&mark).len() != 9 || victims.iter().any(|pid| marked(&mark).contains(pid)) {
        assert!(Instant::now() < deadline, "not replaced");
        std::thread::sleep(Duration::from_millis(5));
    }
    sweep(&mark);
    leader.wait().unwrap();
}

#[test]
fn hoppers_change_their_pids() {
    let mark = mark("hopper");
    let args = [mark.as_str(), "3", "--pause-us", "2000"];
    let mut leader = ready(env!("CARGO_BIN_EXE_hopper"), &args);
    let own = Pid::from_raw(i32::try_from(leader.id()).unwrap());
    let hoppers = || -> Vec<Pid> {
        let all = marked(&mark).into_iter();
        all.filter(|pid| *pid != own).collect()
    };
    let first = hoppers();
    let deadline = Instant::now() + Duration::from_secs(5);
    while hoppers().iter().any(|pid| first.contains(pid)) {
        assert!(Instant::now() < deadline, "they do not hop");
        std::thread::sleep(Duration::from_millis(5));
    }
    sweep(&mark);
    leader.wait().unwrap();
}

#[test]
fn pattern_and_digest_agree() {
    let filled = run(
        env!("CARGO_BIN_EXE_fill-pipe"),
        &["mark", "100000", "--chunk", "777", "--digest"],
    );
    let bytes = filled.stdout;
    assert_eq!(bytes.len(), 100_000);
    assert!((0..bytes.len()).all(|i| usize::from(bytes[i]) == i % 251));

    let mut digest = Command::new(env!("CARGO_BIN_EXE_digest"))
        .arg("mark")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    digest.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = digest.wait_with_output().unwrap();
    assert_eq!(output.stdout, filled.stderr);
    assert!(stdout(&output).starts_with("100000 "));
}

#[test]
fn digest_of_nothing() {
    let output = run(env!("CARGO_BIN_EXE_digest"), &["mark"]);
    let empty = "0 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n";
    assert_eq!(stdout(&output), empty);
}

#[test]
fn fill_pipe_both_streams() {
    let output = run(
        env!("CARGO_BIN_EXE_fill-pipe"),
        &["mark", "5000", "--to", "both", "--chunk", "100"],
    );
    assert_eq!(output.stdout.len(), 5000);
    assert_eq!(output.stdout, output.stderr);
}

#[test]
fn exit_codes_and_signals() {
    let program = env!("CARGO_BIN_EXE_exit-with");
    for code in [0, 1, 137, 255] {
        let output = run(program, &["mark", "--code", &code.to_string()]);
        assert_eq!(output.status.code(), Some(code));
    }
    for (name, number) in [
        ("kill", 9),
        ("SIGTERM", 15),
        ("11", 11),
        ("sigpipe", 13),
        ("40", 40),
    ] {
        let output = run(program, &["mark", "--signal", name]);
        assert_eq!(output.status.signal(), Some(number), "{name}");
    }
    let output = run(program, &["mark", "--signal", "chld"]);
    assert_eq!(stdout(&output), "survived\n");
}

#[test]
fn wrong_usage_is_refused() {
    let program = env!("CARGO_BIN_EXE_exit-with");
    for args in [
        &[][..],
        &["mark"],
        &["mark", "--code", "256"],
        &["mark", "--code", "1", "more"],
        &["mark", "--signal", "nonesuch"],
    ] {
        let output = run(program, args);
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn stdout_closes_before_the_exit() {
    let started = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_close-stdout"))
        .args(["mark", "3000", "5"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    let mut pipe = child.stdout.take().unwrap();
    std::io::Read::read_to_string(&mut pipe, &mut text).unwrap();
    assert_eq!(text, "closing\n");
    assert!(child.try_wait().unwrap().is_none());
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert!(started.elapsed() >= Duration::from_secs(3));
}

#[test]
fn pipe_is_held_after_the_exit() {
    let mark = mark("hold");
    let mut child = Command::new(env!("CARGO_BIN_EXE_hold-pipe"))
        .args([&mark, "3", "--code", "3", "--setsid", "--late"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(marked(&mark).len(), 1);
    let mut text = String::new();
    let mut pipe = child.stdout.take().unwrap();
    std::io::Read::read_to_string(&mut pipe, &mut text).unwrap();
    assert_eq!(text, "ready\nlate\n");
}

#[test]
fn polite_signals_are_ignored_or_reported() {
    let mark = mark("term");
    let mut child = ready(env!("CARGO_BIN_EXE_ignore-term"), &[&mark]);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        kill(pid, signal).unwrap();
    }
    std::thread::sleep(Duration::from_millis(50));
    assert!(child.try_wait().unwrap().is_none());
    sweep(&mark);
    child.wait().unwrap();

    let mut child = ready(env!("CARGO_BIN_EXE_ignore-term"), &[&mark, "--report"]);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "term\n");
    sweep(&mark);
    child.wait().unwrap();
}

#[test]
fn readers_read_as_told() {
    let mut child = ready(env!("CARGO_BIN_EXE_never-read"), &["mark", "--for", "50"]);
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let started = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_slow-read"))
        .args(["mark", "100000", "--chunk", "1000"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&[0; 20_000]).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(stdout(&output), "20000\n");
    assert!(started.elapsed() >= Duration::from_millis(150));
}

#[test]
fn births_are_shown_as_they_are() {
    let output = run(env!("CARGO_BIN_EXE_show-fds"), &["mark"]);
    let text = stdout(&output);
    for line in [
        "fds=0,1,2",
        "fd.0=/dev/null",
        "sigcgt=0000000000000000",
        "nonblock.1=0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert!(text.contains(&format!("\nppid={}\n", std::process::id())));

    // Closed fds stay closed: no start-up code has opened /dev/null on them.
    let closed = bare("/bin/sh")
        .args(["-c", "exec \"$0\" mark <&- 2>&- 5</dev/null"])
        .arg(env!("CARGO_BIN_EXE_show-fds"))
        .output()
        .unwrap();
    assert!(stdout(&closed).starts_with("fds=1,5\n"), "{closed:?}");
}

#[test]
fn writable_descriptors_are_found() {
    let program = env!("CARGO_BIN_EXE_write-fds");
    assert_eq!(stdout(&run(program, &["mark"])), "done\n");
    let leaky = bare("/bin/sh")
        .args(["-c", "exec \"$0\" mark 5>/dev/null 7</dev/null"])
        .arg(program)
        .output()
        .unwrap();
    assert_eq!(stdout(&leaky), "fd 5 wrote\nfd 7 open\ndone\n");
}

#[test]
fn arguments_come_out_raw() {
    let output = Command::new(env!("CARGO_BIN_EXE_show-args"))
        .arg0("")
        .args(["a b", ""])
        .env_clear()
        .env("K", "V")
        .output()
        .unwrap();
    assert_eq!(stdout(&output), "argc=3\0\0a b\0\0K=V\0");
}

#[test]
fn a_process_that_allows_it_is_attacked() {
    let mut victim = ready(env!("CARGO_BIN_EXE_never-read"), &["mark", "--for", "5000"]);
    let pid = victim.id().to_string();
    let output = run(env!("CARGO_BIN_EXE_attack-parent"), &["mark", &pid]);
    let text = stdout(&output);
    assert!(text.contains("kill=ok\n"), "{text}");
    for name in [
        "ptrace",
        "mem_read",
        "mem_write",
        "vm_readv",
        "fd_list",
        "pidfd_getfd",
        "exe",
    ] {
        assert!(text.contains(&format!("{name}=")), "{name}: {text}");
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
}

#[test]
fn a_lent_terminal_is_one_to_type_on() {
    let program = env!("CARGO_BIN_EXE_type-tty");
    let lend = env!("CARGO_BIN_EXE_lend-tty");
    let output = run(lend, &["mark", program, "mark"]);
    let text = stdout(&output);
    for line in ["standard=ENOTTY", "open=ok", "take=ok", "control=ok"] {
        assert!(text.lines().any(|other| other == line), "{line}: {text}");
    }
}

#[test]
fn bystanders_are_counted() {
    let output = Command::new(env!("CARGO_BIN_EXE_bystanders"))
        .args(["mark", "4", "200"])
        .stdin(Stdio::piped())
        .output()
        .unwrap();
    let text = stdout(&output);
    assert!(text.starts_with("ready\nforked="), "{text}");
    assert!(text.ends_with(" signalled=0 first=0\n"), "{text}");
}

/// Here without the calls themselves: most would work on the machine that runs the tests.
#[test]
fn calls_are_tried() {
    let output = run(env!("CARGO_BIN_EXE_break-out"), &["mark", "--calls"]);
    let text = stdout(&output);
    assert!(
        text.starts_with("keyctl=") && text.contains("\nbpf="),
        "{text}"
    );
}
