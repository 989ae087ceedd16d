//! What the hostile fixtures share: start-up, arguments, forks with a limited life, plain output.
//!
//! Rules that every fixture keeps:
//!
//! 1. The first argument is MARK, a unique string. Forked children keep their parent's argv, so a
//!    test finds every victim through `/proc/*/cmdline`.
//! 2. `#![no_main]`: Rust's own start-up ignores SIGPIPE, catches SIGSEGV and opens `/dev/null` on
//!    closed fds 0-2, and these are the things the tests look at.
//! 3. Every process dies of SIGALRM after `--life SECONDS` (120 by default), so that a failed test
//!    leaves nothing for ever. (A stopped process lives until it is continued or killed.)
//! 4. Wrong usage is exit status 64 with the usage on stderr, a failing system call is 71.

pub mod sys;

use std::ffi::{c_char, c_int, CStr, CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{signal, SigHandler, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::{alarm, fork, pause, setsid, ForkResult, Pid};

/// Exit status for wrong arguments (EX_USAGE).
pub const USAGE: i32 = 64;
/// Exit status for a system call that failed (EX_OSERR).
pub const OSERR: i32 = 71;

/// Defines the C `main` of a fixture, which runs `$run(&mut Cli) -> i32`.
#[macro_export]
macro_rules! fixture {
    ($usage:expr, $run:path) => {
        #[no_mangle]
        extern "C" fn main(
            argc: std::ffi::c_int,
            argv: *const *const std::ffi::c_char,
        ) -> std::ffi::c_int {
            // SAFETY: the C runtime passes argc pointers to NUL-terminated strings that live as
            // long as the process.
            unsafe { $crate::start(argc, argv, $usage, $run) }
        }
    };
}

/// Collects argv and runs the fixture.
///
/// # Safety
/// `argv` points to `argc` NUL-terminated strings.
pub unsafe fn start(
    argc: c_int,
    argv: *const *const c_char,
    usage: &'static str,
    run: fn(&mut Cli) -> i32,
) -> c_int {
    let words = (1..usize::try_from(argc).unwrap_or(0)).map(|i| {
        // SAFETY: i < argc, and the caller vouches for the strings.
        let word = unsafe { CStr::from_ptr(*argv.add(i)) };
        OsString::from_vec(word.to_bytes().to_vec())
    });
    run(&mut Cli::new(words.collect(), usage))
}

/// The command line: take options first, then the positional words, then `done`.
pub struct Cli {
    args: pico_args::Arguments,
    usage: &'static str,
}

impl Cli {
    fn new(words: Vec<OsString>, usage: &'static str) -> Self {
        let args = pico_args::Arguments::from_vec(words);
        Cli { args, usage }
    }

    /// Is `--name` given?
    pub fn flag(&mut self, name: &'static str) -> bool {
        self.args.contains(name)
    }

    /// The value of `--name VALUE`, if given.
    pub fn option<T: FromStr>(&mut self, name: &'static str) -> Option<T> {
        match self
            .args
            .opt_value_from_fn(name, |word| word.parse().map_err(|_| "bad value"))
        {
            Ok(value) => value,
            Err(error) => self.refuse(&error.to_string()),
        }
    }

    /// Takes `--life` and starts the clock of this process.
    pub fn life(&mut self) {
        let seconds = self.option("--life").unwrap_or(120);
        DEADLINE.get_or_init(|| Instant::now() + Duration::from_secs(seconds));
        arm();
    }

    /// Takes MARK, which only has to be there.
    pub fn mark(&mut self) {
        let taken: Result<OsString, _> = self.args.free_from_os_str(|word| {
            let word: OsString = word.into();
            if word.is_empty() {
                Err("MARK is empty")
            } else {
                Ok(word)
            }
        });
        if let Err(error) = taken {
            self.refuse(&format!("MARK: {error}"));
        }
    }

    /// The next positional word.
    pub fn word<T: FromStr>(&mut self, name: &str) -> T {
        match self
            .args
            .free_from_fn(|word| word.parse().map_err(|_| "bad value"))
        {
            Ok(value) => value,
            Err(error) => self.refuse(&format!("{name}: {error}")),
        }
    }

    /// The next positional word, if there is one.
    pub fn optional_word<T: FromStr>(&mut self, name: &str) -> Option<T> {
        match self
            .args
            .opt_free_from_fn(|word| word.parse().map_err(|_| "bad value"))
        {
            Ok(value) => value,
            Err(error) => self.refuse(&format!("{name}: {error}")),
        }
    }

    /// Whatever is left over, as the words of another program.
    pub fn rest(&mut self) -> Vec<CString> {
        let rest = std::mem::replace(&mut self.args, pico_args::Arguments::from_vec(vec![]));
        let words = rest.finish().into_iter();
        // Words of an argv have no NUL in them.
        words
            .filter_map(|word| CString::new(word.into_vec()).ok())
            .collect()
    }

    /// Refuses whatever is left over.
    pub fn done(&mut self) {
        let rest = std::mem::replace(&mut self.args, pico_args::Arguments::from_vec(vec![]));
        if let Some(word) = rest.finish().first() {
            self.refuse(&format!("unknown argument {word:?}"));
        }
    }

    pub fn refuse(&self, why: &str) -> ! {
        complain(&format!("{why}\nusage: {}\n", self.usage));
        std::process::exit(USAGE)
    }
}

static DEADLINE: OnceLock<Instant> = OnceLock::new();

/// Seconds until this process has to go, rounded up.
fn left() -> u64 {
    DEADLINE.get().map_or(u64::MAX, |end| {
        end.saturating_duration_since(Instant::now()).as_secs() + 1
    })
}

/// For loops that never block: has `--life` passed?
pub fn expired() -> bool {
    DEADLINE.get().is_some_and(|end| Instant::now() >= *end)
}

/// An alarm is not inherited, so every forked process sets its own.
fn arm() {
    let seconds = u32::try_from(left()).unwrap_or(u32::MAX);
    alarm::set(seconds);
}

/// Sleeps until a signal ends the process.
pub fn sleep_for_ever() -> ! {
    loop {
        pause();
    }
}

pub fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

/// Forks; `body` is all that the child does, its result the child's exit status.
pub fn fork_child(body: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    // SAFETY: fixtures have one thread, so the child may do whatever the parent may.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            arm();
            leave(body())
        }
    }
}

/// Double fork: `body` runs in a grandchild whose parent is gone, so that the nearest subreaper
/// (or init) adopts it. Returns when the process in between has been reaped.
pub fn daemonise(session: Session, body: impl FnOnce() -> i32) -> Result<(), Errno> {
    let between = fork_child(|| {
        session.enter();
        match fork_child(body) {
            Ok(_) => 0,
            Err(_) => OSERR,
        }
    })?;
    match waitpid(between, None)? {
        nix::sys::wait::WaitStatus::Exited(_, 0) => Ok(()),
        _ => Err(Errno::EAGAIN),
    }
}

/// Does a child start a session of its own?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    Inherited,
    Own,
}

impl Session {
    pub fn from_flag(own: bool) -> Self {
        if own {
            Session::Own
        } else {
            Session::Inherited
        }
    }

    pub fn enter(self) {
        if self == Session::Own {
            // Fails only for a group leader, which a freshly forked child is not.
            let _ = setsid();
        }
    }
}

/// Exits without the C library's cleanup: a forked copy must not flush its parent's buffers.
pub fn leave(status: i32) -> ! {
    // SAFETY: _exit takes any integer and does not return.
    unsafe { libc::_exit(status) }
}

/// Ignores the polite ways to be told to go.
pub fn ignore_polite_signals() {
    use Signal::*;
    for number in [SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2] {
        set_signal(number, SigHandler::SigIgn);
    }
}

/// Sets SIG_DFL or SIG_IGN.
pub fn set_signal(number: Signal, to: SigHandler) {
    // SAFETY: SIG_DFL and SIG_IGN run no code of ours.
    let _ = unsafe { signal(number, to) };
}

/// Writes everything, in one write(2) where the pipe has room. There is no buffer to forget.
pub fn write_all(fd: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match nix::unistd::write(fd.as_fd(), bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => sleep(Duration::from_millis(1)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes `text` to stdout; a stdout that is closed is nobody's problem.
pub fn say(text: &str) {
    let _ = write_all(std::io::stdout(), text.as_bytes());
}

/// Writes `text` to stderr.
pub fn complain(text: &str) {
    let _ = write_all(std::io::stderr(), text.as_bytes());
}

/// Reports a failed system call and gives the exit status for it.
pub fn failed(call: &str, error: Errno) -> i32 {
    complain(&format!("{call}: {error}\n"));
    OSERR
}

/// Byte `i` of the deterministic pattern is `i % 251`, so that shifted or swapped chunks differ.
pub const PATTERN_PERIOD: usize = 251;

/// One buffer of the pattern: slice it from `offset % 251` to get any part of the stream.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..=u8::MAX)
        .take(PATTERN_PERIOD)
        .cycle()
        .take(length)
        .collect()
}

/// Lower-case hexadecimal, as sha256sum prints it.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How a group of forked processes tells its leader that it is complete.
pub struct Roll {
    read: OwnedFd,
    write: OwnedFd,
}

impl Roll {
    pub fn new() -> Result<Self, Errno> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        Ok(Roll { read, write })
    }

    /// "I am here."
    pub fn present(&self) {
        let _ = write_all(self.write.as_fd(), b".");
    }

    /// "I could not make my children": the leader must not wait for them.
    pub fn broken(&self) {
        let _ = write_all(self.write.as_fd(), b"!");
    }

    /// Takes one presence out: with the roles turned round, a roll is a gate that lets one process
    /// pass for each `present` of the leader.
    pub fn pass(&self) -> Result<(), Errno> {
        let mut one = [0; 1];
        loop {
            match nix::unistd::read(self.read.as_fd(), &mut one) {
                Err(Errno::EINTR) => {}
                other => return other.map(drop),
            }
        }
    }

    /// Waits until `expected` processes are present.
    pub fn wait(&self, expected: usize) -> Result<(), Errno> {
        let mut buffer = [0; 4096];
        let mut seen = 0;
        while seen < expected {
            match nix::unistd::read(self.read.as_fd(), &mut buffer) {
                Ok(0) => return Err(Errno::ECHILD),
                Ok(count) if buffer[..count].contains(&b'!') => return Err(Errno::EAGAIN),
                Ok(count) => seen += count,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Points fds 0-2 of this process at `/dev/null`, as a tidy daemon does.
pub fn detach_stdio() {
    let Ok(null) = nix::fcntl::open(
        "/dev/null",
        nix::fcntl::OFlag::O_RDWR,
        nix::sys::stat::Mode::empty(),
    ) else {
        return;
    };
    let _ = nix::unistd::dup2_stdin(&null);
    let _ = nix::unistd::dup2_stdout(&null);
    let _ = nix::unistd::dup2_stderr(&null);
}

/// Closes one of fds 0-2, which nothing in a fixture owns.
pub fn close_standard(fd: BorrowedFd) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    // SAFETY: the number stays valid to name; later writes to it fail with EBADF, which is wanted.
    match unsafe { libc::close(fd.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(Errno::last()),
    }
}

/// What the leader of a group does once all are present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leader {
    Stays,
    Exits(i32),
}

impl Leader {
    /// Takes `--leader-exits CODE`.
    pub fn take(cli: &mut Cli) -> Self {
        cli.option("--leader-exits")
            .map_or(Leader::Stays, Leader::Exits)
    }

    pub fn finish(self) -> i32 {
        match self {
            Leader::Stays => sleep_for_ever(),
            Leader::Exits(code) => code,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_repeats_after_251_bytes() {
        let bytes = pattern(1000);
        assert_eq!(bytes.len(), 1000);
        assert_eq!(bytes[..3], [0, 1, 2]);
        assert!((0..1000).all(|i| usize::from(bytes[i]) == i % PATTERN_PERIOD));
    }

    #[test]
    fn options_come_out_wherever_they_stand() {
        let words = ["mark", "--setsid", "3", "--code", "7", "4"].map(OsString::from);
        let mut cli = Cli::new(words.to_vec(), "usage");
        assert!(cli.flag("--setsid"));
        assert!(!cli.flag("--stop"));
        assert_eq!(cli.option("--code"), Some(7));
        cli.mark();
        assert_eq!(cli.word::<u32>("DEPTH"), 3);
        assert_eq!(cli.optional_word::<u32>("WIDTH"), Some(4));
        assert_eq!(cli.optional_word::<u32>("MORE"), None);
        cli.done();
    }
}
