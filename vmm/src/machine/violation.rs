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

/// What a faulting address means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultMeaning {
    /// The guest does not own that block.
    Violation(Violation),
    /// The guest owns that memory: either a block was plugged between the access and this look at it, or the host
    /// cannot provide the memory.
    Owned,
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

    /// Whether `gpa` is in the region at all: KVM's instruction emulator takes protected memory for a device.
    pub(super) fn covers(&self, gpa: u64) -> bool {
        self.block_at(gpa).is_some()
    }

    /// What it means that an access at `gpa` failed.
    pub(super) fn meaning(&self, gpa: u64) -> FaultMeaning {
        match (&self.region, self.block_at(gpa)) {
            (Some(region), Some(block)) if !region.plugged().is_plugged(block) => {
                FaultMeaning::Violation(Violation { gpa, block })
            }
            _ => FaultMeaning::Owned,
        }
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

    fn block_at(&self, gpa: u64) -> Option<u64> {
        self.region.as_ref()?.block_at(gpa)
    }
}
