//! A frame that is about to fail: what is in it moves, and it is not used again.

use guest_sync::Cpu;

use crate::blocks::InUse;
use crate::compact::Source;
use crate::frames::{Frames, Mmu};
use crate::gfp::Gfp;
use crate::memory_failure::{Contents, MemoryFailureError};
use crate::migrate::{BatchEnd, MigrateReport, RefusalReason, Route};
use crate::mm::Mm;
use crate::pfn::{Order, Pfn};
use crate::phys::PhysicalMemory;

/// The way of the one chunk that a frame is in.
struct Suspect<'a> {
    source: Source<'a>,
    pfn: Pfn,
    has_come: bool,
}

impl Route for Suspect<'_> {
    fn next_in_use(&mut self, phys: &PhysicalMemory<'_>) -> Option<InUse> {
        if core::mem::replace(&mut self.has_come, true) {
            return None;
        }
        let (head, order) = self.source.chunk_of(self.pfn)?;
        Some(phys.hold(head, order))
    }

    fn step_back(&mut self, _: Order) {
        self.has_come = false;
    }

    fn destination(&mut self, phys: &PhysicalMemory<'_>, cpu: &Cpu, order: Order) -> Option<Pfn> {
        phys.alloc_pages(cpu, Gfp::SPARE, order).ok()
    }

    fn moved(&mut self, _: Pfn, _: u32) {}
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Takes a frame out of use that still has its contents, which move elsewhere first (Linux `soft_offline_page`). Of the kernel's own, that is page
    /// tables.
    ///
    /// # Errors
    /// See [`MemoryFailureError`]; nothing has changed then.
    pub fn soft_offline(&self, cpu: &Cpu, pfn: Pfn) -> Result<Contents, MemoryFailureError> {
        self.soft_offline_with(cpu, pfn, |_| {})
    }

    /// The same; a page of the kernel's own that was refused is shown to those who may have it (`owners`), and who take it out of the report when
    /// they have moved it. Free frames around it are not given out meanwhile.
    ///
    /// # Errors
    /// See [`MemoryFailureError`]; nothing has changed then.
    pub fn soft_offline_with(
        &self,
        cpu: &Cpu,
        pfn: Pfn,
        owners: impl FnOnce(&mut MigrateReport),
    ) -> Result<Contents, MemoryFailureError> {
        let tag = self.phys.check_suspect(pfn)?;
        if self.phys.retire_free(tag, pfn) {
            return Ok(Contents::Nothing);
        }
        let mut suspect = Suspect {
            source: self.phys.withdraw_around(tag, pfn)?,
            pfn,
            has_come: false,
        };
        let batch = self.begin_moves(cpu, &mut suspect, 1);
        let mut report = self.finish_moves(cpu, &mut suspect, batch);
        owners(&mut report);
        if report.end == BatchEnd::NoMemory {
            return Err(MemoryFailureError::NoMemory(pfn));
        }
        if let Some(refusal) = report.refused.first() {
            return Err(refused(pfn, refusal.reason));
        }
        match self.phys.retire_free(tag, pfn) {
            true => Ok(Contents::Moved),
            false => Err(MemoryFailureError::Busy(pfn)),
        }
    }
}

pub(super) const fn refused(pfn: Pfn, reason: RefusalReason) -> MemoryFailureError {
    match reason {
        RefusalReason::Pinned { holder } | RefusalReason::UnderIo { holder } => {
            MemoryFailureError::Pinned { pfn, holder }
        }
        RefusalReason::Unmovable(used_for) => MemoryFailureError::Unmovable { pfn, used_for },
        RefusalReason::Busy(_) => MemoryFailureError::Busy(pfn),
    }
}
