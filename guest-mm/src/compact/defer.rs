//! Zones that are passed by for a while, because compaction brought nothing there (Linux `defer_compaction`).

use guest_sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use crate::pfn::Order;

/// Most requests that are passed by: 2 to this power (Linux `COMPACT_MAX_DEFER_SHIFT`).
const MAX_DEFER_SHIFT: u8 = 6;

/// What a zone remembers of compaction. Racy on purpose, as in Linux: a request more or less does no harm.
#[derive(Debug, Default)]
pub(crate) struct Deferral {
    /// Requests passed by since the last run.
    considered: AtomicU32,
    /// The next 2^shift are.
    shift: AtomicU8,
    /// Runs for this order and greater ones brought nothing.
    order_failed: AtomicU8,
}

impl Deferral {
    /// A run for that order brought nothing.
    pub(crate) fn defer(&self, order: Order) {
        self.considered.store(0, Relaxed);
        let shift = self.shift.load(Relaxed) + 1;
        self.shift.store(shift.min(MAX_DEFER_SHIFT), Relaxed);
        if order.number() < self.order_failed.load(Relaxed) {
            self.order_failed.store(order.number(), Relaxed);
        }
    }

    /// Whether a request of that order passes the zone by; it counts then.
    pub(crate) fn is_deferred(&self, order: Order) -> bool {
        if order.number() < self.order_failed.load(Relaxed) {
            return false;
        }
        let limit = 1 << self.shift.load(Relaxed);
        let considered = self.considered.load(Relaxed) + 1;
        self.considered.store(considered.min(limit), Relaxed);
        considered < limit
    }

    /// A chunk of that order was had after a run.
    pub(crate) fn reset(&self, order: Order) {
        self.considered.store(0, Relaxed);
        self.shift.store(0, Relaxed);
        if order.number() >= self.order_failed.load(Relaxed) {
            self.order_failed.store(order.number() + 1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_requests_that_are_passed_by_up_to_64() {
        let deferral = Deferral::default();
        let passed = |deferral: &Deferral| {
            (0..)
                .take_while(|_| deferral.is_deferred(Order::PAGEBLOCK))
                .count()
        };
        assert_eq!(passed(&deferral), 0);
        for expected in [1, 3, 7, 15, 31, 63, 63] {
            deferral.defer(Order::PAGEBLOCK);
            assert_eq!(passed(&deferral), expected);
        }
        deferral.reset(Order::PAGEBLOCK);
        assert_eq!(passed(&deferral), 0);
        deferral.defer(Order::PAGEBLOCK);
        assert!(!deferral.is_deferred(Order::ZERO), "smaller ones succeeded");
    }
}
