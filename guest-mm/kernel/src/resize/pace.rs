//! How fast blocks are emptied: one account of what moves and leaves, for whoever wants blocks emptied and for however many of them.

use super::Worker;
use guest_kernel::sync::race;
use guest_mm::PAGE_SIZE;

/// Pages of so much of a second at most move at a time, and then none for as long.
const TURNS_PER_SECOND: u64 = 10;

/// What has moved, as the time that it takes at the rate.
#[derive(Default)]
pub(super) struct Pace {
    /// When as much may have moved as has.
    earned_at: u64,
}

impl Worker {
    /// How many of `most` pages are looked at in one go.
    pub(super) fn share(&self, most: u32) -> u32 {
        match self.kernel.orders.rate() {
            0 => most,
            rate => {
                let pages = pages_per_second(rate) / TURNS_PER_SECOND;
                u32::try_from(pages).unwrap_or(most).clamp(1, most)
            }
        }
    }

    /// So many pages have moved or left: waits until the rate allows as many, and no longer than until somebody wants something else.
    pub(super) async fn keep_rate(&mut self, pages: u32) {
        let rate = self.kernel.orders.rate();
        if rate == 0 || pages == 0 {
            return;
        }
        let now = self.kernel.clock.now();
        let cost = u64::from(pages) * 1_000_000_000 / pages_per_second(rate);
        self.pace.earned_at = self.pace.earned_at.max(now) + cost;
        let pause = self.kernel.timers().sleep_until(self.pace.earned_at);
        let _ = race(race(self.device.config_changed(), self.cancelled()), pause).await;
    }
}

const fn pages_per_second(rate_mib: u64) -> u64 {
    rate_mib.saturating_mul(1 << 20) / PAGE_SIZE
}
