//! Where the three parts of a split queue lie inside one area of DMA memory.

use crate::dma::{DmaArea, DmaMemory, Gpa};
use crate::transport::QueueAddresses;
use virtio_wire::ring;

/// Offsets of the parts from the start of the area, in bytes, for a queue of `size` entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    size: u16,
    avail: usize,
    used: usize,
    end: usize,
}

impl Layout {
    /// The tightest layout that keeps the alignments of section 2.7: the table comes first, since areas are
    /// page-aligned.
    pub(super) const fn new(size: u16) -> Self {
        let avail = ring::Descriptor::SIZE * size as usize;
        let used =
            (avail + to_usize(ring::avail_ring_size(size))).next_multiple_of(to_usize(ring::USED_RING_ALIGN));
        Self {
            size,
            avail,
            used,
            end: used + to_usize(ring::used_ring_size(size)),
        }
    }

    /// Bytes in all.
    pub(super) const fn bytes(self) -> usize {
        self.end
    }

    pub(super) fn addresses<M: DmaMemory>(self, area: &DmaArea<M>) -> QueueAddresses {
        QueueAddresses {
            size: self.size,
            descriptors: area.at(0, self.avail),
            avail: area.at(self.avail, self.used - self.avail),
            used: area.at(self.used, self.end - self.used),
        }
    }

    pub(super) fn descriptor<M: DmaMemory>(self, area: &DmaArea<M>, index: u16) -> Gpa {
        area.at(
            usize::from(index) * ring::Descriptor::SIZE,
            ring::Descriptor::SIZE,
        )
    }

    /// Where `flags` (le16) of the available ring lies.
    pub(super) fn avail_flags<M: DmaMemory>(self, area: &DmaArea<M>) -> Gpa {
        area.at(self.avail + to_usize(ring::RING_FLAGS_OFFSET), 2)
    }

    /// Where `idx` (le16) of the available ring lies.
    pub(super) fn avail_idx<M: DmaMemory>(self, area: &DmaArea<M>) -> Gpa {
        area.at(self.avail + to_usize(ring::RING_IDX_OFFSET), 2)
    }

    /// Where the entry for the running number `position` lies in the available ring.
    pub(super) fn avail_entry<M: DmaMemory>(self, area: &DmaArea<M>, position: u16) -> Gpa {
        let entry = to_usize(ring::AVAIL_ENTRY_SIZE);
        area.at(
            self.avail + to_usize(ring::RING_ENTRIES_OFFSET) + self.slot(position) * entry,
            entry,
        )
    }

    /// Where `flags` (le16) of the used ring lies.
    pub(super) fn used_flags<M: DmaMemory>(self, area: &DmaArea<M>) -> Gpa {
        area.at(self.used + to_usize(ring::RING_FLAGS_OFFSET), 2)
    }

    /// Where `idx` (le16) of the used ring lies.
    pub(super) fn used_idx<M: DmaMemory>(self, area: &DmaArea<M>) -> Gpa {
        area.at(self.used + to_usize(ring::RING_IDX_OFFSET), 2)
    }

    /// Where the entry for the running number `position` lies in the used ring.
    pub(super) fn used_entry<M: DmaMemory>(self, area: &DmaArea<M>, position: u16) -> Gpa {
        let entry = to_usize(ring::USED_ENTRY_SIZE);
        area.at(
            self.used + to_usize(ring::RING_ENTRIES_OFFSET) + self.slot(position) * entry,
            entry,
        )
    }

    /// Running numbers wrap at 16 bits; sizes are powers of two.
    fn slot(self, position: u16) -> usize {
        usize::from(position & (self.size - 1))
    }
}

/// Ring sizes are below 2^20 bytes.
#[expect(clippy::cast_possible_truncation, reason = "ring sizes are below 2^20")]
const fn to_usize(bytes: u64) -> usize {
    bytes as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_aligned_and_do_not_overlap() {
        for exponent in 0..=15 {
            let size: u16 = 1 << exponent;
            let layout = Layout::new(size);
            let entries = usize::from(size);
            assert_eq!(layout.avail % 2, 0);
            assert_eq!(layout.used % 4, 0);
            assert!(layout.avail >= 16 * entries);
            assert!(layout.used >= layout.avail + 6 + 2 * entries);
            assert_eq!(layout.bytes(), layout.used + 6 + 8 * entries);
        }
    }
}
