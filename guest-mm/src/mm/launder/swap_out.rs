//! Pages of programs, found through their page tables (Linux 2.4, `swap_out`, `try_to_swap_out`).

use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::frames::{FlushBatch, Frames, Mmu};
use crate::lru::LruList;
use crate::mm::launder::{age_down, age_up};
use crate::mm::reclaim::Fate;
use crate::mm::rmap::Walk;
use crate::mm::{AddressSpace, Mm};
use crate::page::PageFlags;
use crate::pagetable::{Entry, Level};
use crate::pfn::{PAGE_SHIFT, PAGE_SIZE, Pfn};

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Looks at up to `nr` mapped pages, on from where the last call has stopped, and unmaps those that have reached age 0; how many those were.
    pub(crate) fn swap_out(&self, cpu: &Cpu, nr: u32) -> u32 {
        let mut spaces = self.spaces.all();
        spaces.sort_unstable_by_key(|space| space.id());
        let (last, page) = self.swap_out.place();
        let first = spaces
            .iter()
            .position(|space| space.id().number() >= last)
            .unwrap_or(0);
        let mut left = nr;
        let mut old = Vec::new();
        for turn in 0..spaces.len() {
            let space = &spaces[(first + turn) % spaces.len()];
            let is_same = turn == 0 && space.id().number() == last;
            let from = if is_same { u64::from(page) << PAGE_SHIFT } else { 0 };
            let stopped = self.age_entries(cpu, space, from, &mut left, &mut old);
            if let Some(va) = stopped {
                let page = u32::try_from(va >> PAGE_SHIFT).unwrap_or(0);
                self.swap_out.set(space.id().number(), page);
                break;
            }
            self.swap_out.set(space.id().number().wrapping_add(1), 0);
        }
        self.unmap_old(cpu, old)
    }

    /// Ages the pages that an address space maps from an address on, and adds those of age 0 to `old`, with a reference to each. Where it
    /// stopped, having looked at as many as it may; `None` at the end.
    fn age_entries(
        &self,
        cpu: &Cpu,
        space: &Arc<AddressSpace>,
        from: u64,
        left: &mut u32,
        old: &mut Vec<Pfn>,
    ) -> Option<u64> {
        let space = space.lock();
        if space.has_ended {
            return None;
        }
        for vma in space.vmas.values().filter(|vma| vma.range.end() > from) {
            let mut va = vma.range.start().max(from);
            while va < vma.range.end() {
                let found = space.table.find(&self.frames, va);
                let next = found.end_of(va);
                let is_page =
                    found.level <= Level::HUGE && found.entry.is_present() && !found.entry.has(Entry::FIXED);
                if is_page {
                    if *left == 0 {
                        return Some(va);
                    }
                    *left -= 1;
                    let page = self.mapped_page(found.entry.pfn());
                    if found.entry.has(Entry::ACCESSED) {
                        self.tables(cpu)
                            .set(found.slot, found.entry.without(Entry::ACCESSED));
                        age_up(page);
                    } else if age_down(page) == 0
                        && !page.flags().has(PageFlags::HUGETLB)
                        && page.try_reference()
                    {
                        old.push(found.entry.pfn());
                    }
                }
                va = next.max(va + PAGE_SIZE);
            }
        }
        None
    }

    /// Unmaps pages wherever they are mapped, and makes them inactive; how many those were.
    fn unmap_old(&self, cpu: &Cpu, old: Vec<Pfn>) -> u32 {
        let (mut walk, mut flush, mut unmapped) = (Walk::default(), FlushBatch::new(), Vec::new());
        for pfn in old {
            if self.phys.lru_remove(pfn).is_none() {
                // Somebody else is at it.
                self.phys.put_page(cpu, pfn);
                continue;
            }
            match self.unmap_for_swap(cpu, pfn, &mut walk, &mut flush) {
                Fate::Unmapped => unmapped.push(pfn),
                Fate::Keep | Fate::Later => self.put_back(cpu, pfn, LruList::Active),
                Fate::Gone => self.phys.put_page(cpu, pfn),
            }
        }
        if !flush.is_empty() {
            self.mmu.flush(&flush);
        }
        let made = unmapped.len();
        for pfn in unmapped {
            self.unlock_page(pfn, self.mapped_page(pfn));
            self.put_back(cpu, pfn, LruList::Inactive);
        }
        u32::try_from(made).unwrap_or(u32::MAX)
    }
}
