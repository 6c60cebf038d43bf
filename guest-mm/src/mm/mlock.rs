//! Memory that stays: `mlock`, `munlock` (Linux 2.6, `mm/mlock.c`; the list of pages since 2.6.28).
//!
//! A locked area's pages are marked and kept on a list of their own, at which reclaim does not look. Pages that come to the area later (by a copy, from
//! the disk) are marked when reclaim comes upon them. They move as others do when a block is emptied.

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu, SpaceId};
use crate::mm::rmap::Walk;
use crate::mm::{Locked, Mm, MmapError, Residence, Vma};
use crate::page::{Page, PageFlags};
use crate::pagetable::{Entry, VaRange};
use crate::pfn::{PAGE_SIZE, Pfn};

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// From now on pages of a range stay in memory. Who calls brings them in ([`Mm::populate`]), and then has those marked that are there
    /// ([`Mm::mark_locked`]). The program may have `limit_pages` in all that stay.
    ///
    /// # Errors
    /// As [`Mm::munmap`], when there is a hole in the range, or more pages than permitted would stay.
    pub fn mlock(
        &self,
        cpu: &Cpu,
        id: SpaceId,
        (va, len): (u64, u64),
        limit_pages: u64,
    ) -> Result<(), MmapError> {
        let (range, found) = self.range_of(id, va, len)?;
        let mut space = self.begin_change(cpu, &found, range)?;
        let is_locked = |vma: &&Vma| vma.residence == Residence::Locked;
        let inside = |vma: &Vma| vma.range.intersection(range).map_or(0, |part| part.bytes());
        if space.vmas.values().map(inside).sum::<u64>() != range.bytes() {
            return Err(MmapError::BadRange { va, len });
        }
        let elsewhere = |vma: &Vma| vma.range.bytes() - inside(vma);
        let others: u64 = space.vmas.values().filter(is_locked).map(elsewhere).sum();
        if (others + range.bytes()) / PAGE_SIZE > limit_pages {
            return Err(MmapError::LockLimit { limit: limit_pages });
        }
        set_residence(&mut space, range, Residence::Locked);
        Ok(())
    }

    /// Pages of a range may leave memory again; holes in it are fine.
    ///
    /// # Errors
    /// As [`Mm::munmap`].
    pub fn munlock(&self, cpu: &Cpu, id: SpaceId, va: u64, len: u64) -> Result<(), MmapError> {
        let (range, found) = self.range_of(id, va, len)?;
        let mut space = self.begin_change(cpu, &found, range)?;
        set_residence(&mut space, range, Residence::Pageable);
        self.mark(&space, range, false);
        Ok(())
    }

    /// Marks the pages of a range that are there, as far as they belong to locked areas.
    pub fn mark_locked(&self, id: SpaceId, range: VaRange) {
        let Some(found) = self.spaces.find(id) else { return };
        let space = found.lock();
        let locked = space
            .vmas
            .values()
            .filter(|vma| vma.residence == Residence::Locked);
        for part in locked.filter_map(|vma| vma.range.intersection(range)) {
            self.mark(&space, part, true);
        }
    }

    fn range_of(
        &self,
        id: SpaceId,
        va: u64,
        len: u64,
    ) -> Result<(VaRange, alloc::sync::Arc<crate::mm::AddressSpace>), MmapError> {
        let found = self.spaces.find(id).ok_or(MmapError::UnknownSpace(id))?;
        let range = VaRange::new(va, len).ok_or(MmapError::BadRange { va, len })?;
        Ok((range, found))
    }

    fn mark(&self, space: &Locked<'_>, range: VaRange, is_locked: bool) {
        let mut va = range.start();
        while va < range.end() {
            let found = space.table.find(&self.frames, va);
            let is_page = found.entry.is_present() && !found.entry.has(Entry::FIXED);
            // Reserved huge pages never leave, and pages without a place elsewhere do not either, locked or not.
            let may_leave = |pfn| {
                let page = self.mapped_page(pfn);
                !page.flags().has(PageFlags::HUGETLB) && !self.is_ram(page)
            };
            if is_page && may_leave(found.entry.pfn()) {
                self.phys.lru_set_mlocked(found.entry.pfn(), is_locked);
            }
            va = found.end_of(va);
        }
    }

    /// Whether the page is in an area that is locked: it is marked then.
    pub(crate) fn is_mlocked(&self, pfn: Pfn, page: &Page, walk: &mut Walk) -> bool {
        if page.flags().has(PageFlags::MLOCKED) {
            return true;
        }
        let mut is_locked = false;
        self.for_each_entry(pfn, page, walk, |_, space, (_, va, _)| {
            let area = space.vma_at(va);
            is_locked |= area.is_some_and(|vma| vma.residence == Residence::Locked);
        });
        if is_locked {
            self.phys.lru_set_mlocked(pfn, true);
        }
        is_locked
    }

    /// An entry for a page is about to go. Should another area that has it be locked, reclaim will find that out.
    pub(crate) fn forget_mlock(&self, pfn: Pfn, page: &Page) {
        if page.flags().has(PageFlags::MLOCKED) && !self.is_ram(page) {
            self.phys.lru_set_mlocked(pfn, false);
        }
    }

    /// Whether the page has nowhere to go but to another frame.
    pub(crate) fn is_ram(&self, page: &Page) -> bool {
        let mapping = self.mappings.of_page(page);
        mapping.is_some_and(|mapping| mapping.kind.is_ram())
    }
}

fn set_residence(space: &mut Locked<'_>, range: VaRange, residence: Residence) {
    for part in space.cut(range) {
        space.insert(Vma { residence, ..part });
    }
}
