//! The network device (virtio 1.3, section 5.1), with one pair of queues and without a control queue.

use crate::le;

/// Queue 0: frames from the host to the guest.
pub const QUEUE_RECEIVE: u16 = 0;
/// Queue 1: frames from the guest to the host.
pub const QUEUE_TRANSMIT: u16 = 1;

/// Feature bits of the network device, as masks of the 64-bit feature word (section 5.1.3).
pub mod feature {
    /// The device completes checksums of frames that it gets (bit 0).
    pub const CSUM: u64 = 1 << 0;
    /// The driver takes frames whose checksums are not complete (bit 1).
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// `mac` in the configuration is valid (bit 5).
    pub const MAC: u64 = 1 << 5;
    /// The device takes TCP segments over IPv4 larger than a frame (bit 11).
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The same over IPv6 (bit 12).
    pub const HOST_TSO6: u64 = 1 << 12;
    /// `status` in the configuration is valid (bit 16).
    pub const STATUS: u64 = 1 << 16;
}

/// Bits of [`Config::status`].
pub mod link {
    /// The link is up.
    pub const UP: u16 = 1 << 0;
}

/// `struct virtio_net_config` (section 5.1.4), as far as the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The guest's address; valid with [`feature::MAC`].
    pub mac: [u8; 6],
    /// Bits of [`link`]; valid with [`feature::STATUS`].
    pub status: u16,
}

impl Config {
    /// Size on the wire.
    pub const SIZE: usize = 8;

    /// The bytes of the configuration space.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, 0, self.mac);
        le::put(&mut bytes, 6, self.status.to_le_bytes());
        bytes
    }
}

/// Values of [`Header::gso_type`].
pub mod gso {
    /// Not a segment.
    pub const NONE: u8 = 0;
    /// TCP over IPv4.
    pub const TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const TCPV6: u8 = 4;
    /// With one of the others: the segment has the congestion bit set.
    pub const ECN: u8 = 0x80;
}

/// The checksum from `csum_start` on is to be put at `csum_offset` behind it: a bit of [`Header::flags`].
pub const FLAG_NEEDS_CSUM: u8 = 1 << 0;

/// `struct virtio_net_hdr` (section 5.1.6), which is in front of each frame. Of a device with VERSION_1 it always ends with
/// the number of buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// [`FLAG_NEEDS_CSUM`] or none.
    pub flags: u8,
    /// One of [`gso`].
    pub gso_type: u8,
    /// Bytes of headers of a segment.
    pub hdr_len: u16,
    /// Bytes of payload in each frame that is cut from a segment.
    pub gso_size: u16,
    /// Where the bytes begin that the checksum covers.
    pub csum_start: u16,
    /// Where behind that it is put.
    pub csum_offset: u16,
    /// Chains that a received frame has: 1 without mergeable buffers. 0 in frames of the driver.
    pub num_buffers: u16,
}

impl Header {
    /// Size on the wire.
    pub const SIZE: usize = 12;

    /// The bytes of the header.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, 0, [self.flags, self.gso_type]);
        le::put(&mut bytes, 2, self.hdr_len.to_le_bytes());
        le::put(&mut bytes, 4, self.gso_size.to_le_bytes());
        le::put(&mut bytes, 6, self.csum_start.to_le_bytes());
        le::put(&mut bytes, 8, self.csum_offset.to_le_bytes());
        le::put(&mut bytes, 10, self.num_buffers.to_le_bytes());
        bytes
    }

    /// Reads a header. Any bytes are one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Header {
        Header {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: le::u16_at(bytes, 2),
            gso_size: le::u16_at(bytes, 4),
            csum_start: le::u16_at(bytes, 6),
            csum_offset: le::u16_at(bytes, 8),
            num_buffers: le::u16_at(bytes, 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_the_bytes_of_section_5_1_6() {
        let header = Header {
            flags: 1,
            gso_type: 4,
            hdr_len: 0x0102,
            gso_size: 0x0304,
            csum_start: 0x0506,
            csum_offset: 0x0708,
            num_buffers: 0x090a,
        };
        let golden = [1, 4, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9];
        assert_eq!(header.encode(), golden);
        assert_eq!(Header::decode(&golden), header);
    }

    #[test]
    fn the_configuration_has_the_bytes_of_section_5_1_4() {
        let config = Config {
            mac: [2, 3, 4, 5, 6, 7],
            status: 0x0201,
        };
        assert_eq!(config.encode(), [2, 3, 4, 5, 6, 7, 1, 2]);
    }
}
