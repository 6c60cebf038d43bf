//! One queue of the balloon, with one request in it at most.

use super::PAGES_AT_ONCE;
use crate::dma::{DmaArea, DmaMemory};
use crate::fault::{DeviceFault, StartError};
use crate::queue::{Notify, Refused, Segment, VirtQueue};
use crate::transport::{Registers, Setup};
use crate::wake::WakerSet;
use virtio_wire::balloon::{PFN_SIZE, Queue};

/// A request is one descriptor.
const QUEUE_SIZE: u16 = 1;

/// Room for the page numbers of one request; statistics take less.
const BUFFER_BYTES: usize = PAGES_AT_ONCE * PFN_SIZE;

#[derive(Debug)]
pub(super) struct Channel<M> {
    pub(super) queue: Queue,
    /// Its number towards the device.
    pub(super) index: u16,
    pub(super) waiters: WakerSet,
    ring: VirtQueue<M, ()>,
    buffer: DmaArea<M>,
}

impl<M: DmaMemory + Clone> Channel<M> {
    pub(super) fn new<R: Registers>(
        setup: &Setup<'_, R>,
        memory: &M,
        queue: Queue,
        index: u16,
    ) -> Result<Self, StartError> {
        let size = setup.queue_size(index, QUEUE_SIZE..=QUEUE_SIZE)?;
        let ring = VirtQueue::new(memory.clone(), size)?;
        setup.install(index, ring.addresses())?;
        Ok(Self {
            queue,
            index,
            waiters: WakerSet::new(),
            ring,
            buffer: DmaArea::allocate(memory.clone(), BUFFER_BYTES)?,
        })
    }

    /// After a reset of the device: nothing is in the queue.
    pub(super) fn reset<R: Registers>(&mut self, setup: &Setup<'_, R>) -> Result<(), StartError> {
        setup.queue_size(self.index, QUEUE_SIZE..=QUEUE_SIZE)?;
        self.ring.reset();
        Ok(setup.install(self.index, self.ring.addresses())?)
    }
}

impl<M: DmaMemory> Channel<M> {
    /// What the device reaches.
    pub(super) fn areas(&self) -> [&DmaArea<M>; 2] {
        [self.ring.area(), &self.buffer]
    }

    pub(super) fn areas_mut(&mut self) -> [&mut DmaArea<M>; 2] {
        [self.ring.area_mut(), &mut self.buffer]
    }

    /// Whether the device has a request.
    pub(super) fn is_busy(&self) -> bool {
        self.ring.in_flight() > 0
    }

    /// Shows the device some bytes, at most as many as the buffer holds.
    pub(super) fn submit_bytes(&mut self, bytes: &[u8]) -> Result<Notify, DeviceFault> {
        let bytes = &bytes[..bytes.len().min(BUFFER_BYTES)];
        let start = self.buffer.at(0, bytes.len());
        self.buffer.memory().write_bytes(start, bytes);
        let len = u32::try_from(bytes.len()).expect("at most a page");
        match self.ring.submit(&[Segment { start, len }], &[], ()) {
            Ok(()) => Ok(self.ring.publish()),
            Err(Refused::Faulty { fault, .. }) => Err(fault.into()),
            // Not reached: the queue is idle, and has room for one request.
            Err(Refused::Full { .. }) => Ok(Notify::NotNeeded),
        }
    }

    /// Takes back what the device has returned. `woken` gets those who waited for it.
    pub(super) fn take_used(&mut self, woken: &mut WakerSet) -> Result<(), DeviceFault> {
        while self.ring.poll()?.is_some() {
            woken.append(self.waiters.take());
        }
        Ok(())
    }
}
