//! The NIF's part: sockets, pipes and messages in the order in which it sends them.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Once;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::sys::signal::{kill, Signal};
use nix::sys::socket::{sendmsg, shutdown, ControlMessage, MsgFlags, Shutdown};
use nix::sys::statvfs::{statvfs, FsFlags};
use nix::unistd::{geteuid, pipe2, Pid};
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_bytes::ByteBuf;
use stdio_protocol::call::Call;
use stdio_protocol::channel::{self, is_busy, Datagram, Receiver};
use stdio_protocol::message::{
    Escalation, Exec, Exit, FromLauncher, FromRoot, FromTask, Namespaces, Plan, RootId, Script,
    Stage, Start, Step, ToLauncher, ToRoot, ToTask, Usage,
};
use stdio_protocol::value::Limit;
use stdio_protocol::VERSION;

use crate::process::{self, environment_entry, sweep, wait_until, DEADLINE};

/// Another user, with whom root's tests try what an unprivileged one can do.
pub const SOMEBODY: u32 = 54_321;

/// Where every user can reach it; the build directory may be closed to others.
pub struct PublicCopy {
    directory: PathBuf,
    pub file: PathBuf,
}

impl PublicCopy {
    pub fn new(original: impl AsRef<Path>, mode: &str) -> Self {
        let name = format!("stdio-helper-{}-{}", std::process::id(), unique());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let file = directory.join("copy");
        // Not by this process: a fork in another thread would inherit the descriptor, and a file
        // that is open for writing cannot be executed.
        run("cp", &[original.as_ref(), &file]);
        run("chmod", &["755".as_ref(), &directory]);
        run("chmod", &[mode.as_ref(), &file]);
        Self { directory, file }
    }

    /// Root's, and of this group; a change of owner takes the setuid bit away, hence the mode.
    pub fn give_to_group(&self, group: u32, mode: &str) {
        let owner = format!("0:{group}");
        run("chown", &[owner.as_ref(), &self.file]);
        run("chmod", &[mode.as_ref(), &self.file]);
    }

    /// Whether its setuid bit means nothing here.
    pub fn is_nosuid(&self) -> bool {
        let mount = statvfs(&self.file).unwrap();
        mount.flags().contains(FsFlags::ST_NOSUID)
    }
}

fn run(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

impl Drop for PublicCopy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

pub fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Says that a test cannot run here; fails where it has to (`STDIO_MUST_RUN=root,userns`).
#[track_caller]
pub fn excluded(needs: &str, why: &str) {
    let must_run = std::env::var("STDIO_MUST_RUN").unwrap_or_default();
    let required = must_run.split(',').any(|name| name == needs);
    assert!(!required, "must run, but: {why}");
    eprintln!("excluded ({needs}): {why}");
}

pub const HELPER: &str = env!("CARGO_BIN_EXE_stdio-supervise");

/// A launcher with the control socket that the NIF would hold.
pub struct Helper {
    pub process: Child,
    pub control: Option<OwnedFd>,
    pub mark: String,
}

impl Helper {
    /// Started, and greeted.
    #[track_caller]
    pub fn start() -> Self {
        let helper = Self::spawn(|_| {});
        helper.greet();
        helper
    }

    /// Started, nothing said yet.
    #[track_caller]
    pub fn spawn(configure: impl FnOnce(&mut Command)) -> Self {
        Self::spawn_file(HELPER.as_ref(), configure)
    }

    #[track_caller]
    pub fn spawn_file(file: &Path, configure: impl FnOnce(&mut Command)) -> Self {
        let (control, theirs) = channel::pair().unwrap();
        Self::spawn_with(file, theirs, Some(control), configure)
    }

    /// With anything as descriptor 0.
    #[track_caller]
    pub fn spawn_with(
        file: &Path,
        stdin: OwnedFd,
        control: Option<OwnedFd>,
        configure: impl FnOnce(&mut Command),
    ) -> Self {
        raise_descriptor_limit();
        let mark = format!("stdio-test-{}-{}", std::process::id(), unique());
        let mut command = Command::new(file);
        command
            .arg(&mark)
            .env_clear()
            .stdin(stdin)
            .stdout(Stdio::null())
            .process_group(0);
        configure(&mut command);
        let process = command.spawn().unwrap();
        Self {
            process,
            control,
            mark,
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.process.id()).unwrap())
    }

    pub fn control(&self) -> &OwnedFd {
        self.control.as_ref().expect("hung up already")
    }

    #[track_caller]
    pub fn send(&self, message: &ToLauncher, fds: &[BorrowedFd<'_>]) {
        send(self.control(), message, fds);
    }

    #[track_caller]
    pub fn next(&self) -> Option<FromLauncher> {
        next(self.control())
    }

    #[track_caller]
    pub fn greet(&self) {
        self.send(&hello(), &[]);
        match self.next() {
            Some(FromLauncher::Hello { version, uid }) => {
                assert_eq!(version, VERSION.as_bytes());
                let owner = process::status(self.pid(), "Uid");
                assert!(owner.starts_with(&format!("{uid}\t")), "{uid}, {owner}");
            }
            other => panic!("{other:?}"),
        }
    }

    /// A supervisor that has nothing to do yet, and its control socket.
    #[track_caller]
    pub fn fork(&self) -> (RootId, OwnedFd) {
        let id = unique();
        let (root, theirs) = channel::pair().unwrap();
        self.send(&ToLauncher::Fork { id }, &[theirs.as_fd()]);
        (id, root)
    }

    /// As the NIF does it: the start is under way before its supervisor is asked for.
    #[track_caller]
    pub fn run(&self, start: Start) -> Program {
        let id = unique();
        let (root, theirs) = channel::pair().unwrap();
        let program = Program::start(id, root, self.marked(start));
        self.send(&ToLauncher::Fork { id }, &[theirs.as_fd()]);
        program
    }

    /// On a supervisor that is there already.
    #[track_caller]
    pub fn run_on(&self, (id, root): (RootId, OwnedFd), start: Start) -> Program {
        Program::start(id, root, self.marked(start))
    }

    pub fn marked(&self, mut start: Start) -> Start {
        start
            .plan
            .script
            .exec
            .env
            .push(bytes(&environment_entry(&self.mark)));
        start
    }

    /// A program that has said that it is ready, with a tree below it that does not go by itself.
    #[track_caller]
    pub fn run_tree(&self) -> Program {
        let before = process::programs(&self.mark).len();
        let mut program = self.run(tree());
        program.started();
        assert_eq!(program.line(), "ready");
        // Others are on their way to what they will be, or to their end.
        wait_until("the whole tree runs", || {
            let programs = process::programs(&self.mark);
            let sleeping = programs.iter().filter(|pid| process::sleeps(**pid));
            programs.len() == before + TREE_SIZE && sleeping.count() == programs.len()
        });
        program
    }

    /// It still does what it is for.
    #[track_caller]
    pub fn serves(&self) {
        let mut program = self.run(sh("echo served; exit 3"));
        program.started();
        assert_eq!(program.exited(), Exit::Status(3));
        assert_eq!(program.output(), "served\n");
    }

    /// So it does while another program runs, which it leaves alone.
    #[track_caller]
    pub fn serves_next_to(&self, other: &Program) {
        self.serves();
        assert!(!readable(&other.root, Instant::now()), "the other ended");
    }

    /// The launcher reports this root and no other.
    #[track_caller]
    pub fn reports(&self, id: RootId) {
        let next = self.next();
        assert!(
            matches!(next, Some(FromLauncher::Exited { id: ended, .. }) if ended == id),
            "{next:?}"
        );
    }

    pub fn supervisors(&self) -> Vec<Pid> {
        let mut pids = process::children(self.pid());
        pids.retain(|pid| !process::is_zombie(*pid));
        pids
    }

    /// The one that there is.
    #[track_caller]
    pub fn supervisor(&self) -> Pid {
        wait_until("one supervisor", || self.supervisors().len() == 1);
        let pid = self.supervisors()[0];
        wait_until("it is a supervisor", || {
            process::status(pid, "Name") == "Supervise"
        });
        pid
    }

    #[track_caller]
    pub fn exit_status(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the launcher ends", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Ended because of a protocol error, with nothing left behind.
    #[track_caller]
    pub fn refused(&mut self) {
        assert_eq!(self.exit_status().code(), Some(2));
        self.nothing_left();
    }

    #[track_caller]
    pub fn no_tree(&self) {
        wait_until("no program is left", || process::no_programs(&self.mark));
    }

    #[track_caller]
    pub fn nothing_left(&self) {
        wait_until("no process of the helper's is left", || {
            process::nothing_left(&self.mark)
        });
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.control = None;
        let _ = self.process.kill();
        let _ = self.process.wait();
        sweep(&self.mark);
    }
}

/// Everything that a program is connected by, as the NIF holds it.
pub struct Program {
    pub id: RootId,
    pub root: OwnedFd,
    pub task: OwnedFd,
    pub stdin: Option<OwnedFd>,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

impl Program {
    #[track_caller]
    fn start(id: RootId, root: OwnedFd, start: Start) -> Self {
        let connections = Connections::new();
        let fds = connections.theirs();
        let Start { plan, watch } = start;
        if plan.namespaces == Namespaces::default() {
            send(&root, &ToRoot::Bear, &fds[..1]);
            if let Some(watch) = watch {
                send(&root, &ToRoot::Watch(watch), &[]);
            }
            let script = ToTask::Start(Box::new(plan.script));
            send(&connections.task, &script, &fds[1..]);
        } else {
            send(&root, &ToRoot::Start(Box::new(Start { plan, watch })), &fds);
        }
        connections.into_program(id, root)
    }

    /// The pid, once the program runs.
    #[track_caller]
    pub fn started(&self) -> Pid {
        let pid = self.execing();
        assert_eq!(next::<FromTask>(&self.task), None, "after Execing");
        // The kernel closes descriptors in the middle of an exec.
        wait_until("exec is through", || !process::is_in_exec(pid));
        pid
    }

    #[track_caller]
    pub fn execing(&self) -> Pid {
        match next(&self.task) {
            Some(FromTask::Execing { pid }) => Pid::from_raw(pid),
            other => panic!("{other:?}"),
        }
    }

    /// The failure of a start which did not come to exec.
    #[track_caller]
    pub fn failed(&self) -> (Stage, Errno) {
        let failure = match next(&self.task) {
            Some(FromTask::Execing { .. }) => next(&self.task),
            other => other,
        };
        match failure {
            Some(FromTask::Failed { stage, errno }) => {
                assert_eq!(next::<FromTask>(&self.task), None, "after Failed");
                (stage, Errno::from_raw(errno))
            }
            other => panic!("{other:?}"),
        }
    }

    /// How it ended. The supervisor is silent then, and ends: there is to be no other program.
    #[track_caller]
    pub fn exited(&self) -> Exit {
        self.exited_with_usage().0
    }

    #[track_caller]
    pub fn exited_with_usage(&self) -> (Exit, Usage) {
        let ended = self.reported();
        shutdown(self.root.as_raw_fd(), Shutdown::Write).unwrap();
        assert_eq!(next::<FromRoot>(&self.root), None, "after Exited");
        ended
    }

    /// How it ended. Its supervisor says whether it can have another one.
    #[track_caller]
    pub fn reported(&self) -> (Exit, Usage) {
        match next(&self.root) {
            Some(FromRoot::Exited {
                exit,
                usage,
                survivors: 0,
                ..
            }) => (exit, usage),
            other => panic!("{other:?}"),
        }
    }

    /// The supervisor has ended without a report.
    #[track_caller]
    pub fn ended_silently(&self) {
        assert_eq!(next::<FromRoot>(&self.root), None);
    }

    /// Nothing is said on either socket for a while.
    #[track_caller]
    pub fn says_nothing_for(&self, time: Duration) {
        let give_up = Instant::now() + time;
        assert!(!readable(&self.root, give_up), "the supervisor spoke");
    }

    #[track_caller]
    pub fn terminate(&self, signal: Signal, grace: Duration) {
        send(&self.root, &terminate(signal, grace), &[]);
    }

    /// One line of its stdout, without the line feed.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let byte = read(&self.stdout, 1);
            assert!(!byte.is_empty(), "the output ended after {line:?}");
            line.extend(byte);
        }
        line.pop();
        String::from_utf8(line).unwrap()
    }

    /// What is left of its stdout, to the end.
    #[track_caller]
    pub fn output(&mut self) -> String {
        read_to_end(&self.stdout)
    }
}

/// Both ends of all that a program needs.
pub struct Connections {
    pub task: OwnedFd,
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    theirs: [OwnedFd; 4],
}

impl Connections {
    pub fn new() -> Self {
        let (task, their_task) = channel::pair().unwrap();
        let (their_stdin, stdin) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (stdout, their_stdout) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (stderr, their_stderr) = pipe2(OFlag::O_CLOEXEC).unwrap();
        if is_root() {
            // As in the NIF: a program whose uid changes may open them anew.
            for end in [&their_stdin, &their_stdout, &their_stderr] {
                let all = nix::sys::stat::Mode::from_bits_truncate(0o666);
                nix::sys::stat::fchmod(end, all).unwrap();
            }
        }
        Self {
            task,
            stdin,
            stdout,
            stderr,
            theirs: [their_task, their_stdin, their_stdout, their_stderr],
        }
    }

    /// In the order of the start message.
    pub fn theirs(&self) -> [BorrowedFd<'_>; 4] {
        let [task, stdin, stdout, stderr] = &self.theirs;
        [task.as_fd(), stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
    }

    pub fn into_program(self, id: RootId, root: OwnedFd) -> Program {
        Program {
            id,
            root,
            task: self.task,
            stdin: Some(self.stdin),
            stdout: self.stdout,
            stderr: self.stderr,
        }
    }
}

// ---- messages --------------------------------------------------------------------------------

pub const NOFILE: Limit = Limit {
    cur: 1000,
    max: 1024,
};

pub fn hello() -> ToLauncher {
    ToLauncher::Hello {
        version: VERSION.as_bytes().to_vec().into(),
        nofile: NOFILE,
    }
}

pub fn terminate(signal: Signal, grace: Duration) -> ToRoot {
    ToRoot::Terminate(Escalation {
        signal: signal as i32,
        grace_ms: u64::try_from(grace.as_millis()).unwrap(),
    })
}

pub fn bytes(text: &str) -> ByteBuf {
    ByteBuf::from(text.as_bytes().to_vec())
}

/// A start of this program and nothing else.
pub fn program(argv: &[&str]) -> Start {
    Start {
        plan: Plan {
            namespaces: Namespaces::default(),
            script: Script {
                steps: vec![],
                exec: Exec {
                    file: bytes(argv[0]),
                    argv: argv.iter().copied().map(bytes).collect(),
                    env: vec![bytes("PATH=/usr/bin:/bin:/usr/sbin:/sbin")],
                    search: true,
                },
            },
        },
        watch: None,
    }
}

pub fn sh(script: &str) -> Start {
    program(&["sh", "-c", script])
}

pub fn sleep() -> Start {
    program(&["sleep", "1000"])
}

/// Processes of [`tree`], its leader included.
pub const TREE_SIZE: usize = 6;

/// Children, sessions of their own and orphans, none of which goes when asked politely.
pub fn tree() -> Start {
    sh("trap '' TERM HUP INT
        sleep 1000 &
        setsid sleep 1000 &
        (setsid sh -c 'sleep 1000 & exec sleep 1000' &)
        ((sleep 1000 &) &)
        echo ready
        exec sleep 1000")
}

pub fn step(call: Call) -> Step {
    Step {
        call,
        ignore: vec![],
        errexit: true,
    }
}

pub fn with_steps(mut start: Start, steps: impl IntoIterator<Item = Step>) -> Start {
    start.plan.script.steps.extend(steps);
    start
}

// ---- sockets and pipes -----------------------------------------------------------------------

/// Many programs at once need more than the usual soft limit.
fn raise_descriptor_limit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    });
}

/// Sends, later if the socket is full now.
#[track_caller]
pub fn send<T: Serialize>(socket: &OwnedFd, message: &T, fds: &[BorrowedFd<'_>]) {
    let datagram = Datagram::new(message).unwrap();
    wait_until("there is room to send", || {
        match datagram.send(socket.as_fd(), fds) {
            Ok(()) => true,
            Err(error) if is_busy(error.errno()) => false,
            Err(error) => panic!("{error}"),
        }
    });
}

/// What sendmsg(2) would take, well formed or not.
#[track_caller]
pub fn send_raw(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights };
    let iov = [std::io::IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &iov, rights, flags, None).map(drop)
}

/// The next message; `None` at the end of the connection.
#[track_caller]
pub fn next<T: DeserializeOwned>(socket: &OwnedFd) -> Option<T> {
    let give_up = Instant::now() + DEADLINE;
    let mut receiver = Receiver::without_fds();
    loop {
        match receiver.recv::<T>(socket.as_fd()) {
            Ok(received) => return received.map(|received| received.message),
            Err(error) if error.errno() == Errno::EAGAIN => {}
            Err(error) => panic!("{error}"),
        }
        assert!(readable(socket, give_up), "no message in time");
    }
}

/// Whether there is something to read, or the end, before the time has come.
pub fn readable(fd: &OwnedFd, give_up: Instant) -> bool {
    loop {
        let left = give_up.saturating_duration_since(Instant::now());
        let millis = left.as_micros().div_ceil(1000);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(Errno::EINTR) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
}

/// At most `most` bytes; none at the end.
#[track_caller]
fn read(fd: &OwnedFd, most: usize) -> Vec<u8> {
    assert!(readable(fd, Instant::now() + DEADLINE), "no output in time");
    let mut buffer = vec![0; most];
    let length = nix::unistd::read(fd, &mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

#[track_caller]
pub fn read_to_end(fd: &OwnedFd) -> String {
    let mut all = Vec::new();
    loop {
        let chunk = read(fd, 1 << 16);
        if chunk.is_empty() {
            return String::from_utf8(all).unwrap();
        }
        all.extend(chunk);
    }
}

/// The write end of a pipe that was given away, and how to see that every copy of it is closed.
pub struct Probe {
    read: OwnedFd,
    write: Option<OwnedFd>,
}

impl Probe {
    pub fn new() -> Self {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        Self {
            read,
            write: Some(write),
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.write.as_ref().expect("given away").as_fd()
    }

    /// Nobody else has it any more.
    #[track_caller]
    pub fn closed_everywhere(mut self) {
        self.write = None;
        let mut read = File::from(self.read);
        wait_until("every copy of the descriptor is closed", || {
            match read.read(&mut [0]) {
                Ok(length) => length == 0,
                Err(error) if error.kind() == ErrorKind::WouldBlock => false,
                Err(error) => panic!("{error}"),
            }
        });
    }
}

#[track_caller]
pub fn signal(pid: Pid, signal: Signal) {
    kill(pid, signal).unwrap();
}
