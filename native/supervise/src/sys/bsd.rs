//! What FreeBSD and OpenBSD share: kqueue, fork, and the absence of namespaces and cgroups.
//!
//! Checked by the compiler only (bin/check-bsd): it has never run.

use std::ffi::{c_int, CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
use nix::sys::signal::SigSet;
use nix::unistd::{Gid, Pid, Uid};
use stdio_protocol::message::Namespaces;
use stdio_protocol::value::Limit;

use super::{die, peer_pid, take_pending, Argument, Fork};

/// No time at all.
const AT_ONCE: libc::timespec = libc::timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Real-time signals lie above.
const LAST_SIGNAL: c_int = 32;

// ---- signals -------------------------------------------------------------------------------

/// Signals by EVFILT_SIGNAL, which tells of every one that is sent, blocked or ignored too.
///
/// 1. What a blocked signal leaves pending is taken away when it is read, as the mask is empty when
///    the program starts.
/// 2. A queue does not survive a fork: the child makes its own ([`Signals::of_child`]).
pub struct Signals(Kqueue);

/// One that was taken.
pub struct Received {
    number: c_int,
    /// `None`: it was not pending, as those that are ignored by default never are.
    info: Option<Vec<u8>>,
}

impl Signals {
    /// Of those that are blocked. Which ones these are does not matter: the others end the process,
    /// or are read and dropped.
    pub fn new(_signals: &SigSet) -> Result<Self, Errno> {
        let queue = Kqueue::new()?;
        close_on_exec(&queue)?;
        for signal in (1..=LAST_SIGNAL).filter(|signal| !is_uncatchable(*signal)) {
            let flags = EvFlags::EV_ADD | EvFlags::EV_CLEAR;
            let change = event(
                signal,
                EventFilter::EVFILT_SIGNAL,
                flags,
                FilterFlag::empty(),
            )?;
            match queue.kevent(&[change], &mut [], Some(AT_ONCE)) {
                Ok(_) | Err(Errno::EINVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(Self(queue))
    }

    /// In a forked child, in which the number stands for nothing.
    pub fn of_child(self) -> Result<Self, Errno> {
        let _ = OwnedFd::from(self.0).into_raw_fd();
        Self::new(&SigSet::all())
    }

    /// Without waiting.
    pub fn read(&self) -> Option<Received> {
        let mut events = [empty_event()];
        loop {
            return match self.0.kevent(&[], &mut events, Some(AT_ONCE)) {
                Ok(0) => None,
                Ok(_) => {
                    let number = c_int::try_from(events[0].ident()).ok()?;
                    let info = take_pending(number);
                    Some(Received { number, info })
                }
                Err(Errno::EINTR) => continue,
                Err(_) => None,
            };
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Received {
    pub fn number(&self) -> i32 {
        self.number
    }

    /// siginfo_t, as it was taken; else with the number alone.
    pub fn info(&self) -> Vec<u8> {
        self.info.clone().unwrap_or_else(|| {
            let mut raw = vec![0; size_of::<libc::siginfo_t>()];
            raw[..size_of::<c_int>()].copy_from_slice(&self.number.to_ne_bytes());
            raw
        })
    }
}

fn is_uncatchable(signal: c_int) -> bool {
    matches!(signal, libc::SIGKILL | libc::SIGSTOP)
}

fn event(
    ident: c_int,
    filter: EventFilter,
    flags: EvFlags,
    more: FilterFlag,
) -> Result<KEvent, Errno> {
    let ident = usize::try_from(ident).map_err(|_| Errno::EINVAL)?;
    Ok(KEvent::new(ident, filter, flags, more, 0, 0))
}

fn empty_event() -> KEvent {
    let nothing = (EvFlags::empty(), FilterFlag::empty());
    KEvent::new(0, EventFilter::EVFILT_SIGNAL, nothing.0, nothing.1, 0, 0)
}

fn close_on_exec(fd: impl AsFd) -> Result<(), Errno> {
    use nix::fcntl::{fcntl, FcntlArg, FdFlag};
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map(drop)
}

/// A queue that is readable once the process has ended. EVFILT_PROC, kqueue(2)
fn watch(pid: Pid) -> Result<OwnedFd, Errno> {
    let queue = Kqueue::new()?;
    close_on_exec(&queue)?;
    let flags = EvFlags::EV_ADD | EvFlags::EV_ONESHOT;
    let change = event(
        pid.as_raw(),
        EventFilter::EVFILT_PROC,
        flags,
        FilterFlag::NOTE_EXIT,
    )?;
    queue.kevent(&[change], &mut [], Some(AT_ONCE))?;
    Ok(queue.into())
}

/// The process that made the socket pair: readable once it has ended. `None`: not known.
pub fn watch_peer(socket: &OwnedFd) -> Option<OwnedFd> {
    watch(peer_pid(socket)?).ok()
}

/// In a forked child, in which the number stands for nothing.
pub fn forget_peer(peer: Option<OwnedFd>) {
    let _ = peer.map(IntoRawFd::into_raw_fd);
}

// ---- start ---------------------------------------------------------------------------------

/// Sets every signal that allows it to its default action.
pub fn default_dispositions() {
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: SIG_DFL installs no handler. The calls for SIGKILL and SIGSTOP fail, which is right.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

pub fn clear_environment() {
    // SAFETY: the declaration of environ(7).
    unsafe extern "C" {
        static mut environ: *mut *mut libc::c_char;
    }
    // SAFETY: single-threaded (asserted at start): nobody reads the environment meanwhile. The array
    // ends with NULL, so it has a first place.
    unsafe {
        if !environ.is_null() {
            environ.write(ptr::null_mut());
        }
    }
}

/// setproctitle(3) needs nothing remembered.
pub fn remember_title_area() {}

/// The title; here a process has one name.
pub fn set_title_and_name(title: &[u8]) -> Result<(), Errno> {
    set_title(title);
    Ok(())
}

/// As ps(1) shows it.
pub fn set_name(name: &CStr) -> Result<(), Errno> {
    set_title(name.to_bytes());
    Ok(())
}

/// Leads a session of its own, if the one who started it could not ask for that.
pub fn lead_session() {
    // EPERM: it leads a group already.
    let _ = nix::unistd::setsid();
}

/// An empty title brings the first one back. setproctitle(3)
pub fn set_title(title: &[u8]) {
    let Ok(text) = CString::new(title) else {
        return;
    };
    // SAFETY: NULL, or a format with as many strings as it names, which are copied.
    unsafe {
        match title {
            [] => libc::setproctitle(ptr::null()),
            _ => libc::setproctitle(super::TITLE_FORMAT.as_ptr(), text.as_ptr()),
        }
    }
}

/// Permission bits, as wide as this system has them: those that it lacks name no bit.
pub fn mode(bits: u32) -> libc::mode_t {
    libc::mode_t::try_from(bits & 0o7777).unwrap_or_default()
}

/// Not to be had without a /proc.
pub fn threads() -> Option<usize> {
    None
}

// ---- processes -----------------------------------------------------------------------------

/// There are none. The bits are those of Linux, and refused.
pub const CLONE_NEWPID: u64 = 0x2000_0000;
pub const CLONE_NEWUSER: u64 = 0x1000_0000;

pub fn needs_user_namespace(_namespaces: Namespaces) -> bool {
    false
}

/// `ENOTSUP` if the plan asks for a namespace.
pub fn fork(namespaces: Namespaces) -> Result<Fork, Errno> {
    clone(u64::from(namespaces.net || namespaces.pid))
}

/// fork(2); `ENOTSUP` for any flag.
pub fn clone(flags: u64) -> Result<Fork, Errno> {
    if flags != 0 {
        return Err(Errno::ENOTSUP);
    }
    // SAFETY: this process has one thread (asserted where that can be), so the child may go on as
    // its parent does.
    match Errno::result(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(Pid::from_raw(pid))),
    }
}

pub fn map_ids(_uid: (u32, Uid), _gid: (u32, Gid)) -> Result<(), Errno> {
    Err(Errno::ENOTSUP)
}

/// Asked about the first process of a namespace only.
pub fn catches(_pid: Pid, _signal: i32) -> bool {
    true
}

pub fn drops_as_init(_child: Pid, _signal: c_int) -> bool {
    false
}

/// Nobody hurries here: the kernel finds the processes of a tree, or there are few.
pub fn calm_down() {}

// ---- cgroups -------------------------------------------------------------------------------

/// There are none.
pub enum Cgroup {}

impl Cgroup {
    pub fn create(_launcher: Pid, _root: u64) -> Result<Self, Errno> {
        Err(Errno::ENOTSUP)
    }

    pub fn enter(&self, _pid: Pid) -> Result<(), Errno> {
        match *self {}
    }

    pub fn kill(&self) {
        match *self {}
    }

    pub fn kill_descriptor(&self) -> BorrowedFd<'_> {
        match *self {}
    }

    pub fn remove(&self) -> bool {
        match *self {}
    }
}

pub fn end_cgroup_of(_launcher: Pid, _root: u64) -> bool {
    true
}

pub fn remove_stale_cgroups() {}

// ---- descriptors ---------------------------------------------------------------------------

/// closefrom(2)
pub fn close_from(first: u32) {
    let Ok(first) = c_int::try_from(first) else {
        die("closefrom", Errno::EINVAL);
    };
    // SAFETY: closing by number cannot touch memory; the callers own no OwnedFd at or above `first`
    // which is used or dropped afterwards. It has no result that counts: EBADF is "none".
    unsafe { libc::closefrom(first) };
}

/// The open descriptors from `first` on, of 65536: there is no list of them, and the kernel hands out
/// the lowest number that is free.
pub fn descriptors(first: u64) -> Vec<RawFd> {
    (first..=first.saturating_add(0xFFFF))
        .map_while(|fd| RawFd::try_from(fd).ok())
        // SAFETY: reads a flag of a number, open or not.
        .filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) != -1 })
        .collect()
}

/// Marks what is above 2 close-on-exec, one by one.
pub fn mark_descriptors() {
    for fd in descriptors(3) {
        // SAFETY: changes a flag of an open number.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
            die("fcntl", Errno::last());
        }
    }
}

/// lseek(2)
pub fn lseek(fd: RawFd, offset: i64, whence: i32) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::lseek(fd, offset, whence) }).map(drop)
}

// ---- limits --------------------------------------------------------------------------------

/// setpriority(2)
pub fn setpriority(which: i32, who: u32, priority: i32) -> Result<(), Errno> {
    let who = who.try_into().map_err(|_| Errno::EINVAL)?;
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::setpriority(which, who, priority) }).map(drop)
}

/// getpriority(2), whose -1 may be a priority.
pub fn getpriority(which: i32, who: u32) -> Result<i32, Errno> {
    let who = who.try_into().map_err(|_| Errno::EINVAL)?;
    Errno::clear();
    // SAFETY: takes numbers only.
    match unsafe { libc::getpriority(which, who) } {
        -1 if Errno::last_raw() != 0 => Err(Errno::last()),
        priority => Ok(priority),
    }
}

/// Infinity is u64::MAX in a [`Limit`], RLIM_INFINITY here.
fn limit_from(value: u64) -> libc::rlim_t {
    match value {
        u64::MAX => libc::RLIM_INFINITY,
        value => libc::rlim_t::try_from(value).unwrap_or(libc::RLIM_INFINITY),
    }
}

fn limit_to(value: libc::rlim_t) -> u64 {
    match value {
        libc::RLIM_INFINITY => u64::MAX,
        value => u64::try_from(value).unwrap_or(u64::MAX),
    }
}

/// setrlimit(2)
pub fn setrlimit(resource: i32, limit: Limit) -> Result<(), Errno> {
    let limit = libc::rlimit {
        rlim_cur: limit_from(limit.cur),
        rlim_max: limit_from(limit.max),
    };
    // SAFETY: `limit` is valid for the call.
    Errno::result(unsafe { libc::setrlimit(resource, &limit) }).map(drop)
}

/// getrlimit(2)
pub fn getrlimit(resource: i32) -> Result<Limit, Errno> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the out-pointer is valid for the call.
    Errno::result(unsafe { libc::getrlimit(resource, &mut limit) })?;
    Ok(Limit {
        cur: limit_to(limit.rlim_cur),
        max: limit_to(limit.rlim_max),
    })
}

/// sethostname(3)
pub fn sethostname(name: &[u8]) -> Result<(), Errno> {
    let length = name.len().try_into().map_err(|_| Errno::EINVAL)?;
    // SAFETY: pointer and length describe `name`, which is only read.
    Errno::result(unsafe { libc::sethostname(name.as_ptr().cast(), length) }).map(drop)
}

// ---- mounts, ptrace ------------------------------------------------------------------------

/// mount(2). What is mounted is in `data`, a structure of the file system's own; there is no source.
pub fn mount(
    _source: Option<&CStr>,
    target: &CStr,
    fstype: Option<&CStr>,
    flags: u32,
    data: Option<&[u8]>,
) -> Result<(), Errno> {
    // SAFETY: the declaration of mount(2).
    unsafe extern "C" {
        // The libc crate has it for FreeBSD only.
        fn mount(
            fstype: *const libc::c_char,
            target: *const libc::c_char,
            flags: c_int,
            data: *mut libc::c_void,
        ) -> c_int;
    }
    let fstype = fstype.ok_or(Errno::EINVAL)?;
    let data =
        data.map(|data| Argument::new(&stdio_protocol::value::PtrArg::Bytes(data.to_vec().into())));
    let data = data.transpose()?;
    let address = data.as_ref().map_or(0, Argument::word);
    // SAFETY: both strings are NUL-terminated; the data end at a guard page and outlive the call.
    let result = unsafe {
        mount(
            fstype.as_ptr(),
            target.as_ptr(),
            flags.cast_signed(),
            ptr::with_exposed_provenance_mut(address),
        )
    };
    Errno::result(result).map(drop)
}

/// unmount(2)
pub fn umount(target: &CStr, flags: i32) -> Result<(), Errno> {
    // SAFETY: `target` is NUL-terminated.
    Errno::result(unsafe { libc::unmount(target.as_ptr(), flags) }).map(drop)
}

/// ptrace(2). A request that peeks gives the word as the result, which may be any number.
pub fn ptrace(request: i32, pid: i32, addr: &Argument, data: &Argument) -> Result<i64, Errno> {
    // An int, whatever else it is given as.
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    let data = data.word() as c_int;
    let addr = ptr::with_exposed_provenance_mut(addr.word());
    Errno::clear();
    // SAFETY: the address is of the other process, or of memory that ends at a guard page and
    // outlives the call.
    match unsafe { libc::ptrace(request, pid, addr, data) } {
        -1 if Errno::last_raw() != 0 => Err(Errno::last()),
        result => Ok(result.into()),
    }
}
