//! Frames given back: to the CPU's own list, or to the buddy allocator.

use core::fmt;

use guest_sync::Cpu;

use crate::mem_map::Tag;
use crate::page::{Head, Page, PageFlags, PageState};
use crate::pcp::{OwnCount, OwnList};
use crate::pfn::{Order, Pfn};
use crate::phys::{FrameState, PhysicalMemory};
use crate::zone::Zone;

/// A free that would damage something; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreeError {
    /// The frame is not the head of an allocated chunk: freed twice, foreign, or reserved.
    NotAllocated {
        /// The frame.
        pfn: Pfn,
        /// What it is.
        state: FrameState,
    },
    /// Mapped, pinned, a page table or a slab: somebody else still refers to it.
    InUse {
        /// Head of the chunk.
        pfn: Pfn,
        /// References besides the caller's.
        others: u32,
        /// Its properties.
        flags: PageFlags,
    },
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllocated { pfn, state } => write!(f, "free of {pfn}, which is {state:?}"),
            Self::InUse { pfn, others, flags } => {
                write!(
                    f,
                    "free of {pfn}, which is {flags:?} and has {others} other references"
                )
            }
        }
    }
}

impl core::error::Error for FreeError {}

impl PhysicalMemory<'_> {
    /// Gives a chunk back; `pfn` is what the request returned.
    ///
    /// # Errors
    /// When `pfn` is not the head of an allocated chunk, or the page has flags or further references. (Two CPUs that
    /// free the same chunk at the same moment are not noticed: the caller must have it for itself.)
    #[inline]
    pub fn free_pages(&self, cpu: &Cpu, pfn: Pfn) -> Result<(), FreeError> {
        let Some((page, tag)) = self.table.find(pfn) else {
            let state = FrameState::Offline;
            return Err(FreeError::NotAllocated { pfn, state });
        };
        if page.head() == Head::allocated(Order::ZERO) {
            self.put(cpu, pfn, page, tag, Order::ZERO);
            return Ok(());
        }
        self.free_chunk(cpu, pfn, page, tag)
    }

    /// Gives single frames and chunks back.
    ///
    /// # Errors
    /// As [`PhysicalMemory::free_pages`], for the first that cannot be freed; those before it were.
    pub fn free_bulk(&self, cpu: &Cpu, frames: &[Pfn]) -> Result<(), FreeError> {
        frames.iter().try_for_each(|&pfn| self.free_pages(cpu, pfn))
    }

    #[inline(never)]
    fn free_chunk(&self, cpu: &Cpu, pfn: Pfn, page: &Page, tag: Tag) -> Result<(), FreeError> {
        let head = page.head();
        if head.state() != PageState::Allocated {
            let state = self.frame_state(pfn);
            return Err(FreeError::NotAllocated { pfn, state });
        }
        if head != Head::allocated(head.order()) {
            return Err(FreeError::InUse {
                pfn,
                others: (head.count() - 1).saturating_add(page.mapcount()),
                flags: head.flags(),
            });
        }
        self.put(cpu, pfn, page, tag, head.order());
        Ok(())
    }

    /// Drops one reference to a chunk, and frees it with the last.
    pub(crate) fn put_page(&self, cpu: &Cpu, head: Pfn) {
        let (page, tag) = self.table.find(head).expect("a referenced frame stays online");
        let before = page.drop_reference();
        if before.count() > 1 {
            return;
        }
        let order = before.order();
        if before.flags().has(PageFlags::HUGETLB) {
            self.return_huge(head, page);
            return;
        }
        if before.flags().has(PageFlags::LRU) {
            self.lru_remove(head);
        }
        if before.flags().has(PageFlags::ANON) {
            self.counts.nr_anon_pages.sub(u64::from(order.nr_pages()));
            if order == Order::PAGEBLOCK {
                self.counts.nr_anon_transparent_hugepages.sub(1);
            }
        }
        if before.flags() != PageFlags::NONE {
            debug_assert!(
                !before.flags().has(PageFlags::SWAPCACHE),
                "{head} is freed and cached"
            );
            page.clear_fields();
        }
        self.put(cpu, head, page, tag, order);
    }

    /// Turns an allocated chunk into allocated single frames that look like its head.
    pub(crate) fn split_allocated(&self, head: Pfn) {
        let page = self.table.page(head);
        let nr_pages = page.order().nr_pages();
        page.set_head(page.head().with_order(Order::ZERO));
        for tail in 1..nr_pages {
            self.table.page(head + tail).copy_from(page);
        }
    }

    /// Puts a chunk that nobody uses any more on the CPU's list, or gives it to the buddy allocator.
    #[inline]
    fn put(&self, cpu: &Cpu, pfn: Pfn, page: &Page, tag: Tag, order: Order) {
        let zone = self.zone_at(tag.zone());
        let lists = zone.lists().this(cpu);
        if !tag.is_isolated()
            && !self.shortage.is_there()
            && let Some(list) = OwnList::of(lists, order, tag.mobility())
        {
            page.set_head(Head::cached(order));
            let limit = zone.limits().high(order);
            let pushed = list.push_below(limit, pfn) || {
                zone.return_batch(&self.table, cpu, list, order);
                list.push(pfn)
            };
            if pushed {
                OwnCount::add(lists.map(|lists| lists.events.puts_of(order)), 1);
                return;
            }
        }
        self.give_back(zone, pfn, order);
        zone.events.slow_free_pages.add(u64::from(order.nr_pages()));
        if self.shortage.is_there() {
            self.shortage.memory_freed(zone.kind());
        }
    }

    /// Gives a chunk that is on no list to the buddy allocator.
    #[inline(never)]
    pub(crate) fn give_back(&self, zone: &Zone, pfn: Pfn, order: Order) {
        let mut areas = zone.areas.lock();
        zone.give_locked(&mut areas, &self.table, pfn, order);
        zone.publish(&areas);
    }
}
