//! Processes as /proc shows them, and waiting for them with a deadline.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// For what has to happen at once, on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Polls until the condition holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < give_up, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The fields of `/proc/PID/stat` from the third on: the state, the parent, … proc(5)
fn stat(pid: Pid) -> Option<Vec<String>> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything.
    let end_of_name = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = String::from_utf8_lossy(&stat[end_of_name + 1..]);
    Some(rest.split_ascii_whitespace().map(str::to_owned).collect())
}

/// A number of `/proc/PID/stat`, counted as proc(5) does.
#[track_caller]
pub fn number(pid: Pid, field: usize) -> i64 {
    stat(pid).expect("the process is gone")[field - 3]
        .parse()
        .unwrap()
}

pub fn is_zombie(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| stat[0] == "Z")
}

pub fn is_stopped(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| stat[0] == "T")
}

/// Whether it executes sleep(1).
pub fn sleeps(pid: Pid) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| name == "sleep\n")
}

/// Whether it is still being executed: the last that the kernel sets up is where the environment
/// is, and every program of these tests has one.
pub fn is_in_exec(pid: Pid) -> bool {
    match std::fs::read(format!("/proc/{pid}/environ")) {
        Ok(environment) => environment.is_empty() && !is_zombie(pid),
        // As the helper's own processes are: not inspectable.
        Err(error) => error.kind() == ErrorKind::PermissionDenied,
    }
}

/// Neither running nor waiting to be reaped.
pub fn is_gone(pid: Pid) -> bool {
    stat(pid).is_none()
}

fn all() -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.map(Pid::from_raw).collect()
}

/// Direct children, zombies included.
pub fn children(parent: Pid) -> Vec<Pid> {
    let parent = parent.to_string();
    let mut pids = all();
    pids.retain(|pid| stat(*pid).is_some_and(|stat| stat[1] == parent));
    pids
}

/// A line of `/proc/PID/status`, proc(5).
#[track_caller]
pub fn status(pid: Pid, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.expect("no such line").trim().to_owned()
}

/// Numbers and targets of the open descriptors.
#[track_caller]
pub fn descriptors(pid: Pid) -> BTreeMap<u32, String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = entries.flatten().filter_map(|entry| {
        let fd = entry.file_name().to_str()?.parse().ok()?;
        let target = std::fs::read_link(entry.path()).ok()?;
        Some((fd, target.display().to_string()))
    });
    targets.collect()
}

fn words(pid: Pid, file: &str) -> Vec<Vec<u8>> {
    let content = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let words = content.split(|byte| *byte == 0).filter(|w| !w.is_empty());
    words.map(<[u8]>::to_vec).collect()
}

pub fn environment(pid: Pid) -> Vec<String> {
    let entries = words(pid, "environ").into_iter();
    entries.map(|e| String::from_utf8(e).unwrap()).collect()
}

/// The helper's own processes: launcher, supervisors, tasks before their exec. Not zombies.
pub fn helpers(mark: &str) -> Vec<Pid> {
    let mut pids = all();
    pids.retain(|pid| words(*pid, "cmdline").iter().any(|w| w == mark.as_bytes()));
    pids
}

/// The programs that it has started, and all that these have started. Not zombies.
pub fn programs(mark: &str) -> Vec<Pid> {
    let entry = environment_entry(mark);
    let mut pids = all();
    pids.retain(|pid| words(*pid, "environ").iter().any(|w| w == entry.as_bytes()));
    pids
}

pub fn environment_entry(mark: &str) -> String {
    format!("STDIO_TEST_MARK={mark}")
}

/// Twice in a row: in the middle of its exec a process shows neither mark.
pub fn no_programs(mark: &str) -> bool {
    programs(mark).is_empty() && programs(mark).is_empty()
}

pub fn nothing_left(mark: &str) -> bool {
    no_programs(mark) && helpers(mark).is_empty()
}

/// Kills by pid until nothing carries the mark: what the code under test should have done.
pub fn sweep(mark: &str) {
    let give_up = Instant::now() + DEADLINE;
    while !nothing_left(mark) {
        for pid in helpers(mark).into_iter().chain(programs(mark)) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        if give_up < Instant::now() {
            eprintln!("cannot be killed: {:?}", programs(mark));
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
