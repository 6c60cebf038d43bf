//! How much of memory may be dirty, and what happens when it is more (Linux `mm/page-writeback.c`).
//!
//! Beyond the *background* limit somebody is to write back ([`Mm::until_write_back_wanted`]); beyond the *limit* those who write have to
//! wait ([`Mm::until_may_dirty`]), so that reclaim always finds pages that can go.

use guest_sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use crate::frames::{Frames, Mmu};
use crate::mm::Mm;
use crate::wait::WaitQueue;

/// Shares of the memory that could be dirty, in percent: of what is free or has pages of files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyRatios {
    /// Beyond this, pages are written back (Linux `dirty_background_ratio`).
    pub background: u8,
    /// Beyond this, those who write wait (Linux `dirty_ratio`).
    pub limit: u8,
}

impl Default for DirtyRatios {
    fn default() -> Self {
        Self {
            background: 10,
            limit: 20,
        }
    }
}

/// The same in pages, as it is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyLimits {
    /// Beyond this, pages are written back.
    pub background: u64,
    /// Beyond this, those who write wait. At least one more than `background`.
    pub limit: u64,
}

/// What is known of dirty pages in all.
#[derive(Debug)]
pub(crate) struct Dirty {
    now: AtomicU64,
    background: AtomicU8,
    limit: AtomicU8,
    /// Those who want to write.
    throttled: WaitQueue,
    /// Those who write back.
    wanted: WaitQueue,
}

impl Default for Dirty {
    fn default() -> Self {
        let ratios = DirtyRatios::default();
        Self {
            now: AtomicU64::new(0),
            background: AtomicU8::new(ratios.background),
            limit: AtomicU8::new(ratios.limit),
            throttled: WaitQueue::new(),
            wanted: WaitQueue::new(),
        }
    }
}

impl Dirty {
    pub(crate) fn now(&self) -> u64 {
        self.now.load(Relaxed)
    }

    /// Wakes who writes back if there is enough to do.
    pub(crate) fn wake_if_many<F: Frames, M: Mmu>(&self, mm: &Mm<'_, F, M>) {
        if mm.phys.counts.nr_dirty.value() > mm.dirty_limits().background {
            self.wanted.wake_all();
        }
    }

    /// Fewer pages are dirty or on their way than before.
    pub(crate) fn wake_throttled(&self) {
        self.throttled.wake_all();
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// What time it is, in whatever unit the caller likes: by this the age of dirty pages is known.
    pub fn set_time(&self, now: u64) {
        self.dirty.now.store(now, Relaxed);
    }

    /// Changes the shares of memory that may be dirty: 1 to 100 each.
    pub fn set_dirty_ratios(&self, ratios: DirtyRatios) {
        self.dirty
            .background
            .store(ratios.background.clamp(1, 100), Relaxed);
        self.dirty.limit.store(ratios.limit.clamp(1, 100), Relaxed);
        self.dirty.wake_throttled();
    }

    /// How many pages may be dirty now.
    pub fn dirty_limits(&self) -> DirtyLimits {
        let free: u64 = self.phys.populated_zones().map(crate::Zone::free_pages).sum();
        let dirtyable = free + self.phys.counts.nr_file_pages.value() - self.phys.counts.nr_shmem.value();
        let share = |percent: &AtomicU8| dirtyable * u64::from(percent.load(Relaxed)) / 100;
        let background = share(&self.dirty.background);
        DirtyLimits {
            background,
            limit: share(&self.dirty.limit).max(background + 1),
        }
    }

    /// Whether those who write have to wait.
    pub fn is_too_dirty(&self) -> bool {
        let counts = &self.phys.counts;
        counts.nr_dirty.value() + counts.nr_writeback.value() > self.dirty_limits().limit
    }

    /// Sleeps until a page more may be made dirty (Linux `balance_dirty_pages`). Whoever stores to a shared mapping asks
    /// too, after the fault.
    pub async fn until_may_dirty(&self) {
        if !self.is_too_dirty() {
            return;
        }
        self.dirty.wanted.wake_all();
        self.phys.counts.balance_dirty_pages.add(1);
        let attempt = || (!self.is_too_dirty()).then_some(());
        self.dirty.throttled.until(attempt).await;
    }

    /// Sleeps until so many pages are dirty that some should be written back.
    pub async fn until_write_back_wanted(&self) {
        let attempt = || {
            let is_wanted = self.phys.counts.nr_dirty.value() > self.dirty_limits().background;
            is_wanted.then_some(())
        };
        self.dirty.wanted.until(attempt).await;
    }
}
