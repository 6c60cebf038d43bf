//! Faults on pages that are in the swap area, and entries that name its slots.

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu};
use crate::gfp::Gfp;
use crate::mm::fault::{Step, Want};
use crate::mm::fault_ahead::MOST_AHEAD;
use crate::mm::swap::ReadIn;
use crate::mm::{AnonPlace, FaultError, FaultOutcome, Locked, Mm, PageWait, Vma};
use crate::page::{Page, PageFlags};
use crate::pagetable::{Entry, Found, Slot};
use crate::pfn::{Order, PAGE_SIZE, Pfn};
use crate::swap::SlotNr;

/// Bytes around a page in which others are mapped with it that were read already, aligned.
const MAP_AROUND: u64 = MOST_AHEAD as u64 * PAGE_SIZE;

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Maps the page that a swap entry stands for, or begins to read it.
    pub(crate) fn swap_in(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        (va, found): (u64, &Found),
        (vma, want): (&Vma, Want),
        slot: SlotNr,
    ) -> Result<Step, FaultError> {
        let Some(pfn) = self.swap.find(slot, |pfn| self.mapped_page(pfn)) else {
            if self.swap.is_lost(slot) {
                return Err(FaultError::Poisoned { va });
            }
            let frame = self.phys.alloc_pages(cpu, Gfp::USER, Order::ZERO);
            let frame = frame.map_err(|error| FaultError::OutOfMemory(error.gfp))?;
            self.read_in(cpu, slot, frame, ReadIn::Wanted)
                .ok_or(FaultError::OutOfMemory(Gfp::USER))?;
            self.phys.counts.pgmajfault.add(1);
            let window = space.swap_ahead.read(va);
            self.read_ahead(cpu, slot, window);
            return Ok(Step::Done(FaultOutcome::Locked(PageWait::lock(frame))));
        };
        let page = self.mapped_page(pfn);
        if !page.try_lock() {
            self.phys.put_page(cpu, pfn);
            return Ok(Step::Done(FaultOutcome::Locked(PageWait::lock(pfn))));
        }
        // Not the slot's any more if it was moved since it was found.
        let is_slots = page.flags().has(PageFlags::SWAPCACHE) && page.private() == slot.number();
        if !is_slots || !page.flags().has(PageFlags::UPTODATE) {
            return self.unreadable(cpu, (pfn, page), va, slot);
        }
        // Read-only: it is the slot's page, too. A store makes it the program's own.
        let bits = vma.prot.leaf_bits() & !(Entry::WRITABLE | Entry::DIRTY);
        self.map_swapped(cpu, space, (found.slot, va, bits), (slot, pfn, page));
        self.unlock_page(pfn, page);
        let around = self.map_read_around(cpu, space, (found.slot, va, bits), vma);
        if want == Want::Own {
            let found = space.table.find(&self.frames, va);
            return self.make_own(cpu, space, vma, va, &found);
        }
        Ok(Step::Done(FaultOutcome::Mapped { nr_pages: 1 + around }))
    }

    /// Maps those around a page that are in the swap cache with their contents and that nobody is working on: they were read with it, and
    /// a fault costs several times what mapping a page does. Nobody has used them yet, and so they say. How many.
    fn map_read_around(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        (wanted, va, bits): (Slot, u64, u64),
        vma: &Vma,
    ) -> u32 {
        let bits = bits & !Entry::ACCESSED;
        let mut mapped = 0;
        // Where each fault is to map its own page alone, this one does so too.
        let bytes = match self.fault_around {
            Order::ZERO => PAGE_SIZE,
            _ => MAP_AROUND,
        };
        for (place, near) in self.slots_around(wanted, va, vma, bytes) {
            let entry = Entry::from_bits(self.frames.read(place.table, place.index));
            let Some(slot) = entry.swap_slot() else {
                continue;
            };
            let Some(pfn) = self.swap.find(slot, |pfn| self.mapped_page(pfn)) else {
                continue;
            };
            let page = self.mapped_page(pfn);
            if !page.try_lock() {
                self.phys.put_page(cpu, pfn);
                continue;
            }
            let is_there = PageFlags::SWAPCACHE.with(PageFlags::UPTODATE);
            let is_slots = page.flags().has(is_there) && page.private() == slot.number();
            if is_slots {
                self.map_swapped(cpu, space, (place, near, bits), (slot, pfn, page));
                mapped += 1;
            }
            self.unlock_page(pfn, page);
            if !is_slots {
                self.phys.put_page(cpu, pfn);
            }
        }
        mapped
    }

    /// The page is the slot's no more, so that somebody looks again, or its contents could not be read, which its reader is told.
    fn unreadable(
        &self,
        cpu: &Cpu,
        (pfn, page): (Pfn, &Page),
        va: u64,
        slot: SlotNr,
    ) -> Result<Step, FaultError> {
        let is_slots = page.flags().has(PageFlags::SWAPCACHE) && page.private() == slot.number();
        if is_slots {
            self.leave_swap(cpu, pfn, page);
        }
        self.unlock_page(pfn, page);
        self.phys.put_page(cpu, pfn);
        if is_slots {
            return Err(FaultError::Io { va });
        }
        Ok(Step::Done(FaultOutcome::Locked(PageWait::lock(pfn))))
    }

    /// Puts a page in the place of the entry for its slot. The caller's reference becomes the entry's.
    fn map_swapped(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        (place, va, bits): (Slot, u64, u64),
        (slot, pfn, page): (SlotNr, Pfn, &Page),
    ) {
        let anon_vma = space.anon_vma_at(va, &self.anon_vmas);
        if page.mapcount() == 0 {
            self.set_anon(pfn, AnonPlace { anon_vma, va });
        } else {
            page.add_mapping();
        }
        space.rss_pages += 1;
        space.swap_pages -= 1;
        self.tables(cpu).set(place, Entry::new(pfn, bits));
        self.swap.drop_user(slot);
    }

    /// Begins to read the slots around one that are in use and not in memory, as far as there is memory to spare.
    fn read_ahead(&self, cpu: &Cpu, slot: SlotNr, window: u32) {
        let first = slot.number() / window * window;
        for near in (first..first + window).filter_map(SlotNr::new) {
            let is_known = self.swap.users(near) == 0 || near == slot || self.swap.is_lost(near);
            if is_known || self.swap.is_cached(near) {
                continue;
            }
            let Ok(frame) = self.phys.alloc_pages(cpu, Gfp::SPARE, Order::ZERO) else {
                return;
            };
            if self.read_in(cpu, near, frame, ReadIn::Ahead).is_none() {
                return;
            }
        }
    }

    /// An entry for a slot is gone. A page of the slot that nobody else wants goes too.
    pub(crate) fn drop_swap_entry(&self, cpu: &Cpu, slot: SlotNr) {
        if self.swap.drop_user(slot) != 1 {
            return;
        }
        let Some(pfn) = self.swap.find(slot, |pfn| self.mapped_page(pfn)) else {
            return;
        };
        let page = self.mapped_page(pfn);
        if page.try_lock() {
            self.drop_unwanted(cpu, pfn, page);
            self.unlock_page(pfn, page);
        }
        self.phys.put_page(cpu, pfn);
    }
}
