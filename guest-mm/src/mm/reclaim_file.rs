//! Pages of mappings that reclaim takes: clean ones are dropped, dirty ones written first, those of shared memory go to swap.
//!
//! A page that was read once and never again must not push out what is in use: a page is on the inactive list at first, and
//! only a second use makes it active ([`Mm::mark_accessed`], Linux 2.6 `mark_page_accessed`; for accessed bits
//! `page_check_references`, 2.6.34).

use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::frames::{FlushBatch, Frames, Mmu};
use crate::lru::LruList;
use crate::mm::Mm;
use crate::mm::mapping::{LockedPage, Mapping, MappingKind, WhyWrite};
use crate::mm::reclaim::{Fate, Shrunk};
use crate::mm::rmap::Walk;
use crate::page::{Page, PageFlags};
use crate::pfn::Pfn;

/// Dirty pages of one pass that are on their way; their requests are made together.
pub(crate) type Writes = Vec<(Arc<Mapping>, u32, Pfn)>;

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Unmaps an isolated page of a mapping, if it was not used lately. The caller has its lock, and a reference.
    pub(crate) fn unmap_file(
        &self,
        cpu: &Cpu,
        (pfn, page): (Pfn, &Page),
        walk: &mut Walk,
        flush: &mut FlushBatch,
    ) -> Fate {
        let flags = page.flags();
        if flags.has(PageFlags::MLOCKED) || self.is_ram(page) {
            return Fate::Keep;
        }
        let was_referenced = self.take_referenced(page);
        if self.was_used(cpu, pfn, page, walk) {
            page.add_flags(PageFlags::REFERENCED);
            return if was_referenced { Fate::Keep } else { Fate::Later };
        }
        // Used by calls alone: not worth a write yet.
        if was_referenced && flags.has(PageFlags::DIRTY) {
            return Fate::Later;
        }
        let known = page.mapcount() + 2 + u32::from(flags.has(PageFlags::PRIVATE));
        if page.count() != known {
            return Fate::Later;
        }
        if self.is_mlocked(pfn, page, walk) {
            return Fate::Keep;
        }
        self.unmap_file_page(cpu, (pfn, page), walk, flush);
        if page.mapcount() == 0 {
            Fate::Unmapped
        } else {
            Fate::Later
        }
    }

    /// Frees a page of a mapping that nobody maps, or begins to write it. Lock and reference are given back.
    pub(crate) fn evict_file(
        &self,
        cpu: &Cpu,
        (pfn, page): (Pfn, &Page),
        writes: &mut Writes,
        shrunk: &mut Shrunk,
    ) {
        let Some(mapping) = self.mappings.of_page(page) else {
            self.unlock_page(pfn, page);
            return self.put_back(cpu, pfn, LruList::Inactive);
        };
        // Gives both back when it goes.
        let locked = LockedPage::new(self, cpu, mapping.clone(), pfn);
        match &mapping.kind {
            MappingKind::Shmem => {
                let list = if self.shmem_out(cpu, &mapping, (pfn, page), 2) {
                    self.write_out(pfn, page);
                    shrunk.written += 1;
                    LruList::Inactive
                } else {
                    shrunk.activated += 1;
                    LruList::Active
                };
                self.phys.lru_add(pfn, list);
            }
            MappingKind::File(_) if locked.is_dirty() => {
                // Nothing maps it, so nothing is flushed.
                let begun = self.begin_write(&locked, &mut Walk::default(), &mut FlushBatch::new());
                if begun {
                    writes.push((mapping.clone(), locked.index(), pfn));
                    self.phys.counts.nr_vmscan_write.add(1);
                    shrunk.written += 1;
                }
                self.phys.lru_add(pfn, LruList::Inactive);
            }
            MappingKind::File(_) if self.free_clean(cpu, &mapping, (pfn, page), 2) => shrunk.freed += 1,
            MappingKind::File(_) => self.phys.lru_add(pfn, LruList::Inactive),
            // It is not unmapped for that (`unmap_file`).
            MappingKind::Ram(_) => {
                shrunk.activated += 1;
                self.phys.lru_add(pfn, LruList::Unevictable);
            }
        }
    }

    /// Makes the requests of a pass, neighbours together.
    pub(crate) fn submit_gathered(&self, mut writes: Writes, why: WhyWrite) {
        writes.sort_by_key(|(mapping, index, _)| (mapping.id, *index));
        for of_one in writes.chunk_by(|one, next| one.0.id == next.0.id) {
            let pages: Vec<(u32, Pfn)> = of_one.iter().map(|&(_, index, pfn)| (index, pfn)).collect();
            if let Some((mapping, ..)) = of_one.first() {
                self.submit_writes(mapping, &pages, why);
            }
        }
    }

    /// Whether the page was used by calls since this was last asked.
    pub(crate) fn take_referenced(&self, page: &Page) -> bool {
        let was_referenced = page.flags().has(PageFlags::REFERENCED);
        if was_referenced {
            page.remove_flags(PageFlags::REFERENCED);
        }
        was_referenced
    }
}
