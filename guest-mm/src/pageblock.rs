//! Pageblocks: 2 MiB of frames grouped by whether what is in them can be moved.

use crate::fill::{FillLink, FillLinks, NR_BUCKETS};
use crate::page::NO_LINK;
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES};

/// Orders below a whole pageblock, which have free lists of their own in each pageblock.
pub(crate) const NR_SMALL_ORDERS: usize = Order::PAGEBLOCK.index();

/// Mobility of what a pageblock holds (Linux `enum migratetype`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MigrateType {
    /// The kernel's own: stays where it is.
    Unmovable,
    /// Found again through its descriptor: can be moved.
    Movable,
    /// Nothing may be allocated here: the block is on its way out.
    Isolate,
}

/// Mobility that a pageblock keeps while its section is open: every [`MigrateType`] but `Isolate`, which is a
/// property of the whole section and therefore costs nothing to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mobility {
    Unmovable = 0,
    Movable = 1,
}

impl Mobility {
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Unmovable => Self::Movable,
            Self::Movable => Self::Unmovable,
        }
    }
}

/// Free lists of one pageblock, orders 0 to 8. A wholly free pageblock is on its section's lists instead.
#[derive(Clone, Debug)]
pub(crate) struct Pageblock {
    /// First free chunk of each order, as an offset in the section.
    pub(crate) heads: [u32; NR_SMALL_ORDERS],
    /// Bit k is set when the list of order k has a chunk.
    pub(crate) nonempty: u16,
    /// Free frames, 0..=512, whichever list they are on.
    pub(crate) free_pages: u16,
    pub(crate) mobility: Mobility,
    link: FillLink,
}

const _: () = assert!(PAGEBLOCK_NR_PAGES >> BUCKET_SHIFT == NR_BUCKETS as u32);
const BUCKET_SHIFT: u32 = 5;

impl Pageblock {
    pub(crate) fn new() -> Self {
        Self {
            heads: [NO_LINK; NR_SMALL_ORDERS],
            nonempty: 0,
            free_pages: 0,
            mobility: Mobility::Movable,
            link: FillLink::UNLINKED,
        }
    }

    /// The bucket in the section's list of partly used pageblocks, if it belongs there.
    pub(crate) fn bucket(&self) -> Option<u8> {
        let free = u32::from(self.free_pages);
        (free > 0 && free < PAGEBLOCK_NR_PAGES).then(|| (self.free_pages >> BUCKET_SHIFT).to_le_bytes()[0])
    }

    pub(crate) fn listed_bucket(&self) -> Option<u8> {
        self.link.bucket()
    }
}

/// The pageblocks' links in their section's lists.
pub(crate) struct PageblockLinks<'a>(pub(crate) &'a mut [Pageblock]);

impl FillLinks for PageblockLinks<'_> {
    fn link(&self, item: u32) -> FillLink {
        self.0[item as usize].link
    }
    fn link_mut(&mut self, item: u32) -> &mut FillLink {
        &mut self.0[item as usize].link
    }
}
