//! `struct virtio_balloon_stat` (virtio 1.3, section 5.5.6.2): 10 bytes, of which a buffer of the statistics queue has any
//! number, in any order.
//!
//! The specification names tags 0 to 9; 10 to 15 are those of Linux 6.12 (`include/uapi/linux/virtio_balloon.h`).

use crate::le;

/// What a statistic counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum StatTag {
    /// Bytes swapped in, since boot.
    SwapIn = 0,
    /// Bytes swapped out, since boot.
    SwapOut = 1,
    /// Major page faults, since boot.
    MajorFaults = 2,
    /// Page faults, since boot: the minor ones, or (Linux) all.
    MinorFaults = 3,
    /// Bytes not used for anything.
    FreeMemory = 4,
    /// Bytes of memory that the guest has.
    TotalMemory = 5,
    /// Bytes that new programs could have without swapping, as the guest estimates it.
    AvailableMemory = 6,
    /// Bytes that could be reclaimed without further input or output, such as cached file pages.
    DiskCaches = 7,
    /// Huge pages allocated from the reserved pool, since boot.
    HugetlbAllocations = 8,
    /// Huge pages that could not be allocated, since boot.
    HugetlbFailures = 9,
    /// Processes killed for want of memory, since boot.
    OomKills = 10,
    /// Allocations that had to wait for reclaim, since boot.
    AllocStalls = 11,
    /// Bytes looked at by background reclaim, since boot.
    AsyncScanned = 12,
    /// Bytes looked at by reclaim on behalf of an allocation, since boot.
    DirectScanned = 13,
    /// Bytes taken by background reclaim, since boot.
    AsyncReclaimed = 14,
    /// Bytes taken by reclaim on behalf of an allocation, since boot.
    DirectReclaimed = 15,
}

impl StatTag {
    /// All of them, by their numbers.
    pub const ALL: [StatTag; 16] = [
        StatTag::SwapIn,
        StatTag::SwapOut,
        StatTag::MajorFaults,
        StatTag::MinorFaults,
        StatTag::FreeMemory,
        StatTag::TotalMemory,
        StatTag::AvailableMemory,
        StatTag::DiskCaches,
        StatTag::HugetlbAllocations,
        StatTag::HugetlbFailures,
        StatTag::OomKills,
        StatTag::AllocStalls,
        StatTag::AsyncScanned,
        StatTag::DirectScanned,
        StatTag::AsyncReclaimed,
        StatTag::DirectReclaimed,
    ];

    /// The tag of this number; `None` for one that is not known (a device must ignore those).
    pub fn from_raw(raw: u16) -> Option<StatTag> {
        StatTag::ALL.get(usize::from(raw)).copied()
    }
}

/// One statistic as it is on the wire: the tag may be one that nobody here knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// le16 `tag`.
    pub tag: u16,
    /// le64 `val`.
    pub value: u64,
}

impl Stat {
    /// Size on the wire: packed, without padding.
    pub const SIZE: usize = 10;

    /// The bytes of the statistic.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, 0, self.tag.to_le_bytes());
        le::put(&mut bytes, 2, self.value.to_le_bytes());
        bytes
    }

    /// Reads a statistic. Any bytes are one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Stat {
        Stat {
            tag: le::u16_at(bytes, 0),
            value: le::u64_at(bytes, 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statistic_is_packed_into_ten_bytes() {
        let stat = Stat {
            tag: StatTag::AvailableMemory as u16,
            value: 0x0102_0304_0506_0708,
        };
        let golden = [6, 0, 8, 7, 6, 5, 4, 3, 2, 1];
        assert_eq!(stat.encode(), golden);
        assert_eq!(Stat::decode(&golden), stat);
    }

    #[test]
    fn tags_have_the_numbers_they_are_listed_by() {
        for (number, tag) in (0..).zip(StatTag::ALL) {
            assert_eq!(tag as u16, number);
            assert_eq!(StatTag::from_raw(number), Some(tag));
        }
        assert_eq!(StatTag::from_raw(16), None);
        assert_eq!(StatTag::from_raw(u16::MAX), None);
    }
}
