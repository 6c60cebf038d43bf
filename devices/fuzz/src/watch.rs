//! The watch over guest memory: every access of the device is held against what the rings offer at that moment.
//!
//! It reads the rings itself (see [`crate::chain`]), at the moment when the device takes an entry of the available ring,
//! so that a guest whose buffers lie over its own rings is judged by what the device could know. What it keeps a queue:
//! the chains that the device holds, the next entry of the available ring, and the next of the used ring.

use std::ops::Range;

use virtio_wire::ring::{
    self, AVAIL_ENTRY_SIZE, RING_ENTRIES_OFFSET, RING_FLAGS_OFFSET, RING_IDX_OFFSET, UsedElement,
};
use vm_memory::Permissions;

use crate::chain::{Offer, follow};
use crate::guest::{Guest, PAGE, RINGS, RINGS_SIZE};
use crate::violation::Violation;

/// Bytes of one chain that may be page numbers.
const NAMES_LIMIT: u64 = 64 << 10;
/// So many calls in a row for nothing are no accident: what made a queue due may have been taken by the call before.
const IDLE_CALLS: u8 = 8;

/// How much one call may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub(crate) accesses: u64,
    pub(crate) bytes: u64,
}

/// Where a queue in use lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rings {
    pub(crate) size: u16,
    pub(crate) descriptor_table: u64,
    pub(crate) avail_ring: u64,
    pub(crate) used_ring: u64,
}

impl Rings {
    /// Descriptor table, available ring, used ring.
    pub(crate) fn parts(&self) -> [Range<u64>; 3] {
        [
            (self.descriptor_table, ring::descriptor_table_size(self.size)),
            (self.avail_ring, ring::avail_ring_size(self.size)),
            (self.used_ring, ring::used_ring_size(self.size)),
        ]
        .map(|(gpa, size)| gpa..gpa.saturating_add(size))
    }

    fn used_entry(&self, idx: u16) -> u64 {
        self.used_ring + RING_ENTRIES_OFFSET + u64::from(idx % self.size) * ring::USED_ENTRY_SIZE
    }

    /// Position of an access in the available ring, if it is one to an entry.
    fn avail_slot(&self, access: &Range<u64>) -> Option<u16> {
        let offset = access.start.checked_sub(self.avail_ring + RING_ENTRIES_OFFSET)?;
        let slot = u16::try_from(offset / AVAIL_ENTRY_SIZE).ok()?;
        let entry = access.end - access.start == AVAIL_ENTRY_SIZE && offset.is_multiple_of(AVAIL_ENTRY_SIZE);
        (entry && slot < self.size).then_some(slot)
    }
}

/// A chain that the device holds.
#[derive(Debug)]
struct Held {
    head: u16,
    offer: Offer,
    written: u64,
    /// Chains of this name that came back while there were several.
    returns: usize,
}

/// A queue as the harness sees it.
#[derive(Debug, Default)]
struct Queue {
    rings: Option<Rings>,
    held: Vec<Held>,
    next_avail: u16,
    next_used: u16,
    /// The used index has been accessed for writing: what it says is looked at before anything else happens.
    returned: bool,
    /// Chains taken and returned in this call.
    taken: u16,
    used: u16,
    /// Calls in a row that took no chain and asked for another.
    idle: u8,
    /// The guest lets the device write over a used ring by way of buffers or other rings: what the ring says proves nothing.
    blurred: bool,
}

/// All of a device's queues, and what went wrong first.
#[derive(Debug)]
pub(crate) struct Watch {
    queues: Vec<Queue>,
    violation: Option<Violation>,
    budget: Budget,
    accesses: u64,
    bytes: u64,
    /// The queue that is being processed.
    current: Option<u16>,
    /// Accesses for writing in this call.
    written: Vec<(u64, usize)>,
    /// The guest had the device write over its driver's rings by way of a buffer.
    pub(crate) rings_overwritten: bool,
    /// The device returns chains in its own time: one that is still held may have been put back, or not.
    asynchronous: bool,
    /// Pages that a chain has named so far, as its buffers to write or by number in what it says; see
    /// [`Guest::page_bit`].
    named_pages: u64,
}

/// What became of one call to process a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) notified_again: bool,
    pub(crate) interrupt: bool,
    /// The driver is still using the device.
    pub(crate) live: bool,
    /// The device has failed, or completes chains in its own time: what is held may stay so.
    pub(crate) may_hold: bool,
    pub(crate) event_idx: bool,
}

impl Watch {
    pub(crate) fn new(nr_queues: usize, asynchronous: bool) -> Watch {
        Watch {
            queues: (0..nr_queues).map(|_| Queue::default()).collect(),
            violation: None,
            budget: Budget {
                accesses: 0,
                bytes: 0,
            },
            accesses: 0,
            bytes: 0,
            current: None,
            written: Vec::new(),
            rings_overwritten: false,
            asynchronous,
            named_pages: 0,
        }
    }

    /// A queue is ready, with these rings, or is so no longer.
    pub(crate) fn set_rings(&mut self, queue: u16, rings: Option<Rings>) {
        if let Some(slot) = self.queues.get_mut(usize::from(queue)) {
            *slot = Queue {
                rings,
                ..Queue::default()
            };
        }
        let parts: Vec<[Range<u64>; 3]> = self.rings().map(|rings| rings.parts()).collect();
        for queue in &mut self.queues {
            let Some(rings) = queue.rings else { continue };
            let used = &rings.parts()[2];
            let overlaps = parts.iter().flatten().filter(|part| overlap(part, used)).count();
            queue.blurred |= overlaps > 1;
        }
    }

    /// Whether a queue is ready.
    pub(crate) fn is_ready(&self, queue: u16) -> bool {
        self.rings_of(queue).is_some()
    }

    pub(crate) fn rings_of(&self, queue: u16) -> Option<Rings> {
        self.queues.get(usize::from(queue)).and_then(|queue| queue.rings)
    }

    fn rings(&self) -> impl Iterator<Item = Rings> + '_ {
        self.queues.iter().filter_map(|queue| queue.rings)
    }

    /// Records what is wrong, unless something was wrong before.
    pub(crate) fn blame(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    /// What went wrong first.
    pub(crate) fn take_violation(&mut self) -> Option<Violation> {
        self.violation.take()
    }

    /// A call into the device begins; `current` is the queue it processes.
    pub(crate) fn begin(&mut self, current: Option<u16>, budget: Budget) {
        (self.budget, self.accesses, self.bytes) = (budget, 0, 0);
        self.current = current;
        for queue in &mut self.queues {
            (queue.taken, queue.used) = (0, 0);
        }
    }

    /// The call is over.
    pub(crate) fn end(&mut self, guest: &Guest) {
        self.settle(guest);
        self.current = None;
        for (gpa, len) in std::mem::take(&mut self.written) {
            guest.saw(gpa, len);
        }
    }

    /// Judges a call that processed a queue.
    pub(crate) fn judge(&mut self, guest: &Guest, index: u16, round: Round) {
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return;
        };
        let Some(rings) = queue.rings else { return };
        let flags = guest.peek_u16(rings.avail_ring + RING_FLAGS_OFFSET);
        let wants = !round.event_idx && flags & ring::AVAIL_F_NO_INTERRUPT == 0;
        queue.idle = if round.notified_again && queue.taken == 0 {
            queue.idle + 1
        } else {
            0
        };
        let mut found = None;
        if !queue.blurred {
            if wants && queue.used > 0 && !round.interrupt {
                found = Some(Violation::NotInterrupted { queue: index });
            } else if queue.idle >= IDLE_CALLS || (round.notified_again && !round.live) {
                found = Some(Violation::Spins { queue: index });
            } else if !round.may_hold && queue.held.len() > 1 {
                let head = queue.held[0].head;
                found = Some(Violation::Swallowed { queue: index, head });
            }
        }
        if !round.may_hold {
            // What is still held was put back: it comes again.
            queue.next_avail = queue.next_avail.wrapping_sub(u16::from(!queue.held.is_empty()));
            queue.held.clear();
        }
        if let Some(violation) = found {
            self.blame(violation);
        }
    }

    /// A range was checked. False if the device has done too much in this call.
    pub(crate) fn checked(&mut self) -> bool {
        self.accesses += 1;
        let within = self.accesses <= self.budget.accesses && self.bytes <= self.budget.bytes;
        if !within {
            let Budget { accesses, bytes } = self.budget;
            self.blame(Violation::Unbounded { accesses, bytes });
        }
        within
    }

    /// An access to memory that the guest has. False if there is no place in memory for it.
    pub(crate) fn accessed(&mut self, guest: &Guest, gpa: u64, len: usize, access: Permissions) -> bool {
        self.settle(guest);
        self.bytes = self.bytes.saturating_add(len as u64);
        let range = gpa..gpa.saturating_add(len as u64);
        if range.is_empty() {
            return true;
        }
        if access.has_write() {
            self.written.push((gpa, len));
            if !self.may_write(&range) {
                self.blame(Violation::Write { gpa, len });
            }
        }
        if access == Permissions::Read || access == Permissions::ReadWrite {
            self.take(guest, &range);
            if !self.may_read(&range) {
                self.blame(Violation::Read { gpa, len });
            }
        }
        true
    }

    fn may_write(&mut self, range: &Range<u64>) -> bool {
        let mut may = false;
        for queue in &mut self.queues {
            for held in &mut queue.held {
                if within_any(&held.offer.writable, range) {
                    held.written += range.end - range.start;
                    self.rings_overwritten |= overlap(range, &(RINGS..RINGS + RINGS_SIZE));
                    may = true;
                }
            }
            let Some(rings) = queue.rings else { continue };
            may |= within(&rings.parts()[2], range);
            let idx = rings.used_ring + RING_IDX_OFFSET;
            queue.returned |= *range == (idx..idx + 2) && !queue.blurred;
        }
        may
    }

    /// Whether a chain that the device holds offers the range: for the host, which moves data past the watch.
    pub(crate) fn is_offered(&self, range: &Range<u64>, access: Permissions) -> bool {
        let mut held = self.queues.iter().flat_map(|queue| &queue.held);
        held.any(|held| {
            let spans = if access.has_write() {
                &held.offer.writable
            } else {
                &held.offer.readable
            };
            within_any(spans, range)
        })
    }

    /// The host itself has written into a buffer.
    pub(crate) fn host_wrote(&mut self, range: &Range<u64>) {
        self.rings_overwritten |= overlap(range, &(RINGS..RINGS + RINGS_SIZE));
        for held in self.queues.iter_mut().flat_map(|queue| &mut queue.held) {
            if within_any(&held.offer.writable, range) {
                held.written += range.end - range.start;
            }
        }
    }

    /// Pages that chains have named so far; see [`Guest::page_bit`].
    pub(crate) fn named_pages(&self) -> u64 {
        self.named_pages
    }

    /// A queue that has returned chains in this call although the driver was not told.
    pub(crate) fn uninterrupted(&self, guest: &Guest) -> Option<u16> {
        let wants = |queue: &Queue| {
            let rings = queue.rings?;
            let flags = guest.peek_u16(rings.avail_ring + RING_FLAGS_OFFSET);
            (!queue.blurred && queue.used > 0 && flags & ring::AVAIL_F_NO_INTERRUPT == 0).then_some(())
        };
        let found = self.queues.iter().position(|queue| wants(queue).is_some())?;
        u16::try_from(found).ok()
    }

    fn may_read(&self, range: &Range<u64>) -> bool {
        let in_rings = |rings: &Rings| rings.parts().iter().any(|part| within(part, range));
        self.queues.iter().any(|queue| {
            queue.rings.as_ref().is_some_and(in_rings)
                || queue.held.iter().any(|held| {
                    within_any(&held.offer.readable, range) || within_any(&held.offer.tables, range)
                })
        })
    }

    /// If the access is one to an entry of the available ring of the queue being processed: the device takes that chain.
    fn take(&mut self, guest: &Guest, range: &Range<u64>) {
        let Some(index) = self.current else { return };
        let used_rings: Vec<Range<u64>> = self.rings().map(|rings| rings.parts()[2].clone()).collect();
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return;
        };
        let Some((rings, slot)) = queue
            .rings
            .and_then(|rings| Some((rings, rings.avail_slot(range)?)))
        else {
            return;
        };
        let put_back = queue.next_avail.wrapping_sub(1);
        let comes_again = slot != queue.next_avail % rings.size && slot == put_back % rings.size;
        if self.asynchronous && comes_again {
            queue.next_avail = put_back;
            queue.held.pop();
        }
        let expected = queue.next_avail % rings.size;
        queue.next_avail = queue.next_avail.wrapping_add(1);
        queue.taken += 1;
        let head = guest.peek_u16(range.start);
        if head < rings.size {
            let offer = follow(guest, rings.descriptor_table, rings.size, head);
            self.named_pages |= named_pages(guest, &offer);
            let blurs = |span: &Range<u64>| used_rings.iter().any(|used| overlap(span, used));
            let blurred = offer.writable.iter().any(blurs);
            queue.held.push(Held {
                head,
                offer,
                written: 0,
                returns: 0,
            });
            self.queues.iter_mut().for_each(|queue| queue.blurred |= blurred);
        }
        if slot != expected && !self.queues[usize::from(index)].blurred {
            let queue = index;
            self.blame(Violation::OutOfTurn {
                queue,
                slot,
                expected,
            });
        }
    }

    /// Looks at used rings whose index has just been written.
    fn settle(&mut self, guest: &Guest) {
        for at in 0..self.queues.len() {
            if !std::mem::take(&mut self.queues[at].returned) {
                continue;
            }
            let index = u16::try_from(at).unwrap_or(u16::MAX);
            if let Err(violation) = self.queues[at].give_back(guest, index) {
                self.blame(violation);
            }
        }
    }
}

impl Queue {
    /// The device has moved the used index: one chain goes back to the driver.
    fn give_back(&mut self, guest: &Guest, queue: u16) -> Result<(), Violation> {
        let Some(rings) = self.rings else { return Ok(()) };
        let idx = guest.peek_u16(rings.used_ring + RING_IDX_OFFSET);
        let expected = self.next_used.wrapping_add(1);
        if idx != expected {
            return Err(Violation::UsedIndex { queue, idx, expected });
        }
        let element = UsedElement::decode(&guest.peek(rings.used_entry(self.next_used)));
        self.next_used = expected;
        self.used += 1;
        let UsedElement { id, len } = element;
        // A guest may make a descriptor available again while the device holds it. Then there are several of that name, and
        // which of them came back cannot be told: they stay until all have.
        let named = |held: &&mut Held| u32::from(held.head) == id;
        let mut group: Vec<&mut Held> = self.held.iter_mut().filter(named).collect();
        let written = group.iter().map(|held| held.written).max();
        let size = group.len();
        let (Some(first), Some(written)) = (group.first_mut(), written) else {
            return Err(Violation::UsedUnknown { queue, id });
        };
        first.returns += 1;
        if first.returns == size {
            self.held.retain(|held| u32::from(held.head) != id);
        }
        if u64::from(len) > written {
            return Err(Violation::UsedLength {
                queue,
                id,
                len,
                written,
            });
        }
        Ok(())
    }
}

fn within(outer: &Range<u64>, inner: &Range<u64>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

fn within_any(outer: &[Range<u64>], inner: &Range<u64>) -> bool {
    outer.iter().any(|outer| within(outer, inner))
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The pages that lie in an offer's buffers to write as a whole, and those whose numbers are in its buffers to read.
fn named_pages(guest: &Guest, offer: &Offer) -> u64 {
    let whole = |span: &Range<u64>| {
        let first = span.start.div_ceil(PAGE);
        (first..span.end / PAGE)
            .take(64)
            .fold(0, |pages, page| pages | Guest::page_bit(page * PAGE))
    };
    let free = offer.writable.iter().fold(0, |pages, span| pages | whole(span));
    let mut text = Vec::new();
    for span in offer.readable.iter().filter(|span| !span.is_empty()) {
        let len = span.end - span.start;
        if text.len() as u64 + len > NAMES_LIMIT || !guest.owns(span.start, len) {
            break;
        }
        text.extend(guest.peek_all(span.start, len));
    }
    text.as_chunks::<4>().0.iter().fold(free, |pages, &pfn| {
        pages | Guest::page_bit(u64::from(u32::from_le_bytes(pfn)) * PAGE)
    })
}
