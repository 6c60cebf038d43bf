//! Descriptor chains followed by the letter of virtio 1.3, section 2.7.5: the harness's own reading of what a chain offers.

use std::ops::Range;

use virtio_wire::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor};

use crate::guest::Guest;

/// What one chain offers to the device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offer {
    /// Indirect tables, which the device reads.
    pub(crate) tables: Vec<Range<u64>>,
    /// Buffers to read; none if the chain is malformed.
    pub(crate) readable: Vec<Range<u64>>,
    /// Buffers to write; none if the chain is malformed.
    pub(crate) writable: Vec<Range<u64>>,
}

/// Follows the chain that starts at `head` of a table with `size` entries.
pub(crate) fn follow(guest: &Guest, table: u64, size: u16, head: u16) -> Offer {
    let mut offer = Offer::default();
    if walk(guest, table, size, head, &mut offer).is_none() {
        offer.readable.clear();
        offer.writable.clear();
    }
    offer
}

/// `None` for a chain that the specification does not allow.
fn walk(guest: &Guest, table: u64, size: u16, head: u16, offer: &mut Offer) -> Option<()> {
    let (mut table, mut entries, mut index) = (table, size, head);
    let mut indirect = false;
    let mut total: u32 = 0;
    // Each descriptor that holds a buffer counts; the one that names the indirect table does not.
    let mut buffers = 0;
    loop {
        if index >= entries || buffers == size {
            return None;
        }
        let at = table.checked_add(u64::from(index) * Descriptor::SIZE as u64)?;
        if !guest.owns(at, Descriptor::SIZE as u64) {
            return None;
        }
        let descriptor = Descriptor::decode(&guest.peek(at));
        if descriptor.flags & DESC_F_INDIRECT != 0 {
            let count = descriptor.len / 16;
            if indirect || !descriptor.len.is_multiple_of(16) {
                return None;
            }
            let end = descriptor.addr.saturating_add(descriptor.len.into());
            offer.tables.push(descriptor.addr..end);
            (table, entries, index) = (descriptor.addr, u16::try_from(count).ok()?, 0);
            indirect = true;
            continue;
        }
        buffers += 1;
        // Not longer than 2^32 bytes in all (section 2.7.5.2).
        total = total.checked_add(descriptor.len)?;
        // A buffer that wraps around has no place in memory: nothing there can be accessed.
        let span = descriptor.addr..descriptor.addr.saturating_add(descriptor.len.into());
        if descriptor.flags & DESC_F_WRITE != 0 {
            offer.writable.push(span);
        } else if offer.writable.is_empty() {
            offer.readable.push(span);
        } else {
            return None;
        }
        if descriptor.flags & DESC_F_NEXT == 0 {
            return Some(());
        }
        index = descriptor.next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{BUFFERS, LOW_SIZE};

    /// A table at 0x1000 of (address, length, flags, next).
    fn offer(size: u16, head: u16, table: &[(u64, u32, u16, u16)]) -> Offer {
        let guest = Guest::new(0, false);
        write(&guest, 0x1000, table);
        follow(&guest, 0x1000, size, head)
    }

    fn write(guest: &Guest, at: u64, table: &[(u64, u32, u16, u16)]) {
        for (place, &(addr, len, flags, next)) in (0..).zip(table) {
            let descriptor = Descriptor {
                addr,
                len,
                flags,
                next,
            };
            guest.poke(at + place * 16, &descriptor.encode());
        }
    }

    #[test]
    fn a_chain_offers_what_its_descriptors_say() {
        let offer = offer(4, 2, &[(0, 0, 0, 0), (80, 8, 2, 0), (64, 16, 1, 1)]);
        assert_eq!(offer.readable, vec![64..80; 1]);
        assert_eq!(offer.writable, vec![80..88; 1]);
    }

    #[test]
    fn a_malformed_chain_offers_nothing() {
        let outside = LOW_SIZE - 16;
        for (why, size, head, table) in [
            ("loop", 2, 0, vec![(64, 8, 1, 0)]),
            ("leaves the table", 2, 0, vec![(64, 8, 1, 2)]),
            ("read after write", 4, 0, vec![(64, 8, 3, 1), (64, 8, 0, 0)]),
            ("too long", 4, 0, vec![(64, u32::MAX, 1, 1), (64, 1, 0, 0)]),
            ("odd indirect table", 4, 0, vec![(64, 17, 4, 0)]),
            ("empty indirect table", 4, 0, vec![(64, 0, 4, 0)]),
            ("table beyond memory", 4, 0, vec![(outside, 32, 4, 0)]),
        ] {
            let offer = offer(size, head, &table);
            let nothing = offer.readable.is_empty() && offer.writable.is_empty();
            assert!(nothing || why == "table beyond memory", "{why}: {offer:?}");
        }
    }

    #[test]
    fn an_indirect_table_is_followed_once() {
        let guest = Guest::new(0, false);
        write(&guest, 0x1000, &[(BUFFERS, 32, 4, 0)]);
        write(&guest, BUFFERS, &[(64, 8, 1, 1), (80, 8, 2, 0)]);
        let offer = follow(&guest, 0x1000, 4, 0);
        assert_eq!(
            (offer.readable, offer.writable),
            (vec![64..72; 1], vec![80..88; 1])
        );
        assert_eq!(offer.tables, vec![BUFFERS..BUFFERS + 32; 1]);
        write(&guest, BUFFERS, &[(BUFFERS, 32, 4, 0)]);
        assert!(follow(&guest, 0x1000, 4, 0).readable.is_empty());
    }
}
