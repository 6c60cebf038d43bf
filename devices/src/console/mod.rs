//! The console device with a single port (virtio 1.3, section 5.3): a byte stream in each direction.
//!
//! The host pushes bytes with [`MmioTransport::push_to_guest`] and takes them with [`MmioTransport::take_from_guest`]. Both directions are
//! bounded, and neither drops anything: a guest that sends more than the host takes finds its buffers unused until the
//! host has taken some, and the host is told how much of its push was accepted.
//!
//! Apart from the streams there is the emergency output (VIRTIO_CONSOLE_F_EMERG_WRITE): single bytes written to the
//! configuration space, which works from the first instruction to the last panic. The newest bytes of it are kept.

mod byte_queue;
#[cfg(test)]
mod tests;

use virtio_wire::console::{Config, QUEUE_RECEIVE, QUEUE_TRANSMIT, feature, offset};
use virtio_wire::device_id;
use vm_memory::GuestMemory;

use crate::device::{Served, VirtioDevice, read_config_bytes};
use crate::fault::{DeviceError, GuestFault};
use crate::mmio::{Effects, MmioTransport, QueueSet};
use crate::queue::Buffers;
use byte_queue::ByteQueue;

/// Bytes on their way to the guest, at most.
pub const TO_GUEST_LIMIT: usize = 64 << 10;
/// Bytes from the guest that the host has not taken, at most.
pub const FROM_GUEST_LIMIT: usize = 1 << 20;
/// Bytes of emergency output that are kept, the newest ones.
pub const EMERGENCY_LIMIT: usize = 16 << 10;

/// The receive queue and the transmit queue.
const QUEUE_SIZES: [u16; 2] = [128, 128];

/// Bytes copied at a time between a queue and guest memory.
const PIECE: usize = 4096;

/// Size of a text console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsoleSize {
    /// Width in characters.
    pub cols: u16,
    /// Height in characters.
    pub rows: u16,
}

/// A console device.
#[derive(Debug)]
pub struct Console {
    size: Option<ConsoleSize>,
    to_guest: ByteQueue,
    from_guest: ByteQueue,
    emergency: ByteQueue,
    /// How much of the chain at the front of the transmit queue was taken before there was no more room.
    transmit_offset: u64,
}

impl Console {
    /// A console; with a size, if it is a terminal that the guest should know the size of.
    pub fn new(size: Option<ConsoleSize>) -> Console {
        Console {
            size,
            to_guest: ByteQueue::new(TO_GUEST_LIMIT),
            from_guest: ByteQueue::new(FROM_GUEST_LIMIT),
            emergency: ByteQueue::new(EMERGENCY_LIMIT),
            transmit_offset: 0,
        }
    }

    /// What the guest wrote to the emergency output, at most the newest [`EMERGENCY_LIMIT`] bytes.
    pub fn emergency_output(&self) -> Vec<u8> {
        self.emergency.to_vec()
    }

    /// Number of bytes from the guest that wait to be taken.
    pub fn from_guest_len(&self) -> usize {
        self.from_guest.len()
    }

    /// Number of bytes that wait for the guest to receive them.
    pub fn to_guest_len(&self) -> usize {
        self.to_guest.len()
    }

    /// Fills a receive buffer with what there is.
    fn receive<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
        if self.to_guest.is_empty() {
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
    fn transmit<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
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

impl VirtioDevice for Console {
    fn device_id(&self) -> u32 {
        device_id::CONSOLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        feature::EMERG_WRITE | if self.size.is_some() { feature::SIZE } else { 0 }
    }

    fn required_features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let ConsoleSize { cols, rows } = self.size.unwrap_or(ConsoleSize { cols: 0, rows: 0 });
        let config = Config {
            cols,
            rows,
            max_nr_ports: 0,
            emerg_wr: 0,
        };
        read_config_bytes(&config.encode(), offset, data);
    }

    /// Takes the lower byte of a write to `emerg_wr`, negotiated or not (section 5.3.5.1).
    fn write_config(&mut self, at: u64, data: &[u8]) {
        if let (true, Some(&byte)) = (at == offset::EMERG_WR as u64, data.first()) {
            self.emergency.push_over(byte);
        }
    }

    fn serve<M: GuestMemory>(&mut self, queue: u16, chain: &Buffers<'_, M>) -> Result<Served, DeviceError> {
        Ok(if queue == QUEUE_RECEIVE {
            self.receive(chain)
        } else {
            self.transmit(chain)
        })
    }

    /// Bytes in the queues belong to the streams, not to the driver: they stay.
    fn reset(&mut self) {
        self.transmit_offset = 0;
    }
}

impl MmioTransport<Console> {
    /// Takes in bytes for the guest, as many as there is room for, and returns how many. Guest memory is not touched: the
    /// effects ask for the receive queue to be processed, by whichever thread does that.
    pub fn push_to_guest(&mut self, bytes: &[u8]) -> (usize, Effects) {
        let accepted = self.device_mut().to_guest.push(bytes);
        (accepted, process_later(QUEUE_RECEIVE, accepted))
    }

    /// Hands out up to `max` bytes that the guest has sent. Guest memory is not touched: the effects ask for the transmit
    /// queue to be processed, as the guest may have been held back for want of room.
    pub fn take_from_guest(&mut self, max: usize) -> (Vec<u8>, Effects) {
        let bytes = self.device_mut().from_guest.take(max);
        let effects = process_later(QUEUE_TRANSMIT, bytes.len());
        (bytes, effects)
    }
}

/// A queue is due once bytes were moved on the host's side of it.
fn process_later(queue: u16, moved: usize) -> Effects {
    Effects {
        notified: if moved == 0 {
            QueueSet::NONE
        } else {
            QueueSet::one(queue)
        },
        ..Effects::NONE
    }
}
