//! Waiting for a condition instead of for an amount of time.
//!
//! Machines differ in speed by two orders of magnitude here (native, emulated, emulated twice), so a test
//! never sleeps for a fixed time and never asserts one: it asks again until the answer is right, or gives up
//! after [`DEADLINE`], which only bounds how long a broken build is waited for.

use std::thread;
use std::time::{Duration, Instant};

/// How long any single condition is waited for before the test fails. It is the same in the host box, where
/// the slowest single step (a stock kernel booting in an emulated machine's guest) takes a tenth of it even on a
/// machine with several times more to do than it has processors.
pub const DEADLINE: Duration = Duration::from_secs(150);

/// Pause between two questions: short against everything waited for, long against the cost of asking.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks `question` until it answers `Some`, at most [`DEADLINE`] long.
///
/// # Panics
/// When the deadline passes; the message names `what`.
pub fn eventually<T>(what: &str, mut question: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(
            begun.elapsed() < DEADLINE,
            "waited {} s in vain for: {what}",
            DEADLINE.as_secs()
        );
        thread::sleep(PAUSE);
    }
}
