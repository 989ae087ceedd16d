//! Hostile starts: FAULTS rows 28, 34 (the socket), 40 and 41.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::pty::openpty;
use nix::spawn::{posix_spawn, PosixSpawnAttr, PosixSpawnFileActions};
use nix::sys::socket::{socket, socketpair, AddressFamily, SockFlag, SockType};
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::{geteuid, pipe, setgroups, setresgid, setresuid, Gid, Pid, Uid};
use stdio_protocol::channel;
use stdio_protocol::message::{Exit, FromLauncher, ToLauncher};
use stdio_protocol::VERSION;

use crate::common::*;
use crate::process::{self, wait_until};

const USAGE: &str = "It expects a SOCK_SEQPACKET socket as descriptor 0.";

/// Runs `action` in the child just before its exec.
fn before_exec(command: &mut Command, action: impl Fn() + Send + Sync + 'static) {
    // SAFETY: the actions of these tests make system calls only.
    unsafe {
        command.pre_exec(move || {
            action();
            Ok(())
        });
    }
}

/// Refuses to work, says why, and leaves nothing behind.
#[track_caller]
fn refuses(stdin: OwnedFd, case: &str) {
    let mut helper = Helper::spawn_with(HELPER.as_ref(), stdin, None, |command| {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    });
    assert_eq!(helper.exit_status().code(), Some(2), "{case}");
    let (mut said, mut output) = (String::new(), String::new());
    let stderr = helper.process.stderr.as_mut().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    let stdout = helper.process.stdout.as_mut().unwrap();
    stdout.read_to_string(&mut output).unwrap();
    assert!(said.contains(USAGE), "{case}: {said:?}");
    assert_eq!(output, "", "{case}");
    helper.nothing_left();
}

#[test]
fn whatever_of_descriptors_0_to_2_is_closed() {
    for closed in 0_u8..8 {
        let is_closed = move |fd: i32| closed & (1 << fd) != 0;
        let mut helper = Helper::spawn(|command| {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            before_exec(command, move || {
                for fd in (0..3).filter(|fd| is_closed(*fd)) {
                    // SAFETY: closes a number which the program to be executed would have got.
                    unsafe { libc::close(fd) };
                }
            });
        });
        if is_closed(0) {
            assert_eq!(helper.exit_status().code(), Some(2), "closed: {closed:03b}");
        } else {
            helper.greet();
            let program = helper.run(sleep());
            let pid = program.started();
            for (name, fds) in [
                ("launcher", own_descriptors(helper.pid())),
                ("supervisor", own_descriptors(helper.supervisor())),
            ] {
                let Some(fds) = fds else { continue };
                assert!(fds[&0].starts_with("socket:"), "{name}: {fds:?}");
                for fd in [1, 2] {
                    let null = is_closed(fd) || fd == 0;
                    let kind = if null { "/dev/null" } else { "pipe:" };
                    let fd = u32::try_from(fd).unwrap();
                    assert!(fds[&fd].starts_with(kind), "{name} {closed:03b}: {fds:?}");
                }
            }
            wait_until("the program has three descriptors", || {
                process::descriptors(pid).into_keys().eq([0, 1, 2])
            });
            helper.serves_next_to(&program);
            helper.control = None;
            assert_eq!(helper.exit_status().code(), Some(0));
        }
        let mut said = String::new();
        let stderr = helper.process.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        let usage = is_closed(0) && !is_closed(2);
        assert_eq!(said.contains(USAGE), usage, "{closed:03b}: {said:?}");
        assert_eq!(said.is_empty(), !usage, "{closed:03b}: {said:?}");
        helper.nothing_left();
    }
}

/// The helper's are root's to see.
fn own_descriptors(pid: Pid) -> Option<std::collections::BTreeMap<u32, String>> {
    if !is_root() {
        excluded("root", "the descriptors of a non-dumpable process");
        return None;
    }
    Some(process::descriptors(pid))
}

#[test]
fn descriptor_0_is_anything_but_the_control_socket() {
    let unix = |kind| socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let (stream, _stream) = unix(SockType::Stream);
    let (datagram, _datagram) = unix(SockType::Datagram);
    let udp = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    );
    let tty = openpty(None, None).unwrap();
    let cases = [
        ("pipe", pipe().unwrap().0),
        ("pipe's write end", pipe().unwrap().1),
        ("file", File::open("/proc/self/exe").unwrap().into()),
        ("null", File::open("/dev/null").unwrap().into()),
        ("directory", File::open("/").unwrap().into()),
        ("terminal", tty.slave),
        ("stream socket", stream),
        ("datagram socket", datagram),
        ("internet socket", udp.unwrap()),
    ];
    for (case, fd) in cases {
        refuses(fd, case);
    }
    // The right type of the wrong family, where there is one.
    let family = AddressFamily::Vsock;
    if let Ok(fd) = socket(family, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None) {
        refuses(fd, "virtual machine socket");
    }
}

/// The right kind of socket with nobody at its other end: nothing to wait for.
#[test]
fn an_unconnected_control_socket_ends_the_helper() {
    let unconnected = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    );
    let mut helper = Helper::spawn_with(HELPER.as_ref(), unconnected.unwrap(), None, |command| {
        command.stderr(Stdio::null());
    });
    assert_eq!(helper.exit_status().code(), Some(2));

    let path = std::env::temp_dir().join(format!("stdio-{}-{}", std::process::id(), unique()));
    let stream: OwnedFd = UnixListener::bind(&path).unwrap().into();
    std::fs::remove_file(&path).unwrap();
    refuses(stream, "listening stream socket");
}

#[test]
fn a_poisoned_environment_is_neither_used_nor_passed_on() {
    let helper = Helper::spawn(|command| {
        command.stderr(Stdio::null()).envs([
            ("LD_PRELOAD", "/nonexistent/evil.so"),
            ("LD_LIBRARY_PATH", "/nonexistent"),
            ("LD_AUDIT", "/nonexistent/audit.so"),
            ("PATH", "/nonexistent"),
            ("IFS", "/"),
            ("ENV", "/nonexistent/profile"),
            ("MALLOC_PERTURB_", "165"),
            ("MALLOC_CHECK_", "3"),
            ("MALLOC_ARENA_MAX", "0"),
            ("GLIBC_TUNABLES", "glibc.malloc.check=3"),
            ("RUST_BACKTRACE", "full"),
            ("RUST_MIN_STACK", "1"),
            ("TMPDIR", "/nonexistent"),
        ]);
    });
    helper.greet();
    // No PATH of its own: found along the default one, not along the launcher's.
    let mut start = program(&["sleep", "1000"]);
    start.plan.script.exec.env = vec![bytes("ONLY=this")];
    let program = helper.run(start);
    let pid = program.started();
    let expected = [
        "ONLY=this".to_owned(),
        process::environment_entry(&helper.mark),
    ];
    assert_eq!(process::environment(pid), expected);
}

/// execve(2) with no argument at all; newer kernels add an empty one.
#[test]
fn started_without_arguments() {
    let (control, theirs) = channel::pair().unwrap();
    let mut actions = PosixSpawnFileActions::init().unwrap();
    actions.add_dup2(theirs.as_raw_fd(), 0).unwrap();
    let attributes = PosixSpawnAttr::init().unwrap();
    let file = CString::new(HELPER).unwrap();
    let none: [&CStr; 0] = [];
    let pid = posix_spawn(file.as_c_str(), &actions, &attributes, &none, &none).unwrap();
    drop(theirs);

    send(&control, &hello(), &[]);
    let version = VERSION.as_bytes().to_vec().into();
    let uid = nix::unistd::geteuid().as_raw();
    assert_eq!(next(&control), Some(FromLauncher::Hello { version, uid }));
    let (root, theirs) = channel::pair().unwrap();
    send(&control, &ToLauncher::Fork { id: 1 }, &[theirs.as_fd()]);
    drop(theirs);
    drop(control);
    assert_eq!(next::<()>(&root), None);
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
}

/// Signals 32 and 33 are the C library's own: it refuses to block, or to reset, them for anybody.
#[test]
fn every_signal_blocked_and_ignored() {
    let helper = Helper::spawn(|command| {
        before_exec(command, || {
            let ignore = [1_u64, 0, 0, 0];
            let all = u64::MAX;
            for number in 1..=64 {
                // SAFETY: the array is as large as the kernel's struct sigaction, and SIG_IGN
                // (1) is no address.
                unsafe {
                    libc::syscall(
                        libc::SYS_rt_sigaction,
                        number,
                        ignore.as_ptr(),
                        std::ptr::null_mut::<u64>(),
                        8,
                    )
                };
            }
            // SAFETY: the mask is valid for the call.
            unsafe {
                libc::syscall(
                    libc::SYS_rt_sigprocmask,
                    libc::SIG_SETMASK,
                    std::ptr::from_ref(&all),
                    std::ptr::null_mut::<u64>(),
                    8,
                )
            };
        });
    });
    helper.greet();
    let program = helper.run(sleep());
    let pid = program.started();
    for (name, of) in [("launcher", helper.pid()), ("program", pid)] {
        assert_eq!(process::status(of, "SigIgn"), "0".repeat(16), "{name}");
        assert_eq!(process::status(of, "SigCgt"), "0".repeat(16), "{name}");
    }
    assert_eq!(process::status(pid, "SigBlk"), "0".repeat(16));
    // The end of a child would go unnoticed.
    signal(pid, nix::sys::signal::Signal::SIGUSR1);
    assert_eq!(program.exited(), Exit::Signal(libc::SIGUSR1));
}

#[test]
fn inherited_descriptors_are_closed() {
    let probe = Probe::new();
    let fd = probe.fd().as_raw_fd();
    let helper = Helper::spawn(|command| {
        before_exec(command, move || {
            for number in (3..400).chain([700, 999]) {
                // SAFETY: duplicates a descriptor that is open in the child as well, over
                // nothing that the program to be executed keeps.
                unsafe { libc::dup2(fd, number) };
            }
        });
    });
    helper.greet();
    probe.closed_everywhere();
    let program = helper.run(sleep());
    program.started();
    if let Some(fds) = own_descriptors(helper.pid()) {
        assert!(fds.len() < 12, "{fds:?}");
    }
    helper.serves_next_to(&program);
}

#[test]
fn launcher_and_supervisor_have_one_thread_each() {
    let helper = Helper::start();
    let program = helper.run(sleep());
    program.started();
    assert_eq!(process::status(helper.pid(), "Threads"), "1");
    assert_eq!(process::status(helper.supervisor(), "Threads"), "1");
}

#[test]
fn a_supervisor_is_called_supervise() {
    let helper = Helper::start();
    let (_id, _root) = helper.fork();
    assert_eq!(process::status(helper.supervisor(), "Name"), "Supervise");
    assert_ne!(process::status(helper.pid(), "Name"), "Supervise");
}

/// Makes this process the user `SOMEBODY`, if it is root; the caller's ids then are what an
/// unprivileged one would have.
fn become_somebody(command: &mut Command) {
    if geteuid().is_root() {
        command.uid(SOMEBODY).gid(SOMEBODY);
    }
}

/// A program of the same user can neither read the helper's memory nor take its descriptors.
#[test]
fn the_helper_cannot_be_inspected_by_its_own_user() {
    let copy = PublicCopy::new(HELPER, "755");
    let helper = Helper::spawn_file(&copy.file, become_somebody);
    helper.greet();
    let program = helper.run(sleep());
    let program = program.started();
    let supervisor = helper.supervisor();

    let can_open = |pid: Pid, file: &str| {
        let mut reader = Command::new("sh");
        let script = format!("exec 2>/dev/null; : < /proc/{pid}/{file}");
        become_somebody(&mut reader);
        reader.args(["-c", &script]).status().unwrap().success()
    };
    // That the attempts are good ones: a program of this user's is open to it.
    for file in ["environ", "maps", "fd/0"] {
        assert!(can_open(program, file), "{file}");
    }
    for (name, pid) in [("launcher", helper.pid()), ("supervisor", supervisor)] {
        for file in ["mem", "environ", "maps", "fd/0", "fd/1"] {
            assert!(!can_open(pid, file), "{file} of the {name}");
        }
        let owner = std::fs::metadata(format!("/proc/{pid}/fd")).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (0, 0), "{name}");
    }
    let owner = std::fs::metadata(format!("/proc/{program}/fd")).unwrap();
    assert_ne!(owner.uid(), 0);
}

/// With the setuid bit only the effective id is root's; nothing of the caller's may stay.
#[test]
fn the_setuid_bit_makes_it_root_altogether() {
    if !is_root() {
        return excluded("root", "a setuid file of root's");
    }
    let copy = PublicCopy::new(HELPER, "4755");
    copy.give_to_group(SOMEBODY, "4750");
    if copy.is_nosuid() {
        return excluded("suid", "the temporary directory is mounted nosuid");
    }
    let helper = Helper::spawn_file(&copy.file, |command| as_somebody(command, 0o077));
    helper.greet();
    let program = helper.run(sleep());
    let pid = program.started();
    for (name, pid) in [
        ("launcher", helper.pid()),
        ("supervisor", helper.supervisor()),
        ("program", pid),
    ] {
        assert_eq!(process::status(pid, "Uid"), "0\t0\t0\t0", "{name}");
        assert_eq!(process::status(pid, "Gid"), "0\t0\t0\t0", "{name}");
        assert_eq!(process::status(pid, "Groups"), "", "{name}");
    }
    let owner = std::fs::metadata(format!("/proc/{}/fd", helper.pid())).unwrap();
    assert_eq!(owner.uid(), 0);
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(cwd, std::path::Path::new("/"));
    assert_eq!(process::status(pid, "Umask"), "0022");
}

/// What the NIF asks for when nobody has asked for privileges.
#[test]
fn the_setuid_bit_is_nothing_to_who_does_not_want_it() {
    if !is_root() {
        return excluded("root", "a setuid file of root's");
    }
    let copy = PublicCopy::new(HELPER, "4755");
    copy.give_to_group(SOMEBODY, "4750");
    if copy.is_nosuid() {
        return excluded("suid", "the temporary directory is mounted nosuid");
    }
    let helper = Helper::spawn_file(&copy.file, |command| {
        command.arg("--unprivileged");
        as_somebody(command, 0o027);
    });
    helper.send(&hello(), &[]);
    let version = bytes(VERSION);
    let greeting = FromLauncher::Hello {
        version,
        uid: SOMEBODY,
    };
    assert_eq!(helper.next(), Some(greeting));
    let program = helper.run(sleep());
    let pid = program.started();
    let ids = [SOMEBODY; 4].map(|id| id.to_string()).join("\t");
    for pid in [helper.pid(), helper.supervisor(), pid] {
        assert_eq!(process::status(pid, "Uid"), ids);
        assert_eq!(process::status(pid, "Gid"), ids);
    }
    assert_eq!(process::status(pid, "Umask"), "0027");
}

/// It does whatever its caller asks, as root.
#[test]
fn a_setuid_helper_that_anyone_may_execute_refuses() {
    if !is_root() {
        return excluded("root", "a setuid file of root's");
    }
    let copy = PublicCopy::new(HELPER, "4755");
    if copy.is_nosuid() {
        return excluded("suid", "the temporary directory is mounted nosuid");
    }
    let mut helper = Helper::spawn_file(&copy.file, |command| {
        command.stderr(std::process::Stdio::piped());
        as_somebody(command, 0o022);
    });
    let mut said = String::new();
    let mut stderr = helper.process.stderr.take().unwrap();
    std::io::Read::read_to_string(&mut stderr, &mut said).unwrap();
    assert!(said.contains("chmod 4750"), "{said}");
    assert_eq!(helper.next(), None);
}

fn as_somebody(command: &mut std::process::Command, mask: u32) {
    before_exec(command, move || {
        let (uid, gid) = (Uid::from_raw(SOMEBODY), Gid::from_raw(SOMEBODY));
        let changed = setgroups(&[gid, Gid::from_raw(7), Gid::from_raw(0)])
            .and_then(|()| setresgid(gid, gid, gid))
            .and_then(|()| setresuid(uid, uid, uid));
        assert_eq!(changed, Ok(()));
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
    });
}

#[test]
fn another_version_is_refused_after_saying_its_own() {
    for version in ["", "0.0.0+0", &format!("{VERSION}0"), &VERSION[1..]] {
        let mut helper = Helper::spawn(|_| {});
        helper.send(
            &ToLauncher::Hello {
                version: bytes(version),
                nofile: NOFILE,
            },
            &[],
        );
        let expected = FromLauncher::Hello {
            version: bytes(VERSION),
            uid: nix::unistd::geteuid().as_raw(),
        };
        assert_eq!(helper.next(), Some(expected));
        assert_eq!(helper.next(), None);
        helper.refused();
    }
}

/// Whatever the BEAM has raised its own to.
#[test]
fn programs_get_the_descriptor_limit_of_the_greeting() {
    let helper = Helper::start();
    let mut program = helper.run(sh("ulimit -Sn; ulimit -Hn"));
    program.started();
    let expected = format!("{}\n{}\n", NOFILE.cur, NOFILE.max);
    assert_eq!(program.output(), expected);
    assert_eq!(program.exited(), Exit::Status(0));
}

#[test]
fn signals_do_not_end_the_launcher() {
    let helper = Helper::start();
    for number in [1, 2, 3, 10, 12, 13, 14, 15, 17, 23, 28, 34, 64] {
        // SAFETY: takes numbers only; a child of this process that has not been reaped.
        let sent = unsafe { libc::kill(helper.pid().as_raw(), number) };
        assert_eq!(Errno::result(sent), Ok(0));
    }
    helper.serves();
    helper.serves();
}

#[test]
fn the_launcher_waits_without_using_the_processor() {
    let helper = Helper::start();
    let program = helper.run(sleep());
    program.started();
    // Ticks in user and in kernel mode: fields 14 and 15.
    let ticks = |pid| process::number(pid, 14) + process::number(pid, 15);
    let (launcher, supervisor) = (helper.pid(), helper.supervisor());
    let before = (ticks(launcher), ticks(supervisor));
    program.says_nothing_for(std::time::Duration::from_millis(500));
    let after = (ticks(launcher), ticks(supervisor));
    assert!(after.0 - before.0 <= 5, "launcher: {before:?} {after:?}");
    assert!(after.1 - before.1 <= 5, "supervisor: {before:?} {after:?}");
}
