//! Hot-plug blocks: the units in which memory comes and goes.
//!
//! A block goes `unplugged -> plugging -> offline -> online -> going-offline -> offline -> unplugged`. *Plugged*
//! is what the device says, *online* what the memory manager makes of it. Only online and going-offline blocks have
//! descriptors.

mod isolate;
mod plug;
mod rank;

use alloc::vec::Vec;

use crate::pfn::{Pfn, PfnRange};
use crate::section::SectionId;

pub use isolate::{InUse, IsolateError, IsolatedBlock, NotEmpty};
pub use plug::OnlineError;
pub use rank::{BlockCost, BlockUsage};

/// Number of a block in the hot-plug region, counted in blocks of the device's size from the region's start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockIndex(pub u32);

/// State of a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BlockState {
    /// Not there: an access is a violation.
    Unplugged,
    /// Asked for; the device has not answered.
    Plugging,
    /// Plugged, but not used: about to go online, or about to be unplugged.
    Offline,
    /// In its zone, in use.
    Online,
    /// Isolated: being emptied.
    GoingOffline,
}

impl BlockState {
    /// The name in the `blocks` report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unplugged => "unplugged",
            Self::Plugging => "plugging",
            Self::Offline => "offline",
            Self::Online => "online",
            Self::GoingOffline => "going-offline",
        }
    }
}

/// A block with what belongs to its state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Slot {
    Unplugged,
    Plugging,
    Offline,
    Online(SectionId),
    GoingOffline(SectionId),
}

impl Slot {
    pub(crate) const fn state(self) -> BlockState {
        match self {
            Self::Unplugged => BlockState::Unplugged,
            Self::Plugging => BlockState::Plugging,
            Self::Offline => BlockState::Offline,
            Self::Online(_) => BlockState::Online,
            Self::GoingOffline(_) => BlockState::GoingOffline,
        }
    }

    pub(crate) const fn section(self) -> Option<SectionId> {
        match self {
            Self::Online(id) | Self::GoingOffline(id) => Some(id),
            Self::Unplugged | Self::Plugging | Self::Offline => None,
        }
    }
}

/// Where blocks can be plugged. The default has none.
#[derive(Debug, Default)]
pub struct HotplugRegion {
    range: PfnRange,
    block_nr_pages: u32,
    pub(crate) slots: Vec<Slot>,
}

impl HotplugRegion {
    /// `range` is a multiple of `block_nr_pages`, which is a power of two of at least a pageblock.
    pub(crate) fn new(range: PfnRange, block_nr_pages: u32) -> Self {
        let nr_blocks = range.nr_pages() / block_nr_pages;
        Self {
            range,
            block_nr_pages,
            slots: alloc::vec![Slot::Unplugged; nr_blocks as usize],
        }
    }

    /// All frames that could be plugged.
    pub const fn range(&self) -> PfnRange {
        self.range
    }

    /// Frames in a block.
    pub const fn block_nr_pages(&self) -> u32 {
        self.block_nr_pages
    }

    /// Number of blocks, plugged or not.
    pub fn nr_blocks(&self) -> u32 {
        if self.range.is_empty() {
            0
        } else {
            self.range.nr_pages() / self.block_nr_pages
        }
    }

    /// First frame of a block, or `None` when there is no such block.
    pub fn block_range(&self, block: BlockIndex) -> Option<PfnRange> {
        (block.0 < self.nr_blocks()).then(|| self.range_of(block))
    }

    /// State of a block, or `None` when there is no such block.
    pub fn state(&self, block: BlockIndex) -> Option<BlockState> {
        Some(self.slots.get(block.0 as usize)?.state())
    }

    /// All blocks with their states, lowest address first.
    pub fn iter(&self) -> impl Iterator<Item = (BlockIndex, BlockState)> {
        (0u32..)
            .zip(&self.slots)
            .map(|(index, slot)| (BlockIndex(index), slot.state()))
    }

    /// The block that contains the frame, plugged or not.
    pub fn block_at(&self, pfn: Pfn) -> Option<BlockIndex> {
        self.range
            .contains(pfn)
            .then(|| BlockIndex((pfn - self.range.start()) / self.block_nr_pages))
    }

    pub(crate) fn slot(&self, block: BlockIndex) -> Option<Slot> {
        self.slots.get(block.0 as usize).copied()
    }

    pub(crate) fn range_of(&self, block: BlockIndex) -> PfnRange {
        PfnRange::new(
            self.range.start() + block.0 * self.block_nr_pages,
            self.block_nr_pages,
        )
        .expect("inside the region")
    }
}
