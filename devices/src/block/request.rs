//! Requests: from the bytes of a chain to something that the disk can be asked for, or to what is wrong.

use virtio_wire::block::{ID_SIZE, RequestHeader, RequestType, SECTOR_SIZE, Segment, Status};
use vm_memory::GuestMemory;

use super::disk::{DiskRange, Operation, Unmap};
use super::{Limits, MAX_DATA_LEN};
use crate::fault::GuestFault;
use crate::queue::{Buffers, Extent};

/// What is wrong with a request in itself: its chain was in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The type is none that this device serves.
    #[error("request type {0} is not served")]
    Unsupported(u32),
    /// The disk cannot be written.
    #[error("the disk is read-only")]
    ReadOnly,
    /// Data that is not whole sectors, or for GET_ID not 20 bytes, or for DISCARD and WRITE_ZEROES not one segment.
    #[error("{0} bytes of data are no length for such a request")]
    DataLength(u64),
    /// More data than `seg_max` buffers of `size_max`.
    #[error("{0} bytes of data are more than a request may have")]
    TooLong(u64),
    /// Sectors beyond the end of the disk, or more than the limit of such requests.
    #[error("{count} sectors from sector {sector} on are not on the disk, or too many")]
    Sectors {
        /// The first one.
        sector: u64,
        /// How many.
        count: u64,
    },
    /// Flags of a segment that mean nothing, or nothing to this request.
    #[error("segment flags {0:#x} are not known")]
    Flags(u32),
}

impl RequestError {
    /// What the driver is told (virtio 1.3, section 5.2.6.2).
    pub fn status(self) -> Status {
        match self {
            RequestError::Unsupported(_) | RequestError::Flags(_) => Status::Unsupp,
            RequestError::ReadOnly
            | RequestError::DataLength(_)
            | RequestError::TooLong(_)
            | RequestError::Sectors { .. } => Status::IoErr,
        }
    }
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejection {
    /// The chain is malformed.
    Chain(GuestFault),
    /// The request is wrong.
    Request(RequestError),
}

impl From<GuestFault> for Rejection {
    fn from(fault: GuestFault) -> Rejection {
        Rejection::Chain(fault)
    }
}

impl From<RequestError> for Rejection {
    fn from(error: RequestError) -> Rejection {
        Rejection::Request(error)
    }
}

/// A request that can be served.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// By the disk.
    Disk(Operation),
    /// By the device itself, with its identity.
    Identity,
    /// There is nothing to do.
    Nothing,
}

/// Where the status goes: the last device-writable byte.
///
/// # Errors
/// There is none, or it is not in memory: then the guest cannot even be told.
pub(super) fn status_byte<M: GuestMemory>(chain: &Buffers<'_, M>) -> Result<Extent, GuestFault> {
    let none = GuestFault::ShortChain {
        queue: chain.queue(),
        len: 0,
        needed: 1,
    };
    let last = chain.writable_len().checked_sub(1).ok_or(none)?;
    chain.writable_extents(last, 1)?.pop().ok_or(none)
}

/// Reads the request of a chain that has a status byte.
pub(super) fn parse<M: GuestMemory>(chain: &Buffers<'_, M>, limits: &Limits) -> Result<Request, Rejection> {
    let mut header = [0; RequestHeader::SIZE];
    chain.read(0, &mut header)?;
    let RequestHeader { request_type, sector } = RequestHeader::decode(&header);
    let request_type = RequestType::try_from(request_type).map_err(RequestError::Unsupported)?;
    let sent = chain.readable_len() - RequestHeader::SIZE as u64;
    let room = chain.writable_len() - 1;
    let one_way = |other_way: u64| match other_way {
        0 => Ok(()),
        _ => Err(GuestFault::WrongDirection { queue: chain.queue() }),
    };
    match request_type {
        RequestType::In => {
            one_way(sent)?;
            let (offset, len) = limits.transfer(sector, room)?;
            let into = chain.writable_extents(0, len)?;
            Ok(not_empty(&into).unwrap_or(Request::Disk(Operation::Read { offset, into })))
        }
        RequestType::Out => {
            limits.check_writable()?;
            one_way(room)?;
            let (offset, len) = limits.transfer(sector, sent)?;
            let from = chain.readable_extents(RequestHeader::SIZE as u64, len)?;
            Ok(not_empty(&from).unwrap_or(Request::Disk(Operation::Write { offset, from })))
        }
        // Data has no place here, but does no harm either (the driver SHOULD NOT).
        RequestType::Flush => Ok(Request::Disk(Operation::Flush)),
        RequestType::GetId if room == ID_SIZE as u64 => {
            one_way(sent).map(|()| Request::Identity).map_err(Into::into)
        }
        RequestType::GetId => Err(RequestError::DataLength(room).into()),
        RequestType::Discard | RequestType::WriteZeroes => {
            limits.check_writable()?;
            one_way(room)?;
            // `max_discard_seg` and `max_write_zeroes_seg` are 1.
            if sent != Segment::SIZE as u64 {
                return Err(RequestError::DataLength(sent).into());
            }
            let mut segment = [0; Segment::SIZE];
            chain.read(RequestHeader::SIZE as u64, &mut segment)?;
            Ok(range_request(request_type, Segment::decode(&segment), limits)?)
        }
    }
}

fn not_empty(extents: &[Extent]) -> Option<Request> {
    extents.is_empty().then_some(Request::Nothing)
}

fn range_request(
    request_type: RequestType,
    segment: Segment,
    limits: &Limits,
) -> Result<Request, RequestError> {
    let discards = request_type == RequestType::Discard;
    let known = if discards { 0 } else { Segment::UNMAP };
    if segment.flags & !known != 0 {
        return Err(RequestError::Flags(segment.flags));
    }
    let most = if discards {
        limits.max_discard_sectors()?
    } else {
        limits.max_write_zeroes_sectors()
    };
    let count = u64::from(segment.num_sectors);
    let offset = limits.offset_of(segment.sector, count)?;
    if segment.num_sectors > most {
        return Err(RequestError::Sectors {
            sector: segment.sector,
            count,
        });
    }
    let range = DiskRange {
        offset,
        len: count * SECTOR_SIZE,
    };
    let unmap = if segment.flags & Segment::UNMAP != 0 {
        Unmap::Allowed
    } else {
        Unmap::Forbidden
    };
    Ok(match range.len {
        0 => Request::Nothing,
        _ if discards => Request::Disk(Operation::Discard(range)),
        _ => Request::Disk(Operation::WriteZeroes(range, unmap)),
    })
}

impl Limits {
    /// Where `data_len` bytes from `sector` on are on the disk, and how many bytes that is.
    fn transfer(&self, sector: u64, data_len: u64) -> Result<(u64, usize), RequestError> {
        if !data_len.is_multiple_of(SECTOR_SIZE) {
            return Err(RequestError::DataLength(data_len));
        }
        let offset = self.offset_of(sector, data_len / SECTOR_SIZE)?;
        match usize::try_from(data_len) {
            Ok(len) if len <= MAX_DATA_LEN => Ok((offset, len)),
            _ => Err(RequestError::TooLong(data_len)),
        }
    }

    /// The first byte of `count` sectors that must be on the disk.
    fn offset_of(&self, sector: u64, count: u64) -> Result<u64, RequestError> {
        let outside = RequestError::Sectors { sector, count };
        match sector.checked_add(count) {
            Some(end) if end <= self.capacity_sectors => Ok(sector * SECTOR_SIZE),
            _ => Err(outside),
        }
    }
}
