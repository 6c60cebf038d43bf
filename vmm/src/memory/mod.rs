//! The guest's memory on the host: boot RAM, and the hot-plug region whose blocks come and go.
//!
//! [`GuestRam`] maps both as anonymous memory, at host addresses that agree with guest addresses modulo 2 MiB, so
//! that a huge page of the host can serve a huge page of the guest. The hot-plug region is `PROT_NONE` except where
//! a block is plugged: what the guest does not own, nobody can touch. Three things follow the state of a block:
//!
//! - the page protection, which stops vCPUs ([`RegionBackend`] changes it);
//! - the [`PluggedMap`], which is read before every access that the VMM itself makes for the guest;
//! - [`CheckedMemory`], the only view of guest memory that devices get: it refuses a range that touches an
//!   unplugged block, so that a ring placed there is the guest's fault and never the VMM's death.
//!
//! Invariant: devices use [`CheckedMemory`] only on the thread that also plugs and unplugs (the event loop), so no
//! block can go between the check and the access.

mod backend;
mod checked;
mod mapping;
mod pages;
mod pins;
mod plugged;
mod ram;
mod resident;

pub use backend::RegionBackend;
pub use checked::CheckedMemory;
pub use pages::GuestPages;
pub use pins::Pin;
pub use plugged::PluggedMap;
pub use ram::{GuestRam, MemorySlot, RamRegion, Region, RegionLayout};
pub use resident::Resident;

use std::io;

use thiserror::Error;

/// What the host can refuse about memory.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The kernel gave no address space.
    #[error("cannot map {size} bytes of guest memory: {source}")]
    Map {
        /// Size of the mapping, in bytes.
        size: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel did not change the protection of a part of a mapping.
    #[error("cannot make {size} bytes of guest memory at offset {offset:#x} {access}: {source}")]
    Protect {
        /// Offset into the mapping, in bytes.
        offset: u64,
        /// Length, in bytes.
        size: u64,
        /// What it was to become.
        access: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel did not take pages back.
    #[error("cannot discard {size} bytes of guest memory at offset {offset:#x}: {source}")]
    Discard {
        /// Offset into the mapping, in bytes.
        offset: u64,
        /// Length, in bytes.
        size: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The address space of a guest or of this process does not hold the memory asked for.
    #[error("{size} bytes of guest memory at {gpa:#x} do not fit in the address space")]
    AddressSpace {
        /// Guest-physical address.
        gpa: u64,
        /// Length, in bytes.
        size: u64,
    },
    /// The kernel's account of this process's mappings cannot be read.
    #[error("cannot read {path}: {source}")]
    Account {
        /// The file.
        path: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
