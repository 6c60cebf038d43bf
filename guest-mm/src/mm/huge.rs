//! Splitting 2 MiB pages: the page itself, and the mapping in every address space that has it.

use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::blocks::InUse;
use crate::frames::{FlushBatch, Frames, Mmu};
use crate::gfp::Gfp;
use crate::lru::list_of;
use crate::mm::rmap::{Unmapped, Walk};
use crate::mm::{Mm, PageWait};
use crate::page::{Page, PageFlags};
use crate::pagetable::{Level, TablePlace};
use crate::pfn::{Order, PAGE_SHIFT, PAGEBLOCK_NR_PAGES, Pfn};
use crate::phys::PinnedBy;

/// Why a huge page cannot be split; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SplitError {
    /// No frame for a page table.
    NoMemory,
    /// Somebody holds its physical address.
    Pinned(PinnedBy),
    /// Somebody else is just changing where it is mapped.
    Busy(PageWait),
}

/// A reference to a page that is to be split: nobody frees it meanwhile.
#[must_use = "the page is never freed"]
#[derive(Debug)]
pub(crate) struct ToSplit {
    head: Pfn,
    /// References besides those of entries: this one, and what its holder has too.
    known: u32,
    /// Where page tables may come from.
    gfp: Gfp,
}

impl ToSplit {
    /// For reclaim, which has isolated the page and keeps a reference of its own: it frees more than the tables take.
    pub(crate) const fn for_reclaim(head: Pfn) -> Self {
        Self {
            head,
            known: 2,
            gfp: Gfp::KERNEL.with(Gfp::MEMALLOC),
        }
    }

    /// The reference of a page that was found in use and can move.
    #[expect(clippy::needless_pass_by_value, reason = "the token is used up")]
    pub(crate) fn from_held(page: InUse) -> Self {
        debug_assert!(page.is_held, "only movable pages are held");
        Self {
            head: page.pfn,
            known: 1,
            gfp: Gfp::KERNEL,
        }
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Takes a reference to a huge page that an entry maps, while that entry's address space is locked.
    pub(crate) fn to_split(&self, head: Pfn) -> ToSplit {
        let held = self.mapped_page(head).try_reference();
        assert!(held, "{head} is mapped without a reference");
        ToSplit {
            head,
            known: 1,
            gfp: Gfp::KERNEL,
        }
    }

    /// Turns a huge page into 512 small pages with the same contents, wherever it is mapped. One that is not huge
    /// any more is left as it is. No address space may be locked by the caller.
    #[expect(clippy::needless_pass_by_value, reason = "the token is used up")]
    pub(crate) fn split_page(&self, cpu: &Cpu, page: ToSplit) -> Result<(), SplitError> {
        let outcome = self.split_held(cpu, &page);
        self.phys.put_page(cpu, page.head);
        outcome
    }

    fn split_held(&self, cpu: &Cpu, wanted: &ToSplit) -> Result<(), SplitError> {
        let head = wanted.head;
        let page = self.mapped_page(head);
        if !page.try_lock() {
            return Err(SplitError::Busy(PageWait::lock(head)));
        }
        let outcome = self.split_locked(cpu, wanted, page);
        self.unlock_page(head, page);
        outcome
    }

    fn split_locked(&self, cpu: &Cpu, wanted: &ToSplit, page: &Page) -> Result<(), SplitError> {
        let head = wanted.head;
        if page.order() != Order::PAGEBLOCK || page.mapcount() == 0 {
            return Ok(());
        }
        if page.flags().has(PageFlags::PINNED) {
            let by = self.phys.pins.lock().by(head);
            return Err(by.map_or(SplitError::Busy(PageWait::lock(head)), SplitError::Pinned));
        }
        let (mut flush, mut unmapped) = (FlushBatch::new(), Vec::new());
        self.unmap_page(cpu, (head, page), &mut Walk::default(), &mut flush, &mut unmapped);
        if !flush.is_empty() {
            self.mmu.flush(&flush);
        }
        // What the caller holds, and the entries; somebody else may want the page as it is.
        let is_known = page.count() == page.mapcount() + wanted.known;
        if unmapped.is_empty() || !is_known {
            self.map_all_again(cpu, &unmapped);
            return Err(SplitError::Busy(PageWait::lock(head)));
        }
        let va = u64::from(page.index()) << PAGE_SHIFT;
        let Some(tables) = self.tables_for(cpu, &unmapped, va, wanted.gfp) else {
            self.map_all_again(cpu, &unmapped);
            return Err(SplitError::NoMemory);
        };
        self.split_descriptors(head, page, wanted.known);
        for (entry, table) in unmapped.iter().zip(tables) {
            let mut space = entry.space.lock();
            self.tables(cpu).split_leaf(entry.slot, entry.entry, table);
            space.settle_one();
        }
        self.phys.counts.thp_split_page.add(1);
        self.phys.counts.nr_anon_transparent_hugepages.sub(1);
        Ok(())
    }

    fn map_all_again(&self, cpu: &Cpu, unmapped: &[Unmapped]) {
        for entry in unmapped {
            self.map_again(cpu, entry, entry.entry);
        }
    }

    /// A page table for each address space, for the 2 MiB at an address.
    fn tables_for(&self, cpu: &Cpu, unmapped: &[Unmapped], va: u64, gfp: Gfp) -> Option<Vec<Pfn>> {
        let place = TablePlace::of(va, Level::PAGE);
        let mut tables = Vec::with_capacity(unmapped.len());
        for entry in unmapped {
            match self.tables(cpu).new_table_from(entry.space.id(), place, gfp) {
                Ok(table) => tables.push(table),
                Err(_) => {
                    tables
                        .into_iter()
                        .for_each(|table| self.tables(cpu).free_table(table));
                    return None;
                }
            }
        }
        Some(tables)
    }

    /// Every small page gets what the huge one had: its mappings with their references, and its place.
    fn split_descriptors(&self, head: Pfn, page: &Page, known: u32) {
        let list = list_of(page.flags());
        let is_mlocked = page.flags().has(PageFlags::MLOCKED);
        self.phys.split_allocated(head);
        for tail in 1..PAGEBLOCK_NR_PAGES {
            let small = self.mapped_page(head + tail);
            debug_assert!(small.flags().has(PageFlags::ANON));
            small.set_index(page.index() + tail);
            // The lock and the callers' references are to the first of them, and that one is on the list.
            small.remove_flags(PageFlags::LOCKED.with(PageFlags::LRU));
            for _ in 0..known {
                small.drop_reference();
            }
            small.set_next(0);
            small.set_prev(0);
            self.phys.lru_add(head + tail, list);
            self.phys.lru_set_mlocked(head + tail, is_mlocked);
        }
    }
}
