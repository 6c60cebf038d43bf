//! How a device can misuse a queue, and why a request did not get in.

use core::fmt;

/// The used ring says something that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueFault {
    /// The used index advanced by more than the number of requests in flight (or went back).
    IndexJump {
        /// Running number of the last used entry the driver took.
        from: u16,
        /// The index in the ring.
        to: u16,
        /// Requests in flight.
        in_flight: u16,
    },
    /// The id of a used entry is not the head of a request in flight: out of range, never given, or returned
    /// before.
    NotInFlight {
        /// The id.
        id: u32,
    },
    /// The device claims to have written more than the request offered.
    TooLong {
        /// Bytes it claims.
        written: u32,
        /// Bytes the request offered.
        writable: u64,
    },
}

impl fmt::Display for QueueFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IndexJump { from, to, in_flight } => {
                write!(
                    f,
                    "used index went from {from} to {to} with {in_flight} requests in flight"
                )
            }
            Self::NotInFlight { id } => write!(f, "used entry names request {id}, which is not in flight"),
            Self::TooLong { written, writable } => {
                write!(f, "the device claims {written} bytes in a request of {writable}")
            }
        }
    }
}

impl core::error::Error for QueueFault {}

/// A request that was not accepted; its token comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// Fewer descriptors are free than the request has segments, or it has none.
    Full {
        /// What was submitted.
        token: T,
    },
    /// The device misused the queue before.
    Faulty {
        /// What was submitted.
        token: T,
        /// How.
        fault: QueueFault,
    },
}

impl<T> Refused<T> {
    /// What was submitted.
    pub fn into_token(self) -> T {
        match self {
            Self::Full { token } | Self::Faulty { token, .. } => token,
        }
    }
}
