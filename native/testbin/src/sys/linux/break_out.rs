//! Tries to leave a container, or to change what it shares with the host, and prints the outcome of
//! each try, `name=ok` (it worked), `name=inside` or `name=ERRNO`. FAULTS rows 30, 31 and 32.
//!
//! | mode | what is tried |
//! |---|---|
//! | (none) | mounts, devices, namespaces, roots, file handles, proc(5) |
//! | `--nested` | the same with all capabilities in user, mount, PID and network namespaces of its own; `unshare=` comes first |
//! | `--calls` | keyctl(2) and bpf(2) |
//!
//! Every try is one that changes nothing on the host if it works: mounts are those of this mount
//! namespace, files are opened for writing and not written to.

use std::ffi::{c_long, CStr};
use std::fs::{File, Metadata, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use crate::*;
use nix::errno::Errno;
use nix::sys::wait::waitpid;

pub fn run(cli: &mut Cli) -> i32 {
    cli.life();
    cli.mark();
    let (nested, calls) = (cli.flag("--nested"), cli.flag("--calls"));
    cli.done();
    if calls {
        report("keyctl", keyctl());
        report("bpf", bpf());
        return 0;
    }
    if !nested {
        attack();
        report("setns_self", setns("/proc/self/ns/mnt"));
        report("setns_init", setns("/proc/1/ns/mnt"));
        report("mount_tmpfs", mount(c"none", c"/tmp", c"tmpfs", 0));
        return 0;
    }
    let outer = File::open("/proc/self/ns/mnt").map_err(errno);
    let entered = enter_namespaces();
    report("unshare", entered);
    if entered.is_err() {
        return 0;
    }
    // The first process in the new PID namespace.
    let child = fork_child(|| {
        report("setns_outer", outer.and_then(enter));
        attack();
        report("fresh_proc", fresh_proc());
        report("fresh_sysfs", mount(c"none", c"/tmp", c"sysfs", 0));
        0
    });
    match child.and_then(|child| waitpid(child, None)) {
        Ok(_) => 0,
        Err(error) => failed("fork", error),
    }
}

/// A try comes to the errno it failed with, or to whether it led out.
enum Tried {
    Out,
    Inside,
}

fn report(name: &str, outcome: Result<impl Into<Tried>, Errno>) {
    match outcome.map(Into::into) {
        Ok(Tried::Out) => say(&format!("{name}=ok\n")),
        Ok(Tried::Inside) => say(&format!("{name}=inside\n")),
        Err(error) => say(&format!("{name}={error:?}\n")),
    }
}

impl From<()> for Tried {
    fn from((): ()) -> Self {
        Tried::Out
    }
}

fn attack() {
    report("remount_root", remount(c"/"));
    report("remount_usr", remount(c"/usr"));
    report("setattr_root", make_writable(libc::AT_FDCWD, c"/"));
    report("setattr_usr", make_writable(libc::AT_FDCWD, c"/usr"));
    report("clone_usr", clone_writable(c"/usr"));
    report("umount_usr", umount(c"/usr"));
    report("umount_dev", umount(c"/dev"));
    report("umount_proc_sys", umount(c"/proc/sys"));
    report("mknod", mknod());
    report("setns_user", setns("/proc/1/ns/user"));
    report("setns_pidfd", setns_pidfd());
    report("dotdot", dotdot());
    report("fd_relative", fd_relative());
    report("proc_root", proc_root());
    report("handle", handle());
    report("chroot_escape", chroot_escape());
    report("exe", open_for_writing("/proc/1/exe"));
    report("exe_reopened", reopen("/proc/1/exe"));
    report("kcore", read("/proc/kcore"));
    report("sysrq", open_for_writing("/proc/sysrq-trigger"));
    report(
        "core_pattern",
        open_for_writing("/proc/sys/kernel/core_pattern"),
    );
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn check(result: c_long) -> Result<c_long, Errno> {
    Errno::result(result)
}

fn descriptor(result: c_long) -> Result<OwnedFd, Errno> {
    let number = i32::try_from(check(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the call that gave this number has just made it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn enter_namespaces() -> Result<(), Errno> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let all = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC;
    // SAFETY: takes flags; this process has one thread.
    check(unsafe { libc::unshare(all) }.into())?;
    // Who may not map an id (uid 0 without CAP_SETFCAP) goes on without one, and loses nothing.
    for (name, map) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ] {
        let _ = std::fs::write(format!("/proc/self/{name}"), map);
    }
    Ok(())
}

fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong) -> Result<(), Errno> {
    let none = std::ptr::null();
    // SAFETY: strings end with NUL, no data.
    let result =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, none) };
    check(result.into()).map(drop)
}

fn remount(target: &CStr) -> Result<(), Errno> {
    mount(c"", target, c"", libc::MS_REMOUNT | libc::MS_BIND)
}

fn umount(target: &CStr) -> Result<(), Errno> {
    // SAFETY: the string ends with NUL.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }.into()).map(drop)
}

/// Clears MOUNT_ATTR_RDONLY on everything below.
fn make_writable(directory: i32, path: &CStr) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: 0,
        attr_clr: libc::MOUNT_ATTR_RDONLY,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_RECURSIVE | libc::AT_EMPTY_PATH;
    // SAFETY: the string ends with NUL, the structure has the size that is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// A detached copy of the mounts, which no other process sees.
fn clone_writable(path: &CStr) -> Result<(), Errno> {
    let flags = libc::OPEN_TREE_CLONE | libc::AT_RECURSIVE.cast_unsigned();
    // SAFETY: the string ends with NUL.
    let copy = descriptor(unsafe {
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags)
    })?;
    make_writable(copy.as_raw_fd(), c"")
}

fn mknod() -> Result<(), Errno> {
    let path = c"/tmp/break-out-null";
    // SAFETY: the string ends with NUL.
    let made = check(
        unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 3)) }.into(),
    );
    // SAFETY: as above.
    unsafe { libc::unlink(path.as_ptr()) };
    made.map(drop)
}

fn setns(path: &str) -> Result<(), Errno> {
    enter(File::open(path).map_err(errno)?)
}

fn enter(namespace: File) -> Result<(), Errno> {
    // SAFETY: takes a descriptor of ours.
    check(unsafe { libc::setns(namespace.as_raw_fd(), 0) }.into()).map(drop)
}

fn setns_pidfd() -> Result<(), Errno> {
    // SAFETY: takes integers.
    let first = descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, 1, 0) })?;
    let all = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUSER;
    // SAFETY: takes a descriptor of ours and flags.
    check(unsafe { libc::setns(first.as_raw_fd(), all) }.into()).map(drop)
}

/// Two names for one directory?
fn tell(root: &Metadata, other: &Metadata) -> Tried {
    if (root.dev(), root.ino()) == (other.dev(), other.ino()) {
        Tried::Inside
    } else {
        Tried::Out
    }
}

fn stat(path: &str) -> Result<Metadata, Errno> {
    std::fs::metadata(path).map_err(errno)
}

fn dotdot() -> Result<Tried, Errno> {
    let up = "../".repeat(64);
    std::env::set_current_dir("/").map_err(errno)?;
    Ok(tell(&stat("/")?, &stat(&up)?))
}

fn fd_relative() -> Result<Tried, Errno> {
    let root = File::open("/").map_err(errno)?;
    let up = c"../../../../../../..";
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    // SAFETY: a descriptor of ours, and a string that ends with NUL.
    let above = descriptor(unsafe { libc::openat(root.as_raw_fd(), up.as_ptr(), flags) }.into())?;
    let above = File::from(above).metadata().map_err(errno)?;
    Ok(tell(&stat("/")?, &above))
}

fn proc_root() -> Result<Tried, Errno> {
    Ok(tell(&stat("/")?, &stat("/proc/1/root/")?))
}

/// The host's root directory by its number, through a mount of its file system: inode 2, as ext4
/// and others have it.
fn handle() -> Result<Tried, Errno> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        inode: u32,
        generation: u32,
    }
    let handle = Handle {
        bytes: 8,
        kind: 1,
        inode: 2,
        generation: 0,
    };
    let usr = File::open("/usr").map_err(errno)?;
    let flags = libc::O_DIRECTORY;
    // SAFETY: a descriptor of ours, and a handle with as many bytes as it says.
    let found = descriptor(unsafe {
        let handle = &raw const handle;
        libc::syscall(libc::SYS_open_by_handle_at, usr.as_raw_fd(), handle, flags)
    })?;
    let found = File::from(found).metadata().map_err(errno)?;
    Ok(tell(&usr.metadata().map_err(errno)?, &found))
}

/// A directory that is outside of the root, and `..` from there.
fn chroot_escape() -> Result<Tried, Errno> {
    let first = stat("/")?;
    let outside = File::open("/").map_err(errno)?;
    std::fs::create_dir_all("/tmp/break-out").map_err(errno)?;
    let jail = stat("/tmp/break-out")?;
    std::os::unix::fs::chroot("/tmp/break-out").map_err(errno)?;
    // SAFETY: a descriptor of ours.
    check(unsafe { libc::fchdir(outside.as_raw_fd()) }.into())?;
    for _ in 0..64 {
        std::env::set_current_dir("..").map_err(errno)?;
    }
    std::os::unix::fs::chroot(".").map_err(errno)?;
    let last = stat("/")?;
    Ok(match (tell(&first, &last), tell(&jail, &last)) {
        (Tried::Out, Tried::Out) => Tried::Out,
        _ => Tried::Inside,
    })
}

fn open_for_writing(path: &str) -> Result<(), Errno> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .map(drop)
        .map_err(errno)
}

/// As runc was overwritten: a reference to the executable now, the writing later.
fn reopen(path: &str) -> Result<(), Errno> {
    let mut options = OpenOptions::new();
    let reference = options
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .map_err(errno)?;
    open_for_writing(&format!("/proc/self/fd/{}", reference.as_raw_fd()))
}

fn read(path: &str) -> Result<(), Errno> {
    File::open(path).map(drop).map_err(errno)
}

/// A proc(5) of its own, without what hides parts of the other one.
fn fresh_proc() -> Result<(), Errno> {
    mount(c"none", c"/tmp", c"proc", 0)?;
    open_for_writing("/tmp/sys/kernel/core_pattern")
}

fn keyctl() -> Result<(), Errno> {
    const GET_KEYRING_ID: c_long = 0;
    const SESSION_KEYRING: c_long = -3;
    // SAFETY: takes integers.
    check(unsafe { libc::syscall(libc::SYS_keyctl, GET_KEYRING_ID, SESSION_KEYRING, 1) }).map(drop)
}

fn bpf() -> Result<(), Errno> {
    const MAP_CREATE: c_long = 0;
    // BPF_MAP_TYPE_ARRAY, key and value of four bytes, one entry.
    let attributes: [u32; 4] = [2, 4, 4, 1];
    // SAFETY: the attributes have the size that is passed.
    let map = unsafe {
        let size = size_of_val(&attributes);
        libc::syscall(libc::SYS_bpf, MAP_CREATE, attributes.as_ptr(), size)
    };
    descriptor(map).map(drop)
}
