//! Shrinking: the cheapest blocks are isolated together (so that what moves off one does not land on the next), then
//! emptied one after the other while programs run in between, taken offline, out of the direct map, and unplugged.

use super::difficult::{BUSY_NS, Waited};
use super::{Descriptors, Interruption, OfflineBlock, Worker};
use crate::log::log;
use crate::machine::activity;
use crate::machine::cpu::this_cpu;
use crate::machine::high_memory::AllFrames;
use alloc::vec::Vec;
use core::num::NonZeroU32;
use guest_kernel::sync::yield_now;
use guest_mm::blocks::NotEmpty;
use guest_mm::migrate::{BatchEnd, BusyPages, MigrateReport, Refusal, RefusalReason};
use guest_mm::{IsolatedBlock, PAGE_SIZE, Pfn};
use guest_sync::Cpu;
use guest_virtio::mem::{BlockIndex as DeviceBlock, BlockRun, RequestError, runs};
use guest_virtio::plan::{StuckReason, UnplugFailure};

/// Emptied blocks are unplugged together once they have so many bytes, or the first of them has waited so long: the host sees no other sign that
/// the guest is at work.
const UNPLUG_AT: u64 = 64 << 20;
const UNPLUG_AFTER_NS: u64 = 500_000_000;
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
pub(super) struct Leaving {
    /// Isolated, with pages in use: the cheapest comes last.
    pub(super) used: Vec<IsolatedBlock>,
    /// Ready to be unplugged.
    pub(super) offline: Vec<OfflineBlock>,
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
        let mut unplugged_at = self.kernel.clock.now();
        let mut looked_at: usize = 0;
        loop {
            if looked_at == 0 {
                looked_at = match self.look_together(&mut leaving.used).await {
                    Ok(count) => count,
                    Err(why) => return self.give_up_all(leaving, why),
                };
            }
            let Some(block) = leaving.used.pop() else { break };
            looked_at = looked_at.saturating_sub(1);
            match self.empty(block).await {
                Emptied::Yes(offline) => leaving.offline.push(offline),
                Emptied::No(block, reason) => {
                    self.kept(&block, reason);
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
            // What an operator wants need not wait for the last block.
            if let Err(why) = self.obey().await {
                return self.give_up_all(leaving, why);
            }
            if self.is_due(&leaving.offline, unplugged_at) {
                if let Err(why) = self.unplug(&mut leaving.offline).await {
                    return self.give_up_all(leaving, why);
                }
                unplugged_at = self.kernel.clock.now();
            }
        }
        self.unplug(&mut leaving.offline).await
    }

    /// Whether emptied blocks are to be unplugged before the next one is emptied. With a rate that may take its time.
    fn is_due(&self, offline: &[OfflineBlock], unplugged_at: u64) -> bool {
        let bytes = offline.len() as u64 * self.device.region().block_size();
        let waited = self.kernel.clock.now() - unplugged_at;
        bytes >= UNPLUG_AT || waited >= UNPLUG_AFTER_NS || self.kernel.orders.rate() > 0
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

    /// Has pages leave memory, so that those of a block find frames. False if there are none that can, or the disk that they leave for stands still.
    async fn make_room(&self) -> bool {
        let here = this_cpu as fn() -> &'static Cpu;
        let reclaim = self.kernel.reclaim.reclaim_pages(here, RECLAIM_PAGES);
        let until = self.kernel.clock.now() + BUSY_NS;
        match self.wait_no_longer(until, reclaim).await {
            Waited::Done(reclaimed) => reclaimed.has_progress,
            Waited::TooLong => false,
            // What is wanted instead is seen before the next page.
            Waited::Unwanted => true,
        }
    }

    /// Takes an empty block offline.
    pub(super) fn offline(&self, block: IsolatedBlock) -> Result<OfflineBlock, NotEmpty> {
        let (phys, index) = (self.kernel.phys, block.block());
        let usage = phys.block_usage(index);
        phys.offline(block)?;
        Ok(OfflineBlock {
            block: index,
            descriptors: Descriptors::There,
            zone: usage.map(|usage| usage.zone),
        })
    }

    /// Has everything leave an isolated block and takes it offline. One that was looked at with others needs that for the rest only.
    pub(super) async fn empty(&mut self, mut block: IsolatedBlock) -> Emptied {
        if block.passes() > 0 {
            return self.move_off(block).await;
        }
        match self.evict(core::slice::from_mut(&mut block)).await {
            Ok(()) => self.move_off(block).await,
            Err(why) => Emptied::Interrupted(block, why),
        }
    }

    /// Moves everything off an isolated block and takes it offline.
    pub(super) async fn move_off(&mut self, mut block: IsolatedBlock) -> Emptied {
        let mut looks = Looks::default();
        self.refusal = None;
        if block.passes() == 0 {
            self.forget_drivers();
        } else {
            match self.end_pass(block, &mut looks).await {
                Pass::Another(left) => block = left,
                Pass::Last(emptied) => return emptied,
            }
        }
        loop {
            // Programs have gone on since the block was chosen, and may have taken what was to spare then.
            let used_pages = self.kernel.phys.used_pages(&block);
            if self.spare_bytes() < u64::from(used_pages) * PAGE_SIZE {
                return Emptied::No(block, StuckReason::NoMemory);
            }
            let moved_before = block.moved_pages();
            let turn_end = self.move_for_a_turn(&mut block, &mut looks.reason);
            self.keep_rate(block.moved_pages() - moved_before).await;
            match turn_end {
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
        let mut batch = kernel.mm().begin_migration(cpu, block, self.share(BATCH_PAGES));
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

fn refusal_reason(refusal: &Refusal) -> StuckReason {
    match refusal.reason {
        RefusalReason::Pinned { .. } | RefusalReason::UnderIo { .. } | RefusalReason::Unmovable(_) => {
            StuckReason::Pinned
        }
        RefusalReason::Busy(_) => StuckReason::Busy,
    }
}
