//! A hot-plug region: where it is, which of its blocks the guest has, and what became of those that it gave back.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::mem::UnpluggedMemory;

use super::discard::Discarded;
use super::mapping::{Access, Mapping, Reserve};
use super::pins::PinTable;
use super::plugged::PluggedMap;
use super::{MemoryError, MemorySlot};
use crate::spec::{Backing, PageSupply};

/// Where a hot-plug region is. Sizes are bytes; all three are multiples of `block_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionLayout {
    /// Guest-physical address of the first block.
    pub start: u64,
    /// Size of the region.
    pub size: u64,
    /// Size of a block: a power of two, at least 2 MiB.
    pub block_size: u64,
}

impl RegionLayout {
    /// The first address behind it.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start + self.size
    }
}

/// What a region is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionPlan {
    /// Where it is.
    pub layout: RegionLayout,
    /// What stands behind it. Its pages are at most as large as a block.
    pub backing: Backing,
    /// When the guest's blocks get their pages.
    pub pages: PageSupply,
    /// What the guest may do with unplugged blocks. To be readable they must be anonymous memory: a read of any other
    /// takes a page.
    pub unplugged: UnpluggedMemory,
}

/// An anonymous region whose blocks get their pages as they are touched.
impl From<RegionLayout> for RegionPlan {
    fn from(layout: RegionLayout) -> Self {
        Self {
            layout,
            backing: Backing::Anonymous,
            pages: PageSupply::OnTouch,
            unplugged: UnpluggedMemory::Inaccessible,
        }
    }
}

/// A hot-plug region.
#[derive(Debug)]
pub struct Region {
    layout: RegionLayout,
    pages: PageSupply,
    unplugged: UnpluggedMemory,
    pub(super) mapping: Arc<Mapping>,
    pub(super) plugged: PluggedMap,
    pub(super) pins: PinTable,
    pub(super) counters: Counters,
}

impl Region {
    pub(super) fn new(plan: &RegionPlan) -> Result<Self, MemoryError> {
        let RegionPlan { layout, backing, .. } = *plan;
        let pages = match backing {
            Backing::Hugetlbfs(_) => PageSupply::AtPlug,
            Backing::Anonymous | Backing::Memfd => plan.pages,
        };
        let access = access_unplugged(plan.unplugged);
        let mapping = Arc::new(Mapping::new(layout.size, backing, access, Reserve::Nothing)?);
        Ok(Self {
            layout,
            pages,
            unplugged: plan.unplugged,
            mapping,
            plugged: PluggedMap::new(layout.size / layout.block_size),
            pins: PinTable::default(),
            counters: Counters::default(),
        })
    }

    /// Where the region is.
    #[must_use]
    pub fn layout(&self) -> RegionLayout {
        self.layout
    }

    /// What stands behind it.
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.mapping.backing()
    }

    /// When plugged blocks get their pages.
    #[must_use]
    pub fn pages(&self) -> PageSupply {
        self.pages
    }

    /// Which of its blocks are plugged.
    #[must_use]
    pub fn plugged(&self) -> &PluggedMap {
        &self.plugged
    }

    /// How many blocks device I/O has pinned now.
    #[must_use]
    pub fn pinned_blocks(&self) -> u64 {
        self.pins.len()
    }

    /// What became of unplugged blocks, and of requests that had to wait, so far.
    #[must_use]
    pub fn account(&self) -> RegionAccount {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RegionAccount {
            discarded: Discarded {
                claimed: read(&self.counters.claimed),
                shown: read(&self.counters.shown),
            },
            busy_pinned: read(&self.counters.busy_pinned),
            busy_memory: read(&self.counters.busy_memory),
        }
    }

    /// The index of the block at `gpa`, if that is in the region.
    #[must_use]
    pub fn block_at(&self, gpa: u64) -> Option<u64> {
        let offset = gpa.checked_sub(self.layout.start)?;
        (offset < self.layout.size).then(|| offset / self.layout.block_size)
    }

    /// The parts that are plugged now, neighbouring blocks joined, in address order.
    pub(super) fn plugged_slots(&self) -> Vec<MemorySlot> {
        let (block, hva) = (self.layout.block_size, self.mapping.as_ptr() as u64);
        let part = |run: Range<u64>| MemorySlot {
            gpa: self.layout.start + run.start * block,
            size: (run.end - run.start) * block,
            hva: hva + run.start * block,
        };
        self.plugged.runs().into_iter().map(part).collect()
    }

    /// The parts of a range of guest-physical addresses inside the region that are plugged.
    pub(super) fn plugged_parts(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let address = |block: u64| self.layout.start + block * self.layout.block_size;
        let runs = self
            .plugged
            .runs_in(self.blocks_of(range.start, range.end - range.start));
        runs.into_iter()
            .map(|run| address(run.start).max(range.start)..address(run.end).min(range.end))
            .collect()
    }

    /// Whether `len` bytes at `gpa` touch no unplugged block.
    pub(super) fn allows(&self, gpa: u64, len: u64) -> bool {
        self.plugged.all_plugged(self.blocks_of(gpa, len))
    }

    /// The blocks that `len` bytes at `gpa` touch; none if those are elsewhere.
    pub(super) fn blocks_of(&self, gpa: u64, len: u64) -> Range<u64> {
        let start = gpa.max(self.layout.start);
        let end = gpa.saturating_add(len).min(self.layout.end());
        if start >= end {
            return 0..0;
        }
        let first = (start - self.layout.start) / self.layout.block_size;
        first..(end - self.layout.start).div_ceil(self.layout.block_size)
    }

    /// How unplugged blocks are protected.
    pub(super) fn access_unplugged(&self) -> Access {
        access_unplugged(self.unplugged)
    }
}

fn access_unplugged(unplugged: UnpluggedMemory) -> Access {
    match unplugged {
        UnpluggedMemory::Inaccessible => Access::None,
        UnpluggedMemory::Readable => Access::ReadOnly,
    }
}

/// What a region's backend has counted since the region exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegionAccount {
    /// Bytes of unplugged blocks: claimed free, and shown free by the host.
    pub discarded: Discarded,
    /// UNPLUG requests that had to wait for device I/O.
    pub busy_pinned: u64,
    /// Requests that had to wait because the host was short of memory.
    pub busy_memory: u64,
}

/// [`RegionAccount`] as it is counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) claimed: AtomicU64,
    pub(super) shown: AtomicU64,
    pub(super) busy_pinned: AtomicU64,
    pub(super) busy_memory: AtomicU64,
}

impl Counters {
    pub(super) fn count(&self, discarded: Discarded) {
        self.claimed.fetch_add(discarded.claimed, Ordering::Relaxed);
        self.shown.fetch_add(discarded.shown, Ordering::Relaxed);
    }
}
