//! Accesses of the guest to memory that it does not own: counted, reported, and answered by policy.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::GuestRam;
use crate::spec::OnViolation;

/// Watches over the blocks of all regions.
#[derive(Debug)]
pub(super) struct ViolationWatch {
    ram: Arc<GuestRam>,
    policy: OnViolation,
    count: AtomicU64,
    /// Address of the last one; meaningless while the count is 0.
    last_gpa: AtomicU64,
}

/// One access of the guest to a block that it does not own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// Guest-physical address.
    pub gpa: u64,
    /// Index of the hot-plug region.
    pub region: usize,
    /// Index of the block in its region.
    pub block: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gpa, region, block } = self;
        write!(
            f,
            "violation: guest access to unplugged block {block} of region {region} at gpa {gpa:#x}"
        )
    }
}

impl ViolationWatch {
    /// A watch over the regions of `ram`.
    pub(super) fn new(ram: Arc<GuestRam>, policy: OnViolation) -> Self {
        Self {
            ram,
            policy,
            count: AtomicU64::new(0),
            last_gpa: AtomicU64::new(0),
        }
    }

    /// What to do about a violation.
    pub(super) fn policy(&self) -> OnViolation {
        self.policy
    }

    /// The violation that an access at `gpa` is which found no memory there; `None` if that is outside the regions.
    ///
    /// No look at the map of blocks: a block that is plugged by now was not when the access failed.
    pub(super) fn at(&self, gpa: u64) -> Option<Violation> {
        let mut regions = self.ram.regions().iter().enumerate();
        regions.find_map(|(region, found)| {
            let block = found.block_at(gpa)?;
            Some(Violation { gpa, region, block })
        })
    }

    /// Whether the guest owns the block by now.
    pub(super) fn is_plugged(&self, violation: Violation) -> bool {
        let region = self.ram.regions().get(violation.region);
        region.is_some_and(|region| region.plugged().is_plugged(violation.block))
    }

    /// Counts and reports a violation by the CPU at `rip`.
    pub(super) fn record(&self, violation: Violation, rip: u64) {
        self.last_gpa.store(violation.gpa, Ordering::Release);
        self.count.fetch_add(1, Ordering::AcqRel);
        tracing::warn!("{violation} (rip {rip:#x})");
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
