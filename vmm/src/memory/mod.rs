//! The guest's memory on the host: boot RAM, and the hot-plug regions whose blocks come and go.
//!
//! [`GuestRam`] maps both, at host addresses that agree with guest addresses modulo 2 MiB, so that a huge page of the
//! host can serve a huge page of the guest. What stands behind them is anonymous memory, a memfd or huge pages of
//! hugetlbfs ([`crate::spec::Backing`]). A hot-plug region is `PROT_NONE` except where a block is plugged: what the
//! guest does not own, nobody can touch. Three things follow the state of a block:
//!
//! - the page protection, which stops vCPUs ([`RegionBackend`] changes it);
//! - the [`PluggedMap`], which is read before every access that the VMM itself makes for the guest;
//! - [`CheckedMemory`], the only view of guest memory that devices get: it refuses a range that touches an
//!   unplugged block, so that a ring placed there is the guest's fault and never the VMM's death.
//!
//! Invariant: devices use [`CheckedMemory`] only on the thread that also plugs and unplugs (the event loop), so no
//! block can go between the check and the access. I/O that goes on after that holds a [`Pin`] on its blocks.
//!
//! Nothing is believed to be free that the host does not show free: see [`Discarded`].

mod backend;
mod checked;
mod discard;
mod mapping;
mod pagemap;
mod pages;
mod pins;
mod plugged;
mod populate;
mod ram;
mod region;
mod resident;
#[cfg(test)]
mod testing;

pub use backend::RegionBackend;
pub use checked::CheckedMemory;
pub use discard::Discarded;
pub use pages::GuestPages;
pub use pins::Pin;
pub use plugged::PluggedMap;
pub use ram::{GuestRam, MemorySlot, RamRegion};
pub use region::{Region, RegionAccount, RegionLayout, RegionPlan};
pub use resident::Resident;

use std::io;

use thiserror::Error;

use crate::spec::Backing;

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
    /// The kernel has no such memory, or no descriptor for it.
    #[error("cannot make {backing} memory: {source}")]
    File {
        /// What was to be made.
        backing: Backing,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pool of huge pages is too small.
    #[error("the host has no {pages} free huge pages of {page_mib} MiB (see vm.nr_hugepages)")]
    HugePages {
        /// How many are needed.
        pages: u64,
        /// Size of one, in MiB.
        page_mib: u64,
    },
    /// The host has not the memory that blocks are to be backed with.
    #[error("{size} bytes of guest memory are to be backed, and the host has {available} to give")]
    Shortage {
        /// Length, in bytes.
        size: u64,
        /// What could be had, in bytes.
        available: u64,
    },
    /// The kernel did not get pages.
    #[error("cannot back {size} bytes of guest memory at offset {offset:#x}: {source}")]
    Populate {
        /// Offset into the mapping, in bytes.
        offset: u64,
        /// Length, in bytes.
        size: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// Device I/O uses a block that is to be unplugged.
    #[error("block {block} is in use by device I/O")]
    Pinned {
        /// Its index.
        block: u64,
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
