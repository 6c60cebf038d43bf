//! Shared memory: mappings whose pages go to the swap area and come back (Linux `mm/shmem.c`).
//!
//! An index has either a page or the slot of one. A page that goes becomes one of the swap cache, as an anonymous page that
//! nobody maps would, and the tree becomes a user of its slot; from there on the swap cache deals with it. One that comes
//! back leaves the swap cache again, and its slot.

use alloc::sync::Arc;

use guest_sync::Cpu;

use super::{Content, FileError, LockedPage, Mapping, PageLookup};
use crate::frames::{Frames, Mmu};
use crate::gfp::Gfp;
use crate::mm::swap::ReadIn;
use crate::mm::{Mm, PageWait};
use crate::page::{Page, PageFlags};
use crate::pfn::{Order, Pfn};
use crate::swap::SlotNr;

impl<'m, F: Frames, M: Mmu> Mm<'m, F, M> {
    /// Brings back the page at an index whose content was found to be a slot. `None` if it is not any more.
    ///
    /// # Errors
    /// When there is no memory, or the page cannot be read.
    pub(crate) fn shmem_in<'a>(
        &'a self,
        cpu: &'a Cpu,
        mapping: &Arc<Mapping>,
        index: u32,
        slot: SlotNr,
    ) -> Result<Option<PageLookup<'a, 'm, F, M>>, FileError> {
        let Some(pfn) = self.swap.find(slot, |pfn| self.mapped_page(pfn)) else {
            if self.swap.is_lost(slot) {
                return Err(FileError::Io);
            }
            let frame = self.phys.alloc_pages(cpu, Gfp::USER, Order::ZERO);
            let frame = frame.map_err(|_| FileError::OutOfMemory)?;
            // While the tree is locked, the slot cannot become another's.
            let state = mapping.lock();
            if state.tree.get(index) != Some(Content::Slot(slot)) || self.swap.is_cached(slot) {
                drop(state);
                self.phys.put_page(cpu, frame);
                return Ok(None);
            }
            self.read_in(cpu, slot, frame, ReadIn::Wanted)
                .ok_or(FileError::OutOfMemory)?;
            return Ok(Some(PageLookup::Wait(PageWait::lock(frame))));
        };
        let page = self.mapped_page(pfn);
        if !page.try_lock() {
            self.phys.put_page(cpu, pfn);
            return Ok(Some(PageLookup::Wait(PageWait::lock(pfn))));
        }
        let outcome = self.take_back(cpu, mapping, (index, slot), (pfn, page));
        if let Ok(TakenBack::Yes) = outcome {
            let page = LockedPage::new(self, cpu, mapping.clone(), pfn);
            return Ok(Some(PageLookup::Locked(page)));
        }
        self.unlock_page(pfn, page);
        self.phys.put_page(cpu, pfn);
        outcome.map(|taken| match taken {
            TakenBack::NotYet(wait) => Some(PageLookup::Wait(wait)),
            TakenBack::Yes | TakenBack::NotIts => None,
        })
    }

    /// Makes a locked page of the swap cache that of the mapping whose tree is a user of its slot.
    fn take_back(
        &self,
        cpu: &Cpu,
        mapping: &Mapping,
        (index, slot): (u32, SlotNr),
        (pfn, page): (Pfn, &Page),
    ) -> Result<TakenBack, FileError> {
        let flags = page.flags();
        if !flags.has(PageFlags::SWAPCACHE) || page.private() != slot.number() {
            return Ok(TakenBack::NotIts);
        }
        if flags.has(PageFlags::WRITEBACK) {
            return Ok(TakenBack::NotYet(PageWait::writeback(pfn)));
        }
        let mut state = mapping.lock();
        if state.tree.get(index) != Some(Content::Slot(slot)) {
            return Ok(TakenBack::NotIts);
        }
        if !flags.has(PageFlags::UPTODATE) {
            // Its reader is told; the next one reads again.
            self.leave_swap(cpu, pfn, page);
            return Err(FileError::Io);
        }
        self.leave_swap(cpu, pfn, page);
        self.phys.counts.nr_anon_pages.sub(1);
        page.remove_flags(PageFlags::ANON);
        page.set_mapping(mapping.id.number());
        page.set_index(index);
        page.add_flags(PageFlags::FILE.with(PageFlags::UPTODATE));
        let held = page.try_reference();
        debug_assert!(held);
        state.tree.replace(index, Content::Page(pfn));
        drop(state);
        self.count_page(mapping, 1);
        self.drop_swap_entry(cpu, slot);
        Ok(TakenBack::Yes)
    }

    /// Makes a locked page of shared memory that nobody maps one of the swap cache, if there is a slot, and only the tree and the caller
    /// have its `known` references. Whether it did.
    pub(crate) fn shmem_out(
        &self,
        cpu: &Cpu,
        mapping: &Mapping,
        (pfn, page): (Pfn, &Page),
        known: u32,
    ) -> bool {
        let mut state = mapping.lock();
        let index = page.index();
        let is_its = state.tree.get(index) == Some(Content::Page(pfn));
        if !is_its || page.mapcount() > 0 || page.count() != known {
            return false;
        }
        if !self.add_to_swap(pfn, page) {
            return false;
        }
        let slot = SlotNr::new(page.private());
        let Some(slot) = slot.filter(|slot| self.swap.add_user(*slot)) else {
            self.leave_swap(cpu, pfn, page);
            page.add_flags(PageFlags::UPTODATE);
            return false;
        };
        state.tree.replace(index, Content::Slot(slot));
        page.set_mapping(0);
        page.set_index(0);
        page.remove_flags(PageFlags::FILE);
        page.add_flags(PageFlags::ANON);
        drop(state);
        self.phys.counts.nr_anon_pages.add(1);
        self.count_page(mapping, -1);
        // The tree's.
        self.phys.put_page(cpu, pfn);
        true
    }
}

/// What came of a page of the swap cache that a mapping wants.
enum TakenBack {
    Yes,
    /// It is on its way to the disk.
    NotYet(PageWait),
    /// It is not that slot's page any more, or the mapping does not want it any more.
    NotIts,
}
