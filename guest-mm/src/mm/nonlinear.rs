//! Non-linear mappings: areas in which pages of a file stand in an order of their own (Linux 2.6 `mm/fremap.c`).
//!
//! Which page belongs at an address is written in its page-table entry: in a present one by the page that it maps, and otherwise
//! as a *file entry*, which names the index. So a program can rearrange a window onto a large file without an area for each piece.
//! The price is paid by the reverse mapping, which has to look at every entry of such an area.

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu, SpaceId};
use crate::mm::gather::Gather;
use crate::mm::{Backing, FileArea, Layout, Mm, MmapError, Sharing, Vma};
use crate::pagetable::{Entry, Level, VaRange};
use crate::pfn::PAGE_BYTES;

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Has a range of a shared area show other pages of its mapping: `first_page` and those after it. The area is a non-linear
    /// one from then on. Pages are mapped when they are touched.
    ///
    /// # Errors
    /// When the range is not inside of one shared area of a mapping, there is no memory for page tables, or a migration is under way. Nothing
    /// has changed then.
    pub fn remap_file_pages(
        &self,
        cpu: &Cpu,
        id: SpaceId,
        va: u64,
        len: u64,
        first_page: u32,
    ) -> Result<(), MmapError> {
        let bad = MmapError::BadRange { va, len };
        let found = self.spaces.find(id).ok_or(MmapError::UnknownSpace(id))?;
        let range = VaRange::new(va, len).ok_or(bad)?;
        let mut space = self.begin_change(cpu, &found, range)?;
        let vma = space.vma_at(va).filter(|vma| vma.range.covers(range));
        let vma = *vma.ok_or(bad)?;
        let area = vma.backing.file().filter(|area| area.sharing == Sharing::Shared);
        let area = area.ok_or(bad)?;
        let last = u64::from(first_page) + range.nr_pages();
        if last > u64::from(u32::MAX) {
            return Err(bad);
        }
        let pages = || (range.start()..range.end()).step_by(PAGE_BYTES);
        for va in pages() {
            let table = self.tables(cpu).ensure(space.table, va, Level::PAGE);
            table.map_err(|_| MmapError::NoMemory)?;
        }
        let nonlinear = FileArea {
            layout: Layout::NonLinear,
            ..area
        };
        space.cut(vma.range);
        space.insert(Vma {
            backing: Backing::File(nonlinear),
            ..vma
        });
        let mut gather = Gather::default();
        for (va, index) in pages().zip(first_page..) {
            let slot = space.table.find(&self.frames, va).slot;
            self.zap_leaf(cpu, &mut space, (slot, va), &mut gather);
            if area.first_page + vma.page_offset(va) != index {
                self.tables(cpu).set(slot, Entry::file(index));
            }
            if gather.is_full() {
                gather.finish(self.tables(cpu), &self.mmu);
            }
        }
        gather.finish(self.tables(cpu), &self.mmu);
        Ok(())
    }
}
