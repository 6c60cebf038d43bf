//! The memory device, "virtio-mem" (virtio 1.3, section 5.15).
//!
//! A region of guest-physical memory is cut into blocks, each plugged or unplugged. The device publishes how much
//! it wants plugged ([`Config::requested_size`]); the driver sends a [`Request`] for consecutive blocks on queue 0
//! and gets a [`Response`]. The names of the fields are those of the specification.

mod config;
mod request;
mod response;

pub use config::{Config, offset};
pub use request::{BlockRange, Request, RequestType, UnknownRequest};
pub use response::{BlockState, Response, ResponseType, UnknownResponse, UnknownState};

/// Index of the only queue, "guest-request" (section 5.15.2).
pub const QUEUE_REQUEST: u16 = 0;

/// Feature bits of the memory device, as masks of the 64-bit feature word (section 5.15.3).
pub mod feature {
    /// `node_id` in the configuration is valid (bit 0).
    pub const ACPI_PXM: u64 = 1 << 0;
    /// The driver may not access unplugged memory (bit 1).
    pub const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
    /// The guest may be suspended with memory plugged (bit 2).
    pub const PERSISTENT_SUSPEND: u64 = 1 << 2;
}
