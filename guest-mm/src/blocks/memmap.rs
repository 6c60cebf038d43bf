//! Where the descriptors of a hot-added block are: in boot memory, or in the block's own first frames, so that growing
//! takes hardly any of the memory that is there before (Takahashi, memory hotplug, 2003: "management data placed so that removal stays possible"; Linux
//! `memmap_on_memory`, `mm/memory_hotplug.c`).
//!
//! On the block they are the first to come and the last to go: the array of descriptors is backed with these frames before the block goes
//! online, and shows zeroes again before it is unplugged. In between the frames are [`PageState::Reserved`]: they exist and count as
//! present, and nobody gets them. A block smaller than a few pageblocks pays with its free pageblock: no huge page fits on 2 MiB less four frames.

use crate::areas::FreeAreas;
use crate::blocks::BlockIndex;
use crate::mem_map::{FrameTable, Tag};
use crate::page::{Head, PageState};
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};
use crate::phys::PhysicalMemory;
use crate::section::Section;

/// Where a block's descriptors are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Memmap {
    /// In frames of the kernel's own, that were there before.
    #[default]
    BootMemory,
    /// In the block's own first frames.
    OnBlock,
}

/// Descriptors in a frame.
const PER_FRAME: u32 = 128;

#[cfg(not(loom))]
const _: () = assert!(PER_FRAME as u64 * crate::kernel_map::DESCRIPTOR_BYTES == crate::pfn::PAGE_SIZE);
const _: () = assert!(PAGEBLOCK_NR_PAGES.is_multiple_of(PER_FRAME));

impl Memmap {
    /// Its word in the control tree.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BootMemory => "boot",
            Self::OnBlock => "block",
        }
    }

    /// The frames of a block, aligned to pageblocks, that hold its own descriptors: a 128th of it, or none.
    pub fn frames_of(self, block: PfnRange) -> PfnRange {
        let nr_pages = match self {
            Self::BootMemory => 0,
            Self::OnBlock => block.nr_pages() / PER_FRAME,
        };
        PfnRange::new(block.start(), nr_pages).expect("a part of the block")
    }
}

impl PhysicalMemory<'_> {
    /// Where the descriptors of a block are; `None` unless it is online or going offline.
    pub fn memmap(&self, block: BlockIndex) -> Option<Memmap> {
        let usage = self.block_usage(block)?;
        Some(match usage.memmap_pages {
            0 => Memmap::BootMemory,
            _ => Memmap::OnBlock,
        })
    }
}

/// Makes a block's frames free but for those of its descriptors; with the zone's lock.
pub(super) fn fill(
    areas: &mut FreeAreas,
    table: &FrameTable<'_>,
    tag: Tag,
    (range, own): (PfnRange, PfnRange),
) {
    for pfn in own.iter() {
        table.page(pfn).set_head(Head::bare(PageState::Reserved));
    }
    for (pfn, order) in chunks(range, own) {
        areas.give(&table.tags, tag, pfn, order);
    }
}

/// The rest of a block behind `own`, in chunks as large as they come, up to a pageblock.
fn chunks(range: PfnRange, own: PfnRange) -> impl Iterator<Item = (Pfn, Order)> {
    let mut next = own.end();
    core::iter::from_fn(move || {
        let pfn = next;
        let order = Order::all().take_while(|order| *order <= Order::PAGEBLOCK && pfn.is_aligned(*order));
        let order = order.last().filter(|_| pfn < range.end())?;
        next = pfn + order.nr_pages();
        Some((pfn, order))
    })
}

impl Section {
    /// The frames that hold its own descriptors; empty if those are elsewhere.
    pub(crate) fn memmap(&self) -> PfnRange {
        PfnRange::new(self.range.start(), self.memmap_pages).expect("a part of the section")
    }
}
