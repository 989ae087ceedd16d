//! Paths, descriptors, sockets.

use std::os::fd::{IntoRawFd, RawFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, AT_FDCWD};
use nix::sys::stat::{fchmodat, FchmodatFlags, Mode};
use nix::unistd::{self, Gid, Uid};
use stdio_protocol::value::{Cstruct, FileFlags, Path, PtrArg, Timeval, Transfer, Value};

use super::{errno, int, ok, ok_value, os, Context};
use crate::sys::{self, Argument, Readiness};

pub fn chdir(path: &Path) -> Result<Value, Errno> {
    unistd::chdir(os(path))?;
    ok()
}

pub fn getcwd() -> Result<Value, Errno> {
    let path = unistd::getcwd()?.into_os_string();
    ok_value(Value::Bytes(path.into_vec()))
}

fn mode(bits: u32) -> Mode {
    Mode::from_bits_retain(sys::mode(bits))
}

pub fn open(path: &Path, flags: FileFlags, bits: u32) -> Result<Value, Errno> {
    let flags = OFlag::from_bits_retain(flags.as_int()) | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(os(path), flags, mode(bits))?;
    ok_value(int(fd.into_raw_fd()))
}

pub fn close(fd: RawFd) -> Result<Value, Errno> {
    sys::close(fd)?;
    ok()
}

pub fn read(fd: RawFd, count: u64) -> Result<Value, Errno> {
    let count = usize::try_from(count).map_or(Transfer::MAX, |count| count.min(Transfer::MAX));
    ok_value(Value::Bytes(sys::read(fd, count)?))
}

pub fn write(fd: RawFd, data: &[u8]) -> Result<Value, Errno> {
    let written = sys::write(fd, &data[..data.len().min(Transfer::MAX)])?;
    let written = i64::try_from(written).map_err(|_| Errno::EOVERFLOW)?;
    ok_value(int(written))
}

/// One write, as files of proc(5) want it; a part of the data is an error.
pub fn write_file(path: &Path, data: &[u8]) -> Result<Value, Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(os(path), flags, Mode::empty())?;
    match unistd::write(&fd, data)? {
        written if written == data.len() => ok(),
        _ => Err(Errno::EIO),
    }
}

pub fn lseek(fd: RawFd, offset: i64, whence: i32) -> Result<Value, Errno> {
    sys::lseek(fd, offset, whence)?;
    ok()
}

pub fn fcntl(fd: RawFd, command: i32, argument: i64) -> Result<Value, Errno> {
    ok_value(int(sys::fcntl(fd, command, argument)?))
}

pub fn readdir(path: &Path) -> Result<Value, Errno> {
    // The standard library leaves these two out; every directory has them.
    let mut names = vec![Value::Bytes(b".".to_vec()), Value::Bytes(b"..".to_vec())];
    for entry in std::fs::read_dir(os(path)).map_err(errno)? {
        let name = entry.map_err(errno)?.file_name();
        names.push(Value::Bytes(name.into_vec()));
    }
    ok_value(Value::List(names))
}

pub fn mkdir(path: &Path, bits: u32) -> Result<Value, Errno> {
    unistd::mkdir(os(path), mode(bits))?;
    ok()
}

pub fn rmdir(path: &Path) -> Result<Value, Errno> {
    std::fs::remove_dir(os(path)).map_err(errno)?;
    ok()
}

pub fn unlink(path: &Path) -> Result<Value, Errno> {
    unistd::unlink(os(path))?;
    ok()
}

pub fn mkfifo(path: &Path, bits: u32) -> Result<Value, Errno> {
    unistd::mkfifo(os(path), mode(bits))?;
    ok()
}

pub fn chmod(path: &Path, bits: u32) -> Result<Value, Errno> {
    fchmodat(AT_FDCWD, os(path), mode(bits), FchmodatFlags::FollowSymlink)?;
    ok()
}

pub fn chown(path: &Path, uid: u32, gid: u32) -> Result<Value, Errno> {
    unistd::chown(os(path), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    ok()
}

pub fn link(old: &Path, new: &Path) -> Result<Value, Errno> {
    unistd::linkat(AT_FDCWD, os(old), AT_FDCWD, os(new), AtFlags::empty())?;
    ok()
}

pub fn symlink(target: &Path, path: &Path) -> Result<Value, Errno> {
    unistd::symlinkat(os(target), AT_FDCWD, os(path))?;
    ok()
}

pub fn ioctl(fd: RawFd, request: u32, argument: &PtrArg) -> Result<Value, Errno> {
    let argument = Argument::new(argument)?;
    let result = sys::ioctl(fd, request, &argument)?;
    ok_value(Value::Map(vec![
        (Value::atom("return_value"), int(result)),
        (Value::atom("arg"), argument.contents()),
    ]))
}

pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<Value, Errno> {
    ok_value(int(sys::socket(domain, kind, protocol)?))
}

pub fn connect(fd: RawFd, address: &Cstruct) -> Result<Value, Errno> {
    sys::connect(fd, &Argument::structure(address)?)?;
    ok()
}

pub fn select(
    context: &Context,
    descriptors: [&[RawFd]; 3],
    timeout: Option<Timeval>,
) -> Result<Value, Errno> {
    const KINDS: [Readiness; 3] = [
        Readiness::Readable,
        Readiness::Writable,
        Readiness::Exceptional,
    ];
    let mut wanted = Vec::new();
    for (fds, kind) in descriptors.into_iter().zip(KINDS) {
        for fd in fds {
            wanted.push((context.own(*fd)?, kind));
        }
    }
    let ready = sys::select(&wanted, timeout)?;
    Ok(Value::ok_with(KINDS.map(|kind| {
        let fds = ready.iter().filter(|(_, of)| *of == kind);
        Value::List(fds.map(|(fd, _)| int(*fd)).collect())
    })))
}
