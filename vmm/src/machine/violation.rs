//! Accesses of the guest to memory that it does not own: counted, reported, and answered by policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::Region;
use crate::spec::OnViolation;

/// Watches over the blocks of one region.
#[derive(Debug)]
pub(super) struct ViolationWatch {
    region: Option<Arc<Region>>,
    policy: OnViolation,
    count: AtomicU64,
    /// Address of the last one; meaningless while the count is 0.
    last_gpa: AtomicU64,
}

/// One violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation {
    /// Guest-physical address.
    pub(super) gpa: u64,
    /// Index of the block.
    pub(super) block: u64,
}

impl ViolationWatch {
    /// A watch over `region`, which may be missing.
    pub(super) fn new(region: Option<Arc<Region>>, policy: OnViolation) -> Self {
        Self {
            region,
            policy,
            count: AtomicU64::new(0),
            last_gpa: AtomicU64::new(0),
        }
    }

    /// What to do about a violation.
    pub(super) fn policy(&self) -> OnViolation {
        self.policy
    }

    /// The violation that an access at `gpa` is which found no memory there; `None` if that is outside the region.
    ///
    /// No look at the map of blocks: a block that is plugged by now was not when the access failed.
    pub(super) fn at(&self, gpa: u64) -> Option<Violation> {
        let block = self.region.as_ref()?.block_at(gpa)?;
        Some(Violation { gpa, block })
    }

    /// Counts and reports a violation by the CPU at `rip`.
    pub(super) fn record(&self, violation: Violation, rip: u64) {
        let Violation { gpa, block } = violation;
        self.last_gpa.store(gpa, Ordering::Release);
        self.count.fetch_add(1, Ordering::AcqRel);
        tracing::warn!("violation: guest access to unplugged block {block} at gpa {gpa:#x} (rip {rip:#x})");
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Address of the last one.
    pub(super) fn last_gpa(&self) -> Option<u64> {
        (self.count() > 0).then(|| self.last_gpa.load(Ordering::Acquire))
    }
}
