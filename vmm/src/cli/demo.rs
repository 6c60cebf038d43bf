//! `ballast demo`: the main job in one command.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Failure, Status};
use crate::demo::{self, DEFAULT_TIME_LIMIT, DemoError, DemoOptions, plan};

/// Run two guests and move memory back and forth between them, within a budget, while programs in both verify all of it.
/// Exits with status 0 only if nothing was lost.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ballast demo                 drawn on the terminal; q ends it
  ballast demo --plain         one line an event, as when the output is no terminal
  ballast demo --json          one JSON object on standard output, the events on standard error")]
pub(super) struct Demo {
    /// Print one JSON object on standard output, and nothing else there
    #[arg(long)]
    json: bool,

    /// Print plain lines even on a terminal
    #[arg(long)]
    plain: bool,

    /// How many moves to make, 4 to 1000
    #[arg(long, value_name = "NUMBER", default_value_t = plan::DEFAULT_MOVES)]
    moves: usize,

    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIME_LIMIT.as_secs())]
    seconds: u64,

    /// Write the busiest screen of the run to this file, as SVG
    #[arg(long, value_name = "FILE", hide = true)]
    picture: Option<PathBuf>,
}

impl Demo {
    pub(super) fn run(&self) -> Result<Status, Failure> {
        let options = DemoOptions {
            json: self.json,
            plain: self.plain,
            nr_moves: self.moves,
            time_limit: Duration::from_secs(self.seconds),
            picture: self.picture.clone(),
        };
        match demo::run(&options) {
            Ok(()) => Ok(Status::Done),
            Err(error @ DemoError::Plan(_)) => Err(Failure::usage(error)),
            Err(error) => Err(Failure::run_time(error)),
        }
    }
}
