//! The console for a guest that is about to die: `emerg_wr` of virtio 1.3 section 5.3.4.
//!
//! One store per byte; no queue, no allocation, no interrupt, no earlier initialisation, and no regard for a
//! driver that may be in the middle of something. Made for the panic path.

use crate::transport::{Registers, Transport, TransportError};
use core::fmt;
use virtio_wire::console::{feature, offset};
use virtio_wire::{device_id, mmio};

/// Writes bytes straight to the host's record of this guest's last words.
#[derive(Debug)]
pub struct EmergencyConsole<R> {
    transport: Transport<R>,
}

impl<R: Registers> EmergencyConsole<R> {
    /// Looks for a console behind `registers` that has an emergency register: five reads, two writes, none of
    /// which disturbs a driver that uses the device.
    ///
    /// # Errors
    /// [`TransportError`] if there is none.
    pub fn probe(registers: R) -> Result<Self, TransportError> {
        let transport = Transport::probe(registers, device_id::CONSOLE)?;
        match feature::EMERG_WRITE & !transport.offered_features() {
            0 => Ok(Self { transport }),
            missing => Err(TransportError::FeaturesMissing { missing }),
        }
    }

    /// Writes one byte.
    pub fn write_byte(&self, byte: u8) {
        let offset = mmio::CONFIG_OFFSET + offset::EMERG_WR as u64;
        self.transport.registers().write32(offset, u32::from(byte));
    }
}

impl<R: Registers> fmt::Write for EmergencyConsole<R> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.write_byte(byte));
        Ok(())
    }
}
