//! What a zone's lock guards: its sections, ordered by how full they are.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::buddy::Steal;
use crate::fill::FillList;
use crate::mem_map::{Tag, Tags};
use crate::node::ZoneIndex;
use crate::pageblock::Mobility;
use crate::pfn::{NR_PAGE_ORDERS, Order, PAGEBLOCK_NR_PAGES, Pfn};
use crate::section::{Admission, FreeLinks, Section, Sections, WholeLinks};

/// The sections of one zone and their free frames (Linux `zone->free_area`).
#[derive(Debug)]
pub(crate) struct FreeAreas {
    zone: ZoneIndex,
    pub(crate) sections: Sections,
    /// Empty places in `sections`.
    vacant: Vec<u32>,
    /// Open sections with at least one free frame.
    pub(crate) with_free: FillList,
    /// Open sections with at least one free chunk of a pageblock or more.
    pub(crate) with_whole: FillList,
    /// Free frames of all open sections.
    pub(crate) free_pages: u64,
}

/// Room for one more section, allocated while no lock is held.
#[derive(Debug)]
pub(crate) struct Room {
    sections: Sections,
    vacant: Vec<u32>,
}

impl Room {
    /// Room for `nr_sections` in all.
    pub(crate) fn new(nr_sections: usize) -> Self {
        Self {
            sections: Vec::with_capacity(nr_sections),
            vacant: Vec::with_capacity(nr_sections),
        }
    }
}

impl FreeAreas {
    pub(crate) fn new(zone: ZoneIndex) -> Self {
        Self {
            zone,
            sections: Vec::new(),
            vacant: Vec::new(),
            with_free: FillList::new(),
            with_whole: FillList::new(),
            free_pages: 0,
        }
    }

    /// Free frames that a request could get.
    #[inline]
    pub(crate) fn free_pages(&self) -> u64 {
        self.free_pages
    }

    /// A section, if it is still there.
    pub(crate) fn section(&self, number: u32) -> Option<&Section> {
        self.sections.get(number as usize)?.as_deref()
    }

    pub(crate) fn section_mut(&mut self, number: u32) -> Option<&mut Section> {
        self.sections.get_mut(number as usize)?.as_deref_mut()
    }

    /// All sections with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Section)> {
        let numbered = (0u32..).zip(&self.sections);
        numbered.filter_map(|(number, section)| Some((number, section.as_deref()?)))
    }

    /// Takes a chunk from the fullest section that has one.
    pub(crate) fn take(&mut self, tags: &Tags, order: Order, mobility: Mobility) -> Option<Pfn> {
        let whole = order >= Order::PAGEBLOCK;
        self.find_map(whole, |section, steal| {
            let offset = section.take(tags, order, mobility, steal)?;
            Some(section.pfn(offset))
        })
    }

    /// Takes up to `wanted` single frames, those of the fullest pageblocks first, and calls `taken` with each; returns
    /// how many there were.
    pub(crate) fn take_many(
        &mut self,
        tags: &Tags,
        mobility: Mobility,
        wanted: u32,
        mut taken: impl FnMut(Pfn),
    ) -> u32 {
        let mut left = wanted;
        while left > 0 {
            let found = self.find_map(false, |section, steal| {
                let start = section.range.start();
                let before = section.free_pages;
                section.take_many(tags, mobility, steal, left, |offset| taken(start + offset));
                Some(before - section.free_pages).filter(|&nr_pages| nr_pages > 0)
            });
            match found {
                Some(nr_pages) => left -= nr_pages,
                None => break,
            }
        }
        wanted - left
    }

    /// Gives a chunk back to the section that its tag names.
    #[inline]
    pub(crate) fn give(&mut self, tags: &Tags, tag: Tag, pfn: Pfn, order: Order) {
        self.give_to(tag, order.nr_pages(), |section| {
            section.give(tags, pfn - section.range.start(), order);
        });
    }

    /// Gives chunks of one order back. Neighbours in the slice that lie in one pageblock cost little more than one.
    pub(crate) fn give_many(&mut self, tags: &Tags, chunks: &[Pfn], order: Order) {
        let pageblock = |pfn: &Pfn| pfn.number() / PAGEBLOCK_NR_PAGES;
        for neighbours in chunks.chunk_by(|one, next| pageblock(one) == pageblock(next)) {
            let tag = tags
                .at(neighbours[0])
                .expect("a frame that is not free stays online");
            if order != Order::ZERO {
                self.give(tags, tag, neighbours[0], order);
                continue;
            }
            let nr_pages = u32::try_from(neighbours.len()).expect("at most 512");
            self.give_to(tag, nr_pages, |section| section.give_singles(tags, neighbours));
        }
    }

    /// Has a section take `nr_pages` back that were in use.
    #[inline]
    fn give_to(&mut self, tag: Tag, nr_pages: u32, give: impl FnOnce(&mut Section)) {
        let section = self.sections[tag.section() as usize]
            .as_mut()
            .expect("a frame that is not free keeps its section");
        give(section);
        if section.admission == Admission::Open {
            self.free_pages += u64::from(nr_pages);
        }
        let listed = section.free_link.bucket() == section.free_bucket()
            && section.whole_link.bucket() == section.whole_bucket();
        if !listed {
            self.relist(tag.section());
        }
    }

    /// Opens a section, or withdraws it: its free frames no longer count and cannot be had.
    pub(crate) fn admit(&mut self, tags: &Tags, number: u32, admission: Admission) {
        let Some(section) = self.section_mut(number) else {
            return;
        };
        let before = u64::from(section.open_pages());
        section.admission = admission;
        let (now, range) = (u64::from(section.open_pages()), section.range);
        self.free_pages = self.free_pages - before + now;
        tags.set_isolated(range, admission == Admission::Isolated);
        if let Some(section) = self.section(number) {
            section.mark_withdrawn(tags);
        }
        self.relist(number);
    }

    /// Whether [`insert`](Self::insert) has room; if not, how large a [`Room`] must be.
    pub(crate) fn room_needed(&self) -> Option<usize> {
        let has_room = !self.vacant.is_empty()
            || self.sections.len() < self.sections.capacity().min(self.vacant.capacity());
        (!has_room).then(|| (self.sections.len() * 2).max(8))
    }

    /// Exchanges what the sections are kept in for something larger; returns the old, to be dropped without the lock.
    pub(crate) fn enlarge(&mut self, mut room: Room) -> Room {
        if room.sections.capacity() > self.sections.capacity() {
            room.sections.append(&mut self.sections);
            room.vacant.append(&mut self.vacant);
            core::mem::swap(&mut room.sections, &mut self.sections);
            core::mem::swap(&mut room.vacant, &mut self.vacant);
        }
        room
    }

    /// Adds a section without free frames, and tags its pageblocks. There must be room. Returns the tag.
    pub(crate) fn insert(&mut self, tags: &Tags, section: Box<Section>) -> Tag {
        let range = section.range;
        let number = match self.vacant.pop() {
            Some(number) => {
                self.sections[number as usize] = Some(section);
                number
            }
            None => {
                self.sections.push(Some(section));
                u32::try_from(self.sections.len() - 1).expect("fewer sections than pageblocks")
            }
        };
        let tag = Tag::new(self.zone, number);
        tags.mark(range, Some(tag));
        tag
    }

    /// Takes an isolated section out; to be dropped without the lock.
    pub(crate) fn remove(&mut self, tags: &Tags, number: u32) -> Option<Box<Section>> {
        let section = self.sections.get_mut(number as usize)?.take()?;
        tags.mark(section.range, None);
        // No more are vacant than there were ever sections, so that this does not allocate.
        self.vacant.push(number);
        Some(section)
    }

    /// Free chunks of each order in the open sections.
    pub(crate) fn count_chunks(&self) -> [u64; NR_PAGE_ORDERS] {
        let mut counts = [0; NR_PAGE_ORDERS];
        for (_, section) in self.iter() {
            if section.admission == Admission::Open {
                section.count_chunks(&mut counts);
            }
        }
        counts
    }

    /// Lists of sections with their links, for `validate()`.
    pub(crate) fn links(&mut self) -> (&FillList, &FillList, &mut Sections) {
        (&self.with_free, &self.with_whole, &mut self.sections)
    }

    /// What `take` finds in a section, from the fullest on; pageblocks of another mobility only if none of the right
    /// one will do anywhere.
    fn find_map<R>(
        &mut self,
        whole: bool,
        mut take: impl FnMut(&mut Section, Steal) -> Option<R>,
    ) -> Option<R> {
        for steal in [Steal::No, Steal::Yes] {
            let list = if whole { &self.with_whole } else { &self.with_free };
            let mut at = list.fullest();
            while let Some(number) = at {
                let section = self.sections[number as usize].as_mut()?;
                let before = section.free_pages;
                if let Some(found) = take(section, steal) {
                    self.free_pages -= u64::from(before - section.free_pages);
                    self.relist(number);
                    return Some(found);
                }
                at = if whole {
                    self.with_whole.next(&WholeLinks(&mut self.sections), number)
                } else {
                    self.with_free.next(&FreeLinks(&mut self.sections), number)
                };
            }
            if whole {
                return None;
            }
        }
        None
    }

    /// Moves a section to the lists that its fill calls for.
    pub(crate) fn relist(&mut self, number: u32) {
        let Some(section) = self.section(number) else {
            return;
        };
        let (free, whole) = (section.free_bucket(), section.whole_bucket());
        self.with_free
            .place(&mut FreeLinks(&mut self.sections), number, free);
        self.with_whole
            .place(&mut WholeLinks(&mut self.sections), number, whole);
    }
}
