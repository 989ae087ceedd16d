//! Real sockets: what travels, what is refused, and that no descriptor stays behind.
//!
//! Descriptors are counted, so the tests take turns (`Turn`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSlice, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, FdFlag, OFlag, SealFlag};
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::sys::socket::{recv, sendmsg, ControlMessage, MsgFlags};
use nix::unistd::{ftruncate, pipe};
use serde_bytes::ByteBuf;
use stdio_protocol::channel::{
    is_busy, pair, send, Datagram, Error, Received, Receiver, MAX_BODY, MAX_FDS, MAX_INLINE,
};
use stdio_protocol::codec::encode;
use stdio_protocol::message::{
    Exec, FromTask, Namespaces, Plan, Script, Start, ToLauncher, ToRoot,
};

const INLINE: u8 = 0;
const IN_MEMFD: u8 = 1;

static TURN: Mutex<()> = Mutex::new(());

/// One test at a time; the descriptors at its end are those of its beginning.
struct Turn {
    before: BTreeMap<RawFd, String>,
    _guard: MutexGuard<'static, ()>,
}

impl Turn {
    fn new() -> Self {
        let guard = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            before: descriptors(),
            _guard: guard,
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(descriptors(), self.before, "leaked");
        }
    }
}

/// Number and target of each open descriptor, but the one that the listing itself needs.
fn descriptors() -> BTreeMap<RawFd, String> {
    let listed = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let with_target = listed.filter_map(|entry| {
        let target = std::fs::read_link(entry.path()).ok()?;
        let fd = entry.file_name().to_str()?.parse().ok()?;
        Some((fd, target.display().to_string()))
    });
    with_target
        .filter(|(_, target)| !(target.starts_with("/proc/") && target.ends_with("/fd")))
        .collect()
}

fn receive<T: serde::de::DeserializeOwned>(socket: &OwnedFd) -> Result<Option<Received<T>>, Error> {
    Receiver::with_fds().recv(socket.as_fd())
}

/// What sendmsg(2) would take, well formed or not.
fn send_raw(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights };
    let iov = [IoSlice::new(bytes)];
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &iov,
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    assert_eq!(sent, Ok(bytes.len()));
}

fn refused<T: serde::de::DeserializeOwned>(socket: &OwnedFd, why: &str) {
    match receive::<T>(socket) {
        Err(error) => {
            assert!(error.to_string().contains(why), "{error}");
            assert_eq!(error.errno(), Errno::EPROTO);
        }
        Ok(received) => panic!("accepted, end: {}", received.is_none()),
    }
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&[INLINE], body].concat()
}

fn fork() -> ToLauncher {
    ToLauncher::Fork { id: 7 }
}

fn fork_bytes() -> Vec<u8> {
    framed(&encode(&fork()).unwrap())
}

/// The length of the next datagram, and its first byte.
fn peek(socket: &OwnedFd) -> (usize, u8) {
    let mut first = [0];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
    let length = recv(socket.as_raw_fd(), &mut first, flags).unwrap();
    (length, first[0])
}

/// A start whose program has this one argument.
fn start(argument: Vec<u8>) -> ToRoot {
    ToRoot::Start(Box::new(Start {
        plan: Plan {
            namespaces: Namespaces::default(),
            script: Script {
                steps: vec![],
                exec: Exec {
                    file: ByteBuf::from(b"true".to_vec()),
                    argv: vec![ByteBuf::from(argument)],
                    env: vec![],
                    search: true,
                },
            },
        },
        watch: None,
    }))
}

/// A byte string that is a body of exactly `length` bytes.
fn body_of(length: usize) -> ByteBuf {
    for prefix in 1..=5 {
        let Some(rest) = length.checked_sub(prefix) else {
            break;
        };
        let bytes = ByteBuf::from((0..=u8::MAX).cycle().take(rest).collect::<Vec<_>>());
        if encode(&bytes).unwrap().len() == length {
            return bytes;
        }
    }
    panic!("no byte string is encoded in {length} bytes");
}

fn memfd(content: &[u8], seals: SealFlag) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"test", flags).unwrap());
    file.write_all(content).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file.into()
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

/// What is left in a pipe whose write ends must all be gone by now: with one kept, there would be
/// more to come.
fn drained(read: OwnedFd) -> Vec<u8> {
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut content = Vec::new();
    let end = File::from(read).read_to_end(&mut content);
    end.expect("a write end was kept");
    content
}

// ---- descriptors -----------------------------------------------------------------------------

#[test]
fn descriptors_travel_in_order_and_are_close_on_exec() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let pipes: Vec<_> = (0..MAX_FDS).map(|_| pipe().unwrap()).collect();
    let writes: Vec<_> = pipes.iter().map(|(_, write)| write.as_fd()).collect();
    send(&ours, &fork(), &writes).unwrap();

    let received = receive::<ToLauncher>(&theirs).unwrap().unwrap();
    assert_eq!(received.message, fork());
    assert_eq!(received.fds.len(), MAX_FDS);
    for (index, fd) in received.fds.into_iter().enumerate() {
        let flags = FdFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
        write!(File::from(fd), "{index}").unwrap();
    }
    for (index, (read, write)) in pipes.into_iter().enumerate() {
        drop(write);
        assert_eq!(drained(read), index.to_string().into_bytes());
    }
}

#[test]
fn both_ends_of_a_pair_are_close_on_exec() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    for end in [ours, theirs] {
        let flags = FdFlag::from_bits_retain(fcntl(&end, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
    }
}

#[test]
fn descriptors_travel_along_with_a_body_in_a_memfd() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let (read, write) = pipe().unwrap();
    let message = start(vec![b'x'; MAX_INLINE]);
    send(&ours, &message, &[write.as_fd()]).unwrap();
    drop(write);

    let received = receive::<ToRoot>(&theirs).unwrap().unwrap();
    assert_eq!(received.message, message);
    let [fd] = <[OwnedFd; 1]>::try_from(received.fds).unwrap();
    File::from(fd).write_all(b"through").unwrap();
    assert_eq!(drained(read), b"through");
}

#[test]
fn one_descriptor_too_many_is_refused_and_none_is_kept() {
    for count in [MAX_FDS + 1, 32, 253] {
        let _turn = Turn::new();
        let (ours, theirs) = pair().unwrap();
        let (read, write) = pipe().unwrap();
        send_raw(&ours, &fork_bytes(), &vec![write.as_fd(); count]);
        drop(write);
        refused::<ToLauncher>(&theirs, "too many descriptors");
        assert_eq!(drained(read), b"");
    }
}

#[test]
fn descriptors_of_a_malformed_message_are_closed() {
    let cases: [(&str, Vec<u8>, &str); 5] = [
        ("body", framed(&[9, 9]), "malformed message"),
        (
            "trailing",
            [fork_bytes(), vec![0]].concat(),
            "malformed message",
        ),
        ("framing", vec![2, 1, 7], "unknown framing"),
        ("memfd and body", vec![IN_MEMFD, 1, 7], "unknown framing"),
        ("length", vec![INLINE; MAX_INLINE * 2], "too long"),
    ];
    for (case, bytes, why) in cases {
        let _turn = Turn::new();
        let (ours, theirs) = pair().unwrap();
        let (read, write) = pipe().unwrap();
        send_raw(&ours, &bytes, &[write.as_fd(); 3]);
        drop(write);
        refused::<ToLauncher>(&theirs, why);
        assert_eq!(drained(read), b"", "{case}");
    }
}

#[test]
fn an_end_without_room_for_descriptors_gets_none() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let (read, write) = pipe().unwrap();
    send_raw(&ours, &fork_bytes(), &[write.as_fd()]);
    send_raw(&ours, &fork_bytes(), &[write.as_fd(); 253]);
    send_raw(&ours, &fork_bytes(), &[]);
    drop(write);
    let mut receiver = Receiver::without_fds();
    for _ in 0..2 {
        let refused = receiver.recv::<ToLauncher>(theirs.as_fd()).unwrap_err();
        assert!(refused.to_string().contains("descriptors were lost"));
    }
    assert_eq!(drained(read), b"");
    let received = receiver.recv::<ToLauncher>(theirs.as_fd()).unwrap();
    assert_eq!(received.unwrap().message, fork());
}

/// The kernel fills what room there is and drops the rest: what it has put there is closed.
#[test]
fn an_end_with_little_room_for_descriptors_keeps_none() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let (read, write) = pipe().unwrap();
    let mut receiver = Receiver::with_body();
    for count in [3, 10, 253] {
        send_raw(&ours, &fork_bytes(), &vec![write.as_fd(); count]);
        let refused = receiver.recv::<ToLauncher>(theirs.as_fd()).unwrap_err();
        assert!(refused.to_string().contains("descriptors were lost"));
    }
    drop(write);
    assert_eq!(drained(read), b"");
    send_raw(&ours, &fork_bytes(), &[]);
    let received = receiver.recv::<ToLauncher>(theirs.as_fd()).unwrap();
    assert_eq!(received.unwrap().message, fork());
}

/// As many as there are numbers for come, and are closed.
#[test]
fn near_the_descriptor_limit_none_is_kept() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let (read, write) = pipe().unwrap();
    let mut receiver = Receiver::with_fds();
    // One that fits, so that there is something of it in the receiver's room.
    send_raw(&ours, &fork_bytes(), &[write.as_fd(); 4]);
    drop(receiver.recv::<ToLauncher>(theirs.as_fd()).unwrap());
    for free in [0, 2] {
        send_raw(&ours, &fork_bytes(), &[write.as_fd(); 4]);
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let lowest_free = u64::try_from(write.try_clone().unwrap().as_raw_fd()).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, lowest_free + free, hard).unwrap();
        let received = receiver.recv::<ToLauncher>(theirs.as_fd());
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let error = received.unwrap_err();
        assert!(error.to_string().contains("descriptors were lost"));
    }
    drop(write);
    assert_eq!(drained(read), b"");
}

/// A message whose descriptors have nowhere to go is no message.
#[test]
fn at_the_descriptor_limit_a_message_is_refused() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let (_read, write) = pipe().unwrap();
    send(&ours, &fork(), &[write.as_fd()]).unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let lowest_free = write.try_clone().unwrap().as_raw_fd();
    setrlimit(
        Resource::RLIMIT_NOFILE,
        u64::try_from(lowest_free).unwrap(),
        hard,
    )
    .unwrap();
    let received = receive::<ToLauncher>(&theirs);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    let error = received.unwrap_err();
    assert!(error.to_string().contains("descriptors were lost"));
}

// ---- bodies ----------------------------------------------------------------------------------

#[test]
fn bodies_around_the_limit_travel_inline_or_in_a_memfd() {
    for length in [
        1,
        MAX_INLINE - 2,
        MAX_INLINE - 1,
        MAX_INLINE,
        MAX_INLINE + 1,
        2 * MAX_INLINE,
    ] {
        let _turn = Turn::new();
        let (ours, theirs) = pair().unwrap();
        let message = body_of(length);
        send(&ours, &message, &[]).unwrap();
        let (datagram, framing) = peek(&theirs);
        assert!(datagram <= MAX_INLINE);
        let inline = (length < MAX_INLINE).then_some((length + 1, INLINE));
        assert_eq!((datagram, framing), inline.unwrap_or((1, IN_MEMFD)));

        let received = receive::<ByteBuf>(&theirs).unwrap().unwrap();
        assert!(received.message == message, "{length}");
        assert!(received.fds.is_empty());
    }
}

#[test]
fn bodies_of_megabytes_travel_up_to_the_limit() {
    for length in [6 << 20, MAX_BODY] {
        let _turn = Turn::new();
        let (ours, theirs) = pair().unwrap();
        let message = body_of(length);
        send(&ours, &message, &[]).unwrap();
        let received = receive::<ByteBuf>(&theirs).unwrap().unwrap();
        assert!(received.message == message, "{length}");
    }
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_is_sent() {
    let _turn = Turn::new();
    match Datagram::new(&body_of(MAX_BODY + 1)) {
        Err(error @ Error::TooLarge(length)) => {
            assert_eq!(length, MAX_BODY + 1);
            assert_eq!(error.errno(), Errno::E2BIG);
        }
        other => panic!("{other:?}"),
    }
}

/// The peer may still hold the memfd: it must not be able to change what was checked.
#[test]
fn a_memfd_that_lacks_a_seal_is_refused() {
    for missing in all_seals().iter() {
        let _turn = Turn::new();
        let (ours, theirs) = pair().unwrap();
        let body = memfd(&encode(&fork()).unwrap(), all_seals().difference(missing));
        send_raw(&ours, &[IN_MEMFD], &[body.as_fd()]);
        refused::<ToLauncher>(&theirs, "not sealed");
    }
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let body = memfd(&encode(&fork()).unwrap(), all_seals());
    send_raw(&ours, &[IN_MEMFD], &[body.as_fd()]);
    let received = receive::<ToLauncher>(&theirs).unwrap().unwrap();
    assert_eq!(received.message, fork());
}

#[test]
fn what_is_no_memfd_is_refused_as_one() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    send_raw(&ours, &[IN_MEMFD], &[]);
    refused::<ToLauncher>(&theirs, "no memfd");

    let (read, write) = pipe().unwrap();
    send_raw(&ours, &[IN_MEMFD], &[write.as_fd()]);
    drop(write);
    refused::<ToLauncher>(&theirs, "memfd");
    assert_eq!(drained(read), b"");

    let null = File::open("/dev/null").unwrap();
    send_raw(&ours, &[IN_MEMFD], &[null.as_fd()]);
    refused::<ToLauncher>(&theirs, "memfd");
}

#[test]
fn the_memfd_is_the_last_descriptor() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let (read, write) = pipe().unwrap();
    let body = memfd(&encode(&fork()).unwrap(), all_seals());
    send_raw(&ours, &[IN_MEMFD], &[body.as_fd(), write.as_fd()]);
    drop(write);
    refused::<ToLauncher>(&theirs, "memfd");
    assert_eq!(drained(read), b"");
}

/// Sparse: were it read before its size is checked, this would need gigabytes.
#[test]
fn a_memfd_over_the_limit_is_refused_unread() {
    for length in [MAX_BODY + 1, 1 << 40] {
        let _turn = Turn::new();
        let (ours, theirs) = pair().unwrap();
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let body = memfd_create(c"huge", flags).unwrap();
        ftruncate(&body, i64::try_from(length).unwrap()).unwrap();
        fcntl(&body, FcntlArg::F_ADD_SEALS(all_seals())).unwrap();
        send_raw(&ours, &[IN_MEMFD], &[body.as_fd()]);
        refused::<ToLauncher>(&theirs, "too large");
    }
}

#[test]
fn an_empty_memfd_and_one_with_trailing_bytes_are_malformed() {
    let trailing = [encode(&fork()).unwrap(), vec![0]].concat();
    for content in [vec![], trailing] {
        let _turn = Turn::new();
        let (ours, theirs) = pair().unwrap();
        let body = memfd(&content, all_seals());
        send_raw(&ours, &[IN_MEMFD], &[body.as_fd()]);
        refused::<ToLauncher>(&theirs, "malformed message");
    }
}

/// Where the sender has read or written to is not the receiver's business.
#[test]
fn the_offset_of_a_memfd_does_not_matter() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let mut body = File::from(memfd(&encode(&fork()).unwrap(), all_seals()));
    for offset in [0, 1, 1000] {
        body.seek(std::io::SeekFrom::Start(offset)).unwrap();
        send_raw(&ours, &[IN_MEMFD], &[body.as_fd()]);
        let received = receive::<ToLauncher>(&theirs).unwrap().unwrap();
        assert_eq!(received.message, fork());
    }
}

// ---- datagrams -------------------------------------------------------------------------------

#[test]
fn a_datagram_over_the_limit_is_refused() {
    for length in [MAX_INLINE + 1, MAX_INLINE + 2, 128 * 1024] {
        let _turn = Turn::new();
        let (ours, theirs) = pair().unwrap();
        let body = encode(&body_of(length - 1)).unwrap();
        send_raw(&ours, &framed(&body), &[]);
        refused::<ByteBuf>(&theirs, "too long");
    }
}

#[test]
fn a_truncated_datagram_is_refused() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let whole = framed(&encode(&start(vec![b'x'; 300])).unwrap());
    for length in 1..whole.len() {
        send_raw(&ours, &whole[..length], &[]);
        refused::<ToRoot>(&theirs, "malformed message");
    }
}

/// It cannot be told from the end of the connection, and counts as one.
#[test]
fn an_empty_datagram_is_the_end() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    send_raw(&ours, &[], &[]);
    assert!(receive::<ToLauncher>(&theirs).unwrap().is_none());
}

#[test]
fn an_empty_datagram_with_descriptors_is_refused() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let (read, write) = pipe().unwrap();
    send_raw(&ours, &[], &[write.as_fd()]);
    drop(write);
    refused::<ToLauncher>(&theirs, "unknown framing");
    assert_eq!(drained(read), b"");
}

/// What a longer datagram has left in the buffer is no part of the next message.
#[test]
fn a_receiver_is_reused() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let (_read, write) = pipe().unwrap();
    let long = start(vec![b'x'; 1000]);
    send(&ours, &long, &[write.as_fd(); 4]).unwrap();
    send(&ours, &start(vec![]), &[]).unwrap();
    send(&ours, &long, &[write.as_fd()]).unwrap();
    let mut receiver = Receiver::with_fds();
    for (expected, fds) in [(&long, 4), (&start(vec![]), 0), (&long, 1)] {
        let received = receiver.recv::<ToRoot>(theirs.as_fd()).unwrap().unwrap();
        assert_eq!(&received.message, expected);
        assert_eq!(received.fds.len(), fds);
    }
}

// ---- the connection --------------------------------------------------------------------------

#[test]
fn nothing_yet_is_eagain() {
    let _turn = Turn::new();
    let (_ours, theirs) = pair().unwrap();
    let error = receive::<ToLauncher>(&theirs).unwrap_err();
    assert_eq!(error.errno(), Errno::EAGAIN);
    assert!(is_busy(error.errno()));
}

#[test]
fn a_full_socket_is_eagain_and_recovers() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let (_read, write) = pipe().unwrap();
    let mut sent = 0;
    let (rejected, error) = loop {
        let datagram = Datagram::new(&ToLauncher::Fork { id: sent }).unwrap();
        match datagram.send(ours.as_fd(), &[write.as_fd()]) {
            Ok(()) => sent += 1,
            Err(error) => break (datagram, error),
        }
        assert!(sent < 100_000, "the socket never fills");
    };
    assert!(is_busy(error.errno()), "{error}");
    assert!(sent > 8, "only {sent} fit");

    let mut receiver = Receiver::with_fds();
    for id in 0..sent {
        let received = receiver.recv::<ToLauncher>(theirs.as_fd()).unwrap();
        let received = received.unwrap();
        assert_eq!(received.message, ToLauncher::Fork { id });
        assert_eq!(received.fds.len(), 1);
    }
    rejected.send(ours.as_fd(), &[write.as_fd()]).unwrap();
    let received = receiver.recv::<ToLauncher>(theirs.as_fd()).unwrap();
    assert_eq!(received.unwrap().message, ToLauncher::Fork { id: sent });
}

/// The same for a body in a memfd, which must still be whole at the second attempt.
#[test]
fn a_large_message_can_be_sent_again() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let filler = Datagram::new(&body_of(MAX_INLINE - 1)).unwrap();
    while filler.send(ours.as_fd(), &[]).is_ok() {}
    while send(&ours, &fork(), &[]).is_ok() {}
    let message = body_of(1 << 20);
    let datagram = Datagram::new(&message).unwrap();
    for _ in 0..2 {
        assert!(is_busy(
            datagram.send(ours.as_fd(), &[]).unwrap_err().errno()
        ));
    }
    let mut receiver = Receiver::with_fds();
    while peek_kind(&theirs).is_some() {
        let _ = receiver.recv::<ByteBuf>(theirs.as_fd());
    }
    for _ in 0..2 {
        datagram.send(ours.as_fd(), &[]).unwrap();
        let received = receiver.recv::<ByteBuf>(theirs.as_fd()).unwrap().unwrap();
        assert!(received.message == message);
    }
}

fn peek_kind(socket: &OwnedFd) -> Option<u8> {
    let mut first = [0];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(socket.as_raw_fd(), &mut first, flags).ok()?;
    Some(first[0])
}

#[test]
fn a_closed_peer_is_the_end_after_what_it_sent() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    send(&ours, &fork(), &[]).unwrap();
    drop(ours);
    let received = receive::<ToLauncher>(&theirs).unwrap().unwrap();
    assert_eq!(received.message, fork());
    for _ in 0..2 {
        assert!(receive::<ToLauncher>(&theirs).unwrap().is_none());
    }
    let error = send(&theirs, &FromTask::Execing { pid: 1 }, &[]).unwrap_err();
    assert_eq!(error.errno(), Errno::EPIPE);
    assert!(!is_busy(error.errno()));
}

#[test]
fn a_peer_that_closed_one_direction_can_still_be_told() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    nix::sys::socket::shutdown(ours.as_raw_fd(), nix::sys::socket::Shutdown::Write).unwrap();
    assert!(receive::<ToLauncher>(&theirs).unwrap().is_none());
    send(&theirs, &fork(), &[]).unwrap();
    let received = receive::<ToLauncher>(&ours).unwrap().unwrap();
    assert_eq!(received.message, fork());
}

/// A peer that dies with messages of ours unread resets the connection. That is an end, no error.
#[test]
fn a_reset_connection_is_the_end() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    send(&theirs, &fork(), &[]).unwrap();
    drop(ours);
    for _ in 0..2 {
        assert!(receive::<ToLauncher>(&theirs).unwrap().is_none());
    }
}

/// What it said before it died is still there: the last words of a supervisor are the exit
/// status, and a request to end the program may have crossed them.
#[test]
fn a_reset_connection_keeps_what_was_sent_before() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    send(&theirs, &fork(), &[]).unwrap();
    send(&ours, &FromTask::Execing { pid: 1 }, &[]).unwrap();
    send(&ours, &FromTask::Execing { pid: 2 }, &[]).unwrap();
    drop(ours);
    for pid in [1, 2] {
        let received = receive::<FromTask>(&theirs).unwrap();
        let message = received.map(|received| received.message);
        assert_eq!(message, Some(FromTask::Execing { pid }));
    }
    assert!(receive::<FromTask>(&theirs).unwrap().is_none());
}

/// Sent but never received: the kernel closes them with the socket.
#[test]
fn descriptors_in_flight_end_with_the_socket() {
    let _turn = Turn::new();
    let (ours, theirs) = pair().unwrap();
    let (read, write) = pipe().unwrap();
    send(&ours, &start(vec![b'x'; MAX_INLINE]), &[write.as_fd(); 4]).unwrap();
    drop((write, theirs, ours));
    assert_eq!(drained(read), b"");
}

#[test]
fn what_is_no_socket_is_an_error() {
    let _turn = Turn::new();
    let null: OwnedFd = File::open("/dev/null").unwrap().into();
    let error = receive::<ToLauncher>(&null).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOTSOCK);
    let error = send(&null, &fork(), &[]).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOTSOCK);
}
