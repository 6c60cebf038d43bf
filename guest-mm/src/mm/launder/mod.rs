#![doc = include_str!("README.md")]

mod page_launder;
mod refill;
mod swap_out;

use guest_sync::Cpu;
use guest_sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::frames::{Frames, Mmu};
use crate::lru::LruList;
use crate::mm::{Mm, Shrunk};
use crate::page::{MAX_AGE, Page};
use crate::zone::Zone;

/// By how much an age goes up (Linux `PAGE_AGE_ADV`).
const AGE_ADVANCE: u8 = 3;
/// Pages of files that `wakeup_bdflush` begins to write.
const FLUSHED_PAGES: u32 = 32;

/// Where `swap_out` goes on.
#[derive(Debug, Default)]
pub(crate) struct SwapOut {
    /// The number of the address space that was looked at last.
    space: AtomicU32,
    /// The page in it.
    page: AtomicU32,
}

impl SwapOut {
    fn place(&self) -> (u32, u32) {
        (self.space.load(Relaxed), self.page.load(Relaxed))
    }

    fn set(&self, space: u32, page: u32) {
        self.space.store(space, Relaxed);
        self.page.store(page, Relaxed);
    }
}

/// The page was used.
pub(crate) fn age_up(page: &Page) {
    page.set_age(page.age().saturating_add(AGE_ADVANCE).min(MAX_AGE));
}

/// It was not; the age that is left.
pub(crate) fn age_down(page: &Page) -> u8 {
    let age = page.age() / 2;
    page.set_age(age);
    age
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Frees up to `nr` pages of a zone, or begins to write them: a turn of `do_try_to_free_pages`. As [`Mm::shrink_zone`], in the order of 2.4.
    pub fn launder_zone(&self, cpu: &Cpu, zone: &Zone, nr: u32) -> Shrunk {
        let mut shrunk = Shrunk::default();
        let clean = |zone: &Zone| zone.lru_len(LruList::Clean);
        // First phase: what is inactive already.
        if clean(zone) < u64::from(nr) {
            self.page_launder(cpu, zone, nr, &mut shrunk);
        }
        // Second phase: more that is inactive.
        let inactive = clean(zone) + zone.lru_len(LruList::Inactive);
        if clean(zone) < u64::from(nr) || inactive < zone.lru_len(LruList::Active) / 2 {
            self.refill_inactive(cpu, zone, nr, &mut shrunk);
        }
        self.reclaim_clean(cpu, zone, nr, &mut shrunk);
        self.phys.counts.pgscan.add(shrunk.scanned.into());
        self.phys.counts.pgsteal.add(shrunk.freed.into());
        shrunk
    }
}
