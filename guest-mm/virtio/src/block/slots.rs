//! The headers and status bytes of requests under way, in memory that the device reaches.

use super::Operation;
use crate::dma::{DmaArea, DmaMemory, OutOfDmaMemory};
use crate::queue::Segment;
use alloc::vec::Vec;
use virtio_wire::block::{RequestHeader, RequestType};

/// Bytes from one slot to the next: a header, a status byte, and some to keep them aligned.
const STRIDE: usize = 32;
/// What a status byte is before the device writes it: none of the specification's.
const UNWRITTEN: u8 = 0xff;
/// Size of a header, for a descriptor.
const HEADER_BYTES: u32 = 16;
const _: () = assert!(HEADER_BYTES as usize == RequestHeader::SIZE && RequestHeader::SIZE < STRIDE);

/// The right to use one slot.
#[derive(Debug)]
pub(super) struct Slot(u16);

/// All slots.
#[derive(Debug)]
pub(super) struct Slots<M> {
    area: DmaArea<M>,
    idle: Vec<Slot>,
}

impl<M: DmaMemory> Slots<M> {
    pub(super) fn new(memory: &M, count: u16) -> Result<Self, OutOfDmaMemory>
    where
        M: Clone,
    {
        Ok(Self {
            area: DmaArea::allocate(memory.clone(), usize::from(count) * STRIDE)?,
            idle: (0..count).map(Slot).collect(),
        })
    }

    /// Where they are.
    pub(super) fn area(&self) -> &DmaArea<M> {
        &self.area
    }

    /// The same, to be exchanged for other memory while nothing is under way.
    pub(super) fn area_mut(&mut self) -> &mut DmaArea<M> {
        &mut self.area
    }

    pub(super) fn take(&mut self) -> Option<Slot> {
        self.idle.pop()
    }

    pub(super) fn give_back(&mut self, slot: Option<Slot>) {
        self.idle.extend(slot);
    }

    /// Writes the header of a request; returns where that and the status byte are.
    pub(super) fn prepare(&self, slot: &Slot, operation: Operation, sector: u64) -> [Segment; 2] {
        let request_type = match operation {
            Operation::Read => RequestType::In,
            Operation::Write => RequestType::Out,
            Operation::Flush => RequestType::Flush,
        };
        let header = RequestHeader {
            request_type: request_type as u32,
            sector,
        };
        let (at, status) = self.places(slot);
        self.area.memory().write_bytes(at, &header.encode());
        self.area.memory().write_bytes(status, &[UNWRITTEN]);
        let segment = |start, len| Segment { start, len };
        [segment(at, HEADER_BYTES), segment(status, 1)]
    }

    /// The status byte as it is now.
    pub(super) fn status(&self, slot: &Slot) -> u8 {
        let mut status = [0];
        self.area.memory().read_bytes(self.places(slot).1, &mut status);
        status[0]
    }

    fn places(&self, slot: &Slot) -> (crate::dma::Gpa, crate::dma::Gpa) {
        let offset = usize::from(slot.0) * STRIDE;
        let header = self.area.at(offset, RequestHeader::SIZE);
        (header, self.area.at(offset + RequestHeader::SIZE, 1))
    }
}
