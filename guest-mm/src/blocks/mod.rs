//! Hot-plug blocks: the units in which memory comes and goes.
//!
//! A block goes `unplugged -> plugging -> offline -> online -> going-offline -> offline -> unplugged`. *Plugged*
//! is what the device says, *online* what the memory manager makes of it. Only online and going-offline blocks have
//! descriptors.

mod events;
mod isolate;
mod memmap;
mod plug;
mod rank;

use alloc::vec::Vec;

use guest_sync::SpinLock;

use crate::mem_map::Tag;
use crate::node::{NodeId, NodeState};
use crate::pageblock::Pageblock;
use crate::pfn::{PAGEBLOCK_NR_PAGES, Pfn, PfnRange};
use crate::section::Section;

use events::MemoryEvents;

pub use events::{Change, EventsAfter, MemoryEvent};
pub use isolate::{InUse, IsolateError, IsolatedBlock, NotEmpty};
pub use memmap::Memmap;
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

/// A block with what belongs to its state: where its section is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Slot {
    Unplugged,
    Plugging,
    Offline,
    Online(Tag),
    GoingOffline(Tag),
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

    pub(crate) const fn section(self) -> Option<Tag> {
        match self {
            Self::Online(tag) | Self::GoingOffline(tag) => Some(tag),
            Self::Unplugged | Self::Plugging | Self::Offline => None,
        }
    }
}

/// Where blocks can be plugged, and what became of each. The default has none.
#[derive(Debug, Default)]
pub(crate) struct HotplugRegion {
    node: NodeId,
    range: PfnRange,
    block_nr_pages: u32,
    slots: Vec<Slot>,
    events: MemoryEvents,
}

impl HotplugRegion {
    /// `range` is a multiple of `block_nr_pages`, which is a power of two of at least a pageblock.
    pub(crate) fn new(node: NodeId, range: PfnRange, block_nr_pages: u32) -> Self {
        let nr_blocks = range.nr_pages() / block_nr_pages;
        Self {
            node,
            range,
            block_nr_pages,
            slots: alloc::vec![Slot::Unplugged; nr_blocks as usize],
            events: MemoryEvents::with_room(),
        }
    }

    pub(crate) const fn node(&self) -> NodeId {
        self.node
    }

    pub(crate) const fn range(&self) -> PfnRange {
        self.range
    }

    pub(crate) fn slot(&self, block: BlockIndex) -> Option<Slot> {
        self.slots.get(block.0 as usize).copied()
    }

    /// From now on this is known of a block of the region.
    pub(crate) fn set(&mut self, block: BlockIndex, slot: Slot) {
        let known = &mut self.slots[block.0 as usize];
        let from = core::mem::replace(known, slot).state();
        let to = slot.state();
        self.events.add(Change::Block { block, from, to });
    }

    /// A node has got its first memory, or lost its last.
    pub(crate) fn node_is(&mut self, node: NodeId, state: NodeState) {
        self.events.add(Change::Node { node, to: state });
    }

    /// All blocks with what is known of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (BlockIndex, Slot)> {
        (0u32..)
            .zip(&self.slots)
            .map(|(index, &slot)| (BlockIndex(index), slot))
    }

    pub(crate) fn range_of(&self, block: BlockIndex) -> PfnRange {
        PfnRange::new(
            self.range.start() + block.0 * self.block_nr_pages,
            self.block_nr_pages,
        )
        .expect("inside the region")
    }
}

/// The hot-plug region as others see it: each call is one look, under the lock.
#[derive(Clone, Copy, Debug)]
pub struct Hotplug<'a> {
    region: &'a SpinLock<HotplugRegion>,
}

impl<'a> Hotplug<'a> {
    pub(crate) const fn of(region: &'a SpinLock<HotplugRegion>) -> Self {
        Self { region }
    }

    /// The node that the region is near to.
    pub fn node(&self) -> NodeId {
        self.region.lock().node
    }

    /// All frames that could be plugged.
    pub fn range(&self) -> PfnRange {
        self.region.lock().range
    }

    /// Frames in a block.
    pub fn block_nr_pages(&self) -> u32 {
        self.region.lock().block_nr_pages
    }

    /// Bytes of the kernel's own that a block takes while it is online, besides its descriptors: at most.
    pub fn bookkeeping_bytes(&self) -> u64 {
        let nr_pageblocks = u64::from(self.block_nr_pages() / PAGEBLOCK_NR_PAGES);
        let pageblocks = nr_pageblocks * size_of::<Pageblock>() as u64;
        // General caches have sizes that are powers of two.
        (size_of::<Section>() as u64).next_power_of_two() + pageblocks.next_power_of_two()
    }

    /// Number of blocks, plugged or not.
    pub fn nr_blocks(&self) -> u32 {
        let region = self.region.lock();
        u32::try_from(region.slots.len()).expect("made for a u32 of frames")
    }

    /// The frames of a block, or `None` when there is no such block.
    pub fn block_range(&self, block: BlockIndex) -> Option<PfnRange> {
        let region = self.region.lock();
        region.slot(block).map(|_| region.range_of(block))
    }

    /// State of a block, or `None` when there is no such block.
    pub fn state(&self, block: BlockIndex) -> Option<BlockState> {
        Some(self.region.lock().slot(block)?.state())
    }

    /// All blocks with their states, lowest address first.
    pub fn iter(&self) -> impl Iterator<Item = (BlockIndex, BlockState)> + use<'a> {
        let view = *self;
        (0..view.nr_blocks())
            .map(BlockIndex)
            .filter_map(move |block| Some((block, view.state(block)?)))
    }

    /// What has happened to blocks and nodes after the event with that number, as far as it is kept: the newest 2048 steps.
    pub fn events_after(&self, number: u64) -> EventsAfter {
        self.region.lock().events.after(number)
    }

    /// The block that contains the frame, plugged or not.
    pub fn block_at(&self, pfn: Pfn) -> Option<BlockIndex> {
        let region = self.region.lock();
        let inside = region.range.contains(pfn);
        inside.then(|| BlockIndex((pfn - region.range.start()) / region.block_nr_pages))
    }
}
