//! What a program has found out about its own data.

use crate::call::{self, say};

/// Failed checks that are named on the console; the others are only counted.
const MOST_NAMED: u64 = 5;

/// Checks of a program's own data, counted, and told to the manager now and then.
#[derive(Default)]
pub(crate) struct Checks {
    ok: u64,
    failed: u64,
    /// How many of each the manager knows of.
    told: (u64, u64),
}

impl Checks {
    /// Counts a check.
    pub(crate) fn note(&mut self, is_right: bool) {
        self.ok += u64::from(is_right);
        self.failed += u64::from(!is_right);
    }

    /// Counts a check, and says what is wrong if it is.
    pub(crate) fn check(&mut self, is_right: bool, what: &str) {
        self.note(is_right);
        if !is_right && self.failed <= MOST_NAMED {
            say(format_args!("{what} is wrong"));
        }
    }

    /// Tells the manager of the checks since the last time.
    pub(crate) fn report(&mut self) {
        let (ok, failed) = self.told;
        call::report(self.ok - ok, self.failed - failed);
        self.told = (self.ok, self.failed);
    }

    /// How many have failed since the beginning.
    pub(crate) const fn failed(&self) -> u64 {
        self.failed
    }
}
