//! From a frame number to what is known of the frame: its descriptor, and the tag of its pageblock.
//!
//! Both are found by one index, without a lock. The tag says whether there is memory at all, so it is always looked at
//! first: descriptors of a block that is not online may not be touched.

use alloc::boxed::Box;

use guest_sync::SetOnce;
use guest_sync::atomic::{AtomicU32, Ordering, fence};

use crate::node::ZoneIndex;
use crate::page::Page;
use crate::pageblock::Mobility;
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};

/// Descriptors for a stretch of physical addresses, supplied by the caller: `pages[i]` is that of frame `base + i`.
///
/// The array spans everything that will ever be memory. In boot memory, the descriptors of a region must be there, and
/// blank (all zero), when it is added. In the hot-plug region those of a block are touched from the moment it is brought
/// online to the end of taking it offline; before and after there need not be anything, and they must be blank when the
/// block is brought online. (They are blank when it has gone offline.)
#[derive(Clone, Copy, Debug)]
pub struct MemMap<'m> {
    base: Pfn,
    pages: &'m [Page],
}

impl<'m> MemMap<'m> {
    /// Descriptors from the frame `base` on. `None` unless `base` is on a pageblock border and all of them have a frame
    /// number.
    pub fn new(base: Pfn, pages: &'m [Page]) -> Option<Self> {
        let nr_pages = u32::try_from(pages.len()).ok()?;
        PfnRange::new(base, nr_pages)?;
        base.is_aligned(Order::PAGEBLOCK).then_some(Self { base, pages })
    }

    /// The frames that have a place in the array.
    pub fn range(&self) -> PfnRange {
        let nr_pages = u32::try_from(self.pages.len()).expect("checked by new");
        PfnRange::new(self.base, nr_pages).expect("checked by new")
    }
}

/// What is known of a pageblock without a lock. 0: no memory, or not online.
///
/// Bits 0 and 1: mobility. 2: isolated. 3: there is memory. 4 to 9: zone. 10 to 31: section in the zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tag(u32);

const MOBILITY: u32 = 0b11;
const ISOLATED: u32 = 1 << 2;
const ONLINE: u32 = 1 << 3;
const ZONE_SHIFT: u32 = 4;
const SECTION_SHIFT: u32 = 10;

/// Most sections that a zone can have.
pub(crate) const MAX_SECTIONS: u32 = 1 << (32 - SECTION_SHIFT);

impl Tag {
    pub(crate) fn new(zone: ZoneIndex, section: u32) -> Self {
        debug_assert!(section < MAX_SECTIONS);
        let zone = u32::from(zone.number()) << ZONE_SHIFT;
        Self(Mobility::Movable as u32 | ONLINE | zone | section << SECTION_SHIFT)
    }

    #[inline]
    pub(crate) const fn mobility(self) -> Mobility {
        Mobility::from_bits(self.0 & MOBILITY)
    }

    #[inline]
    pub(crate) const fn is_isolated(self) -> bool {
        self.0 & ISOLATED != 0
    }

    #[inline]
    pub(crate) const fn zone(self) -> ZoneIndex {
        ZoneIndex::from_number((self.0 >> ZONE_SHIFT).to_le_bytes()[0] & 0x3f)
    }

    #[inline]
    pub(crate) const fn section(self) -> u32 {
        self.0 >> SECTION_SHIFT
    }
}

/// Tags of all pageblocks: of the stretch where memory is at boot, and of the hot-plug region once it is known. Written
/// under the lock of the zone that the pageblock is in.
#[derive(Debug)]
pub(crate) struct Tags {
    boot: TagWindow,
    hotplug: SetOnce<TagWindow>,
}

/// Tags of one stretch.
#[derive(Debug)]
struct TagWindow {
    base: Pfn,
    tags: Box<[AtomicU32]>,
}

impl TagWindow {
    fn new(range: PfnRange) -> Self {
        let base = range.start().align_down(Order::PAGEBLOCK);
        let nr_pageblocks = (range.end().number() - base.number()).div_ceil(PAGEBLOCK_NR_PAGES);
        Self {
            base,
            tags: (0..nr_pageblocks).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    #[inline]
    fn slot(&self, pfn: Pfn) -> Option<&AtomicU32> {
        let offset = pfn.number().wrapping_sub(self.base.number());
        self.tags.get((offset / PAGEBLOCK_NR_PAGES) as usize)
    }
}

impl Tags {
    /// The tag of the frame's pageblock; `None` where no memory is online.
    #[inline]
    pub(crate) fn at(&self, pfn: Pfn) -> Option<Tag> {
        // Acquire: what the section was set up with is seen with its tag.
        let tag = self.slot(pfn)?.load(Ordering::Acquire);
        (tag != 0).then_some(Tag(tag))
    }

    /// Makes room for the tags of the hot-plug region. False if there is one already.
    pub(crate) fn set_hotplug(&self, range: PfnRange) -> bool {
        self.hotplug.set(TagWindow::new(range)).is_ok()
    }

    /// Whether there is room for the tags of all of the range.
    pub(crate) fn covers(&self, range: PfnRange) -> bool {
        pageblocks(range).all(|pfn| self.slot(pfn).is_some())
    }

    /// Whether there is memory in the range.
    pub(crate) fn is_occupied(&self, range: PfnRange) -> bool {
        pageblocks(range).any(|pfn| self.at(pfn).is_some())
    }

    /// Tags a section's pageblocks; `None` takes the tags away.
    pub(crate) fn mark(&self, range: PfnRange, tag: Option<Tag>) {
        for slot in pageblocks(range).filter_map(|pfn| self.slot(pfn)) {
            slot.store(tag.map_or(0, |tag| tag.0), Ordering::Release);
        }
    }

    pub(crate) fn set_isolated(&self, range: PfnRange, isolated: bool) {
        for slot in pageblocks(range).filter_map(|pfn| self.slot(pfn)) {
            let tag = slot.load(Ordering::Relaxed);
            let tag = if isolated { tag | ISOLATED } else { tag & !ISOLATED };
            // The fence below: whoever pops a frame after the lists were searched sees it (`CpuStack`).
            slot.store(tag, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    pub(crate) fn set_mobility(&self, pfn: Pfn, mobility: Mobility) {
        let slot = self.slot(pfn).expect("a pageblock of a section has a tag");
        let tag = slot.load(Ordering::Relaxed);
        slot.store(tag & !MOBILITY | mobility as u32, Ordering::Relaxed);
    }

    #[inline]
    fn slot(&self, pfn: Pfn) -> Option<&AtomicU32> {
        match self.boot.slot(pfn) {
            Some(slot) => Some(slot),
            None => self.hotplug.get()?.slot(pfn),
        }
    }
}

/// First frames of the pageblocks of a range.
fn pageblocks(range: PfnRange) -> impl Iterator<Item = Pfn> {
    range.iter().step_by(PAGEBLOCK_NR_PAGES as usize)
}

/// Descriptors and tags.
#[derive(Debug)]
pub(crate) struct FrameTable<'m> {
    map: MemMap<'m>,
    pub(crate) tags: Tags,
}

impl<'m> FrameTable<'m> {
    /// With room for tags where memory is at boot.
    pub(crate) fn new(map: MemMap<'m>, boot: PfnRange) -> Self {
        let tags = Tags {
            boot: TagWindow::new(boot),
            hotplug: SetOnce::new(),
        };
        Self { map, tags }
    }

    /// The frames that have a place in the table.
    pub(crate) fn range(&self) -> PfnRange {
        self.map.range()
    }

    /// The descriptor of a frame whose pageblock has a tag, or is just getting one.
    #[inline]
    pub(crate) fn page(&self, pfn: Pfn) -> &'m Page {
        &self.map.pages[pfn.number().wrapping_sub(self.map.base.number()) as usize]
    }

    /// Descriptor and tag of a frame; `None` where no memory is online.
    #[inline]
    pub(crate) fn find(&self, pfn: Pfn) -> Option<(&'m Page, Tag)> {
        let tag = self.tags.at(pfn)?;
        Some((self.page(pfn), tag))
    }

    /// First frame of the allocated or cached chunk that the frame, which is not free, is in. `None` for a frame that is
    /// just being freed or taken by another CPU, and so belongs to no chunk yet or any more.
    pub(crate) fn head_of(&self, pfn: Pfn) -> Option<Pfn> {
        use crate::page::PageState;
        Order::all().map(|order| pfn.align_down(order)).find(|&head| {
            let Some((page, _)) = self.find(head) else {
                return false;
            };
            match page.state() {
                PageState::Blank => false,
                PageState::Reserved | PageState::Hole | PageState::Poisoned => head == pfn,
                PageState::Cached | PageState::Allocated => pfn - head < page.order().nr_pages(),
            }
        })
    }
}
