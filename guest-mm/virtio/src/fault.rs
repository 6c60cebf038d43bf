//! What can be wrong with a device, for all drivers alike.
//!
//! None of these is the guest's doing: a driver that meets one stops using the device, tells everyone who waits,
//! and can be started again (which resets the device).

use crate::dma::OutOfDmaMemory;
use crate::queue::QueueFault;
use crate::transport::TransportError;
use core::fmt;
use virtio_wire::mem::{UnknownResponse, UnknownState};

/// The device broke the protocol, or asked to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceFault {
    /// It set DEVICE_NEEDS_RESET (virtio 1.3 section 2.1.2).
    NeedsReset,
    /// It used a queue in a way that cannot be.
    Queue(QueueFault),
    /// Its answer to a request is shorter than an answer.
    ShortResponse {
        /// Bytes it says it wrote.
        written: u32,
    },
    /// Its answer to a request is none of the specification's.
    UnknownResponse(UnknownResponse),
    /// The block state in its answer is none of the specification's.
    UnknownState(UnknownState),
}

impl fmt::Display for DeviceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeedsReset => f.write_str("the device asks to be reset"),
            Self::Queue(fault) => fault.fmt(f),
            Self::ShortResponse { written } => write!(f, "the device answered with {written} bytes"),
            Self::UnknownResponse(response) => response.fmt(f),
            Self::UnknownState(state) => state.fmt(f),
        }
    }
}

impl core::error::Error for DeviceFault {}

impl From<QueueFault> for DeviceFault {
    fn from(fault: QueueFault) -> Self {
        Self::Queue(fault)
    }
}

/// A driver could not take up work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The device is not there, not the right one, or would not be set up.
    Transport(TransportError),
    /// The kernel has no frames for queues and buffers.
    Memory(OutOfDmaMemory),
    /// The device's configuration contradicts itself.
    Config(crate::mem::BadRegion),
    /// The device has broken down, and was not started again since.
    Broken(DeviceFault),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
            Self::Config(error) => error.fmt(f),
            Self::Broken(fault) => fault.fmt(f),
        }
    }
}

impl core::error::Error for StartError {}

impl From<TransportError> for StartError {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl From<DeviceFault> for StartError {
    fn from(fault: DeviceFault) -> Self {
        Self::Broken(fault)
    }
}

impl From<OutOfDmaMemory> for StartError {
    fn from(error: OutOfDmaMemory) -> Self {
        Self::Memory(error)
    }
}
