#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(test)]
extern crate std;

mod areas;
pub mod blocks;
mod buddy;
pub mod compact;
pub mod disk;
mod fill;
pub mod frames;
pub mod fs;
pub mod futex;
pub mod gfp;
pub mod host;
pub mod kernel_map;
pub mod kmap;
mod lru;
mod mem_map;
pub mod memory_failure;
pub mod mempool;
pub mod migrate;
pub mod mm;
pub mod node;
pub mod page;
mod pageblock;
pub mod pagetable;
mod pcp;
pub mod pfn;
pub mod phys;
pub mod radix_tree;
pub mod reclaim;
pub mod report;
mod section;
pub mod slab;
pub mod stats;
pub mod swap;
pub mod validate;
pub mod vmalloc;
pub mod wait;
pub mod zone;

#[cfg(test)]
mod tests;

pub use blocks::{BlockIndex, BlockState, IsolatedBlock, Memmap};
pub use frames::{FlushBatch, Frames, Mmu, SpaceId};
pub use gfp::Gfp;
pub use lru::LruList;
pub use mem_map::MemMap;
pub use mm::{Backing, FixedMapping, HugeAdvice, MapRequest, Mm, Place, Prot};
pub use node::{NodeId, NodeState, Topology, ZoneLimits};
pub use page::{KernelUse, Page, PageFlags, PageState};
pub use pageblock::MigrateType;
pub use pagetable::{Access, Entry, VaRange};
pub use pfn::{Order, PAGE_SIZE, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};
pub use phys::{AllocError, BootRegion, FrameState, FreeError, PhysicalMemory};
pub use reclaim::{Reclaim, Shrinker};
pub use stats::{VmStat, ZoneStat};
pub use zone::{Watermark, Zone, ZoneKind};
