//! All programs by number: those that live, those that ended and whose parent has not waited for them yet, and those of the command
//! line, which an operator finds there as long as the guest runs.
//!
//! A program's record goes with its last holder: the list, the program's own task, whoever is just looking at it.

use super::{Kin, Program, State, Status};
use crate::exercise::Exercises;
use crate::files::{Aio, Descriptors, Registered};
use crate::kernel::Kernel;
use crate::machine::object_cache::{CacheBox, ObjectCache};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicI16, AtomicU64, Ordering};
use guest_kernel::sync::Signal;
use guest_mm::slab::NoObject;
use guest_sync::{SpinGuard, SpinLock};

static PROGRAM_CACHE: ObjectCache<Program> = ObjectCache::new("program");

/// A program's record, which several have.
pub(crate) type ProgramRef = Arc<CacheBox<Program>>;

/// See the module. Locked before a program's `status`; nothing but the heap is used under it.
pub(crate) struct Programs {
    /// In the order of their numbers.
    known: SpinLock<Vec<ProgramRef>>,
    /// Programs that were ever started, which is the highest number.
    started: AtomicU64,
}

impl Programs {
    /// No program.
    pub(crate) const fn new() -> Self {
        Self {
            known: SpinLock::new(Vec::new()),
            started: AtomicU64::new(0),
        }
    }

    /// All of them.
    pub(crate) fn lock(&self) -> SpinGuard<'_, Vec<ProgramRef>> {
        self.known.lock()
    }

    /// A new program in the list, without memory yet: the operator's, or a program's child.
    ///
    /// # Errors
    /// There is no memory for its record.
    pub(crate) fn register(
        &self,
        kernel: &Kernel,
        words: Vec<String>,
        parent: Option<&Program>,
    ) -> Result<ProgramRef, NoObject> {
        let adj = parent.map_or(0, |parent| parent.oom_score_adj.load(Ordering::Relaxed));
        let record = Program {
            // Numbers are not used again; no guest lives to see the 2^32nd program.
            pid: 0,
            words,
            cpu: kernel.least_loaded_cpu(),
            status: SpinLock::new(Status {
                state: State::Running,
                space: None,
                kin: parent.map_or(Kin::Operator, |parent| Kin::ChildOf(parent.pid)),
            }),
            checks_ok: AtomicU64::new(0),
            checks_failed: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            exercises: Exercises::default(),
            oom_score_adj: AtomicI16::new(adj),
            is_doomed: AtomicBool::new(false),
            doom: Signal::new(),
            has_lost_a_page: AtomicBool::new(false),
            files: Descriptors::default(),
            aio: Aio::default(),
            registered: Registered::default(),
        };
        let mut record = PROGRAM_CACHE.store(record)?;
        let mut known = self.known.lock();
        let number = self.started.fetch_add(1, Ordering::Relaxed) + 1;
        record.pid = u32::try_from(number).unwrap_or(u32::MAX);
        let program = Arc::new(record);
        known.push(program.clone());
        Ok(program)
    }

    /// The program with a number.
    pub(crate) fn find(&self, pid: u32) -> Option<ProgramRef> {
        self.known.lock().iter().find(|known| known.pid == pid).cloned()
    }

    /// A child of a program.
    pub(super) fn child(&self, parent: &Program, pid: u64) -> Option<ProgramRef> {
        let is_child = |child: &&ProgramRef| {
            u64::from(child.pid) == pid && child.status.lock().kin == Kin::ChildOf(parent.pid)
        };
        self.known.lock().iter().find(is_child).cloned()
    }

    /// A program has ended, and its memory is free. It leaves the list if nobody will ask; its children become nobody's, and those that have
    /// ended leave too.
    pub(super) fn end(&self, program: &Program, end: State) {
        let mut known = self.known.lock();
        {
            let mut status = program.status.lock();
            (status.state, status.space) = (end, None);
        }
        let gone = known.extract_if(.., |known| {
            let mut status = known.status.lock();
            if status.kin == Kin::ChildOf(program.pid) {
                status.kin = Kin::Orphan;
            }
            status.kin == Kin::Orphan && status.has_ended()
        });
        let gone: Vec<ProgramRef> = gone.collect();
        drop(known);
        // Freed outside of the lock.
        drop(gone);
    }

    /// A program is in the list for nothing any more.
    pub(super) fn forget(&self, program: &Program) {
        let mut known = self.known.lock();
        let place = known.iter().position(|known| known.pid == program.pid);
        let gone = place.map(|place| known.remove(place));
        drop(known);
        drop(gone);
    }

    /// The counters, as lines of `/proc/vmstat`: programs in the list, and those that were ever started (Linux `processes` of
    /// `/proc/stat`).
    pub(crate) fn report(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "nr_processes {}", self.known.lock().len())?;
        writeln!(out, "processes {}", self.started.load(Ordering::Relaxed))
    }
}

impl Status {
    /// Whether the program has ended, and given its memory back.
    pub(super) const fn has_ended(&self) -> bool {
        matches!(self.state, State::Exited(_) | State::Killed) && self.space.is_none()
    }
}
