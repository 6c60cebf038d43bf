//! Tells a guest that reboots from one that cannot boot: it resets its machine again and again, and would keep a CPU of the
//! host busy for ever.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A guest that has run for so long has booted.
pub(super) const CALM: Duration = Duration::from_secs(10);

/// Counts resets that come too soon after one another.
#[derive(Debug)]
pub(super) struct RebootWatch {
    limit: Option<NonZeroU32>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_a_row: u32,
    /// When the last one was.
    last: Duration,
}

impl RebootWatch {
    /// A watch that calls `limit` resets in a row a loop, or no number of them.
    pub(super) fn new(limit: Option<NonZeroU32>) -> Self {
        let state = Mutex::default();
        Self { limit, state }
    }

    /// The guest resets its machine, at a time since the VM was built. How often it has in a row, if that is a loop.
    pub(super) fn is_loop(&self, now: Duration) -> Option<u32> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(state.last) >= CALM {
            state.in_a_row = 0;
        }
        state.last = now;
        state.in_a_row = state.in_a_row.saturating_add(1);
        let limit = self.limit?.get();
        (state.in_a_row >= limit).then_some(state.in_a_row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(limit: u32) -> impl Fn(u64) -> Option<u32> {
        let watch = RebootWatch::new(NonZeroU32::new(limit));
        move |seconds| watch.is_loop(Duration::from_secs(seconds))
    }

    #[test]
    fn resets_in_a_row_are_a_loop_when_there_are_enough() {
        let at = watch(3);
        assert_eq!([1, 2, 11].map(at), [None, None, Some(3)]);
    }

    #[test]
    fn a_guest_that_has_run_for_a_while_may_reset_as_often_again() {
        let at = watch(3);
        assert_eq!([1, 2, 12, 13, 23, 33, 34].map(&at), [None; 7]);
        assert_eq!(at(35), Some(3));
    }

    #[test]
    fn without_a_limit_there_is_no_loop() {
        let at = watch(0);
        assert!((0..1000).all(|seconds| at(seconds).is_none()));
    }
}
