//! Plugging and unplugging runs of blocks: what the virtio-mem device decides, done to host memory.
//!
//! The order is the point. Unplug: the block is marked gone, then protected, then discarded, so that there is no
//! moment in which a page already given back can be touched into existence again. Plug: accessible first, marked last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use std::io;

use devices::mem::{BackendError, BlockBackend, BlockRun};

use super::MemoryError;
use super::mapping::Access;
use super::plugged::BlockState;
use super::ram::Region;

/// Changes the blocks of one region. The device that owns it is the only writer.
#[derive(Debug)]
pub struct RegionBackend {
    region: Arc<Region>,
    discarded: Arc<AtomicU64>,
}

impl RegionBackend {
    pub(super) fn new(region: Arc<Region>) -> Self {
        Self {
            region,
            discarded: Arc::default(),
        }
    }

    /// Bytes of blocks given back to the host so far, kept up to date.
    #[must_use]
    pub fn discarded_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.discarded)
    }

    /// Gives the guest `count` blocks from block `first` on; they read as zero.
    ///
    /// # Errors
    /// The host refused, and the blocks are as they were.
    pub fn plug_blocks(&mut self, first: u64, count: u64) -> Result<(), MemoryError> {
        let (offset, size) = self.extent(first, count)?;
        self.protect_all(offset, size, Access::ReadWrite)?;
        self.region.plugged.set(first..first + count, BlockState::Plugged);
        Ok(())
    }

    /// Takes `count` blocks from block `first` on away from the guest and gives their pages back to the host.
    ///
    /// # Errors
    /// The host refused. If it would not protect them, the blocks are as they were; if it would not discard them,
    /// the guest no longer has them but the host's memory is still in use.
    pub fn unplug_blocks(&mut self, first: u64, count: u64) -> Result<(), MemoryError> {
        let (offset, size) = self.extent(first, count)?;
        let run = first..first + count;
        self.region.plugged.set(run.clone(), BlockState::Unplugged);
        if let Err(refused) = self.protect_all(offset, size, Access::None) {
            self.region.plugged.set(run, BlockState::Plugged);
            return Err(refused);
        }
        self.region.mapping.discard(offset, size)?;
        self.discarded.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    /// Changes the protection of all of a range or, as far as the kernel lets it, of none.
    fn protect_all(&self, offset: u64, size: u64, access: Access) -> Result<(), MemoryError> {
        self.region
            .mapping
            .protect(offset, size, access)
            .inspect_err(|_| {
                // mprotect stops at the first part it cannot change; going back merges areas and needs no memory.
                let _ = self.region.mapping.protect(offset, size, access.opposite());
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
}

impl BlockBackend for RegionBackend {
    fn plug(&mut self, run: BlockRun) -> Result<(), BackendError> {
        self.plug_blocks(run.first.0, run.count.get())
            .map_err(backend_error)
    }

    fn unplug(&mut self, run: BlockRun) -> Result<(), BackendError> {
        if self
            .region
            .pins
            .first_in(run.first.0..run.first.0 + run.count.get())
            .is_some()
        {
            return Err(BackendError::Busy);
        }
        self.unplug_blocks(run.first.0, run.count.get())
            .map_err(backend_error)
    }
}

/// The kernel is short of memory, or of areas (`vm.max_map_count`), for the moment: BUSY. Anything else is a fault.
fn backend_error(error: MemoryError) -> BackendError {
    match &error {
        MemoryError::Protect { source, .. } if source.raw_os_error() == Some(libc::ENOMEM) => {
            BackendError::Busy
        }
        _ => BackendError::Fault(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GuestRam, RegionLayout, Resident};
    use super::*;
    use crate::machine::layout::{MIB, RamRange};
    use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

    const START: u64 = 4 << 30;
    const BLOCK: u64 = 2 * MIB;

    fn ram() -> GuestRam {
        let layout = RegionLayout {
            start: START,
            size: 8 * BLOCK,
            block_size: BLOCK,
        };
        GuestRam::new(
            &[RamRange {
                gpa: 0,
                size: 32 * MIB,
            }],
            Some(layout),
        )
        .unwrap()
    }

    #[test]
    fn an_unplugged_block_is_refused_before_any_access() {
        let ram = ram();
        let memory = ram.device_view();
        assert!(memory.read_obj::<u64>(GuestAddress(START)).is_err());
        assert!(memory.write_obj(7u64, GuestAddress(START + 5 * BLOCK)).is_err());
        assert!(!memory.check_range(GuestAddress(START), 1, Permissions::Read));
    }

    #[test]
    fn a_plugged_block_is_served_and_its_neighbours_are_not() {
        let ram = ram();
        let mut backend = ram.backend().unwrap();
        backend.plug_blocks(2, 2).unwrap();
        let memory = ram.device_view();
        let first = GuestAddress(START + 2 * BLOCK);
        memory.write_obj(0x1122_3344_5566_7788u64, first).unwrap();
        assert_eq!(memory.read_obj::<u64>(first).unwrap(), 0x1122_3344_5566_7788);
        // Across the border of two plugged blocks, but not across the border to an unplugged one.
        assert!(
            memory
                .write_obj(1u64, GuestAddress(START + 3 * BLOCK - 4))
                .is_ok()
        );
        assert!(
            memory
                .write_obj(1u64, GuestAddress(START + 4 * BLOCK - 4))
                .is_err()
        );
        assert!(
            memory
                .write_obj(1u64, GuestAddress(START + 2 * BLOCK - 4))
                .is_err()
        );
    }

    #[test]
    fn a_range_from_ram_into_the_region_needs_the_blocks_too() {
        let layout = RegionLayout {
            start: 32 * MIB,
            size: 2 * BLOCK,
            block_size: BLOCK,
        };
        let ram = GuestRam::new(
            &[RamRange {
                gpa: 0,
                size: 32 * MIB,
            }],
            Some(layout),
        )
        .unwrap();
        let across = GuestAddress(32 * MIB - 4);
        assert!(ram.device_view().write_obj(1u64, across).is_err());
        ram.backend().unwrap().plug_blocks(0, 1).unwrap();
        assert!(ram.device_view().write_obj(1u64, across).is_ok());
    }

    #[test]
    fn unplugging_gives_resident_memory_back_and_replugging_gives_zeros() {
        let ram = ram();
        let mut backend = ram.backend().unwrap();
        backend.plug_blocks(0, 4).unwrap();
        let memory = ram.device_view();
        let ones = vec![0xA5u8; usize::try_from(4 * BLOCK).unwrap()];
        memory.write_slice(&ones, GuestAddress(START)).unwrap();
        let filled = Resident::measure(&ram).unwrap().guest_bytes;
        assert!(filled >= 4 * BLOCK, "{filled} bytes resident");

        backend.unplug_blocks(0, 4).unwrap();
        assert_eq!(backend.discarded_bytes().load(Ordering::Relaxed), 4 * BLOCK);
        assert!(memory.read_obj::<u8>(GuestAddress(START)).is_err());
        let emptied = Resident::measure(&ram).unwrap().guest_bytes;
        assert!(
            emptied <= filled - 4 * BLOCK,
            "{emptied} bytes resident after unplug, {filled} before"
        );

        backend.plug_blocks(0, 4).unwrap();
        let mut back = vec![0xFFu8; ones.len()];
        memory.read_slice(&mut back, GuestAddress(START)).unwrap();
        assert!(back.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn blocks_outside_the_region_are_refused() {
        let ram = ram();
        let mut backend = ram.backend().unwrap();
        assert!(backend.plug_blocks(7, 2).is_err());
        assert!(backend.unplug_blocks(u64::MAX, 2).is_err());
        assert_eq!(ram.region().unwrap().plugged().snapshot(), vec![false; 8]);
    }

    #[test]
    fn a_block_is_found_by_any_address_in_it() {
        let ram = ram();
        let region = ram.region().unwrap();
        assert_eq!(region.block_at(START), Some(0));
        assert_eq!(region.block_at(START + 3 * BLOCK - 1), Some(2));
        assert_eq!(region.block_at(START + 8 * BLOCK), None);
        assert_eq!(region.block_at(START - 1), None);
    }
}
