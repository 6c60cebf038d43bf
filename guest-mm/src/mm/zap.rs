//! Pages taken out of an address space.

use guest_sync::Cpu;

use crate::frames::{Flush, FlushBatch, Frames, Mmu};
use crate::mm::gather::Gather;
use crate::mm::{Locked, Mm};
use crate::page::PageFlags;
use crate::pagetable::{Entry, Level, PageTable, Slot, VaRange};
use crate::pfn::{Order, PAGE_BYTES, PAGE_SIZE, PAGEBLOCK_SIZE};

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Unmaps everything in a range: pages are let go after one flush for many. There are no migration entries in it.
    pub(crate) fn zap(&self, cpu: &Cpu, space: &mut Locked<'_>, range: VaRange) {
        let table = space.table;
        let mut gather = Gather::default();
        let mut va = range.start();
        while va < range.end() {
            let found = table.find(&self.frames, va);
            let next = found.end_of(va).min(range.end());
            if found.level > Level::HUGE || found.entry.is_empty() && found.level == Level::HUGE {
                va = next;
                continue;
            }
            if found.level == Level::HUGE {
                self.zap_leaf(cpu, space, (found.slot, va), &mut gather);
            } else {
                // The rest of this page table without walking down to it again for each entry.
                let end = ((va / PAGEBLOCK_SIZE + 1) * PAGEBLOCK_SIZE).min(range.end());
                for page in (va..end).step_by(PAGE_BYTES) {
                    let slot = Slot {
                        index: Level::PAGE.index(page),
                        ..found.slot
                    };
                    self.zap_leaf(cpu, space, (slot, page), &mut gather);
                }
                va = end - PAGE_SIZE;
            }
            self.prune_later(cpu, table, va, &mut gather);
            va = if found.level == Level::HUGE {
                next
            } else {
                va + PAGE_SIZE
            };
            if gather.is_full() {
                gather.finish(self.tables(cpu), &self.mmu);
            }
        }
        gather.finish(self.tables(cpu), &self.mmu);
    }

    /// Empties an entry. Its table stays.
    pub(crate) fn zap_leaf(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        (slot, va): (Slot, u64),
        gather: &mut Gather,
    ) {
        if self.frames.read(slot.table, slot.index) == 0 {
            return;
        }
        let old = self.tables(cpu).set(slot, Entry::EMPTY);
        if let Some(slot) = old.swap_slot() {
            space.swap_pages -= 1;
            self.drop_swap_entry(cpu, slot);
            return;
        }
        if old.file_index().is_some() {
            return;
        }
        gather.flush_later(flush_of(space.table, va, order_of(old)));
        if old.has(Entry::FIXED) {
            return;
        }
        debug_assert!(!old.is_migration());
        let page = self.mapped_page(old.pfn());
        self.forget_mlock(old.pfn(), page);
        if page.flags().has(PageFlags::FILE) {
            space.file_pages -= 1;
            self.phys.counts.nr_mapped.sub(1);
            page.drop_mapping();
            gather.put_later(old.pfn());
            return;
        }
        space.rss_pages -= u64::from(order_of(old).nr_pages());
        debug_assert!(page.flags().has(PageFlags::ANON));
        let left = page.drop_mapping();
        if left == 0 && page.flags().has(PageFlags::SWAPCACHE) && page.try_lock() {
            self.drop_unwanted(cpu, old.pfn(), page);
            self.unlock_page(old.pfn(), page);
        }
        gather.put_later(old.pfn());
    }

    pub(crate) fn prune_later(&self, cpu: &Cpu, table: PageTable, va: u64, gather: &mut Gather) {
        for emptied in self.tables(cpu).prune(table, va).iter() {
            gather.free_table_later(emptied);
        }
    }

    /// Forgets the translation of one entry.
    pub(crate) fn flush_one(&self, table: PageTable, va: u64, order: Order) {
        let mut flush = FlushBatch::new();
        flush.add(flush_of(table, va, order));
        self.mmu.flush(&flush);
    }
}

/// What forgets the translation of an entry.
pub(crate) fn flush_of(table: PageTable, va: u64, order: Order) -> Flush {
    Flush {
        space: table.space,
        root: table.root,
        va,
        nr_pages: u64::from(order.nr_pages()),
    }
}

/// Size of the page that a leaf maps.
pub(crate) const fn order_of(leaf: Entry) -> Order {
    if leaf.has(Entry::HUGE) {
        Order::PAGEBLOCK
    } else {
        Order::ZERO
    }
}
