//! A program's pipes, our ends.
//!
//! stdin, rules:
//! 1. Bytes of one write are not interleaved with another's: while anything is queued, new
//!    writes queue behind it.
//! 2. At most [`QUEUE_LIMIT`] bytes are queued on behalf of writers that have been told "done".
//!    A write that would exceed it keeps its own binary (no copy) and its writer waits.
//! 3. Closing waits for the queue; the reader's death (EPIPE) fails everything queued.
//!
//! A pipe that was full and is read again is made larger, see [`Pipe::grow`].

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::{read, write};
use rustler::env::SavedTerm;
use rustler::{Binary, OwnedBinary, OwnedEnv};

use crate::notify::{Notifier, Waiter};
use crate::sys;

/// Per program.
const QUEUE_LIMIT: usize = 64 * 1024;
/// A write on a scheduler stops after this much and leaves the rest to the I/O thread: a reader
/// as fast as we are could keep a scheduler busy without end.
const INLINE_LIMIT: usize = 256 * 1024;

/// What a busy pipe can hold, in place of the 64 KiB of a new one.
const GROWN: usize = 256 * 1024;
/// So many pipes at a time. An ordinary user's may have 16,384 pages together before the kernel gives
/// new ones two each (fs.pipe-user-pages-soft, pipe(7)): a quarter of that.
const GROWN_AT_ONCE: usize = 64;
/// A read of more than this finds its pipe half full: the program is ahead of its reader.
const HALF: usize = 32 * 1024;

static GROWN_NOW: AtomicUsize = AtomicUsize::new(0);

/// Our end of a pipe.
struct Pipe {
    fd: OwnedFd,
    /// It has grown, or was as large, or the kernel has refused.
    settled: bool,
    /// Held as long as it lives.
    permit: Option<Permit>,
}

/// One of [`GROWN_AT_ONCE`].
struct Permit;

impl Permit {
    fn take() -> Option<Self> {
        let more = |now| (now < GROWN_AT_ONCE).then_some(now + 1);
        let taken = GROWN_NOW.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| Self)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        GROWN_NOW.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pipe {
    fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            settled: false,
            permit: None,
        }
    }

    /// Makes room for more, once: reader and writer of a busy pipe then wait less often for each
    /// other (docs/decisions/009). While too many others have it, another time.
    fn grow(&mut self) {
        if self.settled {
            return;
        }
        let Some(permit) = Permit::take() else {
            return;
        };
        self.settled = true;
        self.permit = sys::grow_pipe(&self.fd, GROWN).then_some(permit);
    }
}

/// What a write has come to.
pub enum Written {
    /// Written or queued.
    Done,
    /// The writer waits for `{ref, :written}`.
    Waiting,
    /// The reader is gone, or stdin was closed.
    Closed,
}

pub struct Stdin {
    pipe: Option<Pipe>,
    queue: VecDeque<Pending>,
    queued: usize,
    closing: bool,
    /// Registered with the I/O thread, which happens when the pipe is first full.
    watched: bool,
    /// The last write on a scheduler left off at [`INLINE_LIMIT`].
    stopped_early: bool,
}

struct Pending {
    data: Data,
    offset: usize,
    waiter: Option<Waiter>,
}

enum Data {
    Copied(Vec<u8>),
    /// The writer's binary itself, held by an environment of its own.
    Shared(OwnedEnv, SavedTerm),
}

impl Data {
    fn with<R>(&self, run: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Self::Copied(bytes) => run(bytes),
            Self::Shared(env, term) => env.run(|env| {
                let binary = Binary::from_term(term.load(env));
                run(binary.as_deref().unwrap_or_default())
            }),
        }
    }
}

impl Stdin {
    /// `None`: the program reads from `/dev/null`.
    pub fn new(fd: Option<OwnedFd>) -> Self {
        Self {
            pipe: fd.map(Pipe::new),
            queue: VecDeque::new(),
            queued: 0,
            closing: false,
            watched: false,
            stopped_early: false,
        }
    }

    /// The descriptor, the first time it is to be watched. Registration reports room that is
    /// there already.
    pub fn unwatched(&mut self) -> Option<&OwnedFd> {
        if std::mem::replace(&mut self.watched, true) {
            return None;
        }
        self.pipe.as_ref().map(|pipe| &pipe.fd)
    }

    pub fn is_open(&self) -> bool {
        self.pipe.is_some() && !self.closing
    }

    pub fn stopped_early(&self) -> bool {
        self.stopped_early
    }

    /// Whether the I/O thread has something to do when the pipe has room.
    pub fn is_pending(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Called on a scheduler. `waiter` is made only if the writer has to wait.
    pub fn write(&mut self, data: Binary<'_>, waiter: impl FnOnce() -> Waiter) -> Written {
        if self.closing || self.pipe.is_none() {
            return Written::Closed;
        }
        let mut offset = 0;
        self.stopped_early = false;
        if self.queue.is_empty() {
            match self.write_some(&data, INLINE_LIMIT) {
                Ok(written) => {
                    offset = written;
                    self.stopped_early = written >= INLINE_LIMIT;
                }
                Err(_) => {
                    self.pipe = None;
                    return Written::Closed;
                }
            }
        }
        let rest = data.len() - offset;
        if rest == 0 {
            return Written::Done;
        }
        if self.queued + rest <= QUEUE_LIMIT {
            self.queued += rest;
            self.enqueue(&data[offset..]);
            return Written::Done;
        }
        let env = OwnedEnv::new();
        let term = env.save(data);
        self.queue.push_back(Pending {
            data: Data::Shared(env, term),
            offset,
            waiter: Some(waiter()),
        });
        Written::Waiting
    }

    /// Small writes are joined, and later written by one call.
    fn enqueue(&mut self, rest: &[u8]) {
        if let Some(Pending {
            data: Data::Copied(bytes),
            waiter: None,
            ..
        }) = self.queue.back_mut()
        {
            // Of the first one a part may have been written, which stays in memory as long as it does.
            if bytes.len() + rest.len() <= QUEUE_LIMIT {
                return bytes.extend_from_slice(rest);
            }
        }
        self.queue.push_back(Pending {
            data: Data::Copied(rest.to_vec()),
            offset: 0,
            waiter: None,
        });
    }

    /// Writes until the pipe is full, `limit` is reached or all is written. A short write means
    /// full: trying once more would only fight with the reader over the pipe's lock.
    fn write_some(&mut self, data: &[u8], limit: usize) -> Result<usize, Errno> {
        let pipe = self.pipe.as_ref().ok_or(Errno::EPIPE)?;
        let mut offset = 0;
        while offset < data.len() && offset < limit {
            match write(&pipe.fd, &data[offset..]) {
                Ok(written) => {
                    let full = written < data.len() - offset;
                    offset += written;
                    if full {
                        break;
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(offset)
    }

    /// On the I/O thread, when the pipe may have room: it was full, and its reader reads.
    pub fn flush(&mut self, notifier: &mut Notifier) {
        if let (Some(pipe), false) = (&mut self.pipe, self.queue.is_empty()) {
            pipe.grow();
        }
        while let Some(mut pending) = self.queue.pop_front() {
            let result = pending.data.with(|bytes| {
                let rest = &bytes[pending.offset..];
                let written = self.write_some(rest, rest.len());
                written.map(|written| (written, rest.len()))
            });
            match result {
                Ok((written, rest)) => {
                    if pending.waiter.is_none() {
                        self.queued -= written;
                    }
                    if written < rest {
                        pending.offset += written;
                        self.queue.push_front(pending);
                        return;
                    }
                    if let Some(waiter) = &pending.waiter {
                        notifier.written(waiter, Ok(()));
                    }
                }
                Err(_) => {
                    self.queue.push_front(pending);
                    return self.fail(notifier);
                }
            }
        }
        if self.closing {
            self.pipe = None;
        }
    }

    /// Closes once the queue is written. False: it was closed already.
    pub fn close(&mut self) -> bool {
        if self.closing || self.pipe.is_none() {
            return false;
        }
        self.closing = true;
        if self.queue.is_empty() {
            self.pipe = None;
        }
        true
    }

    /// Closes now; every writer that waits is told.
    pub fn fail(&mut self, notifier: &mut Notifier) {
        self.pipe = None;
        self.queued = 0;
        for pending in self.queue.drain(..) {
            if let Some(waiter) = &pending.waiter {
                notifier.written(waiter, Err(()));
            }
        }
    }
}

/// The read ends of stdout and stderr.
///
/// Whoever has a stream in hand reads it, the consumer's own NIF call or the I/O thread, never
/// both: see `stream`.
pub struct Outputs {
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    /// The program is dead, and `:exit` on its way: the I/O thread has let go of both.
    pub ended: bool,
    spare: Option<OwnedBinary>,
}

impl Outputs {
    pub fn new(stdout: OwnedFd, stderr: Option<OwnedFd>) -> Self {
        Self {
            stdout: Some(Output::new(stdout)),
            stderr: stderr.map(Output::new),
            ended: false,
            spare: None,
        }
    }

    pub fn output(&self, stream: Stream) -> Option<&Output> {
        match stream {
            Stream::Stdout => self.stdout.as_ref(),
            Stream::Stderr => self.stderr.as_ref(),
        }
    }

    /// One read(2) of at most `size` bytes. A stream that has ended is closed. The buffer is kept for
    /// the next read only if that is about to come (`again`).
    pub fn read(&mut self, stream: Stream, size: usize, again: bool) -> Chunk {
        let slot = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let Some(output) = slot else {
            return Chunk::End;
        };
        if self.ended {
            output.bound();
        }
        let chunk = output.read(size, &mut self.spare);
        match chunk {
            Chunk::End => *slot = None,
            Chunk::Empty if !again => self.spare = None,
            Chunk::Empty | Chunk::Data(_) => {}
        }
        chunk
    }

    /// Whether a read would find something, an end or an error included.
    pub fn readable(&self, stream: Stream) -> bool {
        let Some(output) = self.output(stream) else {
            return true;
        };
        let mut fds = [PollFd::new(output.fd().as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) != Ok(0)
    }

    pub fn close(&mut self) {
        self.stdout = None;
        self.stderr = None;
        self.spare = None;
    }
}

/// As Elixir names them.
#[derive(rustler::NifUnitEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

pub struct Output {
    pipe: Pipe,
    /// Set once the program is dead: how much may still be read.
    left: Option<usize>,
}

/// What one read(2) came to.
pub enum Chunk {
    Data(OwnedBinary),
    Empty,
    End,
}

impl Output {
    fn new(fd: OwnedFd) -> Self {
        Self {
            pipe: Pipe::new(fd),
            left: None,
        }
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.pipe.fd
    }

    /// From now on at most what the pipe can hold at once is read: an escaped writer could keep
    /// it full for ever.
    fn bound(&mut self) {
        if self.left.is_none() {
            self.left = Some(sys::pipe_capacity(self.fd()));
        }
    }

    /// `spare` is a buffer of `size` bytes that a short chunk, or none, leaves behind.
    fn read(&mut self, size: usize, spare: &mut Option<OwnedBinary>) -> Chunk {
        if self.left == Some(0) {
            return Chunk::End;
        }
        let mut buffer = spare.take().unwrap_or_else(|| OwnedBinary::new(size));
        let length = loop {
            match read(&self.pipe.fd, buffer.as_mut_slice()) {
                Ok(0) => return Chunk::End,
                Ok(length) => break length,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    *spare = Some(buffer);
                    return Chunk::Empty;
                }
                Err(_) => return Chunk::End,
            }
        };
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(length);
        } else if length > HALF {
            self.pipe.grow();
        }
        if length <= size / 2 {
            let chunk = OwnedBinary::from_slice(&buffer.as_slice()[..length]);
            *spare = Some(buffer);
            return Chunk::Data(chunk);
        }
        if length < size {
            buffer.realloc_or_copy(length);
        }
        Chunk::Data(buffer)
    }
}
