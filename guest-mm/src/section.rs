//! A section: a stretch of frames inside which free chunks merge and beyond which they never do.
//!
//! A boot region has one section for each zone that it reaches into, and an online hot-plug block is one: that is why
//! no allocation ever crosses the border of a block. Each section keeps its own free lists, so that isolating one is a
//! matter of unlinking it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::blocks::BlockIndex;
use crate::fill::{FillLink, FillLinks, FillList, NR_BUCKETS};
use crate::pageblock::{NR_MOBILITIES, Pageblock, Whole};
use crate::pfn::{NR_PAGE_ORDERS, Order, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};

/// Which memory a section is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SectionHome {
    /// Memory found at boot: the kernel lives there, it never goes away.
    Boot,
    /// A hot-plugged block.
    Block(BlockIndex),
}

/// Whether requests may be served from a section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Admission {
    /// Its free frames count and can be had.
    Open,
    /// `MIGRATE_ISOLATE`: frames come back to it, none leaves.
    Isolated,
}

/// Pageblocks and free lists of one stretch of frames. Everything here is written under the zone's lock.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) range: PfnRange,
    pub(crate) home: SectionHome,
    pub(crate) admission: Admission,
    pub(crate) pageblocks: Box<[Pageblock]>,
    /// Free frames of the pageblocks.
    pub(crate) free_pages: u32,
    /// Frames that exist.
    pub(crate) present_pages: u32,
    /// Frames that the allocator gives out.
    pub(crate) managed_pages: u32,
    /// The first frames of a block that hold its own descriptors: present, and not managed.
    pub(crate) memmap_pages: u32,
    /// Chunks with at least one pin.
    pub(crate) pinned_chunks: u32,
    /// Those among them that somebody has pinned for long.
    pub(crate) longterm_chunks: u32,
    /// Pageblocks inside free chunks of order 9 and 10.
    pub(crate) whole_pageblocks: u32,
    /// Free chunks of order 9 and 10, by their first pageblock; all in bucket 0.
    pub(crate) whole: [FillList; 2],
    /// Pageblocks that are neither full nor free, by the mobility of what is in them.
    pub(crate) partial: [FillList; NR_MOBILITIES],
    /// Place in the zone's list of sections with free frames.
    pub(crate) free_link: FillLink,
    /// Place in the zone's list of sections with free pageblocks.
    pub(crate) whole_link: FillLink,
    /// `free_pages >> fill_shift` is the section's bucket.
    fill_shift: u32,
}

impl Section {
    /// A section without a single free frame.
    pub(crate) fn new(range: PfnRange, home: SectionHome) -> Self {
        let nr_pageblocks = range.nr_pages() / PAGEBLOCK_NR_PAGES;
        let pageblocks: Vec<Pageblock> = (0..nr_pageblocks).map(|_| Pageblock::new()).collect();
        let bits = u32::BITS - (range.nr_pages() - 1).leading_zeros();
        Self {
            range,
            home,
            admission: Admission::Open,
            pageblocks: pageblocks.into_boxed_slice(),
            free_pages: 0,
            present_pages: range.nr_pages(),
            managed_pages: range.nr_pages(),
            memmap_pages: 0,
            pinned_chunks: 0,
            longterm_chunks: 0,
            whole_pageblocks: 0,
            whole: [FillList::new(), FillList::new()],
            partial: [FillList::new(), FillList::new(), FillList::new()],
            free_link: FillLink::UNLINKED,
            whole_link: FillLink::UNLINKED,
            fill_shift: bits - NR_BUCKETS.trailing_zeros(),
        }
    }

    /// The frame at an offset.
    #[inline]
    pub(crate) fn pfn(&self, offset: u32) -> Pfn {
        self.range.start() + offset
    }

    /// Managed frames that are not free here: in use, or on a CPU's list.
    pub(crate) fn used_pages(&self) -> u32 {
        self.managed_pages - self.free_pages
    }

    /// Free frames that a request could get.
    pub(crate) fn open_pages(&self) -> u32 {
        match self.admission {
            Admission::Open => self.free_pages,
            Admission::Isolated => 0,
        }
    }

    /// The bucket in the zone's list of sections with free frames, if the section belongs there.
    #[inline]
    pub(crate) fn free_bucket(&self) -> Option<u8> {
        (self.admission == Admission::Open && self.free_pages > 0).then(|| self.fill())
    }

    /// The bucket in the zone's list of sections with free pageblocks, if the section belongs there.
    #[inline]
    pub(crate) fn whole_bucket(&self) -> Option<u8> {
        (self.admission == Admission::Open && self.whole_pageblocks > 0).then(|| self.fill())
    }

    /// Order of the free chunk that the frame at `offset` is in, or `None` if it is not free.
    pub(crate) fn free_order(&self, offset: u32) -> Option<Order> {
        let pageblock = &self.pageblocks[(offset / PAGEBLOCK_NR_PAGES) as usize];
        match pageblock.whole {
            Whole::Single => Some(Order::PAGEBLOCK),
            Whole::PairHead | Whole::PairTail => Some(Order::MAX),
            Whole::No => {
                let frame = offset % PAGEBLOCK_NR_PAGES;
                pageblock.is_free(frame).then(|| pageblock.free_order(frame))
            }
        }
    }

    /// Frames from `offset` on that are known to be free: at least one if that one is.
    pub(crate) fn free_run(&self, offset: u32) -> u32 {
        let pageblock = &self.pageblocks[(offset / PAGEBLOCK_NR_PAGES) as usize];
        let frame = offset % PAGEBLOCK_NR_PAGES;
        if pageblock.whole == Whole::No {
            u32::from(pageblock.is_free(frame))
        } else {
            PAGEBLOCK_NR_PAGES - frame
        }
    }

    /// Adds the section's free chunks to `counts`, by order.
    pub(crate) fn count_chunks(&self, counts: &mut [u64; NR_PAGE_ORDERS]) {
        for pageblock in &self.pageblocks {
            match pageblock.whole {
                Whole::No => pageblock.count_chunks(counts),
                Whole::Single => counts[Order::PAGEBLOCK.index()] += 1,
                Whole::PairHead => counts[Order::MAX.index()] += 1,
                Whole::PairTail => {}
            }
        }
    }

    #[inline]
    fn fill(&self) -> u8 {
        (self.free_pages >> self.fill_shift)
            .min(u32::from(NR_BUCKETS) - 1)
            .to_le_bytes()[0]
    }
}

/// Sections of a zone by number; an empty place is a section that was taken out.
pub(crate) type Sections = Vec<Option<Box<Section>>>;

/// The sections' links in the zone's list of those with free frames.
pub(crate) struct FreeLinks<'a>(pub(crate) &'a mut Sections);

/// The sections' links in the zone's list of those with free pageblocks.
pub(crate) struct WholeLinks<'a>(pub(crate) &'a mut Sections);

const LISTED: &str = "a section is unlinked from its zone before it is taken out";

impl FillLinks for FreeLinks<'_> {
    #[inline]
    fn link(&self, item: u32) -> FillLink {
        self.0[item as usize].as_ref().expect(LISTED).free_link
    }
    #[inline]
    fn link_mut(&mut self, item: u32) -> &mut FillLink {
        &mut self.0[item as usize].as_mut().expect(LISTED).free_link
    }
}

impl FillLinks for WholeLinks<'_> {
    #[inline]
    fn link(&self, item: u32) -> FillLink {
        self.0[item as usize].as_ref().expect(LISTED).whole_link
    }
    #[inline]
    fn link_mut(&mut self, item: u32) -> &mut FillLink {
        &mut self.0[item as usize].as_mut().expect(LISTED).whole_link
    }
}
