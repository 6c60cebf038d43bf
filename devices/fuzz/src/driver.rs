//! The guest's driver: where it keeps its rings and buffers, and how it writes chains, good or bad.

use virtio_wire::ring::{
    self, AVAIL_ENTRY_SIZE, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, RING_ENTRIES_OFFSET,
    RING_IDX_OFFSET, UsedElement,
};

use crate::guest::{BUFFERS, BUFFERS_SIZE, Guest, PAGE, RINGS};
use crate::watch::Rings;

/// Room for one request: its readable bytes in the first half, its writable ones in the second.
const SLOT: u64 = 0x800;
/// The most bytes of either.
pub(crate) const SLOT_HALF: usize = 0x400;
const NR_SLOTS: u64 = BUFFERS_SIZE / SLOT;

/// A queue as its driver sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DriverQueue {
    pub(crate) rings: Rings,
    pub(crate) avail_idx: u16,
    used_seen: u16,
    next_descriptor: u16,
}

/// A driver's view of its queues.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) queues: Vec<DriverQueue>,
    next_slot: u64,
}

/// A request that was offered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offered {
    pub(crate) head: u16,
    /// Where its writable bytes lie.
    pub(crate) writable: u64,
}

/// How a request is laid into descriptors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Bits 0 and 1: cuts in the readable bytes; bits 2 and 3: cuts in the writable ones.
    pub(crate) cuts: u8,
    pub(crate) indirect: bool,
}

impl DriverQueue {
    /// Rings in the page that belongs to queue `index`.
    pub(crate) fn home(index: u64, size: u16) -> DriverQueue {
        let gpa = RINGS + index * PAGE;
        DriverQueue::at(Rings {
            size,
            descriptor_table: gpa,
            avail_ring: gpa + 0x800,
            used_ring: gpa + 0xa00,
        })
    }

    /// A queue that nothing was put into yet.
    pub(crate) fn at(rings: Rings) -> DriverQueue {
        DriverQueue {
            rings,
            avail_idx: 0,
            used_seen: 0,
            next_descriptor: 0,
        }
    }

    /// Zeros in all its parts, as section 4.2.3.2 asks of a driver.
    pub(crate) fn clear(&self, guest: &Guest) {
        for part in self.rings.parts() {
            let len = usize::try_from(part.end - part.start).expect("rings are small");
            guest.poke(part.start, &vec![0; len]);
        }
    }

    /// Puts descriptors into the table, one behind the other, and returns the index of the first. What they say, and
    /// where they say the chain goes on, is the caller's: `next` is relative to the first.
    pub(crate) fn write(&mut self, guest: &Guest, descriptors: &[Descriptor]) -> u16 {
        let size = self.rings.size.max(1);
        let head = self.next_descriptor % size;
        for (at, descriptor) in (0u16..).zip(descriptors) {
            let index = head.wrapping_add(at) % size;
            let next = head.wrapping_add(descriptor.next) % size;
            let place = u64::from(index) * Descriptor::SIZE as u64;
            let gpa = self.rings.descriptor_table.wrapping_add(place);
            guest.poke(gpa, &Descriptor { next, ..*descriptor }.encode());
            self.next_descriptor = (index + 1) % size;
        }
        head
    }

    /// Makes a descriptor available, whether there is such a one or not.
    pub(crate) fn make_available(&mut self, guest: &Guest, head: u16) {
        let slot = u64::from(self.avail_idx % self.rings.size.max(1));
        let entry = RING_ENTRIES_OFFSET + slot * AVAIL_ENTRY_SIZE;
        guest.poke(self.rings.avail_ring.wrapping_add(entry), &head.to_le_bytes());
        self.set_avail_idx(guest, self.avail_idx.wrapping_add(1));
    }

    /// Sets the available index, right or wrong.
    pub(crate) fn set_avail_idx(&mut self, guest: &Guest, idx: u16) {
        self.avail_idx = idx;
        let gpa = self.rings.avail_ring.wrapping_add(RING_IDX_OFFSET);
        guest.poke(gpa, &idx.to_le_bytes());
    }

    /// The used elements since the last call; the last ones, if there are more than entries.
    pub(crate) fn used(&mut self, guest: &Guest) -> Vec<UsedElement> {
        let idx = guest.peek_u16(self.rings.used_ring + RING_IDX_OFFSET);
        let mut used = Vec::new();
        if idx.wrapping_sub(self.used_seen) > self.rings.size {
            self.used_seen = idx.wrapping_sub(self.rings.size);
        }
        while self.used_seen != idx {
            let slot = u64::from(self.used_seen % self.rings.size) * ring::USED_ENTRY_SIZE;
            let gpa = self.rings.used_ring + RING_ENTRIES_OFFSET + slot;
            used.push(UsedElement::decode(&guest.peek(gpa)));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        used
    }
}

impl Driver {
    pub(crate) fn new(nr_queues: usize) -> Driver {
        let home = |index| DriverQueue::home(index, 8);
        Driver {
            queues: (0..nr_queues as u64).map(home).collect(),
            next_slot: 0,
        }
    }

    /// Offers a well-formed request, or nothing if it has more descriptors than the queue entries. Bytes beyond
    /// [`SLOT_HALF`] are left out.
    pub(crate) fn offer(
        &mut self,
        guest: &Guest,
        queue: u16,
        readable: &[u8],
        writable: usize,
        layout: Layout,
    ) -> Option<Offered> {
        let at = BUFFERS + self.next_slot * SLOT;
        self.next_slot = (self.next_slot + 1) % NR_SLOTS;
        let readable = &readable[..readable.len().min(SLOT_HALF)];
        let writable_at = at + SLOT_HALF as u64;
        guest.poke(at, readable);
        guest.poke(writable_at, &vec![0xa5; writable.min(SLOT_HALF)]);
        let mut descriptors = pieces(at, readable.len(), layout.cuts & 3, 0);
        let cuts = layout.cuts >> 2 & 3;
        descriptors.extend(pieces(writable_at, writable.min(SLOT_HALF), cuts, DESC_F_WRITE));
        let last = descriptors.len().checked_sub(1)?;
        for (next, descriptor) in (1..).zip(&mut descriptors[..last]) {
            descriptor.flags |= DESC_F_NEXT;
            descriptor.next = next;
        }
        let queue = self.queues.get_mut(usize::from(queue))?;
        if descriptors.len() > usize::from(queue.rings.size) {
            return None;
        }
        if layout.indirect {
            // The table lies in the queue's page, behind its rings.
            let slot = u64::from(queue.avail_idx) % 2;
            let table = queue.rings.used_ring.wrapping_add(0x440 + slot * 0xc0);
            let bytes: Vec<u8> = descriptors.iter().flat_map(Descriptor::encode).collect();
            guest.poke(table, &bytes);
            descriptors = vec![Descriptor {
                addr: table,
                len: u32::try_from(bytes.len()).ok()?,
                flags: DESC_F_INDIRECT,
                next: 0,
            }];
        }
        let head = queue.write(guest, &descriptors);
        queue.make_available(guest, head);
        Some(Offered {
            head,
            writable: writable_at,
        })
    }
}

/// `len` bytes at `gpa` in `cuts + 1` descriptors, or fewer if there are not so many bytes.
fn pieces(gpa: u64, len: usize, cuts: u8, flags: u16) -> Vec<Descriptor> {
    let piece = len.div_ceil(usize::from(cuts) + 1).max(1);
    let piece_at = |start: usize| Descriptor {
        addr: gpa + start as u64,
        len: u32::try_from(piece.min(len - start)).unwrap_or(0),
        flags,
        next: 0,
    };
    (0..len).step_by(piece).map(piece_at).collect()
}
