//! `struct virtio_mem_config` (virtio 1.3, section 5.15.4): 56 bytes, read-only for the driver.

use crate::le;

/// Byte offsets of the fields in the configuration space.
pub mod offset {
    /// `block_size`, le64.
    pub const BLOCK_SIZE: usize = 0;
    /// `node_id`, le16, followed by 6 bytes of padding.
    pub const NODE_ID: usize = 8;
    /// `addr`, le64.
    pub const ADDR: usize = 16;
    /// `region_size`, le64.
    pub const REGION_SIZE: usize = 24;
    /// `usable_region_size`, le64.
    pub const USABLE_REGION_SIZE: usize = 32;
    /// `plugged_size`, le64.
    pub const PLUGGED_SIZE: usize = 40;
    /// `requested_size`, le64.
    pub const REQUESTED_SIZE: usize = 48;
}

/// The configuration of a memory device. All sizes are bytes and multiples of `block_size`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Size and alignment of a block, a power of two. Never changes.
    pub block_size: u64,
    /// ACPI proximity domain; without meaning unless [`super::feature::ACPI_PXM`] was negotiated. Never changes.
    pub node_id: u16,
    /// Guest-physical address of the region. Never changes.
    pub addr: u64,
    /// Size of the region. Never changes.
    pub region_size: u64,
    /// Blocks beyond this offset cannot be plugged. Grows with `requested_size`; shrinks only on UNPLUG ALL.
    pub usable_region_size: u64,
    /// Sum of the plugged blocks. Changes without a configuration interrupt.
    pub plugged_size: u64,
    /// How much the device wants plugged. A change comes with a configuration interrupt.
    pub requested_size: u64,
}

impl Config {
    /// Size on the wire.
    pub const SIZE: usize = 56;

    /// The bytes of the configuration space.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, offset::BLOCK_SIZE, self.block_size.to_le_bytes());
        le::put(&mut bytes, offset::NODE_ID, self.node_id.to_le_bytes());
        le::put(&mut bytes, offset::ADDR, self.addr.to_le_bytes());
        le::put(&mut bytes, offset::REGION_SIZE, self.region_size.to_le_bytes());
        le::put(
            &mut bytes,
            offset::USABLE_REGION_SIZE,
            self.usable_region_size.to_le_bytes(),
        );
        le::put(&mut bytes, offset::PLUGGED_SIZE, self.plugged_size.to_le_bytes());
        le::put(
            &mut bytes,
            offset::REQUESTED_SIZE,
            self.requested_size.to_le_bytes(),
        );
        bytes
    }

    /// Reads a configuration. Any bytes are one: a driver checks the values before it relies on them.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Config {
        Config {
            block_size: le::u64_at(bytes, offset::BLOCK_SIZE),
            node_id: le::u16_at(bytes, offset::NODE_ID),
            addr: le::u64_at(bytes, offset::ADDR),
            region_size: le::u64_at(bytes, offset::REGION_SIZE),
            usable_region_size: le::u64_at(bytes, offset::USABLE_REGION_SIZE),
            plugged_size: le::u64_at(bytes, offset::PLUGGED_SIZE),
            requested_size: le::u64_at(bytes, offset::REQUESTED_SIZE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_the_bytes_of_section_5_15_4() {
        let config = Config {
            block_size: 0x20_0000,
            node_id: 0x0102,
            addr: 0x1_4000_0000,
            region_size: 0x4000_0000,
            usable_region_size: 0x3000_0000,
            plugged_size: 0x1020_0000,
            requested_size: 0x2040_0000,
        };
        #[rustfmt::skip]
        let golden: [u8; 56] = [
            0, 0, 0x20, 0, 0, 0, 0, 0,         // le64 block_size
            2, 1, 0, 0, 0, 0, 0, 0,            // le16 node_id, le8 padding[6]
            0, 0, 0, 0x40, 1, 0, 0, 0,         // le64 addr
            0, 0, 0, 0x40, 0, 0, 0, 0,         // le64 region_size
            0, 0, 0, 0x30, 0, 0, 0, 0,         // le64 usable_region_size
            0, 0, 0x20, 0x10, 0, 0, 0, 0,      // le64 plugged_size
            0, 0, 0x40, 0x20, 0, 0, 0, 0,      // le64 requested_size
        ];
        assert_eq!(config.encode(), golden);
        assert_eq!(Config::decode(&golden), config);
    }

    #[test]
    fn padding_is_ignored() {
        let mut bytes = Config {
            node_id: 3,
            ..Config::default()
        }
        .encode();
        bytes[10..16].fill(0xff);
        assert_eq!(
            Config::decode(&bytes),
            Config {
                node_id: 3,
                ..Config::default()
            }
        );
    }
}
