//! A section: a stretch of frames with descriptors, inside which free chunks merge and beyond which they never do.
//!
//! A boot region is one section, and so is each online hot-plug block: that is why no allocation ever crosses the
//! border of a block. Each section keeps its own free lists, so that isolating one is a matter of unlinking it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::blocks::BlockIndex;
use crate::fill::{FillLink, FillLinks, FillList, NR_BUCKETS};
use crate::page::{NO_LINK, Page};
use crate::pageblock::Pageblock;
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};
use crate::zone::ZoneKind;

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

/// Number of a section in [`MemMap`](crate::mem_map::MemMap).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SectionId(pub(crate) u32);

/// Descriptors, pageblocks and free lists of one stretch of frames.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) range: PfnRange,
    pub(crate) home: SectionHome,
    pub(crate) zone: ZoneKind,
    pub(crate) admission: Admission,
    pub(crate) pages: Box<[Page]>,
    pub(crate) pageblocks: Box<[Pageblock]>,
    /// Free frames on the lists below.
    pub(crate) free_pages: u32,
    /// Frames that exist.
    pub(crate) present_pages: u32,
    /// Frames that the allocator gives out.
    pub(crate) managed_pages: u32,
    /// Chunks with at least one pin.
    pub(crate) pinned_chunks: u32,
    /// Pageblocks inside free chunks of order 9 and 10.
    pub(crate) whole_pageblocks: u32,
    /// Free lists of order 9 and 10: offset of the first head.
    pub(crate) whole: [u32; 2],
    /// Pageblocks that are neither full nor free, by the mobility of what is in them.
    pub(crate) partial: [FillList; 2],
    /// Place in the zone's list of sections with free frames.
    pub(crate) free_link: FillLink,
    /// Place in the zone's list of sections with free pageblocks.
    pub(crate) whole_link: FillLink,
    /// `free_pages >> fill_shift` is the section's bucket.
    fill_shift: u32,
}

impl Section {
    /// A section without a single free frame; `pages` are all tails.
    pub(crate) fn new(range: PfnRange, home: SectionHome, zone: ZoneKind, pages: Box<[Page]>) -> Self {
        let nr_pageblocks = range.nr_pages() / PAGEBLOCK_NR_PAGES;
        let pageblocks: Vec<Pageblock> = (0..nr_pageblocks).map(|_| Pageblock::new()).collect();
        let bits = u32::BITS - (range.nr_pages() - 1).leading_zeros();
        Self {
            range,
            home,
            zone,
            admission: Admission::Open,
            pages,
            pageblocks: pageblocks.into_boxed_slice(),
            free_pages: 0,
            present_pages: range.nr_pages(),
            managed_pages: range.nr_pages(),
            pinned_chunks: 0,
            whole_pageblocks: 0,
            whole: [NO_LINK; 2],
            partial: [FillList::new(), FillList::new()],
            free_link: FillLink::UNLINKED,
            whole_link: FillLink::UNLINKED,
            fill_shift: bits - NR_BUCKETS.trailing_zeros(),
        }
    }

    /// The frame at an offset.
    pub(crate) fn pfn(&self, offset: u32) -> Pfn {
        self.range.start() + offset
    }

    /// Managed frames that are not free.
    pub(crate) fn used_pages(&self) -> u32 {
        self.managed_pages - self.free_pages
    }

    /// The bucket in the zone's list of sections with free frames, if the section belongs there.
    pub(crate) fn free_bucket(&self) -> Option<u8> {
        (self.admission == Admission::Open && self.free_pages > 0).then(|| self.fill())
    }

    /// The bucket in the zone's list of sections with free pageblocks, if the section belongs there.
    pub(crate) fn whole_bucket(&self) -> Option<u8> {
        (self.admission == Admission::Open && self.whole_pageblocks > 0).then(|| self.fill())
    }

    fn fill(&self) -> u8 {
        let bucket = (self.free_pages >> self.fill_shift).min(u32::from(NR_BUCKETS) - 1);
        u8::try_from(bucket).expect("at most 15")
    }

    /// Offset of the head of the chunk that contains the frame at `offset`: itself unless it is a tail.
    pub(crate) fn head_of(&self, offset: u32) -> u32 {
        use crate::page::PageState;
        if self.pages[offset as usize].state != PageState::Tail {
            return offset;
        }
        for order in Order::all().skip(1) {
            let candidate = self.pfn(offset).align_down(order);
            if candidate < self.range.start() {
                break;
            }
            let head = candidate - self.range.start();
            let page = &self.pages[head as usize];
            let is_head = matches!(page.state, PageState::Free | PageState::Allocated);
            if is_head && head + page.order().nr_pages() > offset {
                return head;
            }
        }
        unreachable!("{} is a tail without a head", self.pfn(offset))
    }
}

/// Sections by number; an empty place is a section that was taken out.
pub(crate) type Sections = Vec<Option<Box<Section>>>;

/// The sections' links in the zone's list of those with free frames.
pub(crate) struct FreeLinks<'a>(pub(crate) &'a mut Sections);

/// The sections' links in the zone's list of those with free pageblocks.
pub(crate) struct WholeLinks<'a>(pub(crate) &'a mut Sections);

const LISTED: &str = "a section is unlinked from its zone before it is taken out";

impl FillLinks for FreeLinks<'_> {
    fn link(&self, item: u32) -> FillLink {
        self.0[item as usize].as_ref().expect(LISTED).free_link
    }
    fn link_mut(&mut self, item: u32) -> &mut FillLink {
        &mut self.0[item as usize].as_mut().expect(LISTED).free_link
    }
}

impl FillLinks for WholeLinks<'_> {
    fn link(&self, item: u32) -> FillLink {
        self.0[item as usize].as_ref().expect(LISTED).whole_link
    }
    fn link_mut(&mut self, item: u32) -> &mut FillLink {
        &mut self.0[item as usize].as_mut().expect(LISTED).whole_link
    }
}
