//! Each test runs its calls in a forked child, as a task would: what they change ends with it.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::{
    alarm, fork, geteuid, getpid, pipe, setgroups, setresgid, setresuid, ForkResult,
};
use nix::unistd::{Gid, Uid};
use stdio_protocol::call::Call;
use stdio_protocol::value::Value;

use super::{apply, Context};

const SOMEBODY: u32 = 54_321;

/// Runs `test` in a child; what it panics with is this test's panic.
#[track_caller]
fn in_child(test: impl FnOnce(&mut Task)) {
    // Held while this thread panics too: a child that is forked meanwhile would inherit the
    // standard library's locks.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut reader, writer) = pipe().map(|(r, w)| (std::fs::File::from(r), w)).unwrap();
    // SAFETY: the C library keeps its allocator usable in the child of a threaded process; the
    // child takes no other lock that a thread of the parent could hold, and ends by _exit.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let fd = writer.as_raw_fd();
            alarm::set(60);
            std::panic::set_hook(Box::new(move |info| {
                let text = info.to_string();
                // SAFETY: pointer and length describe `text`.
                unsafe { libc::write(fd, text.as_ptr().cast(), text.len()) };
            }));
            let mut task = Task(Context {
                protected: vec![fd],
                ..Context::default()
            });
            let passed = catch_unwind(AssertUnwindSafe(|| test(&mut task))).is_ok();
            crate::sys::exit(i32::from(!passed));
        }
    };
    drop(writer);
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    let status = waitpid(child, None).unwrap();
    assert_eq!(status, WaitStatus::Exited(child, 0), "{said}");
}

/// The same as a user without privilege.
#[track_caller]
fn unprivileged(test: impl FnOnce(&mut Task)) {
    in_child(|task| {
        if geteuid().is_root() {
            let (uid, gid) = (Uid::from_raw(SOMEBODY), Gid::from_raw(SOMEBODY));
            setgroups(&[]).unwrap();
            setresgid(gid, gid, gid).unwrap();
            setresuid(uid, uid, uid).unwrap();
        }
        test(task);
    });
}

/// Root's tests say so where they cannot run, and fail where they have to.
#[track_caller]
fn as_root(test: impl FnOnce(&mut Task)) {
    if !geteuid().is_root() {
        let must_run = std::env::var("STDIO_MUST_RUN").unwrap_or_default();
        assert!(!must_run.split(',').any(|name| name == "root"), "not root");
        eprintln!("excluded (root): calls that need privilege");
        return;
    }
    in_child(test);
}

struct Task(Context);

impl Task {
    #[track_caller]
    fn call<const N: usize>(&mut self, name: &str, arguments: [Value; N]) -> Result<Value, Errno> {
        let call = Call::decode(name, arguments.to_vec()).unwrap();
        apply(&call, &mut self.0)
    }

    #[track_caller]
    fn gives<const N: usize>(&mut self, name: &str, arguments: [Value; N], expected: Value) {
        assert_eq!(self.call(name, arguments), Ok(expected), "{name}");
    }

    #[track_caller]
    fn succeeds<const N: usize>(&mut self, name: &str, arguments: [Value; N]) {
        self.gives(name, arguments, atom("ok"));
    }

    #[track_caller]
    fn fails<const N: usize>(&mut self, name: &str, arguments: [Value; N], errno: Errno) {
        assert_eq!(self.call(name, arguments), Err(errno), "{name}");
    }

    /// The number in `{:ok, n}`.
    #[track_caller]
    fn number<const N: usize>(&mut self, name: &str, arguments: [Value; N]) -> i128 {
        match self.call(name, arguments).unwrap() {
            Value::Tuple(items) => match items.as_slice() {
                [_, Value::Int(number)] => *number,
                other => panic!("{name}: {other:?}"),
            },
            other => panic!("{name}: {other:?}"),
        }
    }
}

fn atom(name: &str) -> Value {
    Value::atom(name)
}

fn int(number: impl Into<i128>) -> Value {
    Value::Int(number.into())
}

fn bytes(bytes: impl AsRef<[u8]>) -> Value {
    Value::Bytes(bytes.as_ref().to_vec())
}

fn list<const N: usize>(items: [Value; N]) -> Value {
    Value::List(items.to_vec())
}

fn ok<const N: usize>(items: [Value; N]) -> Value {
    Value::ok_with(items)
}

fn tuple<const N: usize>(items: [Value; N]) -> Value {
    Value::Tuple(items.to_vec())
}

fn pointer(value: Value) -> Value {
    tuple([atom("ptr"), value])
}

fn limit(cur: u64, max: u64) -> Value {
    Value::Map(vec![(atom("cur"), int(cur)), (atom("max"), int(max))])
}

/// A directory that everybody may write to, gone with the value.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("stdio-call-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&path, everybody).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> Value {
        bytes(self.0.join(name).as_os_str().as_encoded_bytes())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

// ---- process -----------------------------------------------------------------------------------

#[test]
fn ids_of_an_unprivileged_task() {
    let me = if geteuid().is_root() {
        SOMEBODY
    } else {
        geteuid().as_raw()
    };
    unprivileged(|task| {
        task.gives("getuid", [], int(me));
        task.gives("getresuid", [], ok([int(me), int(me), int(me)]));
        task.fails("setuid", [int(0)], Errno::EPERM);
        task.fails("setresuid", [int(0), int(0), int(0)], Errno::EPERM);
        task.fails("setgroups", [list([int(1)])], Errno::EPERM);
        // Nothing to drop.
        task.succeeds("setugid", [int(1), int(1), list([])]);
        task.gives("getuid", [], int(me));
        task.fails("chroot", [bytes("/")], Errno::EPERM);
        task.fails("sethostname", [bytes("x")], Errno::EPERM);
        task.fails("umount", [bytes("/proc")], Errno::EPERM);
    });
}

#[test]
fn ids_of_root() {
    as_root(|task| {
        task.succeeds("setgroups", [list([int(1), int(2), int(200)])]);
        task.gives("getgroups", [], ok([list([int(1), int(2), int(200)])]));
        task.succeeds("setresgid", [int(5), int(6), int(u32::MAX)]);
        task.gives("getresgid", [], ok([int(5), int(6), int(0)]));
        task.gives("getgid", [], int(5));
        task.succeeds("setugid", [int(7), int(8), list([int(9)])]);
        task.gives("getresuid", [], ok([int(7), int(7), int(7)]));
        task.gives("getgroups", [], ok([list([int(9)])]));
        task.fails("setuid", [int(0)], Errno::EPERM);
    });
}

#[test]
fn sessions_and_groups() {
    in_child(|task| {
        let pid = int(getpid().as_raw());
        task.gives("getpid", [], pid.clone());
        task.succeeds("setpgid", [int(0), int(0)]);
        task.gives("getpgrp", [], pid.clone());
        // A group's leader cannot start a session.
        task.fails("setsid", [], Errno::EPERM);
        task.fails("getsid", [int(i32::MAX)], Errno::ESRCH);
    });
    in_child(|task| {
        let pid = int(getpid().as_raw());
        task.gives("setsid", [], ok([pid.clone()]));
        task.gives("getsid", [int(0)], ok([pid]));
    });
}

#[test]
fn limits_and_priority() {
    unprivileged(|task| {
        let nofile = || atom("RLIMIT_nofile");
        // What whoever runs the tests has left open.
        for fd in (3..4096).filter(|fd| !task.0.protected.contains(fd)) {
            let _ = nix::unistd::close(fd);
        }
        task.succeeds("setrlimit", [nofile(), limit(100, 200)]);
        task.gives("getrlimit", [nofile()], ok([limit(100, 200)]));
        let more = limit(100, 201);
        task.fails("setrlimit", [nofile(), more], Errno::EPERM);
        let reversed = limit(200, 100);
        task.fails("setrlimit", [nofile(), reversed], Errno::EINVAL);
        // 0, 1 and 2 are in use; the pipe of this test is not a descriptor of the task's.
        task.fails("setrlimit", [nofile(), limit(2, 200)], Errno::EINVAL);
        task.fails("getrlimit", [int(-1)], Errno::EINVAL);
        task.fails("getrlimit", [int(16)], Errno::EINVAL);
        let process = || atom("prio_process");
        task.succeeds("setpriority", [process(), int(0), int(3)]);
        task.gives("getpriority", [process(), int(0)], ok([int(3)]));
        let nobody = int(i32::MAX);
        task.fails("getpriority", [process(), nobody], Errno::ESRCH);
    });
    as_root(|task| {
        // What the C library's convention takes for an error.
        let process = || atom("prio_process");
        for nice in [-1, -20, 0, 19] {
            task.succeeds("setpriority", [process(), int(0), int(nice)]);
            task.gives("getpriority", [process(), int(0)], ok([int(nice)]));
        }
        let core = || atom("rlimit_core");
        task.succeeds("setrlimit", [core(), limit(u64::MAX, u64::MAX)]);
        task.gives("getrlimit", [core()], ok([limit(u64::MAX, u64::MAX)]));
    });
}

#[test]
fn environment() {
    in_child(|task| {
        task.0.environ = vec![b"A=1".to_vec(), b"AB=2".to_vec(), b"odd".to_vec()];
        task.gives("getenv", [bytes("A")], bytes("1"));
        task.gives("getenv", [bytes("B")], atom("false"));
        task.gives("getenv", [bytes("odd")], atom("false"));
        task.succeeds("setenv", [bytes("A"), bytes("x=y"), int(0)]);
        task.gives("getenv", [bytes("A")], bytes("1"));
        task.succeeds("setenv", [bytes("A"), bytes("x=y"), int(1)]);
        task.succeeds("setenv", [bytes("C"), bytes(""), int(0)]);
        let expected = list([bytes("A=x=y"), bytes("AB=2"), bytes("odd"), bytes("C=")]);
        task.gives("environ", [], expected);
        task.succeeds("unsetenv", [bytes("AB")]);
        task.gives("getenv", [bytes("AB")], atom("false"));
        for name in ["", "a=b"] {
            task.fails("setenv", [bytes(name), bytes("x"), int(1)], Errno::EINVAL);
            task.fails("unsetenv", [bytes(name)], Errno::EINVAL);
            task.gives("getenv", [bytes(name)], atom("false"));
        }
        task.succeeds("clearenv", []);
        task.gives("environ", [], list([]));
    });
}

#[test]
fn titles() {
    in_child(|task| {
        let shown = || std::fs::read("/proc/self/cmdline").unwrap();
        let original = shown();
        task.succeeds("setproctitle", [bytes("a title")]);
        let now = shown();
        assert!(now.starts_with(b"a title"), "{now:?}");
        assert!(now[7..].iter().all(|byte| *byte == 0), "{now:?}");
        // Longer than the arguments: it goes on where the environment was.
        let long = "x".repeat(original.len() + 5);
        task.succeeds("setproctitle", [bytes(&long)]);
        assert!(shown().starts_with(b"xxx"));
        task.succeeds("setproctitle", [bytes("y".repeat(1 << 20))]);
        task.succeeds("setproctitle", [bytes("")]);
        assert_eq!(shown(), original);
    });
}

#[test]
fn children_and_signals() {
    in_child(|task| {
        let child = |act: fn()| {
            // SAFETY: this process has one thread.
            match unsafe { fork() }.unwrap() {
                ForkResult::Parent { child } => int(child.as_raw()),
                ForkResult::Child => {
                    act();
                    crate::sys::exit(7)
                }
            }
        };
        fn sleep() {
            std::thread::sleep(std::time::Duration::from_secs(100));
        }
        let none = || int(0);
        let exit = child(|| {});
        let expected = list([tuple([atom("exit_status"), int(7)])]);
        let expected = ok([exit.clone(), int(7 << 8), expected]);
        task.gives("waitpid", [exit.clone(), none()], expected);
        task.fails("waitpid", [exit, none()], Errno::ECHILD);

        let sleeper = child(sleep);
        let nothing = ok([int(0), int(0), list([])]);
        let flags = list([atom("wnohang")]);
        task.gives("waitpid", [sleeper.clone(), flags], nothing);
        task.succeeds("kill", [sleeper.clone(), int(0)]);
        task.succeeds("kill", [sleeper.clone(), atom("SIGSTOP")]);
        let flags = || list([atom("wuntraced"), atom("WCONTINUED")]);
        let stopped = list([tuple([atom("stopsig"), atom("sigstop")])]);
        let status = (libc::SIGSTOP << 8) | 0x7f;
        let expected = ok([sleeper.clone(), int(status), stopped]);
        task.gives("waitpid", [sleeper.clone(), flags()], expected);
        task.succeeds("kill", [sleeper.clone(), atom("sigcont")]);
        let expected = ok([sleeper.clone(), int(0xffff), list([atom("continued")])]);
        task.gives("waitpid", [sleeper.clone(), flags()], expected);
        task.succeeds("kill", [sleeper.clone(), int(9)]);
        let killed = list([tuple([atom("termsig"), atom("sigkill")])]);
        let expected = ok([sleeper.clone(), int(9), killed]);
        task.gives("waitpid", [int(-1), none()], expected);
        task.fails("kill", [sleeper, int(0)], Errno::ESRCH);

        let real_time = child(sleep);
        task.succeeds("kill", [real_time.clone(), int(40)]);
        let killed = list([tuple([atom("termsig"), atom("unknown")])]);
        let expected = ok([real_time.clone(), int(40), killed]);
        task.gives("waitpid", [real_time, none()], expected);
    });
}

// ---- isolation ---------------------------------------------------------------------------------

#[test]
fn prctl_echoes_its_arguments() {
    unprivileged(|task| {
        let prctl = |option, a2| [atom(option), a2, int(0), int(0), int(0)];
        let name = bytes("hello");
        let expected = ok([int(0), name.clone(), int(0), int(0), int(0)]);
        task.gives("prctl", prctl("PR_SET_NAME", name), expected);
        let expected = bytes(b"hello\0\0\0\0\0\0\0\0\0\0\0");
        let expected = ok([int(0), expected, int(0), int(0), int(0)]);
        task.gives("prctl", prctl("pr_get_name", bytes([0; 16])), expected);
        // The same through a pointer's target, which is no name of a thread.
        let shape = list([bytes([1; 16]), pointer(int(3)), pointer(bytes("abc"))]);
        let expected = list([
            bytes(b"hello\0\0\0\0\0\0\0\0\0\0\0"),
            pointer(bytes([0; 3])),
            pointer(bytes("abc")),
        ]);
        let expected = ok([int(0), expected, int(0), int(0), int(0)]);
        task.gives("prctl", prctl("pr_get_name", shape), expected);
        let failed = prctl("pr_set_name", int(-1));
        task.fails("prctl", failed, Errno::EFAULT);
        let failed = [int(-1), int(u64::MAX), list([]), int(0), int(0)];
        task.fails("prctl", failed, Errno::EINVAL);
    });
}

/// The kernel writes sixteen bytes; there is room for eight.
#[test]
fn memory_that_is_too_small_is_a_fault_and_no_ruin() {
    unprivileged(|task| {
        for room in 0..8 {
            let arguments = [
                atom("pr_get_name"),
                bytes(vec![0; room]),
                int(0),
                int(0),
                int(0),
            ];
            task.fails("prctl", arguments, Errno::EFAULT);
        }
    });
}

#[test]
fn restrictions_take_effect() {
    unprivileged(|task| {
        let status = |key: &str| {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with(key)).unwrap();
            line.rsplit('\t').next().unwrap().to_owned()
        };
        task.succeeds("no_new_privs", []);
        assert_eq!(status("NoNewPrivs"), "1");
        task.succeeds("set_pdeathsig", [int(9)]);

        // getppid(2) fails with ENOTTY, everything else is allowed.
        let instruction = |code: u16, jt: u8, jf: u8, k: u32| {
            let mut bytes = code.to_ne_bytes().to_vec();
            bytes.extend([jt, jf]);
            bytes.extend(k.to_ne_bytes());
            bytes
        };
        let number = u32::try_from(libc::SYS_getppid).unwrap();
        let errno = libc::SECCOMP_RET_ERRNO | libc::ENOTTY.unsigned_abs();
        let program = [
            instruction(0x20, 0, 0, 0),
            instruction(0x15, 0, 1, number),
            instruction(0x06, 0, 0, errno),
            instruction(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
        ]
        .concat();
        let padding = bytes([0; size_of::<usize>() - 2]);
        let filter = |program| list([bytes(4_u16.to_ne_bytes()), padding.clone(), program]);
        let set = || atom("seccomp_set_mode_filter");
        let null = filter(pointer(int(0)));
        task.fails("seccomp", [set(), int(0), null], Errno::EINVAL);
        let arguments = [set(), list([]), filter(pointer(bytes(program)))];
        task.succeeds("seccomp", arguments);
        assert_eq!(status("Seccomp:"), "2");
        // SAFETY: no precondition.
        let result = unsafe { libc::syscall(libc::SYS_getppid) };
        assert_eq!(Errno::result(result), Err(Errno::ENOTTY));
    });
}

#[test]
fn ptrace_reads_another_process() {
    in_child(|task| {
        static WORD: i64 = 0x0123_4567_89ab_cdef;
        static ALL_ONES: i64 = -1;
        // SAFETY: this process has one thread.
        let child = match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => int(child.as_raw()),
            ForkResult::Child => loop {
                std::thread::sleep(std::time::Duration::from_secs(100));
            },
        };
        let ptrace = |request, addr| [atom(request), child.clone(), addr, int(0)];
        let nothing = || bytes("");
        let attached = ok([int(0), nothing(), nothing()]);
        task.gives("ptrace", ptrace("PTRACE_ATTACH", int(0)), attached);
        task.call("waitpid", [child.clone(), int(0)]).unwrap();
        if cfg!(target_pointer_width = "64") {
            for word in [&WORD, &ALL_ONES] {
                let address = std::ptr::from_ref(word).expose_provenance();
                let address = int(u64::try_from(address).unwrap());
                // The raw word: the C library's ptrace gives it as its result.
                let expected = ok([int(*word), nothing(), nothing()]);
                task.gives("ptrace", ptrace("ptrace_peekdata", address), expected);
            }
        }
        task.fails("ptrace", ptrace("ptrace_peekdata", int(8)), Errno::EIO);
        task.succeeds("kill", [child.clone(), int(9)]);
        task.call("waitpid", [child.clone(), int(0)]).unwrap();
    });
}

#[test]
fn namespaces_and_mounts() {
    let scratch = Scratch::new("mounts");
    as_root(|task| {
        let here = scratch.path("");
        let flags = list([atom("clone_newns"), atom("clone_newuts")]);
        let before = std::fs::read_link("/proc/self/ns/uts").unwrap();
        let outside = task.number("open", [bytes("/proc/self/ns/uts"), int(0)]);
        if task.call("unshare", [flags]) == Err(Errno::EPERM) {
            eprintln!("excluded (root): no privilege for namespaces");
            return;
        }
        assert_ne!(std::fs::read_link("/proc/self/ns/uts").unwrap(), before);
        task.succeeds("sethostname", [bytes("stdio-test")]);
        task.gives("gethostname", [], ok([bytes("stdio-test")]));
        let long = bytes("x".repeat(65));
        task.fails("sethostname", [long], Errno::EINVAL);
        task.succeeds("sethostname", [bytes("")]);
        task.gives("gethostname", [], ok([bytes("")]));

        let nothing = || list([]);
        let private = list([atom("ms_rec"), atom("ms_private")]);
        task.succeeds(
            "mount",
            [nothing(), bytes("/"), nothing(), private, nothing()],
        );
        let flags = list([atom("nosuid"), atom("MS_NODEV")]);
        let options = bytes("size=64k,mode=700");
        let tmpfs = [
            bytes("none"),
            here.clone(),
            bytes("tmpfs"),
            flags,
            options,
            nothing(),
        ];
        task.succeeds("mount", tmpfs);
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts
            .lines()
            .find(|line| line.contains("stdio-call-mounts"));
        let line = line.unwrap();
        for option in ["nosuid", "nodev", "size=64k", "mode=700"] {
            assert!(line.contains(option), "{line}");
        }
        task.succeeds("mkdir", [scratch.path("old"), int(0o700)]);
        let target = scratch.path("old");
        let failed = [
            bytes("none"),
            target.clone(),
            bytes("nofs"),
            int(0),
            nothing(),
        ];
        task.fails("mount", failed, Errno::ENODEV);
        task.fails("umount", [target.clone()], Errno::EINVAL);
        task.succeeds("chdir", [here.clone()]);
        task.succeeds("pivot_root", [bytes("."), bytes("old")]);
        task.succeeds("umount2", [bytes("old"), list([atom("mnt_detach")])]);
        task.succeeds("chdir", [bytes("/")]);
        task.gives(
            "readdir",
            [bytes("/")],
            ok([list([bytes("."), bytes(".."), bytes("old")])]),
        );
        task.succeeds("chroot", [bytes("old")]);

        task.fails(
            "setns",
            [int(outside), list([atom("clone_newns")])],
            Errno::EINVAL,
        );
        task.succeeds("setns", [int(outside)]);
        task.fails("setns", [int(-1)], Errno::EBADF);
    });
}

// ---- files -------------------------------------------------------------------------------------

#[test]
fn files() {
    let scratch = Scratch::new("files");
    unprivileged(|task| {
        let file = scratch.path("file");
        let flags = list([atom("o_rdwr"), atom("O_CREAT"), atom("o_excl")]);
        let create = [file.clone(), flags, int(0o640)];
        let fd = task.number("open", create.clone());
        let fd = || int(fd);
        task.fails("open", create, Errno::EEXIST);
        let enoent = [scratch.path("none"), list([])];
        task.fails("open", enoent, Errno::ENOENT);
        // The program does not inherit it.
        task.gives(
            "fcntl",
            [fd(), atom("f_getfd")],
            ok([int(libc::FD_CLOEXEC)]),
        );
        task.gives("write", [fd(), bytes("0123456789")], ok([int(10)]));
        task.gives("read", [fd(), int(5)], ok([bytes("")]));
        task.succeeds("lseek", [fd(), int(-7), int(2)]);
        task.gives("read", [fd(), int(5)], ok([bytes("34567")]));
        task.fails("lseek", [fd(), int(-1), int(0)], Errno::EINVAL);
        let many = bytes(vec![0; 70_000]);
        task.gives("write", [fd(), many], ok([int(65_536)]));
        task.succeeds("lseek", [fd(), int(0), int(0)]);
        let Ok(Value::Tuple(items)) = task.call("read", [fd(), int(u64::MAX)]) else {
            panic!("read")
        };
        assert!(matches!(&items[1], Value::Bytes(bytes) if bytes.len() == 65_536));

        let mode = |name: &str| {
            use std::os::unix::fs::MetadataExt;
            std::fs::symlink_metadata(scratch.0.join(name))
                .unwrap()
                .mode()
        };
        task.succeeds("chmod", [file.clone(), int(0o604)]);
        assert_eq!(mode("file"), libc::S_IFREG | 0o604);
        let unchanged = || int(u32::MAX);
        task.succeeds("chown", [file.clone(), unchanged(), unchanged()]);
        task.fails("chown", [file.clone(), int(0), unchanged()], Errno::EPERM);
        task.succeeds("link", [file.clone(), scratch.path("second")]);
        task.succeeds("symlink", [bytes("file"), scratch.path("third")]);
        assert_eq!(mode("third") & libc::S_IFMT, libc::S_IFLNK);
        task.succeeds("mkfifo", [scratch.path("fifo"), int(0o600)]);
        assert_eq!(mode("fifo"), libc::S_IFIFO | 0o600);
        task.succeeds("mkdir", [scratch.path("dir"), int(0o700)]);
        assert_eq!(mode("dir"), libc::S_IFDIR | 0o700);
        let Ok(Value::Tuple(items)) = task.call("readdir", [scratch.path("")]) else {
            panic!("readdir")
        };
        let [_, Value::List(names)] = items.as_slice() else {
            panic!("{items:?}")
        };
        for name in [".", "..", "file", "second", "third", "fifo", "dir"] {
            assert!(names.contains(&bytes(name)), "{name}");
        }
        assert_eq!(names.len(), 7);
        task.fails("readdir", [file.clone()], Errno::ENOTDIR);
        task.fails("rmdir", [file.clone()], Errno::ENOTDIR);
        task.succeeds("rmdir", [scratch.path("dir")]);
        task.succeeds("unlink", [file.clone()]);
        task.fails("unlink", [file], Errno::ENOENT);

        task.succeeds("chdir", [scratch.path("")]);
        let cwd = scratch.0.as_os_str().as_encoded_bytes();
        task.gives("getcwd", [], ok([bytes(cwd)]));
    });
}

#[test]
fn a_path_may_be_too_long() {
    in_child(|task| {
        for length in [4096, 5000, 1 << 20] {
            let path = || bytes("x/".repeat(length / 2));
            task.fails("chdir", [path()], Errno::ENAMETOOLONG);
            task.fails("open", [path(), int(0)], Errno::ENAMETOOLONG);
            task.fails("rmdir", [path()], Errno::ENAMETOOLONG);
            task.fails("readdir", [path()], Errno::ENAMETOOLONG);
            task.fails("symlink", [path(), bytes("x")], Errno::ENAMETOOLONG);
        }
        task.fails("chdir", [bytes("x".repeat(256))], Errno::ENAMETOOLONG);
    });
}

#[test]
fn the_helpers_descriptors_do_not_exist() {
    in_child(|task| {
        let fd = task.0.protected[0];
        let fd = || int(fd);
        let now = || Value::Map(vec![(atom("sec"), int(0)), (atom("usec"), int(0))]);
        task.fails("close", [fd()], Errno::EBADF);
        task.fails("read", [fd(), int(1)], Errno::EBADF);
        task.fails("write", [fd(), bytes("x")], Errno::EBADF);
        task.fails("lseek", [fd(), int(0), int(0)], Errno::EBADF);
        task.fails("fcntl", [fd(), atom("f_setfd"), int(0)], Errno::EBADF);
        task.fails("setns", [fd()], Errno::EBADF);
        task.fails("connect", [fd(), list([])], Errno::EBADF);
        task.fails(
            "ioctl",
            [fd(), atom("fionread"), bytes([0; 4])],
            Errno::EBADF,
        );
        let select = [list([]), list([fd()]), list([]), now()];
        task.fails("select", select, Errno::EBADF);

        task.succeeds("close", [int(0)]);
        task.fails("close", [int(0)], Errno::EBADF);
        let null = [bytes("/dev/null"), list([atom("o_rdonly")])];
        task.gives("open", null, ok([int(0)]));
    });
}

#[test]
fn commands_that_take_an_address_are_refused() {
    in_child(|task| {
        for command in [libc::F_GETLK, libc::F_SETLKW, 16, 1035] {
            let arguments = [int(0), int(command), int(8)];
            task.fails("fcntl", arguments, Errno::EINVAL);
        }
    });
}

#[test]
fn ioctl_gives_back_what_the_kernel_wrote() {
    in_child(|task| {
        let (reader, writer) = pipe().unwrap();
        nix::unistd::write(&writer, b"12345").unwrap();
        let fd = || int(reader.as_raw_fd());
        let result = |arg| {
            let pairs = vec![(atom("return_value"), int(0)), (atom("arg"), arg)];
            ok([Value::Map(pairs)])
        };
        let five = bytes(5_i32.to_ne_bytes());
        let request = || atom("FIONREAD");
        let arguments = [fd(), request(), bytes([0; 4])];
        task.gives("ioctl", arguments, result(five.clone()));
        let arguments = [fd(), request(), list([bytes([9; 4]), bytes("ab")])];
        let expected = list([five, bytes("ab")]);
        task.gives("ioctl", arguments, result(expected));
        let arguments = [fd(), atom("fioclex"), int(0)];
        task.gives("ioctl", arguments, result(bytes("")));
        let arguments = [fd(), atom("tiocgwinsz"), bytes([0; 8])];
        task.fails("ioctl", arguments, Errno::ENOTTY);
        let arguments = [fd(), request(), list([])];
        task.fails("ioctl", arguments, Errno::EFAULT);
    });
}

#[test]
fn sockets() {
    let scratch = Scratch::new("sockets");
    let path = scratch.0.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    in_child(|task| {
        let fd = task.number("socket", [atom("af_unix"), atom("sock_stream"), int(0)]);
        let fd = || int(fd);
        task.gives(
            "fcntl",
            [fd(), atom("f_getfd")],
            ok([int(libc::FD_CLOEXEC)]),
        );
        let family = u16::try_from(libc::AF_UNIX).unwrap().to_ne_bytes();
        let path = path.as_os_str().as_encoded_bytes();
        let address = |path: &[u8]| list([bytes(family), bytes(path)]);
        let nobody = address(b"/nonexistent");
        task.fails("connect", [fd(), nobody], Errno::ENOENT);
        assert!(task.call("connect", [fd(), list([])]).is_err());
        task.succeeds("connect", [fd(), address(path)]);
        let failed = [int(-1), atom("sock_stream"), int(0)];
        task.fails("socket", failed, Errno::EAFNOSUPPORT);
    });
}

#[test]
fn select_says_what_is_ready() {
    in_child(|task| {
        let (reader, writer) = pipe().unwrap();
        let (read, write) = (int(reader.as_raw_fd()), int(writer.as_raw_fd()));
        let now = || Value::Map(vec![(atom("sec"), int(0)), (atom("usec"), int(1000))]);
        let none = || list([]);
        let ask = || [list([read.clone()]), list([write.clone()]), none(), now()];
        let expected = ok([none(), list([write.clone()]), none()]);
        task.gives("select", ask(), expected);
        nix::unistd::write(&writer, b"x").unwrap();
        let expected = ok([list([read.clone()]), list([write.clone()]), none()]);
        task.gives("select", ask(), expected);
        // Without a timeout, as something is ready.
        let expected = ok([list([read.clone()]), none(), none()]);
        let ask = [list([read.clone()]), none(), list([read.clone()]), none()];
        task.gives("select", ask, expected);
        for bad in [-1, 999] {
            let ask = [list([int(bad)]), none(), none(), now()];
            task.fails("select", ask, Errno::EBADF);
        }
    });
}

#[test]
fn what_the_kernel_has() {
    in_child(|task| {
        let fd = task.number("pidfd_open", [int(getpid().as_raw())]);
        task.succeeds("close", [Value::Int(fd)]);
        task.fails("pidfd_open", [int(-1)], Errno::EINVAL);
        // Where there is none, it says so.
        match task.call("landlock_abi", []) {
            Ok(_) => assert!(task.number("landlock_abi", []) >= 1),
            Err(errno) => assert!(
                matches!(errno, Errno::ENOSYS | Errno::EOPNOTSUPP),
                "{errno}"
            ),
        }
    });
}
