//! Who is to blame: faults of the guest and faults of the host are different types.
//!
//! A [`GuestFault`] is data: it is counted, the device goes on or asks for a reset, the VMM lives. A [`DeviceError`] is
//! an error of the host and is returned to the VMM, which ends the machine. There is no conversion between the two,
//! in either direction: a guest can never end its VMM, and a failing host is never blamed on the guest.

use std::fmt;

/// A part of a split virtqueue (virtio 1.3, section 2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingPart {
    /// The descriptor table, "descriptor area".
    DescriptorTable,
    /// The available ring, "driver area".
    AvailRing,
    /// The used ring, "device area".
    UsedRing,
}

impl fmt::Display for RingPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RingPart::DescriptorTable => "descriptor table",
            RingPart::AvailRing => "available ring",
            RingPart::UsedRing => "used ring",
        })
    }
}

/// Something the guest's driver did that the specification does not allow.
///
/// Faults of a queue as a whole (the first seven) leave the device with DEVICE_NEEDS_RESET; faults of one chain cost
/// the guest that chain only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestFault {
    /// A queue was made ready before feature negotiation was complete.
    #[error("queue {queue} made ready before FEATURES_OK")]
    QueueTooEarly {
        /// Index of the queue.
        queue: u16,
    },
    /// A queue was made ready with a size that is zero, not a power of two, or above the maximum.
    #[error("queue {queue} made ready with size {size}, which is not a power of two of at most {max}")]
    QueueSize {
        /// Index of the queue.
        queue: u16,
        /// Entries, as the driver wrote them.
        size: u32,
        /// Largest size the device takes.
        max: u16,
    },
    /// A queue was made ready with a part at an address that is not aligned as section 2.7 asks.
    #[error("queue {queue} made ready with its {part} at misaligned address {gpa:#x}")]
    QueueMisaligned {
        /// Index of the queue.
        queue: u16,
        /// Which part.
        part: RingPart,
        /// Guest-physical address of the part.
        gpa: u64,
    },
    /// A queue was made ready with a part in memory that does not exist or is unplugged.
    #[error("queue {queue} made ready with its {part} in memory the guest does not have, at {gpa:#x}")]
    QueueUnreachable {
        /// Index of the queue.
        queue: u16,
        /// Which part.
        part: RingPart,
        /// Guest-physical address of the part.
        gpa: u64,
    },
    /// The rings of a queue in use could not be read or written: their memory was unplugged.
    #[error("the rings of queue {queue} are no longer in memory the guest has")]
    RingUnreachable {
        /// Index of the queue.
        queue: u16,
    },
    /// The available index is further ahead than the queue has entries.
    #[error("queue {queue} makes more chains available than it has entries")]
    AvailIndex {
        /// Index of the queue.
        queue: u16,
    },
    /// The status register was written with bits out of their order, or with bits missing.
    #[error("device status written {written:#x} when it was {status:#x}")]
    StatusSequence {
        /// Status before.
        status: u32,
        /// Value written.
        written: u32,
    },
    /// The available ring names a descriptor beyond the table. The chain cannot even be returned.
    #[error("queue {queue} makes descriptor {index} available, beyond its table")]
    HeadIndex {
        /// Index of the queue.
        queue: u16,
        /// The descriptor.
        index: u16,
    },
    /// A chain loops, leaves the table, has an unreadable table, or is longer than the queue.
    #[error("a chain of queue {queue} loops or leaves its descriptor table")]
    BrokenChain {
        /// Index of the queue.
        queue: u16,
    },
    /// A chain has buffers of a direction that has no place there.
    #[error("a chain of queue {queue} has buffers of the wrong direction or in the wrong order")]
    WrongDirection {
        /// Index of the queue.
        queue: u16,
    },
    /// A chain has fewer bytes than the request or its response needs.
    #[error("a chain of queue {queue} has {len} bytes where {needed} are needed")]
    ShortChain {
        /// Index of the queue.
        queue: u16,
        /// Bytes there are.
        len: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// A chain has more bytes than the device takes at a time.
    #[error("a chain of queue {queue} has {len} bytes, more than {limit}")]
    LongChain {
        /// Index of the queue.
        queue: u16,
        /// Bytes there are.
        len: u64,
        /// The most that are taken.
        limit: u64,
    },
    /// A page that the guest gives to the balloon is not memory that it has.
    #[error("queue {queue} names a page that the guest does not have, at {gpa:#x}")]
    PageUnreachable {
        /// Index of the queue.
        queue: u16,
        /// Guest-physical address of the page.
        gpa: u64,
    },
    /// A buffer lies in memory that does not exist or is unplugged.
    #[error("a buffer of queue {queue} is in memory the guest does not have, {len} bytes at {gpa:#x}")]
    BufferUnreachable {
        /// Index of the queue.
        queue: u16,
        /// Guest-physical address of the bytes that were wanted.
        gpa: u64,
        /// Number of those bytes.
        len: u64,
    },
}

/// Something the host could not do for a device. The machine cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The host failed to give memory to the guest or to take it away.
    #[error("cannot {action} {count} memory blocks from block {first}")]
    Blocks {
        /// "plug" or "unplug".
        action: &'static str,
        /// Index of the first block.
        first: u64,
        /// Number of blocks.
        count: u64,
        /// What the host said.
        source: std::io::Error,
    },
    /// The host's side of a device failed altogether, not just for one request.
    #[error("{device} failed")]
    Backend {
        /// What failed: "a disk", "the entropy source".
        device: &'static str,
        /// What the host said.
        source: std::io::Error,
    },
}
