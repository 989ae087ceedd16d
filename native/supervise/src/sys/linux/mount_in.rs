//! What is built below a directory that becomes the root.
//!
//! Runs in the task, with its privileges: in a container of root's those of root, in a rootless one
//! those in its own user namespace, over its own mount namespace. What lies below `root` may belong
//! to anybody, who may change it meanwhile.
//!
//! Rules:
//! 1. `root` and sources are the caller's word, as in mount(8). A target is looked up with `root`
//!    as the root directory, once; from then on it is a descriptor. So neither `..` nor a symbolic
//!    link, put there at any time, leads a mount, a file or a link outside.
//! 2. A mount gets its flags before it is attached, so it is never seen without them. Only before
//!    Linux 5.12 they come right after; then what is mounted below it cannot come along (`ENOSYS`).
//! 3. Flags are only ever added: those a mount has may be locked (mount_namespaces(7)).
//! 4. What is made (directories, files, links) has not been there before, and its name is no link.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{openat, AtFlags, OFlag};
use nix::sys::stat::{fstatat, mkdirat, Mode, SFlag};
use nix::unistd::{faccessat, symlinkat, AccessFlags};
use stdio_protocol::value::{Data, MountFlags, Path, Value};

use super::{Extent, NewFileSystem};
use crate::call::{c_string, ok, os};
use crate::sys;

/// Flags of mount(2), and what mount_setattr(2) and fsmount(2) call them.
const ATTRIBUTES: [(u32, u64); 8] = [
    (0x1, 0x1),           // MS_RDONLY
    (0x2, 0x2),           // MS_NOSUID
    (0x4, 0x4),           // MS_NODEV
    (0x8, 0x8),           // MS_NOEXEC
    (0x100, 0x0020_0000), // MS_NOSYMFOLLOW
    (0x400, 0x10),        // MS_NOATIME
    (0x800, 0x80),        // MS_NODIRATIME
    (0x0100_0000, 0x20),  // MS_STRICTATIME
];
const MS_REMOUNT: u32 = 0x20;
const MS_BIND: u32 = 0x1000;
const MS_REC: u32 = 0x4000;
const READ_ONLY: u64 = 0x1;

/// The attributes that `flags` ask for; `EINVAL` for a flag that is none of them nor `besides`.
fn attributes(flags: MountFlags, besides: u32) -> Result<u64, Errno> {
    let known = ATTRIBUTES.iter().fold(besides, |known, (ms, _)| known | ms);
    if flags.0 & !known != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(ATTRIBUTES
        .iter()
        .filter(|(ms, _)| flags.0 & ms != 0)
        .fold(0, |set, (_, attribute)| set | attribute))
}

fn directory(path: &Path) -> Result<OwnedFd, Errno> {
    let how = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(os(path), how, Mode::empty())
}

/// Rule 1.
fn look_up(root: &Path, target: &Path) -> Result<OwnedFd, Errno> {
    let root = directory(root)?;
    sys::open_in(root.as_fd(), &c_string(&target.0)?, OFlag::O_PATH)
}

/// The directory of a path and its last name, which is none of `.`, `..` and nothing.
fn look_up_parent(root: &Path, path: &Path) -> Result<(OwnedFd, CString), Errno> {
    let (parent, name) = match path.0.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => path.0.split_at(slash + 1),
        None => (&b"."[..], path.0.as_slice()),
    };
    if [&b""[..], b".", b".."].contains(&name) {
        return Err(Errno::EINVAL);
    }
    let root = directory(root)?;
    let how = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let parent = sys::open_in(root.as_fd(), &c_string(parent)?, how)?;
    Ok((parent, c_string(name)?))
}

/// Attaches `mount` at `target` with more attributes (rules 2 and 3).
fn attach(
    mount: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    set: u64,
    extent: Extent,
) -> Result<(), Errno> {
    match sys::add_attributes(mount, set, extent) {
        Ok(()) => sys::attach(mount, target),
        Err(Errno::ENOSYS) if extent == Extent::One => {
            sys::attach(mount, target)?;
            remount(mount, set)
        }
        Err(errno) => Err(errno),
    }
}

/// [`sys::add_attributes`] before Linux 5.12: mount(2) replaces all flags, so it is told the old
/// ones too.
fn remount(mount: BorrowedFd<'_>, set: u64) -> Result<(), Errno> {
    // ST_* of statvfs(3), whose numbers are those of MS_* but for the last.
    const SAME: u64 = 0x1 | 0x2 | 0x4 | 0x8 | 0x400 | 0x800;
    const ST_RELATIME: u64 = 0x1000;
    const MS_RELATIME: u32 = 1 << 21;
    let old = sys::mount_flags(mount)?;
    let mut flags = u32::try_from(old & SAME).map_err(|_| Errno::EOVERFLOW)?;
    if old & ST_RELATIME != 0 {
        flags |= MS_RELATIME;
    }
    for (ms, attribute) in ATTRIBUTES {
        if set & attribute != 0 {
            flags |= ms;
        }
    }
    let path =
        CString::new(format!("/proc/self/fd/{}", mount.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
    sys::mount(None, &path, None, flags | MS_REMOUNT | MS_BIND, None)
}

/// A copy with what is mounted below it only if the kernel gives no other.
fn copy_tree(copy: impl Fn(Extent) -> Result<OwnedFd, Errno>) -> Result<(OwnedFd, Extent), Errno> {
    match copy(Extent::One) {
        Ok(tree) => Ok((tree, Extent::One)),
        Err(Errno::EINVAL) => Ok((copy(Extent::All)?, Extent::All)),
        Err(errno) => Err(errno),
    }
}

pub fn bind_in(
    root: &Path,
    source: &Path,
    target: &Path,
    flags: MountFlags,
) -> Result<Value, Errno> {
    let set = attributes(flags, MS_BIND | MS_REC)?;
    let source = c_string(&source.0)?;
    let (tree, extent) = match flags.0 & MS_REC {
        0 => copy_tree(|extent| sys::copy_tree(&source, extent))?,
        _ => (sys::copy_tree(&source, Extent::All)?, Extent::All),
    };
    let target = look_up(root, target)?;
    attach(tree.as_fd(), target.as_fd(), set, extent)?;
    ok()
}

pub fn device_in(root: &Path, source: &Path, target: &Path) -> Result<Value, Errno> {
    // Not MS_NODEV. Read-only is the inode, not what is behind it.
    let set = attributes(MountFlags(0x1 | 0x2 | 0x8), 0)?;
    let tree = sys::copy_tree(&c_string(&source.0)?, Extent::One)?;
    let mode = fstatat(&tree, c"", AtFlags::AT_EMPTY_PATH)?.st_mode;
    if SFlag::from_bits_truncate(mode) & SFlag::S_IFMT != SFlag::S_IFCHR {
        return Err(Errno::ENODEV);
    }
    let (parent, name) = look_up_parent(root, target)?;
    let how = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let file = loop {
        match openat(
            &parent,
            name.as_c_str(),
            how,
            Mode::from_bits_truncate(0o644),
        ) {
            Err(Errno::EINTR) => {}
            result => break result?,
        }
    };
    attach(tree.as_fd(), file.as_fd(), set, Extent::One)?;
    ok()
}

pub fn mount_in(
    root: &Path,
    fstype: &[u8],
    target: &Path,
    flags: MountFlags,
    data: &Data,
) -> Result<Value, Errno> {
    let target = look_up(root, target)?;
    let mount = new_mount(fstype, attributes(flags, 0)?, &data.0)?;
    sys::attach(mount.as_fd(), target.as_fd())?;
    ok()
}

/// A mount of a new file system, attached nowhere.
fn new_mount(fstype: &[u8], attributes: u64, data: &[u8]) -> Result<OwnedFd, Errno> {
    let fstype = c_string(fstype)?;
    let system = NewFileSystem::open(&fstype)?;
    // What mount(8) shows for it.
    system.set(c"source", Some(&fstype))?;
    for option in data
        .split(|byte| *byte == b',')
        .filter(|option| !option.is_empty())
    {
        match option.iter().position(|byte| *byte == b'=') {
            Some(equals) => {
                let (key, value) = (&option[..equals], &option[equals + 1..]);
                system.set(&c_string(key)?, Some(&c_string(value)?))?;
            }
            None => system.set(&c_string(option)?, None)?,
        }
    }
    system.mount(attributes)
}

/// Root's proc(5) is more than a view: a process that is root outside, in whatever namespace, could
/// change the kernel by it, and have a program run by it (`kernel.core_pattern`).
pub fn proc_in(root: &Path, target: &Path, flags: MountFlags) -> Result<Value, Errno> {
    /// What decides whether any of the whole system's files can be written.
    const PROBES: [&CStr; 2] = [c"sysrq-trigger", c"sys/kernel/core_pattern"];
    const SYSTEM: [&CStr; 4] = [c"sys", c"sysrq-trigger", c"irq", c"bus"];
    let target = look_up(root, target)?;
    let mount = new_mount(b"proc", attributes(flags, 0)?, b"")?;
    sys::attach(mount.as_fd(), target.as_fd())?;
    let writable =
        |path: &&CStr| faccessat(&mount, *path, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok();
    if !PROBES.iter().any(writable) {
        return ok();
    }
    for path in SYSTEM {
        match sys::open_in(mount.as_fd(), path, OFlag::O_PATH) {
            Ok(place) => {
                let tree = sys::copy_tree_of(place.as_fd(), Extent::All)?;
                attach(tree.as_fd(), place.as_fd(), READ_ONLY, Extent::One)?;
            }
            // A kernel without it.
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    ok()
}

pub fn remount_in(root: &Path, target: &Path, flags: MountFlags) -> Result<Value, Errno> {
    let set = attributes(flags, 0)?;
    let target = look_up(root, target)?;
    match sys::add_attributes(target.as_fd(), set, Extent::One) {
        Err(Errno::ENOSYS) => remount(target.as_fd(), set)?,
        result => result?,
    }
    ok()
}

pub fn mkdir_in(root: &Path, path: &Path, bits: u32) -> Result<Value, Errno> {
    let (parent, name) = look_up_parent(root, path)?;
    mkdirat(&parent, name.as_c_str(), Mode::from_bits_truncate(bits))?;
    ok()
}

pub fn symlink_in(root: &Path, target: &Path, path: &Path) -> Result<Value, Errno> {
    let (parent, name) = look_up_parent(root, path)?;
    symlinkat(os(target), &parent, name.as_c_str())?;
    ok()
}
