//! Shrinking: the cheapest blocks are isolated together (so that what moves off one does not land on the next), then
//! emptied one after the other while programs run in between, taken offline, out of the direct map, and unplugged.

use super::blame::Blame;
use super::difficult::BUSY_NS;
use super::{Descriptors, Interruption, OfflineBlock, Worker};
use crate::log::log;
use crate::machine::activity;
use crate::machine::cpu::this_cpu;
use crate::machine::high_memory::AllFrames;
use alloc::vec::Vec;
use core::num::NonZeroU32;
use core::ops::RangeInclusive;
use guest_kernel::physical::to_usize;
use guest_kernel::sync::yield_now;
use guest_mm::blocks::{IsolateError, NotEmpty};
use guest_mm::migrate::{BatchEnd, BusyPages, MigrateReport, Refusal, RefusalReason};
use guest_mm::{BlockIndex, BlockState, IsolatedBlock, LruList, PAGE_SIZE, Pfn};
use guest_sync::Cpu;
use guest_virtio::mem::{BlockIndex as DeviceBlock, BlockRun, RequestError, runs};
use guest_virtio::plan::{BlockState as Planned, StuckReason, UnplugFailure};

/// Most blocks that are out of use at a time because they are about to go, where memory has to be reclaimed for them.
const MOST_ISOLATED: usize = 256;
/// Memory that must remain available to programs, so that one in the middle of something can finish it and give
/// back what it holds: a 16th of the guest's, within these bounds.
const LEAST_AVAILABLE: RangeInclusive<u64> = 4 << 20..=32 << 20;
/// Emptied blocks are unplugged together once they have so many bytes.
const UNPLUG_AT: u64 = 64 << 20;
/// Small pages that are moved at a time, with one flush: as many as a huge page has, as in Linux (`NR_MAX_BATCHED_MIGRATION`). Programs that touch
/// one of them wait meanwhile; those that do not are called out of what they do for each flush.
const BATCH_PAGES: u32 = 512;
/// How often the pages of a block are looked at before the rest counts as stuck. In the second pass those that somebody is using are waited
/// for.
const PASSES: u32 = 2;
/// The same while what is left is only busy, for longer than it is waited for. Programs run in between.
const BUSY_PASSES: u32 = 16;

/// Pages that are reclaimed at a time when there is nowhere for a block's pages to go.
const RECLAIM_PAGES: u64 = 256;
/// How often that is done, one time after the other, before a block counts as stuck: programs want the same frames.
const MOST_STARVED: u32 = 64;

/// What came of emptying a block.
pub(super) enum Emptied {
    Yes(OfflineBlock),
    No(IsolatedBlock, StuckReason),
    Interrupted(IsolatedBlock, Interruption),
}

/// What was learnt of a block while it was looked at.
struct Looks {
    /// Why it could not go offline, should this be the last look: what this look has come to.
    reason: StuckReason,
    /// Looks that are over, without those after which a driver gave its memory.
    passes: u32,
    /// Until when busy pages are waited for.
    busy_until: u64,
    /// How often, one time after the other, there was no frame for the next page.
    starved: u32,
}

impl Default for Looks {
    fn default() -> Self {
        Self {
            reason: StuckReason::Busy,
            passes: 0,
            busy_until: 0,
            starved: 0,
        }
    }
}

/// Why moving pauses.
enum TurnEnd {
    /// Others want to run.
    Time,
    NoMemory {
        has_moved: bool,
    },
    NoHugePage,
    Busy(Pfn),
    PassDone,
}

/// What comes after a pass.
enum Pass {
    Another(IsolatedBlock),
    Last(Emptied),
}

/// Blocks on their way out.
struct Leaving {
    /// Isolated, with pages in use: the cheapest comes last.
    used: Vec<IsolatedBlock>,
    /// Ready to be unplugged.
    offline: Vec<OfflineBlock>,
}

impl Worker {
    /// Gives up to `count` blocks back.
    pub(super) async fn shrink(&mut self, count: NonZeroU32) -> Result<(), Interruption> {
        let mut leaving = self.choose(count.get() as usize);
        if let Err(why) = self.unplug(&mut leaving.offline).await {
            return self.give_up_all(leaving, why);
        }
        if let Err(why) = self.look_at_use(&mut leaving.used).await {
            return self.give_up_all(leaving, why);
        }
        while let Some(block) = leaving.used.pop() {
            match self.empty(block).await {
                Emptied::Yes(offline) => leaving.offline.push(offline),
                Emptied::No(block, reason) => {
                    let refusal = self.refusal.take();
                    let block_of = |refusal| Blame {
                        block: block.block(),
                        refusal,
                    };
                    self.blame = refusal.map(block_of).or(self.blame);
                    self.put_back(block, Some(reason));
                    if reason == StuckReason::NoMemory {
                        // Nor is there room for what is on the dearer ones.
                        leaving
                            .used
                            .drain(..)
                            .for_each(|block| self.put_back(block, Some(reason)));
                    }
                }
                Emptied::Interrupted(block, why) => {
                    self.put_back(block, None);
                    return self.give_up_all(leaving, why);
                }
            }
            let offline_bytes = leaving.offline.len() as u64 * self.device.region().block_size();
            if offline_bytes >= UNPLUG_AT
                && let Err(why) = self.unplug(&mut leaving.offline).await
            {
                return self.give_up_all(leaving, why);
            }
        }
        self.unplug(&mut leaving.offline).await
    }

    /// Puts everything back in use that is not unplugged yet.
    fn give_up_all(&mut self, leaving: Leaving, why: Interruption) -> Result<(), Interruption> {
        leaving
            .used
            .into_iter()
            .for_each(|block| self.put_back(block, None));
        leaving
            .offline
            .into_iter()
            .for_each(|offline| self.bring_online(offline));
        self.kernel.memory_came.raise();
        Err(why)
    }

    /// Withdraws the cheapest `count` blocks from use, or as many as programs can do without. Those that nobody
    /// uses are offline at once. Blocks that cannot be chosen are stuck: this never comes to nothing twice.
    fn choose(&mut self, count: usize) -> Leaving {
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
            self.blame = held.or(self.blame);
            candidates
                .into_iter()
                .for_each(|block| self.planner.stuck(block, reason));
        }
        leaving
    }

    /// The page of a block that somebody holds, if one is.
    fn held_on(&self, block: BlockIndex) -> Option<Blame> {
        let (pfn, holder) = self.kernel.phys.pin_on(block)?;
        let refusal = Refusal {
            pfn,
            order: self.kernel.phys.page(pfn)?.order(),
            reason: RefusalReason::Pinned { holder },
        };
        Some(Blame { block, refusal })
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
        let (least, most) = LEAST_AVAILABLE.into_inner();
        let keep = (stats.total_pages * PAGE_SIZE / 16).clamp(least, most);
        let free = stats.available_pages - stats.available_file_pages;
        ((free + more_pages) * PAGE_SIZE).saturating_sub(keep)
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

    /// Has pages leave memory, so that those of a block find frames. False if there are none that can.
    async fn make_room(&self) -> bool {
        let here = this_cpu as fn() -> &'static Cpu;
        let reclaimed = self.kernel.reclaim.reclaim_pages(here, RECLAIM_PAGES).await;
        reclaimed.has_progress
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
                    self.planner.stuck(number, isolate_reason(error));
                    continue;
                }
            }
            left -= 1;
        }
        leaving.used.reverse();
    }

    /// Takes an empty block offline.
    fn offline(&self, block: IsolatedBlock) -> Result<OfflineBlock, NotEmpty> {
        let (phys, index) = (self.kernel.phys, block.block());
        let usage = phys.block_usage(index);
        phys.offline(block)?;
        Ok(OfflineBlock {
            block: index,
            descriptors: Descriptors::There,
            zone: usage.map(|usage| usage.zone),
        })
    }

    /// Has everything leave an isolated block and takes it offline.
    pub(super) async fn empty(&mut self, mut block: IsolatedBlock) -> Emptied {
        match self.evict(&mut block).await {
            Ok(()) => self.move_off(block).await,
            Err(why) => Emptied::Interrupted(block, why),
        }
    }

    /// Moves everything off an isolated block and takes it offline.
    pub(super) async fn move_off(&mut self, mut block: IsolatedBlock) -> Emptied {
        let started = self.kernel.clock.now();
        let mut looks = Looks::default();
        self.refusal = None;
        self.forget_drivers();
        loop {
            // Programs have gone on since the block was chosen, and may have taken what was to spare then.
            let used_pages = self.kernel.phys.used_pages(&block);
            if self.spare_bytes() < u64::from(used_pages) * PAGE_SIZE {
                return Emptied::No(block, StuckReason::NoMemory);
            }
            match self.move_for_a_turn(&mut block, &mut looks.reason) {
                TurnEnd::Time => {}
                TurnEnd::NoMemory { has_moved } => {
                    looks.starved = if has_moved { 0 } else { looks.starved + 1 };
                    if looks.starved > MOST_STARVED || !self.make_room().await {
                        return Emptied::No(block, StuckReason::NoMemory);
                    }
                }
                TurnEnd::NoHugePage => self.make_huge_page(&mut block).await,
                TurnEnd::Busy(pfn) => self.await_page(&mut block, pfn, looks.busy_until).await,
                TurnEnd::PassDone => match self.end_pass(block, &mut looks).await {
                    Pass::Another(left) => block = left,
                    Pass::Last(emptied) => return emptied,
                },
            }
            yield_now().await;
            self.keep_rate(block.moved_pages(), started).await;
            if let Err(why) = self.interrupted().await {
                return Emptied::Interrupted(block, why);
            }
        }
    }

    /// Moves pages until the other tasks of this CPU have waited long enough, or something is in the way.
    fn move_for_a_turn(&mut self, block: &mut IsolatedBlock, reason: &mut StuckReason) -> TurnEnd {
        let turn_end = self.kernel.clock.now() + self.kernel.tick_ns;
        loop {
            let report = self.migrate_batch(block);
            for refusal in &report.refused {
                // One that is pinned keeps the block, whatever becomes of those that are only busy.
                if *reason == StuckReason::Busy || refusal_reason(refusal) != StuckReason::Busy {
                    (*reason, self.refusal) = (refusal_reason(refusal), Some(*refusal));
                }
            }
            match report.end {
                BatchEnd::Budget if self.kernel.orders.rate() > 0 => return TurnEnd::Time,
                BatchEnd::Budget if self.kernel.clock.now() >= turn_end => return TurnEnd::Time,
                BatchEnd::Budget => {}
                BatchEnd::NoMemory => {
                    let has_moved = report.moved_pages() > 0;
                    return TurnEnd::NoMemory { has_moved };
                }
                BatchEnd::NoHugePage => return TurnEnd::NoHugePage,
                BatchEnd::Busy(pfn) => return TurnEnd::Busy(pfn),
                BatchEnd::PassDone => return TurnEnd::PassDone,
            }
        }
    }

    /// All pages of the block were looked at: it goes offline, or is looked at once more, or is stuck.
    async fn end_pass(&mut self, block: IsolatedBlock, looks: &mut Looks) -> Pass {
        let mut block = match self.offline(block) {
            Ok(offline) => return Pass::Last(Emptied::Yes(offline)),
            Err(not_empty) => not_empty.block,
        };
        if self.move_drivers(&mut block).await {
            looks.reason = StuckReason::Busy;
            block.rewind();
            return Pass::Another(block);
        }
        looks.passes += 1;
        let reason = core::mem::replace(&mut looks.reason, StuckReason::Busy);
        let most = match reason {
            StuckReason::Busy => BUSY_PASSES,
            _ => PASSES,
        };
        if looks.passes >= most {
            return Pass::Last(Emptied::No(block, reason));
        }
        if looks.passes == 1 {
            looks.busy_until = self.kernel.clock.now() + BUSY_NS;
        }
        block.rewind_with(BusyPages::Await);
        Pass::Another(block)
    }

    /// Moves the next pages. While they are copied programs on other CPUs run on; one that touches such a page waits.
    fn migrate_batch(&mut self, block: &mut IsolatedBlock) -> MigrateReport {
        let (kernel, cpu) = (self.kernel, this_cpu());
        let mut batch = kernel.mm().begin_migration(cpu, block, BATCH_PAGES);
        batch.copy(&AllFrames(kernel.high));
        let mut report = kernel.mm().finish_migration(cpu, block, batch);
        self.move_kernel_pages(block, &mut report);
        activity::answer();
        report
    }

    /// Puts a block back in use, with what is left on it.
    pub(super) fn put_back(&mut self, block: IsolatedBlock, stuck: Option<StuckReason>) {
        if let Some(reason) = stuck {
            self.planner.stuck(DeviceBlock::new(block.block().0), reason);
        }
        self.kernel.phys.undo(block);
    }

    /// Gives offline blocks to the device, neighbours together. What it does not take goes back in use.
    async fn unplug(&mut self, offline: &mut Vec<OfflineBlock>) -> Result<(), Interruption> {
        offline.sort_unstable_by_key(|offline| offline.block);
        let mut offline = core::mem::take(offline).into_iter();
        let blocks: Vec<DeviceBlock> = offline
            .as_slice()
            .iter()
            .map(|offline| DeviceBlock::new(offline.block.0))
            .collect();
        let mut device_fault = Ok(());
        for run in runs(blocks) {
            let blocks: Vec<OfflineBlock> = offline.by_ref().take(usize::from(run.count().get())).collect();
            if device_fault.is_ok() {
                device_fault = self.unplug_run(run, blocks).await;
            } else {
                blocks.into_iter().for_each(|offline| self.bring_online(offline));
            }
        }
        device_fault
    }

    async fn unplug_run(&mut self, run: BlockRun, mut blocks: Vec<OfflineBlock>) -> Result<(), Interruption> {
        self.strip(&mut blocks);
        let addresses = blocks
            .first()
            .map_or(0, |first| self.addresses(first.block).start)
            ..blocks.last().map_or(0, |last| self.addresses(last.block).end);
        self.kernel.direct_map.unmap_huge(addresses);
        for OfflineBlock { block, .. } in &blocks {
            assert!(
                !self.has_own_descriptors(*block),
                "block {} is about to go with its descriptors on it",
                block.0
            );
        }
        let failure = match self.device.unplug(run).await {
            Ok(()) => {
                self.planner.unplugged(run);
                for OfflineBlock { block, .. } in &blocks {
                    if let Err(error) = self.kernel.phys.unplugged(*block) {
                        panic!("memory manager and resize planner disagree: {error}");
                    }
                }
                self.unback(blocks);
                return Ok(());
            }
            Err(error @ (RequestError::Device(_) | RequestError::Interrupted)) => {
                self.planner.lost_track(run);
                self.unback(blocks);
                return Err(Interruption::Device(error));
            }
            Err(RequestError::Busy) => UnplugFailure::Busy,
            Err(RequestError::Nack) => UnplugFailure::Nack,
            Err(RequestError::Error | RequestError::OutsideRegion) => UnplugFailure::Error,
        };
        log!(
            Warning,
            "the device did not take {} blocks from {}: {failure:?}",
            run.count(),
            run.first().raw()
        );
        blocks.into_iter().for_each(|offline| self.bring_online(offline));
        self.planner.unplug_failed(run, failure);
        self.kernel.memory_came.raise();
        Ok(())
    }
}

fn isolate_reason(error: IsolateError) -> StuckReason {
    match error {
        IsolateError::Pinned { .. } => StuckReason::Pinned,
        IsolateError::NotOnline { .. } | IsolateError::UnknownBlock(_) => StuckReason::Busy,
    }
}

fn refusal_reason(refusal: &Refusal) -> StuckReason {
    match refusal.reason {
        RefusalReason::Pinned { .. } | RefusalReason::UnderIo { .. } | RefusalReason::Unmovable(_) => {
            StuckReason::Pinned
        }
        RefusalReason::Busy => StuckReason::Busy,
    }
}
