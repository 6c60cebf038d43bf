//! A backend of a memory device that tells of every block that comes or goes.

use devices::mem::{BackendError, BlockBackend, BlockRun};

use crate::journal::{BlockChange, EventKind, Events};
use crate::memory::RegionLayout;

/// A backend with somebody to tell.
#[derive(Debug)]
pub(super) struct Watched<B> {
    backend: B,
    events: Events,
    /// Which memory device, in the order of their regions.
    device: usize,
    layout: RegionLayout,
}

impl<B> Watched<B> {
    pub(super) fn new(backend: B, events: Events, device: usize, layout: RegionLayout) -> Self {
        Self {
            backend,
            events,
            device,
            layout,
        }
    }

    fn change(&self, run: BlockRun) -> BlockChange {
        let RegionLayout {
            start, block_size, ..
        } = self.layout;
        BlockChange {
            device: self.device,
            first_block: run.first.0,
            blocks: run.count.get(),
            gpa: start + run.first.0 * block_size,
            bytes: run.count.get() * block_size,
        }
    }
}

impl<B: BlockBackend> BlockBackend for Watched<B> {
    fn plug(&mut self, run: BlockRun) -> Result<(), BackendError> {
        self.backend.plug(run)?;
        self.events.emit(EventKind::Plug(self.change(run)));
        Ok(())
    }

    fn unplug(&mut self, run: BlockRun) -> Result<(), BackendError> {
        self.backend.unplug(run)?;
        self.events.emit(EventKind::Unplug(self.change(run)));
        Ok(())
    }
}
