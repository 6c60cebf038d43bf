//! One port of a console: a byte stream in each direction, both bounded, neither dropping a byte.

use std::fmt;

use vm_memory::GuestMemory;

use super::byte_queue::ByteQueue;
use super::control::Untold;
use super::{FROM_GUEST_LIMIT, TO_GUEST_LIMIT};
use crate::device::Served;
use crate::fault::GuestFault;
use crate::queue::Buffers;

/// Bytes copied at a time between a queue and guest memory.
const PIECE: usize = 4096;

/// The name of a port, by which Linux finds it as `/dev/virtio-ports/NAME`: 1 to 32 of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortName(String);

impl PortName {
    /// Bytes of a name, at most.
    pub const MAX: usize = 32;

    /// A name that a port can have; not `.` or `..`, as it becomes a file's.
    pub fn new(text: &str) -> Option<PortName> {
        let is_name = (1..=Self::MAX).contains(&text.len())
            && !matches!(text, "." | "..")
            && text
                .bytes()
                .all(|sign| sign.is_ascii_alphanumeric() || b"._-".contains(&sign));
        is_name.then(|| PortName(text.to_owned()))
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a port stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortState {
    /// A program of the guest has it open.
    pub guest_open: bool,
    /// Bytes from the guest that wait to be taken.
    pub from_guest_len: usize,
    /// Bytes that wait for the guest to receive them.
    pub to_guest_len: usize,
}

/// A port.
#[derive(Debug)]
pub(super) struct Port {
    /// The guest's console has none.
    pub(super) name: Option<PortName>,
    pub(super) to_guest: ByteQueue,
    pub(super) from_guest: ByteQueue,
    /// How much of the chain at the front of the transmit queue was taken before there was no more room.
    transmit_offset: u64,
    /// Somebody at the host has it open.
    pub(super) host_open: bool,
    /// A program of the guest has it open, as far as the guest has said.
    pub(super) guest_open: bool,
    /// The guest's driver has said that it is ready.
    pub(super) ready: bool,
    pub(super) untold: Untold,
}

impl Port {
    pub(super) fn new(name: Option<PortName>) -> Port {
        Port {
            // The control channel is always there.
            host_open: name.is_none(),
            name,
            to_guest: ByteQueue::new(TO_GUEST_LIMIT),
            from_guest: ByteQueue::new(FROM_GUEST_LIMIT),
            transmit_offset: 0,
            guest_open: false,
            ready: false,
            untold: Untold::default(),
        }
    }

    /// Forgets the conversation with the driver. Bytes belong to the streams, not to the driver: they stay.
    pub(super) fn reset(&mut self) {
        self.transmit_offset = 0;
        self.guest_open = false;
        self.ready = false;
        self.untold = Untold::default();
    }

    /// Drops the bytes on their way, which belong to a guest that is no more.
    pub(super) fn forget(&mut self) {
        self.to_guest = ByteQueue::new(TO_GUEST_LIMIT);
        self.from_guest = ByteQueue::new(FROM_GUEST_LIMIT);
    }

    /// Fills a receive buffer with what there is.
    pub(super) fn receive<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
        // Linux throws away what comes for a named port that nobody has open.
        if self.to_guest.is_empty() || (self.name.is_some() && !self.guest_open) {
            return Served::later();
        }
        if chain.readable_len() != 0 {
            return Served::refused(GuestFault::WrongDirection { queue: chain.queue() });
        }
        if chain.writable_len() == 0 {
            return Served::refused(GuestFault::ShortChain {
                queue: chain.queue(),
                len: 0,
                needed: 1,
            });
        }
        let mut piece = [0; PIECE];
        let mut written: u32 = 0;
        loop {
            let room = chain.writable_len() - u64::from(written);
            let wanted = usize::try_from(room).map_or(PIECE, |room| room.min(PIECE));
            let len = self.to_guest.peek(&mut piece[..wanted]);
            if len == 0 {
                return Served::used(written);
            }
            if let Err(fault) = chain.write(written.into(), &piece[..len]) {
                return Served {
                    fault: Some(fault),
                    ..Served::used(written)
                };
            }
            // Only what has arrived is taken out: a bad buffer costs the stream nothing.
            self.to_guest.discard(len);
            written += u32::try_from(len).expect("a piece is 4096 bytes at most");
        }
    }

    /// Takes what a transmit buffer holds, as far as there is room.
    pub(super) fn transmit<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
        let resumed_at = std::mem::take(&mut self.transmit_offset);
        if chain.writable_len() != 0 {
            return Served::refused(GuestFault::WrongDirection { queue: chain.queue() });
        }
        let mut piece = [0; PIECE];
        let mut offset = resumed_at;
        loop {
            let rest = chain.readable_len().saturating_sub(offset);
            if rest == 0 {
                return Served::used(0);
            }
            let len = usize::try_from(rest)
                .map_or(PIECE, |rest| rest.min(PIECE))
                .min(self.from_guest.room());
            if len == 0 {
                self.transmit_offset = offset;
                return Served::later();
            }
            if let Err(fault) = chain.read(offset, &mut piece[..len]) {
                return Served::refused(fault);
            }
            self.from_guest.push(&piece[..len]);
            offset += len as u64;
        }
    }
}
