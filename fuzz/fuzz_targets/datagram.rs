//! Any datagrams with any descriptors, received as the helper and the NIF do: no panic, no
//! descriptor that stays.
//!
//! The first byte says what comes along: the low four bits how many descriptors, bit 4 that the
//! last is a memfd with the rest of the input, bit 5 that it is sealed, bits 6 and 7 who receives.
#![no_main]

use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libfuzzer_sys::fuzz_target;
use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};
use stdio_protocol::channel::{pair, Receiver};
use stdio_protocol::message::{FromNode, ToLauncher, ToRoot};

fn memfd(body: &[u8], sealed: bool) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"fuzz", flags).unwrap());
    file.write_all(body).unwrap();
    if sealed {
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::all())).unwrap();
    }
    file.into()
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fuzz_target!(|input: &[u8]| {
    let Some((control, body)) = input.split_first() else {
        return;
    };
    let before = open_descriptors();
    {
        let (ours, theirs) = pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        let (in_memfd, sealed) = (control & 16 != 0, control & 32 != 0);
        let mut raw = vec![null.as_raw_fd(); usize::from(control & 15)];
        let memfd = in_memfd.then(|| memfd(body, sealed));
        raw.extend(memfd.as_ref().map(AsRawFd::as_raw_fd));
        let bytes = if in_memfd { &[1][..] } else { body };
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
        let slices = [IoSlice::new(bytes)];
        if sendmsg::<()>(
            ours.as_raw_fd(),
            &slices,
            rights,
            MsgFlags::MSG_DONTWAIT,
            None,
        )
        .is_ok()
        {
            match control >> 6 {
                0 => drop(Receiver::with_fds().recv::<ToLauncher>(theirs.as_fd())),
                1 => drop(Receiver::with_fds().recv::<ToRoot>(theirs.as_fd())),
                2 => drop(Receiver::with_body().recv::<FromNode>(theirs.as_fd())),
                _ => drop(Receiver::without_fds().recv::<FromNode>(theirs.as_fd())),
            }
        }
    }
    assert_eq!(open_descriptors(), before);
});
