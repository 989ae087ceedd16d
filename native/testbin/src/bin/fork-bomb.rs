//! N processes that spin, watch each other, and fork a replacement for each one that dies.
//! A kill loop slower than their forks never ends. FAULTS row 20.
//!
//! `--setsid`             every process leads a session of its own
//! `--leader-exits CODE`  the leader exits once all spin, else it sleeps
//!
//! Prints `ready` when all N spin. At most three neighbours watch a slot, so a death causes up to
//! three forks, of which two end at once.
#![no_main]

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{mmap_anonymous, MapFlags, ProtFlags};
use nix::sys::signal::{kill, SigHandler, Signal};
use nix::unistd::{getpid, Pid};
use stdio_testbin::*;

stdio_testbin::fixture!(
    "fork-bomb MARK N [--setsid] [--leader-exits CODE] [--life S]",
    run
);

fn run(cli: &mut Cli) -> i32 {
    let session = Session::from_flag(cli.flag("--setsid"));
    let leader = Leader::take(cli);
    cli.life();
    cli.mark();
    let count: NonZeroUsize = cli.word("N");
    cli.done();

    // The kernel reaps them, so a dead sibling is ESRCH at once and not a zombie.
    set_signal(Signal::SIGCHLD, SigHandler::SigIgn);
    let slots = match shared_slots(count) {
        Ok(slots) => slots,
        Err(error) => return failed("mmap", error),
    };
    let (roll, gate) = match (Roll::new(), Roll::new()) {
        (Ok(roll), Ok(gate)) => (roll, gate),
        (Err(error), _) | (_, Err(error)) => return failed("pipe", error),
    };
    for own in 0..slots.len() {
        let forked = fork_child(|| {
            session.enter();
            slots[own].store(getpid().as_raw(), Ordering::SeqCst);
            roll.present();
            // Nobody spins before all exist, else two CPUs would never get there.
            let _ = gate.pass();
            spin(slots, own, session)
        });
        if let Err(error) = forked {
            return failed("fork", error);
        }
    }
    if let Err(error) = roll.wait(slots.len()) {
        return failed("fork", error);
    }
    for _ in 0..slots.len() {
        gate.present();
    }
    say("ready\n");
    leader.finish()
}

/// One pid per process of the bomb, seen by all of them.
fn shared_slots(count: NonZeroUsize) -> Result<&'static [AtomicI32], Errno> {
    let bytes = count.saturating_mul(NonZeroUsize::new(size_of::<AtomicI32>()).unwrap());
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let memory = unsafe {
        mmap_anonymous(
            None,
            bytes,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_SHARED,
        )
    }?;
    // SAFETY: the mapping is page-aligned, zeroed (a valid AtomicI32), long enough for `count` of
    // them, and never unmapped.
    Ok(unsafe { std::slice::from_raw_parts(memory.cast().as_ptr(), count.get()) })
}

fn spin(slots: &[AtomicI32], mut own: usize, session: Session) -> i32 {
    while !expired() {
        for _ in 0..1000 {
            std::hint::spin_loop();
        }
        for step in 1..=3 {
            let watched = (own + step) % slots.len();
            let pid = slots[watched].load(Ordering::SeqCst);
            if kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH) {
                continue;
            }
            let replaced = fork_loop(|| {
                let me = getpid().as_raw();
                let won =
                    slots[watched].compare_exchange(pid, me, Ordering::SeqCst, Ordering::SeqCst);
                won.is_ok()
            });
            if replaced == Forked::Replacement {
                session.enter();
                own = watched;
                break;
            }
        }
    }
    0
}

#[derive(PartialEq, Eq)]
enum Forked {
    Watcher,
    Replacement,
}

/// Like `fork_child`, but the child returns too (the generations must not pile up on the stack).
fn fork_loop(claim: impl FnOnce() -> bool) -> Forked {
    // SAFETY: fixtures have one thread, so the child may do whatever the parent may.
    match unsafe { nix::unistd::fork() } {
        Ok(nix::unistd::ForkResult::Child) => {
            if claim() {
                Forked::Replacement
            } else {
                leave(0)
            }
        }
        _ => Forked::Watcher,
    }
}
