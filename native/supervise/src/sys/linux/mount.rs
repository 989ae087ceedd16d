//! Mounts by descriptor: open_tree(2), move_mount(2), fsopen(2) (Linux 5.2), openat2(2) (5.6) and
//! mount_setattr(2) (5.12), which C libraries do not offer.

use std::ffi::{c_int, c_long, c_uint, CStr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};

// linux/mount.h
const OPEN_TREE_CLONE: c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: c_uint = 0x40;
const FSOPEN_CLOEXEC: c_uint = 1;
const FSMOUNT_CLOEXEC: c_uint = 1;
const FSCONFIG_SET_FLAG: c_uint = 0;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_CMD_CREATE: c_uint = 6;
const MOUNT_ATTR_ATIME: u64 = 0x70;

// linux/fcntl.h
const AT_RECURSIVE: c_uint = 0x8000;

/// linux/mount.h
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What a mount is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The mount alone.
    One,
    /// What is mounted below it too.
    All,
}

impl Extent {
    fn flag(self) -> c_uint {
        match self {
            Self::One => 0,
            Self::All => AT_RECURSIVE,
        }
    }
}

fn flags(flags: c_int) -> c_uint {
    flags.cast_unsigned()
}

/// The descriptor that a raw system call has made.
fn descriptor(result: c_long) -> Result<OwnedFd, Errno> {
    let fd = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just given out this number, to this single-threaded process alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens what `path` is with `root` for the root directory: neither `..` nor a symbolic link leads
/// out of it. openat2(2)
pub fn open_in(root: BorrowedFd<'_>, path: &CStr, how: OFlag) -> Result<OwnedFd, Errno> {
    // The kernel gives up when directories are renamed meanwhile; somebody may do so on purpose.
    const TRIES: u32 = 1000;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new()
        .flags(how | OFlag::O_CLOEXEC)
        .resolve(resolve);
    for _ in 1..TRIES {
        match nix::fcntl::openat2(root, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            result => return result,
        }
    }
    nix::fcntl::openat2(root, path, how)
}

/// A copy of the mount at `path`, from there down, attached nowhere. `EINVAL` for `One` if mounts
/// below it may not be had without each other (mount_namespaces(7)).
pub fn copy_tree(path: &CStr, extent: Extent) -> Result<OwnedFd, Errno> {
    copy(libc::AT_FDCWD, path, extent.flag())
}

/// As [`copy_tree`], of what a descriptor is.
pub fn copy_tree_of(fd: BorrowedFd<'_>, extent: Extent) -> Result<OwnedFd, Errno> {
    let empty = flags(libc::AT_EMPTY_PATH);
    copy(fd.as_raw_fd(), c"", empty | extent.flag())
}

fn copy(at: RawFd, path: &CStr, how: c_uint) -> Result<OwnedFd, Errno> {
    let how = how | OPEN_TREE_CLONE | flags(libc::O_CLOEXEC);
    // SAFETY: `path` is NUL-terminated and outlives the call.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, at, path.as_ptr(), how) })
}

/// Attaches a mount that is attached nowhere at the place that `target` is. move_mount(2)
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let how = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are NUL-terminated constants.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            how,
        )
    };
    Errno::result(result).map(drop)
}

/// Adds attributes (`MOUNT_ATTR_*`) to a mount; those it has stay. mount_setattr(2)
pub fn add_attributes(mount: BorrowedFd<'_>, set: u64, extent: Extent) -> Result<(), Errno> {
    let attributes = MountAttr {
        set,
        // The times of access are one choice of several, which has to be made anew.
        clear: match set & MOUNT_ATTR_ATIME {
            0 => 0,
            _ => MOUNT_ATTR_ATIME,
        },
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: pointer and size describe `attributes`, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags(libc::AT_EMPTY_PATH) | extent.flag(),
            ptr::from_ref(&attributes),
            std::mem::size_of::<MountAttr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// The flags (`ST_*`) of the mount that a descriptor is on. fstatfs(2)
pub fn mount_flags(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let flags = nix::sys::statvfs::fstatvfs(fd)?.flags();
    #[allow(clippy::useless_conversion)]
    Ok(u64::from(flags.bits()))
}

/// A file system that is being configured. fsopen(2)
pub struct NewFileSystem(OwnedFd);

impl NewFileSystem {
    pub fn open(fstype: &CStr) -> Result<Self, Errno> {
        // SAFETY: `fstype` is NUL-terminated and outlives the call.
        descriptor(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), FSOPEN_CLOEXEC) })
            .map(Self)
    }

    fn configure(&self, command: c_uint, key: *const i8, value: *const i8) -> Result<(), Errno> {
        // SAFETY: the callers give NULL, or a NUL-terminated string that outlives the call, as the
        // command wants it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                command,
                key,
                value,
                0,
            )
        };
        Errno::result(result).map(drop)
    }

    pub fn set(&self, key: &CStr, value: Option<&CStr>) -> Result<(), Errno> {
        let key = key.as_ptr().cast();
        match value {
            Some(value) => self.configure(FSCONFIG_SET_STRING, key, value.as_ptr().cast()),
            None => self.configure(FSCONFIG_SET_FLAG, key, ptr::null()),
        }
    }

    /// A mount of it, attached nowhere.
    pub fn mount(self, attributes: u64) -> Result<OwnedFd, Errno> {
        self.configure(FSCONFIG_CMD_CREATE, ptr::null(), ptr::null())?;
        let attributes = c_uint::try_from(attributes).map_err(|_| Errno::EINVAL)?;
        // SAFETY: takes numbers only.
        descriptor(unsafe {
            libc::syscall(
                libc::SYS_fsmount,
                self.0.as_raw_fd(),
                FSMOUNT_CLOEXEC,
                attributes,
            )
        })
    }
}

/// Restricts what capabilities(7) a program can ever get to those in `keep`, a set of bits, root's
/// programs included.
pub fn limit_capabilities(keep: u64) -> Result<(), Errno> {
    const VERSION: u32 = 0x2008_0522;
    const PR_CAPBSET_READ: c_int = 23;
    const PR_CAPBSET_DROP: c_int = 24;
    const PR_CAP_AMBIENT: c_int = 47;
    const PR_CAP_AMBIENT_CLEAR_ALL: c_int = 4;
    // linux/capability.h: the header, then effective, permitted, inheritable, low and high words.
    let header = [VERSION, 0];
    let mut sets = [0_u32; 6];
    // SAFETY: takes numbers only.
    let prctl = |option, argument: u32| unsafe { libc::prctl(option, argument, 0, 0, 0) };
    for capability in 0..u64::BITS {
        match prctl(PR_CAPBSET_READ, capability) {
            // The kernel knows no more of them.
            -1 => break,
            1 if keep & (1 << capability) == 0 => {
                Errno::result(prctl(PR_CAPBSET_DROP, capability))?;
            }
            _ => {}
        }
    }
    // What is inheritable would come back at exec by a file that has it so.
    // SAFETY: header and sets have the size that the version in the header asks for.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) })?;
    sets[2] = 0;
    sets[5] = 0;
    // SAFETY: as above; both are only read.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) })?;
    Errno::result(prctl(
        PR_CAP_AMBIENT,
        PR_CAP_AMBIENT_CLEAR_ALL.cast_unsigned(),
    ))
    .map(drop)
}
