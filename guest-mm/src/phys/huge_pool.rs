//! The pool of reserved huge pages (Linux `hugetlbfs`, `struct hstate`): pageblocks that are kept for programs which asked for them
//! ahead of time.
//!
//! A page of the pool has the flag `HUGETLB` from the moment that it joins the pool until it leaves it, whether a program has it or not.
//! Reservations are promises: so many of the free pages are for areas that have reserved them.

use ::alloc::vec::Vec;

use guest_sync::{Cpu, SpinLock};

use crate::gfp::Gfp;
use crate::mem_map::Tag;
use crate::node::NodeId;
use crate::page::{Head, Page, PageFlags};
use crate::pfn::{Order, Pfn};
use crate::phys::PhysicalMemory;

/// See the module. Lock order: taken with an address space locked; a zone's lock may be taken under it.
#[derive(Debug, Default)]
pub(crate) struct HugePool {
    state: SpinLock<Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    /// Pages that nobody has; there is room for all of the pool's.
    free: Vec<Pfn>,
    total: u64,
    reserved: u64,
}

/// What a page is taken on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Claim {
    /// A reservation, which is used up.
    Reserved,
    /// Nothing: only what is not reserved can be had.
    None,
}

/// What the pool does for a page that is to go when there is no other one for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WithoutFrame {
    /// It keeps the page.
    Keep,
    /// It gets smaller, if the page is not promised.
    Shrink,
}

/// What became of a free page of the pool that is to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Replaced {
    /// It is free, and the pool has another one.
    ByAnother,
    /// It is free, and the pool has one less.
    ByNone,
    /// It is still the pool's: there is no other one.
    NoFrame,
    /// Somebody has just taken it.
    Taken,
}

impl Replaced {
    /// Whether the pool has it no more.
    pub(crate) const fn is_gone(self) -> bool {
        matches!(self, Self::ByAnother | Self::ByNone)
    }
}

/// Pages of the pool of reserved huge pages, 2 MiB each (Linux `HugePages_*` in `/proc/meminfo`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HugePoolStat {
    /// `HugePages_Total`.
    pub total: u64,
    /// `HugePages_Free`: nobody has them, reserved ones included.
    pub free: u64,
    /// `HugePages_Rsvd`: free ones that are promised to areas.
    pub reserved: u64,
}

impl PhysicalMemory<'_> {
    /// How large the pool is, and how much of it is in use.
    pub fn huge_pool(&self) -> HugePoolStat {
        let pool = self.huge_pool.state.lock();
        HugePoolStat {
            total: pool.total,
            free: pool.free.len() as u64,
            reserved: pool.reserved,
        }
    }

    /// Adds a page near to a node to the pool; false when there is no pageblock.
    pub(crate) fn grow_huge_pool(&self, cpu: &Cpu, node: NodeId) -> bool {
        let gfp = Gfp::USER.with(Gfp::THIS_NODE);
        let Ok(pfn) = self.alloc_pages_node(cpu, node, gfp, Order::PAGEBLOCK) else {
            return false;
        };
        self.table.page(pfn).add_flags(PageFlags::HUGETLB);
        let mut room = Vec::new();
        loop {
            let mut pool = self.huge_pool.state.lock();
            let needed = usize::try_from(pool.total + 1).expect("fewer pages than addresses");
            if room.capacity() > pool.free.capacity() {
                room.append(&mut pool.free);
                core::mem::swap(&mut room, &mut pool.free);
            }
            if pool.free.capacity() >= needed {
                pool.free.push(pfn);
                pool.total += 1;
                return true;
            }
            drop(pool);
            room = Vec::with_capacity(needed.next_power_of_two().max(16));
        }
    }

    /// Takes a free page that is not reserved out of the pool and frees it; false when there is none.
    pub(crate) fn shrink_huge_pool(&self, cpu: &Cpu) -> bool {
        let pfn = {
            let mut pool = self.huge_pool.state.lock();
            if pool.free.len() as u64 <= pool.reserved {
                return false;
            }
            pool.total -= 1;
            pool.free.pop()
        };
        pfn.is_some_and(|pfn| {
            self.table.page(pfn).remove_flags(PageFlags::HUGETLB);
            self.put_page(cpu, pfn);
            true
        })
    }

    /// Promises so many pages; false when there are not as many that are free and not promised.
    pub(crate) fn reserve_huge(&self, pages: u64) -> bool {
        let mut pool = self.huge_pool.state.lock();
        let fits = pool.reserved + pages <= pool.free.len() as u64;
        if fits {
            pool.reserved += pages;
        }
        fits
    }

    /// So many promised pages are not needed any more.
    pub(crate) fn unreserve_huge(&self, pages: u64) {
        self.huge_pool.state.lock().reserved -= pages;
    }

    /// Takes a page for a program, near to its CPU if there is one; one of a block that is about to leave if there is no other. `None` only without
    /// a reservation.
    pub(crate) fn take_huge(&self, cpu: &Cpu, claim: Claim) -> Option<Pfn> {
        let node = self.topology().node_of(cpu.id());
        let mut pool = self.huge_pool.state.lock();
        match claim {
            Claim::Reserved => pool.reserved -= 1,
            Claim::None if pool.free.len() as u64 > pool.reserved => {}
            Claim::None => return None,
        }
        let stays = |pfn: &Pfn| !self.table.tags.at(*pfn).is_some_and(Tag::is_isolated);
        let is_near = |pfn: &Pfn| self.zone_of(*pfn).is_some_and(|zone| zone.node() == node);
        let at = pool.free.iter().rposition(|pfn| is_near(pfn) && stays(pfn));
        let at = at.or_else(|| pool.free.iter().rposition(stays));
        let at = at.or_else(|| pool.free.len().checked_sub(1))?;
        Some(pool.free.swap_remove(at))
    }

    /// A page of the pool whose last reference was just dropped.
    pub(crate) fn return_huge(&self, pfn: Pfn, page: &Page) {
        page.clear_fields();
        page.set_head(Head::allocated(Order::PAGEBLOCK));
        page.add_flags(PageFlags::HUGETLB);
        // There is room for all that belong to the pool.
        self.huge_pool.state.lock().free.push(pfn);
    }

    /// What a page was taken for has come to nothing: it goes back, and the promise with it.
    pub(crate) fn give_back_huge(&self, pfn: Pfn, claim: Claim) {
        let mut pool = self.huge_pool.state.lock();
        pool.free.push(pfn);
        pool.reserved += u64::from(claim == Claim::Reserved);
    }

    /// Has another page take the place of a free one of the pool, which is freed. Without another one the pool may shrink, if the page was not
    /// promised.
    pub(crate) fn replace_free_huge(&self, cpu: &Cpu, pfn: Pfn, without: WithoutFrame) -> Replaced {
        let fresh = self.alloc_pages(cpu, Gfp::SPARE, Order::PAGEBLOCK).ok();
        let mut pool = self.huge_pool.state.lock();
        let place = pool.free.iter().position(|&free| free == pfn);
        let can_shrink = without == WithoutFrame::Shrink && pool.free.len() as u64 > pool.reserved;
        let replaced = match (place, fresh) {
            (Some(place), Some(fresh)) => {
                self.table.page(fresh).add_flags(PageFlags::HUGETLB);
                pool.free[place] = fresh;
                Replaced::ByAnother
            }
            (Some(place), None) if can_shrink => {
                pool.free.swap_remove(place);
                pool.total -= 1;
                Replaced::ByNone
            }
            (Some(_), None) => Replaced::NoFrame,
            (None, _) => Replaced::Taken,
        };
        drop(pool);
        if replaced.is_gone() {
            self.table.page(pfn).remove_flags(PageFlags::HUGETLB);
            self.put_page(cpu, pfn);
        } else if let Some(fresh) = fresh {
            self.put_page(cpu, fresh);
        }
        replaced
    }

    /// Shows the free pages of the pool, for `validate()`.
    pub(crate) fn look_at_free_huge(&self, look: impl FnMut(Pfn)) {
        self.huge_pool.state.lock().free.iter().copied().for_each(look);
    }
}
