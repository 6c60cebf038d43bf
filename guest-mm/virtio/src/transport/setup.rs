//! The initialisation sequence of a device (virtio 1.3 sections 3.1.1 and 4.2.3).

use super::{Registers, Transport, TransportError};
use crate::dma::Gpa;
use core::ops::RangeInclusive;
use virtio_wire::mmio::Register;
use virtio_wire::{feature, status};

/// What a driver can do with, and what it cannot do without. Masks of the 64-bit feature word;
/// VIRTIO_F_VERSION_1 goes without saying.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Accepted when offered.
    pub supported: u64,
    /// Accepted, and the device must offer them.
    pub required: u64,
}

/// Where the parts of a split queue lie in guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddresses {
    /// Number of descriptors: a power of two.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: Gpa,
    /// The available ring ("driver area").
    pub avail: Gpa,
    /// The used ring ("device area").
    pub used: Gpa,
}

/// A device between FEATURES_OK and DRIVER_OK: the time to set up queues and read the configuration.
#[derive(Debug)]
pub struct Setup<'a, R> {
    transport: &'a Transport<R>,
    features: u64,
}

/// Reads of the status after a reset before the device counts as stuck. A reset is done when the write returns on
/// all devices that finish their work in the exit; the rest is grace.
const RESET_ATTEMPTS: usize = 1000;

pub(super) fn initialise<R: Registers, T, E: From<TransportError>>(
    transport: &Transport<R>,
    features: Features,
    set_up: impl FnOnce(&Setup<'_, R>) -> Result<T, E>,
) -> Result<T, E> {
    reset(transport)?;
    let mut so_far = status::ACKNOWLEDGE;
    transport.write(Register::Status, so_far);
    so_far |= status::DRIVER;
    transport.write(Register::Status, so_far);

    let done = negotiate(transport, features, &mut so_far)
        .map_err(E::from)
        .and_then(|features| set_up(&Setup { transport, features }));
    let last = if done.is_ok() {
        status::DRIVER_OK
    } else {
        status::FAILED
    };
    transport.write(Register::Status, so_far | last);
    done
}

fn reset<R: Registers>(transport: &Transport<R>) -> Result<(), TransportError> {
    transport.write(Register::Status, status::RESET);
    let mut now = status::RESET;
    for _ in 0..RESET_ATTEMPTS {
        now = transport.read(Register::Status);
        if now == status::RESET {
            return Ok(());
        }
    }
    Err(TransportError::ResetStuck { status: now })
}

fn negotiate<R: Registers>(
    transport: &Transport<R>,
    features: Features,
    so_far: &mut u32,
) -> Result<u64, TransportError> {
    let required = features.required | feature::VERSION_1;
    let offered = transport.offered_features();
    let missing = required & !offered;
    if missing != 0 {
        return Err(TransportError::FeaturesMissing { missing });
    }
    let accepted = offered & (features.supported | required);
    for (select, bits) in (0..).zip(halves(accepted)) {
        transport.write(Register::DriverFeaturesSel, select);
        transport.write(Register::DriverFeatures, bits);
    }
    transport.write(Register::Status, *so_far | status::FEATURES_OK);
    if transport.read(Register::Status) & status::FEATURES_OK == 0 {
        return Err(TransportError::FeaturesRefused { accepted });
    }
    *so_far |= status::FEATURES_OK;
    Ok(accepted)
}

pub(super) fn offered_features<R: Registers>(transport: &Transport<R>) -> u64 {
    let half = |select| {
        transport.write(Register::DeviceFeaturesSel, select);
        u64::from(transport.read(Register::DeviceFeatures))
    };
    half(0) | half(1) << 32
}

/// The low and the high 32 bits.
fn halves(word: u64) -> [u32; 2] {
    let bytes = word.to_le_bytes();
    let half = |at: usize| u32::from_le_bytes(core::array::from_fn(|byte| bytes[at + byte]));
    [half(0), half(4)]
}

impl<R: Registers> Setup<'_, R> {
    /// The features in force.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The device, for instance to read its configuration.
    pub fn transport(&self) -> &Transport<R> {
        self.transport
    }

    /// The largest size in `wanted` that queue `index` can have. Both ends of `wanted` are powers of two, and so is
    /// the answer.
    ///
    /// # Errors
    /// [`TransportError::QueueTooSmall`], also when there is no such queue at all.
    pub fn queue_size(&self, index: u16, wanted: RangeInclusive<u16>) -> Result<u16, TransportError> {
        self.transport.write(Register::QueueSel, u32::from(index));
        let largest = self.transport.read(Register::QueueSizeMax);
        let size = u16::try_from(largest).unwrap_or(u16::MAX).min(*wanted.end());
        // Round down to a power of two; `checked_ilog2` is `None` for 0: no such queue.
        let size = size.checked_ilog2().map_or(0, |exponent| 1 << exponent);
        if wanted.contains(&size) {
            Ok(size)
        } else {
            Err(TransportError::QueueTooSmall { index, largest })
        }
    }

    /// Makes queue `index` known to the device. `queue.size` comes from [`queue_size`](Self::queue_size).
    pub fn install(&self, index: u16, queue: QueueAddresses) -> Result<(), TransportError> {
        let transport = self.transport;
        transport.write(Register::QueueSel, u32::from(index));
        if transport.read(Register::QueueReady) != 0 {
            return Err(TransportError::QueueStuck { index });
        }
        transport.write(Register::QueueSize, u32::from(queue.size));
        for (low, high, area) in [
            (Register::QueueDescLow, Register::QueueDescHigh, queue.descriptors),
            (Register::QueueDriverLow, Register::QueueDriverHigh, queue.avail),
            (Register::QueueDeviceLow, Register::QueueDeviceHigh, queue.used),
        ] {
            let [low_half, high_half] = halves(area.raw());
            transport.write(low, low_half);
            transport.write(high, high_half);
        }
        transport.write(Register::QueueReady, 1);
        match transport.read(Register::QueueReady) {
            1 => Ok(()),
            _ => Err(TransportError::QueueStuck { index }),
        }
    }
}
