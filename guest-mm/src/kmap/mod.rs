//! Frames outside the direct map, mapped for as long as somebody looks at them (Linux 2.6 `mm/highmem.c`).
//!
//! Memory above the end of the direct map (zone HighMem) has no address in the kernel. Two windows lend it some:
//!
//! * [`PermanentMaps`] (`kmap`): a mapping that any CPU may use and that may be kept across waits. The window has a fixed
//!   number of slots, so whoever finds none waits for one. A frame that is mapped already is not mapped twice.
//! * [`AtomicMaps`] (`kmap_atomic`): a mapping for the CPU that makes it, until it is dropped and before that CPU does
//!   anything else. It never waits and takes no lock; the slots of a CPU nest like calls.
//!
//! Both flush lazily: a slot is used again only after all others have been, and one flush then serves them all.

mod atomic;
mod permanent;
#[cfg(test)]
mod tests;

pub use atomic::{AtomicMap, AtomicMaps, AtomicStats, MAX_NESTED};
pub use permanent::{Kmap, KmapStats, PermanentMaps};

use crate::pagetable::Entry;

/// Rights of a mapping.
const LEAF: u64 = Entry::PRESENT | Entry::WRITABLE | Entry::USER | Entry::NO_EXECUTE;
