//! `ballast guest`: questions to the guest itself.

use clap::Args;

use super::guest_events::GuestEvents;
use super::{Failure, Status, name_argument, print};
use crate::control::client::ControlClient;

/// Ask the running guest for its own view of its memory
///
/// The built-in guest knows help, meminfo, zoneinfo, buddyinfo, pagetypeinfo, slabinfo, vmallocinfo, vmstat, nodes,
/// blocks, ps, maps PID, smaps PID, swaps, lru, cache, hugepages [N], compact, pack, cancel, migratepages PID FROM TO, pagemap PID ADDRESS, frame PFN [FRAMES], poison PFN [soft|hard],
/// cpus, events [AFTER] [--follow] [--json] and sysfs, a control tree of blocks, nodes and disks. Those
/// that Linux has in /proc are in the formats of Linux.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ballast guest a meminfo
  ballast guest a zoneinfo
  ballast guest a blocks
  ballast guest a smaps 1
  ballast guest a sysfs memory/memory3/state offline
  ballast guest a sysfs node/node1/state offline
  ballast guest a poison 0x1234 hard
  ballast guest a events --follow --json
  ballast guest a help

The question goes through the guest's virtio console; a stock Linux has nobody there to answer.")]
pub(super) struct Guest {
    /// Name of the VM
    name: String,

    /// The question, with its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Guest {
    pub(super) fn run(&self) -> Result<Status, Failure> {
        let events = GuestEvents::asked_for(&self.command).map_err(Failure::usage)?;
        let client = ControlClient::open(&name_argument(&self.name)?)?;
        if let Some(events) = events {
            return events.run(&client);
        }
        let mut answer = client.guest(&self.command.join(" "))?;
        if !answer.is_empty() && !answer.ends_with('\n') {
            answer.push('\n');
        }
        print(&answer)?;
        Ok(Status::Done)
    }
}
