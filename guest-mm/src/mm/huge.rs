//! Splitting 2 MiB pages: the mapping and the page itself.

use crate::frames::{Flush, FlushBatch, Frames, Mmu, SpaceId};
use crate::mm::{Mm, MmapError};
use crate::page::PageFlags;
use crate::pagetable::{Entry, Level, Slot};
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES, PAGEBLOCK_SIZE};

impl<F: Frames, M: Mmu> Mm<F, M> {
    /// Splits the huge page that an address lies inside of, unless the address is its first.
    pub(crate) fn split_across(&mut self, id: SpaceId, va: u64) -> Result<(), MmapError> {
        if va.is_multiple_of(PAGEBLOCK_SIZE) {
            return Ok(());
        }
        let table = self.spaces.space(id).ok_or(MmapError::UnknownSpace(id))?.table;
        let found = table.find(&self.frames, va);
        if found.level != Level::HUGE || !found.is_owned_leaf() {
            return Ok(());
        }
        self.split_huge(id, found.slot, found.start_of(va))
    }

    /// Turns the huge page at `va`, mapped by the entry in `slot`, into 512 small pages with the same contents.
    pub(crate) fn split_huge(&mut self, id: SpaceId, slot: Slot, va: u64) -> Result<(), MmapError> {
        let head = Entry::from_bits(self.frames.read(slot.table, slot.index)).pfn();
        if let Some(holder) = self.phys.pins.holder(head) {
            return Err(MmapError::Pinned { holder });
        }
        let root = self
            .spaces
            .space(id)
            .ok_or(MmapError::UnknownSpace(id))?
            .table
            .root;
        let table = self.tables().new_table(id).map_err(|_| MmapError::NoMemory)?;
        self.tables().split_leaf(slot, table);
        let mut flush = FlushBatch::new();
        flush.add(Flush {
            space: id,
            root,
            va,
            nr_pages: u64::from(PAGEBLOCK_NR_PAGES),
        });
        self.mmu.flush(&flush);
        let (section, offset) = self.phys.map.locate(head).expect("a mapped page is online");
        let section = self.phys.map.section_mut(section);
        section.split_allocated(offset, Order::PAGEBLOCK);
        for tail in 0..PAGEBLOCK_NR_PAGES {
            let page = &mut section.pages[(offset + tail) as usize];
            debug_assert!(page.flags.has(PageFlags::ANON));
            page.index += tail;
        }
        self.phys.stats.thp_split_page += 1;
        self.phys.stats.nr_anon_transparent_hugepages -= 1;
        Ok(())
    }
}
