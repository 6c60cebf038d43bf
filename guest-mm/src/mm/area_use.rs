//! What each area of an address space has in memory (Linux `fs/proc/task_mmu.c`, `struct mem_size_stats`).

use alloc::vec::Vec;

use crate::frames::{Frames, Mmu, SpaceId};
use crate::mm::{Backing, Locked, Mm, Vma};
use crate::page::PageFlags;
use crate::pagetable::{Entry, Level};
use crate::pfn::{PAGE_SHIFT, PAGE_SIZE};

/// Bits of a share of a page that are kept below a byte (Linux `PSS_SHIFT`).
const PSS_SHIFT: u32 = 12;

/// An area with what it has. Sizes in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AreaUse {
    /// The area.
    pub vma: Vma,
    /// Whether `brk` moves its end.
    pub is_heap: bool,
    /// Mapped, in pages of all sizes but reserved huge ones.
    pub rss: u64,
    /// The same, each page divided by the entries that map it.
    pub pss: u64,
    /// Mapped by others too, and not written to since it was mapped.
    pub shared_clean: u64,
    /// Mapped by others too, and written to.
    pub shared_dirty: u64,
    /// Mapped here only, and not written to.
    pub private_clean: u64,
    /// Mapped here only, and written to.
    pub private_dirty: u64,
    /// With the accessed bit set.
    pub referenced: u64,
    /// Belonging to no file.
    pub anonymous: u64,
    /// Anonymous, in transparent huge pages.
    pub anon_huge: u64,
    /// In the swap area.
    pub swap: u64,
    /// The part of `pss` that is locked in memory.
    pub locked: u64,
    /// In reserved huge pages mapped here only.
    pub private_hugetlb: u64,
    /// In reserved huge pages that others map too.
    pub shared_hugetlb: u64,
}

impl AreaUse {
    fn new(vma: Vma, is_heap: bool) -> Self {
        Self {
            vma,
            is_heap,
            rss: 0,
            pss: 0,
            shared_clean: 0,
            shared_dirty: 0,
            private_clean: 0,
            private_dirty: 0,
            referenced: 0,
            anonymous: 0,
            anon_huge: 0,
            swap: 0,
            locked: 0,
            private_hugetlb: 0,
            shared_hugetlb: 0,
        }
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// The areas of an address space, lowest address first, with what each has in memory: a look at every entry. `None` without such a
    /// space.
    pub fn area_uses(&self, id: SpaceId) -> Option<Vec<AreaUse>> {
        let found = self.spaces.find(id)?;
        let areas: Vec<Vma> = found.vmas().collect();
        let mut uses = Vec::with_capacity(areas.len());
        for vma in areas {
            let space = found.lock();
            // It may be another one by now, or none.
            let now = space.vma_at(vma.range.start()).copied();
            if let Some(vma) = now.filter(|now| now.range == vma.range) {
                let heap = &space.heap;
                let is_heap = vma.range.start() < heap.end && vma.range.end() > heap.start;
                let mut area = AreaUse::new(vma, is_heap && vma.backing.is_anonymous());
                self.look_at_entries(&space, &mut area);
                uses.push(area);
            }
        }
        Some(uses)
    }

    fn look_at_entries(&self, space: &Locked<'_>, area: &mut AreaUse) {
        let range = area.vma.range;
        let mut va = range.start();
        while va < range.end() {
            let found = space.table.find(&self.frames, va);
            let next = found.end_of(va).min(range.end());
            if found.level <= Level::HUGE {
                self.look_at_entry(found.entry, next - va, area);
            }
            va = next;
        }
        area.pss >>= PSS_SHIFT;
        area.locked >>= PSS_SHIFT;
    }

    fn look_at_entry(&self, entry: Entry, bytes: u64, area: &mut AreaUse) {
        if entry.swap_slot().is_some() {
            area.swap += PAGE_SIZE;
            return;
        }
        // The zero page is nobody's.
        if entry.is_empty() || entry.file_index().is_some() || entry.has(Entry::FIXED) {
            return;
        }
        let page = self.mapped_page(entry.pfn());
        let (flags, mapcount) = (page.flags(), u64::from(page.mapcount()).max(1));
        if flags.has(PageFlags::HUGETLB) {
            let kind = match mapcount {
                1 => &mut area.private_hugetlb,
                _ => &mut area.shared_hugetlb,
            };
            *kind += bytes;
            return;
        }
        let is_dirty = entry.has(Entry::DIRTY) || flags.has(PageFlags::DIRTY);
        let kind = match (mapcount > 1, is_dirty) {
            (true, false) => &mut area.shared_clean,
            (true, true) => &mut area.shared_dirty,
            (false, false) => &mut area.private_clean,
            (false, true) => &mut area.private_dirty,
        };
        *kind += bytes;
        let share = (bytes << PSS_SHIFT) / mapcount;
        area.rss += bytes;
        area.pss += share;
        area.referenced += if entry.has(Entry::ACCESSED) { bytes } else { 0 };
        if flags.has(PageFlags::ANON) {
            area.anonymous += bytes;
            area.anon_huge += if entry.has(Entry::HUGE) { bytes } else { 0 };
        }
        area.locked += if flags.has(PageFlags::MLOCKED) { share } else { 0 };
    }
}

impl AreaUse {
    /// What `/proc/PID/maps` says is behind it; empty for anonymous memory.
    pub fn name(&self) -> &'static str {
        match self.vma.backing {
            Backing::Stack { .. } => "[stack]",
            Backing::Physical(_) => "/dev/mem",
            Backing::HugeTlb(_) => "/anon_hugepage",
            Backing::Anonymous(_) if self.is_heap => "[heap]",
            Backing::Anonymous(_) | Backing::File(_) => "",
        }
    }

    /// The offset in what is behind it, and the number of the mapping, 0 for none.
    pub fn offset_and_inode(&self) -> (u64, u32) {
        match self.vma.backing {
            Backing::Physical(base) => (base.gpa(), 0),
            Backing::File(area) => (u64::from(area.first_page) << PAGE_SHIFT, area.mapping.number()),
            Backing::Anonymous(_) | Backing::Stack { .. } | Backing::HugeTlb(_) => (0, 0),
        }
    }
}
