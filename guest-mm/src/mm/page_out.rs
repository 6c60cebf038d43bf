//! Pages that a program gives up before anybody wants their memory (`madvise(MADV_PAGEOUT)`; Linux 5.4, `mm/madvise.c`).

use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu};
use crate::mm::huge::ToSplit;
use crate::mm::reclaim::Shrunk;
use crate::mm::{AddressSpace, Locked, Mm, MmapError};
use crate::page::PageFlags;
use crate::pagetable::{Entry, Level, VaRange};
use crate::pfn::{PAGEBLOCK_SIZE, Pfn};

/// What a range has that may go.
#[derive(Default)]
struct Found {
    /// Pages, each with a reference.
    pages: Vec<Pfn>,
    /// A huge one, which goes in pieces.
    huge: Option<ToSplit>,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Has the pages of a range leave memory as reclaim would have them leave, but now, and whether they were used lately or not: to the swap
    /// area, or to their files. What others map too stays, as do locked and pinned pages. What is written is free when it has arrived.
    /// A page table's part of the range is done at a time: one flush each.
    pub(crate) fn page_out(
        &self,
        cpu: &Cpu,
        space: &AddressSpace,
        range: VaRange,
    ) -> Result<Shrunk, MmapError> {
        let mut shrunk = Shrunk::default();
        let mut start = range.start();
        while start < range.end() {
            let end = (start / PAGEBLOCK_SIZE + 1) * PAGEBLOCK_SIZE;
            let part = VaRange::between(start, end.min(range.end()));
            let Found { pages, huge } = self.unshared_in(cpu, &self.begin_change(cpu, space, part)?, part);
            self.isolate_and_evict(cpu, pages, &mut shrunk);
            // A huge page that cannot be split now stays.
            if huge.is_some_and(|page| self.split_page(cpu, page).is_ok()) {
                let pieces = self.unshared_in(cpu, &self.begin_change(cpu, space, part)?, part);
                self.isolate_and_evict(cpu, pieces.pages, &mut shrunk);
            }
            start = end;
        }
        self.phys.counts.pgsteal.add(shrunk.freed.into());
        Ok(shrunk)
    }

    /// The pages that nobody but this range maps; that they were used is forgotten.
    fn unshared_in(&self, cpu: &Cpu, space: &Locked<'_>, range: VaRange) -> Found {
        let mut all = Found::default();
        let mut va = range.start();
        while va < range.end() {
            let found = space.table.find(&self.frames, va);
            let entry = found.entry;
            va = found.end_of(va);
            if found.level > Level::HUGE || !entry.is_present() || entry.has(Entry::FIXED) {
                continue;
            }
            let page = self.mapped_page(entry.pfn());
            if page.mapcount() != 1 || page.flags().has(PageFlags::HUGETLB) {
                continue;
            }
            if found.level == Level::HUGE {
                all.huge = Some(self.to_split(entry.pfn()));
            } else if page.try_reference() {
                self.tables(cpu).set(found.slot, entry.without(Entry::ACCESSED));
                self.take_referenced(page);
                all.pages.push(entry.pfn());
            }
        }
        all
    }

    /// Evicts those that nobody else has isolated. The references are given back.
    fn isolate_and_evict(&self, cpu: &Cpu, mut pages: Vec<Pfn>, shrunk: &mut Shrunk) {
        pages.retain(|&pfn| {
            let is_ours = self.phys.lru_remove(pfn).is_some();
            if !is_ours {
                self.phys.put_page(cpu, pfn);
            }
            is_ours
        });
        shrunk.scanned += u32::try_from(pages.len()).unwrap_or(u32::MAX);
        self.free_or_write(cpu, pages, shrunk);
    }
}
