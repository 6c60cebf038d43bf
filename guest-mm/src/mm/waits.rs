//! Waiting for a page, and for an address space: what other methods return when they could not go on.

use core::array;

use guest_sync::atomic::{AtomicU32, Ordering};

use crate::frames::{Frames, Mmu, SpaceId};
use crate::mm::Mm;
use crate::page::{Page, PageFlags};
use crate::pfn::Pfn;
use crate::wait::WaitQueue;

/// A page whose lock somebody else has, or that is on its way to the swap area, or that is pinned while its block is to leave.
#[must_use = "whoever does not wait for it looks again at once"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageWait {
    pfn: Pfn,
    /// What is waited for to go.
    flag: PageFlags,
}

impl PageWait {
    /// For the page lock.
    pub(crate) const fn lock(pfn: Pfn) -> Self {
        let flag = PageFlags::LOCKED;
        Self { pfn, flag }
    }

    /// For the end of a write-back.
    pub(crate) const fn writeback(pfn: Pfn) -> Self {
        let flag = PageFlags::WRITEBACK;
        Self { pfn, flag }
    }

    /// For the end of the pins of a page on a block that is about to leave.
    pub(crate) const fn pins(pfn: Pfn) -> Self {
        let flag = PageFlags::PINNED;
        Self { pfn, flag }
    }
}

/// Queues of those who wait for page locks, by a hash of the frame number (Linux `page_waitqueue`). Who shares a queue with
/// another page's waiters is woken in vain now and then.
#[derive(Debug)]
pub(crate) struct PageWaits {
    queues: [WaitQueue; NR_QUEUES],
    /// Waiters in all of them: nobody has to look into the queues while there are none.
    nr_waiting: AtomicU32,
}

const NR_QUEUES: usize = 64;

impl Default for PageWaits {
    fn default() -> Self {
        Self {
            queues: array::from_fn(|_| WaitQueue::new()),
            nr_waiting: AtomicU32::new(0),
        }
    }
}

impl PageWaits {
    fn queue(&self, pfn: Pfn) -> &WaitQueue {
        // Knuth's multiplicative hash; neighbours go to different queues.
        let hash = pfn.number().wrapping_mul(0x9e37_79b1) >> 26;
        &self.queues[hash as usize]
    }
}

/// One who waits, counted as long as this exists.
struct Counted<'a>(&'a AtomicU32);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Sleeps until nobody has the page lock, or the page has arrived, or is not pinned; somebody else may take it again before the caller does.
    pub async fn until_unlocked(&self, wait: PageWait) {
        let PageWait { pfn, flag } = wait;
        if flag == PageFlags::PINNED {
            return self.phys.until_unpinned(pfn).await;
        }
        self.page_waits.nr_waiting.fetch_add(1, Ordering::SeqCst);
        let _counted = Counted(&self.page_waits.nr_waiting);
        let is_free = || {
            let page = self.phys.page(pfn);
            let is_locked = page.is_some_and(|page| page.flags().has(flag));
            (!is_locked).then_some(())
        };
        self.page_waits.queue(pfn).until(is_free).await;
    }

    /// Whether nobody has the lock of a page of a block that is about to leave, it is on its way to no disk, and is not pinned; or it is not in use
    /// any more.
    pub fn is_idle(&self, pfn: Pfn) -> bool {
        let flags = self.phys.page(pfn).map(Page::flags);
        let is_free = |flags: PageFlags| !flags.has(PageFlags::LOCKED) && !flags.has(PageFlags::WRITEBACK);
        flags.is_none_or(is_free) && !self.phys.is_pin_awaited(pfn)
    }

    /// Sleeps until nobody has the lock of a page of a block that is about to leave, it is on its way to no disk, and is not pinned; or until it is not
    /// in use any more. Others may take it again before the caller does, but do not pin it again for a transfer.
    pub async fn until_idle(&self, pfn: Pfn) {
        self.until_unlocked(PageWait::lock(pfn)).await;
        self.until_unlocked(PageWait::writeback(pfn)).await;
        self.until_unlocked(PageWait::pins(pfn)).await;
    }

    /// Sleeps until there is no migration entry in an address space, or no such space.
    pub async fn until_settled(&self, id: SpaceId) {
        let Some(space) = self.spaces.find(id) else {
            return;
        };
        let is_settled = || (space.lock().migrating == 0).then_some(());
        space.settling.until(is_settled).await;
    }

    /// Lets go of the page lock and wakes who waits for it.
    pub(crate) fn unlock_page(&self, pfn: Pfn, page: &Page) {
        page.unlock();
        self.wake_waiters(pfn);
    }

    /// Wakes who waits for a page whose lock is free, or which is not in use any more.
    pub(crate) fn wake_waiters(&self, pfn: Pfn) {
        // Sequentially consistent, after an atomic change of the descriptor: either this sees the one who is about to wait, or
        // that one sees the change.
        if self.page_waits.nr_waiting.load(Ordering::SeqCst) > 0 {
            self.page_waits.queue(pfn).wake_all();
        }
    }
}
