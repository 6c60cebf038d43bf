//! Layout of a split virtqueue (virtio 1.3, section 2.7): descriptor table, available ring, used ring.
//!
//! Offsets and sizes are bytes. Queue sizes are numbers of entries: powers of two up to [`MAX_QUEUE_SIZE`].

use crate::le;

/// Largest number of entries of a queue (section 2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Alignment of the descriptor table.
pub const DESCRIPTOR_TABLE_ALIGN: u64 = 16;
/// Alignment of the available ring.
pub const AVAIL_RING_ALIGN: u64 = 2;
/// Alignment of the used ring.
pub const USED_RING_ALIGN: u64 = 4;

/// Descriptor flag: the chain goes on at `next`.
pub const DESC_F_NEXT: u16 = 1;
/// Descriptor flag: the device writes the buffer; without it the device reads it.
pub const DESC_F_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;

/// Flag of the available ring: the driver wants no notification of used buffers.
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Flag of the used ring: the device wants no notification of available buffers.
pub const USED_F_NO_NOTIFY: u16 = 1;

/// `flags` of the available and of the used ring.
pub const RING_FLAGS_OFFSET: u64 = 0;
/// `idx` of the available and of the used ring.
pub const RING_IDX_OFFSET: u64 = 2;
/// First entry of the available and of the used ring.
pub const RING_ENTRIES_OFFSET: u64 = 4;
/// Size of an entry of the available ring: the index of a descriptor, le16.
pub const AVAIL_ENTRY_SIZE: u64 = 2;
/// Size of an entry of the used ring: a [`UsedElement`].
pub const USED_ENTRY_SIZE: u64 = 8;

/// Size of a descriptor table with `queue_size` entries.
pub const fn descriptor_table_size(queue_size: u16) -> u64 {
    Descriptor::SIZE as u64 * queue_size as u64
}

/// Size of an available ring with `queue_size` entries, `used_event` included.
pub const fn avail_ring_size(queue_size: u16) -> u64 {
    used_event_offset(queue_size) + 2
}

/// Size of a used ring with `queue_size` entries, `avail_event` included.
pub const fn used_ring_size(queue_size: u16) -> u64 {
    avail_event_offset(queue_size) + 2
}

/// Where `used_event` lies in the available ring.
pub const fn used_event_offset(queue_size: u16) -> u64 {
    RING_ENTRIES_OFFSET + AVAIL_ENTRY_SIZE * queue_size as u64
}

/// Where `avail_event` lies in the used ring.
pub const fn avail_event_offset(queue_size: u16) -> u64 {
    RING_ENTRIES_OFFSET + USED_ENTRY_SIZE * queue_size as u64
}

/// Whether the other side wants to be notified, with `VIRTIO_F_EVENT_IDX` (sections 2.7.7 and 2.7.10).
///
/// `event` is what the other side asked for, `new_idx` the ring index now, `old_idx` the one at the last
/// notification. True if the index has passed `event` since; all arithmetic wraps at 16 bits.
pub const fn need_event(event: u16, new_idx: u16, old_idx: u16) -> bool {
    new_idx.wrapping_sub(event).wrapping_sub(1) < new_idx.wrapping_sub(old_idx)
}

/// One descriptor: a buffer in guest-physical memory (section 2.7.5). All values are raw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub addr: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// [`DESC_F_NEXT`], [`DESC_F_WRITE`], [`DESC_F_INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor of the chain, if [`DESC_F_NEXT`] is set.
    pub next: u16,
}

impl Descriptor {
    /// Size on the wire.
    pub const SIZE: usize = 16;

    /// The bytes of the descriptor in guest memory.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, 0, self.addr.to_le_bytes());
        le::put(&mut bytes, 8, self.len.to_le_bytes());
        le::put(&mut bytes, 12, self.flags.to_le_bytes());
        le::put(&mut bytes, 14, self.next.to_le_bytes());
        bytes
    }

    /// Reads a descriptor. Any bytes are a descriptor: the values are not checked.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Descriptor {
        Descriptor {
            addr: le::u64_at(bytes, 0),
            len: le::u32_at(bytes, 8),
            flags: le::u16_at(bytes, 12),
            next: le::u16_at(bytes, 14),
        }
    }
}

/// One entry of the used ring (section 2.7.8). All values are raw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsedElement {
    /// Index of the first descriptor of the chain that was used.
    pub id: u32,
    /// Number of bytes the device wrote into the chain's device-writable buffers.
    pub len: u32,
}

impl UsedElement {
    /// Size on the wire.
    pub const SIZE: usize = 8;

    /// The bytes of the entry in guest memory.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, 0, self.id.to_le_bytes());
        le::put(&mut bytes, 4, self.len.to_le_bytes());
        bytes
    }

    /// Reads an entry. Any bytes are an entry: the values are not checked.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> UsedElement {
        UsedElement {
            id: le::u32_at(bytes, 0),
            len: le::u32_at(bytes, 4),
        }
    }
}

const _: () = assert!(UsedElement::SIZE as u64 == USED_ENTRY_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_has_the_bytes_of_section_2_7_5() {
        let descriptor = Descriptor {
            addr: 0x0102_0304_0506_0708,
            len: 0x1122_3344,
            flags: DESC_F_NEXT | DESC_F_WRITE,
            next: 7,
        };
        let golden = [8, 7, 6, 5, 4, 3, 2, 1, 0x44, 0x33, 0x22, 0x11, 3, 0, 7, 0];
        assert_eq!(descriptor.encode(), golden);
        assert_eq!(Descriptor::decode(&golden), descriptor);
    }

    #[test]
    fn a_used_element_has_the_bytes_of_section_2_7_8() {
        let element = UsedElement {
            id: 0x0a0b_0c0d,
            len: 0x18,
        };
        let golden = [0x0d, 0x0c, 0x0b, 0x0a, 0x18, 0, 0, 0];
        assert_eq!(element.encode(), golden);
        assert_eq!(UsedElement::decode(&golden), element);
    }

    #[test]
    fn ring_sizes_are_those_of_the_table_in_section_2_7() {
        for order in 0..=15 {
            let queue_size: u16 = 1 << order;
            let entries = u64::from(queue_size);
            assert_eq!(descriptor_table_size(queue_size), 16 * entries);
            assert_eq!(avail_ring_size(queue_size), 6 + 2 * entries);
            assert_eq!(used_ring_size(queue_size), 6 + 8 * entries);
        }
    }

    #[test]
    fn an_event_is_needed_when_the_index_passes_it() {
        assert!(need_event(0, 1, 0));
        assert!(!need_event(1, 1, 0));
        assert!(need_event(1, 4, 0));
        assert!(!need_event(0, 4, 2));
    }

    #[test]
    fn an_event_is_found_across_the_wrap_of_the_index() {
        assert!(need_event(65535, 1, 65534));
        assert!(!need_event(65533, 1, 65534));
    }
}
