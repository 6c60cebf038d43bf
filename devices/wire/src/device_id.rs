//! Virtio device types: what a device answers in the `DeviceID` register (virtio 1.3, section 5).

/// Block device (section 5.2.1).
pub const BLOCK: u32 = 2;

/// Console device (section 5.3.1).
pub const CONSOLE: u32 = 3;

/// Entropy device (section 5.4.1).
pub const RNG: u32 = 4;

/// Traditional memory balloon device (section 5.5.1).
pub const BALLOON: u32 = 5;

/// Memory device, "virtio-mem" (section 5.15.1).
pub const MEM: u32 = 24;

/// Socket device, "virtio-vsock" (section 5.10.1).
pub const VSOCK: u32 = 19;

/// Network device (section 5.1.1).
pub const NET: u32 = 1;
