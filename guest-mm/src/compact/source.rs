//! A pageblock out of use while something is done about what is on it.

use guest_sync::Cpu;

use crate::blocks::InUse;
use crate::compact::scan::Candidate;
use crate::mem_map::Tag;
use crate::migrate::Route;
use crate::node::ZoneIndex;
use crate::page::{Head, PageFlags, PageState};
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};
use crate::phys::PhysicalMemory;
use crate::section::{Admission, Section};
use crate::zone::Zone;

/// A withdrawn pageblock; dropping it puts it back in use.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    phys: &'a PhysicalMemory<'a>,
    zone: &'a Zone,
    home: Tag,
    range: PfnRange,
    /// Free frames that it had at first.
    pub(super) free_pages: u32,
    /// Offset of the next frame to look at.
    cursor: u32,
    /// Sections that the free scanner looked at.
    pub(super) free_scanned: u64,
    /// Pages that went elsewhere.
    pub(super) moved_pages: u64,
}

impl Source<'_> {
    /// Whether nothing is on it that is known not to move: a look, before the first page is.
    pub(super) fn all_movable(&self) -> bool {
        // Descriptors of a block, which stay where they are, come first on it.
        if self.phys.table.page(self.range.start()).state() == PageState::Reserved {
            return false;
        }
        let mut cursor = 0;
        while let Some((head, _)) = self.phys.next_head(self.range, self.home, &mut cursor) {
            let page = self.phys.table.page(head);
            let flags = page.flags();
            let movable =
                page.anon_place().is_some() || flags.has(PageFlags::SWAPCACHE) || flags.has(PageFlags::FILE);
            if page.state() == PageState::Allocated && (!movable || flags.has(PageFlags::PINNED)) {
                return false;
            }
        }
        true
    }

    /// The chunk in use that a frame of the pageblock is in, by its first frame. `None` if it is in none, or in one that begins elsewhere.
    pub(crate) fn chunk_of(&self, pfn: Pfn) -> Option<(Pfn, Order)> {
        let mut cursor = 0;
        loop {
            let (head, order) = self.phys.next_head(self.range, self.home, &mut cursor)?;
            if pfn < head + order.nr_pages() {
                return (pfn >= head).then_some((head, order));
            }
        }
    }

    /// Gives back to it what CPUs keep at hand of it.
    pub(super) fn drain(&self) {
        self.zone.drain(&self.phys.table, |pfn| self.range.contains(pfn));
    }

    /// False once all of it is free, and back in use as a whole.
    pub(super) fn is_withdrawn(&self) -> bool {
        let mut withdrawn = false;
        self.visit(|section, pageblock| withdrawn = section.pageblocks[pageblock as usize].withdrawn);
        withdrawn
    }

    /// It is not tried again in this run.
    pub(super) fn skip(&self) {
        self.visit(|section, pageblock| section.pageblocks[pageblock as usize].skip = true);
    }

    /// Shows the pageblock with its section, unless that was taken out meanwhile.
    fn visit(&self, look: impl FnOnce(&mut Section, u32)) {
        let mut areas = self.zone.areas.lock();
        let section = areas.section_mut(self.home.section());
        if let Some(section) = section.filter(|section| section.range.covers(self.range)) {
            let pageblock = (self.range.start() - section.range.start()) / PAGEBLOCK_NR_PAGES;
            look(section, pageblock);
        }
        areas.relist(self.home.section());
    }
}

impl Drop for Source<'_> {
    fn drop(&mut self) {
        let tags = &self.phys.table.tags;
        self.visit(|section, pageblock| {
            if section.pageblocks[pageblock as usize].withdrawn {
                section.readmit(tags, pageblock);
            }
        });
    }
}

impl Route for Source<'_> {
    fn next_in_use(&mut self, phys: &PhysicalMemory<'_>) -> Option<InUse> {
        let (head, order) = phys.next_head(self.range, self.home, &mut self.cursor)?;
        Some(phys.hold(head, order))
    }

    fn step_back(&mut self, order: Order) {
        self.cursor -= order.nr_pages();
    }

    fn destination(&mut self, phys: &PhysicalMemory<'_>, _: &Cpu, order: Order) -> Option<Pfn> {
        if order != Order::ZERO {
            return None;
        }
        let mut areas = self.zone.areas.lock();
        let pfn = areas.take_from_fullest(&phys.table.tags, &mut self.free_scanned)?;
        phys.table.page(pfn).set_head(Head::allocated(Order::ZERO));
        self.zone.publish(&areas);
        self.zone.events.slow_alloc_pages.add(1);
        Some(pfn)
    }

    fn moved(&mut self, _: Pfn, nr_pages: u32) {
        self.moved_pages += u64::from(nr_pages);
    }
}

impl PhysicalMemory<'_> {
    /// Withdraws the emptiest movable pageblock that was not tried in vain.
    pub(super) fn withdraw_emptiest<'a>(&'a self, zone: &'a Zone) -> Option<Source<'a>> {
        let source = {
            let mut areas = zone.areas.lock();
            let Candidate {
                section,
                range,
                free_pages,
            } = areas.emptiest_movable()?;
            let found = areas.section_mut(section)?;
            let pageblock = (range.start() - found.range.start()) / PAGEBLOCK_NR_PAGES;
            found.withdraw(&self.table.tags, pageblock);
            areas.relist(section);
            let home = Tag::new(ZoneIndex::of(zone.node(), zone.kind()), section);
            self.source(zone, home, range, free_pages)
        };
        source.drain();
        Some(source)
    }

    /// Withdraws the pageblock of a frame, in the section that the tag names. `None` if it is withdrawn already, or all of the section is,
    /// or all of the pageblock is free.
    pub(crate) fn withdraw_at<'a>(&'a self, zone: &'a Zone, tag: Tag, pfn: Pfn) -> Option<Source<'a>> {
        let source = {
            let mut areas = zone.areas.lock();
            let section = areas.section_mut(tag.section())?;
            let range = PfnRange::new(pfn.align_down(Order::PAGEBLOCK), PAGEBLOCK_NR_PAGES)?;
            if section.admission == Admission::Isolated || !section.range.covers(range) {
                return None;
            }
            let pageblock = (range.start() - section.range.start()) / PAGEBLOCK_NR_PAGES;
            let found = &section.pageblocks[pageblock as usize];
            let free_pages = u32::from(found.free_pages);
            if found.withdrawn || free_pages == PAGEBLOCK_NR_PAGES {
                return None;
            }
            section.withdraw(&self.table.tags, pageblock);
            areas.relist(tag.section());
            self.source(zone, tag, range, free_pages)
        };
        source.drain();
        Some(source)
    }

    const fn source<'a>(&'a self, zone: &'a Zone, home: Tag, range: PfnRange, free_pages: u32) -> Source<'a> {
        Source {
            phys: self,
            zone,
            home,
            range,
            free_pages,
            cursor: 0,
            free_scanned: 0,
            moved_pages: 0,
        }
    }
}
