//! What a device must never do, whatever the guest does: one variant a promise.

use devices::DeviceError;

/// A broken promise. The first one of a run ends it.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// Memory was read that is no ring and no device-readable buffer of a chain that the device holds.
    #[error("the device reads {len} bytes at {gpa:#x}, which no chain offers for reading")]
    Read {
        /// Guest-physical address.
        gpa: u64,
        /// Bytes.
        len: usize,
    },
    /// Memory was written that is no used ring and no device-writable buffer of a chain that the device holds.
    #[error("the device writes {len} bytes at {gpa:#x}, which no chain offers for writing")]
    Write {
        /// Guest-physical address.
        gpa: u64,
        /// Bytes.
        len: usize,
    },
    /// A byte has changed without an access for writing.
    #[error("the byte at {gpa:#x} has changed, but was never accessed for writing")]
    ChangedUnseen {
        /// Guest-physical address.
        gpa: u64,
    },
    /// One call took more accesses or bytes of guest memory than its bound.
    #[error("one call takes more than {accesses} accesses or {bytes} bytes of guest memory")]
    Unbounded {
        /// The bound on accesses.
        accesses: u64,
        /// The bound on bytes.
        bytes: u64,
    },
    /// A chain was returned that the device does not hold: never offered, or returned before.
    #[error("queue {queue} returns chain {id}, which the device does not hold")]
    UsedUnknown {
        /// Index of the queue.
        queue: u16,
        /// The first descriptor, as the used ring has it.
        id: u32,
    },
    /// A used element counts more bytes than the device has written into the chain.
    #[error("queue {queue} returns chain {id} with {len} bytes, of which {written} were written")]
    UsedLength {
        /// Index of the queue.
        queue: u16,
        /// The first descriptor.
        id: u32,
        /// Bytes, as the used ring has it.
        len: u32,
        /// Bytes that went into the chain's buffers.
        written: u64,
    },
    /// The used index went anywhere but up by one.
    #[error("the used index of queue {queue} goes to {idx} where {expected} is due")]
    UsedIndex {
        /// Index of the queue.
        queue: u16,
        /// The new index.
        idx: u16,
        /// The index after one more chain.
        expected: u16,
    },
    /// An entry of the available ring was taken out of its turn: a chain is skipped or served twice.
    #[error("queue {queue} takes entry {slot} of the available ring where {expected} is next")]
    OutOfTurn {
        /// Index of the queue.
        queue: u16,
        /// Position in the ring.
        slot: u16,
        /// Position that was due.
        expected: u16,
    },
    /// A chain was taken and neither returned nor put back.
    #[error("queue {queue} has swallowed chain {head}")]
    Swallowed {
        /// Index of the queue.
        queue: u16,
        /// The first descriptor.
        head: u16,
    },
    /// The device asks to be called again although it found nothing to do.
    #[error("queue {queue} asks for another call after one that took no chain")]
    Spins {
        /// Index of the queue.
        queue: u16,
    },
    /// Chains were returned to a driver that wants interrupts, without one.
    #[error("queue {queue} returns chains without the interrupt that the driver wants")]
    NotInterrupted {
        /// Index of the queue.
        queue: u16,
    },
    /// An interrupt without a reason in the interrupt status register.
    #[error("an interrupt without a reason")]
    Unreasoned,
    /// A queue became ready that cannot be: size, alignment or memory.
    #[error("queue {queue} is ready although its rings cannot be used: {why}")]
    QueueAccepted {
        /// Index of the queue.
        queue: u16,
        /// What is wrong.
        why: &'static str,
    },
    /// The status register holds bits that the specification's sequence does not have.
    #[error("the device status is {bits:#x}")]
    Status {
        /// Its value.
        bits: u32,
    },
    /// Something the guest did became an error of the host.
    #[error("a guest's doing became an error of the host")]
    HostError(#[source] DeviceError),
    /// Something that is always true of this kind of device is not.
    #[error("{0}")]
    Broken(String),
    /// The driver did everything right and was not served.
    #[error("a good request {when} is not served: {why}")]
    NotServed {
        /// Before or after a reset, with which features.
        when: &'static str,
        /// What happened instead.
        why: String,
    },
}
