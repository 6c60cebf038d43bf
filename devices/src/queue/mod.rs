//! A split virtqueue in use: chains come out, each once, and go back through a token.
//!
//! A thin layer over [`virtio_queue::Queue`] that keeps apart what that type folds into "no more chains": an empty ring,
//! a ring in memory that is gone, a chain that does not end. It also honours VIRTQ_AVAIL_F_NO_INTERRUPT.

mod buffers;
mod setup;

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use virtio_wire::ring;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

pub use buffers::{Buffers, Extent};
pub(crate) use setup::QueueRegisters;

use crate::fault::GuestFault;

/// A queue whose addresses and size were checked.
#[derive(Debug)]
pub(crate) struct VirtQueue {
    index: u16,
    queue: Queue,
}

/// The right to return one chain to the guest.
#[derive(Debug)]
#[must_use = "a chain that is not returned is lost to the guest"]
pub(crate) struct Head(u16);

impl Head {
    fn spend(self) -> u16 {
        self.0
    }
}

/// A chain that a device has taken out of its queue: the right to return it, once, with
/// [`crate::mmio::MmioTransport`]'s help. After a reset in between, returning it tells the guest nothing.
#[derive(Debug)]
#[must_use = "a reset of the device waits for every chain that was kept"]
pub struct KeptChain {
    queue: u16,
    head: Head,
}

impl KeptChain {
    fn new(queue: u16, head: u16) -> KeptChain {
        KeptChain {
            queue,
            head: Head(head),
        }
    }

    /// Index of the queue it came from.
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// The right to return it to its queue.
    pub(crate) fn into_head(self) -> Head {
        self.head
    }
}

/// What came out of the available ring.
#[derive(Debug)]
pub(crate) enum Popped<'m, M> {
    /// A well-formed chain.
    Chain(Head, Buffers<'m, M>),
    /// A chain that cannot be followed; it can still be returned.
    Broken(Head, GuestFault),
    /// An entry that names no descriptor: nothing can be returned.
    Lost(GuestFault),
}

impl VirtQueue {
    /// Takes the next chain, if there is one.
    ///
    /// # Errors
    /// A fault of the ring itself: the queue cannot be used any more.
    pub(crate) fn pop<'m, M: GuestMemory>(
        &mut self,
        mem: &'m M,
    ) -> Result<Option<Popped<'m, M>>, GuestFault> {
        let unreachable = GuestFault::RingUnreachable { queue: self.index };
        let available = self
            .queue
            .avail_idx(mem, Ordering::Acquire)
            .map_err(|_| unreachable)?;
        if available.0 == self.queue.next_avail() {
            return Ok(None);
        }
        // A table that is gone is the queue's fault, not that of each chain in it.
        if !self.has_descriptor_table(mem) {
            return Err(unreachable);
        }
        let chain = match self.queue.iter(mem) {
            Ok(mut chains) => chains.next().ok_or(unreachable)?,
            Err(Error::InvalidAvailRingIndex) => return Err(GuestFault::AvailIndex { queue: self.index }),
            Err(_) => return Err(unreachable),
        };
        let index = chain.head_index();
        if index >= self.queue.size() {
            return Ok(Some(Popped::Lost(GuestFault::HeadIndex {
                queue: self.index,
                index,
            })));
        }
        Ok(Some(
            match Buffers::from_chain(self.index, self.queue.size(), mem, chain) {
                Ok(buffers) => Popped::Chain(Head(index), buffers),
                Err(fault) => Popped::Broken(Head(index), fault),
            },
        ))
    }

    fn has_descriptor_table<M: GuestMemory>(&self, mem: &M) -> bool {
        let size = usize::try_from(ring::descriptor_table_size(self.queue.size()));
        let table = GuestAddress(self.queue.desc_table());
        size.is_ok_and(|size| mem.check_range(table, size, Permissions::Read))
    }

    /// Puts the chain that was popped last back to the front of the queue.
    pub(crate) fn put_back(&mut self, _head: Head) {
        self.queue.go_to_previous_position();
    }

    /// Returns a chain to the guest, with `written` bytes in its device-writable buffers.
    pub(crate) fn complete<M: GuestMemory>(
        &mut self,
        mem: &M,
        head: Head,
        written: u32,
    ) -> Result<(), GuestFault> {
        let index = head.spend();
        self.queue
            .add_used(mem, index, written)
            .map_err(|_| GuestFault::RingUnreachable { queue: self.index })
    }

    /// Asks the driver to notify of the next chain. True if one has come in the meantime, unnotified.
    pub(crate) fn rearm<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, GuestFault> {
        self.queue
            .enable_notification(mem)
            .map_err(|_| GuestFault::RingUnreachable { queue: self.index })
    }

    /// Whether the driver wants an interrupt for what was returned since the last call (sections 2.7.7 and 2.7.10).
    pub(crate) fn needs_interrupt<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, GuestFault> {
        let unreachable = GuestFault::RingUnreachable { queue: self.index };
        if self.queue.event_idx_enabled() {
            return self.queue.needs_notification(mem).map_err(|_| unreachable);
        }
        // The used index must be visible before the flag is read, or both sides could wait for each other.
        fence(Ordering::SeqCst);
        let flags = GuestAddress(self.queue.avail_ring() + ring::RING_FLAGS_OFFSET);
        let flags: u16 = mem.load(flags, Ordering::Relaxed).map_err(|_| unreachable)?;
        Ok(u16::from_le(flags) & ring::AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Number of entries.
    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }
}
