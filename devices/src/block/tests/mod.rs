//! The block device behind its registers, with a disk in memory that finishes operations when a test says so.

mod malformed;
mod model;
mod put_off;
mod requests;
mod resets;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use virtio_wire::block::{RequestHeader, RequestType, Segment, Status};
use virtio_wire::ring::UsedElement;
use virtio_wire::{feature as common, mmio::CONFIG_OFFSET};

use super::*;
use crate::testing::{Buffer, Driver, PatchyMemory, readable, writable};

/// Size of the disk.
pub(super) const SECTORS: u64 = 64;
/// Where a test's header, data and status lie.
pub(super) const HEADER: u64 = PatchyMemory::BASE + 0x8000;
pub(super) const DATA: u64 = PatchyMemory::BASE + 0x1_0000;
pub(super) const STATUS: u64 = PatchyMemory::BASE + 0x9000;
/// What a status byte is before the device writes it.
pub(super) const UNTOUCHED: u8 = 0xee;

/// What a disk holds, has to do, and has done.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) bytes: Vec<u8>,
    /// Submitted, not begun.
    pub(super) submitted: VecDeque<(Tag, Operation)>,
    /// Begun, not finished.
    pub(super) begun: VecDeque<(Tag, Operation)>,
    pub(super) finished: VecDeque<Finished>,
    /// Every operation, in the order of submission.
    pub(super) log: Vec<Operation>,
    /// The disk is broken altogether.
    pub(super) broken: bool,
    /// How many operations more it admits; `None`: all.
    pub(super) admits: Option<u32>,
}

/// A disk in memory.
#[derive(Clone)]
pub(super) struct MemDisk {
    pub(super) state: Rc<RefCell<State>>,
    mem: PatchyMemory,
}

impl MemDisk {
    fn new(mem: &PatchyMemory) -> MemDisk {
        let bytes = (0..SECTORS * SECTOR_SIZE)
            .map(|at| u8::try_from(at / SECTOR_SIZE).unwrap())
            .collect();
        MemDisk {
            state: Rc::new(RefCell::new(State {
                bytes,
                ..State::default()
            })),
            mem: mem.clone(),
        }
    }

    /// Does the operation at `place` of those begun, and has it finish so.
    pub(super) fn finish(&self, place: usize, result: Result<(), OperationError>) {
        let (tag, operation) = self.state.borrow_mut().begun.remove(place).unwrap();
        if result.is_ok() {
            self.carry_out(&operation);
        }
        self.state
            .borrow_mut()
            .finished
            .push_back(Finished { tag, result });
    }

    fn carry_out(&self, operation: &Operation) {
        let bytes = &mut self.state.borrow_mut().bytes;
        let at = |offset: u64| usize::try_from(offset).unwrap();
        match operation {
            Operation::Read { offset, into } => {
                let mut from = at(*offset);
                for extent in into {
                    self.mem.poke(extent.gpa, &bytes[from..from + extent.len]);
                    from += extent.len;
                }
            }
            Operation::Write { offset, from } => {
                let mut to = at(*offset);
                for extent in from {
                    for byte in 0..extent.len {
                        bytes[to] = self.mem.peek::<1>(extent.gpa + byte as u64)[0];
                        to += 1;
                    }
                }
            }
            Operation::WriteZeroes(range, _) => {
                bytes[at(range.offset)..at(range.offset + range.len)].fill(0);
            }
            Operation::Flush | Operation::Discard(_) => {}
        }
    }
}

impl Disk for MemDisk {
    fn admit(&mut self, _: &Operation) -> Admission {
        match &mut self.state.borrow_mut().admits {
            Some(0) => Admission::Later,
            Some(left) => {
                *left -= 1;
                Admission::Now
            }
            None => Admission::Now,
        }
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        let mut state = self.state.borrow_mut();
        let taken = state.submitted.iter().chain(&state.begun);
        assert!(taken.clone().all(|(other, _)| *other != tag), "{tag:?} twice");
        assert!(taken.count() < MAX_IN_FLIGHT);
        state.log.push(operation.clone());
        state.submitted.push_back((tag, operation));
    }

    fn commit(&mut self) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        if state.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let submitted = std::mem::take(&mut state.submitted);
        state.begun.extend(submitted);
        Ok(())
    }

    fn finished(&mut self) -> io::Result<Option<Finished>> {
        Ok(self.state.borrow_mut().finished.pop_front())
    }
}

/// A driver, and the disk that it reaches through the device.
pub(super) struct World {
    pub(super) driver: Driver<Block<MemDisk>>,
    pub(super) disk: MemDisk,
}

pub(super) fn read_write() -> Limits {
    Limits {
        capacity_sectors: SECTORS,
        block_size: 512,
        access: DiskAccess::ReadWrite,
        discard: Some(DiscardLimits { alignment_sectors: 8 }),
    }
}

pub(super) fn read_only() -> Limits {
    Limits {
        access: DiskAccess::ReadOnly,
        discard: None,
        ..read_write()
    }
}

impl World {
    /// A live device with all features accepted.
    pub(super) fn new(limits: Limits) -> World {
        let mut world = World::unready(limits);
        let features = world.driver.transport.device().features() | common::VERSION_1;
        world.driver.initialise(features);
        world
    }

    /// A device that no driver has touched.
    pub(super) fn unready(limits: Limits) -> World {
        let mem = PatchyMemory::new();
        let disk = MemDisk::new(&mem);
        let id = DiskId::new("disk of a test").unwrap();
        let driver = Driver::in_memory(Block::new(disk.clone(), limits, id), mem);
        World { driver, disk }
    }

    /// Offers a request with its header, these buffers in between, and its status; does not notify.
    pub(super) fn offer(&mut self, request_type: u32, sector: u64, data: &[Buffer]) {
        let header = RequestHeader { request_type, sector };
        self.driver.mem.poke(HEADER, &header.encode());
        self.driver.mem.poke(STATUS, &[UNTOUCHED]);
        let mut chain = vec![readable(HEADER, 16)];
        chain.extend(data);
        chain.push(writable(STATUS, 1));
        self.driver.offer(QUEUE_REQUEST, &chain);
    }

    /// Offers a request, notifies, and lets the disk finish all it has to do, one after the other.
    pub(super) fn request(&mut self, request_type: RequestType, sector: u64, data: &[Buffer]) -> Answer {
        self.offer(request_type as u32, sector, data);
        self.serve()
    }

    /// A DISCARD or WRITE_ZEROES request with these segments.
    pub(super) fn range_request(&mut self, request_type: RequestType, segments: &[Segment]) -> Answer {
        let bytes: Vec<u8> = segments.iter().flat_map(Segment::encode).collect();
        self.driver.mem.poke(DATA, &bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        self.request(request_type, 0, &[readable(DATA, len)])
    }

    /// Notifies, and lets the disk finish all it has to do, one after the other.
    pub(super) fn serve(&mut self) -> Answer {
        let mut effects = self.driver.kick(QUEUE_REQUEST);
        while !self.disk.state.borrow().begun.is_empty() {
            self.disk.finish(0, Ok(()));
            effects = effects.then(self.finish());
        }
        self.answer(effects)
    }

    /// The device takes what the disk has finished.
    pub(super) fn finish(&mut self) -> Effects {
        self.driver.transport.finish_requests(&self.driver.mem).unwrap()
    }

    pub(super) fn answer(&mut self, effects: Effects) -> Answer {
        let used = self.driver.used(QUEUE_REQUEST);
        assert_eq!(
            effects.interrupt,
            !used.is_empty(),
            "an interrupt for what was used"
        );
        Answer {
            status: self.status(),
            used,
        }
    }

    pub(super) fn status(&self) -> u8 {
        self.driver.mem.peek::<1>(STATUS)[0]
    }

    pub(super) fn log(&self) -> Vec<Operation> {
        self.disk.state.borrow().log.clone()
    }

    pub(super) fn device(&self) -> &Block<MemDisk> {
        self.driver.transport.device()
    }
}

/// What the driver sees of the end of requests.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u8,
    pub(super) used: Vec<UsedElement>,
}

impl Answer {
    /// The one request that was offered came back with this status and this length.
    #[track_caller]
    pub(super) fn is(&self, status: Status, len: u32) {
        assert_eq!(self.status, status as u8);
        assert_eq!(self.used.iter().map(|used| used.len).collect::<Vec<_>>(), [len]);
    }
}
