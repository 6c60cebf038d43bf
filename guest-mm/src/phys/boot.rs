//! Memory that is there at boot, and the errors of adding memory at all.

use ::alloc::boxed::Box;
use core::fmt;

use crate::areas::{FreeAreas, Room};
use crate::blocks::{BlockIndex, BlockState, HotplugRegion};
use crate::mem_map::{FrameTable, MAX_SECTIONS, Tag};
use crate::node::NodeId;
use crate::page::{Head, PageState};
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};
use crate::phys::PhysicalMemory;
use crate::section::{Section, SectionHome};
use crate::zone::{Zone, ZoneKind};

/// A stretch of boot memory. What is in none of the `usable` ranges is a hole; `reserved` takes frames out of the
/// usable ones for the kernel image, boot data and the like. Ranges may overlap and may reach beyond the span.
#[derive(Clone, Copy, Debug)]
pub struct BootRegion<'a> {
    /// The node that it is near to.
    pub node: NodeId,
    /// Pageblock-aligned. It is split where zones end.
    pub span: PfnRange,
    /// RAM in it.
    pub usable: &'a [PfnRange],
    /// RAM in it that must never be given out.
    pub reserved: &'a [PfnRange],
}

/// Why memory could not be added; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddError {
    /// A range is empty, or its borders are not on 2 MiB.
    Unaligned(PfnRange),
    /// A range has memory in it already.
    Overlap(PfnRange),
    /// The size of a hot-plug block is not a power of two of at least 512 frames, or does not divide the region.
    BlockSize {
        /// Frames in a block.
        block_nr_pages: u32,
    },
    /// There is a hot-plug region already.
    SecondRegion,
    /// There is no place in the array of descriptors for some of it, or boot memory lies where none was announced.
    Descriptors(PfnRange),
    /// The machine has no such node.
    UnknownNode(NodeId),
    /// Hot-plugged memory goes to the zones Normal and Movable.
    Zone(ZoneKind),
    /// More sections than a zone can have.
    TooManySections,
    /// A frame that is to hold the block's own descriptors has failed.
    Poisoned(Pfn),
    /// The region has no such block.
    UnknownBlock(BlockIndex),
    /// The block is in a state from which the step is not possible.
    State {
        /// The block.
        block: BlockIndex,
        /// Its state.
        state: BlockState,
    },
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned(range) => write!(f, "{range} is empty or not aligned to 2 MiB"),
            Self::Overlap(range) => write!(f, "{range} overlaps memory that was added before"),
            Self::BlockSize { block_nr_pages } => {
                write!(
                    f,
                    "block of {block_nr_pages} frames is no power of two from 512 that divides the region"
                )
            }
            Self::SecondRegion => write!(f, "there is a hot-plug region already"),
            Self::Descriptors(range) => write!(f, "{range} is outside of what there are descriptors for"),
            Self::UnknownNode(node) => write!(f, "no node {node}"),
            Self::Zone(kind) => write!(f, "no memory can be plugged into zone {}", kind.name()),
            Self::TooManySections => write!(f, "more sections than a zone can have"),
            Self::Poisoned(pfn) => write!(f, "{pfn} is to hold descriptors, and has failed"),
            Self::UnknownBlock(block) => write!(f, "no block {}", block.0),
            Self::State { block, state } => write!(f, "block {} is {}", block.0, state.name()),
        }
    }
}

impl core::error::Error for AddError {}

impl PhysicalMemory<'_> {
    /// Adds memory found at boot, to the zones that the machine's limits name.
    ///
    /// # Errors
    /// When the span is empty, unaligned or overlaps other memory, or there are no descriptors for it.
    pub fn add_boot_region(&self, region: BootRegion<'_>) -> Result<(), AddError> {
        let BootRegion { node, span, .. } = region;
        self.topology()
            .check(node)
            .map_err(|_| AddError::UnknownNode(node))?;
        let hotplug = self.region.lock();
        self.check_new(span)?;
        if hotplug.range().overlaps(span) {
            return Err(AddError::Overlap(span));
        }
        if !self.table.tags.covers(span) {
            return Err(AddError::Descriptors(span));
        }
        let mut start = span.start();
        while start < span.end() {
            let (kind, end) = self.topology().limits().zone_at(start);
            let part = PfnRange::new(start, end.min(span.end()) - start).expect("inside the span");
            let zone = self.zone(node, kind);
            zone.set_has_boot_memory();
            let mut section = Box::new(Section::new(part, SectionHome::Boot));
            section.describe(&self.table, &region);
            self.add_section(zone, section, |areas, tag| {
                for chunk in free_chunks(&self.table, part) {
                    let (pfn, order) = chunk;
                    self.table.page(pfn).set_head(Head::BLANK);
                    areas.give(&self.table.tags, tag, pfn, order);
                }
            })?;
            start = part.end();
        }
        Ok(())
    }

    /// Declares where blocks can be plugged, and the node that they are near to. All blocks are unplugged at first.
    ///
    /// # Errors
    /// When there is a region already, the region is unaligned or overlaps memory, there are no descriptors for it, or
    /// the block size is unfit.
    pub fn set_hotplug_region(
        &self,
        node: NodeId,
        range: PfnRange,
        block_nr_pages: u32,
    ) -> Result<(), AddError> {
        self.topology()
            .check(node)
            .map_err(|_| AddError::UnknownNode(node))?;
        let mut hotplug = self.region.lock();
        if !hotplug.range().is_empty() {
            return Err(AddError::SecondRegion);
        }
        let block_fits = block_nr_pages.is_power_of_two()
            && block_nr_pages >= Order::PAGEBLOCK.nr_pages()
            && range.nr_pages().is_multiple_of(block_nr_pages);
        if !block_fits {
            return Err(AddError::BlockSize { block_nr_pages });
        }
        self.check_new(range)?;
        if !self.table.tags.set_hotplug(range) {
            return Err(AddError::SecondRegion);
        }
        *hotplug = HotplugRegion::new(node, range, block_nr_pages);
        Ok(())
    }

    fn check_new(&self, span: PfnRange) -> Result<(), AddError> {
        if span.is_empty() || !span.is_pageblock_aligned() {
            return Err(AddError::Unaligned(span));
        }
        if !self.table.range().covers(span) {
            return Err(AddError::Descriptors(span));
        }
        if self.table.tags.is_occupied(span) {
            return Err(AddError::Overlap(span));
        }
        Ok(())
    }

    /// Adds a section to a zone; `fill` gives it its free frames, with the zone's lock.
    pub(crate) fn add_section(
        &self,
        zone: &Zone,
        section: Box<Section>,
        fill: impl FnOnce(&mut FreeAreas, Tag),
    ) -> Result<Tag, AddError> {
        let (range, present_pages) = (section.range, section.present_pages);
        let (tag, was_empty) = loop {
            let mut areas = zone.areas.lock();
            if let Some(nr_sections) = areas.room_needed() {
                drop(areas);
                if nr_sections > MAX_SECTIONS as usize {
                    return Err(AddError::TooManySections);
                }
                // The heap may live on top of this very zone.
                let room = Room::new(nr_sections);
                let old = zone.areas.lock().enlarge(room);
                drop(old);
                continue;
            }
            let was_empty = !zone.is_populated();
            let tag = areas.insert(&self.table.tags, section);
            fill(&mut areas, tag);
            let managed_pages = areas
                .section(tag.section())
                .map_or(0, |section| section.managed_pages);
            zone.grow(&areas, range, present_pages, managed_pages);
            break (tag, was_empty);
        };
        self.derive_floors(zone.node());
        if was_empty {
            self.rebuild_zonelists();
        }
        Ok(tag)
    }
}

/// Free chunks of a section that was just described: the frames that its descriptors call allocated, as large as they
/// come.
fn free_chunks<'a>(table: &'a FrameTable<'_>, range: PfnRange) -> impl Iterator<Item = (Pfn, Order)> + 'a {
    let heads = range
        .iter()
        .filter(|&pfn| table.page(pfn).state() == PageState::Allocated);
    heads.map(|pfn| (pfn, table.page(pfn).order()))
}

impl Section {
    /// Writes the descriptors of boot memory: whole pageblocks that are free are one allocated chunk, elsewhere every
    /// frame is one of its own, reserved, or a hole.
    fn describe(&mut self, table: &FrameTable<'_>, region: &BootRegion<'_>) {
        let BootRegion { usable, reserved, .. } = region;
        for start in self.range.iter().step_by(PAGEBLOCK_NR_PAGES as usize) {
            let frames = PfnRange::new(start, PAGEBLOCK_NR_PAGES).expect("inside the section");
            let whole = usable.iter().any(|range| range.covers(frames))
                && !reserved.iter().any(|range| range.overlaps(frames));
            if whole {
                table.page(start).set_head(Head::allocated(Order::PAGEBLOCK));
                continue;
            }
            for pfn in frames.iter() {
                let head = if !usable.iter().any(|range| range.contains(pfn)) {
                    self.present_pages -= 1;
                    self.managed_pages -= 1;
                    Head::bare(PageState::Hole)
                } else if reserved.iter().any(|range| range.contains(pfn)) {
                    self.managed_pages -= 1;
                    Head::bare(PageState::Reserved)
                } else {
                    Head::allocated(Order::ZERO)
                };
                table.page(pfn).set_head(head);
            }
        }
    }
}
