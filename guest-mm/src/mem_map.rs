//! From a frame number to its descriptor: one table lookup by pageblock, then the section's own array.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::page::Page;
use crate::pfn::{PAGEBLOCK_NR_PAGES, Pfn, PfnRange};
use crate::section::{Section, SectionId, Sections};

/// No memory there.
const NO_SECTION: u32 = u32::MAX;

/// All sections, found by frame.
#[derive(Debug, Default)]
pub(crate) struct MemMap {
    /// Section of each pageblock of the physical address space.
    table: Vec<u32>,
    pub(crate) sections: Sections,
    /// Empty places in `sections`.
    vacant: Vec<u32>,
}

impl MemMap {
    /// Makes room for sections inside `range`, so that adding one later does not have to move the table.
    pub(crate) fn cover(&mut self, range: PfnRange) {
        let pageblocks = range.end().number().div_ceil(PAGEBLOCK_NR_PAGES) as usize;
        if self.table.len() < pageblocks {
            self.table.resize(pageblocks, NO_SECTION);
        }
    }

    /// Whether a section has frames in `range`.
    pub(crate) fn is_occupied(&self, range: PfnRange) -> bool {
        self.iter().any(|(_, section)| section.range.overlaps(range))
    }

    /// Adds a section whose range is covered and free.
    pub(crate) fn insert(&mut self, section: Box<Section>) -> SectionId {
        let range = section.range;
        let id = match self.vacant.pop() {
            Some(id) => {
                self.sections[id as usize] = Some(section);
                id
            }
            None => {
                self.sections.push(Some(section));
                u32::try_from(self.sections.len() - 1).expect("fewer sections than pageblocks")
            }
        };
        self.mark(range, id);
        SectionId(id)
    }

    /// Takes a section out; its frames have no descriptors any more.
    pub(crate) fn remove(&mut self, id: SectionId) -> Box<Section> {
        let section = self.sections[id.0 as usize].take().expect(LIVE);
        self.mark(section.range, NO_SECTION);
        self.vacant.push(id.0);
        section
    }

    pub(crate) fn section(&self, id: SectionId) -> &Section {
        self.sections[id.0 as usize].as_ref().expect(LIVE)
    }

    pub(crate) fn section_mut(&mut self, id: SectionId) -> &mut Section {
        self.sections[id.0 as usize].as_mut().expect(LIVE)
    }

    /// Section of a frame and its offset there; `None` where no memory is online.
    pub(crate) fn locate(&self, pfn: Pfn) -> Option<(SectionId, u32)> {
        let id = *self.table.get((pfn.number() / PAGEBLOCK_NR_PAGES) as usize)?;
        if id == NO_SECTION {
            return None;
        }
        let id = SectionId(id);
        Some((id, pfn - self.section(id).range.start()))
    }

    pub(crate) fn page(&self, pfn: Pfn) -> Option<&Page> {
        let (id, offset) = self.locate(pfn)?;
        Some(&self.section(id).pages[offset as usize])
    }

    pub(crate) fn page_mut(&mut self, pfn: Pfn) -> Option<&mut Page> {
        let (id, offset) = self.locate(pfn)?;
        Some(&mut self.section_mut(id).pages[offset as usize])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SectionId, &Section)> {
        (0u32..)
            .zip(&self.sections)
            .filter_map(|(id, section)| Some((SectionId(id), &**section.as_ref()?)))
    }

    fn mark(&mut self, range: PfnRange, id: u32) {
        let first = (range.start().number() / PAGEBLOCK_NR_PAGES) as usize;
        let nr_pageblocks = (range.nr_pages() / PAGEBLOCK_NR_PAGES) as usize;
        self.table[first..first + nr_pageblocks].fill(id);
    }
}

const LIVE: &str = "section numbers are only held while their section is in the map";
