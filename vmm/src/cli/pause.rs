//! `ballast pause` and `ballast resume`: a guest that stands still for a while.

use clap::Args;

use super::{Failure, Status, name_argument, print};
use crate::control::client::ControlClient;

/// Hold a guest: its CPUs stand still until `ballast resume`
///
/// Its memory stays as it is, and it can be looked at and stopped.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ballast pause a
  ballast pause a && ballast stats a && ballast resume a")]
pub(super) struct Pause {
    /// Name of the VM
    name: String,
}

/// Let a held guest go on
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ballast resume a

A guest that was held for touching unplugged memory (run --on-violation pause) tries the same access again.")]
pub(super) struct Resume {
    /// Name of the VM
    name: String,
}

impl Pause {
    pub(super) fn run(&self) -> Result<Status, Failure> {
        let name = name_argument(&self.name)?;
        let changed = ControlClient::open(&name)?.pause()?;
        if !changed {
            print(&format!("{name}: is held already\n"))?;
        }
        Ok(Status::Done)
    }
}

impl Resume {
    pub(super) fn run(&self) -> Result<Status, Failure> {
        let name = name_argument(&self.name)?;
        let changed = ControlClient::open(&name)?.resume()?;
        if !changed {
            print(&format!("{name}: was not held\n"))?;
        }
        Ok(Status::Done)
    }
}
