//! The block device (virtio 1.3, section 5.2) with one request queue.
//!
//! A request is checked, its chain kept, and the operation handed to a [`Disk`]; when the disk has finished it,
//! [`MmioTransport::finish_requests`] writes the status byte and returns the chain. In between the queue goes on, so
//! requests overlap and end in any order. A driver that resets the device gets none of them back: the reset lasts
//! until the disk is done with them ([`MmioTransport::is_resetting`]).
//!
//! A disk may put an operation off ([`Disk::admit`]), for a limit of its rate: then the request stays first in the queue.
//!
//! Writes are volatile until a FLUSH, unless the driver cannot flush or has chosen a write-through cache: then every
//! request that writes is followed by a flush before it ends (section 5.2.6.2).

mod counters;
mod disk;
mod request;
#[cfg(test)]
mod tests;

use virtio_wire::block::{Config, ID_SIZE, QUEUE_REQUEST, SECTOR_SIZE, Status, feature, offset};
use virtio_wire::device_id;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

pub use counters::Counters;
pub use disk::{Admission, Disk, DiskRange, Finished, Operation, OperationError, Tag, Unmap};
pub use request::RequestError;

use crate::device::{Served, VirtioDevice, read_config_bytes};
use crate::fault::{DeviceError, GuestFault};
use crate::mmio::{Completed, Effects, MmioTransport, QueueSet};
use crate::queue::{Buffers, Extent, KeptChain};
use request::{Rejection, Request};

/// Entries of the request queue.
const QUEUE_SIZES: [u16; 1] = [256];
/// Most operations that a disk has under way: one for each entry of the queue.
pub const MAX_IN_FLIGHT: usize = 256;
/// Most buffers of a request: what fits in the queue beside header and status.
const SEG_MAX: u32 = 254;
/// Largest buffer.
const SIZE_MAX: u32 = 4 << 20;
/// Most bytes of data in one request: below what one system call moves (`MAX_RW_COUNT`, 2 GiB - 4 KiB).
const MAX_DATA_LEN: usize = SEG_MAX as usize * SIZE_MAX as usize;
/// Most bytes that one WRITE_ZEROES request clears, so that a disk can do it by writing where nothing better exists.
pub const MAX_WRITE_ZEROES_LEN: u64 = 64 << 20;

const _: () = assert!(QUEUE_SIZES[0] as usize == MAX_IN_FLIGHT);
const _: () = assert!(MAX_DATA_LEN < 0x7fff_f000);

/// What a disk is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size in sectors of 512 bytes.
    pub capacity_sectors: u64,
    /// Size of its blocks in bytes, a power of two of at least 512: what requests should be multiples of.
    pub block_size: u32,
    /// Whether it can be written.
    pub access: DiskAccess,
    /// How it discards, if it does.
    pub discard: Option<DiscardLimits>,
}

/// Whether a disk can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskAccess {
    /// It can be read only.
    ReadOnly,
    /// It can be read and written.
    ReadWrite,
}

/// How a disk discards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// The unit that storage is given back in, in sectors: smaller or unaligned ranges are for nothing.
    pub alignment_sectors: u32,
}

/// What a disk says to GET_ID: ASCII, padded with zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskId([u8; ID_SIZE]);

impl DiskId {
    /// The identity `text`; `None` unless it has at most 20 bytes, all printable ASCII.
    pub fn new(text: &str) -> Option<DiskId> {
        let mut id = [0; ID_SIZE];
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        id.get_mut(..text.len())
            .filter(|_| printable)?
            .copy_from_slice(text.as_bytes());
        Some(DiskId(id))
    }
}

/// A block device.
#[derive(Debug)]
pub struct Block<D> {
    disk: D,
    limits: Limits,
    id: DiskId,
    cache: Cache,
    /// The driver may set [`Self::cache`].
    cache_is_settable: bool,
    in_flight: Vec<Option<InFlight>>,
    /// A chain is waiting for a place among [`Self::in_flight`].
    waiting: bool,
    /// The first chain of the queue was put off by the disk.
    put_off: bool,
    counters: Counters,
    last_error: Option<RequestError>,
}

/// Whether a write is stable when it is completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cache {
    /// Only after a flush.
    Writeback,
    /// At once.
    Writethrough,
}

/// A request that the disk is at.
#[derive(Debug)]
struct InFlight {
    chain: KeptChain,
    status: Extent,
    kind: Kind,
    data_len: u64,
    /// A flush has to follow before the request ends.
    flush_follows: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

impl<D: Disk> Block<D> {
    /// A device in front of `disk`, which is as `limits` say.
    pub fn new(disk: D, limits: Limits, id: DiskId) -> Block<D> {
        Block {
            disk,
            limits,
            id,
            cache: Cache::Writeback,
            cache_is_settable: false,
            in_flight: (0..MAX_IN_FLIGHT).map(|_| None).collect(),
            waiting: false,
            put_off: false,
            counters: Counters::default(),
            last_error: None,
        }
    }

    /// The disk behind it.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// What the disk is like.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What became of requests so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Number of requests that the disk is at.
    pub fn in_flight(&self) -> usize {
        self.in_flight.iter().flatten().count()
    }

    /// The last request that was wrong in itself.
    pub fn last_error(&self) -> Option<RequestError> {
        self.last_error
    }

    /// The configuration space as the driver sees it.
    pub fn config(&self) -> Config {
        let mut config = Config {
            capacity: self.limits.capacity_sectors,
            size_max: SIZE_MAX,
            seg_max: SEG_MAX,
            blk_size: self.limits.block_size,
            writeback: (self.cache == Cache::Writeback).into(),
            ..Config::default()
        };
        if let Some(discard) = self.limits.discard {
            config.max_discard_sectors = self.limits.max_discard_sectors().unwrap_or(0);
            config.max_discard_seg = 1;
            config.discard_sector_alignment = discard.alignment_sectors;
        }
        if self.limits.access == DiskAccess::ReadWrite {
            config.max_write_zeroes_sectors = self.limits.max_write_zeroes_sectors();
            config.max_write_zeroes_seg = 1;
            config.write_zeroes_may_unmap = self.limits.discard.is_some().into();
        }
        config
    }

    /// Hands an operation to the disk and keeps the chain.
    fn begin<M: GuestMemory>(
        &mut self,
        chain: &Buffers<'_, M>,
        status: Extent,
        operation: Operation,
    ) -> Served {
        let Some(place) = self.in_flight.iter().position(Option::is_none) else {
            // Only a driver that makes a descriptor available twice gets here.
            self.waiting = true;
            return Served::later();
        };
        if self.disk.admit(&operation) == Admission::Later {
            self.counters.throttled += u64::from(!std::mem::replace(&mut self.put_off, true));
            return Served::later();
        }
        self.put_off = false;
        let kind = Kind::of(&operation);
        self.in_flight[place] = Some(InFlight {
            chain: chain.keep(),
            status,
            kind,
            data_len: operation.data_len(),
            flush_follows: kind.writes() && self.cache == Cache::Writethrough,
        });
        self.disk.submit(Tag(place), operation);
        Served::kept()
    }

    /// The disk has finished an operation: what is left to do for its request, if it has come to its end.
    fn end(&mut self, finished: Finished) -> Option<(InFlight, Status)> {
        let place = self.in_flight.get_mut(finished.tag.0)?;
        let mut request = place.take()?;
        if request.flush_follows && finished.result.is_ok() {
            request.flush_follows = false;
            *place = Some(request);
            self.disk.submit(finished.tag, Operation::Flush);
            return None;
        }
        let status = match finished.result {
            Ok(()) => Status::Ok,
            Err(OperationError::Failed) => Status::IoErr,
            Err(OperationError::Unsupported) => Status::Unsupp,
        };
        self.counters.count(&request, status);
        Some((request, status))
    }
}

impl<D: Disk> VirtioDevice for Block<D> {
    fn device_id(&self) -> u32 {
        device_id::BLOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let always = feature::SIZE_MAX | feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH;
        let by_access = match self.limits.access {
            DiskAccess::ReadOnly => feature::RO,
            DiskAccess::ReadWrite => feature::CONFIG_WCE | feature::WRITE_ZEROES,
        };
        let discard = if self.limits.discard.is_some() {
            feature::DISCARD
        } else {
            0
        };
        always | by_access | discard
    }

    fn required_features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config().encode(), offset, data);
    }

    /// Takes the driver's choice of a cache, once it has been negotiated that it has one.
    fn write_config(&mut self, at: u64, data: &[u8]) {
        if let (true, true, &[writeback]) = (self.cache_is_settable, at == offset::WRITEBACK as u64, data) {
            self.cache = if writeback == 0 {
                Cache::Writethrough
            } else {
                Cache::Writeback
            };
        }
    }

    fn activate(&mut self, features: u64) {
        self.cache_is_settable = features & feature::CONFIG_WCE != 0;
        self.cache = if features & feature::FLUSH != 0 {
            Cache::Writeback
        } else {
            Cache::Writethrough
        };
    }

    fn serve<M: GuestMemory>(&mut self, _queue: u16, chain: &Buffers<'_, M>) -> Result<Served, DeviceError> {
        let status = match request::status_byte(chain) {
            Ok(status) => status,
            Err(fault) => return Ok(Served::refused(fault)),
        };
        Ok(match request::parse(chain, &self.limits) {
            Ok(Request::Disk(operation)) => self.begin(chain, status, operation),
            Ok(Request::Identity) => answer(chain, Status::Ok, &self.id.0),
            Ok(Request::Nothing) => answer(chain, Status::Ok, &[]),
            Err(Rejection::Request(error)) => {
                self.counters.refused += 1;
                self.last_error = Some(error);
                answer(chain, error.status(), &[])
            }
            Err(Rejection::Chain(fault)) => Served {
                fault: Some(fault),
                ..answer(chain, Status::IoErr, &[])
            },
        })
    }

    fn round_ended<M: GuestMemory>(&mut self, _mem: &M) -> Result<(), DeviceError> {
        self.disk.commit().map_err(disk_failed)
    }

    fn queues_due(&mut self) -> QueueSet {
        let has_room = self.in_flight.iter().any(Option::is_none);
        if self.waiting && has_room {
            self.waiting = false;
            QueueSet::one(QUEUE_REQUEST)
        } else {
            QueueSet::NONE
        }
    }

    fn reset(&mut self) {
        self.cache = Cache::Writeback;
        self.cache_is_settable = false;
        self.waiting = false;
        self.put_off = false;
    }
}

impl<D: Disk> MmioTransport<Block<D>> {
    /// Changes what the disk may do, or tells it that time has passed: what it has put off is asked for again. Guest memory
    /// is not touched.
    pub fn change_disk<R>(&mut self, change: impl FnOnce(&mut D) -> R) -> (R, Effects) {
        let result = change(&mut self.device_mut().disk);
        let effects = Effects {
            notified: QueueSet::one(QUEUE_REQUEST),
            ..Effects::NONE
        };
        (result, effects)
    }

    /// Returns the requests that the disk has finished since the last call. Touches guest memory: for the thread that
    /// processes queues.
    ///
    /// # Errors
    /// The disk cannot work any more. The machine should end.
    pub fn finish_requests<M: GuestMemory>(&mut self, mem: &M) -> Result<Effects, DeviceError> {
        let mut completed = Vec::new();
        while let Some(finished) = self.device_mut().disk.finished().map_err(disk_failed)? {
            let Some((request, status)) = self.device_mut().end(finished) else {
                continue;
            };
            // After a reset the memory is the driver's again, and it may be in use for something else.
            let fault = if self.awaits(&request.chain) {
                write_status(mem, request.chain.queue(), request.status, status).err()
            } else {
                None
            };
            completed.push(Completed {
                written: fault.map_or(request.written(status), |_| 0),
                chain: request.chain,
                fault,
            });
        }
        // What has ended may have brought a flush with it.
        self.device_mut().disk.commit().map_err(disk_failed)?;
        Ok(self.complete(mem, completed))
    }
}

/// Answers a request that the disk has nothing to do with: data from the start of the device-writable bytes on, and the
/// status at their end.
fn answer<M: GuestMemory>(chain: &Buffers<'_, M>, status: Status, data: &[u8]) -> Served {
    let last = chain.writable_len().saturating_sub(1);
    let written = chain
        .write(0, data)
        .and_then(|()| chain.write(last, &[status as u8]));
    match written {
        Err(unreachable) => Served::refused(unreachable),
        // Only what was written from the start on counts: a status behind data that was not written does not.
        Ok(()) if data.len() as u64 == last => Served::used(u32::try_from(last + 1).unwrap_or(0)),
        Ok(()) => Served::used(0),
    }
}

fn write_status<M: GuestMemory>(mem: &M, queue: u16, at: Extent, status: Status) -> Result<(), GuestFault> {
    mem.write_slice(&[status as u8], GuestAddress(at.gpa))
        .map_err(|_| GuestFault::BufferUnreachable {
            queue,
            gpa: at.gpa,
            len: 1,
        })
}

fn disk_failed(source: std::io::Error) -> DeviceError {
    DeviceError::Backend {
        device: "a disk",
        source,
    }
}

impl InFlight {
    /// Bytes written from the start of the device-writable ones on: a status behind a read that failed does not count
    /// (section 2.7.8.2).
    fn written(&self, status: Status) -> u32 {
        match (self.kind, status) {
            (Kind::Read, Status::Ok) => u32::try_from(self.data_len + 1).unwrap_or(u32::MAX),
            (Kind::Read, _) => 0,
            _ => 1,
        }
    }
}

impl Kind {
    fn of(operation: &Operation) -> Kind {
        match operation {
            Operation::Read { .. } => Kind::Read,
            Operation::Write { .. } => Kind::Write,
            Operation::Flush => Kind::Flush,
            Operation::Discard(_) => Kind::Discard,
            Operation::WriteZeroes(..) => Kind::WriteZeroes,
        }
    }

    fn writes(self) -> bool {
        matches!(self, Kind::Write | Kind::WriteZeroes)
    }
}

impl Limits {
    fn check_writable(&self) -> Result<(), RequestError> {
        match self.access {
            DiskAccess::ReadOnly => Err(RequestError::ReadOnly),
            DiskAccess::ReadWrite => Ok(()),
        }
    }

    /// # Errors
    /// The disk does not discard.
    fn max_discard_sectors(&self) -> Result<u32, RequestError> {
        let discard = virtio_wire::block::RequestType::Discard as u32;
        self.discard
            .map(|_| u32::try_from(self.capacity_sectors).unwrap_or(u32::MAX))
            .ok_or(RequestError::Unsupported(discard))
    }

    fn max_write_zeroes_sectors(&self) -> u32 {
        let most = self.capacity_sectors.min(MAX_WRITE_ZEROES_LEN / SECTOR_SIZE);
        u32::try_from(most).unwrap_or(u32::MAX)
    }
}
