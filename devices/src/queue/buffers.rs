//! The buffers of one chain: where they lie, not what is in them.
//!
//! A device must not care how a driver cut its request into descriptors (virtio 1.3, section 2.7.4), so all access is by
//! offset into the readable or the writable bytes as a whole. Each access checks the memory first: a chain that was fine
//! a moment ago may lie in a block that has been unplugged since.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::KeptChain;
use crate::fault::GuestFault;

/// The buffers of a chain that ends, device-readable ones before device-writable ones.
#[derive(Debug)]
pub struct Buffers<'m, M> {
    queue: u16,
    head: u16,
    mem: &'m M,
    readable: Vec<Span>,
    writable: Vec<Span>,
}

/// A buffer, as the guest names it: `gpa + len` may lie anywhere and may overflow.
#[derive(Clone, Copy, Debug)]
struct Span {
    gpa: u64,
    len: u32,
}

/// A piece of guest memory that was there when it was looked at. It may be unplugged at any later time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Number of bytes; `gpa + len` does not overflow.
    pub len: usize,
}

impl<'m, M: GuestMemory> Buffers<'m, M> {
    /// Follows the chain that begins with descriptor `head` to its end, over at most `queue_size` descriptors (section
    /// 2.7.5.3.1).
    pub(crate) fn from_chain(
        queue: u16,
        queue_size: u16,
        mem: &'m M,
        chain: DescriptorChain<&M>,
    ) -> Result<Buffers<'m, M>, GuestFault> {
        let mut buffers = Buffers {
            queue,
            head: chain.head_index(),
            mem,
            readable: Vec::new(),
            writable: Vec::new(),
        };
        // The chain's iterator stops in silence at whatever is wrong: only a last descriptor without NEXT ends a chain.
        let mut ended = false;
        for descriptor in chain.take(queue_size.into()) {
            let span = Span {
                gpa: descriptor.addr().0,
                len: descriptor.len(),
            };
            match (descriptor.is_write_only(), buffers.writable.is_empty()) {
                (true, _) => buffers.writable.push(span),
                (false, true) => buffers.readable.push(span),
                (false, false) => return Err(GuestFault::WrongDirection { queue }),
            }
            ended = !descriptor.has_next();
        }
        if ended {
            Ok(buffers)
        } else {
            Err(GuestFault::BrokenChain { queue })
        }
    }

    /// Number of device-readable bytes.
    pub fn readable_len(&self) -> u64 {
        total(&self.readable)
    }

    /// Number of device-writable bytes.
    pub fn writable_len(&self) -> u64 {
        total(&self.writable)
    }

    /// The device-writable buffers as the guest cut them: where each starts, and its length in bytes. For protocols in which
    /// the buffer itself is the message; nothing about it has been checked.
    pub fn writable_spans(&self) -> impl Iterator<Item = (GuestAddress, u32)> {
        self.writable
            .iter()
            .map(|span| (GuestAddress(span.gpa), span.len))
    }

    /// Whether the guest has memory at all of `len` bytes from `gpa` on. Nothing is accessed.
    pub fn guest_has(&self, gpa: GuestAddress, len: usize) -> bool {
        self.mem.check_range(gpa, len, Permissions::Write)
    }

    /// Fills `data` from the device-readable bytes, from `offset` on.
    ///
    /// # Errors
    /// The chain is too short, or the bytes lie in memory the guest does not have.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), GuestFault> {
        let mem = self.mem;
        self.visit(Permissions::Read, offset, data.len(), |at, gpa, len| {
            mem.read_slice(&mut data[at..at + len], gpa).is_ok()
        })
    }

    /// Copies `data` into the device-writable bytes, from `offset` on.
    ///
    /// # Errors
    /// The chain is too short, or the bytes lie in memory the guest does not have. Bytes before those may be written.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), GuestFault> {
        let mem = self.mem;
        self.visit(Permissions::Write, offset, data.len(), |at, gpa, len| {
            mem.write_slice(&data[at..at + len], gpa).is_ok()
        })
    }

    /// Whether [`Self::write`] of `len` bytes at offset 0 would succeed now. Nothing is accessed.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn check_writable(&self, len: usize) -> Result<(), GuestFault> {
        self.visit(Permissions::Write, 0, len, |_, _, _| true)
    }

    /// The pieces of memory that `len` device-readable bytes from `offset` on lie in, in order, empty ones left out.
    ///
    /// # Errors
    /// As [`Self::read`]. Nothing is accessed.
    pub fn readable_extents(&self, offset: u64, len: usize) -> Result<Vec<Extent>, GuestFault> {
        self.extents(Permissions::Read, offset, len)
    }

    /// The pieces of memory that `len` device-writable bytes from `offset` on lie in, in order, empty ones left out.
    ///
    /// # Errors
    /// As [`Self::write`]. Nothing is accessed.
    pub fn writable_extents(&self, offset: u64, len: usize) -> Result<Vec<Extent>, GuestFault> {
        self.extents(Permissions::Write, offset, len)
    }

    /// Takes the chain, to be returned later. A device that calls this answers with [`crate::Outcome::Kept`], and
    /// calls it once.
    pub fn keep(&self) -> KeptChain {
        KeptChain::new(self.queue, self.head)
    }

    fn extents(&self, access: Permissions, offset: u64, len: usize) -> Result<Vec<Extent>, GuestFault> {
        let mut extents = Vec::new();
        self.visit(access, offset, len, |_, gpa, len| {
            extents.push(Extent { gpa: gpa.0, len });
            true
        })?;
        extents.retain(|extent| extent.len > 0);
        Ok(extents)
    }

    /// Calls `access(position, gpa, len)` for each piece of `len` bytes from `offset` on, in order.
    fn visit(
        &self,
        access: Permissions,
        offset: u64,
        len: usize,
        mut visitor: impl FnMut(usize, GuestAddress, usize) -> bool,
    ) -> Result<(), GuestFault> {
        let queue = self.queue;
        let spans = if access == Permissions::Write {
            &self.writable
        } else {
            &self.readable
        };
        let mut skip = offset;
        let mut done = 0;
        for span in spans {
            if done == len {
                break;
            }
            let span_len = u64::from(span.len);
            if skip >= span_len {
                skip -= span_len;
                continue;
            }
            let rest = span_len - skip;
            let piece = usize::try_from(rest).map_or(len - done, |rest| rest.min(len - done));
            let unreachable = GuestFault::BufferUnreachable {
                queue,
                gpa: span.gpa,
                len: span_len,
            };
            let gpa = span.gpa.checked_add(skip).ok_or(unreachable)?;
            gpa.checked_add(piece as u64).ok_or(unreachable)?;
            let gpa = GuestAddress(gpa);
            if !self.mem.check_range(gpa, piece, access) || !visitor(done, gpa, piece) {
                return Err(GuestFault::BufferUnreachable {
                    queue,
                    gpa: gpa.0,
                    len: piece as u64,
                });
            }
            skip = 0;
            done += piece;
        }
        if done == len {
            Ok(())
        } else {
            Err(GuestFault::ShortChain {
                queue,
                len: total(spans),
                needed: offset.saturating_add(len as u64),
            })
        }
    }

    /// Index of the queue the chain came from.
    pub fn queue(&self) -> u16 {
        self.queue
    }
}

/// Cannot overflow: at most 32768 spans of less than 4 GiB.
fn total(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.len)).sum()
}
