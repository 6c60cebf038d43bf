//! Growing: descriptors and tables first, so that a block that is plugged can also be used; then PLUG, the direct
//! map, and online in the movable zone, from which it can be given back.

use super::{Interruption, OfflineBlock, Worker};
use crate::kernel::KernelFrames;
use crate::log::log;
use crate::machine::direct_map::Access;
use alloc::vec::Vec;
use core::num::NonZeroU16;
use guest_kernel::physical::to_usize;
use guest_mm::{BlockIndex, Descriptors, PAGE_SIZE, Page, ZoneKind};
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
                    self.bring_online(offline);
                }
                self.kernel.memory_came.raise();
                return Ok(());
            }
            Err(error @ (RequestError::Device(_) | RequestError::Interrupted)) => {
                self.planner.lost_track(run);
                return Err(Interruption::Device(error));
            }
            Err(RequestError::Busy) => PlugFailure::Busy,
            Err(RequestError::Nack) => PlugFailure::Nack,
            Err(RequestError::Error | RequestError::OutsideRegion) => PlugFailure::Error,
        };
        for offline in prepared {
            self.note(offline.block, PlugStep::Cancelled);
        }
        self.planner.plug_failed(run, failure);
        Ok(())
    }

    /// What it takes to use the first blocks of `run`, as far as memory allows.
    fn prepare(&self, run: BlockRun) -> Vec<OfflineBlock> {
        let largest = to_usize((LARGEST_REQUEST / self.device.region().block_size()).max(1));
        let mut prepared = Vec::new();
        for block in run.blocks().take(largest).map(|block| BlockIndex(block.raw())) {
            let Some(descriptors) = self.descriptors() else {
                break;
            };
            let addresses = self.addresses(block);
            let mut mm = self.kernel.mm.lock();
            let frames = KernelFrames::of(&mut mm.phys);
            if self.kernel.direct_map.prepare(addresses, &frames).is_err() {
                break;
            }
            drop(mm);
            self.note(block, PlugStep::Begun);
            prepared.push(OfflineBlock {
                block,
                descriptors: Some(descriptors),
            });
        }
        prepared
    }

    /// Blank descriptors for one block; the heap gets more frames if it needs them.
    fn descriptors(&self) -> Option<Descriptors> {
        let nr_pages = u32::try_from(self.device.region().block_size() / PAGE_SIZE).ok()?;
        let has_room = self.kernel.fill_heap(nr_pages as usize * size_of::<Page>());
        has_room.then(|| Descriptors::try_new(nr_pages)).flatten()
    }

    /// Puts a plugged block to use. Without descriptors, or tables, it stays offline.
    pub(super) fn bring_online(&self, offline: OfflineBlock) {
        let OfflineBlock { block, descriptors } = offline;
        let Some(descriptors) = descriptors.or_else(|| self.descriptors()) else {
            log!(Warning, "block {}: no memory for its descriptors", block.0);
            return;
        };
        let mut mm = self.kernel.mm.lock();
        let frames = KernelFrames::of(&mut mm.phys);
        let mapped = self
            .kernel
            .direct_map
            .map(self.addresses(block), Access::Write, &frames);
        if let Err(error) = mapped {
            log!(Error, "block {}: {error}", block.0);
            return;
        }
        if let Err(failed) = mm.phys.online(block, descriptors, ZoneKind::Movable) {
            log!(Error, "{}", failed.error);
        }
    }

    fn note(&self, block: BlockIndex, step: PlugStep) {
        let phys = &mut self.kernel.mm.lock().phys;
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
