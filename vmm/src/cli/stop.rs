//! `ballast stop`: the end of a VM.

use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use super::{Failure, Status, name_argument};
use crate::control::client::{ClientError, ControlClient};
use crate::control::registry::{RegistryError, RuntimeDir};

/// How often to look whether the process is gone. Nothing tells us: it is no child of ours.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// End a VM
///
/// Its process clears away its files and exits with status 0. The guest is not asked.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ballast stop a
  ballast stop a --wait       return when the VM is gone, 30 s at most
  ballast stop a --wait=5")]
pub(super) struct Stop {
    /// Name of the VM
    name: String,

    /// Return only when the VM is gone; an error if it is not within SECONDS
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "30")]
    wait: Option<u32>,
}

/// The VM said that it ends, and goes on.
#[derive(Debug, thiserror::Error)]
#[error("name {name:?}: process {pid} is still there {seconds} s after it was told to end")]
struct StillThere {
    name: String,
    pid: u32,
    seconds: u32,
}

impl Stop {
    pub(super) fn run(&self) -> Result<Status, Failure> {
        let name = name_argument(&self.name)?;
        let client = ControlClient::open(&name)?;
        match client.stop() {
            // It was faster than its answer.
            Err(ClientError::Exited { .. }) => {}
            result => result?,
        }
        let Some(seconds) = self.wait else {
            return Ok(Status::Done);
        };
        let registry = RuntimeDir::from_env();
        let deadline = Instant::now() + Duration::from_secs(seconds.into());
        loop {
            match registry.find(&name) {
                Err(RegistryError::Unknown { .. } | RegistryError::Exited { .. }) => return Ok(Status::Done),
                Err(error) => return Err(error.into()),
                // The next VM of that name is not ours to wait for.
                Ok(entry) if entry.pid != client.pid() => return Ok(Status::Done),
                Ok(_) if Instant::now() >= deadline => {
                    let name = name.to_string();
                    return Err(Failure::run_time(StillThere {
                        name,
                        pid: client.pid(),
                        seconds,
                    }));
                }
                Ok(_) => thread::sleep(LOOK_EVERY),
            }
        }
    }
}
