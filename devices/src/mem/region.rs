//! The region of a memory device: where it lies, how it is cut, how much of it can be used.

use virtio_wire::mem::BlockRange;

use super::BlockRun;
use super::check::RequestError;

/// Smallest block: a page. (The VMM asks for more, Linux takes what it gets.)
const MIN_BLOCK_SIZE: u64 = 4096;

/// How far the usable region reaches beyond the requested size: two of Linux's 128 MiB memory blocks, the least that
/// lets a driver choose among whole blocks when the region holds stray plugged ones.
const USABLE_SLACK: u64 = 256 << 20;

/// What a memory device is made of. All sizes are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest-physical address, a multiple of the block size.
    pub addr: u64,
    /// Size of the region, a multiple of the block size.
    pub region_size: u64,
    /// Size of a block, a power of two of at least 4096.
    pub block_size: u64,
    /// How much the guest shall plug at first: a multiple of the block size, at most the region.
    pub requested_size: u64,
    /// NUMA node (ACPI proximity domain) of the region, if the guest shall know one.
    pub node_id: Option<u16>,
    /// What a driver may do with unplugged blocks.
    pub unplugged: UnpluggedMemory,
}

/// What the device expects of its driver as to unplugged blocks. Writing to them is never allowed (virtio 1.3, section
/// 5.15.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnpluggedMemory {
    /// They are not accessible at all: a driver that does not accept `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE` is refused,
    /// which section 5.15.5.2 allows.
    #[default]
    Inaccessible,
    /// A driver that does not accept the feature is served too. The backend then has to let the guest read unplugged
    /// blocks, as section 5.15.6.2 demands.
    Readable,
}

/// Why a region cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// The block size is no power of two, or below a page.
    #[error("block size {0:#x} is not a power of two of at least {MIN_BLOCK_SIZE:#x}")]
    BlockSize(u64),
    /// The address is not a multiple of the block size.
    #[error("region address {addr:#x} is not a multiple of the block size {block_size:#x}")]
    Address {
        /// Guest-physical address of the region.
        addr: u64,
        /// Size of a block.
        block_size: u64,
    },
    /// The region is empty, not a multiple of the block size, or reaches beyond the address space.
    #[error(
        "region size {region_size:#x} is not a positive multiple of the block size {block_size:#x} below 2^64"
    )]
    RegionSize {
        /// Size of the region.
        region_size: u64,
        /// Size of a block.
        block_size: u64,
    },
    /// The requested size cannot be had.
    #[error(transparent)]
    Requested(#[from] ResizeError),
}

/// Why a size cannot be requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResizeError {
    /// Not a multiple of the block size.
    #[error("requested size {requested_size:#x} is not a multiple of the block size {block_size:#x}")]
    Unaligned {
        /// What was asked for.
        requested_size: u64,
        /// Size of a block.
        block_size: u64,
    },
    /// More than the region.
    #[error("requested size {requested_size:#x} is larger than the region of {region_size:#x}")]
    BeyondRegion {
        /// What was asked for.
        requested_size: u64,
        /// Size of the region.
        region_size: u64,
    },
}

/// A region whose numbers fit together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) addr: u64,
    pub(super) size: u64,
    pub(super) block_size: u64,
}

impl Region {
    pub(super) fn new(spec: &RegionSpec) -> Result<Region, RegionError> {
        let RegionSpec {
            addr,
            region_size,
            block_size,
            requested_size,
            ..
        } = *spec;
        if !block_size.is_power_of_two() || block_size < MIN_BLOCK_SIZE {
            return Err(RegionError::BlockSize(block_size));
        }
        if !addr.is_multiple_of(block_size) {
            return Err(RegionError::Address { addr, block_size });
        }
        let whole = region_size > 0 && region_size.is_multiple_of(block_size);
        if !whole || addr.checked_add(region_size).is_none() {
            return Err(RegionError::RegionSize {
                region_size,
                block_size,
            });
        }
        let region = Region {
            addr,
            size: region_size,
            block_size,
        };
        region.check_requested(requested_size)?;
        Ok(region)
    }

    pub(super) fn nr_blocks(&self) -> u64 {
        self.size / self.block_size
    }

    pub(super) fn check_requested(&self, requested_size: u64) -> Result<(), ResizeError> {
        if !requested_size.is_multiple_of(self.block_size) {
            return Err(ResizeError::Unaligned {
                requested_size,
                block_size: self.block_size,
            });
        }
        if requested_size > self.size {
            return Err(ResizeError::BeyondRegion {
                requested_size,
                region_size: self.size,
            });
        }
        Ok(())
    }

    /// How much of the region is usable for a requested size: that much and some slack, in whole blocks, at most the
    /// region; nothing if nothing is requested, so that a guest cannot plug before it is asked to.
    pub(super) fn usable_size_for(&self, requested_size: u64) -> u64 {
        if requested_size == 0 {
            return 0;
        }
        requested_size
            .saturating_add(USABLE_SLACK)
            .checked_next_multiple_of(self.block_size)
            .map_or(self.size, |size| size.min(self.size))
    }

    /// The run that a request names, if it is one inside the first `usable_size` bytes of the region.
    pub(super) fn run(&self, blocks: BlockRange, usable_size: u64) -> Result<BlockRun, RequestError> {
        let BlockRange { addr, nb_blocks } = blocks;
        let outside = RequestError::OutsideUsable { addr, nb_blocks };
        if !addr.is_multiple_of(self.block_size) {
            return Err(RequestError::Unaligned { addr });
        }
        let offset = addr.checked_sub(self.addr).ok_or(outside)?;
        let run = BlockRun::new(offset / self.block_size, nb_blocks.into()).ok_or(RequestError::NoBlocks)?;
        if run.end() > usable_size / self.block_size {
            Err(outside)
        } else {
            Ok(run)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn spec() -> RegionSpec {
        RegionSpec {
            addr: 1 << 32,
            region_size: 1024 * MIB,
            block_size: 2 * MIB,
            requested_size: 0,
            node_id: None,
            unplugged: UnpluggedMemory::Inaccessible,
        }
    }

    fn refusal(spec: RegionSpec) -> RegionError {
        Region::new(&spec).unwrap_err()
    }

    #[test]
    fn numbers_that_do_not_fit_together_are_refused() {
        for block_size in [0, 1, 2048, 3 * MIB] {
            assert_eq!(
                refusal(RegionSpec { block_size, ..spec() }),
                RegionError::BlockSize(block_size)
            );
        }
        let addr = (1 << 32) + MIB;
        assert_eq!(
            refusal(RegionSpec { addr, ..spec() }),
            RegionError::Address {
                addr,
                block_size: 2 * MIB
            }
        );
        for region_size in [0, MIB, 3 * MIB, u64::MAX - 2 * MIB + 1] {
            let error = RegionError::RegionSize {
                region_size,
                block_size: 2 * MIB,
            };
            assert_eq!(
                refusal(RegionSpec {
                    region_size,
                    ..spec()
                }),
                error
            );
        }
        let requested_size = 1026 * MIB;
        let error = ResizeError::BeyondRegion {
            requested_size,
            region_size: 1024 * MIB,
        };
        assert_eq!(
            refusal(RegionSpec {
                requested_size,
                ..spec()
            }),
            error.into()
        );
    }

    #[test]
    fn the_usable_size_covers_the_request_with_slack_and_never_exceeds_the_region() {
        let region = Region::new(&spec()).unwrap();
        let usable: Vec<u64> = [0, 2, 256, 768, 770, 1024]
            .map(|mib| region.usable_size_for(mib * MIB) / MIB)
            .to_vec();
        assert_eq!(usable, [0, 258, 512, 1024, 1024, 1024]);
    }

    #[test]
    fn the_usable_size_is_whole_blocks_even_when_the_slack_is_not() {
        let gib = 1024 * MIB;
        let spec = RegionSpec {
            addr: 4 * gib,
            region_size: 8 * gib,
            block_size: gib,
            ..spec()
        };
        assert_eq!(Region::new(&spec).unwrap().usable_size_for(gib), 2 * gib);
    }
}
