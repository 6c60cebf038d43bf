//! The swap area as the memory manager has it: slots with their users, the pages that are in memory too (the swap cache), and the
//! requests for the disk.
//!
//! The memory manager never touches a disk. It leaves requests in a queue ([`Mm::next_io`]), which whoever has the disk takes and
//! begins; what they come to is told with [`Mm::end_io`]. A request holds what it needs: a reference to its page, which nobody
//! unlocks or frees meanwhile, whatever becomes of those who wait for it.

use alloc::collections::VecDeque;
use core::fmt;

use guest_sync::{Cpu, SpinLock};

use crate::disk::{BlockNr, IoError, Request};
use crate::frames::{Frames, Mmu};
use crate::mm::Mm;
use crate::page::{Page, PageFlags};
use crate::pfn::Pfn;
use crate::radix_tree::{InsertError, RadixTree};
use crate::swap::{AreaHeader, SlotMap, SlotNr};

/// What a request for the disk is for. It comes back with the result.
#[must_use = "its page stays locked, or on its way, for ever"]
#[derive(Debug, PartialEq, Eq)]
pub struct PageIo {
    pfn: Pfn,
    direction: Direction,
}

/// Why a page is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadIn {
    /// Somebody waits for it, and is told of an error.
    Wanted,
    /// Its neighbour was wanted.
    Ahead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    In,
    /// In, and nobody has asked for it yet.
    Ahead,
    Out,
}

/// There is a swap area already, or no memory for its slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SwapOnError;

impl fmt::Display for SwapOnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is a swap area already, or no memory for its slots")
    }
}

impl core::error::Error for SwapOnError {}

/// See the module. Locked after an address space.
#[derive(Debug, Default)]
pub(crate) struct Swap {
    state: SpinLock<State>,
    queue: SpinLock<VecDeque<(Request, PageIo)>>,
}

#[derive(Debug, Default)]
struct State {
    slots: Option<SlotMap>,
    /// Pages by slot. Each is a user of its slot.
    cache: RadixTree<Pfn>,
}

/// What there is of swap. Slots of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SwapUsage {
    /// That can be used.
    pub total: u32,
    /// That nobody uses.
    pub free: u32,
    /// Whose pages are in memory too.
    pub cached: u32,
}

impl Swap {
    /// The page of a slot, if it is in memory, with a reference for the caller: whoever frees it looks here first.
    pub(crate) fn find<'m>(&self, slot: SlotNr, page_of: impl Fn(Pfn) -> &'m Page) -> Option<Pfn> {
        let state = self.state.lock();
        let pfn = state.cache.get(slot.block())?;
        let held = page_of(pfn).try_reference();
        assert!(held, "{pfn} is cached without a reference");
        Some(pfn)
    }

    /// Whether the page of a slot is in memory.
    pub(crate) fn is_cached(&self, slot: SlotNr) -> bool {
        self.state.lock().cache.get(slot.block()).is_some()
    }

    /// Users of a slot: entries, and the cache.
    pub(crate) fn users(&self, slot: SlotNr) -> u16 {
        let state = self.state.lock();
        state.slots.as_ref().map_or(0, |slots| slots.users(slot))
    }

    /// One more entry names the slot. False if no more can be counted.
    pub(crate) fn add_user(&self, slot: SlotNr) -> bool {
        let mut state = self.state.lock();
        let added = state.slots.as_mut().map(|slots| slots.add_user(slot));
        added.is_some_and(|added| added.is_ok())
    }

    /// One entry less names the slot; how many users it has left.
    pub(crate) fn drop_user(&self, slot: SlotNr) -> u16 {
        let mut state = self.state.lock();
        let left = state.slots.as_mut().and_then(|slots| slots.drop_user(slot).ok());
        left.expect("an entry is a user of its slot")
    }

    /// A free slot whose page this is from now on.
    fn allocate(&self, pfn: Pfn) -> Option<SlotNr> {
        let mut state = self.state.lock();
        let slots = state.slots.as_mut()?;
        let slot = slots.allocate()?;
        if state.cache.insert(slot.block(), pfn).is_ok() {
            return Some(slot);
        }
        let slots = state.slots.as_mut()?;
        let freed = slots.drop_user(slot);
        debug_assert_eq!(freed, Ok(0));
        None
    }

    /// Makes the page that of a slot that is in use; `Err` with another that was first, or none for want of memory.
    fn enter(&self, slot: SlotNr, pfn: Pfn) -> Result<(), Option<Pfn>> {
        let mut state = self.state.lock();
        state
            .cache
            .insert(slot.block(), pfn)
            .map_err(|error| match error {
                InsertError::Occupied(there) => Some(there),
                InsertError::NoMemory => None,
            })?;
        let added = state.slots.as_mut().map(|slots| slots.add_user(slot));
        if added.is_some_and(|added| added.is_ok()) {
            return Ok(());
        }
        state.cache.remove(slot.block());
        Err(None)
    }

    /// The slot has no page any more, and one user less.
    fn leave(&self, slot: SlotNr) {
        let mut state = self.state.lock();
        state.cache.remove(slot.block());
        let left = state.slots.as_mut().map(|slots| slots.drop_user(slot));
        debug_assert!(left.is_some_and(|left| left.is_ok()));
    }

    /// Another frame has the contents of a slot's page.
    pub(crate) fn replace(&self, slot: SlotNr, pfn: Pfn) {
        let replaced = self.state.lock().cache.replace(slot.block(), pfn);
        debug_assert!(replaced.is_some());
    }

    /// Slots in use with their users and pages.
    pub(crate) fn in_use(&self) -> alloc::vec::Vec<(SlotNr, u16, Option<Pfn>)> {
        let state = self.state.lock();
        let slots = state.slots.iter().flat_map(SlotMap::in_use);
        slots
            .map(|(slot, users)| (slot, users, state.cache.get(slot.block())))
            .collect()
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// From now on anonymous pages can go to this area (`swapon`). Its header has been read already.
    ///
    /// # Errors
    /// When there is one, or no memory.
    pub fn swap_on(&self, header: &AreaHeader) -> Result<(), SwapOnError> {
        let slots = SlotMap::new(header).ok_or(SwapOnError)?;
        let mut state = self.swap.state.lock();
        if state.slots.is_some() {
            return Err(SwapOnError);
        }
        state.slots = Some(slots);
        Ok(())
    }

    /// How much of the swap area is in use.
    pub fn swap_usage(&self) -> SwapUsage {
        let state = self.swap.state.lock();
        let cached = u32::try_from(state.cache.len()).expect("slots are counted in 32 bits");
        state
            .slots
            .as_ref()
            .map_or(SwapUsage::default(), |slots| SwapUsage {
                total: slots.nr_slots(),
                free: slots.nr_free(),
                cached,
            })
    }

    /// The next request for the disk, with the token that [`Mm::end_io`] wants back. Blocks are those of the area.
    pub fn next_io(&self) -> Option<(Request, PageIo)> {
        self.swap.queue.lock().pop_front()
    }

    /// Puts a request back in the first place that the disk could not take just now.
    pub fn io_refused(&self, request: Request, io: PageIo) {
        self.swap.queue.lock().push_front((request, io));
    }

    /// A request is done: what waits for the page goes on. A page that left memory is freed if nobody has come for it meanwhile.
    #[expect(clippy::needless_pass_by_value, reason = "the token is used up")]
    pub fn end_io(&self, cpu: &Cpu, io: PageIo, result: Result<(), IoError>) {
        let PageIo { pfn, direction } = io;
        let page = self.mapped_page(pfn);
        match (direction, result) {
            (Direction::In | Direction::Ahead, Ok(())) => {
                page.add_flags(PageFlags::UPTODATE);
                self.phys.counts.pswpin.add(1);
            }
            (Direction::In, Err(IoError)) => page.add_flags(PageFlags::ERROR),
            // Whoever wants it reads it himself, and has an error of his own.
            (Direction::Ahead, Err(IoError)) => self.leave_swap(cpu, pfn, page),
            (Direction::Out, result) => self.written(page, result),
        }
        if direction != Direction::Out {
            self.drop_unwanted(cpu, pfn, page);
            self.unlock_page(pfn, page);
        } else {
            self.wake_waiters(pfn);
            if page.try_lock() {
                self.free_swapped(cpu, pfn, page, 2);
                self.unlock_page(pfn, page);
            }
        }
        self.phys.put_page(cpu, pfn);
    }

    fn written(&self, page: &Page, result: Result<(), IoError>) {
        if result.is_ok() {
            self.phys.counts.pswpout.add(1);
            page.remove_flags(PageFlags::ERROR);
        } else {
            // It is not on the disk, so it stays in memory; another try comes with its next turn.
            page.add_flags(PageFlags::DIRTY.with(PageFlags::ERROR));
            self.phys.counts.pswpout_error.add(1);
        }
        page.remove_flags(PageFlags::WRITEBACK);
    }

    /// Gives a page that is not in the swap cache a slot. The caller has its lock. False if there is none.
    pub(crate) fn add_to_swap(&self, pfn: Pfn, page: &Page) -> bool {
        let Some(slot) = self.swap.allocate(pfn) else {
            return false;
        };
        let held = page.try_reference();
        debug_assert!(held);
        page.set_private(slot.block());
        page.add_flags(
            PageFlags::SWAPCACHE
                .with(PageFlags::DIRTY)
                .with(PageFlags::UPTODATE),
        );
        true
    }

    /// Makes a page that was just allocated that of a slot in use, locked and without contents, and asks for them. `None` when another
    /// was first, or there is no memory; the frame is free again then.
    pub(crate) fn read_in(&self, cpu: &Cpu, slot: SlotNr, pfn: Pfn, reason: ReadIn) -> Option<()> {
        let page = self.mapped_page(pfn);
        page.add_flags(PageFlags::ANON);
        self.count_new(crate::Order::ZERO);
        let locked = page.try_lock();
        debug_assert!(locked);
        page.set_private(slot.block());
        // One reference is the cache's, one the request's.
        page.try_reference();
        page.add_flags(PageFlags::SWAPCACHE);
        if self.swap.enter(slot, pfn).is_err() {
            page.remove_flags(PageFlags::SWAPCACHE.with(PageFlags::LOCKED));
            page.drop_reference();
            self.phys.put_page(cpu, pfn);
            return None;
        }
        self.phys.lru_add(pfn, crate::LruList::Inactive);
        let direction = match reason {
            ReadIn::Wanted => Direction::In,
            ReadIn::Ahead => Direction::Ahead,
        };
        self.submit(Request::Read(block_of(slot), alloc::vec![pfn]), pfn, direction);
        Some(())
    }

    /// Sends a page of the swap cache on its way. The caller has its lock; no entry maps it writable.
    pub(crate) fn write_out(&self, pfn: Pfn, page: &Page) {
        let Some(slot) = SlotNr::new(page.private()) else {
            return;
        };
        page.remove_flags(PageFlags::DIRTY);
        page.add_flags(PageFlags::WRITEBACK);
        page.try_reference();
        self.submit(
            Request::Write(block_of(slot), alloc::vec![pfn]),
            pfn,
            Direction::Out,
        );
    }

    fn submit(&self, request: Request, pfn: Pfn, direction: Direction) {
        self.swap
            .queue
            .lock()
            .push_back((request, PageIo { pfn, direction }));
    }

    /// Takes a page out of the swap cache; its slot is free when no entry names it. The caller has the page lock and a
    /// reference, and the page is not on its way.
    pub(crate) fn leave_swap(&self, cpu: &Cpu, pfn: Pfn, page: &Page) {
        debug_assert!(page.flags().has(PageFlags::SWAPCACHE) && !page.flags().has(PageFlags::WRITEBACK));
        let gone = PageFlags::SWAPCACHE
            .with(PageFlags::DIRTY)
            .with(PageFlags::UPTODATE)
            .with(PageFlags::ERROR);
        if let Some(slot) = SlotNr::new(page.private()) {
            self.swap.leave(slot);
        }
        page.set_private(0);
        page.remove_flags(gone);
        self.phys.put_page(cpu, pfn);
    }

    /// Takes a page out of the swap cache that no entry maps or names any more. The caller has its lock and a reference.
    pub(crate) fn drop_unwanted(&self, cpu: &Cpu, pfn: Pfn, page: &Page) {
        let flags = page.flags();
        let is_idle = flags.has(PageFlags::SWAPCACHE) && !flags.has(PageFlags::WRITEBACK);
        let slot = SlotNr::new(page.private());
        if is_idle && page.mapcount() == 0 && slot.is_some_and(|slot| self.swap.users(slot) == 1) {
            self.leave_swap(cpu, pfn, page);
        }
    }

    /// Takes a page out of the swap cache that needs no place in memory: nobody maps it, its slot has its contents or nobody wants
    /// those any more, and only the cache and the caller have its `known` references. The caller has its lock.
    pub(crate) fn free_swapped(&self, cpu: &Cpu, pfn: Pfn, page: &Page, known: u32) -> bool {
        let flags = page.flags();
        if !flags.has(PageFlags::SWAPCACHE) || flags.has(PageFlags::WRITEBACK) || page.mapcount() > 0 {
            return false;
        }
        let is_wanted = SlotNr::new(page.private()).is_some_and(|slot| self.swap.users(slot) > 1);
        if page.count() != known || flags.has(PageFlags::DIRTY) && is_wanted {
            return false;
        }
        self.leave_swap(cpu, pfn, page);
        true
    }
}

/// Where a slot is in the area.
fn block_of(slot: SlotNr) -> BlockNr {
    BlockNr(slot.block().into())
}
