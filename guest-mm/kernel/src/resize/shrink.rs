//! Shrinking: the cheapest blocks are isolated together (so that what moves off one does not land on the next), then
//! emptied one after the other while programs run in between, taken offline, out of the direct map, and unplugged.

use super::{Interruption, OfflineBlock, Worker};
use crate::log::log;
use alloc::vec::Vec;
use core::num::NonZeroU32;
use guest_kernel::sync::yield_now;
use guest_mm::blocks::IsolateError;
use guest_mm::migrate::{BatchEnd, Refusal, RefusalReason};
use guest_mm::{BlockIndex, BlockState, IsolatedBlock};
use guest_virtio::mem::{BlockIndex as DeviceBlock, BlockRun, RequestError, runs};
use guest_virtio::plan::{BlockState as Planned, StuckReason, UnplugFailure};

/// Most blocks that are out of use at a time because they are about to go.
const MOST_ISOLATED: usize = 256;
/// Emptied blocks are unplugged together once they have so many bytes.
const UNPLUG_AT: u64 = 64 << 20;
/// Small pages that are moved at a time; programs wait meanwhile. A huge page may be 512 of them.
const BATCH_PAGES: u32 = 128;
/// How often the pages of a block are looked at before the rest counts as stuck.
const PASSES: u32 = 2;

/// What came of emptying a block.
enum Emptied {
    Yes(OfflineBlock),
    No(IsolatedBlock, StuckReason),
    Interrupted(IsolatedBlock, Interruption),
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
        self.unplug(&mut leaving.offline).await?;
        while let Some(block) = leaving.used.pop() {
            match self.empty(block).await {
                Emptied::Yes(offline) => leaving.offline.push(offline),
                Emptied::No(block, reason) => {
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
                    leaving
                        .used
                        .drain(..)
                        .for_each(|block| self.put_back(block, None));
                    leaving
                        .offline
                        .drain(..)
                        .for_each(|offline| self.bring_online(offline));
                    self.kernel.memory_came.raise();
                    return Err(why);
                }
            }
            let offline_bytes = leaving.offline.len() as u64 * self.device.region().block_size();
            if offline_bytes >= UNPLUG_AT {
                self.unplug(&mut leaving.offline).await?;
            }
        }
        self.unplug(&mut leaving.offline).await
    }

    /// Withdraws the cheapest `count` blocks from use. Those that nobody uses are offline at once.
    fn choose(&mut self, count: usize) -> Leaving {
        let mut leaving = Leaving {
            used: Vec::new(),
            offline: Vec::new(),
        };
        let candidates: Vec<BlockIndex> = self
            .planner
            .candidates()
            .map(|block| BlockIndex(block.raw()))
            .collect();
        let kernel = self.kernel;
        let phys = &mut kernel.mm.borrow_mut().phys;
        let unused = candidates
            .iter()
            .filter(|&&block| phys.hotplug_region().state(block) == Some(BlockState::Offline));
        leaving
            .offline
            .extend(unused.take(count).map(|&block| OfflineBlock {
                block,
                descriptors: None,
            }));
        let mut left = count.min(MOST_ISOLATED).saturating_sub(leaving.offline.len());
        for cost in phys.rank_blocks() {
            let is_candidate = self.planner.state(DeviceBlock::new(cost.block.0)) == Some(Planned::Plugged);
            if left == 0 || !is_candidate {
                continue;
            }
            match phys.isolate(cost.block) {
                Ok(block) => {
                    left -= 1;
                    leaving.used.push(block);
                }
                Err(error) => self
                    .planner
                    .stuck(DeviceBlock::new(cost.block.0), isolate_reason(error)),
            }
        }
        if leaving.used.is_empty() && leaving.offline.is_empty() {
            // Ranking leaves out blocks with pinned pages.
            for block in candidates {
                self.planner.stuck(DeviceBlock::new(block.0), StuckReason::Pinned);
            }
        }
        let (empty, mut used): (Vec<_>, Vec<_>) = leaving
            .used
            .into_iter()
            .partition(|block| phys.used_pages(block) == 0);
        used.reverse();
        leaving.used = Vec::new();
        for block in empty {
            let index = block.block();
            match phys.offline(block) {
                Ok(descriptors) => {
                    leaving.offline.push(OfflineBlock {
                        block: index,
                        descriptors: Some(descriptors),
                    });
                }
                Err(not_empty) => used.push(not_empty.block),
            }
        }
        leaving.used = used;
        leaving
    }

    /// Moves everything off an isolated block and takes it offline.
    async fn empty(&mut self, mut block: IsolatedBlock) -> Emptied {
        let mut reason = StuckReason::Busy;
        let mut passes = 0;
        loop {
            let turn_end = self.kernel.clock.now() + self.kernel.tick_ns;
            while self.kernel.clock.now() < turn_end {
                let report = self.kernel.mm.borrow_mut().migrate_batch(&mut block, BATCH_PAGES);
                reason = report.refused.last().map_or(reason, refusal_reason);
                match report.end {
                    BatchEnd::Budget => {}
                    BatchEnd::NoMemory => return Emptied::No(block, StuckReason::NoMemory),
                    BatchEnd::PassDone => {
                        let index = block.block();
                        let offline = self.kernel.mm.borrow_mut().phys.offline(block);
                        match offline {
                            Ok(descriptors) => {
                                let descriptors = Some(descriptors);
                                return Emptied::Yes(OfflineBlock {
                                    block: index,
                                    descriptors,
                                });
                            }
                            Err(not_empty) => block = not_empty.block,
                        }
                        passes += 1;
                        if passes == PASSES {
                            return Emptied::No(block, reason);
                        }
                        block.rewind();
                    }
                }
            }
            self.kernel.migrated.raise();
            yield_now().await;
            if let Err(why) = self.interrupted().await {
                return Emptied::Interrupted(block, why);
            }
        }
    }

    /// Puts a block back in use, with what is left on it.
    fn put_back(&mut self, block: IsolatedBlock, stuck: Option<StuckReason>) {
        if let Some(reason) = stuck {
            self.planner.stuck(DeviceBlock::new(block.block().0), reason);
        }
        self.kernel.mm.borrow_mut().phys.undo(block);
        self.kernel.migrated.raise();
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

    async fn unplug_run(&mut self, run: BlockRun, blocks: Vec<OfflineBlock>) -> Result<(), Interruption> {
        let addresses = blocks
            .first()
            .map_or(0, |first| self.addresses(first.block).start)
            ..blocks.last().map_or(0, |last| self.addresses(last.block).end);
        self.kernel.direct_map.borrow_mut().unmap_huge(addresses);
        let failure = match self.device.unplug(run).await {
            Ok(()) => {
                self.planner.unplugged(run);
                for OfflineBlock { block, .. } in blocks {
                    if let Err(error) = self.kernel.mm.borrow_mut().phys.unplugged(block) {
                        panic!("memory manager and resize planner disagree: {error}");
                    }
                }
                return Ok(());
            }
            Err(error @ (RequestError::Device(_) | RequestError::Interrupted)) => {
                self.planner.lost_track(run);
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
        RefusalReason::Pinned { .. } | RefusalReason::Unmovable => StuckReason::Pinned,
        RefusalReason::Busy => StuckReason::Busy,
    }
}
