//! A frame that has failed: what was in it is gone, and whoever had it mapped is named.

use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::blocks::InUse;
use crate::frames::{FlushBatch, Frames, Mmu, SpaceId};
use crate::memory_failure::soft::refused;
use crate::memory_failure::{Contents, MemoryFailureError};
use crate::migrate::RefusalReason;
use crate::mm::Mm;
use crate::mm::huge::{SplitError, ToSplit};
use crate::mm::mapping::LockedPage;
use crate::mm::rmap::Walk;
use crate::mm::zap::{flush_of, order_of};
use crate::page::{Page, PageFlags};
use crate::pagetable::Entry;
use crate::pfn::{Order, Pfn};
use crate::phys::WithoutFrame;
use crate::swap::SlotNr;

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Takes a frame out of use whose contents are gone (Linux `memory_failure`). Adds to `losers` the address spaces that have lost
    /// something by that: their entries are poisoned, and their programs are to end.
    ///
    /// # Errors
    /// See [`MemoryFailureError`]. Of [`Busy`](MemoryFailureError::Busy), part may be done already, `losers` among it; another try goes
    /// on from there.
    pub fn memory_failure(
        &self,
        cpu: &Cpu,
        pfn: Pfn,
        losers: &mut Vec<SpaceId>,
    ) -> Result<Contents, MemoryFailureError> {
        let tag = self.phys.check_suspect(pfn)?;
        if self.phys.retire_free(tag, pfn) {
            return Ok(Contents::Nothing);
        }
        let source = self.phys.withdraw_around(tag, pfn)?;
        let mut contents = Contents::Nothing;
        // A huge page comes up a second time, in pieces.
        while let Some((head, order)) = source.chunk_of(pfn) {
            let held = self.phys.hold(head, order);
            if let Some(lost) = self.take_contents(cpu, pfn, held, losers)? {
                contents = lost;
                break;
            }
        }
        match self.phys.retire_free(tag, pfn) {
            true => Ok(contents),
            false => Err(MemoryFailureError::Busy(pfn)),
        }
    }

    /// Takes the page that a frame is in away from everybody. `None` when it has become another one, which is to be looked at.
    fn take_contents(
        &self,
        cpu: &Cpu,
        pfn: Pfn,
        held: InUse,
        losers: &mut Vec<SpaceId>,
    ) -> Result<Option<Contents>, MemoryFailureError> {
        let is_hugetlb = self.mapped_page(held.pfn).flags().has(PageFlags::HUGETLB);
        if is_hugetlb && !held.is_held {
            return match self.replace_in_pool(cpu, held.pfn) {
                true => Ok(Some(Contents::Nothing)),
                false => Err(MemoryFailureError::NoMemory(pfn)),
            };
        }
        if held.order != Order::ZERO && held.is_held && !is_hugetlb {
            return self
                .split_page(cpu, ToSplit::from_held(held))
                .map_or_else(|error| Err(not_split(pfn, error)), |()| Ok(None));
        }
        let page = match self.lock_movable(&held) {
            Ok(page) => page,
            Err(reason) => {
                self.phys.release(cpu, held);
                return Err(refused(pfn, reason));
            }
        };
        if page.flags().has(PageFlags::FILE) {
            return Ok(Some(self.take_file_page(cpu, held.pfn, losers)));
        }
        let contents = self.take_anonymous(cpu, (held.pfn, page), losers);
        self.unlock_page(held.pfn, page);
        self.phys.release(cpu, held);
        match is_hugetlb && self.replace_in_pool(cpu, held_head(pfn)) {
            true => Ok(Some(contents)),
            false if is_hugetlb => Err(MemoryFailureError::NoMemory(pfn)),
            false => Ok(Some(contents)),
        }
    }

    fn replace_in_pool(&self, cpu: &Cpu, pfn: Pfn) -> bool {
        let replaced = self.phys.replace_free_huge(cpu, pfn, WithoutFrame::Shrink);
        replaced.is_gone()
    }

    /// Takes a page of programs' away from them. The caller has its lock and a reference.
    fn take_anonymous(&self, cpu: &Cpu, (pfn, page): (Pfn, &Page), losers: &mut Vec<SpaceId>) -> Contents {
        let flags = page.flags();
        let slot = SlotNr::new(page.private()).filter(|_| flags.has(PageFlags::SWAPCACHE));
        let is_on_disk = flags.has(PageFlags::UPTODATE) && !flags.has(PageFlags::DIRTY);
        let saved = slot.filter(|_| is_on_disk);
        self.forget_mlock(pfn, page);
        self.unmap_everywhere(cpu, (pfn, page), |mm, locked, entry| {
            let nr_pages = u64::from(order_of(entry).nr_pages());
            locked.rss_pages -= nr_pages;
            match saved.filter(|slot| mm.swap.add_user(*slot)) {
                Some(slot) => {
                    locked.swap_pages += 1;
                    Entry::swap(slot)
                }
                None => {
                    losers.push(locked.id());
                    Entry::poisoned(order_of(entry))
                }
            }
        });
        if let Some(slot) = slot {
            if saved.is_none() && self.swap.users(slot) > 1 {
                self.swap.lose(slot);
            }
            self.leave_swap(cpu, pfn, page);
        }
        match saved {
            Some(_) => Contents::OnDisk,
            None => Contents::Lost,
        }
    }

    /// Takes a page of a mapping away from it and from those who map it. The caller's lock and reference go with it.
    fn take_file_page(&self, cpu: &Cpu, pfn: Pfn, losers: &mut Vec<SpaceId>) -> Contents {
        let page = self.mapped_page(pfn);
        let mapping = self.mappings.of_page(page);
        let mapping =
            mapping.expect("a mapping with pages is not removed, and the page lock keeps this one in it");
        let locked = LockedPage::new(self, cpu, mapping, pfn);
        if locked.mapping.kind.is_file() && !locked.is_dirty() {
            self.drop_page(cpu, &locked);
            return Contents::OnDisk;
        }
        self.forget_mlock(pfn, page);
        self.unmap_everywhere(cpu, (pfn, page), |mm, space, _| {
            space.file_pages -= 1;
            mm.phys.counts.nr_mapped.sub(1);
            losers.push(space.id());
            Entry::poisoned(Order::ZERO)
        });
        if let (Some(ops), Some(private)) = (locked.mapping.kind.ops(), locked.private_page()) {
            ops.invalidatepage(private);
        }
        locked.lose();
        Contents::Lost
    }

    /// Puts what `left` says in the place of every entry of a page, whose lock and a reference the caller has, and flushes.
    fn unmap_everywhere(
        &self,
        cpu: &Cpu,
        (pfn, page): (Pfn, &Page),
        mut left: impl FnMut(&Self, &mut crate::mm::Locked<'_>, Entry) -> Entry,
    ) {
        let mut walk = Walk::default();
        // A fork that is under way may add an entry that a walk does not meet.
        while page.mapcount() > 0 {
            let mut flush = FlushBatch::new();
            self.for_each_entry(pfn, page, &mut walk, |_, locked, (slot, va, entry)| {
                let left = left(self, locked, entry);
                self.tables(cpu).set(slot, left);
                flush.add(flush_of(locked.table, va, order_of(entry)));
                page.drop_mapping();
                // The caller has another one.
                page.drop_reference();
            });
            if !flush.is_empty() {
                self.mmu.flush(&flush);
            }
        }
    }
}

const fn not_split(pfn: Pfn, error: SplitError) -> MemoryFailureError {
    match error {
        SplitError::NoMemory => MemoryFailureError::NoMemory(pfn),
        SplitError::Pinned(by) => refused(pfn, RefusalReason::of_pin(by)),
        SplitError::Busy(_) => MemoryFailureError::Busy(pfn),
    }
}

/// The head of the reserved huge page that a frame is in.
const fn held_head(pfn: Pfn) -> Pfn {
    pfn.align_down(Order::PAGEBLOCK)
}
