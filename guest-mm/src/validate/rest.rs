//! What holds besides at a time when nobody is at work on a page or a block: no page is locked, on its way to or from a disk, or on the move, and no free
//! memory is kept from whoever wants it.

use crate::blocks::Slot;
use crate::frames::{Frames, Mmu};
use crate::mm::Mm;
use crate::page::{PageFlags, PageState};
use crate::section::Admission;
use crate::validate::{Invalid, ensure};
use crate::zone::Zone;

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// [`Mm::validate`], and what the module says.
    ///
    /// # Errors
    /// The first broken invariant found.
    pub(crate) fn validate_at_rest(&self) -> Result<(), Invalid> {
        self.validate()?;
        for space in self.spaces.all() {
            let (id, migrating) = (space.id().number(), space.lock().migrating);
            ensure!(migrating == 0, "space {id}: {migrating} entries are on the move");
        }
        for (block, slot) in self.phys.region.lock().iter() {
            let is_at_rest = !matches!(slot, Slot::GoingOffline(_) | Slot::Plugging);
            ensure!(is_at_rest, "block {} is {slot:?}", block.0);
        }
        let being_written = self.phys.nr_being_written();
        ensure!(being_written == 0, "{being_written} pages are being written");
        self.phys
            .zones()
            .try_for_each(|zone| self.validate_zone_at_rest(zone))
    }

    fn validate_zone_at_rest(&self, zone: &Zone) -> Result<(), Invalid> {
        let areas = zone.areas.lock();
        for (_, section) in areas.iter() {
            let range = section.range;
            let is_open = section.admission == Admission::Open;
            let withdrawn = section.pageblocks.iter().filter(|pageblock| pageblock.withdrawn);
            let withdrawn = withdrawn.count();
            ensure!(
                is_open && withdrawn == 0,
                "{range} is {:?}, and {withdrawn} pageblocks of it are withdrawn",
                section.admission
            );
            for pfn in range.iter() {
                let page = self.online_page(pfn, 0)?;
                let flags = page.flags();
                let is_at_work = flags.has(PageFlags::LOCKED) || flags.has(PageFlags::WRITEBACK);
                ensure!(
                    page.state() != PageState::Allocated || !is_at_work,
                    "somebody is at work on {pfn}: {page:?}"
                );
            }
        }
        Ok(())
    }
}
