//! Memory that is there at boot, and the errors of adding memory at all.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::blocks::{BlockIndex, BlockState};
use crate::page::{Page, PageState};
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES, PfnRange};
use crate::phys::PhysicalMemory;
use crate::section::{Section, SectionHome};
use crate::zone::ZoneKind;

/// Blank descriptors for a stretch of memory, in the caller's heap.
#[derive(Debug)]
pub struct Descriptors(Box<[Page]>);

impl Descriptors {
    /// Descriptors for `nr_pages` frames, or `None` when the heap has no room for them (32 bytes each).
    pub fn try_new(nr_pages: u32) -> Option<Self> {
        let mut pages = Vec::new();
        pages.try_reserve_exact(nr_pages as usize).ok()?;
        pages.resize(nr_pages as usize, Page::default());
        Some(Self(pages.into_boxed_slice()))
    }

    /// Frames described.
    pub fn nr_pages(&self) -> u32 {
        u32::try_from(self.0.len()).expect("made for a u32 of pages")
    }

    pub(crate) fn into_pages(self) -> Box<[Page]> {
        self.0
    }

    /// Takes descriptors back that are all blank.
    pub(crate) fn from_blank(pages: Box<[Page]>) -> Self {
        Self(pages)
    }
}

/// A stretch of boot memory. What is in none of the `usable` ranges is a hole; `reserved` takes frames out of the
/// usable ones for the kernel image, boot data and the like. Ranges may overlap and may reach beyond the span.
#[derive(Clone, Copy, Debug)]
pub struct BootRegion<'a> {
    /// Pageblock-aligned; one section is made of it.
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
    /// Not as many descriptors as frames.
    Descriptors {
        /// Given.
        have: u32,
        /// Needed.
        want: u32,
    },
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
            Self::Descriptors { have, want } => write!(f, "{have} descriptors for {want} frames"),
            Self::UnknownBlock(block) => write!(f, "no block {}", block.0),
            Self::State { block, state } => write!(f, "block {} is {}", block.0, state.name()),
        }
    }
}

impl core::error::Error for AddError {}

impl PhysicalMemory {
    /// Adds memory found at boot to [`ZoneKind::Normal`].
    ///
    /// # Errors
    /// When the span is empty, unaligned or overlaps other memory, or the number of descriptors is wrong.
    pub fn add_boot_region(&mut self, region: BootRegion<'_>, pages: Descriptors) -> Result<(), AddError> {
        let span = region.span;
        if span.is_empty() || !span.is_pageblock_aligned() {
            return Err(AddError::Unaligned(span));
        }
        if self.map.is_occupied(span) || self.region.range().overlaps(span) {
            return Err(AddError::Overlap(span));
        }
        if pages.nr_pages() != span.nr_pages() {
            return Err(AddError::Descriptors {
                have: pages.nr_pages(),
                want: span.nr_pages(),
            });
        }
        self.map.cover(span);
        let mut section = Section::new(span, SectionHome::Boot, ZoneKind::Normal, pages.into_pages());
        for pageblock in (0..span.nr_pages()).step_by(PAGEBLOCK_NR_PAGES as usize) {
            section.add_boot_pageblock(pageblock, &region);
        }
        let id = self.map.insert(Box::new(section));
        self.enter_zone(id);
        Ok(())
    }

    /// Declares where blocks can be plugged. All blocks are unplugged at first.
    ///
    /// # Errors
    /// When there is a region already, the region is unaligned or overlaps memory, or the block size is unfit.
    pub fn set_hotplug_region(&mut self, range: PfnRange, block_nr_pages: u32) -> Result<(), AddError> {
        if !self.region.range().is_empty() {
            return Err(AddError::SecondRegion);
        }
        if range.is_empty() || !range.is_pageblock_aligned() {
            return Err(AddError::Unaligned(range));
        }
        if !block_nr_pages.is_power_of_two()
            || block_nr_pages < Order::PAGEBLOCK.nr_pages()
            || !range.nr_pages().is_multiple_of(block_nr_pages)
        {
            return Err(AddError::BlockSize { block_nr_pages });
        }
        if self.map.is_occupied(range) {
            return Err(AddError::Overlap(range));
        }
        self.map.cover(range);
        self.region = crate::blocks::HotplugRegion::new(range, block_nr_pages);
        Ok(())
    }
}

impl Section {
    /// Frees what is usable of the pageblock at an offset: whole, or frame by frame where something is in the way.
    fn add_boot_pageblock(&mut self, pageblock: u32, region: &BootRegion<'_>) {
        let BootRegion { usable, reserved, .. } = region;
        let start = self.pfn(pageblock);
        let frames = PfnRange::new(start, PAGEBLOCK_NR_PAGES).expect("inside the section");
        let whole = usable.iter().any(|range| range.covers(frames))
            && !reserved.iter().any(|range| range.overlaps(frames));
        if whole {
            self.pages[pageblock as usize] = Page::allocated(Order::PAGEBLOCK);
            self.give(pageblock, Order::PAGEBLOCK);
            return;
        }
        // All descriptors first: a frame that is freed looks at those that it may merge with.
        for pfn in frames.iter() {
            let page = &mut self.pages[(pageblock + (pfn - start)) as usize];
            if !usable.iter().any(|range| range.contains(pfn)) {
                *page = Page::blank(PageState::Hole);
                self.present_pages -= 1;
                self.managed_pages -= 1;
            } else if reserved.iter().any(|range| range.contains(pfn)) {
                *page = Page::blank(PageState::Reserved);
                self.managed_pages -= 1;
            } else {
                *page = Page::allocated(Order::ZERO);
            }
        }
        for offset in pageblock..pageblock + PAGEBLOCK_NR_PAGES {
            if self.pages[offset as usize].state == PageState::Allocated {
                self.give(offset, Order::ZERO);
            }
        }
    }
}
