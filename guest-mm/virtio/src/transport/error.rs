//! Why a device cannot be driven.

use core::fmt;

/// The device is not there, not ours, or does not follow the initialisation protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportError {
    /// The magic value is wrong: there is no virtio-mmio device.
    NotVirtio {
        /// What the magic register says.
        magic: u32,
    },
    /// Not the register layout of version 2.
    UnknownVersion {
        /// What the version register says.
        version: u32,
    },
    /// A device of another type, or none (0).
    OtherDevice {
        /// What the device id register says.
        found: u32,
        /// What was looked for.
        wanted: u32,
    },
    /// The status did not become 0 after a reset.
    ResetStuck {
        /// The status instead.
        status: u32,
    },
    /// The device does not offer what the driver cannot do without.
    FeaturesMissing {
        /// The feature bits that are not offered.
        missing: u64,
    },
    /// The device did not keep FEATURES_OK.
    FeaturesRefused {
        /// The feature bits the driver had accepted.
        accepted: u64,
    },
    /// The queue does not exist, or not in a size the driver can work with.
    QueueTooSmall {
        /// The index.
        index: u16,
        /// The largest size it can have; 0 if it does not exist.
        largest: u32,
    },
    /// The queue was ready before it was set up, or not ready after.
    QueueStuck {
        /// The index.
        index: u16,
    },
    /// The configuration changed on every attempt to read it.
    ConfigUnstable,
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotVirtio { magic } => write!(f, "magic value {magic:#x} is not that of virtio-mmio"),
            Self::UnknownVersion { version } => write!(f, "virtio-mmio version {version} is not 2"),
            Self::OtherDevice { found, wanted } => write!(f, "device type {found} where {wanted} should be"),
            Self::ResetStuck { status } => write!(f, "status is {status:#x} after a reset"),
            Self::FeaturesMissing { missing } => write!(f, "features {missing:#x} are not offered"),
            Self::FeaturesRefused { accepted } => write!(f, "the device refused features {accepted:#x}"),
            Self::QueueTooSmall { index, largest } => {
                write!(f, "queue {index} has at most {largest} entries")
            }
            Self::QueueStuck { index } => write!(f, "queue {index} does not follow its ready bit"),
            Self::ConfigUnstable => f.write_str("the configuration keeps changing"),
        }
    }
}

impl core::error::Error for TransportError {}
