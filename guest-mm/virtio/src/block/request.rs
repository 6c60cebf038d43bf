//! One request: what may be asked of a disk, and what its answer means.

use super::slots::Slot;
use super::{Access, DiskInfo, SECTOR_SIZE};
use crate::fault::DeviceFault;
use crate::queue::Segment;
use core::fmt;
use virtio_wire::block::Status;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Sectors into memory.
    Read,
    /// Memory into sectors.
    Write,
    /// What was written is to stay.
    Flush,
}

/// A request that was not taken, with its token.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused<T> {
    /// Why not.
    pub reason: Reason,
    /// What came with it.
    pub token: T,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// As many as there is room for are under way.
    Full,
    /// There are no such sectors, or not whole ones, or a flush with data.
    OutOfRange,
    /// More pieces of memory, or larger ones, than the device takes in one request.
    TooLarge,
    /// The disk cannot be written.
    ReadOnly,
    /// The device has broken down.
    Broken(DeviceFault),
}

/// What went wrong with a request that the device had. Of a write, any part may have been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// The device says that it failed.
    Failed,
    /// The device says that it does not serve such requests.
    Unsupported,
    /// The device's answer is none of the specification's; [`u8::MAX`] if it gave none.
    UnknownStatus {
        /// The answer.
        status: u8,
    },
    /// The device calls it done, and has written less than that takes.
    Short {
        /// Bytes that it says it wrote.
        written: u32,
    },
    /// The device was reset before it answered.
    Lost,
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed => f.write_str("the disk failed"),
            Self::Unsupported => f.write_str("the disk knows no such request"),
            Self::UnknownStatus { status } => write!(f, "the disk answered with status {status:#x}"),
            Self::Short { written } => write!(f, "the disk wrote only {written} bytes"),
            Self::Lost => f.write_str("the disk was reset"),
        }
    }
}

impl core::error::Error for BlockError {}

/// A request that the device has.
#[derive(Debug)]
pub(super) struct Pending<T> {
    pub(super) token: T,
    pub(super) operation: Operation,
    /// Bytes of data.
    pub(super) len: u64,
    /// Its header and status, as long as it is in the queue.
    pub(super) slot: Option<Slot>,
}

impl<T> Pending<T> {
    pub(super) fn new(token: T, operation: Operation, len: u64) -> Self {
        Self {
            token,
            operation,
            len,
            slot: None,
        }
    }
}

/// Bytes of data of a request that such a disk can be asked for.
pub(super) fn check(
    info: &DiskInfo,
    operation: Operation,
    sector: u64,
    data: &[Segment],
) -> Result<u64, Reason> {
    let len: u64 = data.iter().map(|segment| u64::from(segment.len)).sum();
    if operation == Operation::Flush {
        return if data.is_empty() {
            Ok(0)
        } else {
            Err(Reason::OutOfRange)
        };
    }
    if operation == Operation::Write && info.access == Access::ReadOnly {
        return Err(Reason::ReadOnly);
    }
    let is_whole = |segment: &Segment| segment.len > 0 && u64::from(segment.len).is_multiple_of(SECTOR_SIZE);
    let end = sector.checked_add(len / SECTOR_SIZE);
    if data.is_empty() || !data.iter().all(is_whole) || end.is_none_or(|end| end > info.capacity_sectors) {
        return Err(Reason::OutOfRange);
    }
    let fits = |segment: &Segment| segment.len <= info.max_segment_len;
    if data.len() > usize::from(info.max_segments) || !data.iter().all(fits) {
        return Err(Reason::TooLarge);
    }
    Ok(len)
}

/// What the device's answer means: its status byte, and how many bytes it says it wrote.
pub(super) fn outcome<T>(pending: &Pending<T>, status: Option<u8>, written: u32) -> Result<(), BlockError> {
    let status = status.unwrap_or(u8::MAX);
    match Status::try_from(status) {
        Ok(Status::IoErr) => Err(BlockError::Failed),
        Ok(Status::Unsupp) => Err(BlockError::Unsupported),
        Err(status) => Err(BlockError::UnknownStatus { status }),
        Ok(Status::Ok) => {
            // Behind what it has written nothing is to be believed (section 2.7.8.2).
            let data = if pending.operation == Operation::Read {
                pending.len
            } else {
                0
            };
            if u64::from(written) > data {
                Ok(())
            } else {
                Err(BlockError::Short { written })
            }
        }
    }
}
