//! Splitting 2 MiB pages: the mapping and the page itself.

use guest_sync::Cpu;

use crate::frames::{Flush, FlushBatch, Frames, Mmu, SpaceId};
use crate::mm::{Mm, MmapError};
use crate::page::PageFlags;
use crate::pagetable::{Entry, Level, Slot};
use crate::pfn::{PAGEBLOCK_NR_PAGES, PAGEBLOCK_SIZE};

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Splits the huge page that an address lies inside of, unless the address is its first.
    pub(crate) fn split_across(&mut self, cpu: &Cpu, id: SpaceId, va: u64) -> Result<(), MmapError> {
        if va.is_multiple_of(PAGEBLOCK_SIZE) {
            return Ok(());
        }
        let table = self.spaces.space(id).ok_or(MmapError::UnknownSpace(id))?.table;
        let found = table.find(&self.frames, va);
        if found.level != Level::HUGE || !found.is_owned_leaf() {
            return Ok(());
        }
        self.split_huge(cpu, id, found.slot, found.start_of(va))
    }

    /// Turns the huge page at `va`, mapped by the entry in `slot`, into 512 small pages with the same contents.
    pub(crate) fn split_huge(
        &mut self,
        cpu: &Cpu,
        id: SpaceId,
        slot: Slot,
        va: u64,
    ) -> Result<(), MmapError> {
        let head = Entry::from_bits(self.frames.read(slot.table, slot.index)).pfn();
        let holder = self.phys.pins.lock().holder(head);
        if let Some(holder) = holder {
            return Err(MmapError::Pinned { holder });
        }
        let root = self
            .spaces
            .space(id)
            .ok_or(MmapError::UnknownSpace(id))?
            .table
            .root;
        let table = self.tables(cpu).new_table(id).map_err(|_| MmapError::NoMemory)?;
        self.tables(cpu).split_leaf(slot, table);
        let mut flush = FlushBatch::new();
        flush.add(Flush {
            space: id,
            root,
            va,
            nr_pages: u64::from(PAGEBLOCK_NR_PAGES),
        });
        self.mmu.flush(&flush);
        self.phys.split_allocated(head);
        for tail in 0..PAGEBLOCK_NR_PAGES {
            let page = self.phys.page(head + tail).expect("a mapped page is online");
            debug_assert!(page.flags().has(PageFlags::ANON));
            page.set_index(page.index() + tail);
        }
        self.phys.counts.thp_split_page.add(1);
        self.phys.counts.nr_anon_transparent_hugepages.sub(1);
        Ok(())
    }
}
