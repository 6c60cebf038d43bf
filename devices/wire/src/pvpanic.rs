//! Events of the pvpanic device, bits of its one-byte port (QEMU `docs/specs/pvpanic.rst`).
//!
//! Reading the port tells the events the host supports; writing reports one.

/// The guest has panicked.
pub const PANICKED: u8 = 1 << 0;

/// The guest has panicked and handles the crash itself: the host shall only take note.
pub const CRASH_LOADED: u8 = 1 << 1;
