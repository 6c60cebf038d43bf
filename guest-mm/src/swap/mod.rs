//! Swap areas: where pages without a backing store go.
//!
//! An area is a disk, or a part of one, cut into slots of a page. Block 0 of it is the [`AreaHeader`]; block n is slot n. Slots are
//! given out in clusters, so that pages that leave together lie together and can be read together (Linux,
//! `mm/swapfile.c`). There can be several areas, with priorities. How many users a slot has is counted in memory only: nothing in an area outlives a boot.

mod areas;
mod entry;
mod header;
mod slots;
#[cfg(test)]
mod tests;

pub use areas::{AreaUsage, Areas, SwapOnError};
pub use entry::{AreaNr, MAX_AREA_BLOCKS, MAX_AREAS, SlotNr};
pub use header::{AreaHeader, HeaderError};
pub use slots::{CLUSTER_SLOTS, SlotError, SlotMap};
