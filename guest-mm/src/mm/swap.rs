//! The swap areas as the memory manager has them: slots with their users, and the pages that are in memory too (the swap cache).
//!
//! The memory manager never touches a disk: see [`swap_io`](super::swap_io).

use alloc::vec::Vec;

use guest_sync::{Cpu, SpinLock};

use crate::disk::IoError;
use crate::frames::{Frames, Mmu};
use crate::mm::Mm;
use crate::mm::swap_io::{Direction, IoQueue, OnePage};
use crate::page::{Page, PageFlags};
use crate::pfn::Pfn;
use crate::radix_tree::{InsertError, RadixTree};
use crate::swap::{AreaHeader, AreaNr, AreaUsage, Areas, SlotNr, SwapOnError};

/// Why a page is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadIn {
    /// Somebody waits for it, and is told of an error.
    Wanted,
    /// Its neighbour was wanted.
    Ahead,
}

/// See the module. Locked after an address space.
#[derive(Debug, Default)]
pub(crate) struct Swap {
    state: SpinLock<State>,
    pub(crate) io: IoQueue,
}

#[derive(Debug, Default)]
struct State {
    areas: Areas,
    /// Pages by the number of their slot. Each is a user of its slot.
    cache: RadixTree<Pfn>,
    /// Slots in use whose contents were in memory only, which has failed. There is hardly ever one.
    lost: Vec<SlotNr>,
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
        let pfn = state.cache.get(slot.number())?;
        let held = page_of(pfn).try_reference();
        assert!(held, "{pfn} is cached without a reference");
        Some(pfn)
    }

    /// Whether the page of a slot is in memory.
    pub(crate) fn is_cached(&self, slot: SlotNr) -> bool {
        self.state.lock().cache.get(slot.number()).is_some()
    }

    /// Users of a slot: entries, and the cache.
    pub(crate) fn users(&self, slot: SlotNr) -> u16 {
        let state = self.state.lock();
        state.areas.users(slot)
    }

    /// One more entry names the slot. False if no more can be counted.
    pub(crate) fn add_user(&self, slot: SlotNr) -> bool {
        let mut state = self.state.lock();
        state.areas.add_user(slot).is_ok()
    }

    /// One entry less names the slot; how many users it has left.
    pub(crate) fn drop_user(&self, slot: SlotNr) -> u16 {
        let mut state = self.state.lock();
        let left = state.areas.drop_user(slot);
        let left = left.expect("an entry is a user of its slot");
        if left == 0 {
            state.lost.retain(|lost| *lost != slot);
        }
        left
    }

    /// The contents of a slot in use are gone.
    pub(crate) fn lose(&self, slot: SlotNr) {
        self.state.lock().lost.push(slot);
    }

    /// Whether the contents of a slot are gone.
    pub(crate) fn is_lost(&self, slot: SlotNr) -> bool {
        self.state.lock().lost.contains(&slot)
    }

    /// A free slot whose page this is from now on.
    fn allocate(&self, pfn: Pfn) -> Option<SlotNr> {
        let mut state = self.state.lock();
        let slot = state.areas.allocate()?;
        if state.cache.insert(slot.number(), pfn).is_ok() {
            return Some(slot);
        }
        let freed = state.areas.drop_user(slot);
        debug_assert_eq!(freed, Ok(0));
        None
    }

    /// Makes the page that of a slot that is in use; `Err` with another that was first, or none for want of memory.
    fn enter(&self, slot: SlotNr, pfn: Pfn) -> Result<(), Option<Pfn>> {
        let mut state = self.state.lock();
        state
            .cache
            .insert(slot.number(), pfn)
            .map_err(|error| match error {
                InsertError::Occupied(there) => Some(there),
                InsertError::NoMemory => None,
            })?;
        if state.areas.add_user(slot).is_ok() {
            return Ok(());
        }
        state.cache.remove(slot.number());
        Err(None)
    }

    /// The slot has no page any more, and one user less.
    fn leave(&self, slot: SlotNr) {
        let mut state = self.state.lock();
        state.cache.remove(slot.number());
        let left = state.areas.drop_user(slot);
        debug_assert!(left.is_ok());
    }

    /// Another frame has the contents of a slot's page.
    pub(crate) fn replace(&self, slot: SlotNr, pfn: Pfn) {
        let replaced = self.state.lock().cache.replace(slot.number(), pfn);
        debug_assert!(replaced.is_some());
    }

    /// Whether the page's contents are in its slot now.
    fn written(&self, slot: SlotNr, has_arrived: bool) {
        self.state.lock().areas.written(slot, has_arrived);
    }

    /// Slots in use with their users and pages.
    pub(crate) fn in_use(&self) -> Vec<(SlotNr, u16, Option<Pfn>)> {
        let state = self.state.lock();
        let slots = state.areas.in_use();
        slots
            .map(|(slot, users)| (slot, users, state.cache.get(slot.number())))
            .collect()
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// From now on anonymous pages can go to this area, too (`swapon`): to areas of a higher `priority` first. Its header has been
    /// read already.
    ///
    /// # Errors
    /// It cannot be used; nothing has changed.
    pub fn swap_on(&self, header: &AreaHeader, priority: i16) -> Result<AreaNr, SwapOnError> {
        self.swap.state.lock().areas.add(header, priority)
    }

    /// How much of all swap areas is in use.
    pub fn swap_usage(&self) -> SwapUsage {
        let state = self.swap.state.lock();
        let mut usage = SwapUsage {
            cached: u32::try_from(state.cache.len()).expect("slots are counted in 32 bits"),
            ..SwapUsage::default()
        };
        for area in state.areas.usage() {
            usage.total += area.total;
            usage.free += area.free;
        }
        usage
    }

    /// The swap areas, by number.
    pub fn swap_areas(&self) -> Vec<AreaUsage> {
        self.swap.state.lock().areas.usage().collect()
    }

    /// One page of a request is done.
    pub(crate) fn end_page(&self, cpu: &Cpu, page: OnePage, result: Result<(), IoError>) {
        let OnePage { pfn, direction, .. } = page;
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
                let is_free = self.free_swapped(cpu, pfn, page, 2);
                self.phys.counts.pgsteal.add(is_free.into());
                self.unlock_page(pfn, page);
            }
        }
        self.phys.put_page(cpu, pfn);
        if direction == Direction::Out {
            self.phys.write_ends(result.is_ok());
        }
    }

    fn written(&self, page: &Page, result: Result<(), IoError>) {
        if let Some(slot) = SlotNr::new(page.private()) {
            self.swap.written(slot, result.is_ok());
        }
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
        page.set_private(slot.number());
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
        page.set_private(slot.number());
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
        self.swap.io.push(OnePage::new(pfn, slot, direction));
        Some(())
    }

    /// Takes the slot from a page that could not be written there and that no entry names any more: it goes to another one. The
    /// caller has its lock and a reference.
    pub(crate) fn leave_bad_slot(&self, cpu: &Cpu, pfn: Pfn, page: &Page) {
        let flags = page.flags();
        let has_failed = flags.has(PageFlags::SWAPCACHE.with(PageFlags::DIRTY).with(PageFlags::ERROR));
        let slot = SlotNr::new(page.private()).filter(|_| has_failed && !flags.has(PageFlags::WRITEBACK));
        if page.mapcount() > 0 && slot.is_some_and(|slot| self.swap.users(slot) == 1) {
            self.leave_swap(cpu, pfn, page);
        }
    }

    /// Sends a page of the swap cache on its way. The caller has its lock; no entry maps it writable.
    pub(crate) fn write_out(&self, pfn: Pfn, page: &Page) {
        let Some(slot) = SlotNr::new(page.private()) else {
            return;
        };
        page.remove_flags(PageFlags::DIRTY);
        page.add_flags(PageFlags::WRITEBACK);
        page.try_reference();
        self.phys.write_begins();
        self.swap.io.push(OnePage::new(pfn, slot, Direction::Out));
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
