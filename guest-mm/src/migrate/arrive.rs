//! The end of a move: the copy takes the place of the original, or the original stays where it was.

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu};
use crate::migrate::batch::{Home, Move};
use crate::mm::Mm;
use crate::mm::rmap::Unmapped;
use crate::page::{Page, PageFlags};
use crate::swap::SlotNr;

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Steps 5 and 6: the copy takes the place of the original, which is freed. `private` is what the file system has on it.
    pub(super) fn arrive(&self, cpu: &Cpu, moving: &Move, entries: &[Unmapped], private: Option<u32>) {
        let (from, to) = (
            self.migrating_page(moving.page.pfn),
            self.migrating_page(moving.to),
        );
        let list = self.phys.lru_remove(moving.page.pfn);
        // Who finds the new page in the swap cache waits until all is done.
        let locked = to.try_lock();
        debug_assert!(locked);
        for _ in 1..moving.nr_references() {
            // The first one's reference came with the frame.
            to.try_reference();
        }
        if moving.home.is_mapping() {
            to.set_mapcount(from.mapcount());
            self.arrive_in_mapping((moving.page.pfn, from), (moving.to, to), private);
        } else {
            to.add_flags(PageFlags::ANON);
            self.arrive_anonymous(moving, from, to);
        }
        for entry in entries {
            self.map_again(cpu, entry, entry.entry.with_pfn(moving.to));
        }
        if let Some(list) = list {
            self.phys.lru_add(moving.to, list);
        }
        from.clear();
        for _ in 0..moving.nr_references() {
            from.drop_reference();
        }
        self.unlock_page(moving.to, to);
        self.phys.put_page(cpu, moving.page.pfn);
        self.wake_waiters(moving.page.pfn);
    }

    fn arrive_anonymous(&self, moving: &Move, from: &Page, to: &Page) {
        if let Some(place) = from.anon_place() {
            self.set_anon(moving.to, place);
        }
        (1..moving.nr_entries).for_each(|_| to.add_mapping());
        for flag in [PageFlags::REFERENCED, PageFlags::MLOCKED, PageFlags::HUGETLB] {
            if from.flags().has(flag) {
                to.add_flags(flag);
            }
        }
        to.set_age(from.age());
        self.arrive_in_cache(moving, from, to);
    }

    /// The new page takes the old one's place in the swap cache.
    fn arrive_in_cache(&self, moving: &Move, from: &Page, to: &Page) {
        let Some(slot) = SlotNr::new(from.private()).filter(|_| moving.home == Home::SwapCache) else {
            return;
        };
        to.set_private(slot.number());
        to.add_flags(PageFlags::SWAPCACHE);
        for flag in [PageFlags::DIRTY, PageFlags::UPTODATE, PageFlags::ERROR] {
            if from.flags().has(flag) {
                to.add_flags(flag);
            }
        }
        self.swap.replace(slot, moving.to);
    }

    /// The page stays where it is, and is mapped again.
    pub(super) fn stay(&self, cpu: &Cpu, moving: Move, entries: &[Unmapped]) {
        for entry in entries {
            self.map_again(cpu, entry, entry.entry);
        }
        self.unlock_page(moving.page.pfn, self.migrating_page(moving.page.pfn));
        self.phys.put_page(cpu, moving.to);
        self.phys.release(cpu, moving.page);
    }
}
