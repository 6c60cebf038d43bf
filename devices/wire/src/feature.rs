//! Feature bits that belong to every device, as masks of the 64-bit feature word (virtio 1.3, section 6).
//!
//! Bits of one device type are beside that type: [`crate::mem::feature`], [`crate::console::feature`], [`crate::vsock::feature`].

/// Descriptors may refer to a table of further descriptors (bit 28).
pub const RING_INDIRECT_DESC: u64 = 1 << 28;

/// The rings carry `used_event` and `avail_event` to suppress notifications (bit 29).
pub const RING_EVENT_IDX: u64 = 1 << 29;

/// The device follows version 1 of the specification (bit 32). A device offers it always, a driver must accept it.
pub const VERSION_1: u64 = 1 << 32;
