//! The buddy system inside one section: orders 0 to 10, split and merge, the fullest pageblock first.
//!
//! A request for small chunks is served from the fullest pageblock that has one, and breaks a free pageblock only when
//! no partly used one will do: so the emptier pageblocks drain, and free memory gathers into whole ones.

use crate::mem_map::Tags;
use crate::pageblock::{Mobility, PageblockLinks, Whole};
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES, Pfn};
use crate::section::Section;

/// Partly used pageblocks that a request above order 0 looks at before it breaks a free one.
const PROBES: usize = 32;

/// From this many free frames on, a request of another mobility takes the whole pageblock over, so that the next ones
/// follow it there instead of spreading (half of it, as `mm/page_alloc.c`, `try_to_claim_block`).
const CLAIM_FREE_PAGES: u16 = 256;

/// From this order on, a movable request takes pageblocks over too (`mm/page_alloc.c`, `should_try_claim_block`).
const CLAIM_ORDER: u8 = Order::PAGEBLOCK.number() / 2;

/// Whether pageblocks of another mobility may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Steal {
    No,
    Yes,
}

impl Section {
    /// Takes a chunk; returns its offset. `None` when there is none of that size to be had that way; nothing changed
    /// then.
    pub(crate) fn take(
        &mut self,
        tags: &Tags,
        order: Order,
        mobility: Mobility,
        steal: Steal,
    ) -> Option<u32> {
        if order >= Order::PAGEBLOCK {
            return self.take_whole(tags, order, mobility);
        }
        let pageblock = self.pageblock_for(tags, order, mobility, steal)?;
        let frame = self.pageblocks[pageblock as usize].take(order)?;
        self.free_pages -= order.nr_pages();
        self.relink(tags, pageblock);
        Some(pageblock * PAGEBLOCK_NR_PAGES + frame)
    }

    /// Takes up to `wanted` single frames of one pageblock, and calls `taken` with the offset of each.
    pub(crate) fn take_many(
        &mut self,
        tags: &Tags,
        mobility: Mobility,
        steal: Steal,
        wanted: u32,
        mut taken: impl FnMut(u32),
    ) {
        let Some(pageblock) = self.pageblock_for(tags, Order::ZERO, mobility, steal) else {
            return;
        };
        let base = pageblock * PAGEBLOCK_NR_PAGES;
        let block = &mut self.pageblocks[pageblock as usize];
        let before = block.free_pages;
        block.take_many(wanted, |frame| taken(base + frame));
        self.free_pages -= u32::from(before - block.free_pages);
        self.relink(tags, pageblock);
    }

    /// Gives a chunk back; `offset` is its first frame.
    #[inline]
    pub(crate) fn give(&mut self, tags: &Tags, offset: u32, order: Order) {
        let pageblock = offset / PAGEBLOCK_NR_PAGES;
        if order < Order::PAGEBLOCK {
            self.free_pages += order.nr_pages();
            self.pageblocks[pageblock as usize].put(offset % PAGEBLOCK_NR_PAGES, order);
            self.settle(tags, pageblock);
            return;
        }
        self.free_pages += order.nr_pages();
        for pageblock in pageblock..pageblock + order.nr_pages() / PAGEBLOCK_NR_PAGES {
            self.pageblocks[pageblock as usize].set_all(true);
            self.add_whole(pageblock);
        }
    }

    /// Gives single frames of one pageblock back; there is at least one.
    pub(crate) fn give_singles(&mut self, tags: &Tags, frames: &[Pfn]) {
        let start = self.range.start();
        let pageblock = (frames[0] - start) / PAGEBLOCK_NR_PAGES;
        let block = &mut self.pageblocks[pageblock as usize];
        let before = block.free_pages;
        for &pfn in frames {
            block.put((pfn - start) % PAGEBLOCK_NR_PAGES, Order::ZERO);
        }
        self.free_pages += u32::from(block.free_pages - before);
        self.settle(tags, pageblock);
    }

    /// Puts a pageblock that has more free frames than before on the list where it belongs.
    #[inline]
    fn settle(&mut self, tags: &Tags, pageblock: u32) {
        let block = &self.pageblocks[pageblock as usize];
        if u32::from(block.free_pages) == PAGEBLOCK_NR_PAGES {
            if block.withdrawn {
                // Nothing is left on it: compaction is done with it.
                self.readmit(tags, pageblock);
            }
            self.relink(tags, pageblock);
            self.add_whole(pageblock);
        } else if block.listed_bucket() != block.bucket() {
            self.relink(tags, pageblock);
        }
    }

    /// The pageblock to take a chunk below order 9 from: it has one.
    fn pageblock_for(&mut self, tags: &Tags, order: Order, mobility: Mobility, steal: Steal) -> Option<u32> {
        if let Some(pageblock) = self.partial_with(order, mobility, PROBES) {
            return Some(pageblock);
        }
        if let Some(pageblock) = self.remove_whole(Order::PAGEBLOCK) {
            tags.set_mobility(self.pfn(pageblock * PAGEBLOCK_NR_PAGES), mobility);
            return Some(pageblock);
        }
        if let Some(pageblock) = self.partial_with(order, mobility, usize::MAX) {
            return Some(pageblock);
        }
        match steal {
            Steal::No => None,
            Steal::Yes => mobility
                .fallbacks()
                .into_iter()
                .find_map(|other| self.steal(tags, order, mobility, other)),
        }
    }

    /// The fullest pageblock of that mobility with a chunk of `order`, among the first `probes`.
    fn partial_with(&mut self, order: Order, mobility: Mobility, probes: usize) -> Option<u32> {
        let list = &self.partial[mobility as usize];
        let mut at = list.fullest();
        for _ in 0..probes {
            let pageblock = at?;
            if self.pageblocks[pageblock as usize].has(order) {
                return Some(pageblock);
            }
            at = list.next(&PageblockLinks(&mut self.pageblocks), pageblock);
        }
        None
    }

    /// A pageblock of the other mobility. The kernel looks for the emptiest, to take it over; the movable for the
    /// fullest, to spoil the least.
    fn steal(&mut self, tags: &Tags, order: Order, mobility: Mobility, other: Mobility) -> Option<u32> {
        let emptiest = self.partial[other as usize].emptiest()?;
        let fits = self.pageblocks[emptiest as usize].has(order);
        let takes_over = mobility != Mobility::Movable || order.number() >= CLAIM_ORDER;
        if !takes_over || !fits {
            return self.partial_with(order, other, usize::MAX);
        }
        if self.pageblocks[emptiest as usize].free_pages >= CLAIM_FREE_PAGES {
            let links = &mut PageblockLinks(&mut self.pageblocks);
            self.partial[other as usize].place(links, emptiest, None);
            tags.set_mobility(self.pfn(emptiest * PAGEBLOCK_NR_PAGES), mobility);
            self.relink(tags, emptiest);
        }
        Some(emptiest)
    }

    fn take_whole(&mut self, tags: &Tags, order: Order, mobility: Mobility) -> Option<u32> {
        let first = self.remove_whole(order)?;
        for pageblock in first..first + order.nr_pages() / PAGEBLOCK_NR_PAGES {
            self.pageblocks[pageblock as usize].set_all(false);
            tags.set_mobility(self.pfn(pageblock * PAGEBLOCK_NR_PAGES), mobility);
        }
        self.free_pages -= order.nr_pages();
        Some(first * PAGEBLOCK_NR_PAGES)
    }

    /// Takes a free chunk of order 9 or 10 off its list; its frames stay marked as free. Returns its first pageblock.
    fn remove_whole(&mut self, order: Order) -> Option<u32> {
        let single = self.whole[0].fullest().filter(|_| order == Order::PAGEBLOCK);
        let first = single.or_else(|| self.whole[1].fullest())?;
        let nr_pageblocks = order.nr_pages() / PAGEBLOCK_NR_PAGES;
        self.whole_pageblocks -= nr_pageblocks;
        self.unlist_whole(first);
        if single.is_none() && order == Order::PAGEBLOCK {
            // The second half stays a free chunk, of order 9.
            self.list_whole(first + 1, Whole::Single);
        }
        for pageblock in first..first + nr_pageblocks {
            self.pageblocks[pageblock as usize].whole = Whole::No;
        }
        Some(first)
    }

    /// Puts a pageblock that has become free on its list, merged with its buddy if that is free too.
    fn add_whole(&mut self, pageblock: u32) {
        self.whole_pageblocks += 1;
        let buddy = self.buddy(pageblock);
        if let Some(buddy) = buddy.filter(|&buddy| self.pageblocks[buddy as usize].whole == Whole::Single) {
            self.unlist_whole(buddy);
            self.pageblocks[pageblock.max(buddy) as usize].whole = Whole::PairTail;
            self.list_whole(pageblock.min(buddy), Whole::PairHead);
        } else {
            self.list_whole(pageblock, Whole::Single);
        }
    }

    /// Takes a pageblock out of the free chunk of order 9 or 10 that it is in, if it is in one. Its frames stay marked as free, and what is
    /// left of the chunk stays a free one.
    pub(crate) fn break_whole(&mut self, pageblock: u32) {
        let (head, rest) = match self.pageblocks[pageblock as usize].whole {
            Whole::No => return,
            Whole::Single => (pageblock, None),
            Whole::PairHead => (pageblock, Some(pageblock + 1)),
            Whole::PairTail => (pageblock - 1, Some(pageblock - 1)),
        };
        self.unlist_whole(head);
        if let Some(rest) = rest {
            self.list_whole(rest, Whole::Single);
        }
        self.pageblocks[pageblock as usize].whole = Whole::No;
        self.whole_pageblocks -= 1;
    }

    fn list_whole(&mut self, pageblock: u32, whole: Whole) {
        self.pageblocks[pageblock as usize].whole = whole;
        let list = &mut self.whole[usize::from(whole == Whole::PairHead)];
        list.place(&mut PageblockLinks(&mut self.pageblocks), pageblock, Some(0));
    }

    fn unlist_whole(&mut self, pageblock: u32) {
        let list = usize::from(self.pageblocks[pageblock as usize].whole == Whole::PairHead);
        self.whole[list].place(&mut PageblockLinks(&mut self.pageblocks), pageblock, None);
    }

    /// The other half of the chunk of order 10 around a pageblock. The section's borders need not be aligned to that
    /// order, so the other half may lie outside.
    fn buddy(&self, pageblock: u32) -> Option<u32> {
        let buddy: Pfn = self.pfn(pageblock * PAGEBLOCK_NR_PAGES).buddy(Order::PAGEBLOCK);
        self.range
            .contains(buddy)
            .then(|| (buddy - self.range.start()) / PAGEBLOCK_NR_PAGES)
    }

    /// Moves a pageblock to the list that its fill calls for.
    pub(crate) fn relink(&mut self, tags: &Tags, pageblock: u32) {
        let block = &self.pageblocks[pageblock as usize];
        let want = block.bucket();
        if block.listed_bucket() != want {
            let mobility = tags
                .at(self.pfn(pageblock * PAGEBLOCK_NR_PAGES))
                .expect("a section's pageblocks have tags")
                .mobility();
            let links = &mut PageblockLinks(&mut self.pageblocks);
            self.partial[mobility as usize].place(links, pageblock, want);
        }
    }
}
