//! Between fork and exec: the process that becomes the user's program.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, write, Gid, Pid, Uid};
use stdio_protocol::channel;
use stdio_protocol::message::{FromTask, Namespaces, Stage, Step};

use crate::call::{self, Context};
use crate::{exec, sys};

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
        ..Context::default()
    };
    let Failure(stage, errno) = setup(prepared.own_ids)
        .and_then(|()| steps(&prepared.steps, &mut context))
        .and_then(|()| become_program(&prepared.exec, control.as_fd(), pid))
        .map_or_else(|failure| failure, |never| match never {});
    let failed = FromTask::Failed {
        stage,
        errno: errno as i32,
    };
    let _ = channel::send(&control, &failed, &[]);
    sys::exit(1)
}

/// Descriptors 0-2 are the program's, 3 and 4 ours and close-on-exec, then those `besides`; all
/// others are closed. The parent's control socket was fd 0, so it goes with the first step.
pub fn arrange(
    descriptors: Descriptors,
    besides: Vec<OwnedFd>,
) -> Result<(OwnedFd, OwnedFd, Vec<OwnedFd>), Errno> {
    dup2_stdin(&descriptors.stdin)?;
    dup2_stdout(&descriptors.stdout)?;
    dup2_stderr(&descriptors.stderr)?;
    // Closed with all the others, by number.
    for fd in [descriptors.stdin, descriptors.stdout, descriptors.stderr] {
        let _ = fd.into_raw_fd();
    }
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
) -> Result<std::convert::Infallible, Failure> {
    channel::send(control, &FromTask::Execing { pid }, &[])
        .map_err(|error| Failure(Stage::Setup, error.errno()))?;
    SigSet::empty()
        .thread_set_mask()
        .and_then(|()| exec::apply(exec))
        .map_err(|errno| Failure(Stage::Exec, errno))
}
