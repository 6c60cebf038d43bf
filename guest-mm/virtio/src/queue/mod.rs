//! A split virtqueue (virtio 1.3 section 2.7), driver side, that survives any device.
//!
//! Whatever the device can write is read once, by value, and compared with the driver's own books before it is
//! used: a number from the used ring finds a request only if that request is in flight, the used index may
//! advance only by as many as are in flight, and a length is believed only up to what the request offered. A
//! device that breaks one of these rules ends the use of the queue ([`QueueFault`]) until it is reset; it cannot
//! make the driver index, loop or allocate.
//!
//! A request carries a value of the driver's type `T` (a token for its buffers) in with
//! [`submit`](VirtQueue::submit) and out again with [`poll`](VirtQueue::poll): while the device may touch a
//! buffer, nobody else holds its token.

mod chains;
mod fault;
mod layout;
#[cfg(test)]
mod tests;

pub use fault::{QueueFault, Refused};

use crate::dma::{DmaArea, DmaMemory, Gpa, OutOfDmaMemory};
use crate::transport::QueueAddresses;
use alloc::vec::Vec;
use chains::{Chain, Chains};
use core::sync::atomic::{Ordering, fence};
use layout::Layout;
use virtio_wire::ring;

/// A piece of DMA memory that the device may reach during one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Address of the first byte.
    pub start: Gpa,
    /// Number of bytes.
    pub len: u32,
}

/// Whether the device is to be told about what was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a device that is not notified does not look"]
pub enum Notify {
    /// [`Transport::notify`](crate::transport::Transport::notify) will write the register.
    Needed,
    /// Nothing was published, or the device is looking anyway.
    NotNeeded,
}

/// Whether the device shall interrupt when it has used buffers of this queue. A hint: it may interrupt anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsedInterrupts {
    /// Yes.
    Wanted,
    /// No: the driver looks by itself.
    Unwanted,
}

/// A request that the device is done with.
#[derive(Debug, PartialEq, Eq)]
pub struct Used<T> {
    /// What the driver gave to [`VirtQueue::submit`].
    pub token: T,
    /// Bytes the device says it wrote; never more than the request offered.
    pub written: u32,
}

/// A request the device has.
#[derive(Debug)]
struct InFlight<T> {
    chain: Chain,
    token: T,
    /// Bytes the device may write.
    writable: u64,
}

/// One queue and everything the driver knows about it.
#[derive(Debug)]
pub struct VirtQueue<M, T> {
    area: DmaArea<M>,
    layout: Layout,
    chains: Chains,
    /// Requests by head descriptor.
    requests: Vec<Option<InFlight<T>>>,
    in_flight: u16,
    /// Running number of the next entry of the available ring.
    next_avail: u16,
    /// What the available index in shared memory says.
    published: u16,
    /// Running number of the next entry of the used ring to look at.
    next_used: u16,
    /// The used index as last read and believed.
    known_used: u16,
    fault: Option<QueueFault>,
}

impl<M: DmaMemory, T> VirtQueue<M, T> {
    /// An empty queue of `size` entries in memory of its own.
    ///
    /// # Panics
    /// If `size` is not a power of two up to 32768; sizes come from
    /// [`Setup::queue_size`](crate::transport::Setup::queue_size), which has checked the device's word.
    pub fn new(memory: M, size: u16) -> Result<Self, OutOfDmaMemory> {
        assert!(
            size.is_power_of_two() && size <= ring::MAX_QUEUE_SIZE,
            "queue size {size}"
        );
        let layout = Layout::new(size);
        Ok(Self {
            area: DmaArea::allocate(memory, layout.bytes())?,
            layout,
            chains: Chains::new(size),
            requests: (0..size).map(|_| None).collect(),
            in_flight: 0,
            next_avail: 0,
            published: 0,
            next_used: 0,
            known_used: 0,
            fault: None,
        })
    }

    /// The memory that it is in.
    pub(crate) fn area(&self) -> &DmaArea<M> {
        &self.area
    }

    /// The same, to be exchanged for other memory while no device knows of it; a [`reset`](Self::reset) comes next.
    pub(crate) fn area_mut(&mut self) -> &mut DmaArea<M> {
        &mut self.area
    }

    /// What the device must be told of the queue.
    pub fn addresses(&self) -> QueueAddresses {
        self.layout.addresses(&self.area)
    }

    /// Number of requests the device has not returned yet.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Number of descriptors that new requests can use.
    pub fn nr_free(&self) -> u16 {
        self.chains.nr_free()
    }

    /// Prepares a request: the device will read `readable` and write `writable`, in this order. It sees nothing
    /// before [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`Refused`] returns the token: the queue is full, or there is no segment at all, or the device is faulty.
    pub fn submit(&mut self, readable: &[Segment], writable: &[Segment], token: T) -> Result<(), Refused<T>> {
        if let Some(fault) = self.fault {
            return Err(Refused::Faulty { token, fault });
        }
        let count = u16::try_from(readable.len() + writable.len()).ok();
        let Some(chain) = count.and_then(|count| self.chains.take(count)) else {
            return Err(Refused::Full { token });
        };
        self.write_descriptors(&chain, readable, writable);
        let memory = self.area.memory();
        memory.write16(self.layout.avail_entry(&self.area, self.next_avail), chain.head());
        self.next_avail = self.next_avail.wrapping_add(1);
        self.in_flight += 1;
        let writable = writable.iter().map(|segment| u64::from(segment.len)).sum();
        let head = usize::from(chain.head());
        self.requests[head] = Some(InFlight {
            chain,
            token,
            writable,
        });
        Ok(())
    }

    fn write_descriptors(&self, chain: &Chain, readable: &[Segment], writable: &[Segment]) {
        let readable = readable.iter().map(|segment| (segment, 0));
        let writable = writable.iter().map(|segment| (segment, ring::DESC_F_WRITE));
        let mut indices = self.chains.descriptors(chain).peekable();
        for (segment, flags) in readable.chain(writable) {
            let Some(index) = indices.next() else {
                break;
            };
            let descriptor = ring::Descriptor {
                addr: segment.start.raw(),
                len: segment.len,
                flags: flags | indices.peek().map_or(0, |_| ring::DESC_F_NEXT),
                next: indices.peek().copied().unwrap_or(0),
            };
            self.area
                .memory()
                .write_bytes(self.layout.descriptor(&self.area, index), &descriptor.encode());
        }
    }

    /// Shows the device everything that was submitted, and says whether it has to be notified.
    pub fn publish(&mut self) -> Notify {
        if self.published == self.next_avail {
            return Notify::NotNeeded;
        }
        let memory = self.area.memory();
        // The device must see the entries before the index (section 2.7.13.3) ...
        fence(Ordering::Release);
        memory.write16(self.layout.avail_idx(&self.area), self.next_avail);
        self.published = self.next_avail;
        // ... and the index before we ask whether it still looks (section 2.7.13.4.1).
        fence(Ordering::SeqCst);
        match memory.read16(self.layout.used_flags(&self.area)) & ring::USED_F_NO_NOTIFY {
            0 => Notify::Needed,
            _ => Notify::NotNeeded,
        }
    }

    /// Tells the device whether to interrupt. After wanting interrupts again, poll once more before waiting: what
    /// was used in between did not interrupt.
    pub fn set_used_interrupts(&mut self, wanted: UsedInterrupts) {
        let flags = match wanted {
            UsedInterrupts::Wanted => 0,
            UsedInterrupts::Unwanted => ring::AVAIL_F_NO_INTERRUPT,
        };
        self.area
            .memory()
            .write16(self.layout.avail_flags(&self.area), flags);
        fence(Ordering::SeqCst);
    }

    /// The next request the device is done with, if any. Called in a loop it ends after at most
    /// [`in_flight`](Self::in_flight) rounds, unless the loop submits.
    ///
    /// # Errors
    /// [`QueueFault`] when the used ring cannot be true; from then on every call says the same.
    pub fn poll(&mut self) -> Result<Option<Used<T>>, QueueFault> {
        match self.fault {
            Some(fault) => Err(fault),
            None => self.take_used().inspect_err(|&fault| self.fault = Some(fault)),
        }
    }

    fn take_used(&mut self) -> Result<Option<Used<T>>, QueueFault> {
        if self.next_used == self.known_used && !self.look_at_used_index()? {
            return Ok(None);
        }
        let mut bytes = [0; ring::UsedElement::SIZE];
        self.area
            .memory()
            .read_bytes(self.layout.used_entry(&self.area, self.next_used), &mut bytes);
        let ring::UsedElement { id, len } = ring::UsedElement::decode(&bytes);
        let request = self.returned(id, len)?;
        self.next_used = self.next_used.wrapping_add(1);
        self.in_flight -= 1;
        self.chains.give_back(request.chain);
        Ok(Some(Used {
            token: request.token,
            written: len,
        }))
    }

    /// The request of a used entry. One that is returned wrongly stays in flight: its token is still in the book
    /// when the device has been reset.
    fn returned(&mut self, id: u32, written: u32) -> Result<InFlight<T>, QueueFault> {
        let not_in_flight = QueueFault::NotInFlight { id };
        let head = usize::try_from(id).map_err(|_| not_in_flight)?;
        let slot = self.requests.get_mut(head).ok_or(not_in_flight)?;
        match slot.as_ref().map(|request| request.writable) {
            Some(writable) if u64::from(written) > writable => Err(QueueFault::TooLong { written, writable }),
            _ => slot.take().ok_or(not_in_flight),
        }
    }

    /// Whether the device has used more than is known, as far as that can be.
    fn look_at_used_index(&mut self) -> Result<bool, QueueFault> {
        let index = self.area.memory().read16(self.layout.used_idx(&self.area));
        // Entries and buffers are read after the index that vouches for them (section 2.7.14).
        fence(Ordering::Acquire);
        let advance = index.wrapping_sub(self.next_used);
        if advance > self.in_flight {
            return Err(QueueFault::IndexJump {
                from: self.next_used,
                to: index,
                in_flight: self.in_flight,
            });
        }
        self.known_used = index;
        Ok(advance > 0)
    }

    /// Forgets everything, returning the tokens of the requests that were in flight. Only after the device was
    /// reset: until then it may still write to their buffers.
    pub fn reset(&mut self) -> Vec<T> {
        let size = self.addresses().size;
        let tokens = self
            .requests
            .iter_mut()
            .filter_map(Option::take)
            .map(|request| request.token)
            .collect();
        self.chains = Chains::new(size);
        (self.in_flight, self.fault) = (0, None);
        (self.next_avail, self.published, self.next_used, self.known_used) = (0, 0, 0, 0);
        self.area.clear();
        tokens
    }
}
