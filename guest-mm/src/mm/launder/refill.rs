//! The second phase: more inactive pages (Linux 2.4, `refill_inactive`, `refill_inactive_scan`, `shm_swap`).

use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu};
use crate::lru::LruList;
use crate::mm::launder::{age_down, age_up};
use crate::mm::{Mm, Shrunk};
use crate::page::PageFlags;
use crate::zone::Zone;

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Makes about `nr` pages of a zone inactive: caches before programs.
    pub(crate) fn refill_inactive(&self, cpu: &Cpu, zone: &Zone, nr: u32, shrunk: &mut Shrunk) {
        let mut made = 0;
        // Nobody is aged twice in one call, however small the zone is.
        let mut left = u32::try_from(zone.lru_len(LruList::Active)).unwrap_or(u32::MAX);
        // Each round looks at twice as many pages as the one before (2.4: the priority goes from 6 to 0).
        for round in 0..=6 {
            let look = (nr << round).min(left);
            left -= look;
            made += self.refill_inactive_scan(cpu, zone, look, shrunk);
            if made < nr {
                made += self.swap_out(cpu, look);
            }
            if made < nr {
                made += self.shm_swap(cpu, zone, nr - made);
            }
            if made >= nr || left == 0 {
                return;
            }
        }
    }

    /// Ages `nr` pages of the active list, and takes away those of age 0 that nobody maps; how many those were.
    fn refill_inactive_scan(&self, cpu: &Cpu, zone: &Zone, nr: u32, shrunk: &mut Shrunk) -> u32 {
        let mut pages = Vec::new();
        self.phys.lru_isolate(zone, LruList::Active, nr, &mut pages);
        shrunk.scanned += u32::try_from(pages.len()).unwrap_or(u32::MAX);
        let mut made = 0;
        for pfn in pages {
            let page = self.mapped_page(pfn);
            // What programs have mapped is aged by `swap_out`.
            let list = if self.take_referenced(page) {
                age_up(page);
                LruList::Active
            } else if page.mapcount() == 0 && age_down(page) == 0 {
                made += 1;
                LruList::Inactive
            } else {
                LruList::Active
            };
            self.put_back(cpu, pfn, list);
        }
        made
    }

    /// Makes pages of shared memory inactive that nobody maps, whatever their age.
    fn shm_swap(&self, cpu: &Cpu, zone: &Zone, nr: u32) -> u32 {
        let mut pages = Vec::new();
        self.phys.lru_isolate(zone, LruList::Active, nr, &mut pages);
        let mut made = 0;
        for pfn in pages {
            let page = self.mapped_page(pfn);
            let is_unmapped = page.mapcount() == 0 && page.flags().has(PageFlags::FILE);
            let list = if is_unmapped && self.is_shmem(page) {
                page.set_age(0);
                made += 1;
                LruList::Inactive
            } else {
                LruList::Active
            };
            self.put_back(cpu, pfn, list);
        }
        self.phys.counts.shm_swap.add(made.into());
        made
    }
}
