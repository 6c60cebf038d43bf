//! The two scanners: which pageblock is emptied next, and which frame a page of it goes to.

use crate::areas::FreeAreas;
use crate::fill::{FillLinks, NR_BUCKETS};
use crate::mem_map::Tags;
use crate::pageblock::{Mobility, PageblockLinks};
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};
use crate::section::{Admission, FreeLinks, Section};

/// A movable pageblock that could be emptied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// Number of its section in the zone.
    pub(crate) section: u32,
    /// Its frames.
    pub(crate) range: PfnRange,
    /// Free frames, 1 to 511.
    pub(crate) free_pages: u32,
}

impl FreeAreas {
    /// The emptiest movable pageblock that was not tried in vain: what the migrate scanner takes next.
    pub(crate) fn emptiest_movable(&mut self) -> Option<Candidate> {
        let mut best: Option<Candidate> = None;
        for (section, found) in (0u32..).zip(&mut self.sections) {
            let open = found
                .as_deref_mut()
                .filter(|found| found.admission == Admission::Open);
            let Some(found) = open else {
                continue;
            };
            let least = best.map_or(0, |best| best.free_pages);
            if let Some((pageblock, free_pages)) = found.emptiest_movable(least) {
                let range = found.pageblock_range(pageblock);
                best = Some(Candidate {
                    section,
                    range,
                    free_pages,
                });
            }
        }
        best
    }

    /// Takes a frame of the fullest movable pageblock that has one: what the free scanner finds. Whole free pageblocks are left alone. Adds to
    /// `scanned` the sections looked at.
    pub(crate) fn take_from_fullest(&mut self, tags: &Tags, scanned: &mut u64) -> Option<Pfn> {
        let mut at = self.with_free.fullest();
        while let Some(number) = at {
            *scanned += 1;
            let section = self.sections[number as usize].as_mut()?;
            if let Some(pfn) = section.take_from_fullest(tags) {
                self.free_pages -= 1;
                self.relist(number);
                return Some(pfn);
            }
            at = self.with_free.next(&FreeLinks(&mut self.sections), number);
        }
        None
    }

    /// Free frames in whole pageblocks.
    pub(crate) fn whole_pages(&self) -> u64 {
        let open = self
            .iter()
            .filter(|(_, section)| section.admission == Admission::Open);
        open.map(|(_, section)| u64::from(section.whole_pageblocks * PAGEBLOCK_NR_PAGES))
            .sum()
    }

    /// Lets the pageblocks be tried again that could not be emptied (Linux `__reset_isolation_suitable`).
    pub(crate) fn reset_skip(&mut self) {
        for section in self.sections.iter_mut().flatten() {
            section
                .pageblocks
                .iter_mut()
                .for_each(|pageblock| pageblock.skip = false);
        }
    }
}

impl Section {
    /// The emptiest movable pageblock that is not to be skipped, with its free frames, if those are more than `least`.
    fn emptiest_movable(&mut self, least: u32) -> Option<(u32, u32)> {
        let list = self.partial[Mobility::Movable as usize].clone();
        for bucket in (0..NR_BUCKETS).rev() {
            let mut at = list.first_of(bucket);
            let mut best: Option<(u32, u32)> = None;
            while let Some(pageblock) = at {
                let links = PageblockLinks(&mut self.pageblocks);
                if links.link(pageblock).bucket() != Some(bucket) {
                    break;
                }
                at = list.next(&links, pageblock);
                let found = &self.pageblocks[pageblock as usize];
                let free_pages = u32::from(found.free_pages);
                if !found.skip && free_pages > best.map_or(least, |(_, free_pages)| free_pages) {
                    best = Some((pageblock, free_pages));
                }
            }
            if best.is_some() {
                return best;
            }
        }
        None
    }

    fn take_from_fullest(&mut self, tags: &Tags) -> Option<Pfn> {
        let pageblock = self.partial[Mobility::Movable as usize].fullest()?;
        let frame = self.pageblocks[pageblock as usize].take(Order::ZERO)?;
        self.free_pages -= 1;
        self.relink(tags, pageblock);
        Some(self.pfn(pageblock * PAGEBLOCK_NR_PAGES + frame))
    }

    /// Takes a partly used pageblock off its list: no frame of it can be had until it is readmitted, or all of it is free.
    pub(crate) fn withdraw(&mut self, tags: &Tags, pageblock: u32) {
        self.pageblocks[pageblock as usize].withdrawn = true;
        self.relink(tags, pageblock);
        tags.set_isolated(self.pageblock_range(pageblock), true);
    }

    /// Puts a withdrawn pageblock back where its fill calls for.
    pub(crate) fn readmit(&mut self, tags: &Tags, pageblock: u32) {
        self.pageblocks[pageblock as usize].withdrawn = false;
        let isolated = self.admission == Admission::Isolated;
        tags.set_isolated(self.pageblock_range(pageblock), isolated);
        self.relink(tags, pageblock);
    }

    /// Tags withdrawn pageblocks as such, after all of the section was tagged anew.
    pub(crate) fn mark_withdrawn(&self, tags: &Tags) {
        for (number, pageblock) in (0u32..).zip(&self.pageblocks) {
            if pageblock.withdrawn {
                tags.set_isolated(self.pageblock_range(number), true);
            }
        }
    }

    fn pageblock_range(&self, pageblock: u32) -> PfnRange {
        let start = self.pfn(pageblock * PAGEBLOCK_NR_PAGES);
        PfnRange::new(start, PAGEBLOCK_NR_PAGES).expect("a section's frames have numbers")
    }
}
