//! The entropy device (virtio 1.3, section 5.4): fills buffers with random bytes.
//!
//! A buffer may get fewer bytes than it has room for, but never none (section 5.4.6.1): at most [`MOST_BYTES`] each, so
//! that a large buffer does not hold up the other devices.

#[cfg(test)]
mod tests;

use std::io;

use virtio_wire::device_id;
use vm_memory::GuestMemory;

use crate::device::{Served, VirtioDevice};
use crate::fault::{DeviceError, GuestFault};
use crate::queue::Buffers;

/// Most bytes put into one buffer.
pub const MOST_BYTES: usize = 4096;

const QUEUE_SIZES: [u16; 1] = [64];

/// Where random bytes come from.
pub trait EntropySource {
    /// Fills all of `bytes`, without waiting.
    ///
    /// # Errors
    /// The host has none. The machine should end.
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()>;
}

/// An entropy device.
#[derive(Debug)]
pub struct Rng<E> {
    source: E,
    bytes: u64,
}

impl<E: EntropySource> Rng<E> {
    /// A device that hands out what `source` has.
    pub fn new(source: E) -> Rng<E> {
        Rng { source, bytes: 0 }
    }

    /// Number of bytes handed out so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl<E: EntropySource> VirtioDevice for Rng<E> {
    fn device_id(&self) -> u32 {
        device_id::RNG
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn required_features(&self) -> u64 {
        0
    }

    /// There is no configuration (section 5.4.4).
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn serve<M: GuestMemory>(&mut self, queue: u16, chain: &Buffers<'_, M>) -> Result<Served, DeviceError> {
        if chain.readable_len() != 0 {
            return Ok(Served::refused(GuestFault::WrongDirection { queue }));
        }
        let len = usize::try_from(chain.writable_len()).map_or(MOST_BYTES, |room| room.min(MOST_BYTES));
        if len == 0 {
            return Ok(Served::refused(GuestFault::ShortChain {
                queue,
                len: 0,
                needed: 1,
            }));
        }
        let mut buffer = [0; MOST_BYTES];
        let bytes = &mut buffer[..len];
        self.source.fill(bytes).map_err(|source| DeviceError::Backend {
            device: "the entropy source",
            source,
        })?;
        Ok(match chain.write(0, bytes) {
            Ok(()) => {
                self.bytes += len as u64;
                Served::used(u32::try_from(len).unwrap_or(u32::MAX))
            }
            Err(fault) => Served::refused(fault),
        })
    }

    fn reset(&mut self) {}
}
