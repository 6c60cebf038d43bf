//! Plugging and unplugging runs of blocks: what the virtio-mem device decides, done to host memory.
//!
//! The order is the point. Unplug: the block is marked gone, then protected, then discarded, so that there is no
//! moment in which a page already given back can be touched into existence again. Plug: accessible first, then populated
//! if that is wanted, marked last.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::mem::{BackendError, BlockBackend, BlockRun};

use super::mapping::Access;
use super::plugged::BlockState;
use super::{Discarded, MemoryError, Region};
use crate::spec::PageSupply;

/// Changes the blocks of one region. The device that owns it is the only writer.
#[derive(Debug)]
pub struct RegionBackend {
    region: Arc<Region>,
}

impl RegionBackend {
    pub(super) fn new(region: Arc<Region>) -> Self {
        Self { region }
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Gives the guest `count` blocks from block `first` on; they read as zero.
    ///
    /// # Errors
    /// The host refused, or is short of the memory that they are to be backed with; the blocks are as they were.
    pub fn plug_blocks(&mut self, first: u64, count: u64) -> Result<(), MemoryError> {
        let (offset, size) = self.extent(first, count)?;
        match self.region.pages() {
            PageSupply::OnTouch => self.protect_all(offset, size, Access::ReadWrite)?,
            PageSupply::AtPlug => self.supply(offset, size)?,
        }
        self.region.plugged.set(first..first + count, BlockState::Plugged);
        Ok(())
    }

    /// Takes `count` blocks from block `first` on away from the guest and gives their pages back to the host, all in one
    /// go. Returns how much of it the host shows free.
    ///
    /// # Errors
    /// The host refused, or device I/O uses a block. If it would not protect them, the blocks are as they were; if it would
    /// not discard them, the guest no longer has them but the host's memory is still in use.
    pub fn unplug_blocks(&mut self, first: u64, count: u64) -> Result<Discarded, MemoryError> {
        let (offset, size) = self.extent(first, count)?;
        let run = first..first + count;
        if let Some(block) = self.region.pins.first_in(run.clone()) {
            return Err(MemoryError::Pinned { block });
        }
        self.region.plugged.set(run.clone(), BlockState::Unplugged);
        if let Err(refused) = self.protect_all(offset, size, self.region.access_unplugged()) {
            self.region.plugged.set(run, BlockState::Plugged);
            return Err(refused);
        }
        let discarded = self.region.mapping.discard(offset, size)?;
        self.region.counters.count(discarded);
        let left = discarded.claimed - discarded.shown;
        if left > 0 {
            tracing::warn!(
                "the host still shows {left} bytes of {count} blocks discarded from block {first} on"
            );
        }
        Ok(discarded)
    }

    /// Makes a range accessible with all its pages, or leaves it as it was.
    fn supply(&self, offset: u64, size: u64) -> Result<(), MemoryError> {
        let mapping = &self.region.mapping;
        mapping.check_supply(size)?;
        self.protect_all(offset, size, Access::ReadWrite)?;
        mapping.populate(offset, size).or_else(|short| {
            mapping.protect(offset, size, self.region.access_unplugged())?;
            // Not counted: the guest never had it.
            let _ = mapping.discard(offset, size)?;
            Err(short)
        })
    }

    /// Changes the protection of all of a range or, as far as the kernel lets it, of none.
    fn protect_all(&self, offset: u64, size: u64, access: Access) -> Result<(), MemoryError> {
        let before = match access {
            Access::ReadWrite => self.region.access_unplugged(),
            Access::None | Access::ReadOnly => Access::ReadWrite,
        };
        let mapping = &self.region.mapping;
        mapping.protect(offset, size, access).inspect_err(|_| {
            // mprotect stops at the first part it cannot change; going back merges areas and needs no memory.
            let _ = mapping.protect(offset, size, before);
        })
    }

    fn extent(&self, first: u64, count: u64) -> Result<(u64, u64), MemoryError> {
        let layout = self.region.layout();
        let outside = MemoryError::AddressSpace {
            gpa: layout.start,
            size: layout.size,
        };
        match first.checked_add(count) {
            // Neither product can wrap: both are at most the size of the region.
            Some(end) if end <= self.region.plugged.blocks() => {
                Ok((first * layout.block_size, count * layout.block_size))
            }
            _ => Err(outside),
        }
    }

    /// What the guest is told: BUSY if the host or device I/O is in the way for the moment, else the machine ends.
    fn answer(&self, error: MemoryError) -> BackendError {
        let counters = &self.region.counters;
        let busy = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("busy: {error}");
            BackendError::Busy
        };
        match &error {
            MemoryError::Pinned { .. } => busy(&counters.busy_pinned),
            MemoryError::Shortage { .. } => busy(&counters.busy_memory),
            // Short of memory for page tables, or of areas (`vm.max_map_count`).
            MemoryError::Protect { source, .. } if source.raw_os_error() == Some(libc::ENOMEM) => {
                busy(&counters.busy_memory)
            }
            MemoryError::Populate { source, .. } if is_shortage(source) => busy(&counters.busy_memory),
            _ => BackendError::Fault(io::Error::other(error)),
        }
    }
}

/// What madvise(2) says of pages that cannot be had: EFAULT is a huge page that is not there, EHWPOISON one that is broken.
fn is_shortage(source: &io::Error) -> bool {
    let shortages = [libc::ENOMEM, libc::EFAULT, libc::EAGAIN, libc::EHWPOISON];
    source
        .raw_os_error()
        .is_some_and(|code| shortages.contains(&code))
}

impl BlockBackend for RegionBackend {
    fn plug(&mut self, run: BlockRun) -> Result<(), BackendError> {
        self.plug_blocks(run.first.0, run.count.get())
            .map_err(|error| self.answer(error))
    }

    fn unplug(&mut self, run: BlockRun) -> Result<(), BackendError> {
        match self.unplug_blocks(run.first.0, run.count.get()) {
            // What the host shows is counted; the guest has done its part.
            Ok(_) => Ok(()),
            Err(error) => Err(self.answer(error)),
        }
    }
}

#[cfg(test)]
mod tests;
