//! What a block device needs of the host: a disk that does operations at its own pace.
//!
//! The device checks requests and hands them on; the disk moves the data between its storage and guest memory itself,
//! so that the host's kernel can do it without a copy. It names guest memory by [`Extent`]s that were there when the
//! operation began, and has to see to it that they stay while it uses them.

use std::io;

use crate::queue::Extent;

/// The storage behind a [`super::Block`]. Called by the thread that processes queues, and by no other.
pub trait Disk {
    /// Whether an operation may begin now. If so, it is submitted next. If not, it stays in the queue with all behind it,
    /// and the disk sees to it that somebody calls [`MmioTransport::change_disk`](crate::mmio::MmioTransport::change_disk)
    /// when it may: then it is asked for again. Nothing of it is kept: after a reset it never comes.
    fn admit(&mut self, _operation: &Operation) -> Admission {
        Admission::Now
    }

    /// Takes an operation. It begins now or with the next [`Self::commit`], and its end comes out of
    /// [`Self::finished`], failed or not. At most [`super::MAX_IN_FLIGHT`] operations are under way at a time, each
    /// with a tag of its own.
    fn submit(&mut self, tag: Tag, operation: Operation);

    /// Begins everything that was submitted.
    ///
    /// # Errors
    /// The disk cannot work at all any more. The machine should end.
    fn commit(&mut self) -> io::Result<()>;

    /// Takes the end of one operation, in any order; `None` when there is none right now.
    ///
    /// # Errors
    /// The disk cannot work at all any more. The machine should end.
    fn finished(&mut self) -> io::Result<Option<Finished>>;
}

/// Whether an operation may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Now.
    Now,
    /// Later: it has to wait for its turn.
    Later,
}

/// Which of the operations under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(
    /// Below [`super::MAX_IN_FLIGHT`].
    pub usize,
);

/// The end of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Which one.
    pub tag: Tag,
    /// Whether all of it was done.
    pub result: Result<(), OperationError>,
}

/// Why an operation was not done. The host has said more about it where that is of use; the guest hears only this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationError {
    /// The storage failed.
    Failed,
    /// The storage has no such operation.
    Unsupported,
}

/// What to do. Offsets and lengths are bytes, multiples of 512 within the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Storage to memory.
    Read {
        /// Where on the disk.
        offset: u64,
        /// Where in memory, in order; not empty.
        into: Vec<Extent>,
    },
    /// Memory to storage.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Where in memory, in order; not empty.
        from: Vec<Extent>,
    },
    /// What was written by operations that have finished is to survive a crash of the host.
    Flush,
    /// The contents are not needed any more.
    Discard(DiskRange),
    /// The contents become zeros.
    WriteZeroes(DiskRange, Unmap),
}

/// A range of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRange {
    /// First byte.
    pub offset: u64,
    /// Number of bytes, not 0.
    pub len: u64,
}

/// Whether storage that reads as zeros may be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// It may.
    Allowed,
    /// It stays allocated.
    Forbidden,
}

impl Operation {
    /// Bytes of guest memory that it moves.
    pub fn data_len(&self) -> u64 {
        match self {
            Operation::Read { into: extents, .. } | Operation::Write { from: extents, .. } => {
                extents.iter().map(|extent| extent.len as u64).sum()
            }
            Operation::Flush | Operation::Discard(_) | Operation::WriteZeroes(..) => 0,
        }
    }
    /// Bytes that the storage has to move for it, for who limits that: [`Self::data_len`], and zeros that it may have to write.
    pub fn storage_len(&self) -> u64 {
        match self {
            Operation::WriteZeroes(range, _) => range.len,
            _ => self.data_len(),
        }
    }
}
