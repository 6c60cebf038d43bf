//! One section: every frame in exactly one state, every pageblock on the list that its fill calls for, all counts
//! derived again.

use alloc::vec::Vec;

use crate::mem_map::{FrameTable, Tag};
use crate::node::ZoneIndex;
use crate::page::{Page, PageFlags, PageState};
use crate::pageblock::{NR_MOBILITIES, PageblockLinks, Whole};
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES, Pfn};
use crate::section::{Admission, Section, SectionHome};
use crate::validate::{Invalid, ensure, members, same};
use crate::zone::Zone;

impl Section {
    /// Checks the section; returns how many of the chunks on lists of CPUs are in it.
    pub(crate) fn validate(
        &self,
        table: &FrameTable<'_>,
        zone: &Zone,
        number: u32,
        cached: &[(Pfn, Order)],
    ) -> Result<usize, Invalid> {
        self.validate_tags(table, zone, number)?;
        self.validate_pageblocks(table)?;
        self.validate_frames(table, cached)
    }

    fn validate_tags(&self, table: &FrameTable<'_>, zone: &Zone, number: u32) -> Result<(), Invalid> {
        let expected = Tag::new(ZoneIndex::of(zone.node(), zone.kind()), number);
        let pageblocks = self.range.iter().step_by(PAGEBLOCK_NR_PAGES as usize);
        for (pfn, pageblock) in pageblocks.zip(&self.pageblocks) {
            let tag = table.tags.at(pfn);
            let is_isolated = self.admission == Admission::Isolated || pageblock.withdrawn;
            let fits = tag.is_some_and(|tag| {
                tag.zone() == expected.zone() && tag.section() == number && tag.is_isolated() == is_isolated
            });
            ensure!(fits, "{pfn} of section {number} is tagged {tag:?}");
        }
        Ok(())
    }

    /// Walks the section chunk by chunk; every frame is free, or part of a chunk, or reserved, or a hole.
    fn validate_frames(&self, table: &FrameTable<'_>, cached: &[(Pfn, Order)]) -> Result<usize, Invalid> {
        let (mut managed, mut present, mut free, mut pinned) = (0, 0, 0, 0);
        let mut seen = 0;
        let mut offset = 0;
        while offset < self.range.nr_pages() {
            let pfn = self.pfn(offset);
            let page = table.page(pfn);
            validate_page(page).map_err(|Invalid(why)| Invalid(alloc::format!("{pfn}: {why}")))?;
            if self.free_run(offset) > 0 {
                ensure!(page.state() == PageState::Blank, "{pfn} is free, and {page:?}");
                (free, managed, present) = (free + 1, managed + 1, present + 1);
                offset += 1;
                continue;
            }
            let nr_pages = page.order().nr_pages();
            if self.home != SectionHome::Boot {
                let is_own = self.memmap().contains(pfn);
                ensure!(
                    is_own == (page.state() == PageState::Reserved),
                    "{pfn} holds descriptors of its block: {is_own}, and {page:?}"
                );
            }
            match page.state() {
                PageState::Blank => ensure!(false, "{pfn} belongs to nobody"),
                PageState::Hole => {}
                PageState::Reserved | PageState::Poisoned => present += 1,
                PageState::Cached | PageState::Allocated => {
                    present += nr_pages;
                    managed += nr_pages;
                }
            }
            if page.state() == PageState::Cached {
                seen += 1;
                let listed = cached.binary_search(&(pfn, page.order())).is_ok();
                ensure!(listed, "{pfn} says that it is on a list, and is not");
            }
            ensure!(
                pfn.is_aligned(page.order()) && offset + nr_pages <= self.range.nr_pages(),
                "{pfn} heads a chunk of order {}",
                page.order().number()
            );
            for tail in offset + 1..offset + nr_pages {
                let blank = table.page(self.pfn(tail)).is_blank() && self.free_run(tail) == 0;
                ensure!(blank, "{} is no blank tail", self.pfn(tail));
            }
            pinned += u32::from(page.flags().has(PageFlags::PINNED));
            offset += nr_pages;
        }
        let counted = (
            self.free_pages,
            self.present_pages,
            self.managed_pages,
            self.pinned_chunks,
        );
        let found = (free, present, managed, pinned);
        ensure!(
            counted == found,
            "{}: free, present, managed, pinned are {found:?}, not {counted:?}",
            self.range
        );
        Ok(seen)
    }

    fn validate_pageblocks(&self, table: &FrameTable<'_>) -> Result<(), Invalid> {
        let mut partial: [Vec<_>; NR_MOBILITIES] = Default::default();
        let mut whole = [Vec::new(), Vec::new()];
        let mut whole_pageblocks = 0;
        for (index, pageblock) in (0u32..).zip(&self.pageblocks) {
            let pfn = self.pfn(index * PAGEBLOCK_NR_PAGES);
            let free = pageblock.count_free();
            ensure!(
                u32::from(pageblock.free_pages) == free,
                "pageblock of {pfn} has {free} free"
            );
            let is_whole = pageblock.whole != Whole::No;
            ensure!(
                is_whole == (free == PAGEBLOCK_NR_PAGES),
                "pageblock of {pfn} with {free} free is {:?}",
                pageblock.whole
            );
            whole_pageblocks += u32::from(is_whole);
            match pageblock.whole {
                Whole::No => {}
                Whole::Single => whole[0].push((0, index)),
                Whole::PairHead => whole[1].push((0, index)),
                Whole::PairTail => {}
            }
            self.validate_pair(index)?;
            let mobility = table.tags.at(pfn).map(Tag::mobility);
            if let (Some(bucket), Some(mobility)) = (pageblock.bucket(), mobility) {
                partial[mobility as usize].push((bucket, index));
            }
        }
        ensure!(
            self.whole_pageblocks == whole_pageblocks,
            "{}: {whole_pageblocks} free pageblocks",
            self.range
        );
        let links = &PageblockLinks(&mut self.pageblocks.clone());
        let lists = self.partial.iter().chain(&self.whole);
        for (list, want) in lists.zip(partial.into_iter().chain(whole)) {
            ensure!(
                same(members(list, links), want),
                "{}: a list of pageblocks is wrong",
                self.range
            );
        }
        Ok(())
    }

    /// Two free pageblocks that are buddies are one chunk, and nothing else is.
    fn validate_pair(&self, index: u32) -> Result<(), Invalid> {
        let whole = |index: u32| self.pageblocks.get(index as usize).map(|block| block.whole);
        let pfn = self.pfn(index * PAGEBLOCK_NR_PAGES);
        let right = match (whole(index), pfn.is_aligned(Order::MAX)) {
            (Some(Whole::PairHead), aligned) => aligned && whole(index + 1) == Some(Whole::PairTail),
            (Some(Whole::PairTail), aligned) => {
                !aligned && index > 0 && whole(index - 1) == Some(Whole::PairHead)
            }
            (Some(Whole::Single), true) => whole(index + 1).is_none_or(|buddy| buddy == Whole::No),
            (Some(Whole::Single), false) => {
                index == 0 || whole(index - 1).is_none_or(|buddy| buddy == Whole::No)
            }
            _ => true,
        };
        ensure!(
            right,
            "pageblock of {pfn} is {:?}, its buddy is not",
            whole(index)
        );
        Ok(())
    }
}

impl Page {
    fn is_blank(&self) -> bool {
        self.head() == crate::page::Head::BLANK && self.has_blank_fields()
    }
}

/// Checks a descriptor against the legal values of its fields.
fn validate_page(page: &Page) -> Result<(), Invalid> {
    let head = page.head();
    if head.state() != PageState::Allocated {
        let bare = head.count() == 0 && head.flags() == PageFlags::NONE && page.has_blank_fields();
        ensure!(bare, "{head:?} with contents: {page:?}");
        let has_order = head.state() == PageState::Cached;
        ensure!(has_order || head.order() == Order::ZERO, "{head:?}");
        return Ok(());
    }
    let flags = head.flags();
    let (anon, table) = (flags.has(PageFlags::ANON), flags.has(PageFlags::TABLE));
    let file = flags.has(PageFlags::FILE);
    ensure!(flags.is_legal(), "illegal flags {flags:?}");
    ensure!(head.count() > 0, "allocated without a reference");
    ensure!(
        head.count() >= page.mapcount(),
        "mapped {} times with {} references",
        page.mapcount(),
        head.count()
    );
    if flags.has(PageFlags::SLAB) {
        return Ok(());
    }
    let is_mapped = anon && page.mapcount() > 0;
    ensure!(
        (page.mapping() != 0) == (is_mapped || table || file || page.has_owner()),
        "mapping {} with {flags:?}",
        page.mapping()
    );
    ensure!(
        anon || file || (page.mapcount() == 0 && (table || page.has_owner() || page.index() == 0)),
        "mapped and neither anonymous nor a file's"
    );
    let has_private = flags.has(PageFlags::SWAPCACHE) || flags.has(PageFlags::PRIVATE);
    ensure!(
        has_private || page.private() <= if table { 512 } else { 0 },
        "private {} with {flags:?}",
        page.private()
    );
    ensure!(
        flags.has(PageFlags::LRU) || page.links() == (0, 0),
        "on a list with {flags:?}"
    );
    Ok(())
}
