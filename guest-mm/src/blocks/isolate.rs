//! Blocks on their way out: isolated, emptied, offline; or back in use.
//!
//! Isolation is the first of hot remove's steps: nothing may be allocated from the area any more. It costs the same
//! for any block, because a block's free lists are its own: they are unlinked from the zone, not taken apart.

use core::fmt;

use crate::blocks::{BlockIndex, BlockState, Slot};
use crate::frames::SpaceId;
use crate::page::{Page, PageFlags, PageState};
use crate::pfn::{Order, Pfn};
use crate::phys::{Descriptors, PhysicalMemory};
use crate::section::{Admission, SectionId};

/// A block that nobody can allocate from. Ends with [`PhysicalMemory::offline`] or [`PhysicalMemory::undo`].
///
/// It carries the place up to which its pages were looked at in this pass, so that each is looked up once.
#[must_use = "an isolated block stays out of use until it is undone or offline"]
#[derive(Debug)]
pub struct IsolatedBlock {
    block: BlockIndex,
    pub(crate) section: SectionId,
    /// Offset of the next frame to look at.
    pub(crate) cursor: u32,
    /// Frames moved off this block since it was isolated.
    pub(crate) moved_pages: u32,
}

impl IsolatedBlock {
    /// Which block it is.
    pub const fn block(&self) -> BlockIndex {
        self.block
    }

    /// Frames moved off the block since it was isolated.
    pub const fn moved_pages(&self) -> u32 {
        self.moved_pages
    }

    /// Starts another pass over the pages that are still there.
    pub const fn rewind(&mut self) {
        self.cursor = 0;
    }
}

/// A chunk found in use in an isolated block, with all that was known of it when it was looked up.
///
/// Whoever wants it moved hands this value over. The frame number is not looked up a second time: between two
/// look-ups the page could have become another one (seed text 002, "a note on migration").
#[derive(Debug, PartialEq, Eq)]
pub struct InUse {
    /// First frame.
    pub pfn: Pfn,
    /// Size of the chunk.
    pub order: Order,
    /// Address space and virtual address of a process's page; `None` for what cannot be moved.
    pub mapping: Option<(SpaceId, u64)>,
    /// The pin, if it is pinned.
    pub pinned_by: Option<&'static str>,
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
    /// A page on it cannot move.
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

impl PhysicalMemory {
    /// Withdraws a block: its free frames can no longer be had, and what is freed on it stays there.
    ///
    /// # Errors
    /// When there is no such block, it is not online, or a page on it is pinned.
    pub fn isolate(&mut self, block: BlockIndex) -> Result<IsolatedBlock, IsolateError> {
        let id = match self.region.slot(block) {
            None => return Err(IsolateError::UnknownBlock(block)),
            Some(Slot::Online(id)) => id,
            Some(slot) => {
                return Err(IsolateError::NotOnline {
                    block,
                    state: slot.state(),
                });
            }
        };
        if self.map.section(id).pinned_chunks > 0 {
            let range = self.region.range_of(block);
            let held = self.pins.held.iter().find(|(pfn, _)| range.contains(*pfn));
            let &(pfn, holder) = held.expect("a section counts only chunks in the list of pins");
            return Err(IsolateError::Pinned { pfn, holder });
        }
        self.change(id, |section| section.admission = Admission::Isolated);
        self.region.slots[block.0 as usize] = Slot::GoingOffline(id);
        Ok(IsolatedBlock {
            block,
            section: id,
            cursor: 0,
            moved_pages: 0,
        })
    }

    /// Puts an isolated block back in use, with whatever is still on it.
    #[expect(clippy::needless_pass_by_value, reason = "the token is used up")]
    pub fn undo(&mut self, block: IsolatedBlock) {
        self.change(block.section, |section| section.admission = Admission::Open);
        self.region.slots[block.block.0 as usize] = Slot::Online(block.section);
    }

    /// Takes an empty block out of its zone and returns its descriptors: going-offline -> offline.
    ///
    /// # Errors
    /// When a frame is in use; the block remains isolated.
    pub fn offline(&mut self, block: IsolatedBlock) -> Result<Descriptors, NotEmpty> {
        let used_pages = self.map.section(block.section).used_pages();
        if used_pages > 0 {
            return Err(NotEmpty { block, used_pages });
        }
        self.leave_zone(block.section);
        let mut section = self.map.remove(block.section);
        // Wholly free, so that only heads of order 9 and 10 are not blank.
        for pageblock in section
            .pages
            .iter_mut()
            .step_by(Order::PAGEBLOCK.nr_pages() as usize)
        {
            *pageblock = Page::default();
        }
        self.region.slots[block.block.0 as usize] = Slot::Offline;
        self.stats.blocks_unplugged += 1;
        self.stats.blocks_unplug_free += u64::from(block.moved_pages == 0);
        Ok(Descriptors::from_blank(section.pages))
    }

    /// The next chunk in use on the block, in the order of addresses; `None` when the pass is over.
    ///
    /// Each chunk comes up once in a pass: allocation cannot enter the block, and the cursor never goes back.
    pub fn next_in_use(&self, block: &mut IsolatedBlock) -> Option<InUse> {
        let section = self.map.section(block.section);
        while block.cursor < section.range.nr_pages() {
            // What was freed since the last step may have merged across the cursor.
            let offset = section.head_of(block.cursor);
            let page = &section.pages[offset as usize];
            block.cursor = offset + page.order().nr_pages();
            if page.state == PageState::Allocated {
                let pfn = section.pfn(offset);
                let pinned = page.flags.has(PageFlags::PINNED);
                return Some(InUse {
                    pfn,
                    order: page.order(),
                    mapping: page.anon_mapping().filter(|_| page._mapcount > 0),
                    pinned_by: pinned.then(|| self.pins.holder(pfn)).flatten(),
                });
            }
        }
        None
    }

    /// Frames in use on an isolated block.
    pub fn used_pages(&self, block: &IsolatedBlock) -> u32 {
        self.map.section(block.section).used_pages()
    }
}
