//! A guest's driver of one device, without a guest: rings in real guest memory, requests as Linux lays them out.

use devices::mmio::MmioTransport;
use devices::{DeviceError, VirtioDevice};
use virtio_wire::mmio::Register;
use virtio_wire::ring::{DESC_F_NEXT, DESC_F_WRITE, Descriptor, RING_ENTRIES_OFFSET, RING_IDX_OFFSET};
use vm_memory::{Bytes, GuestAddress};
use vmm::memory::CheckedMemory;

use crate::clock::{Sample, Stopwatch};

/// Where the rings of a queue and its buffers lie, a stretch for each queue.
const RINGS: u64 = 0x10_0000;
const STRETCH: u64 = 0x10_0000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x4000;
/// Room for the two buffers of a request.
const SLOT: u64 = 0x1000;
/// Where the buffer to write starts in it.
const WRITABLE: u64 = 0xc00;
/// Requests in one batch, at most: each takes two descriptors.
const BATCH: usize = 64;
const QUEUE_SIZE: u16 = 128;

/// A driver with its device.
pub(crate) struct Driver<D> {
    pub(crate) transport: MmioTransport<D>,
    memory: CheckedMemory,
    avail_idx: u16,
}

/// What the device reads, and how much it may write.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) readable: Vec<u8>,
    pub(crate) writable: u32,
}

impl<D: VirtioDevice> Driver<D> {
    /// A device whose driver is ready, and has accepted everything but the features of rings.
    pub(crate) fn new(device: D, memory: &CheckedMemory) -> Driver<D> {
        let queues = u32::try_from(device.queue_max_sizes().len()).unwrap_or(0);
        let mut driver = Driver {
            transport: MmioTransport::new(device),
            memory: memory.clone(),
            avail_idx: 0,
        };
        for status in [1, 3] {
            driver.write(Register::Status, status);
        }
        for word in [0, 1] {
            driver.write(Register::DeviceFeaturesSel, word);
            let mut offered = [0; 4];
            driver
                .transport
                .read(Register::DeviceFeatures.offset(), &mut offered);
            // Bits 28 and 29: indirect tables and EVENT_IDX.
            let plain = if word == 0 { !(3 << 28) } else { u32::MAX };
            driver.write(Register::DriverFeaturesSel, word);
            driver.write(Register::DriverFeatures, u32::from_le_bytes(offered) & plain);
        }
        driver.write(Register::Status, 11);
        (0..queues).for_each(|queue| driver.set_up(queue));
        driver.write(Register::Status, 15);
        assert!(
            driver.transport.is_live(),
            "the device does not accept its driver"
        );
        driver
    }

    fn set_up(&mut self, queue: u32) {
        let rings = RINGS + u64::from(queue) * STRETCH;
        self.write(Register::QueueSel, queue);
        self.write(Register::QueueSize, QUEUE_SIZE.into());
        for (register, part) in [
            (Register::QueueDescLow, rings),
            (Register::QueueDriverLow, rings + AVAIL),
            (Register::QueueDeviceLow, rings + USED),
        ] {
            self.write(register, u32::try_from(part).expect("rings lie below 4 GiB"));
        }
        self.write(Register::QueueReady, 1);
    }

    fn write(&mut self, register: Register, value: u32) {
        let _ = self
            .transport
            .write(&self.memory, register.offset(), &value.to_le_bytes());
    }

    /// Sends requests through queue `queue`, which is the only one used, and measures what the device takes for them.
    ///
    /// # Errors
    /// The host failed.
    pub(crate) fn send(&mut self, queue: u16, requests: &[Request]) -> Result<Sample, DeviceError> {
        let mut sample = Sample::default();
        for batch in requests.chunks(BATCH) {
            for (place, request) in (0..).zip(batch) {
                self.offer(queue, place, request);
            }
            let stopwatch = Stopwatch::start();
            let _ = self.transport.process_queue(&self.memory, queue)?;
            sample += stopwatch.stop(batch.len() as u64);
        }
        Ok(sample)
    }

    fn offer(&mut self, queue: u16, place: u16, request: &Request) {
        let rings = RINGS + u64::from(queue) * STRETCH;
        let buffer = rings + BUFFERS + u64::from(place) * SLOT;
        let head = 2 * place;
        let readable = Descriptor {
            addr: buffer,
            len: u32::try_from(request.readable.len()).expect("a request fits in its slot"),
            flags: if request.writable > 0 { DESC_F_NEXT } else { 0 },
            next: head + 1,
        };
        let writable = Descriptor {
            addr: buffer + WRITABLE,
            len: request.writable,
            flags: DESC_F_WRITE,
            next: 0,
        };
        self.put(buffer, &request.readable);
        self.put(
            rings + u64::from(head) * 16,
            &[readable.encode(), writable.encode()].concat(),
        );
        let slot = u64::from(self.avail_idx % QUEUE_SIZE);
        self.put(
            rings + AVAIL + RING_ENTRIES_OFFSET + 2 * slot,
            &head.to_le_bytes(),
        );
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.put(rings + AVAIL + RING_IDX_OFFSET, &self.avail_idx.to_le_bytes());
    }

    fn put(&self, gpa: u64, bytes: &[u8]) {
        let written = self.memory.write_slice(bytes, GuestAddress(gpa));
        written.expect("rings and buffers lie in boot memory");
    }
}
