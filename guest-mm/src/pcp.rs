//! Frames that a CPU keeps at hand (Linux `per_cpu_pages`): most requests and frees take no lock.
//!
//! For each zone a CPU has a list of single frames for each mobility, with a hot and a cold end, and one of pageblocks.
//! An empty list is refilled with a batch of frames from the fullest pageblock; one that has grown too long returns a
//! batch from its cold end. When a block is isolated its frames are taken off the lists of all CPUs; a frame that slips
//! through (its owner was just pushing it) is noticed when it is popped.

use guest_sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use guest_sync::{Cpu, CpuStack, Local};

use crate::mem_map::FrameTable;
use crate::page::Head;
use crate::pageblock::{Mobility, NR_MOBILITIES};
use crate::pfn::{Order, Pfn};
use crate::zone::Zone;

/// Room in a list of single frames.
const SINGLES: usize = 256;
/// Room in the list of pageblocks.
const PAGEBLOCKS: usize = 8;
/// Most frames that are moved between a list and the buddy allocator at a time.
pub(crate) const MAX_BATCH: usize = 63;

/// How long the lists of a zone may become, derived from its size.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    batch: AtomicU32,
    high: AtomicU32,
    pageblocks: AtomicU32,
}

impl Limits {
    /// As `mm/page_alloc.c`, `zone_batchsize` does: a quarter of a thousandth of the zone, at most 1 MiB of frames in
    /// all, one less than a power of two so that batches do not keep step with power-of-two strides of their users.
    pub(crate) fn derive(&self, managed_pages: u64) {
        let quarter = (managed_pages / 1024).min(256) / 4;
        let near = quarter + quarter / 2;
        let batch = if near < 2 { 1 } else { (1 << near.ilog2()) - 1 };
        debug_assert!(batch as usize <= MAX_BATCH);
        self.batch.store(batch, Relaxed);
        self.high.store(batch * 4, Relaxed);
        // Less than a 1024th of the zone on each CPU.
        let pageblocks = (managed_pages / (1 << 19)).min(PAGEBLOCKS as u64 - 1) + 1;
        self.pageblocks.store(pageblocks.to_le_bytes()[0].into(), Relaxed);
    }

    /// Frames that are moved at a time, 1 to [`MAX_BATCH`].
    #[inline]
    pub(crate) fn batch(&self) -> u32 {
        self.batch.load(Relaxed)
    }

    /// Frames that a list may have.
    #[inline]
    pub(crate) fn high(&self, order: Order) -> u32 {
        if order == Order::ZERO {
            self.high.load(Relaxed)
        } else {
            self.pageblocks.load(Relaxed)
        }
    }
}

/// A counter that only its CPU writes: no atomic addition.
#[derive(Debug, Default)]
pub(crate) struct OwnCount(AtomicU64);

impl OwnCount {
    pub(crate) fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Adds to the CPU's own counter.
    #[inline]
    pub(crate) fn add(of: Local<'_, Self>, events: u64) {
        of.0.store(of.0.load(Relaxed).wrapping_add(events), Relaxed);
    }
}

/// What happened on a CPU's lists of a zone. Each event is one chunk but where it says frames.
#[derive(Debug, Default)]
pub(crate) struct ListEvents {
    /// Requests served from a list, by the list: single frames, pageblocks.
    pub(crate) hits: [OwnCount; 2],
    /// Frees to a list.
    pub(crate) puts: [OwnCount; 2],
    /// Times that a list was refilled, and frames that came.
    pub(crate) refills: OwnCount,
    pub(crate) refilled_pages: OwnCount,
    /// Times that a list gave back, and frames that went.
    pub(crate) returns: OwnCount,
    pub(crate) returned_pages: OwnCount,
}

impl ListEvents {
    #[inline]
    pub(crate) fn hits_of(&self, order: Order) -> &OwnCount {
        &self.hits[usize::from(order != Order::ZERO)]
    }

    #[inline]
    pub(crate) fn puts_of(&self, order: Order) -> &OwnCount {
        &self.puts[usize::from(order != Order::ZERO)]
    }
}

/// One CPU's lists of one zone.
#[derive(Debug)]
pub(crate) struct CpuLists {
    singles: [CpuStack<SINGLES>; NR_MOBILITIES],
    pageblocks: CpuStack<PAGEBLOCKS>,
    pub(crate) events: ListEvents,
    /// Frames that others took off these lists.
    pub(crate) stolen_pages: AtomicU64,
}

impl CpuLists {
    pub(crate) fn new() -> Self {
        Self {
            singles: core::array::from_fn(|_| CpuStack::new()),
            pageblocks: CpuStack::new(),
            events: ListEvents::default(),
            stolen_pages: AtomicU64::new(0),
        }
    }

    /// Frames on the lists. Exact while the owner does nothing.
    pub(crate) fn nr_pages(&self) -> u64 {
        let mut nr_pages = 0;
        self.look(|_, order| nr_pages += u64::from(order.nr_pages()));
        nr_pages
    }

    /// Calls `seen` with every chunk on the lists. Exact while the owner does nothing.
    pub(crate) fn look(&self, mut seen: impl FnMut(Pfn, Order)) {
        for singles in &self.singles {
            singles.look(|number| seen(unpack(number), Order::ZERO));
        }
        self.pageblocks
            .look(|number| seen(unpack(number), Order::PAGEBLOCK));
    }

    /// Takes chunks off the lists, for any CPU; with the zone's lock, which keeps a returning owner out.
    fn steal(&self, wanted: impl Fn(Pfn) -> bool, mut taken: impl FnMut(Pfn, Order)) {
        let mut nr_pages = 0;
        for singles in &self.singles {
            singles.steal(
                |number| wanted(unpack(number)),
                |number| {
                    nr_pages += 1;
                    taken(unpack(number), Order::ZERO);
                },
            );
        }
        self.pageblocks.steal(
            |number| wanted(unpack(number)),
            |number| {
                nr_pages += u64::from(Order::PAGEBLOCK.nr_pages());
                taken(unpack(number), Order::PAGEBLOCK);
            },
        );
        if nr_pages > 0 {
            self.stolen_pages.fetch_add(nr_pages, Relaxed);
        }
    }
}

/// The list of a CPU's own that a request or a free uses.
#[derive(Clone, Copy)]
pub(crate) enum OwnList<'a> {
    Singles(Local<'a, CpuStack<SINGLES>>),
    Pageblocks(Local<'a, CpuStack<PAGEBLOCKS>>),
}

impl<'a> OwnList<'a> {
    /// The CPU's list for chunks of `order`, or `None` if such chunks have none.
    #[inline]
    pub(crate) fn of(lists: Local<'a, CpuLists>, order: Order, mobility: Mobility) -> Option<Self> {
        match order {
            Order::ZERO => Some(Self::Singles(
                lists.map(|lists| &lists.singles[mobility as usize]),
            )),
            Order::PAGEBLOCK => Some(Self::Pageblocks(lists.map(|lists| &lists.pageblocks))),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn pop(self) -> Option<Pfn> {
        match self {
            Self::Singles(list) => list.pop(),
            Self::Pageblocks(list) => list.pop(),
        }
        .map(unpack)
    }

    #[inline]
    pub(crate) fn pop_cold(self) -> Option<Pfn> {
        match self {
            Self::Singles(list) => list.pop_cold(),
            Self::Pageblocks(list) => list.pop_cold(),
        }
        .map(unpack)
    }

    /// Takes chunks from the cold end; with the zone's lock, without which nobody steals.
    #[inline]
    fn pop_cold_many(self, wanted: u32, mut taken: impl FnMut(Pfn)) {
        match self {
            Self::Singles(list) => list.pop_cold_many(wanted, |number| taken(unpack(number))),
            Self::Pageblocks(list) => list.pop_cold_many(wanted, |number| taken(unpack(number))),
        };
    }

    /// Puts a chunk on the hot end unless there are `limit` chunks already; false then.
    #[inline]
    pub(crate) fn push_below(self, limit: u32, pfn: Pfn) -> bool {
        let number = u64::from(pfn.number());
        match self {
            Self::Singles(list) => list.push_below(limit, number),
            Self::Pageblocks(list) => list.push_below(limit, number),
        }
        .is_ok()
    }

    /// Puts a chunk on the hot end; false when there is no room.
    #[inline]
    pub(crate) fn push(self, pfn: Pfn) -> bool {
        let number = u64::from(pfn.number());
        match self {
            Self::Singles(list) => list.push(number),
            Self::Pageblocks(list) => list.push(number),
        }
        .is_ok()
    }
}

/// Lists have frame numbers in them.
#[inline]
fn unpack(number: u64) -> Pfn {
    Pfn::new((number & 0xffff_ffff) as u32)
}

impl Zone {
    /// Takes one frame for a request and puts the rest of a batch on the CPU's list, leaving `floor` frames free.
    pub(crate) fn refill(
        &self,
        table: &FrameTable<'_>,
        cpu: &Cpu,
        mobility: Mobility,
        floor: u64,
    ) -> Option<Pfn> {
        let mut frames = [Pfn::default(); MAX_BATCH];
        let mut nr_pages = 0;
        {
            let mut areas = self.areas.lock();
            let spare = u32::try_from(areas.free_pages().saturating_sub(floor)).unwrap_or(u32::MAX);
            let wanted = self.limits().batch().min(spare);
            areas.take_many(&table.tags, mobility, wanted, |pfn| {
                table.page(pfn).set_head(Head::cached(Order::ZERO));
                frames[nr_pages] = pfn;
                nr_pages += 1;
            });
            self.publish(&areas);
        }
        let (&first, rest) = frames[..nr_pages].split_first()?;
        let lists = self.lists().this(cpu);
        let list = lists.map(|lists| &lists.singles[mobility as usize]);
        // The lowest frames come to lie on top.
        for &pfn in rest.iter().rev() {
            list.push(u64::from(pfn.number()))
                .expect("a list is refilled when it is empty");
        }
        OwnCount::add(lists.map(|lists| &lists.events.refills), 1);
        OwnCount::add(lists.map(|lists| &lists.events.refilled_pages), nr_pages as u64);
        Some(first)
    }

    /// Gives a batch from the cold end of a CPU's own list back to the buddy allocator.
    #[inline(never)]
    pub(crate) fn return_batch(&self, table: &FrameTable<'_>, cpu: &Cpu, list: OwnList<'_>, order: Order) {
        let batch = if order == Order::ZERO {
            self.limits().batch()
        } else {
            1
        };
        let mut frames = [Pfn::default(); MAX_BATCH];
        let mut nr_chunks = 0;
        let mut areas = self.areas.lock();
        list.pop_cold_many(batch, |pfn| {
            table.page(pfn).set_head(Head::BLANK);
            frames[nr_chunks] = pfn;
            nr_chunks += 1;
        });
        areas.give_many(&table.tags, &frames[..nr_chunks], order);
        self.publish(&areas);
        drop(areas);
        let lists = self.lists().this(cpu);
        let nr_pages = nr_chunks as u64 * u64::from(order.nr_pages());
        OwnCount::add(lists.map(|lists| &lists.events.returns), 1);
        OwnCount::add(lists.map(|lists| &lists.events.returned_pages), nr_pages);
    }

    /// Takes the wanted frames off the lists of all CPUs and gives them to the buddy allocator; returns how many.
    pub(crate) fn drain(&self, table: &FrameTable<'_>, wanted: impl Fn(Pfn) -> bool) -> u64 {
        let mut nr_pages = 0;
        let mut areas = self.areas.lock();
        for (_, lists) in self.lists().iter() {
            lists.steal(&wanted, |pfn, order| {
                self.give_locked(&mut areas, table, pfn, order);
                nr_pages += u64::from(order.nr_pages());
            });
        }
        self.publish(&areas);
        nr_pages
    }

    /// Gives a chunk to the buddy allocator whose descriptor still says that it is on a list, or allocated.
    pub(crate) fn give_locked(
        &self,
        areas: &mut crate::areas::FreeAreas,
        table: &FrameTable<'_>,
        pfn: Pfn,
        order: Order,
    ) {
        let (page, tag) = table.find(pfn).expect("a frame that is not free stays online");
        page.set_head(Head::BLANK);
        areas.give(&table.tags, tag, pfn, order);
    }
}
