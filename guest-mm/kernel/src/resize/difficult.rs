//! Pages that hold up the emptying of a block: huge ones that have no place to go to, for which one is made, and those that somebody is just
//! using, which are waited for.

use super::Worker;
use crate::kcompactd;
use crate::machine::cpu::this_cpu;
use alloc::vec::Vec;
use guest_kernel::sync::{Winner, race};
use guest_mm::compact::CompactResult;
use guest_mm::{IsolatedBlock, Pfn, Zone};

/// How long a block's busy pages, those among them that a disk is at, are waited for in all, from the end of the first pass on; and how long a disk
/// that pages leave for may stand still: one that takes longer is not worth a block out of use.
pub(super) const BUSY_NS: u64 = 3_000_000_000;
/// How long somebody has a page who neither has its lock nor writes nor pins it: who just looks it up, maps it or lets go of it.
const MOMENT_NS: u64 = 500_000;

/// How a wait has ended.
pub(super) enum Waited<T> {
    Done(T),
    TooLong,
    /// Somebody wants something else now, or nothing any more: [`Worker::interrupted`] says what.
    Unwanted,
}

impl Worker {
    /// Waits for something that a disk may be needed for, and that can be given up at any time: no longer than until `until`, or until somebody
    /// wants something else.
    pub(super) async fn wait_no_longer<T>(&self, until: u64, what: impl Future<Output = T>) -> Waited<T> {
        let unwanted = race(self.device.config_changed(), self.cancelled());
        match race(what, race(unwanted, self.kernel.timers().sleep_until(until))).await {
            Winner::First(outcome) => Waited::Done(outcome),
            Winner::Second(Winner::First(_)) => Waited::Unwanted,
            Winner::Second(Winner::Second(())) => Waited::TooLong,
        }
    }

    /// The first stage of the move of a huge page: small pages move together outside the block until there is a free huge page, zone by
    /// zone, with programs running in between.
    pub(super) async fn make_huge_page(&self, block: &mut IsolatedBlock) {
        let zones: Vec<&Zone> = self.kernel.phys.zones_for_moves(this_cpu()).collect();
        let mut outcome = CompactResult::Skipped;
        for zone in zones {
            outcome = outcome.max(kcompactd::first_stage(self.kernel, zone).await);
            if outcome == CompactResult::Success {
                break;
            }
        }
        block.first_stage_ended(outcome);
    }

    /// Waits until nobody is busy with a page, so that it moves in this pass. Not for longer than `until`: from then on busy pages of the block are put
    /// off. Another target, or whoever does not want the block any more, ends the wait.
    pub(super) async fn await_page(&self, block: &mut IsolatedBlock, pfn: Pfn, until: u64) {
        let (kernel, timers) = (self.kernel, self.kernel.timers());
        if kernel.clock.now() >= until {
            block.put_off_busy();
            return;
        }
        self.tell_awaited(block.block(), pfn);
        let idle = async {
            match kernel.mm().is_idle(pfn) {
                true => timers.sleep(MOMENT_NS).await,
                false => kernel.memory().until_idle(pfn).await,
            }
        };
        let _ = self.wait_no_longer(until, idle).await;
    }
}
