//! Figures of several samples, and how many there shall be.

#![allow(dead_code, reason = "each bench uses its part")]

use std::time::Duration;

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Samples of each contestant.
    pub(crate) rounds: usize,
    /// Least processor time of a sample.
    pub(crate) sample: Duration,
}

impl Effort {
    /// What the published figures are made with.
    pub(crate) const FULL: Self = Self {
        rounds: 21,
        sample: Duration::from_millis(8),
    };
    /// For a look while working.
    pub(crate) const QUICK: Self = Self {
        rounds: 5,
        sample: Duration::from_millis(2),
    };
}

/// The middle, the least and the greatest of the samples.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Figure {
    /// Of at least one value.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            median: values[values.len() / 2],
            min: values[0],
            max: values[values.len() - 1],
        }
    }
}
