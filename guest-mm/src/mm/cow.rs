//! Copy-on-write: a store to a page that others see too, or to the zero page.

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu};
use crate::gfp::Gfp;
use crate::lru::LruList;
use crate::mm::fault::Step;
use crate::mm::zap::order_of;
use crate::mm::{AnonPlace, FaultError, FaultOutcome, FileArea, Locked, Mm, PageWait, Sharing, Vma};
use crate::page::{Page, PageFlags};
use crate::pagetable::{Entry, Found, Slot};
use crate::pfn::{Order, PAGE_SIZE, Pfn};
use crate::phys::Claim;
use crate::swap::SlotNr;

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Makes the page behind a present entry this address space's alone, and gives the entry all rights of its area.
    pub(crate) fn make_own(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        vma: &Vma,
        va: u64,
        found: &Found,
    ) -> Result<Step, FaultError> {
        let order = order_of(found.entry);
        if self.is_zero_page(found.entry) {
            return self.replace_zero_page(cpu, space, (found.slot, va), vma);
        }
        if found.entry.has(Entry::FIXED) {
            return Ok(Step::Done(FaultOutcome::AlreadyMapped));
        }
        let page = self.mapped_page(found.entry.pfn());
        if page.flags().has(PageFlags::FILE) {
            let area = vma.backing.file().filter(|area| area.sharing == Sharing::Shared);
            if let Some(area) = area {
                return self.store_to_shared(cpu, space, (vma, area), (va, found));
            }
        }
        let mut is_own = page.mapcount() == 1 && !page.flags().has(PageFlags::FILE);
        if is_own && page.flags().has(PageFlags::SWAPCACHE) {
            match self.take_from_swap(cpu, found.entry.pfn(), page) {
                Ok(taken) => is_own = taken,
                Err(wait) => return Ok(Step::Done(FaultOutcome::Locked(wait))),
            }
        }
        if is_own {
            let rights = found.entry.with(vma.prot.leaf_bits());
            if rights == found.entry {
                self.flush_one(space.table, va, order);
                return Ok(Step::Done(FaultOutcome::AlreadyMapped));
            }
            // More rights need no flush: who still has the old ones faults and comes here again.
            self.tables(cpu).set(found.slot, rights);
            self.phys.counts.pgreuse.add(1);
            return Ok(Step::Done(FaultOutcome::Reused));
        }
        if page.flags().has(PageFlags::HUGETLB) {
            let copy = self.phys.take_huge(cpu, Claim::None);
            let copy = copy.ok_or(FaultError::NoHugePage { va })?;
            self.copy_shared(cpu, space, (found, va), vma, copy);
            return Ok(Step::Done(FaultOutcome::Copied));
        }
        let gfp = if order == Order::ZERO {
            Gfp::USER
        } else {
            Gfp::SPARE
        };
        let Ok(copy) = self.phys.alloc_pages(cpu, gfp, order) else {
            if order == Order::ZERO {
                return Err(FaultError::OutOfMemory(gfp));
            }
            return Ok(Step::Split(self.to_split(found.entry.pfn())));
        };
        self.copy_shared(cpu, space, (found, va), vma, copy);
        Ok(Step::Done(FaultOutcome::Copied))
    }

    /// Takes a copy in the place of the page that an entry shares with others.
    fn copy_shared(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        (found, va): (&Found, u64),
        vma: &Vma,
        copy: Pfn,
    ) {
        let (shared, order) = (found.entry.pfn(), order_of(found.entry));
        self.frames.copy(shared, copy, order);
        let va = va / order.bytes() * order.bytes();
        let anon_vma = space.anon_vma_at(va, &self.anon_vmas);
        self.set_anon(copy, AnonPlace { anon_vma, va });
        // Those of the pool are counted there, and never go.
        if !self.mapped_page(copy).flags().has(PageFlags::HUGETLB) {
            self.adopt(copy, order);
        }
        let huge = found.entry.bits() & Entry::HUGE;
        self.tables(cpu)
            .set(found.slot, Entry::new(copy, vma.prot.leaf_bits() | huge));
        self.flush_one(space.table, va, order);
        if self.mapped_page(shared).flags().has(PageFlags::FILE) {
            space.file_pages -= 1;
            space.rss_pages += 1;
            self.phys.counts.nr_mapped.sub(1);
        }
        self.forget_mlock(shared, self.mapped_page(shared));
        self.mapped_page(shared).drop_mapping();
        self.phys.put_page(cpu, shared);
        self.phys.counts.pgcow.add(1);
    }

    /// A store to a page of a mapping through a shared area.
    fn store_to_shared(
        &self,
        cpu: &Cpu,
        space: &Locked<'_>,
        (vma, area): (&Vma, FileArea),
        (va, found): (u64, &Found),
    ) -> Result<Step, FaultError> {
        if found.entry.has(Entry::WRITABLE) {
            self.flush_one(space.table, va, Order::ZERO);
            return Ok(Step::Done(FaultOutcome::AlreadyMapped));
        }
        let outcome = self.share_for_writing(cpu, (vma, area), found);
        let outcome = outcome.ok_or(FaultError::NoArea { va })?;
        if outcome == FaultOutcome::Reused {
            self.phys.counts.pgreuse.add(1);
        }
        Ok(Step::Done(outcome))
    }

    fn replace_zero_page(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        (slot, va): (Slot, u64),
        vma: &Vma,
    ) -> Result<Step, FaultError> {
        let page = self.phys.alloc_pages(cpu, Gfp::USER, Order::ZERO);
        let page = page.map_err(|error| FaultError::OutOfMemory(error.gfp))?;
        let va = va / PAGE_SIZE * PAGE_SIZE;
        self.map_new(cpu, space, (slot, va), vma, page);
        self.flush_one(space.table, va, Order::ZERO);
        Ok(Step::Done(FaultOutcome::Copied))
    }

    /// Takes a page that one entry maps out of the swap cache, unless other entries name its slot: whether it did.
    fn take_from_swap(&self, cpu: &Cpu, pfn: Pfn, page: &Page) -> Result<bool, PageWait> {
        if page.flags().has(PageFlags::WRITEBACK) {
            return Err(PageWait::writeback(pfn));
        }
        if !page.try_lock() {
            return Err(PageWait::lock(pfn));
        }
        let slot = SlotNr::new(page.private());
        let is_last = slot.is_some_and(|slot| self.swap.users(slot) == 1);
        if is_last && !page.flags().has(PageFlags::WRITEBACK) {
            self.leave_swap(cpu, pfn, page);
        }
        self.unlock_page(pfn, page);
        Ok(is_last)
    }

    /// Counts an anonymous page that a program has just got, and puts it among those in use.
    pub(crate) fn adopt(&self, pfn: Pfn, order: Order) {
        self.count_new(order);
        self.phys.lru_add(pfn, LruList::Active);
    }

    /// Counts an anonymous page that did not exist before.
    pub(crate) fn count_new(&self, order: Order) {
        self.phys.counts.nr_anon_pages.add(u64::from(order.nr_pages()));
        if order == Order::PAGEBLOCK {
            self.phys.counts.nr_anon_transparent_hugepages.add(1);
        }
    }
}
