//! Peers that break the protocol: exit status 2, nothing left behind, no descriptor kept. FAULTS
//! row 34.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::sys::signal::Signal;
use nix::unistd::{ftruncate, Pid};
use serde::Serialize;
use stdio_protocol::channel::{MAX_BODY, MAX_FDS, MAX_INLINE};
use stdio_protocol::codec::encode;
use stdio_protocol::message::{
    Escalation, Exit, FromRoot, FromTask, ToLauncher, ToRoot, ToTask, Watch,
};

use crate::common::*;
use crate::process::{self, wait_until};

const INLINE: u8 = 0;
const IN_MEMFD: u8 = 1;

/// A datagram that no peer may send: its bytes, and how many copies of a descriptor go along.
struct Frame {
    name: &'static str,
    bytes: Vec<u8>,
    fds: usize,
    /// Last among the descriptors.
    memfd: Option<OwnedFd>,
}

impl Frame {
    fn new(name: &'static str, bytes: Vec<u8>, fds: usize) -> Self {
        Self {
            name,
            bytes,
            fds,
            memfd: None,
        }
    }

    /// A message with the wrong number of descriptors, or at the wrong time.
    fn message<T: Serialize>(name: &'static str, message: &T, fds: usize) -> Self {
        Self::new(name, framed(&encode(message).unwrap()), fds)
    }

    fn memfd(name: &'static str, memfd: OwnedFd) -> Self {
        Self {
            memfd: Some(memfd),
            ..Self::new(name, vec![IN_MEMFD], 1)
        }
    }

    /// Sends it; the probe tells whether a descriptor that went along was kept.
    fn send(&self, socket: &OwnedFd) -> Probe {
        let probe = Probe::new();
        let mut fds = vec![probe.fd(); self.fds];
        fds.extend(self.memfd.iter().map(AsFd::as_fd));
        send_raw(socket, &self.bytes, &fds).unwrap();
        probe
    }
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&[INLINE], body].concat()
}

fn memfd(content: &[u8], length: i64, seals: SealFlag) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"test", flags).unwrap());
    file.write_all(content).unwrap();
    ftruncate(&file, length).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file.into()
}

/// What is malformed on any socket. `valid` is an encoded message that would be accepted.
fn malformed(valid: &[u8]) -> Vec<Frame> {
    let some = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    let all = some | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    let length = i64::try_from(valid.len()).unwrap();
    let huge = i64::try_from(MAX_BODY + 1).unwrap();
    let trailing = [valid, &[0]].concat();
    vec![
        Frame::new("empty body", vec![INLINE], 0),
        Frame::new("no framing", vec![], 1),
        Frame::new("unknown framing", vec![2], 0),
        Frame::new("unknown framing, message", [&[255], valid].concat(), 0),
        Frame::new("truncated", framed(&valid[..valid.len() - 1]), 0),
        Frame::new("trailing byte", framed(&trailing), 0),
        Frame::new("unknown tag", framed(&[77, 0, 0]), 0),
        Frame::new("unknown tag with descriptors", framed(&[77]), 3),
        Frame::new("endless tag", framed(&[255; 20]), 0),
        Frame::new("oversized", vec![INLINE; MAX_INLINE + 2], 0),
        Frame::new("oversized with descriptors", vec![0; 150_000], 8),
        Frame::new("too many descriptors", framed(valid), MAX_FDS + 1),
        Frame::new("flood of descriptors", framed(valid), 253),
        Frame::new("flood in a malformed message", vec![9], 253),
        Frame::new("no memfd", vec![IN_MEMFD], 0),
        Frame::new("a pipe for a memfd", vec![IN_MEMFD], 1),
        Frame::memfd("unsealed memfd", memfd(valid, length, some)),
        Frame::memfd("oversized memfd", memfd(valid, huge, all)),
        Frame::memfd("empty memfd", memfd(&[], 0, all)),
        Frame::memfd(
            "memfd with a trailing byte",
            memfd(&trailing, length + 1, all),
        ),
    ]
}

// ---- the launcher's socket -------------------------------------------------------------------

#[test]
fn the_launcher_refuses_anything_but_a_greeting_first() {
    let mut frames = malformed(&encode(&hello()).unwrap());
    frames.extend([
        Frame::message("greeting with a descriptor", &hello(), 1),
        Frame::message("fork", &ToLauncher::Fork { id: 1 }, 1),
        Frame::message("kill", &ToLauncher::Kill { id: 1 }, 0),
    ]);
    for frame in frames {
        let mut helper = Helper::spawn(|_| {});
        let probe = frame.send(helper.control());
        let status = helper.exit_status();
        assert_eq!(status.code(), Some(2), "{}", frame.name);
        probe.closed_everywhere();
        helper.nothing_left();
    }
}

#[test]
fn the_launcher_ends_its_trees_when_its_peer_breaks_the_protocol() {
    let mut frames = malformed(&encode(&ToLauncher::Kill { id: 0 }).unwrap());
    frames.extend([
        Frame::message("second greeting", &hello(), 0),
        Frame::message("fork without a socket", &ToLauncher::Fork { id: 1 }, 0),
        Frame::message("fork with two sockets", &ToLauncher::Fork { id: 1 }, 2),
        Frame::message("kill with a descriptor", &ToLauncher::Kill { id: 1 }, 1),
        Frame::message("a root's message", &ToRoot::Start(Box::new(tree())), 4),
    ]);
    for frame in frames {
        let mut helper = Helper::start();
        let program = helper.run(sh(
            "trap '' TERM HUP; (setsid sleep 1000 &); exec sleep 1000",
        ));
        program.started();
        let probe = frame.send(helper.control());
        let status = helper.exit_status();
        assert_eq!(status.code(), Some(2), "{}", frame.name);
        // The end of a dead launcher's tree is still reported.
        assert_eq!(program.exited(), Exit::Signal(libc::SIGKILL));
        probe.closed_everywhere();
        helper.nothing_left();
    }
}

/// A descriptor limit so low that none can be received.
#[test]
fn the_launcher_ends_when_it_has_no_room_for_descriptors() {
    let mut helper = Helper::spawn(|_| {});
    let nofile = stdio_protocol::value::Limit { cur: 3, max: 1024 };
    let version = bytes(stdio_protocol::VERSION);
    helper.send(&ToLauncher::Hello { version, nofile }, &[]);
    assert!(helper.next().is_some());
    let (_id, root) = helper.fork();
    helper.refused();
    assert_eq!(next::<()>(&root), None);
}

/// As many descriptors as the kernel takes, as often as they fit, before anything is read.
#[test]
fn a_flood_of_descriptors_ends_with_the_launcher() {
    let mut helper = Helper::start();
    let program = helper.run(sleep());
    program.started();
    signal(helper.pid(), Signal::SIGSTOP);
    let probe = Probe::new();
    let bytes = framed(&encode(&ToLauncher::Fork { id: 1 }).unwrap());
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    fcntl(helper.control(), FcntlArg::F_SETFL(flags)).unwrap();
    let mut sent = 0;
    while sent < 1000 {
        match send_raw(helper.control(), &bytes, &vec![probe.fd(); 253]) {
            Ok(()) => sent += 1,
            Err(Errno::EAGAIN | Errno::ETOOMANYREFS) => break,
            Err(errno) => panic!("{errno}"),
        }
    }
    assert!(sent > 0);
    signal(helper.pid(), Signal::SIGCONT);
    helper.refused();
    probe.closed_everywhere();
}

// ---- a root's socket -------------------------------------------------------------------------

/// The launcher is stopped while a supervisor ends, so that its exit status can be read from the
/// zombie: field 52 of /proc/PID/stat, as wait(2) gives it. Only root may see it.
#[track_caller]
fn ends_with_2(helper: &Helper, supervisor: Pid, frame: &Frame, act: impl FnOnce()) {
    signal(helper.pid(), Signal::SIGSTOP);
    wait_until("the launcher is stopped", || {
        process::is_stopped(helper.pid())
    });
    act();
    wait_until("the supervisor ends", || process::is_zombie(supervisor));
    assert!(process::no_programs(&helper.mark), "{}", frame.name);
    if is_root() {
        let status = process::number(supervisor, 52);
        assert_eq!(status, 2 << 8, "{}", frame.name);
    } else {
        excluded("root", "the exit status of a non-dumpable process");
    }
    signal(helper.pid(), Signal::SIGCONT);
}

#[test]
fn a_supervisor_ends_its_tree_when_its_peer_breaks_the_protocol() {
    let terminate = terminate(Signal::SIGTERM, process::DEADLINE);
    let start = ToRoot::Start(Box::new(sleep()));
    let watch = ToRoot::Watch(Watch {
        timeout_ms: 1,
        escalation: Escalation {
            signal: libc::SIGKILL,
            grace_ms: 0,
        },
    });
    let mut frames = malformed(&encode(&terminate).unwrap());
    frames.extend([
        Frame::message("second start", &start, 4),
        Frame::message("a child beside the program", &ToRoot::Bear, 1),
        Frame::message("time with a descriptor", &watch, 1),
        Frame::message("a launcher's message", &hello(), 0),
    ]);
    // One launcher for all: it is none of its business.
    let helper = Helper::start();
    for frame in frames {
        let program = helper.run_tree();
        let supervisor = helper.supervisor();
        let mut probe = None;
        ends_with_2(&helper, supervisor, &frame, || {
            probe = Some(frame.send(&program.root));
        });
        // Nothing more is said to such a peer; the launcher tells.
        program.ended_silently();
        helper.reports(program.id);
        probe.unwrap().closed_everywhere();
    }
    helper.serves();
}

/// The process that would be the program ends, as one whose set-up fails.
#[test]
fn a_child_that_waits_ends_when_its_peer_breaks_the_protocol() {
    let script = sleep().plan.script;
    let script = ToTask::Start(Box::new(script));
    let mut frames = malformed(&encode(&script).unwrap());
    frames.extend([
        Frame::message("no standard streams", &script, 0),
        Frame::message("two of them", &script, 2),
        Frame::message("four of them", &script, 4),
        Frame::message("a root's message", &ToRoot::Bear, 1),
    ]);
    let helper = Helper::start();
    for frame in frames {
        let (_id, root) = helper.fork();
        let (task, theirs) = stdio_protocol::channel::pair().unwrap();
        send(&root, &ToRoot::Bear, &[theirs.as_fd()]);
        drop(theirs);
        let probe = frame.send(&task);
        assert_eq!(next::<FromTask>(&task), None, "{}", frame.name);
        match next(&root) {
            Some(FromRoot::Exited { exit, .. }) => {
                assert_eq!(exit, Exit::Status(1), "{}", frame.name);
            }
            other => panic!("{}: {other:?}", frame.name),
        }
        probe.closed_everywhere();
    }
    helper.serves();
}

#[test]
fn a_supervisor_ends_when_it_is_to_bear_a_child_without_its_socket() {
    let helper = Helper::start();
    for fds in [0, 2] {
        let frame = Frame::message("a child", &ToRoot::Bear, fds);
        let (id, root) = helper.fork();
        let supervisor = helper.supervisor();
        let mut probe = None;
        ends_with_2(&helper, supervisor, &frame, || {
            probe = Some(frame.send(&root));
        });
        helper.reports(id);
        probe.unwrap().closed_everywhere();
    }
}

/// Asking for the end takes no descriptor. It is the only message that a supervisor might take
/// one with and still work.
#[test]
fn a_supervisor_refuses_descriptors_that_mean_nothing() {
    let helper = Helper::start();
    let program = helper.run(sleep());
    program.started();
    let supervisor = helper.supervisor();
    let message = terminate(Signal::SIGTERM, process::DEADLINE);
    let frame = Frame::message("terminate with descriptors", &message, 2);
    let mut probe = None;
    ends_with_2(&helper, supervisor, &frame, || {
        probe = Some(frame.send(&program.root));
    });
    program.ended_silently();
    helper.reports(program.id);
    probe.unwrap().closed_everywhere();
}

#[test]
fn a_supervisor_without_a_program_refuses_the_same() {
    let start = ToRoot::Start(Box::new(sleep()));
    let mut frames = malformed(&encode(&start).unwrap());
    frames.extend([
        Frame::message("start without descriptors", &start, 0),
        Frame::message("start with three descriptors", &start, 3),
        Frame::message("start with five descriptors", &start, 5),
        Frame::message("a launcher's message", &ToLauncher::Kill { id: 3 }, 0),
    ]);
    let helper = Helper::start();
    for frame in frames {
        let (id, root) = helper.fork();
        let supervisor = helper.supervisor();
        let mut probe = None;
        ends_with_2(&helper, supervisor, &frame, || {
            probe = Some(frame.send(&root));
        });
        assert_eq!(next::<()>(&root), None, "{}", frame.name);
        helper.reports(id);
        probe.unwrap().closed_everywhere();
    }
    helper.serves();
}

/// Whatever a stopped supervisor finds in its socket, in one go.
#[test]
fn messages_behind_a_malformed_one_are_not_obeyed() {
    let helper = Helper::start();
    let (id, root) = helper.fork();
    let supervisor = helper.supervisor();
    signal(supervisor, Signal::SIGSTOP);
    let connections = Connections::new();
    let start = ToRoot::Start(Box::new(helper.marked(sh("echo obeyed"))));
    send_raw(&root, &[9], &[] as &[BorrowedFd<'_>]).unwrap();
    send(&root, &start, &connections.theirs());
    let program = connections.into_program(id, root);
    signal(supervisor, Signal::SIGCONT);
    helper.reports(id);
    assert_eq!(read_to_end(&program.stdout), "");
    helper.serves();
}
