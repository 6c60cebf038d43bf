//! Blocks on their way out: isolated, emptied, offline; or back in use.
//!
//! Isolation is the first of hot remove's steps: nothing may be allocated from the area any more. It costs the same
//! for any block, because a block's free lists are its own: they are unlinked from the zone, not taken apart. Frames of
//! the block that CPUs keep at hand are taken off their lists.

use core::fmt;

use guest_sync::Cpu;

use crate::blocks::{BlockIndex, BlockState, Slot};
use crate::mem_map::Tag;
use crate::migrate::{BusyPages, TwoStage};
use crate::mm::AnonPlace;
use crate::page::{Head, KernelUse, PageFlags, PageState};
use crate::pfn::{Order, Pfn, PfnRange};
use crate::phys::{PhysicalMemory, PinnedBy};
use crate::section::{Admission, Section};

/// A block that nobody can allocate from. Ends with [`PhysicalMemory::offline`] or [`PhysicalMemory::undo`].
///
/// It carries the place up to which its pages were looked at in this pass, so that each is looked up once.
#[must_use = "an isolated block stays out of use until it is undone or offline"]
#[derive(Debug)]
pub struct IsolatedBlock {
    block: BlockIndex,
    range: PfnRange,
    section: Tag,
    /// Offset of the next frame to look at.
    pub(crate) cursor: u32,
    /// Frames moved off this block since it was isolated.
    pub(crate) moved_pages: u32,
    /// How the huge page leaves that comes up next.
    pub(crate) two_stage: TwoStage,
    /// What becomes of pages in this pass that somebody is just using.
    pub(crate) busy_pages: BusyPages,
    /// Passes of migration that have come to their end.
    pub(crate) passes: u32,
    /// Whether this pass is one of them.
    pub(crate) is_counted: bool,
}

impl IsolatedBlock {
    /// Which block it is.
    pub const fn block(&self) -> BlockIndex {
        self.block
    }

    /// The frames of the block.
    pub(crate) const fn range(&self) -> PfnRange {
        self.range
    }

    /// Frames moved off the block since it was isolated.
    pub const fn moved_pages(&self) -> u32 {
        self.moved_pages
    }

    /// Frames have left the block whose owner has moved them.
    pub const fn add_moved(&mut self, nr_pages: u32) {
        self.moved_pages += nr_pages;
    }

    /// How often all of its pages were looked at to be moved.
    pub const fn passes(&self) -> u32 {
        self.passes
    }

    /// Starts another pass over the pages that are still there, which puts busy ones off.
    pub fn rewind(&mut self) {
        self.rewind_with(BusyPages::PutOff);
    }

    /// Starts another pass over the pages that are still there.
    pub fn rewind_with(&mut self, busy_pages: BusyPages) {
        self.cursor = 0;
        self.is_counted = false;
        self.busy_pages = busy_pages;
        self.two_stage = TwoStage::default();
    }

    /// From here on pages that somebody is just using are put off: nobody waits for them any longer.
    pub const fn put_off_busy(&mut self) {
        self.busy_pages = BusyPages::PutOff;
    }
}

/// A chunk found in use in an isolated block, with all that was known of it when it was looked up.
///
/// Whoever wants it moved hands this value over. The frame number is not looked up a second time: between two
/// look-ups the page could have become another one (Takahashi, memory hotplug, 2003: "never twice from the page tree"). A page that can move is held by
/// this value: it has a reference, which [`PhysicalMemory::release`] gives back.
#[must_use = "a page that is held is never freed"]
#[derive(Debug, PartialEq, Eq)]
pub struct InUse {
    /// First frame.
    pub pfn: Pfn,
    /// Size of the chunk.
    pub order: Order,
    /// Where programs have the page mapped, if they have.
    pub place: Option<AnonPlace>,
    /// Whether it can be moved, and is held: a page of programs', of the swap cache, or of a file.
    pub is_held: bool,
    /// Who has pinned it, if it is pinned.
    pub pinned_by: Option<PinnedBy>,
}

/// Why a block cannot be isolated; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IsolateError {
    /// The region has no such block.
    UnknownBlock(BlockIndex),
    /// It is not online.
    NotOnline {
        /// The block.
        block: BlockIndex,
        /// Its state.
        state: BlockState,
    },
    /// A page on it is pinned for long.
    Pinned {
        /// First frame of the page.
        pfn: Pfn,
        /// Who pinned it.
        holder: &'static str,
    },
}

impl fmt::Display for IsolateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownBlock(block) => write!(f, "no block {}", block.0),
            Self::NotOnline { block, state } => write!(f, "block {} is {}", block.0, state.name()),
            Self::Pinned { pfn, holder } => write!(f, "{pfn} is pinned by {holder}"),
        }
    }
}

impl core::error::Error for IsolateError {}

/// A block cannot go offline: there are pages on it. It remains isolated.
#[derive(Debug)]
pub struct NotEmpty {
    /// The block, still isolated.
    pub block: IsolatedBlock,
    /// Frames in use.
    pub used_pages: u32,
}

impl fmt::Display for NotEmpty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "block {} has {} frames in use",
            self.block.block.0, self.used_pages
        )
    }
}

impl core::error::Error for NotEmpty {}

impl PhysicalMemory<'_> {
    /// Withdraws a block: its free frames can no longer be had, and what is freed on it stays there.
    ///
    /// # Errors
    /// When there is no such block, it is not online, or a page on it is pinned for long.
    pub fn isolate(&self, block: BlockIndex) -> Result<IsolatedBlock, IsolateError> {
        let mut region = self.region.lock();
        let tag = match region.slot(block) {
            None => return Err(IsolateError::UnknownBlock(block)),
            Some(Slot::Online(tag)) => tag,
            Some(slot) => {
                let state = slot.state();
                return Err(IsolateError::NotOnline { block, state });
            }
        };
        let range = region.range_of(block);
        let zone = self.zone_at(tag.zone());
        {
            let pins = self.pins.lock();
            let mut areas = zone.areas.lock();
            if areas
                .section(tag.section())
                .is_some_and(|section| section.longterm_chunks > 0)
            {
                let held = pins.longterm(|head| range.contains(head));
                let held = held.expect("a section counts only chunks in the list of pins");
                let (pfn, holder) = (held.head, held.by.holder);
                return Err(IsolateError::Pinned { pfn, holder });
            }
            areas.admit(&self.table.tags, tag.section(), Admission::Isolated);
            zone.publish(&areas);
        }
        region.set(block, Slot::GoingOffline(tag));
        zone.drain(&self.table, |pfn| range.contains(pfn));
        Ok(IsolatedBlock {
            block,
            range,
            section: tag,
            cursor: 0,
            moved_pages: 0,
            two_stage: TwoStage::default(),
            busy_pages: BusyPages::PutOff,
            passes: 0,
            is_counted: false,
        })
    }

    /// Puts an isolated block back in use, with whatever is still on it.
    #[expect(clippy::needless_pass_by_value, reason = "the token is used up")]
    pub fn undo(&self, block: IsolatedBlock) {
        self.counts.blocks_put_back.add(1);
        let mut region = self.region.lock();
        let zone = self.zone_at(block.section.zone());
        let mut areas = zone.areas.lock();
        areas.admit(&self.table.tags, block.section.section(), Admission::Open);
        zone.publish(&areas);
        region.set(block.block, Slot::Online(block.section));
        drop(areas);
        drop(region);
        self.shortage.memory_came();
        self.pins_ended.wake_all();
    }

    /// Takes an empty block out of its zone: going-offline -> offline. Its descriptors are blank then, and are not
    /// touched any more.
    ///
    /// # Errors
    /// When a frame is in use; the block remains isolated.
    pub fn offline(&self, block: IsolatedBlock) -> Result<(), NotEmpty> {
        let zone = self.zone_at(block.section.zone());
        if self.used_pages(&block) > 0 {
            // Frames whose owners were just freeing them when the block was isolated.
            zone.drain(&self.table, |pfn| block.range.contains(pfn));
        }
        let mut region = self.region.lock();
        let poisoned = self.poisoned.lock();
        let mut areas = zone.areas.lock();
        let section = areas.section(block.section.section());
        let used_pages = section.map_or(0, Section::used_pages);
        if used_pages > 0 {
            drop(areas);
            drop(poisoned);
            drop(region);
            return Err(NotEmpty { block, used_pages });
        }
        let own = section.map(Section::memmap).unwrap_or_default();
        for pfn in poisoned.iter().filter(|pfn| block.range.contains(**pfn)) {
            self.table.page(*pfn).set_head(Head::BLANK);
        }
        own.iter()
            .for_each(|pfn| self.table.page(pfn).set_head(Head::BLANK));
        let section = areas.remove(&self.table.tags, block.section.section());
        if let Some(section) = &section {
            zone.shrink(&areas, section);
        }
        drop(areas);
        drop(poisoned);
        self.derive_floors(zone.node());
        region.set(block.block, Slot::Offline);
        if !zone.is_populated() {
            // Before another block can go online.
            self.rebuild_zonelists();
            self.leave_node(&mut region, zone.node());
        }
        drop(region);
        drop(section);
        self.counts.nr_memmap_pages.sub(own.nr_pages().into());
        self.counts.blocks_unplugged.add(1);
        self.counts
            .blocks_unplug_free
            .add(u64::from(block.moved_pages == 0));
        let by_passes = match block.passes {
            0 | 1 => &self.counts.blocks_unplug_pass1,
            2 => &self.counts.blocks_unplug_pass2,
            _ => &self.counts.blocks_unplug_pass_more,
        };
        by_passes.add(1);
        Ok(())
    }

    /// The next chunk in use on the block, in the order of addresses; `None` when the pass is over.
    ///
    /// Each chunk comes up once in a pass: allocation cannot enter the block, and the cursor goes back only before a chunk that did not get under way.
    pub fn next_in_use(&self, block: &mut IsolatedBlock) -> Option<InUse> {
        let (pfn, head) = self.next_head(block.range, block.section, &mut block.cursor)?;
        Some(self.hold(pfn, head))
    }

    /// Holds a chunk that was found in use, if it can be moved.
    pub(crate) fn hold(&self, pfn: Pfn, order: Order) -> InUse {
        let page = self.table.page(pfn);
        // Nothing new enters the block but programs that get a reserved huge page, so what is still in use once it is held is what was found.
        let place = page.anon_place();
        let flags = page.flags();
        let is_cached = flags.has(PageFlags::SWAPCACHE) || flags.has(PageFlags::FILE);
        let is_held = (place.is_some() || is_cached) && page.try_reference();
        let pinned = page.flags().has(PageFlags::PINNED);
        InUse {
            pfn,
            order,
            place,
            is_held,
            pinned_by: pinned.then(|| self.pins.lock().by(pfn)).flatten(),
        }
    }

    /// Pages of the kernel's own are elsewhere that a batch had refused: their owner has moved them.
    pub fn count_kernel_moved(&self, used_for: KernelUse, nr_pages: u32) {
        let counts = &self.counts;
        let count = match used_for {
            KernelUse::PageTable => &counts.kernel_tables_moved,
            KernelUse::Slab => &counts.kernel_slabs_moved,
            KernelUse::Vmalloc { .. } => &counts.kernel_vmalloc_moved,
            KernelUse::Dma { .. } => &counts.kernel_dma_moved,
            KernelUse::Other => return,
        };
        count.add(nr_pages.into());
        counts.pgmigrate_success.add(nr_pages.into());
        counts.pgmigrate_fail.sub(nr_pages.into());
    }

    /// Lets go of what was found in use.
    #[expect(clippy::needless_pass_by_value, reason = "the token is used up")]
    pub fn release(&self, cpu: &Cpu, page: InUse) {
        if page.is_held {
            self.put_page(cpu, page.pfn);
        }
    }

    /// The next chunk in use in a range of a section, and its order; the cursor is the offset in the range from which on to
    /// look, and is left after the chunk.
    pub(crate) fn next_head(&self, range: PfnRange, home: Tag, cursor: &mut u32) -> Option<(Pfn, Order)> {
        let areas = self.zone_at(home.zone()).areas.lock();
        let section = areas.section(home.section())?;
        if !section.range.contains(range.start()) {
            return None;
        }
        let offset = range.start() - section.range.start();
        while *cursor < range.nr_pages() {
            let free = section.free_run(offset + *cursor);
            if free > 0 {
                *cursor += free;
                continue;
            }
            let at = range.start() + *cursor;
            *cursor += 1;
            let Some(head) = self.table.head_of(at).filter(|&head| head >= range.start()) else {
                continue;
            };
            let found = self.table.page(head).head();
            *cursor = head - range.start() + found.order().nr_pages();
            if found.state() == PageState::Allocated {
                return Some((head, found.order()));
            }
        }
        None
    }

    /// Frames in use on an isolated block.
    pub fn used_pages(&self, block: &IsolatedBlock) -> u32 {
        let areas = self.zone_at(block.section.zone()).areas.lock();
        areas
            .section(block.section.section())
            .map_or(0, Section::used_pages)
    }
}
