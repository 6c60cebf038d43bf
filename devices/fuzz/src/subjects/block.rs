//! The block device. Its disk does operations when the host says so, in any order, some of them with failure, and looks
//! whether each names memory that a chain offers.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use devices::DeviceError;
use devices::block::{
    Block, DiscardLimits, Disk, DiskAccess, DiskId, DiskRange, Finished, Limits, MAX_IN_FLIGHT, Operation,
    OperationError, Tag,
};
use devices::mmio::{Effects, MmioTransport};
use devices::queue::Extent;
use virtio_wire::block::{QUEUE_REQUEST, RequestHeader, RequestType};
use virtio_wire::mmio::Register;
use vm_memory::Permissions;

use super::{Stage, Subject, expect};
use crate::guest::Guest;
use crate::step::{Body, HostStep, RequestStep};
use crate::world::World;

const SECTOR: usize = 512;
const NR_SECTORS: usize = 32;

/// A disk that works step by step.
#[derive(Debug)]
struct SlowDisk {
    guest: Rc<Guest>,
    bytes: Vec<u8>,
    under_way: VecDeque<(Tag, Operation)>,
    finished: VecDeque<Finished>,
    failure: Option<OperationError>,
    /// How many operations come to their end with the next look.
    due: usize,
    /// Which of them first.
    turn: usize,
    /// What the device should not have asked.
    broken: Option<String>,
}

impl SlowDisk {
    fn judge(&self, tag: Tag, operation: &Operation) -> Result<(), String> {
        if tag.0 >= MAX_IN_FLIGHT || self.under_way.iter().any(|(other, _)| *other == tag) {
            return Err(format!("{tag:?} is no tag, or under way"));
        }
        let (offset, len) = match operation {
            Operation::Read { offset, .. } | Operation::Write { offset, .. } => {
                (*offset, operation.data_len())
            }
            Operation::Discard(range) | Operation::WriteZeroes(range, _) => (range.offset, range.len),
            Operation::Flush => return Ok(()),
        };
        let end = offset.checked_add(len).ok_or("its end overflows")?;
        let whole = offset.is_multiple_of(SECTOR as u64) && len.is_multiple_of(SECTOR as u64) && len > 0;
        if !whole || end > (NR_SECTORS * SECTOR) as u64 {
            return Err(format!(
                "{len} bytes at {offset} are not whole sectors of the disk"
            ));
        }
        let (extents, access) = match operation {
            Operation::Read { into, .. } => (into, Permissions::Write),
            Operation::Write { from, .. } => (from, Permissions::Read),
            _ => return Ok(()),
        };
        let offered = |extent: &Extent| {
            let range = extent.gpa..extent.gpa + extent.len as u64;
            self.guest.owns(extent.gpa, extent.len as u64) && self.guest.watch().is_offered(&range, access)
        };
        match extents.iter().find(|extent| !offered(extent)) {
            Some(extent) => Err(format!("no chain offers {extent:x?}")),
            None => Ok(()),
        }
    }

    fn perform(&mut self, operation: &Operation) {
        match operation {
            Operation::Read { offset, into } => {
                let mut at = usize::try_from(*offset).unwrap_or(0);
                for extent in into {
                    // What the guest was given back in the meantime is not the disk's any more.
                    let range = extent.gpa..extent.gpa + extent.len as u64;
                    if self.guest.watch().is_offered(&range, Permissions::Write) {
                        self.guest
                            .host_writes(extent.gpa, &self.bytes[at..at + extent.len]);
                    }
                    at += extent.len;
                }
            }
            Operation::Write { offset, from } => {
                let mut at = usize::try_from(*offset).unwrap_or(0);
                for extent in from {
                    let bytes = self.guest.peek_all(extent.gpa, extent.len as u64);
                    self.bytes[at..at + extent.len].copy_from_slice(&bytes);
                    at += extent.len;
                }
            }
            Operation::Discard(DiskRange { offset, len })
            | Operation::WriteZeroes(DiskRange { offset, len }, _) => {
                let start = usize::try_from(*offset).unwrap_or(0);
                self.bytes[start..start + usize::try_from(*len).unwrap_or(0)].fill(0);
            }
            Operation::Flush => {}
        }
    }
}

impl Disk for SlowDisk {
    fn submit(&mut self, tag: Tag, operation: Operation) {
        if let Err(why) = self.judge(tag, &operation) {
            self.broken.get_or_insert(format!("{operation:x?}: {why}"));
        }
        self.under_way.push_back((tag, operation));
    }

    fn commit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn finished(&mut self) -> io::Result<Option<Finished>> {
        if self.due == 0 || self.under_way.is_empty() || self.broken.is_some() {
            return Ok(self.finished.pop_front());
        }
        self.due -= 1;
        let place = self.turn % self.under_way.len();
        let Some((tag, operation)) = self.under_way.remove(place) else {
            return Ok(None);
        };
        let result = self.failure.map_or(Ok(()), Err);
        if result.is_ok() {
            self.perform(&operation);
        }
        Ok(Some(Finished { tag, result }))
    }
}

/// The block device.
#[derive(Debug)]
pub struct BlockSubject {
    /// What the host wants of the disk with the next look: how many operations, which first, with what failure.
    orders: Rc<std::cell::Cell<(usize, usize, Option<OperationError>)>>,
}

/// A disk that takes its orders from the host's side.
#[derive(Debug)]
pub struct Ordered {
    disk: SlowDisk,
    orders: Rc<std::cell::Cell<(usize, usize, Option<OperationError>)>>,
}

impl Disk for Ordered {
    fn submit(&mut self, tag: Tag, operation: Operation) {
        self.disk.submit(tag, operation);
    }

    fn commit(&mut self) -> io::Result<()> {
        self.disk.commit()
    }

    fn finished(&mut self) -> io::Result<Option<Finished>> {
        let (due, turn, failure) = self.orders.take();
        (self.disk.turn, self.disk.failure) = (turn, failure);
        self.disk.due = due;
        let finished = self.disk.finished();
        self.orders.set((self.disk.due, turn, failure));
        finished
    }
}

/// Lets the disk finish everything.
fn finish_all(world: &mut World<BlockSubject>) {
    // A write may bring a flush with it.
    for _ in 0..3 {
        world.subject.orders.set((2 * MAX_IN_FLIGHT, 0, None));
        world.with_host(|_, transport, guest| transport.finish_requests(guest));
        world.process_notified();
    }
    world.subject.orders.set((0, 0, None));
}

impl Subject for BlockSubject {
    type Device = Block<Ordered>;
    const NAME: &'static str = "block";
    const NR_QUEUES: usize = 1;
    const ASYNCHRONOUS: bool = true;

    fn new(guest: &Rc<Guest>) -> (BlockSubject, Block<Ordered>) {
        let orders = Rc::new(std::cell::Cell::new((0, 0, None)));
        let disk = SlowDisk {
            guest: Rc::clone(guest),
            bytes: vec![0xdd; NR_SECTORS * SECTOR],
            under_way: VecDeque::new(),
            finished: VecDeque::new(),
            failure: None,
            due: 0,
            turn: 0,
            broken: None,
        };
        let limits = Limits {
            capacity_sectors: NR_SECTORS as u64,
            block_size: 512,
            access: DiskAccess::ReadWrite,
            discard: Some(DiscardLimits { alignment_sectors: 8 }),
        };
        let ordered = Ordered {
            disk,
            orders: Rc::clone(&orders),
        };
        let device = Block::new(ordered, limits, DiskId::new("fuzz").unwrap_or_default());
        (BlockSubject { orders }, device)
    }

    fn host(
        &mut self,
        step: &HostStep,
        transport: &mut MmioTransport<Block<Ordered>>,
        guest: &Guest,
    ) -> Result<Effects, DeviceError> {
        let failure = match step.choice % 8 {
            0 => Some(OperationError::Failed),
            1 => Some(OperationError::Unsupported),
            _ => None,
        };
        let turn = usize::from(step.choice >> 3);
        self.orders.set((1 + step.data.len() % 8, turn, failure));
        let effects = transport.finish_requests(guest);
        self.orders.set((0, 0, None));
        effects
    }

    fn settle(world: &mut World<BlockSubject>) {
        finish_all(world);
    }

    fn body(&self, step: &RequestStep) -> Body {
        let request_type = match step.kind % 8 {
            0 | 1 => RequestType::In as u32,
            2 | 3 => RequestType::Out as u32,
            4 => RequestType::Flush as u32,
            5 => RequestType::GetId as u32,
            6 => [RequestType::Discard as u32, RequestType::WriteZeroes as u32][usize::from(step.kind >> 7)],
            _ => step.number,
        };
        let header = RequestHeader {
            request_type,
            sector: u64::from(step.number) % (NR_SECTORS as u64 + 2),
        };
        let mut readable = header.encode().to_vec();
        let mut writable = 1;
        match step.kind % 8 {
            0 | 1 => writable += SECTOR,
            2 | 3 => readable.extend([step.kind; SECTOR]),
            5 => writable += 20,
            6 => {
                readable.extend(u64::from(step.number % 40).to_le_bytes());
                readable.extend((step.data.len() as u64 % 40).to_le_bytes());
            }
            _ => readable.extend(&step.data),
        }
        if step.kind & 0x40 != 0 {
            readable.truncate(step.data.len());
        }
        Body {
            queue: QUEUE_REQUEST,
            readable,
            writable,
        }
    }

    fn check(&self, transport: &MmioTransport<Block<Ordered>>) -> Result<(), String> {
        let disk = &transport.device().disk().disk;
        if let Some(broken) = &disk.broken {
            return Err(broken.clone());
        }
        expect(
            "the number of requests in flight",
            &transport.device().in_flight(),
            &(disk.under_way.len() + disk.finished.len()),
        )?;
        let mut status = [0; 4];
        transport.read(Register::Status.offset(), &mut status);
        if status == [0; 4] && !disk.under_way.is_empty() {
            return Err("a reset is over, but the disk is still at work".to_owned());
        }
        Ok(())
    }

    fn good(world: &mut World<BlockSubject>, _stage: Stage) -> Result<(), String> {
        finish_all(world);
        let header = |request_type: RequestType| {
            let request_type = request_type as u32;
            RequestHeader {
                request_type,
                sector: 3,
            }
            .encode()
        };
        let data = [0x5a; SECTOR];
        let write = world.offer(QUEUE_REQUEST, &[&header(RequestType::Out)[..], &data].concat(), 1)?;
        world.process_notified();
        finish_all(world);
        expect("a write's status", &write.collect(world)?[..], &[0])?;
        let read = world.offer(QUEUE_REQUEST, &header(RequestType::In), SECTOR + 1)?;
        world.process_notified();
        finish_all(world);
        let answer = read.collect(world)?;
        expect("what was read", &answer[..], &[&data[..], &[0]].concat()[..])
    }
}
