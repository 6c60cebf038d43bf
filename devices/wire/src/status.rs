//! Bits of the device status field, which traces how far a driver has come (virtio 1.3, section 2.1).
//!
//! The register is 32 bits wide on the MMIO transport. Writing 0 resets the device; other bits may only be added.

/// No driver has touched the device, or it was reset.
pub const RESET: u32 = 0;

/// The guest has found the device.
pub const ACKNOWLEDGE: u32 = 1;

/// The guest has a driver for the device.
pub const DRIVER: u32 = 2;

/// The driver is set up: the device may now use buffers and send notifications.
pub const DRIVER_OK: u32 = 4;

/// Feature negotiation is complete. The device leaves it unset when it cannot work with the accepted features.
pub const FEATURES_OK: u32 = 8;

/// Set by the device: it met an error that only a reset can clear.
pub const DEVICE_NEEDS_RESET: u32 = 64;

/// Set by the driver: it has given up on the device.
pub const FAILED: u32 = 128;
