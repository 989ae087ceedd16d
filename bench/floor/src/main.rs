//! The floor under the benchmarks: what the same work costs with nothing but system calls, from a
//! small process. `bench/bench.exs` runs it in the same rounds as what it measures.
//!
//! Every command prints one line of JSON.
//!
//!     spawn N [THREADS]     posix_spawn and waitpid of /bin/true, N times in each thread
//!     read BYTES BUFFER     `head -c BYTES /dev/zero` through a pipe and a read loop
//!     pipe BYTES CHUNK      BYTES through `cat`, written in CHUNKs, writer and reader by poll
//!     lines LAST BUFFER     `seq 1 LAST` through a pipe and a read loop that counts the lines
//!     pingpong N            one line through `cat` and back, N times
//!     sleepers N            starts N sleepers, waits until all run, kills and reaps them
//!     sleeper               writes a newline, then sleeps: the program that `sleepers` starts
//!
//! `spawn` can run something else: `spawn N THREADS -- PROGRAM [ARGUMENT…]`.

use std::convert::Infallible;
use std::env;
use std::error::Error;
use std::ffi::{CString, NulError, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::spawn::{posix_spawn, posix_spawnp, PosixSpawnAttr, PosixSpawnFileActions};
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::{alarm, pause, pipe2, read, write, Pid};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "stdio-floor spawn N [THREADS] [-- PROGRAM [ARGUMENT…]] | read BYTES BUFFER | \
     pipe BYTES CHUNK | lines LAST BUFFER | pingpong N | sleepers N | sleeper";

fn main() -> ExitCode {
    let words: Vec<OsString> = env::args_os().skip(1).collect();
    match run(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stdio-floor: {error}\nusage: {USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: Vec<OsString>) -> Result<()> {
    let mut words = words.into_iter();
    let name = words.next().unwrap_or_default();
    let mut own = words.by_ref().take_while(|word| word != "--");
    match name.to_str() {
        Some("spawn") => {
            let count = number(own.next())?;
            let threads = own.next().map_or(Ok(1), |word| number(Some(word)))?;
            // A thread count or the dashes: whichever came, the rest is the command.
            let rest = words.skip_while(|word| word == "--").collect();
            spawn(count, threads, command(rest)?)
        }
        Some("read") => read_loop(number(own.next())?, number(own.next())?),
        Some("pipe") => pipe(number(own.next())?, number(own.next())?),
        Some("lines") => lines(number(own.next())?, number(own.next())?),
        Some("pingpong") => pingpong(number(own.next())?),
        Some("sleepers") => sleepers(number(own.next())?),
        Some("sleeper") => sleeper().map(|never| match never {}),
        _ => Err("unknown command".into()),
    }
}

fn number<T: FromStr>(word: Option<OsString>) -> Result<T> {
    let word = word.ok_or("a number is missing")?;
    let parsed = word.to_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| format!("not a number: {word:?}").into())
}

fn command(words: Vec<OsString>) -> Result<Vec<CString>> {
    if words.is_empty() {
        return Ok(vec![c"/bin/true".into()]);
    }
    let argv: std::result::Result<_, NulError> = words
        .into_iter()
        .map(|word| CString::new(word.into_vec()))
        .collect();
    Ok(argv?)
}

/// posix_spawn and waitpid, timed one by one.
fn spawn(count: usize, threads: usize, argv: Vec<CString>) -> Result<()> {
    let started = Instant::now();
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let argv = argv.clone();
            std::thread::spawn(move || spawn_and_wait(count, &argv))
        })
        .collect();
    let mut times = Vec::with_capacity(count * threads);
    for worker in workers {
        times.extend(worker.join().map_err(|_| "a thread panicked")??);
    }
    let rate = (count * threads) as f64 / started.elapsed().as_secs_f64();
    times.sort_unstable();
    println!(
        r#"{{"bench":"spawn","n":{count},"threads":{threads},"median_ns":{},"p95_ns":{},"per_second":{rate:.1}}}"#,
        quantile(&times, 0.5),
        quantile(&times, 0.95),
    );
    Ok(())
}

fn spawn_and_wait(count: usize, argv: &[CString]) -> std::result::Result<Vec<u128>, Errno> {
    let environ = environment();
    let actions = PosixSpawnFileActions::init()?;
    let attributes = PosixSpawnAttr::init()?;
    (0..count)
        .map(|_| {
            let started = Instant::now();
            let pid = posix_spawn(argv[0].as_c_str(), &actions, &attributes, argv, &environ)?;
            match waitpid(pid, None)? {
                WaitStatus::Exited(_, 0) => Ok(started.elapsed().as_nanos()),
                _ => Err(Errno::ECHILD),
            }
        })
        .collect()
}

fn quantile(sorted: &[u128], q: f64) -> u128 {
    let last = sorted.len().saturating_sub(1);
    // The index of a vector's element: not negative, and exact in a double.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let index = (last as f64 * q).round() as usize;
    sorted.get(index).copied().unwrap_or(0)
}

fn environment() -> Vec<CString> {
    env::vars_os()
        .filter_map(|(name, value)| {
            let mut line = name.into_vec();
            line.push(b'=');
            line.extend(value.into_vec());
            CString::new(line).ok()
        })
        .collect()
}

/// A child with fds 0 and 1 replaced where given; everything of ours is close-on-exec.
fn start(
    argv: &[CString],
    stdin: Option<&OwnedFd>,
    stdout: Option<&OwnedFd>,
) -> std::result::Result<Pid, Errno> {
    use std::os::fd::AsRawFd;

    let mut actions = PosixSpawnFileActions::init()?;
    if let Some(fd) = stdin {
        actions.add_dup2(fd.as_raw_fd(), 0)?;
    }
    if let Some(fd) = stdout {
        actions.add_dup2(fd.as_raw_fd(), 1)?;
    }
    let attributes = PosixSpawnAttr::init()?;
    posix_spawnp(&argv[0], &actions, &attributes, argv, &environment())
}

fn words(text: &str) -> Result<Vec<CString>> {
    let argv: std::result::Result<_, NulError> = text.split(' ').map(CString::new).collect();
    Ok(argv?)
}

fn finish(pid: Pid) -> Result<()> {
    match waitpid(pid, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => Err(format!("the program ended with {other:?}").into()),
    }
}

/// Reads a program's output to its end, `each` sees every part.
fn drain(argv: &[CString], buffer: usize, mut each: impl FnMut(&[u8])) -> Result<Duration> {
    let mut buffer = vec![0; buffer.max(1)];
    let started = Instant::now();
    let (output, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    let pid = start(argv, None, Some(&theirs))?;
    drop(theirs);
    loop {
        match read(&output, &mut buffer) {
            Ok(0) => break,
            Ok(count) => each(&buffer[..count]),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    finish(pid)?;
    Ok(started.elapsed())
}

fn read_loop(bytes: u64, buffer: usize) -> Result<()> {
    let mut seen: u64 = 0;
    let argv = words(&format!("head -c {bytes} /dev/zero"))?;
    let elapsed = drain(&argv, buffer, |part| seen += part.len() as u64)?;
    expect("bytes", bytes, seen)?;
    throughput("read", bytes, elapsed, &format!(r#""buffer":{buffer}"#));
    Ok(())
}

fn lines(last: u64, buffer: usize) -> Result<()> {
    let mut bytes: u64 = 0;
    let mut count: u64 = 0;
    let argv = words(&format!("seq 1 {last}"))?;
    let elapsed = drain(&argv, buffer, |part| {
        bytes += part.len() as u64;
        count += part.iter().filter(|byte| **byte == b'\n').count() as u64;
    })?;
    expect("lines", last, count)?;
    throughput("lines", bytes, elapsed, &format!(r#""lines":{count}"#));
    Ok(())
}

fn expect(what: &str, wanted: u64, seen: u64) -> Result<()> {
    if wanted == seen {
        Ok(())
    } else {
        Err(format!("{seen} {what} instead of {wanted}").into())
    }
}

fn throughput(bench: &str, bytes: u64, elapsed: Duration, more: &str) {
    println!(
        r#"{{"bench":"{bench}","bytes":{bytes},{more},"seconds":{:.6},"bytes_per_second":{:.0}}}"#,
        elapsed.as_secs_f64(),
        bytes as f64 / elapsed.as_secs_f64(),
    );
}

/// `cat` with both ends here.
struct Cat {
    pid: Pid,
    input: OwnedFd,
    output: OwnedFd,
}

impl Cat {
    fn start() -> Result<Self> {
        let (their_input, input) = pipe2(OFlag::O_CLOEXEC)?;
        let (output, their_output) = pipe2(OFlag::O_CLOEXEC)?;
        let pid = start(&words("cat")?, Some(&their_input), Some(&their_output))?;
        Ok(Cat { pid, input, output })
    }
}

/// One thread feeds and reads `cat`; it asks poll only when neither end is ready.
fn pipe(bytes: u64, chunk: usize) -> Result<()> {
    let data = vec![b'x'; chunk.max(1)];
    let mut buffer = vec![0; 65536];
    let started = Instant::now();
    let Cat { pid, input, output } = Cat::start()?;
    for fd in [&input, &output] {
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let mut input = Some(input);
    let (mut sent, mut seen): (u64, u64) = (0, 0);
    loop {
        // Not more than a pipe holds, else each turn would end with a write in vain.
        let turn = sent + 65536;
        while let Some(fd) = input.as_ref().filter(|_| sent < turn) {
            let offset = usize::try_from(sent % data.len() as u64)?;
            let left = usize::try_from(bytes - sent).unwrap_or(usize::MAX);
            let length = (data.len() - offset).min(left);
            if length == 0 {
                input = None;
                break;
            }
            match write(fd, &data[offset..offset + length]) {
                Ok(count) => sent += count as u64,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match read(&output, &mut buffer) {
            Ok(0) => break,
            Ok(count) => seen += count as u64,
            Err(Errno::EAGAIN) => wait_for_either(&output, input.as_ref())?,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    finish(pid)?;
    let elapsed = started.elapsed();
    expect("bytes", bytes, seen)?;
    throughput("pipe", bytes, elapsed, &format!(r#""chunk":{chunk}"#));
    Ok(())
}

fn wait_for_either(output: &OwnedFd, input: Option<&OwnedFd>) -> Result<()> {
    let mut ends = vec![PollFd::new(output.as_fd(), PollFlags::POLLIN)];
    ends.extend(input.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)));
    match poll(&mut ends, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn pingpong(count: usize) -> Result<()> {
    let line = b"ping pong\n";
    let mut buffer = [0; 64];
    let Cat { pid, input, output } = Cat::start()?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        write(&input, line)?;
        let mut seen = 0;
        while seen < line.len() {
            match read(&output, &mut buffer)? {
                0 => return Err("cat has gone".into()),
                length => seen += length,
            }
        }
        times.push(started.elapsed().as_nanos());
    }
    drop(input);
    finish(pid)?;
    times.sort_unstable();
    println!(
        r#"{{"bench":"pingpong","n":{count},"median_ns":{},"p95_ns":{}}}"#,
        quantile(&times, 0.5),
        quantile(&times, 0.95),
    );
    Ok(())
}

fn sleepers(count: usize) -> Result<()> {
    let own = CString::new(env::current_exe()?.into_os_string().into_vec())?;
    let argv = [own, c"sleeper".into()];
    let (output, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    let started = Instant::now();
    let mut pids = Vec::with_capacity(count);
    for _ in 0..count {
        match start(&argv, None, Some(&theirs)) {
            Ok(pid) => pids.push(pid),
            Err(error) => {
                end(&pids)?;
                return Err(error.into());
            }
        }
    }
    drop(theirs);
    let mut buffer = [0; 4096];
    let mut seen = 0;
    while seen < count {
        match read(&output, &mut buffer)? {
            0 => return Err("a sleeper has gone".into()),
            length => seen += length,
        }
    }
    let rate = count as f64 / started.elapsed().as_secs_f64();
    let halted = Instant::now();
    end(&pids)?;
    println!(
        r#"{{"bench":"sleepers","n":{count},"starts_per_second":{rate:.1},"gone_ms":{:.1}}}"#,
        halted.elapsed().as_secs_f64() * 1000.0,
    );
    Ok(())
}

fn end(pids: &[Pid]) -> Result<()> {
    for pid in pids {
        kill(*pid, Signal::SIGKILL)?;
    }
    for pid in pids {
        waitpid(*pid, None)?;
    }
    Ok(())
}

/// Ends by itself after ten minutes, should whoever started it have failed.
fn sleeper() -> Result<Infallible> {
    alarm::set(600);
    write(std::io::stdout(), b"\n")?;
    loop {
        pause();
    }
}
