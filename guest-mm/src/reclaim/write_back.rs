//! How much is on its way to disks, and waiting for it: who makes memory dirty, or wants some, faster than the disks take it is slowed down to
//! their speed (Linux `blk_congestion_wait`, `throttle_vm_writeout`).

use guest_sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::CLUSTER;
use crate::phys::PhysicalMemory;
use crate::wait::WaitQueue;

/// Pages of programs and files that are being written.
#[derive(Debug)]
pub(crate) struct WriteBack {
    under_way: AtomicU32,
    ended: AtomicU64,
    /// Of those, what is on the disk now.
    succeeded: AtomicU64,
    waiting: WaitQueue,
}

impl WriteBack {
    pub(crate) fn new() -> Self {
        Self {
            under_way: AtomicU32::new(0),
            ended: AtomicU64::new(0),
            succeeded: AtomicU64::new(0),
            waiting: WaitQueue::with_room(64),
        }
    }
}

impl PhysicalMemory<'_> {
    /// A page is on its way to a disk from now on.
    pub(crate) fn write_begins(&self) {
        self.write_back.under_way.fetch_add(1, Ordering::Relaxed);
    }

    /// It has arrived, or could not be written. To be called when the page can be freed.
    pub(crate) fn write_ends(&self, has_arrived: bool) {
        let state = &self.write_back;
        state.succeeded.fetch_add(has_arrived.into(), Ordering::Relaxed);
        let ended = state.ended.fetch_add(1, Ordering::SeqCst) + 1;
        let is_last = state.under_way.fetch_sub(1, Ordering::SeqCst) == 1;
        // Not for each page: those who wait want many.
        if is_last || ended.is_multiple_of(CLUSTER) {
            state.waiting.wake_all();
        }
    }

    /// Pages that are on their way to disks.
    pub fn nr_being_written(&self) -> u32 {
        self.write_back.under_way.load(Ordering::Relaxed)
    }

    /// Pages that have arrived there since boot.
    pub fn nr_written(&self) -> u64 {
        self.write_back.succeeded.load(Ordering::Relaxed)
    }

    /// Sleeps until 32 of the pages have been written, or all of them: at once when there are none.
    pub async fn throttle(&self) {
        let state = &self.write_back;
        let before = state.ended.load(Ordering::SeqCst);
        let is_over = || {
            let ended = state.ended.load(Ordering::SeqCst) - before;
            (ended >= CLUSTER || state.under_way.load(Ordering::SeqCst) == 0).then_some(())
        };
        state.waiting.until(is_over).await;
    }
}
