//! Pages taken from programs for others: from the far end of the inactive list, those first that nobody has used lately (Linux 2.6,
//! `shrink_zone`).

use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::frames::{FlushBatch, Frames, Mmu};
use crate::lru::LruList;
use crate::mm::Mm;
use crate::mm::huge::ToSplit;
use crate::mm::mapping::WhyWrite;
use crate::mm::reclaim_file::Writes;
use crate::mm::rmap::Walk;
use crate::mm::zap::flush_of;
use crate::page::{Page, PageFlags};
use crate::pagetable::Entry;
use crate::pfn::{Order, Pfn};
use crate::swap::SlotNr;
use crate::zone::Zone;

/// What a look at some pages of a zone came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shrunk {
    /// Pages of the inactive list that were looked at.
    pub scanned: u32,
    /// Frames that are free now.
    pub freed: u32,
    /// Pages on their way to the swap area or to their files, which are free when they are there.
    pub written: u32,
    /// Pages that were in use, or could not go, and are on the active list now.
    pub activated: u32,
}

/// What becomes of a page of the inactive list.
pub(crate) enum Fate {
    /// In use, or it cannot go.
    Keep,
    /// It waits for something, and comes up again.
    Later,
    /// Unmapped everywhere, and still locked: it goes after a flush.
    Unmapped,
    /// Nobody's any more: whoever took it away has not let go of it yet.
    Gone,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Looks at up to `nr` pages of a zone's inactive list, after it was given some of the active one's if it is the shorter; frees those
    /// that were not used since the last look and whose contents are on a disk, and writes out the others.
    pub fn shrink_zone(&self, cpu: &Cpu, zone: &Zone, nr: u32) -> Shrunk {
        let mut walk = Walk::default();
        self.age_active(cpu, zone, nr, &mut walk);
        let mut pages = Vec::new();
        self.phys.lru_isolate(zone, LruList::Inactive, nr, &mut pages);
        let mut shrunk = Shrunk {
            scanned: u32::try_from(pages.len()).unwrap_or(u32::MAX),
            ..Shrunk::default()
        };
        self.free_or_write(cpu, pages, &mut shrunk);
        self.phys.counts.pgscan.add(shrunk.scanned.into());
        self.phys.counts.pgsteal.add(shrunk.freed.into());
        shrunk
    }

    /// Frees isolated pages whose contents are on a disk, begins to write the others, and puts back what is in use.
    pub(crate) fn free_or_write(&self, cpu: &Cpu, pages: Vec<Pfn>, shrunk: &mut Shrunk) {
        let (mut walk, mut flush, mut unmapped) = (Walk::default(), FlushBatch::new(), Vec::new());
        for pfn in pages {
            match self.unmap_for_swap(cpu, pfn, &mut walk, &mut flush) {
                Fate::Unmapped => unmapped.push(pfn),
                Fate::Keep => {
                    shrunk.activated += 1;
                    self.put_back(cpu, pfn, LruList::Active);
                }
                Fate::Later => self.put_back(cpu, pfn, LruList::Inactive),
                Fate::Gone => self.phys.put_page(cpu, pfn),
            }
        }
        self.finish_evictions(cpu, &flush, unmapped, shrunk);
    }

    /// Frees isolated pages that were unmapped, or begins to write them; the flush comes first.
    pub(crate) fn finish_evictions(
        &self,
        cpu: &Cpu,
        flush: &FlushBatch,
        unmapped: Vec<Pfn>,
        shrunk: &mut Shrunk,
    ) {
        if !flush.is_empty() {
            self.mmu.flush(flush);
        }
        let mut writes = Writes::new();
        for pfn in unmapped {
            let page = self.mapped_page(pfn);
            if page.flags().has(PageFlags::FILE) {
                self.evict_file(cpu, (pfn, page), &mut writes, shrunk);
            } else {
                self.evict(cpu, pfn, shrunk);
            }
        }
        self.submit_gathered(writes, WhyWrite::Reclaim);
    }

    /// Moves pages that were not used lately from the active list to the inactive one (Linux 2.6, `refill_inactive_zone`).
    fn age_active(&self, cpu: &Cpu, zone: &Zone, nr: u32, walk: &mut Walk) {
        if zone.lru_len(LruList::Active) <= zone.lru_len(LruList::Inactive) {
            return;
        }
        let mut pages = Vec::new();
        self.phys.lru_isolate(zone, LruList::Active, nr, &mut pages);
        for pfn in pages {
            let page = self.mapped_page(pfn);
            let is_used = self.take_referenced(page) | self.was_used(cpu, pfn, page, walk);
            let list = if is_used {
                LruList::Active
            } else {
                LruList::Inactive
            };
            self.put_back(cpu, pfn, list);
        }
    }

    /// Whether an accessed bit of the page was set; they are clear then. Translations stay: a use that hardware has cached is not seen
    /// until the translation is forgotten for another reason, as in Linux on x86.
    pub(crate) fn was_used(&self, cpu: &Cpu, pfn: Pfn, page: &Page, walk: &mut Walk) -> bool {
        let mut is_used = false;
        self.for_each_entry(pfn, page, walk, |_, _, (slot, _, entry)| {
            if entry.has(Entry::ACCESSED) {
                is_used = true;
                self.tables(cpu).set(slot, entry.without(Entry::ACCESSED));
            }
        });
        is_used
    }

    pub(crate) fn put_back(&self, cpu: &Cpu, pfn: Pfn, list: LruList) {
        self.phys.lru_add(pfn, list);
        self.phys.put_page(cpu, pfn);
    }

    /// Gives an isolated page a slot and replaces its entries by swap entries.
    pub(crate) fn unmap_for_swap(
        &self,
        cpu: &Cpu,
        pfn: Pfn,
        walk: &mut Walk,
        flush: &mut FlushBatch,
    ) -> Fate {
        let page = self.mapped_page(pfn);
        if page.order() != Order::ZERO && self.is_mlocked(pfn, page, walk) {
            return Fate::Keep;
        }
        if page.order() != Order::ZERO {
            // Its pieces come up one by one.
            page.try_reference();
            let split = self.split_page(cpu, ToSplit::for_reclaim(pfn));
            return if split.is_ok() { Fate::Later } else { Fate::Keep };
        }
        if !page.try_lock() {
            return Fate::Later;
        }
        let fate = self.unmap_locked(cpu, pfn, page, walk, flush);
        if !matches!(fate, Fate::Unmapped) {
            self.unlock_page(pfn, page);
        }
        fate
    }

    fn unmap_locked(
        &self,
        cpu: &Cpu,
        pfn: Pfn,
        page: &Page,
        walk: &mut Walk,
        flush: &mut FlushBatch,
    ) -> Fate {
        let flags = page.flags();
        if flags.has(PageFlags::WRITEBACK) {
            return Fate::Later;
        }
        if flags.has(PageFlags::FILE) {
            return self.unmap_file(cpu, (pfn, page), walk, flush);
        }
        if !flags.has(PageFlags::ANON) {
            return Fate::Gone;
        }
        self.leave_bad_slot(cpu, pfn, page);
        let was_cached = page.flags().has(PageFlags::SWAPCACHE);
        let known = page.mapcount() + u32::from(was_cached) + 1;
        if flags.has(PageFlags::PINNED) || page.count() != known || self.was_used(cpu, pfn, page, walk) {
            return Fate::Keep;
        }
        if self.is_mlocked(pfn, page, walk) {
            return Fate::Keep;
        }
        if !was_cached && (page.mapcount() == 0 || !self.add_to_swap(pfn, page)) {
            return Fate::Keep;
        }
        let Some(slot) = SlotNr::new(page.private()) else {
            return Fate::Keep;
        };
        self.for_each_entry(pfn, page, walk, |_, locked, (place, va, _)| {
            // Counted before it is there, so that the slot is never free while an entry names it.
            if !self.swap.add_user(slot) {
                return;
            }
            self.tables(cpu).set(place, Entry::swap(slot));
            locked.rss_pages -= 1;
            locked.swap_pages += 1;
            flush.add(flush_of(locked.table, va, Order::ZERO));
            page.drop_mapping();
            // The one who isolated the page has another one.
            page.drop_reference();
        });
        if page.mapcount() == 0 {
            return Fate::Unmapped;
        }
        if !was_cached && self.swap.users(slot) == 1 {
            self.leave_swap(cpu, pfn, page);
        }
        Fate::Keep
    }

    /// Frees a page that nobody maps, or writes it out. It is locked, and no translation leads to it any more.
    pub(crate) fn evict(&self, cpu: &Cpu, pfn: Pfn, shrunk: &mut Shrunk) {
        let page = self.mapped_page(pfn);
        if self.free_swapped(cpu, pfn, page, 2) {
            shrunk.freed += 1;
            self.unlock_page(pfn, page);
            self.phys.put_page(cpu, pfn);
            return;
        }
        if page.flags().has(PageFlags::DIRTY) {
            self.write_out(pfn, page);
            shrunk.written += 1;
        }
        self.unlock_page(pfn, page);
        self.put_back(cpu, pfn, LruList::Inactive);
    }
}
