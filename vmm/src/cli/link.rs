//! `ballast link`: the wire of a network interface, plugged in or out.

use clap::{Args, ValueEnum};

use super::{Failure, Status, name_argument, print};
use crate::control::api::{self, LinkRequest};
use crate::control::client::ControlClient;

/// Plug the wire of a network interface in or out
///
/// While it is out, what either side sends is lost. The guest's driver is told, and sees its carrier go.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ballast link a down
  ballast link a up
  ballast link a down --interface 1      the second --net")]
pub(super) struct Link {
    /// Name of the VM
    name: String,

    /// What the link is to be
    state: State,

    /// Which --net, counted from 0
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    interface: usize,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    /// Frames go through
    Up,
    /// They do not
    Down,
}

impl Link {
    pub(super) fn run(&self) -> Result<Status, Failure> {
        let name = name_argument(&self.name)?;
        let (link, word) = match self.state {
            State::Up => (api::Link::Up, "up"),
            State::Down => (api::Link::Down, "down"),
        };
        let interface = self.interface;
        let changed = ControlClient::open(&name)?.set_link(LinkRequest { interface, link })?;
        if !changed {
            print(&format!("{name}: the link is {word} already\n"))?;
        }
        Ok(Status::Done)
    }
}
