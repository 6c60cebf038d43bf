//! A virtio-mmio device that does what the test says: well-behaved by default, and hostile on request.

use crate::dma::{DmaMemory, Gpa};
use crate::transport::Registers;
use core::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec::Vec;
use virtio_wire::mmio::{self, Register};
use virtio_wire::ring::{self, Descriptor, UsedElement};
use virtio_wire::{feature, status};

/// A control register access, in the order the driver made them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read(Register),
    Write(Register, u32),
    Config,
}

/// What the driver told the device about one queue, and how far the device is with it.
#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    size: u32,
    ready: u32,
    descriptors: u64,
    avail: u64,
    used: u64,
    next_avail: u16,
    next_used: u16,
}

/// One buffer of a chain: `(address, length, device-writable)`.
pub(crate) type Buffer = (Gpa, u32, bool);

#[derive(Debug)]
pub(crate) struct FakeDevice<'m, M> {
    pub(crate) memory: &'m M,
    pub(crate) magic: Cell<u32>,
    pub(crate) version: Cell<u32>,
    pub(crate) device_id: Cell<u32>,
    pub(crate) offered: Cell<u64>,
    /// The device keeps FEATURES_OK only if all of these were accepted.
    pub(crate) insists_on: Cell<u64>,
    pub(crate) queue_size_max: Cell<u32>,
    /// What the status register says right after a reset.
    pub(crate) reset_status: Cell<u32>,
    pub(crate) config: RefCell<Vec<u8>>,
    /// The generation changes at each of this many reads of the configuration.
    pub(crate) unsteady_reads: Cell<u32>,
    pub(crate) log: RefCell<Vec<Access>>,
    pub(crate) status: Cell<u32>,
    pub(crate) accepted: Cell<u64>,
    pub(crate) interrupt: Cell<u32>,
    generation: Cell<u32>,
    selected: RefCell<BTreeMap<u16, u32>>,
    queues: RefCell<BTreeMap<u32, Queue>>,
}

impl<'m, M: DmaMemory> FakeDevice<'m, M> {
    pub(crate) fn new(memory: &'m M, device_id: u32, features: u64) -> Self {
        Self {
            memory,
            magic: Cell::new(mmio::MAGIC),
            version: Cell::new(mmio::VERSION),
            device_id: Cell::new(device_id),
            offered: Cell::new(features | feature::VERSION_1),
            insists_on: Cell::new(0),
            queue_size_max: Cell::new(256),
            reset_status: Cell::new(0),
            config: RefCell::default(),
            unsteady_reads: Cell::new(0),
            log: RefCell::default(),
            status: Cell::new(0),
            accepted: Cell::new(0),
            interrupt: Cell::new(0),
            generation: Cell::new(0),
            selected: RefCell::default(),
            queues: RefCell::default(),
        }
    }

    /// The accesses since the last call.
    pub(crate) fn accesses(&self) -> Vec<Access> {
        self.log.take()
    }

    /// The values written to `register` since the last call of [`accesses`](Self::accesses).
    pub(crate) fn written(&self, register: Register) -> Vec<u32> {
        let log = self.log.borrow();
        let values = log.iter().filter_map(|access| match access {
            Access::Write(written, value) if *written == register => Some(*value),
            _ => None,
        });
        values.collect()
    }

    fn queue<T>(&self, index: u16, with: impl FnOnce(&mut Queue) -> T) -> T {
        with(self.queues.borrow_mut().entry(u32::from(index)).or_default())
    }

    pub(crate) fn queue_size(&self, index: u16) -> u32 {
        self.queue(index, |queue| queue.size)
    }

    /// Takes the next chain the driver made available on queue `index`: its head and its buffers.
    pub(crate) fn next_chain(&self, index: u16) -> Option<(u16, Vec<Buffer>)> {
        let mut queue = self.queue(index, |queue| *queue);
        assert_eq!(queue.ready, 1, "queue {index} is not ready");
        let avail_idx = self.memory.read16(Gpa::new(queue.avail + ring::RING_IDX_OFFSET));
        if avail_idx == queue.next_avail {
            return None;
        }
        let slot = u64::from(queue.next_avail) % u64::from(queue.size);
        let entry = queue.avail + ring::RING_ENTRIES_OFFSET + slot * ring::AVAIL_ENTRY_SIZE;
        let head = self.memory.read16(Gpa::new(entry));
        queue.next_avail = queue.next_avail.wrapping_add(1);
        self.queue(index, |kept| *kept = queue);
        Some((head, self.buffers(&queue, head)))
    }

    fn buffers(&self, queue: &Queue, head: u16) -> Vec<Buffer> {
        let mut buffers = Vec::new();
        let mut at = head;
        loop {
            assert!(
                u32::from(at) < queue.size && buffers.len() < 64,
                "bad chain from {head}"
            );
            let mut bytes = [0; Descriptor::SIZE];
            self.memory
                .read_bytes(Gpa::new(queue.descriptors + u64::from(at) * 16), &mut bytes);
            let descriptor = Descriptor::decode(&bytes);
            let is_writable = descriptor.flags & ring::DESC_F_WRITE != 0;
            buffers.push((Gpa::new(descriptor.addr), descriptor.len, is_writable));
            if descriptor.flags & ring::DESC_F_NEXT == 0 {
                return buffers;
            }
            at = descriptor.next;
        }
    }

    /// Returns a chain: writes the next used entry and the index, and raises the interrupt bit.
    pub(crate) fn use_chain(&self, index: u16, id: u32, len: u32) {
        let next_used = self.queue(index, |queue| {
            queue.next_used = queue.next_used.wrapping_add(1);
            queue.next_used
        });
        self.write_used(index, next_used.wrapping_sub(1), id, len);
        self.set_used_index(index, next_used);
        self.interrupt
            .set(self.interrupt.get() | mmio::INTERRUPT_USED_BUFFER);
    }

    /// Writes one used entry, wherever.
    pub(crate) fn write_used(&self, index: u16, position: u16, id: u32, len: u32) {
        let queue = self.queue(index, |queue| *queue);
        let slot = u64::from(position) % u64::from(queue.size);
        let entry = queue.used + ring::RING_ENTRIES_OFFSET + slot * ring::USED_ENTRY_SIZE;
        self.memory
            .write_bytes(Gpa::new(entry), &UsedElement { id, len }.encode());
    }

    /// Sets the used index, to whatever.
    pub(crate) fn set_used_index(&self, index: u16, value: u16) {
        let used = self.queue(index, |queue| queue.used);
        self.memory.write16(Gpa::new(used + ring::RING_IDX_OFFSET), value);
    }

    pub(crate) fn set_used_flags(&self, index: u16, value: u16) {
        let used = self.queue(index, |queue| queue.used);
        self.memory
            .write16(Gpa::new(used + ring::RING_FLAGS_OFFSET), value);
    }

    /// Whether the driver wants interrupts for used buffers of queue `index`.
    pub(crate) fn avail_flags(&self, index: u16) -> u16 {
        let avail = self.queue(index, |queue| queue.avail);
        self.memory.read16(Gpa::new(avail + ring::RING_FLAGS_OFFSET))
    }

    /// Raises a configuration interrupt.
    pub(crate) fn config_interrupt(&self) {
        self.generation.set(self.generation.get().wrapping_add(1));
        self.interrupt
            .set(self.interrupt.get() | mmio::INTERRUPT_CONFIG_CHANGE);
    }

    fn select(&self, register: Register) -> u32 {
        self.selected
            .borrow()
            .get(&(register as u16))
            .copied()
            .unwrap_or(0)
    }

    fn read_config(&self, offset: u64, len: usize) -> Vec<u8> {
        self.log.borrow_mut().push(Access::Config);
        if let Some(left) = self.unsteady_reads.get().checked_sub(1) {
            self.unsteady_reads.set(left);
            self.generation.set(self.generation.get().wrapping_add(1));
        }
        let at = usize::try_from(offset - mmio::CONFIG_OFFSET).unwrap();
        self.config.borrow()[at..at + len].to_vec()
    }

    fn write_status(&self, value: u32) {
        if value == status::RESET {
            self.status.set(self.reset_status.get());
            self.queues.borrow_mut().clear();
            self.accepted.set(0);
            self.interrupt.set(0);
            return;
        }
        let refused = value & status::FEATURES_OK != 0 && self.insists_on.get() & !self.accepted.get() != 0;
        self.status.set(if refused {
            value & !status::FEATURES_OK
        } else {
            value
        });
    }

    fn write_half(word: &mut u64, register: Register, low: Register, value: u32) {
        let shift = if register == low { 0 } else { 32 };
        *word = *word & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }

    fn write_queue(&self, register: Register, value: u32) {
        let selected = self.select(Register::QueueSel);
        let mut queues = self.queues.borrow_mut();
        let queue = queues.entry(selected).or_default();
        match register {
            Register::QueueSize => queue.size = value,
            Register::QueueReady => queue.ready = value,
            Register::QueueDescLow | Register::QueueDescHigh => {
                Self::write_half(&mut queue.descriptors, register, Register::QueueDescLow, value);
            }
            Register::QueueDriverLow | Register::QueueDriverHigh => {
                Self::write_half(&mut queue.avail, register, Register::QueueDriverLow, value);
            }
            Register::QueueDeviceLow | Register::QueueDeviceHigh => {
                Self::write_half(&mut queue.used, register, Register::QueueDeviceLow, value);
            }
            other => panic!("driver writes {value:#x} to {other:?}"),
        }
    }
}

impl<M: DmaMemory> Registers for FakeDevice<'_, M> {
    fn read32(&self, offset: u64) -> u32 {
        if offset >= mmio::CONFIG_OFFSET {
            return u32::from_le_bytes(self.read_config(offset, 4).try_into().unwrap());
        }
        let register = Register::from_offset(offset).expect("read of no register");
        self.log.borrow_mut().push(Access::Read(register));
        let queue = self
            .queues
            .borrow()
            .get(&self.select(Register::QueueSel))
            .copied()
            .unwrap_or_default();
        match register {
            Register::MagicValue => self.magic.get(),
            Register::Version => self.version.get(),
            Register::DeviceId => self.device_id.get(),
            Register::DeviceFeatures => {
                let half = self.offered.get() >> (32 * self.select(Register::DeviceFeaturesSel));
                u32::try_from(half & 0xffff_ffff).unwrap()
            }
            Register::QueueSizeMax => self.queue_size_max.get(),
            Register::QueueReady => queue.ready,
            Register::InterruptStatus => self.interrupt.get(),
            Register::Status => self.status.get(),
            Register::ConfigGeneration => self.generation.get(),
            other => panic!("driver reads {other:?}"),
        }
    }

    fn write32(&self, offset: u64, value: u32) {
        if offset >= mmio::CONFIG_OFFSET {
            self.log.borrow_mut().push(Access::Config);
            let at = usize::try_from(offset - mmio::CONFIG_OFFSET).unwrap();
            self.config.borrow_mut()[at..at + 4].copy_from_slice(&value.to_le_bytes());
            return;
        }
        let register = Register::from_offset(offset).expect("write to no register");
        self.log.borrow_mut().push(Access::Write(register, value));
        match register {
            Register::DeviceFeaturesSel | Register::DriverFeaturesSel | Register::QueueSel => {
                self.selected.borrow_mut().insert(register as u16, value);
            }
            Register::DriverFeatures => {
                let select = self.select(Register::DriverFeaturesSel);
                let kept = self.accepted.get() & !(0xffff_ffff << (32 * select));
                self.accepted.set(kept | u64::from(value) << (32 * select));
            }
            Register::Status => self.write_status(value),
            Register::InterruptAck => self.interrupt.set(self.interrupt.get() & !value),
            Register::QueueNotify => {}
            other => self.write_queue(other, value),
        }
    }

    fn read16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read_config(offset, 2).try_into().unwrap())
    }

    fn read8(&self, offset: u64) -> u8 {
        self.read_config(offset, 1)[0]
    }
}
