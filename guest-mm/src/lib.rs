#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(test)]
extern crate std;

mod fill;
pub mod frames;
pub mod gfp;
pub mod page;
pub mod pfn;
pub mod zone;

pub use frames::{FlushBatch, Frames, Mmu, SpaceId};
pub use gfp::Gfp;
pub use page::{Page, PageFlags, PageState};
pub use pfn::{Order, PAGE_SIZE, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};
pub use zone::{Watermark, Zone, ZoneKind};
