//! Splitting 2 MiB pages: the page itself, and the mapping in every address space that has it.

use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::blocks::InUse;
use crate::frames::{FlushBatch, Frames, Mmu};
use crate::mm::rmap::{Unmapped, Walk};
use crate::mm::{Mm, PageWait};
use crate::page::{Page, PageFlags};
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES, Pfn};

/// Why a huge page cannot be split; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SplitError {
    /// No frame for a page table.
    NoMemory,
    /// Somebody holds its physical address.
    Pinned {
        /// Who.
        holder: &'static str,
    },
    /// Somebody else is just changing where it is mapped.
    Busy(PageWait),
}

/// A reference to a page that is to be split: nobody frees it meanwhile.
#[must_use = "the page is never freed"]
#[derive(Debug)]
pub(crate) struct ToSplit(Pfn);

impl ToSplit {
    /// The reference of a page that was found in use and can move.
    #[expect(clippy::needless_pass_by_value, reason = "the token is used up")]
    pub(crate) fn from_held(page: InUse) -> Self {
        debug_assert!(page.place.is_some(), "only movable pages are held");
        Self(page.pfn)
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Takes a reference to a huge page that an entry maps, while that entry's address space is locked.
    pub(crate) fn to_split(&self, head: Pfn) -> ToSplit {
        let held = self.mapped_page(head).try_reference();
        assert!(held, "{head} is mapped without a reference");
        ToSplit(head)
    }

    /// Turns a huge page into 512 small pages with the same contents, wherever it is mapped. One that is not huge
    /// any more is left as it is. No address space may be locked by the caller.
    #[expect(clippy::needless_pass_by_value, reason = "the token is used up")]
    pub(crate) fn split_page(&self, cpu: &Cpu, page: ToSplit) -> Result<(), SplitError> {
        let ToSplit(head) = page;
        let outcome = self.split_held(cpu, head);
        self.phys.put_page(cpu, head);
        outcome
    }

    fn split_held(&self, cpu: &Cpu, head: Pfn) -> Result<(), SplitError> {
        let page = self.mapped_page(head);
        if !page.try_lock() {
            return Err(SplitError::Busy(PageWait(head)));
        }
        let outcome = self.split_locked(cpu, head, page);
        self.unlock_page(head, page);
        outcome
    }

    fn split_locked(&self, cpu: &Cpu, head: Pfn, page: &Page) -> Result<(), SplitError> {
        if page.order() != Order::PAGEBLOCK || page.mapcount() == 0 {
            return Ok(());
        }
        if page.flags().has(PageFlags::PINNED) {
            let holder = self.phys.pins.lock().holder(head).unwrap_or("one who let go");
            return Err(SplitError::Pinned { holder });
        }
        let (mut flush, mut unmapped) = (FlushBatch::new(), Vec::new());
        self.unmap_page(cpu, (head, page), &mut Walk::default(), &mut flush, &mut unmapped);
        if !flush.is_empty() {
            self.mmu.flush(&flush);
        }
        // What the caller holds, and the entries; somebody else may want the page as it is.
        let is_known = page.count() == page.mapcount() + 1;
        if unmapped.is_empty() || !is_known {
            self.map_all_again(cpu, &unmapped);
            return Err(SplitError::Busy(PageWait(head)));
        }
        let Some(tables) = self.tables_for(cpu, &unmapped) else {
            self.map_all_again(cpu, &unmapped);
            return Err(SplitError::NoMemory);
        };
        self.split_descriptors(head, page);
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

    /// A page table for each address space.
    fn tables_for(&self, cpu: &Cpu, unmapped: &[Unmapped]) -> Option<Vec<Pfn>> {
        let mut tables = Vec::with_capacity(unmapped.len());
        for entry in unmapped {
            match self.tables(cpu).new_table(entry.space.id()) {
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
    fn split_descriptors(&self, head: Pfn, page: &Page) {
        self.phys.split_allocated(head);
        for tail in 1..PAGEBLOCK_NR_PAGES {
            let small = self.mapped_page(head + tail);
            debug_assert!(small.flags().has(PageFlags::ANON));
            small.set_index(page.index() + tail);
            // The lock and the caller's reference are to the first of them.
            small.remove_flags(PageFlags::LOCKED);
            small.drop_reference();
        }
    }
}
