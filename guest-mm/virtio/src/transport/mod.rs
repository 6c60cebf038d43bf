//! The virtio-mmio transport, version 2, seen from the driver (virtio 1.3 section 4.2).
//!
//! A register access leaves the guest (50 to 80 µs on a host without hardware virtualisation), so everything
//! here is counted: a request costs one write (notify), an interrupt one read and one write (status and
//! acknowledge). Configuration is read only when it is known to have changed.

mod error;
mod setup;
#[cfg(test)]
mod tests;

pub use error::TransportError;
pub use setup::{Features, QueueAddresses, Setup};

use crate::queue::Notify;
use virtio_wire::mmio::{self, Register};
use virtio_wire::status;

/// The register window of one device, as the kernel (volatile loads and stores) or a test offers it.
///
/// Offsets are bytes from the start of the window, naturally aligned. Each call is exactly one access of the
/// named width: the device tells them apart (section 4.2.2.2).
pub trait Registers {
    /// One 32-bit load.
    fn read32(&self, offset: u64) -> u32;
    /// One 32-bit store.
    fn write32(&self, offset: u64, value: u32);
    /// One 16-bit load.
    fn read16(&self, offset: u64) -> u16;
    /// One 8-bit load.
    fn read8(&self, offset: u64) -> u8;
}

impl<R: Registers + ?Sized> Registers for &R {
    fn read32(&self, offset: u64) -> u32 {
        (**self).read32(offset)
    }
    fn write32(&self, offset: u64, value: u32) {
        (**self).write32(offset, value);
    }
    fn read16(&self, offset: u64) -> u16 {
        (**self).read16(offset)
    }
    fn read8(&self, offset: u64) -> u8 {
        (**self).read8(offset)
    }
}

/// How often the configuration may change under a read before the driver gives up for now.
const CONFIG_ATTEMPTS: usize = 16;

/// A virtio device of known type at known registers.
#[derive(Debug)]
pub struct Transport<R> {
    registers: R,
}

/// Which of the two reasons the device had to interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterruptCause {
    /// Buffers of some queue were used.
    pub used_buffers: bool,
    /// The configuration or the device status changed.
    pub config_change: bool,
}

impl<R: Registers> Transport<R> {
    /// Looks for a device of type `device_id` (one of [`virtio_wire::device_id`]) behind `registers`: three
    /// reads, no writes.
    pub fn probe(registers: R, device_id: u32) -> Result<Self, TransportError> {
        let transport = Self { registers };
        match transport.read(Register::MagicValue) {
            mmio::MAGIC => {}
            magic => return Err(TransportError::NotVirtio { magic }),
        }
        match transport.read(Register::Version) {
            mmio::VERSION => {}
            version => return Err(TransportError::UnknownVersion { version }),
        }
        match transport.read(Register::DeviceId) {
            found if found == device_id => Ok(transport),
            found => Err(TransportError::OtherDevice {
                found,
                wanted: device_id,
            }),
        }
    }

    /// Takes the device through the whole sequence of section 3.1.1: reset, ACKNOWLEDGE, DRIVER, features,
    /// FEATURES_OK, whatever `set_up` does with its queues and configuration, DRIVER_OK. Returns what `set_up`
    /// returned and the features in force. Works on a device in any state, so it is also the way to start over.
    ///
    /// # Errors
    /// [`TransportError`] from the sequence or the error of `set_up`; the device is then marked FAILED, except
    /// when it would not even reset.
    pub fn initialise<T, E: From<TransportError>>(
        &self,
        features: Features,
        set_up: impl FnOnce(&Setup<'_, R>) -> Result<T, E>,
    ) -> Result<T, E> {
        setup::initialise(self, features, set_up)
    }

    /// Reads and acknowledges why the device interrupted. Must come before looking at queues or configuration:
    /// what happens after it interrupts again.
    pub fn take_interrupt(&self) -> InterruptCause {
        let raised = self.read(Register::InterruptStatus);
        if raised != 0 {
            self.write(Register::InterruptAck, raised);
        }
        InterruptCause {
            used_buffers: raised & mmio::INTERRUPT_USED_BUFFER != 0,
            config_change: raised & mmio::INTERRUPT_CONFIG_CHANGE != 0,
        }
    }

    /// Tells the device that queue `index` has new buffers, if [`VirtQueue::publish`] found that it must be told.
    ///
    /// [`VirtQueue::publish`]: crate::queue::VirtQueue::publish
    pub fn notify(&self, index: u16, need: Notify) {
        if need == Notify::Needed {
            self.write(Register::QueueNotify, u32::from(index));
        }
    }

    /// The features the device offers; asking disturbs nothing.
    pub fn offered_features(&self) -> u64 {
        setup::offered_features(self)
    }

    /// The registers themselves.
    pub(crate) fn registers(&self) -> &R {
        &self.registers
    }

    /// Whether the device has met an error that only a reset clears; announced by a configuration interrupt.
    pub fn needs_reset(&self) -> bool {
        self.read(Register::Status) & status::DEVICE_NEEDS_RESET != 0
    }

    /// Marks the device FAILED: the driver has given it up.
    pub fn fail(&self) {
        self.add_status(status::FAILED);
    }

    /// Reads several fields of the device's configuration as of one moment: `read` runs again when the
    /// generation changed under it (section 2.5.1).
    ///
    /// # Errors
    /// [`TransportError::ConfigUnstable`] if that happened too often.
    pub fn read_config<T>(&self, read: impl Fn(ConfigSpace<'_, R>) -> T) -> Result<T, TransportError> {
        let mut generation = self.read(Register::ConfigGeneration);
        for _ in 0..CONFIG_ATTEMPTS {
            let value = read(ConfigSpace {
                registers: &self.registers,
            });
            let now = self.read(Register::ConfigGeneration);
            if now == generation {
                return Ok(value);
            }
            generation = now;
        }
        Err(TransportError::ConfigUnstable)
    }

    fn add_status(&self, bits: u32) {
        let before = self.read(Register::Status);
        self.write(Register::Status, before | bits);
    }

    fn read(&self, register: Register) -> u32 {
        self.registers.read32(register.offset())
    }

    fn write(&self, register: Register, value: u32) {
        self.registers.write32(register.offset(), value);
    }
}

/// The device-specific configuration, during [`Transport::read_config`]. Offsets are those of
/// [`virtio_wire`], in bytes from the start of the configuration space.
#[derive(Debug)]
pub struct ConfigSpace<'a, R> {
    registers: &'a R,
}

impl<R: Registers> ConfigSpace<'_, R> {
    /// An 8-bit field.
    pub fn read8(&self, offset: usize) -> u8 {
        self.registers.read8(Self::at(offset))
    }

    /// An le16 field.
    pub fn read16(&self, offset: usize) -> u16 {
        self.registers.read16(Self::at(offset))
    }

    /// An le32 field.
    pub fn read32(&self, offset: usize) -> u32 {
        self.registers.read32(Self::at(offset))
    }

    /// An le64 field: two 32-bit accesses (section 4.2.2.2), held together by the generation.
    pub fn read64(&self, offset: usize) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    fn at(offset: usize) -> u64 {
        mmio::CONFIG_OFFSET + offset as u64
    }
}
