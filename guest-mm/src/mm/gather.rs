//! Pages and tables taken out of the page tables, freed only after a flush (Linux `mmu_gather`).

use alloc::vec::Vec;

use crate::frames::{Flush, FlushBatch, Frames, Mmu};
use crate::pagetable::Tables;
use crate::pfn::Pfn;

/// Pages after which it is emptied: enough to make a flush cheap, few enough to keep the vectors small.
const FULL: usize = 512;

/// What waits for the flush.
#[derive(Default, Debug)]
pub(crate) struct Gather {
    flush: FlushBatch,
    pages: Vec<Pfn>,
    tables: Vec<Pfn>,
}

impl Gather {
    pub(crate) fn flush_later(&mut self, flush: Flush) {
        self.flush.add(flush);
    }

    /// Drops a reference to the page after the flush.
    pub(crate) fn put_later(&mut self, head: Pfn) {
        self.pages.push(head);
    }

    pub(crate) fn free_table_later(&mut self, table: Pfn) {
        self.tables.push(table);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.pages.len() >= FULL
    }

    /// Flushes, then frees.
    pub(crate) fn finish(&mut self, mut tables: Tables<'_, impl Frames>, mmu: &impl Mmu) {
        if !self.flush.is_empty() {
            mmu.flush(&self.flush);
            self.flush = FlushBatch::new();
        }
        for head in self.pages.drain(..) {
            tables.phys.put_page(tables.cpu, head);
        }
        for table in self.tables.drain(..) {
            tables.free_table(table);
        }
    }
}
