//! The block device (virtio 1.3, section 5.2): configuration and requests.
//!
//! Sectors are 512 bytes whatever block size the device reports.

use crate::le;

/// The unit of `capacity`, `sector` and `num_sectors`, in bytes.
pub const SECTOR_SIZE: u64 = 512;
/// Bytes of a device's identity string, NUL-padded (section 5.2.6).
pub const ID_SIZE: usize = 20;

/// The request queue of a device without VIRTIO_BLK_F_MQ.
pub const QUEUE_REQUEST: u16 = 0;

/// Feature bits of the block device, as masks of the 64-bit feature word (section 5.2.3).
pub mod feature {
    /// No buffer of a request may be larger than `size_max` (bit 1).
    pub const SIZE_MAX: u64 = 1 << 1;
    /// No request may have more buffers than `seg_max` (bit 2).
    pub const SEG_MAX: u64 = 1 << 2;
    /// The device cannot be written (bit 5).
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is valid (bit 6).
    pub const BLK_SIZE: u64 = 1 << 6;
    /// FLUSH requests are served (bit 9).
    pub const FLUSH: u64 = 1 << 9;
    /// `writeback` can be read and written (bit 11).
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// DISCARD requests are served (bit 13).
    pub const DISCARD: u64 = 1 << 13;
    /// WRITE_ZEROES requests are served (bit 14).
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Byte offsets of the fields in the configuration space.
pub mod offset {
    /// `capacity`, le64.
    pub const CAPACITY: usize = 0;
    /// `size_max`, le32.
    pub const SIZE_MAX: usize = 8;
    /// `seg_max`, le32.
    pub const SEG_MAX: usize = 12;
    /// `blk_size`, le32, behind the four bytes of `geometry`.
    pub const BLK_SIZE: usize = 20;
    /// `writeback`, u8, behind the eight bytes of `topology`.
    pub const WRITEBACK: usize = 32;
    /// `num_queues`, le16.
    pub const NUM_QUEUES: usize = 34;
    /// `max_discard_sectors`, le32.
    pub const MAX_DISCARD_SECTORS: usize = 36;
    /// `max_discard_seg`, le32.
    pub const MAX_DISCARD_SEG: usize = 40;
    /// `discard_sector_alignment`, le32.
    pub const DISCARD_SECTOR_ALIGNMENT: usize = 44;
    /// `max_write_zeroes_sectors`, le32.
    pub const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    /// `max_write_zeroes_seg`, le32.
    pub const MAX_WRITE_ZEROES_SEG: usize = 52;
    /// `write_zeroes_may_unmap`, u8.
    pub const WRITE_ZEROES_MAY_UNMAP: usize = 56;
}

/// `struct virtio_blk_config` (section 5.2.4), without geometry, topology, secure erase and zones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Size of the device in sectors.
    pub capacity: u64,
    /// Largest buffer in bytes; valid with [`feature::SIZE_MAX`].
    pub size_max: u32,
    /// Most buffers of a request; valid with [`feature::SEG_MAX`].
    pub seg_max: u32,
    /// Block size in bytes; valid with [`feature::BLK_SIZE`].
    pub blk_size: u32,
    /// 1: writes are volatile until flushed; 0: they are stable when completed. Valid with [`feature::CONFIG_WCE`].
    pub writeback: u8,
    /// Number of request queues; valid with VIRTIO_BLK_F_MQ.
    pub num_queues: u16,
    /// Most sectors of a DISCARD segment; valid with [`feature::DISCARD`].
    pub max_discard_sectors: u32,
    /// Most segments of a DISCARD request; valid with [`feature::DISCARD`].
    pub max_discard_seg: u32,
    /// Alignment of what is best discarded, in sectors; valid with [`feature::DISCARD`].
    pub discard_sector_alignment: u32,
    /// Most sectors of a WRITE_ZEROES segment; valid with [`feature::WRITE_ZEROES`].
    pub max_write_zeroes_sectors: u32,
    /// Most segments of a WRITE_ZEROES request; valid with [`feature::WRITE_ZEROES`].
    pub max_write_zeroes_seg: u32,
    /// Whether WRITE_ZEROES can deallocate sectors (0 or 1); valid with [`feature::WRITE_ZEROES`].
    pub write_zeroes_may_unmap: u8,
}

impl Config {
    /// Size on the wire, up to and including `unused1`.
    pub const SIZE: usize = 60;

    /// The bytes of the configuration space.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, offset::CAPACITY, self.capacity.to_le_bytes());
        le::put(&mut bytes, offset::SIZE_MAX, self.size_max.to_le_bytes());
        le::put(&mut bytes, offset::SEG_MAX, self.seg_max.to_le_bytes());
        le::put(&mut bytes, offset::BLK_SIZE, self.blk_size.to_le_bytes());
        le::put(&mut bytes, offset::WRITEBACK, [self.writeback]);
        le::put(&mut bytes, offset::NUM_QUEUES, self.num_queues.to_le_bytes());
        for (at, value) in [
            (offset::MAX_DISCARD_SECTORS, self.max_discard_sectors),
            (offset::MAX_DISCARD_SEG, self.max_discard_seg),
            (offset::DISCARD_SECTOR_ALIGNMENT, self.discard_sector_alignment),
            (offset::MAX_WRITE_ZEROES_SECTORS, self.max_write_zeroes_sectors),
            (offset::MAX_WRITE_ZEROES_SEG, self.max_write_zeroes_seg),
        ] {
            le::put(&mut bytes, at, value.to_le_bytes());
        }
        le::put(
            &mut bytes,
            offset::WRITE_ZEROES_MAY_UNMAP,
            [self.write_zeroes_may_unmap],
        );
        bytes
    }

    /// Reads a configuration. Any bytes are one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Config {
        Config {
            capacity: le::u64_at(bytes, offset::CAPACITY),
            size_max: le::u32_at(bytes, offset::SIZE_MAX),
            seg_max: le::u32_at(bytes, offset::SEG_MAX),
            blk_size: le::u32_at(bytes, offset::BLK_SIZE),
            writeback: bytes[offset::WRITEBACK],
            num_queues: le::u16_at(bytes, offset::NUM_QUEUES),
            max_discard_sectors: le::u32_at(bytes, offset::MAX_DISCARD_SECTORS),
            max_discard_seg: le::u32_at(bytes, offset::MAX_DISCARD_SEG),
            discard_sector_alignment: le::u32_at(bytes, offset::DISCARD_SECTOR_ALIGNMENT),
            max_write_zeroes_sectors: le::u32_at(bytes, offset::MAX_WRITE_ZEROES_SECTORS),
            max_write_zeroes_seg: le::u32_at(bytes, offset::MAX_WRITE_ZEROES_SEG),
            write_zeroes_may_unmap: bytes[offset::WRITE_ZEROES_MAY_UNMAP],
        }
    }
}

/// What a request asks for, the le32 `type` (section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RequestType {
    /// Read sectors into the data.
    In = 0,
    /// Write the data to sectors.
    Out = 1,
    /// Make completed writes stable.
    Flush = 4,
    /// Read the identity string.
    GetId = 8,
    /// The contents of sectors are no longer needed.
    Discard = 11,
    /// Sectors are to read as zeros.
    WriteZeroes = 13,
}

impl TryFrom<u32> for RequestType {
    type Error = u32;

    /// Answers the number itself if it is of no request that is known here.
    fn try_from(raw: u32) -> Result<RequestType, u32> {
        [
            RequestType::In,
            RequestType::Out,
            RequestType::Flush,
            RequestType::GetId,
            RequestType::Discard,
            RequestType::WriteZeroes,
        ]
        .into_iter()
        .find(|known| *known as u32 == raw)
        .ok_or(raw)
    }
}

/// The fixed start of `struct virtio_blk_req` (section 5.2.6): what the driver sends before the data. All values are raw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestHeader {
    /// A [`RequestType`], or anything.
    pub request_type: u32,
    /// The first sector, for reads and writes.
    pub sector: u64,
}

impl RequestHeader {
    /// Size on the wire.
    pub const SIZE: usize = 16;

    /// The bytes of the header; `reserved` is zero.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, 0, self.request_type.to_le_bytes());
        le::put(&mut bytes, 8, self.sector.to_le_bytes());
        bytes
    }

    /// Reads a header, ignoring `reserved`.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> RequestHeader {
        RequestHeader {
            request_type: le::u32_at(bytes, 0),
            sector: le::u64_at(bytes, 8),
        }
    }
}

/// `struct virtio_blk_discard_write_zeroes` (section 5.2.6): one segment of the data of such a request. All values are raw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The first sector.
    pub sector: u64,
    /// Number of sectors.
    pub num_sectors: u32,
    /// [`Segment::UNMAP`]; other bits mean nothing yet.
    pub flags: u32,
}

impl Segment {
    /// Size on the wire.
    pub const SIZE: usize = 16;
    /// Flag of a WRITE_ZEROES segment: the sectors may be deallocated.
    pub const UNMAP: u32 = 1;

    /// The bytes of the segment.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, 0, self.sector.to_le_bytes());
        le::put(&mut bytes, 8, self.num_sectors.to_le_bytes());
        le::put(&mut bytes, 12, self.flags.to_le_bytes());
        bytes
    }

    /// Reads a segment. Any bytes are one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Segment {
        Segment {
            sector: le::u64_at(bytes, 0),
            num_sectors: le::u32_at(bytes, 8),
            flags: le::u32_at(bytes, 12),
        }
    }
}

/// The last byte of a request, written by the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The request was wrong, or the device failed.
    IoErr = 1,
    /// The device does not serve such requests.
    Unsupp = 2,
}

impl TryFrom<u8> for Status {
    type Error = u8;

    /// Answers the byte itself if it is no status.
    fn try_from(raw: u8) -> Result<Status, u8> {
        [Status::Ok, Status::IoErr, Status::Unsupp]
            .into_iter()
            .find(|known| *known as u8 == raw)
            .ok_or(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_the_bytes_of_section_5_2_4() {
        let config = Config {
            capacity: 0x0102_0304_0506_0708,
            size_max: 0x1112_1314,
            seg_max: 0x2122_2324,
            blk_size: 0x3132_3334,
            writeback: 1,
            num_queues: 0x4142,
            max_discard_sectors: 0x5152_5354,
            max_discard_seg: 0x6162_6364,
            discard_sector_alignment: 0x7172_7374,
            max_write_zeroes_sectors: 0x8182_8384,
            max_write_zeroes_seg: 0x9192_9394,
            write_zeroes_may_unmap: 1,
        };
        #[rustfmt::skip]
        let golden = [
            8, 7, 6, 5, 4, 3, 2, 1,     // capacity
            0x14, 0x13, 0x12, 0x11,     // size_max
            0x24, 0x23, 0x22, 0x21,     // seg_max
            0, 0, 0, 0,                 // geometry
            0x34, 0x33, 0x32, 0x31,     // blk_size
            0, 0, 0, 0, 0, 0, 0, 0,     // topology
            1, 0, 0x42, 0x41,           // writeback, unused0, num_queues
            0x54, 0x53, 0x52, 0x51,     // max_discard_sectors
            0x64, 0x63, 0x62, 0x61,     // max_discard_seg
            0x74, 0x73, 0x72, 0x71,     // discard_sector_alignment
            0x84, 0x83, 0x82, 0x81,     // max_write_zeroes_sectors
            0x94, 0x93, 0x92, 0x91,     // max_write_zeroes_seg
            1, 0, 0, 0,                 // write_zeroes_may_unmap, unused1
        ];
        assert_eq!(config.encode(), golden);
        assert_eq!(Config::decode(&golden), config);
    }

    #[test]
    fn a_request_header_has_the_bytes_of_section_5_2_6() {
        let header = RequestHeader {
            request_type: 4,
            sector: 0x0102_0304_0506_0708,
        };
        let golden = [4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1];
        assert_eq!(header.encode(), golden);
        let mut reserved_set = golden;
        reserved_set[4..8].fill(0xff);
        assert_eq!(RequestHeader::decode(&reserved_set), header);
    }

    #[test]
    fn a_segment_has_the_bytes_of_section_5_2_6() {
        let segment = Segment {
            sector: 0x0102_0304_0506_0708,
            num_sectors: 0x1112_1314,
            flags: Segment::UNMAP,
        };
        let golden = [8, 7, 6, 5, 4, 3, 2, 1, 0x14, 0x13, 0x12, 0x11, 1, 0, 0, 0];
        assert_eq!(segment.encode(), golden);
        assert_eq!(Segment::decode(&golden), segment);
    }

    #[test]
    fn types_and_statuses_have_the_numbers_of_section_5_2_6_and_no_other_number_is_one() {
        let known = [0, 1, 4, 8, 11, 13];
        assert!((0..100).all(|raw| RequestType::try_from(raw).is_ok() == known.contains(&raw)));
        assert_eq!(RequestType::try_from(11), Ok(RequestType::Discard));
        assert_eq!(RequestType::try_from(u32::MAX), Err(u32::MAX));
        assert!((0..=u8::MAX).all(|raw| Status::try_from(raw).is_ok() == (raw < 3)));
    }
}
