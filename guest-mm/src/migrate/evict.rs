//! Swap-out migration: pages of an isolated block leave memory instead of moving within it.
//!
//! Takahashi's memory hotplug (2003, "swapout") sends the pages of an area through ordinary reclaim, with three differences: only
//! that area is looked at, accessed bits do not save a page, and the thresholds are others: however much memory is free, it ends with the area's last page, not
//! at a watermark. What is clean is dropped, what is dirty is written, and free
//! when it has arrived. What cannot leave (locked in memory, pinned, the
//! kernel's own, no swap area for it) is left to *remap* ([`Mm::begin_migration`]). Together ([`Method::Combined`]) they
//! take each page where it is cheapest: who will not be missed leaves, who is in use moves.

use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::blocks::{InUse, IsolatedBlock};
use crate::frames::{FlushBatch, Frames, Mmu};
use crate::lru::LruList;
use crate::mm::reclaim::{Fate, Shrunk};
use crate::mm::rmap::Walk;
use crate::mm::{Mm, age_down};
use crate::page::{Page, PageFlags};
use crate::pfn::{Order, Pfn};

/// How the pages of a block get off it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Method {
    /// What was not used lately leaves memory, the rest moves.
    #[default]
    Combined,
    /// Whatever can leaves memory, used or not; the rest moves.
    Swapout,
    /// Everything moves, for as long as there is room.
    Remap,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Combined, Self::Swapout, Self::Remap];

    /// Its word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Combined => "combined",
            Self::Swapout => "swapout",
            Self::Remap => "remap",
        }
    }

    /// The one with that word.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    /// Which pages leave memory first in a look at a block.
    pub const fn eviction(self) -> Option<Eviction> {
        match self {
            Self::Combined => Some(Eviction::Cold),
            Self::Swapout => Some(Eviction::All),
            Self::Remap => None,
        }
    }
}

/// Which pages leave memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Eviction {
    /// All that can.
    All,
    /// Those that were not used since they were last looked at, and are old: a page that is active, or has an age left (`page_launder`), was used
    /// more than once and is looked at again before it counts as cold. (A use that hardware has cached is not seen until the translation is forgotten;
    /// entering an address space forgets all.)
    Cold,
}

/// What a batch of evictions did, in chunks: a huge page is one, and counts as kept when it comes up and is split.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EvictReport {
    /// Frames that are free now.
    pub freed: u32,
    /// Pages on their way to a disk, free when they have arrived.
    pub written: u32,
    /// Chunks that are as before.
    pub kept: u32,
    /// Whether every page of the block was looked at in this pass.
    pub is_pass_done: bool,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Looks at up to `budget_pages` chunks of an isolated block, none of them twice in a pass, and has those leave memory that
    /// `which` says. One flush in all.
    pub fn evict_batch(
        &self,
        cpu: &Cpu,
        block: &mut IsolatedBlock,
        which: Eviction,
        budget_pages: u32,
    ) -> EvictReport {
        let (mut walk, mut flush) = (Walk::default(), FlushBatch::new());
        let (mut unmapped, mut report) = (Vec::new(), EvictReport::default());
        for _ in 0..budget_pages.max(1) {
            let Some(page) = self.phys.next_in_use(block) else {
                report.is_pass_done = true;
                break;
            };
            let (pfn, order) = (page.pfn, page.order);
            let Some(list) = self.isolate_to_evict(cpu, page, which, &mut walk) else {
                report.kept += 1;
                continue;
            };
            match self.unmap_for_swap(cpu, pfn, &mut walk, &mut flush) {
                Fate::Unmapped => unmapped.push(pfn),
                Fate::Gone => self.phys.put_page(cpu, pfn),
                Fate::Later if order != Order::ZERO => {
                    // It is in pieces now, which are on their lists.
                    self.put_back(cpu, pfn, list);
                    block.cursor -= order.nr_pages();
                    report.kept += 1;
                }
                Fate::Keep | Fate::Later => {
                    self.put_back(cpu, pfn, list);
                    report.kept += 1;
                }
            }
        }
        let mut shrunk = Shrunk::default();
        self.finish_evictions(cpu, &flush, unmapped, &mut shrunk);
        let counts = &self.phys.counts;
        counts.pgsteal.add(shrunk.freed.into());
        counts.block_pages_dropped.add(shrunk.freed.into());
        counts.block_pages_written.add(shrunk.written.into());
        report.freed = shrunk.freed;
        report.written = shrunk.written;
        report
    }

    /// Takes a page that is to leave off its list, and makes nothing of its having been used. The reference goes with it;
    /// `None` leaves everything as it was.
    fn isolate_to_evict(&self, cpu: &Cpu, page: InUse, which: Eviction, walk: &mut Walk) -> Option<LruList> {
        let (pfn, can_leave) = (page.pfn, page.is_held && page.pinned_by.is_none());
        let list = match can_leave && self.is_wanted(cpu, pfn, which, walk) {
            true => self.phys.lru_remove(pfn),
            false => None,
        };
        if list.is_none() {
            self.phys.release(cpu, page);
        }
        list
    }

    fn is_wanted(&self, cpu: &Cpu, pfn: Pfn, which: Eviction, walk: &mut Walk) -> bool {
        let Some(page) = self.phys.page(pfn) else {
            return false;
        };
        let flags = page.flags();
        if flags.has(PageFlags::MLOCKED) || flags.has(PageFlags::WRITEBACK) {
            return false;
        }
        match which {
            Eviction::Cold => {
                let was_used = self.take_referenced(page) | self.was_used(cpu, pfn, page, walk);
                !was_used && self.is_old(pfn, page)
            }
            Eviction::All => {
                self.take_referenced(page);
                self.was_used(cpu, pfn, page, walk);
                true
            }
        }
    }
    /// Whether a page that was not used lately was not before, either. It is a look older then: what is active is not any more.
    fn is_old(&self, pfn: Pfn, page: &Page) -> bool {
        if age_down(page) > 0 {
            return false;
        }
        if !page.flags().has(PageFlags::ACTIVE) {
            return true;
        }
        if let Some(list) = self.phys.lru_remove(pfn) {
            let list = if list.is_active() { LruList::Inactive } else { list };
            self.phys.lru_add(pfn, list);
        }
        false
    }
}
