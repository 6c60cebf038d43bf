//! Growing: descriptors and tables first, so that a block that is plugged can also be used; then PLUG, the direct
//! map, and online in the movable zone, from which it can be given back.

use super::{Descriptors, Interruption, OfflineBlock, Worker};
use crate::kernel::KernelFrames;
use crate::log::log;
use crate::machine::activity::forget_manager_translations;
use crate::machine::direct_map::Access;
use crate::machine::frames::DirectFrames;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::num::NonZeroU16;
use guest_kernel::control_tree::OnlinePolicy;
use guest_kernel::physical::to_usize;
use guest_mm::{BlockIndex, ZoneKind};
use guest_virtio::mem::{BlockRun, RequestError};
use guest_virtio::plan::PlugFailure;

/// Most memory that is plugged by one request: programs have it sooner, and a change of plans is noticed.
const LARGEST_REQUEST: u64 = 512 << 20;

impl Worker {
    /// Plugs `run`, or as much of its beginning as there is memory to manage it with.
    pub(super) async fn grow(&mut self, run: BlockRun) -> Result<(), Interruption> {
        let prepared = self.prepare(run);
        let count = u16::try_from(prepared.len()).ok().and_then(NonZeroU16::new);
        let Some(run) = count.and_then(|count| BlockRun::new(run.first(), count)) else {
            self.planner.plug_failed(run, PlugFailure::NoMemory);
            return Ok(());
        };
        let failure = match self.device.plug(run).await {
            Ok(()) => {
                self.planner.plugged(run);
                for offline in prepared {
                    self.note(offline.block, PlugStep::Done);
                    match self.kernel.orders.policy() {
                        OnlinePolicy::Offline => self.unback(alloc::vec![offline]),
                        OnlinePolicy::Movable => self.bring_online_in(offline, ZoneKind::Movable),
                        OnlinePolicy::Kernel => self.bring_online_in(offline, ZoneKind::Normal),
                    }
                }
                self.kernel.memory_came.raise();
                return Ok(());
            }
            Err(error @ (RequestError::Device(_) | RequestError::Interrupted)) => {
                self.planner.lost_track(run);
                self.unback(prepared);
                return Err(Interruption::Device(error));
            }
            Err(RequestError::Busy) => PlugFailure::Busy,
            Err(RequestError::Nack) => PlugFailure::Nack,
            Err(RequestError::Error | RequestError::OutsideRegion) => PlugFailure::Error,
        };
        for offline in &prepared {
            self.note(offline.block, PlugStep::Cancelled);
        }
        self.unback(prepared);
        self.planner.plug_failed(run, failure);
        Ok(())
    }

    /// What it takes to use the first blocks of `run`, as far as memory allows.
    fn prepare(&self, run: BlockRun) -> Vec<OfflineBlock> {
        let largest = to_usize((LARGEST_REQUEST / self.device.region().block_size()).max(1));
        let mut prepared = Vec::new();
        for block in run.blocks().take(largest).map(|block| BlockIndex(block.raw())) {
            let addresses = self.addresses(block);
            let frames = KernelFrames(self.kernel.phys);
            if self.kernel.direct_map.prepare(addresses, &frames).is_err() {
                break;
            }
            let descriptors = self.back(block);
            if descriptors == Descriptors::Missing {
                break;
            }
            self.note(block, PlugStep::Begun);
            prepared.push(OfflineBlock { block, descriptors });
        }
        // Whatever is cached of what was there before: zeroes.
        forget_manager_translations();
        prepared
    }

    /// Gives a block's descriptors memory. Before they are used all CPUs must forget what was there before.
    fn back(&self, block: BlockIndex) -> Descriptors {
        let (vmemmap, frames) = (&self.kernel.vmemmap, KernelFrames(self.kernel.phys));
        let Some(range) = self.kernel.phys.hotplug_region().block_range(block) else {
            return Descriptors::Missing;
        };
        match vmemmap.back(&DirectFrames, &frames, range) {
            Ok(_) => Descriptors::There,
            Err(unbacked) => {
                forget_manager_translations();
                unbacked.release(&DirectFrames, &frames);
                Descriptors::Missing
            }
        }
    }

    /// Takes the memory of the blocks' descriptors back, as far as they have any. The blocks are offline.
    pub(super) fn unback(&self, blocks: Vec<OfflineBlock>) {
        let (vmemmap, frames) = (&self.kernel.vmemmap, KernelFrames(self.kernel.phys));
        let region = self.kernel.phys.hotplug_region();
        let with_memory = blocks
            .into_iter()
            .filter(|offline| offline.descriptors == Descriptors::There);
        let unbacked: Vec<_> = with_memory
            .filter_map(|offline| region.block_range(offline.block))
            .map(|range| vmemmap.unback(&DirectFrames, range))
            .collect();
        if !unbacked.is_empty() {
            forget_manager_translations();
        }
        for unbacked in unbacked {
            unbacked.release(&DirectFrames, &frames);
        }
    }

    /// Puts a plugged block back to use, from which it can be taken again.
    pub(super) fn bring_online(&self, offline: OfflineBlock) {
        self.bring_online_in(offline, ZoneKind::Movable);
    }

    /// Puts a plugged block to use in a zone. Without descriptors, or tables, it stays offline.
    pub(super) fn bring_online_in(&self, offline: OfflineBlock, kind: ZoneKind) {
        let OfflineBlock { block, descriptors } = offline;
        if descriptors == Descriptors::Missing {
            if self.back(block) == Descriptors::Missing {
                log!(Warning, "block {}: no memory for its descriptors", block.0);
                return;
            }
            forget_manager_translations();
        }
        let phys = self.kernel.phys;
        let mapped = self
            .kernel
            .direct_map
            .map(self.addresses(block), Access::Write, &KernelFrames(phys));
        let failed = match mapped {
            Ok(()) => phys.online(block, kind).err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = failed {
            log!(Error, "block {}: {error}", block.0);
            let descriptors = Descriptors::There;
            self.unback(alloc::vec![OfflineBlock { block, descriptors }]);
        }
    }

    fn note(&self, block: BlockIndex, step: PlugStep) {
        let phys = self.kernel.phys;
        let result = match step {
            PlugStep::Begun => phys.begin_plug(block),
            PlugStep::Done => phys.plugged(block),
            PlugStep::Cancelled => phys.cancel_plug(block),
        };
        if let Err(error) = result {
            // The planner and the memory manager are told the same things by this worker alone.
            panic!("memory manager and resize planner disagree: {error}");
        }
    }
}

/// How far plugging a block has come.
#[derive(Clone, Copy)]
enum PlugStep {
    Begun,
    Done,
    Cancelled,
}
