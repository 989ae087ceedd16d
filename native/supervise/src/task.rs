//! Between fork and exec: the process that becomes the user's program.
//!
//! One that waits for its program is told by the NIF itself what to do, on its own socket. If that
//! ends without a word, its parent has been asked for something else, and is about to kill it, so that
//! the end of a child always is that of a program to a supervisor. It ends when its parent does. What
//! was signalled to it before there was a program is no concern of the program.

use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::SigSet;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, write, Gid, Pid, Uid};
use stdio_protocol::channel::{self, Receiver};
use stdio_protocol::message::{FromTask, Namespaces, Script, Stage, Step, ToTask};

use crate::call::{self, Context};
use crate::{exec, sanitize, sys};

/// What the NIF sent along with a start, and the go-ahead's read end.
pub struct Descriptors {
    pub control: OwnedFd,
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub go_ahead: OwnedFd,
}

/// A plan whose memory is all allocated.
pub struct Prepared {
    /// The ids outside, if the task is born into a user namespace of its own.
    pub own_ids: Option<(Uid, Gid)>,
    pub namespaces: Namespaces,
    pub steps: Vec<Step>,
    pub exec: exec::Prepared,
}

struct Failure(Stage, Errno);

/// Runs in the forked child and does not return. Anything that goes wrong is told on the task's
/// socket; the status is then of no interest to anybody.
pub fn run(prepared: Prepared, descriptors: Descriptors, parent: Pid) -> ! {
    let Ok((control, go_ahead, _)) = arrange(descriptors, Vec::new()) else {
        sys::exit(1)
    };
    // The parent has not recorded this process before it writes; if it dies first, so do we.
    // It stays open until exec closes it, which is when the parent's clock starts.
    let go_ahead = File::from(go_ahead);
    let Some(pid) = read_pid(&go_ahead) else {
        sys::exit(1)
    };
    let mut context = Context {
        parent: (!prepared.namespaces.pid).then_some(parent),
        protected: vec![control.as_raw_fd(), go_ahead.as_raw_fd()],
        lifeline: Some(go_ahead.into()),
        ..Context::default()
    };
    let failure = setup(prepared.own_ids)
        .and_then(|()| steps(&prepared.steps, &mut context))
        .and_then(|()| become_program(&prepared.exec, control.as_fd(), pid));
    fail(&control, failure)
}

fn fail(control: &OwnedFd, failure: Result<Infallible, Failure>) -> ! {
    let Failure(stage, errno) = failure.map_or_else(|failure| failure, |never| match never {});
    let failed = FromTask::Failed {
        stage,
        errno: errno as i32,
    };
    let _ = channel::send(control, &failed, &[]);
    sys::exit(1)
}

/// Runs in a forked child and does not return: the program is told on `control`. The parent's own
/// control socket is fd 0, and goes.
pub fn wait(control: OwnedFd, go_ahead: OwnedFd, parent: Pid, receiver: Receiver) -> ! {
    let Ok((control, go_ahead)) = sys::forget_stdin().and_then(|()| keep_two(control, go_ahead))
    else {
        sys::exit(1)
    };
    // One that somebody has stopped sees nothing. Not everywhere to be had; the program gets it anyway.
    let _ = sys::set_pdeathsig(libc::SIGKILL);
    let go_ahead = File::from(go_ahead);
    let Some(pid) = read_pid(&go_ahead) else {
        sys::exit(1)
    };
    let Some((script, standard)) = await_script(&control, &go_ahead, receiver) else {
        sys::exit(1)
    };
    let mut context = Context {
        parent: Some(parent),
        protected: vec![control.as_raw_fd(), go_ahead.as_raw_fd()],
        lifeline: Some(go_ahead.into()),
        ..Context::default()
    };
    let failure = take_over(standard)
        .map_err(|errno| Failure(Stage::Setup, errno))
        .and_then(|()| exec::prepare(script.exec).map_err(|errno| Failure(Stage::Exec, errno)))
        .and_then(|exec| steps(&script.steps, &mut context).map(|()| exec))
        .and_then(|exec| become_program(&exec, control.as_fd(), pid));
    fail(&control, failure)
}

/// What to become, with stdin, stdout, stderr. `None`: its parent has ended, or the NIF makes no sense.
fn await_script(
    control: &OwnedFd,
    parent: &File,
    mut receiver: Receiver,
) -> Option<(Script, [OwnedFd; 3])> {
    let signals = sanitize::signals();
    let mut over = false;
    loop {
        let mut fds = [
            // Hanging up is reported unasked.
            PollFd::new(parent.as_fd(), PollFlags::empty()),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
        ];
        let watched = if over { 2 } else { 3 };
        match poll(&mut fds[..watched], PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
        let [orphaned, signalled, told] =
            fds.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        if orphaned {
            return None;
        }
        if told {
            match receiver.recv::<ToTask>(control.as_fd()) {
                Ok(Some(received)) => {
                    let ToTask::Start(script) = received.message;
                    let standard = <[OwnedFd; 3]>::try_from(received.fds).ok()?;
                    // Closed with all the others, by number.
                    std::mem::forget(signals);
                    return Some((*script, standard));
                }
                Ok(None) => over = true,
                Err(error) if error.errno() == Errno::EAGAIN => {}
                Err(_) => return None,
            }
        } else if signalled {
            signals.read();
        }
    }
}

/// Makes these descriptors 0-2, and closes all that this process needs no more.
fn take_over(standard: [OwnedFd; 3]) -> Result<(), Errno> {
    put_in_place(standard)?;
    sys::close_from(FIRST_UNUSED);
    Ok(())
}

/// At 0-2. What they were before is closed with all the others, by number.
fn put_in_place(standard: [OwnedFd; 3]) -> Result<(), Errno> {
    let [stdin, stdout, stderr] = &standard;
    dup2_stdin(stdin)?;
    dup2_stdout(stdout)?;
    dup2_stderr(stderr)?;
    for fd in standard {
        let _ = fd.into_raw_fd();
    }
    Ok(())
}

/// After those of [`keep_two`].
const FIRST_UNUSED: u32 = 5;

/// At 3 and 4.
fn keep_two(control: OwnedFd, go_ahead: OwnedFd) -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut kept = sys::keep(vec![control, go_ahead])?.into_iter();
    kept.next().zip(kept.next()).ok_or(Errno::EBADF)
}

/// Descriptors 0-2 are the program's, 3 and 4 ours and close-on-exec, then those `besides`; all
/// others are closed. The parent's control socket was fd 0, so it goes with the first step.
pub fn arrange(
    descriptors: Descriptors,
    besides: Vec<OwnedFd>,
) -> Result<(OwnedFd, OwnedFd, Vec<OwnedFd>), Errno> {
    put_in_place([descriptors.stdin, descriptors.stdout, descriptors.stderr])?;
    let mut kept = vec![descriptors.control, descriptors.go_ahead];
    kept.extend(besides);
    let mut kept = sys::keep(kept)?.into_iter();
    let (Some(control), Some(go_ahead)) = (kept.next(), kept.next()) else {
        return Err(Errno::EBADF);
    };
    Ok((control, go_ahead, kept.collect()))
}

/// The parent's go-ahead, once it has recorded the child. EPIPE: that was killed, which wait reports.
pub fn release(go: &OwnedFd, pid: Pid) {
    while write(go, &pid.as_raw().to_ne_bytes()) == Err(Errno::EINTR) {}
}

pub fn read_pid(mut go_ahead: &File) -> Option<i32> {
    let mut pid = [0; 4];
    go_ahead.read_exact(&mut pid).ok()?;
    Some(i32::from_ne_bytes(pid))
}

/// A namespace's maps can only be written by a dumpable process; the task holds no descriptor
/// but its own by now.
fn setup(own_ids: Option<(Uid, Gid)>) -> Result<(), Failure> {
    let Some((uid, gid)) = own_ids else {
        return Ok(());
    };
    sys::set_inspectable(true)
        .and_then(|()| sys::map_ids((uid.as_raw(), uid), (gid.as_raw(), gid)))
        .map_err(|errno| Failure(Stage::Setup, errno))
}

fn steps(steps: &[Step], context: &mut Context) -> Result<(), Failure> {
    for (index, step) in (0..).zip(steps) {
        match call::apply(&step.call, context) {
            Ok(_) => {}
            Err(_) if !step.errexit => {}
            Err(errno) if step.ignore.contains(&(errno as i32)) => {}
            Err(errno) => return Err(Failure(Stage::Step(index), errno)),
        }
    }
    Ok(())
}

fn become_program(
    exec: &exec::Prepared,
    control: BorrowedFd<'_>,
    pid: i32,
) -> Result<Infallible, Failure> {
    channel::send(control, &FromTask::Execing { pid }, &[])
        .map_err(|error| Failure(Stage::Setup, error.errno()))?;
    SigSet::empty()
        .thread_set_mask()
        .and_then(|()| exec::apply(exec))
        .map_err(|errno| Failure(Stage::Exec, errno))
}
