//! Which blocks go, and how many can: the cheapest ones, together, as long as programs have memory left.

use super::blame::{Blame, Cause};
use super::shrink::Leaving;
use super::{Descriptors, OfflineBlock, Worker};
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use guest_kernel::physical::to_usize;
use guest_mm::blocks::IsolateError;
use guest_mm::migrate::RefusalReason;
use guest_mm::{BlockIndex, BlockState, LruList, PAGE_SIZE};
use guest_virtio::mem::BlockIndex as DeviceBlock;
use guest_virtio::plan::{BlockState as Planned, StuckReason};

/// Most blocks that are out of use at a time because they are about to go, where memory has to be reclaimed for them.
const MOST_ISOLATED: usize = 256;
/// Memory that must remain available to programs, so that one in the middle of something can finish it and give
/// back what it holds: a 16th of the guest's, within these bounds.
const LEAST_AVAILABLE: RangeInclusive<u64> = 4 << 20..=32 << 20;

impl Worker {
    /// Withdraws the cheapest `count` blocks from use, or as many as programs can do without. Those that nobody
    /// uses are offline at once. Blocks that cannot be chosen are stuck: this never comes to nothing twice.
    pub(super) fn choose(&mut self, count: usize) -> Leaving {
        let mut leaving = self.never_used(count);
        let wanted = count
            .min(self.most_isolated())
            .saturating_sub(leaving.offline.len());
        let affordable = self.affordable_blocks();
        self.isolate(wanted.min(affordable), &mut leaving);
        if leaving.used.is_empty() && leaving.offline.is_empty() {
            let candidates: Vec<DeviceBlock> = self.planner.candidates().collect();
            let held = candidates
                .iter()
                .find_map(|block| self.held_on(BlockIndex(block.raw())));
            // Ranking leaves out blocks with pages that are pinned for long. Where those and the kernel's are all that is left, more memory does not help.
            let is_held = held.is_some() && self.kernel.phys.rank_blocks().is_empty();
            let reason = if affordable == 0 && !is_held {
                StuckReason::NoMemory
            } else {
                StuckReason::Pinned
            };
            self.none_chosen(held, reason);
            candidates
                .into_iter()
                .for_each(|block| self.planner.stuck(block, reason));
        }
        leaving
    }

    /// The page of a block that somebody holds, if one is.
    fn held_on(&self, block: BlockIndex) -> Option<Blame> {
        let (pfn, holder) = self.kernel.phys.pin_on(block)?;
        let order = self.kernel.phys.page(pfn)?.order();
        let reason = RefusalReason::Pinned { holder };
        let cause = Cause::Page(self.kernel.mm().refusal((pfn, order), reason));
        let block = Some(block);
        Some(Blame { block, cause })
    }

    /// Plugged blocks that are in no use: there was no memory to manage them with, or somebody has taken them offline.
    fn never_used(&self, count: usize) -> Leaving {
        let phys = self.kernel.phys;
        let state = |block| phys.hotplug_region().state(block);
        let blocks = self.planner.candidates().map(|block| BlockIndex(block.raw()));
        let offline = blocks
            .filter(|&block| state(block) == Some(BlockState::Offline))
            .take(count);
        let offline = offline
            .map(|block| OfflineBlock {
                block,
                descriptors: Descriptors::Missing,
                zone: None,
            })
            .collect();
        Leaving {
            used: Vec::new(),
            offline,
        }
    }

    /// How many blocks can go before too little memory is left. What is free on them is lost to programs, and what
    /// is in use on them takes as much elsewhere: a block costs its whole size.
    fn affordable_blocks(&self) -> usize {
        to_usize(self.spare_bytes() / self.device.region().block_size())
    }

    /// How many blocks may be out of use at a time: as many as free memory can replace, for what moves off one is not to land on another that goes
    /// after it, and move again.
    fn most_isolated(&self) -> usize {
        let free = self.bytes_beyond_least(0);
        MOST_ISOLATED.max(to_usize(free / self.device.region().block_size()))
    }

    /// Memory that programs can do without: what is free, and what can be reclaimed.
    pub(super) fn spare_bytes(&self) -> u64 {
        self.bytes_beyond_least(self.reclaimable_pages())
    }

    /// What is free, and so many pages more, beyond what must remain.
    fn bytes_beyond_least(&self, more_pages: u64) -> u64 {
        let stats = self.kernel.phys.memory_stats();
        let free = stats.available_pages - stats.available_file_pages;
        ((free + more_pages) * PAGE_SIZE).saturating_sub(self.least_bytes())
    }

    /// What must remain.
    pub(super) fn least_bytes(&self) -> u64 {
        let (least, most) = LEAST_AVAILABLE.into_inner();
        let total = self.kernel.phys.memory_stats().total_pages * PAGE_SIZE;
        (total / 16).clamp(least, most)
    }

    /// Pages that reclaim can take: those of files, which are dropped or written, and those of programs and of shared memory for which
    /// there is room in swap areas. Without those that are locked.
    pub(super) fn reclaimable_pages(&self) -> u64 {
        let stats = self.kernel.phys.stats();
        let free_slots = u64::from(self.kernel.mm().swap_usage().free);
        let zones = self.kernel.phys.populated_zones();
        let locked: u64 = zones.map(|zone| zone.lru_len(LruList::Unevictable)).sum();
        let of_files = stats.nr_file_pages.saturating_sub(stats.nr_shmem);
        let swappable = (stats.nr_anon_pages + stats.nr_shmem).min(free_slots);
        (of_files + swappable).saturating_sub(locked)
    }

    fn isolate(&mut self, count: usize, leaving: &mut Leaving) {
        let phys = self.kernel.phys;
        let mut left = count;
        // What the kernel has on its own blocks may be in the way: they come last.
        for cost in phys.rank_blocks().into_iter().chain(phys.rank_kernel_blocks()) {
            let number = DeviceBlock::new(cost.block.0);
            if left == 0 || self.planner.state(number) != Some(Planned::Plugged) {
                continue;
            }
            match phys.isolate(cost.block) {
                Ok(block) if phys.used_pages(&block) > 0 => leaving.used.push(block),
                Ok(block) => match self.offline(block) {
                    Ok(offline) => leaving.offline.push(offline),
                    Err(not_empty) => leaving.used.push(not_empty.block),
                },
                Err(error) => {
                    let held = self.held_on(cost.block);
                    held.into_iter().for_each(|held| self.is_to_blame(held));
                    self.planner.stuck(number, isolate_reason(error));
                    continue;
                }
            }
            left -= 1;
        }
        leaving.used.reverse();
    }
}

fn isolate_reason(error: IsolateError) -> StuckReason {
    match error {
        IsolateError::Pinned { .. } => StuckReason::Pinned,
        IsolateError::NotOnline { .. } | IsolateError::UnknownBlock(_) => StuckReason::Busy,
    }
}
