//! Times in which no CPU uses the heap: what checks slabs and zones can only do so while nobody changes them, and must
//! not change them itself by allocating.
//!
//! Only a machine that is told to check (`validate`) pays for this: there each CPU says when it enters and leaves the
//! heap.

use super::cpu::this_cpu;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use guest_kernel::cmdline::MAX_CPUS;
use guest_sync::Cpu;
use guest_sync::atomic::relax;

/// Whether CPUs say where they are.
static WATCHED: AtomicBool = AtomicBool::new(false);
/// How often each CPU is in the heap: an allocation may be part of other work with caches. Written by that CPU alone.
static INSIDE: [AtomicU8; MAX_CPUS.get() as usize] = [const { AtomicU8::new(0) }; _];
/// The CPU for which all others stay out of it, plus 1; 0 if there is none.
static QUIET_FOR: AtomicU8 = AtomicU8::new(0);

/// From now on CPUs can be kept out of the heap. To be called before there is a second one.
pub(super) fn watch() {
    WATCHED.store(true, Ordering::Relaxed);
}

/// A CPU is in the heap as long as it has this.
pub(crate) struct Visit(Option<&'static AtomicU8>);

/// What a CPU may do in the heap.
pub(super) enum Entry {
    /// Anything.
    Open(Visit),
    /// This is the CPU for which all others stay out: only boot memory is for it.
    BootOnly,
}

/// Enters the heap for something that is not an allocation.
///
/// # Panics
/// On the CPU for which the others stay out.
pub(crate) fn visit(cpu: &Cpu) -> Visit {
    match enter(cpu) {
        Entry::Open(visit) => visit,
        Entry::BootOnly => panic!("caches are used while nobody may use them"),
    }
}

/// Enters the heap, when no other CPU wants it to be quiet. That one waits for nothing, so this does not take long.
#[inline]
pub(super) fn enter(cpu: &Cpu) -> Entry {
    if !WATCHED.load(Ordering::Relaxed) {
        return Entry::Open(Visit(None));
    }
    enter_watched(cpu)
}

#[cold]
fn enter_watched(cpu: &Cpu) -> Entry {
    let inside = &INSIDE[cpu.id().index()];
    let depth = inside.load(Ordering::Relaxed);
    if depth > 0 {
        inside.store(depth + 1, Ordering::Relaxed);
        return Entry::Open(Visit(Some(inside)));
    }
    loop {
        // Sequentially consistent, as in `keep_quiet`: either this CPU sees that one's wish, or is seen by it.
        inside.store(1, Ordering::SeqCst);
        match QUIET_FOR.load(Ordering::SeqCst) {
            0 => return Entry::Open(Visit(Some(inside))),
            wish => {
                inside.store(0, Ordering::SeqCst);
                if wish == cpu.id().number() + 1 {
                    return Entry::BootOnly;
                }
            }
        }
        relax();
    }
}

impl Drop for Visit {
    #[inline]
    fn drop(&mut self) {
        if let Some(inside) = self.0 {
            inside.store(inside.load(Ordering::Relaxed) - 1, Ordering::Release);
        }
    }
}

/// Does something while no other CPU is in the heap, and what it allocates is boot memory. Nobody who waits for a lock
/// that this CPU has may be in the heap.
///
/// # Panics
/// If CPUs are not watched.
pub(crate) fn keep_quiet<R>(work: impl FnOnce() -> R) -> R {
    assert!(WATCHED.load(Ordering::Relaxed), "the heap is not watched");
    let mine = this_cpu().id().number() + 1;
    while QUIET_FOR
        .compare_exchange(0, mine, Ordering::SeqCst, Ordering::Relaxed)
        .is_err()
    {
        relax();
    }
    for inside in &INSIDE {
        while inside.load(Ordering::SeqCst) > 0 {
            relax();
        }
    }
    let result = work();
    QUIET_FOR.store(0, Ordering::SeqCst);
    result
}
