//! What a run of the demo is asked to do.

use std::path::PathBuf;
use std::time::Duration;

use super::plan::DEFAULT_MOVES;

/// For how long a run may last that does not say it: the demo takes less than half of it on the slowest host it was
/// measured on.
pub const DEFAULT_TIME_LIMIT: Duration = Duration::from_secs(180);

/// What a run of the demo is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoOptions {
    /// Print one JSON object on standard output and nothing else there.
    pub json: bool,
    /// Print plain lines even on a terminal.
    pub plain: bool,
    /// How many moves to make; [`super::plan::FEWEST_MOVES`] to [`super::plan::MOST_MOVES`].
    pub nr_moves: usize,
    /// When to give up, from the start of the demo.
    pub time_limit: Duration,
    /// Write a picture of the screen in the middle of a move to this file, as SVG.
    pub picture: Option<PathBuf>,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self {
            json: false,
            plain: false,
            nr_moves: DEFAULT_MOVES,
            time_limit: DEFAULT_TIME_LIMIT,
            picture: None,
        }
    }
}
