//! One section: every frame in exactly one chunk, every free chunk on exactly one list, all counts derived again.

use alloc::vec::Vec;

use crate::page::{NO_LINK, Page, PageFlags, PageState};
use crate::pageblock::{NR_SMALL_ORDERS, PageblockLinks};
use crate::pfn::{NR_PAGE_ORDERS, Order, PAGEBLOCK_NR_PAGES};
use crate::section::Section;
use crate::validate::{Invalid, ensure, members, same};

impl Section {
    /// Adds the section's free chunks to `counts`, by order, from its lists.
    pub(crate) fn count_chunks(&self, counts: &mut [u64; NR_PAGE_ORDERS]) {
        for (order, head) in self.list_heads() {
            counts[order.index()] += self.chain(head).count() as u64;
        }
    }

    pub(crate) fn validate(&self) -> Result<(), Invalid> {
        let free = self.validate_chunks()?;
        self.validate_lists(free)?;
        self.validate_pageblocks()
    }

    /// Walks the section chunk by chunk; returns the heads of the free ones.
    fn validate_chunks(&self) -> Result<Vec<(Order, u32)>, Invalid> {
        let mut free = Vec::new();
        let (mut managed, mut present, mut free_pages, mut pinned) = (0, 0, 0, 0);
        let mut offset = 0;
        while offset < self.range.nr_pages() {
            let page = &self.pages[offset as usize];
            let pfn = self.pfn(offset);
            validate_page(page).map_err(|Invalid(why)| Invalid(alloc::format!("{pfn}: {why}")))?;
            ensure!(
                page.state != PageState::Tail,
                "{pfn} is a tail outside every chunk"
            );
            let nr_pages = page.order().nr_pages();
            ensure!(pfn.is_aligned(page.order()), "{pfn} heads an unaligned chunk");
            ensure!(
                offset + nr_pages <= self.range.nr_pages(),
                "{pfn} heads a chunk that leaves its section"
            );
            for tail in offset + 1..offset + nr_pages {
                ensure!(
                    self.pages[tail as usize].is_blank(),
                    "{} is no blank tail",
                    self.pfn(tail)
                );
            }
            present += if page.state == PageState::Hole {
                0
            } else {
                nr_pages
            };
            managed += match page.state {
                PageState::Free | PageState::Allocated => nr_pages,
                PageState::Tail | PageState::Reserved | PageState::Hole => 0,
            };
            if page.state == PageState::Free {
                free_pages += nr_pages;
                free.push((page.order(), offset));
            }
            pinned += u32::from(page.flags.has(PageFlags::PINNED));
            offset += nr_pages;
        }
        let range = self.range;
        ensure!(
            self.free_pages == free_pages,
            "{range}: free {} is {free_pages}",
            self.free_pages
        );
        ensure!(
            self.present_pages == present,
            "{range}: present {} is {present}",
            self.present_pages
        );
        ensure!(
            self.managed_pages == managed,
            "{range}: managed {} is {managed}",
            self.managed_pages
        );
        ensure!(
            self.pinned_chunks == pinned,
            "{range}: pinned {} is {pinned}",
            self.pinned_chunks
        );
        Ok(free)
    }

    fn validate_lists(&self, free: Vec<(Order, u32)>) -> Result<(), Invalid> {
        let mut listed = Vec::new();
        for (order, head) in self.list_heads() {
            let mut prev = NO_LINK;
            for offset in self.chain(head) {
                let page = &self.pages[offset as usize];
                ensure!(page.prev == prev, "{} is linked one way only", self.pfn(offset));
                prev = offset;
                listed.push((order, offset));
            }
        }
        for &(order, offset) in &free {
            let buddy = self.pfn(offset).buddy(order);
            let merged = order == Order::MAX || !self.range.contains(buddy) || {
                let page = &self.pages[(buddy - self.range.start()) as usize];
                page.state != PageState::Free || page.order != order.number()
            };
            ensure!(
                merged,
                "{} and its buddy are both free at order {}",
                self.pfn(offset),
                order.number()
            );
        }
        ensure!(
            same(listed, free),
            "{}: free lists and free chunks differ",
            self.range
        );
        Ok(())
    }

    fn validate_pageblocks(&self) -> Result<(), Invalid> {
        let mut partial = [Vec::new(), Vec::new()];
        let mut whole = 0;
        for (index, pageblock) in (0u32..).zip(&self.pageblocks) {
            let pfn = self.pfn(index * PAGEBLOCK_NR_PAGES);
            let mut free = 0;
            for order in Order::all().take(NR_SMALL_ORDERS) {
                let chunks = self.chain(pageblock.heads[order.index()]).count();
                free += u32::try_from(chunks)
                    .unwrap_or(u32::MAX)
                    .saturating_mul(order.nr_pages());
                let bit = pageblock.nonempty >> order.number() & 1 == 1;
                ensure!(
                    bit == (chunks > 0),
                    "pageblock of {pfn}: bit of order {} wrong",
                    order.number()
                );
            }
            if free == 0 && u32::from(pageblock.free_pages) == PAGEBLOCK_NR_PAGES {
                whole += 1;
                free = PAGEBLOCK_NR_PAGES;
            }
            ensure!(
                u32::from(pageblock.free_pages) == free,
                "pageblock of {pfn} has {free} free"
            );
            partial[pageblock.mobility as usize].extend(pageblock.bucket().map(|bucket| (bucket, index)));
        }
        ensure!(
            self.whole_pageblocks == whole,
            "{}: {whole} free pageblocks",
            self.range
        );
        let links = &PageblockLinks(&mut self.pageblocks.clone());
        for (list, want) in self.partial.iter().zip(partial) {
            ensure!(
                same(members(list, links), want),
                "{}: list of partial pageblocks is wrong",
                self.range
            );
        }
        Ok(())
    }

    fn list_heads(&self) -> impl Iterator<Item = (Order, u32)> {
        let small = self
            .pageblocks
            .iter()
            .flat_map(|pageblock| Order::all().zip(pageblock.heads));
        let large = Order::all().skip(NR_SMALL_ORDERS).zip(self.whole);
        small.chain(large)
    }

    /// Offsets of a free list's chunks; stops after as many as there are frames.
    fn chain(&self, head: u32) -> impl Iterator<Item = u32> {
        let next = |&offset: &u32| Some(self.pages[offset as usize].next).filter(|&next| next != NO_LINK);
        core::iter::successors(Some(head).filter(|&head| head != NO_LINK), next).take(self.pages.len())
    }
}

impl Page {
    fn is_blank(&self) -> bool {
        self.state == PageState::Tail
            && (self._count | self._mapcount | self.mapping | self.index | self.private) == 0
            && (self.next | self.prev) == 0
            && self.order == 0
            && self.flags == PageFlags::NONE
    }
}

/// Checks a descriptor against the legal values of its fields.
fn validate_page(page: &Page) -> Result<(), Invalid> {
    let anon = page.flags.has(PageFlags::ANON);
    let table = page.flags.has(PageFlags::TABLE);
    ensure!(page.flags.is_legal(), "illegal flags {:?}", page.flags);
    ensure!(
        (page.mapping != 0) == (anon || table),
        "mapping {} with {:?}",
        page.mapping,
        page.flags
    );
    ensure!(
        anon || (page._mapcount == 0 && page.index == 0),
        "mapped but not anonymous"
    );
    ensure!(page._mapcount <= 1, "mapped {} times", page._mapcount);
    ensure!(
        page.private == 0 || table,
        "private {} with {:?}",
        page.private,
        page.flags
    );
    ensure!(page.private <= 512, "a page table with {} entries", page.private);
    match page.state {
        PageState::Allocated => {
            ensure!(page._count > 0, "allocated without a reference");
            ensure!(page._count >= page._mapcount, "fewer references than mappings");
            ensure!(page.next == 0 && page.prev == 0, "allocated and on a list");
        }
        PageState::Free => ensure!(
            page._count == 0 && page.flags == PageFlags::NONE,
            "free but in use"
        ),
        PageState::Reserved | PageState::Hole | PageState::Tail => {
            let bare = Page {
                state: PageState::Tail,
                ..page.clone()
            };
            ensure!(bare.is_blank(), "{:?} with contents", page.state);
        }
    }
    Ok(())
}
