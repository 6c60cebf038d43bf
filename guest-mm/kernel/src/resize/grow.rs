//! Growing: descriptors and tables first, so that a block that is plugged can also be used; then PLUG, the direct
//! map, and online in the movable zone, from which it can be given back. Descriptors that are to be on the block itself
//! (`memmap_on_memory=on`) come when it is there; only the tables that lead to them come first.

use super::{Descriptors, Interruption, OfflineBlock, Worker};
use crate::kernel::KernelFrames;
use crate::log::log;
use crate::machine::activity::forget_manager_translations;
use crate::machine::direct_map::Access;
use crate::machine::frames::DirectFrames;
use crate::nodes;
use alloc::vec::Vec;
use core::num::NonZeroU16;
use guest_kernel::control_tree::OnlinePolicy;
use guest_kernel::physical::to_usize;
use guest_mm::{BlockIndex, Gfp, Memmap, PAGE_SIZE, PfnRange, ZoneKind};
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
                for offline in &prepared {
                    self.note(offline.block, PlugStep::Done);
                }
                match self.kernel.orders.policy() {
                    OnlinePolicy::Offline => self.unback(prepared),
                    OnlinePolicy::Movable => self.bring_all_online(prepared, ZoneKind::Movable),
                    OnlinePolicy::Kernel => self.bring_all_online(prepared, ZoneKind::Normal),
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
            let Some(descriptors) = self.prepare_descriptors(block, prepared.len()) else {
                break;
            };
            self.note(block, PlugStep::Begun);
            prepared.push(OfflineBlock {
                block,
                descriptors,
                zone: None,
            });
        }
        // Whatever is cached of what was there before: zeroes.
        forget_manager_translations();
        prepared
    }

    /// Gives a block's descriptors memory, or makes sure that none but the block's own is needed for them. `None` if there is too little;
    /// `before` blocks are prepared already.
    fn prepare_descriptors(&self, block: BlockIndex, before: usize) -> Option<Descriptors> {
        let phys = self.kernel.phys;
        let range = phys.hotplug_region().block_range(block)?;
        match self.memmap_for(range) {
            Memmap::BootMemory => self.back(range).then_some(Descriptors::There),
            Memmap::OnBlock => {
                // Nothing else is left that could fail, so this must not: a heap that has come to its end is the guest's.
                let records = phys.hotplug_region().bookkeeping_bytes() * (before as u64 + 1);
                let spare = phys.spare_pages(Gfp::KERNEL) * PAGE_SIZE;
                let frames = KernelFrames(phys);
                let is_ready =
                    spare >= records && self.kernel.vmemmap.prepare(&DirectFrames, &frames, range).is_ok();
                is_ready.then_some(Descriptors::Missing)
            }
        }
    }

    /// Where the descriptors of a block are to be. They are never on a frame that has failed.
    fn memmap_for(&self, range: PfnRange) -> Memmap {
        let wanted = self.kernel.orders.memmap();
        let own = wanted.frames_of(range);
        let failed = self.kernel.phys.poisoned_frames();
        match failed.into_iter().any(|pfn| own.contains(pfn)) {
            true => Memmap::BootMemory,
            false => wanted,
        }
    }

    /// Gives a block's descriptors memory of the kernel's; false if there is none. Before they are used all CPUs must forget what was there before.
    fn back(&self, range: PfnRange) -> bool {
        let (vmemmap, frames) = (&self.kernel.vmemmap, KernelFrames(self.kernel.phys));
        match vmemmap.back(&DirectFrames, &frames, range) {
            Ok(_) => true,
            Err(unbacked) => {
                forget_manager_translations();
                unbacked.release(&DirectFrames, &frames);
                false
            }
        }
    }

    /// Whether the descriptors of a block are on the block itself.
    pub(super) fn has_own_descriptors(&self, block: BlockIndex) -> bool {
        let range = self.kernel.phys.hotplug_region().block_range(block);
        range.is_some_and(|range| self.kernel.vmemmap.is_on_block(&DirectFrames, range))
    }

    /// Has blocks that are about to be unplugged lose the descriptors that are on themselves. From then on the array shows zeroes there.
    pub(super) fn strip(&self, blocks: &mut [OfflineBlock]) {
        let mut stripped = Vec::new();
        let own = |offline: &&mut OfflineBlock| self.has_own_descriptors(offline.block);
        for offline in blocks.iter_mut().filter(own) {
            stripped.push(*offline);
            offline.descriptors = Descriptors::Missing;
        }
        self.unback(stripped);
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

    /// Puts a plugged block back to use where it was, if it was in use.
    pub(super) fn bring_online(&self, offline: OfflineBlock) {
        if let Some(zone) = offline.zone {
            self.bring_all_online(alloc::vec![offline], zone);
        }
    }

    /// Puts plugged blocks to use in a zone. One without descriptors, or tables, stays offline.
    pub(super) fn bring_all_online(&self, blocks: Vec<OfflineBlock>, kind: ZoneKind) {
        let has_news = blocks
            .iter()
            .any(|offline| offline.descriptors == Descriptors::Missing);
        let described = blocks.into_iter().filter_map(|offline| self.describe(offline));
        let described: Vec<(BlockIndex, Memmap)> = described.collect();
        if has_news {
            // Whatever is cached of what was there before: zeroes.
            forget_manager_translations();
        }
        for (block, memmap) in described {
            if let Err(error) = self.kernel.phys.online_with(block, kind, memmap) {
                log!(Error, "block {}: {error}", block.0);
                self.unback(alloc::vec![OfflineBlock {
                    block,
                    descriptors: Descriptors::There,
                    zone: None,
                }]);
            }
        }
        nodes::settle(self.kernel);
    }

    /// Maps a plugged block and makes sure that it has descriptors, which all CPUs must hear of. Returns where they are.
    fn describe(&self, offline: OfflineBlock) -> Option<(BlockIndex, Memmap)> {
        let (vmemmap, frames) = (&self.kernel.vmemmap, KernelFrames(self.kernel.phys));
        let OfflineBlock {
            block, descriptors, ..
        } = offline;
        let range = self.kernel.phys.hotplug_region().block_range(block)?;
        let addresses = self.addresses(block);
        let mapped = self
            .kernel
            .direct_map
            .map(addresses.clone(), Access::Write, &frames);
        if let Err(error) = mapped {
            log!(Error, "block {}: {error}", block.0);
            self.unback(alloc::vec![offline]);
            return None;
        }
        let memmap = match descriptors {
            Descriptors::There if vmemmap.is_on_block(&DirectFrames, range) => Memmap::OnBlock,
            Descriptors::There => Memmap::BootMemory,
            Descriptors::Missing => self.memmap_for(range),
        };
        let has_memory = match (descriptors, memmap) {
            (Descriptors::There, _) => true,
            (Descriptors::Missing, Memmap::BootMemory) => self.back(range),
            (Descriptors::Missing, Memmap::OnBlock) => {
                let prepared = vmemmap.prepare(&DirectFrames, &frames, range);
                prepared.is_ok() && vmemmap.back_on_block(&DirectFrames, range).is_ok()
            }
        };
        if !has_memory {
            log!(Warning, "block {}: no memory for its descriptors", block.0);
            self.kernel.direct_map.unmap_huge(addresses);
            return None;
        }
        Some((block, memmap))
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
