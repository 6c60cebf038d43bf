//! `ballast events`: what happens to a VM, as it happens.

use std::io::{self, Write};
use std::ops::ControlFlow;

use clap::Args;

use super::{Failure, OutputError, Status, name_argument};
use crate::control::client::ControlClient;

/// Print what happens to a VM, one JSON object a line, until the VM ends
///
/// Begins with what has happened so far, as far as it is kept (the newest 1024 events). A reader that is too slow is
/// told how many events it has missed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ballast events a
  ballast events a --after 120        only those after number 120
  ballast events a --no-follow        what has happened so far, and return
  ballast events a | jq -c 'select(.event == \"resize\")'

Events: state, reboot, plug, unplug, balloon, resize, violation, missed. Each has sequence (1, 2, 3, ...)
and milliseconds (since the VM was built).")]
pub(super) struct Events {
    /// Name of the VM
    name: String,

    /// Begin after the event of this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: u64,

    /// Return when all that has happened so far is printed
    #[arg(long)]
    no_follow: bool,
}

impl Events {
    pub(super) fn run(&self) -> Result<Status, Failure> {
        let client = ControlClient::open(&name_argument(&self.name)?)?;
        let mut failed = None;
        client.events(self.after, !self.no_follow, |line| {
            let mut stdout = io::stdout().lock();
            match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    // A reader that has gone away has had enough.
                    failed = (error.kind() != io::ErrorKind::BrokenPipe).then_some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        failed.map_or(Ok(Status::Done), |error| {
            Err(Failure::run_time(OutputError(error)))
        })
    }
}
