//! The buddy system inside one section: orders 0 to 10, split and merge, the fullest pageblock first.
//!
//! Free chunks below 2 MiB are on lists of their own pageblock, larger ones on lists of the section. A request for
//! small chunks is served from the fullest pageblock that has one, and breaks a free pageblock only when no partly
//! used one will do: so the emptier pageblocks drain, and free memory gathers into whole ones.

use crate::page::{NO_LINK, Page, PageState};
use crate::pageblock::{Mobility, PageblockLinks};
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES};
use crate::section::Section;

/// Partly used pageblocks that a request above order 0 looks at before it breaks a free one.
const PROBES: usize = 32;

/// From this many free frames on, an unmovable request takes the whole pageblock over, so that the next ones
/// follow it there instead of spreading (half of it, as `mm/page_alloc.c`, `try_to_claim_block`).
const CLAIM_FREE_PAGES: u16 = 256;

impl Section {
    /// Takes a chunk and makes it allocated. `None` when the section has none of that size; nothing changed then.
    pub(crate) fn take(&mut self, order: Order, mobility: Mobility) -> Option<u32> {
        let offset = if order >= Order::PAGEBLOCK {
            self.take_whole(order, mobility)?
        } else {
            self.take_small(order, mobility)?
        };
        self.free_pages -= order.nr_pages();
        self.pages[offset as usize] = Page::allocated(order);
        Some(offset)
    }

    /// Gives an allocated chunk back; `offset` is its head and `order` its order.
    pub(crate) fn give(&mut self, offset: u32, order: Order) {
        self.free_pages += order.nr_pages();
        if order >= Order::PAGEBLOCK {
            self.give_whole(offset, order);
            return;
        }
        let (mut head, mut merged) = (offset, order);
        while merged < Order::PAGEBLOCK {
            let buddy = head ^ merged.nr_pages();
            if !self.is_free_chunk(buddy, merged) {
                break;
            }
            self.unlink(buddy, merged);
            self.pages[head.max(buddy) as usize] = Page::default();
            head = head.min(buddy);
            merged = next_order(merged);
        }
        let pageblock = offset / PAGEBLOCK_NR_PAGES;
        self.add_free(pageblock, order.nr_pages());
        if merged == Order::PAGEBLOCK {
            self.give_whole(head, merged);
        } else {
            self.push(head, merged);
        }
        self.relink(pageblock);
    }

    /// Turns an allocated chunk into allocated single frames that look like its head.
    pub(crate) fn split_allocated(&mut self, offset: u32, order: Order) {
        self.pages[offset as usize].order = 0;
        let head = self.pages[offset as usize].clone();
        for tail in 1..order.nr_pages() {
            self.pages[(offset + tail) as usize] = head.clone();
        }
    }

    fn take_small(&mut self, order: Order, mobility: Mobility) -> Option<u32> {
        if let Some(pageblock) = self.partial_with(order, mobility, PROBES) {
            return Some(self.take_from(pageblock, order));
        }
        if let Some(offset) = self.take_whole(Order::PAGEBLOCK, mobility) {
            self.carve(offset, Order::PAGEBLOCK, order);
            let pageblock = offset / PAGEBLOCK_NR_PAGES;
            self.add_free(pageblock, PAGEBLOCK_NR_PAGES - order.nr_pages());
            self.relink(pageblock);
            return Some(offset);
        }
        if let Some(pageblock) = self.partial_with(order, mobility, usize::MAX) {
            return Some(self.take_from(pageblock, order));
        }
        let pageblock = self.steal(order, mobility)?;
        Some(self.take_from(pageblock, order))
    }

    /// The fullest pageblock of that mobility with a chunk of `order`, among the first `probes`.
    fn partial_with(&mut self, order: Order, mobility: Mobility, probes: usize) -> Option<u32> {
        let list = &self.partial[mobility as usize];
        let mut at = list.fullest();
        for _ in 0..probes {
            let pageblock = at?;
            if self.pageblocks[pageblock as usize].nonempty >> order.number() != 0 {
                return Some(pageblock);
            }
            at = list.next(&PageblockLinks(&mut self.pageblocks), pageblock);
        }
        None
    }

    /// A pageblock of the other mobility. The unmovable looks for the emptiest, to take it over; the movable for
    /// the fullest, to spoil the least.
    fn steal(&mut self, order: Order, mobility: Mobility) -> Option<u32> {
        let other = mobility.other();
        let emptiest = self.partial[other as usize].emptiest()?;
        let fits = self.pageblocks[emptiest as usize].nonempty >> order.number() != 0;
        if mobility == Mobility::Movable || !fits {
            return self.partial_with(order, other, usize::MAX);
        }
        if self.pageblocks[emptiest as usize].free_pages >= CLAIM_FREE_PAGES {
            let links = &mut PageblockLinks(&mut self.pageblocks);
            self.partial[other as usize].place(links, emptiest, None);
            self.pageblocks[emptiest as usize].mobility = mobility;
            self.relink(emptiest);
        }
        Some(emptiest)
    }

    fn take_from(&mut self, pageblock: u32, order: Order) -> u32 {
        let block = &self.pageblocks[pageblock as usize];
        let fitting = block.nonempty >> order.number();
        let from = order.index() + fitting.trailing_zeros() as usize;
        let from = Order::new(from.to_le_bytes()[0]).expect("a set bit of nine");
        let offset = block.heads[from.index()];
        self.unlink(offset, from);
        self.carve(offset, from, order);
        self.pageblocks[pageblock as usize].free_pages -= small(order.nr_pages());
        self.relink(pageblock);
        offset
    }

    /// Keeps the first chunk of `to` of an unlinked chunk of `from`, and puts the rest on the free lists.
    fn carve(&mut self, offset: u32, from: Order, to: Order) {
        for order in Order::all().skip(to.index()).take_while(|&order| order < from) {
            self.push(offset + order.nr_pages(), order);
        }
    }

    fn take_whole(&mut self, order: Order, mobility: Mobility) -> Option<u32> {
        let from = if order == Order::PAGEBLOCK && self.whole[0] != NO_LINK {
            Order::PAGEBLOCK
        } else if self.whole[1] != NO_LINK {
            Order::MAX
        } else {
            return None;
        };
        let offset = self.whole[whole_index(from)];
        self.unlink(offset, from);
        self.carve(offset, from, order);
        for pageblock in pageblocks_of(offset, order) {
            self.whole_pageblocks -= 1;
            let block = &mut self.pageblocks[pageblock as usize];
            block.free_pages = 0;
            block.mobility = mobility;
        }
        Some(offset)
    }

    fn give_whole(&mut self, offset: u32, order: Order) {
        for pageblock in pageblocks_of(offset, order) {
            self.whole_pageblocks += 1;
            self.pageblocks[pageblock as usize].free_pages = small(PAGEBLOCK_NR_PAGES);
        }
        if order == Order::PAGEBLOCK
            && let Some(buddy) = self.whole_buddy(offset)
            && self.is_free_chunk(buddy, order)
        {
            self.unlink(buddy, order);
            self.pages[offset.max(buddy) as usize] = Page::default();
            self.push(offset.min(buddy), Order::MAX);
        } else {
            self.push(offset, order);
        }
    }

    /// The pageblock that makes an order-10 chunk with this one. Sections start on pageblock borders only, so the
    /// frame number decides, and the other may lie outside.
    fn whole_buddy(&self, offset: u32) -> Option<u32> {
        let buddy = self.pfn(offset).buddy(Order::PAGEBLOCK);
        self.range.contains(buddy).then(|| buddy - self.range.start())
    }

    fn is_free_chunk(&self, offset: u32, order: Order) -> bool {
        let page = &self.pages[offset as usize];
        page.state == PageState::Free && page.order == order.number()
    }

    fn add_free(&mut self, pageblock: u32, nr_pages: u32) {
        self.pageblocks[pageblock as usize].free_pages += small(nr_pages);
    }

    /// Moves a pageblock to the list that its fill calls for.
    fn relink(&mut self, pageblock: u32) {
        let block = &self.pageblocks[pageblock as usize];
        let (want, mobility) = (block.bucket(), block.mobility);
        if block.listed_bucket() != want {
            let links = &mut PageblockLinks(&mut self.pageblocks);
            self.partial[mobility as usize].place(links, pageblock, want);
        }
    }

    /// Makes the frame the head of a free chunk and puts it on its list.
    fn push(&mut self, offset: u32, order: Order) {
        let head = self.list_head(offset, order);
        let next = core::mem::replace(head, offset);
        if order < Order::PAGEBLOCK {
            self.pageblocks[(offset / PAGEBLOCK_NR_PAGES) as usize].nonempty |= 1 << order.number();
        }
        if next != NO_LINK {
            self.pages[next as usize].prev = offset;
        }
        self.pages[offset as usize] = Page {
            state: PageState::Free,
            order: order.number(),
            next,
            prev: NO_LINK,
            ..Page::default()
        };
    }

    fn unlink(&mut self, offset: u32, order: Order) {
        let Page { next, prev, .. } = self.pages[offset as usize];
        if next != NO_LINK {
            self.pages[next as usize].prev = prev;
        }
        if prev != NO_LINK {
            self.pages[prev as usize].next = next;
            return;
        }
        *self.list_head(offset, order) = next;
        if next == NO_LINK && order < Order::PAGEBLOCK {
            self.pageblocks[(offset / PAGEBLOCK_NR_PAGES) as usize].nonempty &= !(1 << order.number());
        }
    }

    fn list_head(&mut self, offset: u32, order: Order) -> &mut u32 {
        if order < Order::PAGEBLOCK {
            &mut self.pageblocks[(offset / PAGEBLOCK_NR_PAGES) as usize].heads[order.index()]
        } else {
            &mut self.whole[whole_index(order)]
        }
    }
}

/// Index in [`Section::whole`].
const fn whole_index(order: Order) -> usize {
    order.index() - Order::PAGEBLOCK.index()
}

fn pageblocks_of(offset: u32, order: Order) -> impl Iterator<Item = u32> {
    let first = offset / PAGEBLOCK_NR_PAGES;
    first..first + order.nr_pages() / PAGEBLOCK_NR_PAGES
}

fn next_order(order: Order) -> Order {
    Order::new(order.number() + 1).expect("called for orders below the pageblock's")
}

/// A number of frames of one pageblock.
fn small(nr_pages: u32) -> u16 {
    u16::try_from(nr_pages).expect("a pageblock has 512 frames")
}
