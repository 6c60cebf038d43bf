//! Where the blocks of a memory device are: the part of its configuration that never changes, checked once.

use super::block::{BlockIndex, BlockRun};
use super::{Config, RequestError};
use crate::dma::{Gpa, PAGE_SIZE};
use crate::fault::StartError;
use crate::plan::Target;
use crate::transport::{Registers, Setup, Transport, TransportError};
use core::fmt;
use virtio_wire::mem::{BlockRange, feature, offset};

/// The blocks of one memory device (virtio 1.3 section 5.15.4). Every block of the region has addresses that
/// exist, and a number that a [`BlockIndex`] can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    addr: u64,
    block_size: u64,
    nr_blocks: u32,
    node_id: Option<u16>,
}

/// Why a device's region cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRegion {
    /// Not a power of two, or below a page.
    BlockSize(u64),
    /// `addr` or `region_size` is not a multiple of the block size, or the size is 0.
    Unaligned {
        /// `addr`.
        addr: u64,
        /// `region_size`.
        region_size: u64,
    },
    /// The region ends beyond the address space, or has more than `u32::MAX` blocks.
    TooLarge {
        /// `addr`.
        addr: u64,
        /// `region_size`.
        region_size: u64,
    },
    /// Not the region it was before the device was reset.
    Changed,
}

impl fmt::Display for BadRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BlockSize(size) => {
                write!(f, "block size {size:#x} is not a power of two of at least a page")
            }
            Self::Unaligned { addr, region_size } => {
                write!(
                    f,
                    "region at {addr:#x} of {region_size:#x} bytes is not made of whole blocks"
                )
            }
            Self::TooLarge { addr, region_size } => {
                write!(f, "region at {addr:#x} of {region_size:#x} bytes is too large")
            }
            Self::Changed => f.write_str("the region changed during a reset"),
        }
    }
}

impl core::error::Error for BadRegion {}

impl Region {
    /// Reads and checks the constant fields during the set-up of a device.
    pub(super) fn read<R: Registers>(setup: &Setup<'_, R>) -> Result<Self, StartError> {
        let config = setup.transport().read_config(|config| Config {
            block_size: config.read64(offset::BLOCK_SIZE),
            node_id: config.read16(offset::NODE_ID),
            addr: config.read64(offset::ADDR),
            region_size: config.read64(offset::REGION_SIZE),
            ..Config::default()
        })?;
        let node_is_valid = setup.features() & feature::ACPI_PXM != 0;
        let mut region = Self::new(&config).map_err(StartError::Config)?;
        region.node_id = node_is_valid.then_some(config.node_id);
        Ok(region)
    }

    /// The region that `config` describes.
    fn new(config: &Config) -> Result<Self, BadRegion> {
        let Config {
            block_size,
            addr,
            region_size,
            ..
        } = *config;
        if !block_size.is_power_of_two() || block_size < PAGE_SIZE as u64 {
            return Err(BadRegion::BlockSize(block_size));
        }
        if region_size == 0 || !addr.is_multiple_of(block_size) || !region_size.is_multiple_of(block_size) {
            return Err(BadRegion::Unaligned { addr, region_size });
        }
        let nr_blocks = u32::try_from(region_size / block_size).ok();
        match (nr_blocks, addr.checked_add(region_size)) {
            (Some(nr_blocks), Some(_)) => Ok(Self {
                addr,
                block_size,
                nr_blocks,
                node_id: None,
            }),
            _ => Err(BadRegion::TooLarge { addr, region_size }),
        }
    }

    /// Address of block 0; a multiple of the block size.
    pub fn addr(&self) -> Gpa {
        Gpa::new(self.addr)
    }

    /// Bytes in one block: a power of two, at least a page.
    pub fn block_size(&self) -> u64 {
        self.block_size
    }

    /// Number of blocks, plugged or not; at least 1.
    pub fn nr_blocks(&self) -> u32 {
        self.nr_blocks
    }

    /// Bytes in the whole region.
    pub fn region_size(&self) -> u64 {
        u64::from(self.nr_blocks) * self.block_size
    }

    /// The ACPI proximity domain of the region, if the device says so.
    pub fn node_id(&self) -> Option<u16> {
        self.node_id
    }

    /// Address of the first byte of `block`; `None` outside the region.
    pub fn gpa(&self, block: BlockIndex) -> Option<Gpa> {
        (block.raw() < self.nr_blocks).then(|| Gpa::new(self.addr + u64::from(block.raw()) * self.block_size))
    }

    /// The block that `gpa` lies in; `None` outside the region.
    pub fn block_at(&self, gpa: Gpa) -> Option<BlockIndex> {
        let offset = gpa.raw().checked_sub(self.addr)?;
        let block = u32::try_from(offset / self.block_size).ok()?;
        (block < self.nr_blocks).then(|| BlockIndex::new(block))
    }

    /// What `config` asks for, in blocks of this region; a size that is no whole number of blocks is rounded down,
    /// one beyond the region is cut.
    pub fn target(&self, config: &Config) -> Target {
        let blocks = |bytes: u64| {
            u32::try_from(bytes / self.block_size)
                .unwrap_or(u32::MAX)
                .min(self.nr_blocks)
        };
        Target {
            requested_blocks: blocks(config.requested_size),
            usable_blocks: blocks(config.usable_region_size),
        }
    }

    /// Reads the fields that change, and adds those that do not.
    pub(super) fn read_config<R: Registers>(
        &self,
        transport: &Transport<R>,
    ) -> Result<Config, TransportError> {
        transport.read_config(|config| Config {
            block_size: self.block_size,
            node_id: self.node_id.unwrap_or(0),
            addr: self.addr,
            region_size: self.region_size(),
            usable_region_size: config.read64(offset::USABLE_REGION_SIZE),
            plugged_size: config.read64(offset::PLUGGED_SIZE),
            requested_size: config.read64(offset::REQUESTED_SIZE),
        })
    }

    /// `run` in the words of a request.
    pub(super) fn range(&self, run: BlockRun) -> Result<BlockRange, RequestError> {
        match (self.gpa(run.first()), self.gpa(run.last())) {
            (Some(first), Some(_)) => Ok(BlockRange {
                addr: first.raw(),
                nb_blocks: run.count().get(),
            }),
            _ => Err(RequestError::OutsideRegion),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn config(block_size: u64, addr: u64, region_size: u64) -> Config {
        Config {
            block_size,
            addr,
            region_size,
            ..Config::default()
        }
    }

    #[test]
    fn contradictions_are_refused_with_their_values() {
        let cases = [
            (config(0, 0, MIB), BadRegion::BlockSize(0)),
            (config(3 * MIB, 0, 3 * MIB), BadRegion::BlockSize(3 * MIB)),
            (config(2048, 0, MIB), BadRegion::BlockSize(2048)),
            (
                config(2 * MIB, 0, 0),
                BadRegion::Unaligned {
                    addr: 0,
                    region_size: 0,
                },
            ),
            (
                config(2 * MIB, MIB, 4 * MIB),
                BadRegion::Unaligned {
                    addr: MIB,
                    region_size: 4 * MIB,
                },
            ),
            (
                config(2 * MIB, 0, 3 * MIB),
                BadRegion::Unaligned {
                    addr: 0,
                    region_size: 3 * MIB,
                },
            ),
            (
                config(4096, 0, 1 << 44),
                BadRegion::TooLarge {
                    addr: 0,
                    region_size: 1 << 44,
                },
            ),
            (
                config(2 * MIB, u64::MAX - 2 * MIB + 1, 2 * MIB),
                BadRegion::TooLarge {
                    addr: u64::MAX - 2 * MIB + 1,
                    region_size: 2 * MIB,
                },
            ),
        ];
        for (config, error) in cases {
            assert_eq!(Region::new(&config), Err(error));
        }
    }

    #[test]
    fn blocks_and_addresses_agree_and_end_with_the_region() {
        let region = Region::new(&config(2 * MIB, 1 << 32, 8 * MIB)).unwrap();
        assert_eq!((region.nr_blocks(), region.region_size()), (4, 8 * MIB));
        for block in 0..4 {
            let gpa = region.gpa(BlockIndex::new(block)).unwrap();
            assert_eq!(gpa.raw(), (1 << 32) + u64::from(block) * 2 * MIB);
            assert_eq!(
                region.block_at(Gpa::new(gpa.raw() + 2 * MIB - 1)),
                Some(BlockIndex::new(block))
            );
        }
        assert_eq!(region.gpa(BlockIndex::new(4)), None);
        assert_eq!(region.block_at(Gpa::new((1 << 32) - 1)), None);
        assert_eq!(region.block_at(Gpa::new((1 << 32) + 8 * MIB)), None);
    }

    #[test]
    fn a_target_beyond_the_region_or_between_blocks_is_cut() {
        let region = Region::new(&config(2 * MIB, 0, 8 * MIB)).unwrap();
        let config = Config {
            requested_size: u64::MAX,
            usable_region_size: 5 * MIB,
            ..Config::default()
        };
        assert_eq!(
            region.target(&config),
            Target {
                requested_blocks: 4,
                usable_blocks: 2
            }
        );
    }
}
