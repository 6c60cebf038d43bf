//! Checks, counted, and the first that failed, described.

use alloc::string::String;

/// What a round has checked.
#[derive(Debug, Default)]
pub struct Checks {
    /// Checks that went well.
    pub ok: u64,
    /// Checks that did not.
    pub failed: u64,
    /// The first of those.
    pub first: Option<String>,
}

impl Checks {
    /// Counts a check; `otherwise` says what is wrong when it does not hold. Returns whether it holds.
    pub fn that(&mut self, holds: bool, otherwise: impl FnOnce() -> String) -> bool {
        if holds {
            self.ok += 1;
        } else {
            self.failed += 1;
            self.first.get_or_insert_with(otherwise);
        }
        holds
    }

    /// Counts these too.
    pub fn add(&mut self, others: Self) {
        self.ok += others.ok;
        self.failed += others.failed;
        self.first = self.first.take().or(others.first);
    }
}
