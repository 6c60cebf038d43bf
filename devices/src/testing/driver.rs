//! A driver for tests: knows the protocol, can break every rule of it, and writes its rings byte by byte.

use std::ops::Range;

use virtio_wire::mmio::Register;
use virtio_wire::ring::{self, DESC_F_NEXT, DESC_F_WRITE, Descriptor, UsedElement};
use virtio_wire::{feature, status};

use super::PatchyMemory;
use crate::device::VirtioDevice;
use crate::mmio::{Effects, MmioTransport};

/// Entries of every queue.
const QUEUE_SIZE: u16 = 16;
/// Memory for the rings of one queue.
const RINGS_SIZE: u64 = 0x1000;

/// Where the parts of a queue lie, and how far the driver has come with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rings {
    pub(crate) size: u16,
    pub(crate) descriptor_table: u64,
    pub(crate) avail_ring: u64,
    pub(crate) used_ring: u64,
    avail_idx: u16,
    used_seen: u16,
    next_descriptor: u16,
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    pub(crate) gpa: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
}

/// A buffer the device reads.
pub(crate) fn readable(gpa: u64, len: u32) -> Buffer {
    Buffer { gpa, len, flags: 0 }
}

/// A buffer the device writes.
pub(crate) fn writable(gpa: u64, len: u32) -> Buffer {
    Buffer {
        gpa,
        len,
        flags: DESC_F_WRITE,
    }
}

/// A driver with its device and its memory.
pub(crate) struct Driver<D> {
    pub(crate) mem: PatchyMemory,
    pub(crate) transport: MmioTransport<D>,
    pub(crate) queues: Vec<Rings>,
}

impl<D: VirtioDevice> Driver<D> {
    /// A driver that has done nothing yet. Its rings have their places at the start of the memory.
    pub(crate) fn new(device: D) -> Driver<D> {
        Driver::in_memory(device, PatchyMemory::new())
    }

    /// The same in a memory that somebody else knows too.
    pub(crate) fn in_memory(device: D, mem: PatchyMemory) -> Driver<D> {
        let places =
            (0..device.queue_max_sizes().len() as u64).map(|index| PatchyMemory::BASE + index * RINGS_SIZE);
        Driver {
            queues: places.map(Rings::at).collect(),
            mem,
            transport: MmioTransport::new(device),
        }
    }

    /// A driver that has accepted everything it needs and is live.
    pub(crate) fn ready(device: D) -> Driver<D> {
        let features = device.features() | feature::VERSION_1;
        let mut driver = Driver::new(device);
        driver.initialise(features);
        driver
    }

    /// The whole sequence of section 3.1.1.
    pub(crate) fn initialise(&mut self, features: u64) {
        self.negotiate(features);
        assert!(
            self.status() & status::FEATURES_OK != 0,
            "features {features:#x} are accepted"
        );
        for index in 0..self.queues.len() {
            let _ = self.set_up_queue(index);
            assert_eq!(self.read(Register::QueueReady), 1);
        }
        let _ = self.write(Register::Status, 15);
        assert_eq!(self.status(), 15);
    }

    /// As far as FEATURES_OK.
    pub(crate) fn negotiate(&mut self, features: u64) {
        let _ = self.write(Register::Status, status::RESET);
        let _ = self.write(Register::Status, status::ACKNOWLEDGE);
        let _ = self.write(Register::Status, status::ACKNOWLEDGE | status::DRIVER);
        for (word, bits) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            let _ = self.write(Register::DriverFeaturesSel, word);
            let _ = self.write(Register::DriverFeatures, u32::try_from(bits).unwrap());
        }
        let _ = self.write(
            Register::Status,
            status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK,
        );
    }

    /// Tells the device where a queue lies and that it is ready, which the device may refuse.
    pub(crate) fn set_up_queue(&mut self, index: usize) -> Effects {
        let rings = &mut self.queues[index];
        (rings.avail_idx, rings.used_seen, rings.next_descriptor) = (0, 0, 0);
        let rings = *rings;
        // What a driver does for its queue: section 4.2.3.2 asks for zeroed memory.
        for (start, len) in rings.parts().map(|part| (part.start, part.end - part.start)) {
            if PatchyMemory::BASE <= start && start.saturating_add(len) <= PatchyMemory::END {
                self.mem.poke(start, &vec![0; usize::try_from(len).unwrap()]);
            }
        }
        let _ = self.write(Register::QueueSel, u32::try_from(index).unwrap());
        let _ = self.write(Register::QueueSize, rings.size.into());
        let _ = self.write64(
            Register::QueueDescLow,
            Register::QueueDescHigh,
            rings.descriptor_table,
        );
        let _ = self.write64(
            Register::QueueDriverLow,
            Register::QueueDriverHigh,
            rings.avail_ring,
        );
        let _ = self.write64(
            Register::QueueDeviceLow,
            Register::QueueDeviceHigh,
            rings.used_ring,
        );
        self.write(Register::QueueReady, 1)
    }

    /// Writes a chain into free descriptors and makes it available. Returns its first descriptor.
    pub(crate) fn offer(&mut self, queue: u16, buffers: &[Buffer]) -> u16 {
        let head = self.queues[usize::from(queue)].next_descriptor;
        for (at, buffer) in buffers.iter().enumerate() {
            let next = self.queues[usize::from(queue)].take_descriptor();
            let more = if at + 1 < buffers.len() { DESC_F_NEXT } else { 0 };
            let next_free = self.queues[usize::from(queue)].next_descriptor;
            let descriptor = Descriptor {
                addr: buffer.gpa,
                len: buffer.len,
                flags: buffer.flags | more,
                next: next_free,
            };
            self.write_descriptor(queue, next, descriptor);
        }
        self.make_available(queue, head);
        head
    }

    /// Writes one descriptor, right or wrong.
    pub(crate) fn write_descriptor(&mut self, queue: u16, index: u16, descriptor: Descriptor) {
        let table = self.queues[usize::from(queue)].descriptor_table;
        self.mem.poke(
            table + u64::from(index) * Descriptor::SIZE as u64,
            &descriptor.encode(),
        );
    }

    /// Puts a descriptor, right or wrong, into the available ring.
    pub(crate) fn make_available(&mut self, queue: u16, head: u16) {
        let rings = &mut self.queues[usize::from(queue)];
        let entry =
            ring::RING_ENTRIES_OFFSET + u64::from(rings.avail_idx % rings.size) * ring::AVAIL_ENTRY_SIZE;
        rings.avail_idx = rings.avail_idx.wrapping_add(1);
        let rings = *rings;
        self.mem.poke(rings.avail_ring + entry, &head.to_le_bytes());
        self.mem.poke(
            rings.avail_ring + ring::RING_IDX_OFFSET,
            &rings.avail_idx.to_le_bytes(),
        );
    }

    /// Sets the available index, right or wrong.
    pub(crate) fn set_avail_idx(&mut self, queue: u16, idx: u16) {
        let rings = &mut self.queues[usize::from(queue)];
        rings.avail_idx = idx;
        self.mem
            .poke(rings.avail_ring + ring::RING_IDX_OFFSET, &idx.to_le_bytes());
    }

    /// Sets the flags of the available ring.
    pub(crate) fn set_avail_flags(&mut self, queue: u16, flags: u16) {
        self.mem
            .poke(self.queues[usize::from(queue)].avail_ring, &flags.to_le_bytes());
    }

    /// Notifies the device and lets it process the queue until it has nothing left to do.
    pub(crate) fn kick(&mut self, queue: u16) -> Effects {
        let mut effects = self.write(Register::QueueNotify, queue.into());
        while !effects.notified.is_empty() {
            for index in std::mem::take(&mut effects.notified).iter() {
                effects = effects.then(self.transport.process_queue(&self.mem, index).unwrap());
            }
        }
        effects
    }

    /// The used entries that have come since the last call.
    pub(crate) fn used(&mut self, queue: u16) -> Vec<UsedElement> {
        let rings = &mut self.queues[usize::from(queue)];
        let idx = u16::from_le_bytes(self.mem.peek(rings.used_ring + ring::RING_IDX_OFFSET));
        let mut used = Vec::new();
        while rings.used_seen != idx {
            let entry = u64::from(rings.used_seen % rings.size) * ring::USED_ENTRY_SIZE;
            let bytes = self.mem.peek(rings.used_ring + ring::RING_ENTRIES_OFFSET + entry);
            used.push(UsedElement::decode(&bytes));
            rings.used_seen = rings.used_seen.wrapping_add(1);
        }
        used
    }

    pub(crate) fn read(&self, register: Register) -> u32 {
        let mut word = [0; 4];
        self.transport.read(register.offset(), &mut word);
        u32::from_le_bytes(word)
    }

    pub(crate) fn write(&mut self, register: Register, value: u32) -> Effects {
        self.transport
            .write(&self.mem, register.offset(), &value.to_le_bytes())
    }

    pub(crate) fn status(&self) -> u32 {
        self.read(Register::Status)
    }

    fn write64(&mut self, low: Register, high: Register, value: u64) -> Effects {
        let low_effects = self.write(low, u32::try_from(value & 0xffff_ffff).unwrap());
        low_effects.then(self.write(high, u32::try_from(value >> 32).unwrap()))
    }
}

impl Rings {
    /// Rings one behind the other from a page on.
    fn at(gpa: u64) -> Rings {
        Rings {
            size: QUEUE_SIZE,
            descriptor_table: gpa,
            avail_ring: gpa + 0x400,
            used_ring: gpa + 0x800,
            avail_idx: 0,
            used_seen: 0,
            next_descriptor: 0,
        }
    }

    /// The bytes of descriptor table, available ring and used ring.
    pub(crate) fn parts(&self) -> [Range<u64>; 3] {
        let sizes = [
            (self.descriptor_table, ring::descriptor_table_size(self.size)),
            (self.avail_ring, ring::avail_ring_size(self.size)),
            (self.used_ring, ring::used_ring_size(self.size)),
        ];
        sizes.map(|(gpa, size)| gpa..gpa.saturating_add(size))
    }

    /// The next chain starts at this descriptor.
    pub(crate) fn skip_to_descriptor(&mut self, index: u16) {
        self.next_descriptor = index;
    }

    fn take_descriptor(&mut self) -> u16 {
        let index = self.next_descriptor;
        self.next_descriptor = (index + 1) % self.size;
        index
    }
}
