//! `ballast ps`: the VMs that are running.

use std::thread;

use clap::Args;
use serde_json::{Value, json};

use super::table::{Table, size, span};
use super::{Failure, Status, print, print_json};
use crate::control::client::{ClientError, ControlClient};
use crate::control::registry::{Entry, RuntimeDir};
use crate::control::report::{VmState, VmStatus};

/// List the running VMs
///
/// What dead VMs left in the runtime directory is cleared away.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ballast ps
  ballast ps --json | jq -r '.[].name'

MEMORY is what the guest has and what it is asked to have; RESIDENT is what of it the host holds.")]
pub(super) struct Ps {
    /// Print a JSON array with what `ballast stats --json` prints of each VM
    #[arg(long)]
    json: bool,
}

/// A VM, and what it says of itself unless it keeps silent.
type Answer = (Entry, Option<VmStatus>);

impl Ps {
    /// Asks all VMs at once, so that one that hangs does not hold up the others' lines.
    pub(super) fn run(&self) -> Result<Status, Failure> {
        let entries = RuntimeDir::from_env().list()?;
        let askers: Vec<_> = entries
            .into_iter()
            .map(|entry| thread::spawn(move || ask(entry)))
            .collect();
        // A panic in an asker has ended the process.
        let answers: Vec<Answer> = askers
            .into_iter()
            .filter_map(|asker| asker.join().ok().flatten())
            .collect();
        if self.json {
            print_json(&answers.iter().map(in_json).collect::<Vec<_>>())?;
        } else {
            print(&in_table(&answers))?;
        }
        Ok(Status::Done)
    }
}

/// Asks one VM; nothing if it has exited meanwhile.
fn ask(entry: Entry) -> Option<Answer> {
    match ControlClient::of(entry.clone()).and_then(|client| client.status()) {
        Ok(status) => Some((entry, Some(status))),
        Err(ClientError::Exited { .. }) => None,
        Err(error) => {
            tracing::warn!("{}", super::chain(&error));
            Some((entry, None))
        }
    }
}

fn in_json((entry, status): &Answer) -> Value {
    match status {
        Some(status) => json!(status),
        None => json!({"name": entry.name.as_str(), "pid": entry.pid, "state": "silent"}),
    }
}

fn in_table(answers: &[Answer]) -> String {
    let mut table = Table::new(&[
        "NAME",
        "PID",
        "STATE",
        "UPTIME",
        "MEMORY",
        "RESIDENT",
        "VIOLATIONS",
    ]);
    for (entry, status) in answers {
        let mut row = vec![entry.name.to_string(), entry.pid.to_string()];
        match status {
            None => row.push("silent".to_owned()),
            Some(status) => row.extend([
                state(status.state).to_owned(),
                span(status.uptime_seconds),
                format!("{} / {}", size(status.guest_bytes), size(status.total_requested)),
                size(status.host_resident_bytes),
                status.violations.to_string(),
            ]),
        }
        table.row(row);
    }
    table.render()
}

/// The state in one word.
pub(super) fn state(state: VmState) -> &'static str {
    match state {
        VmState::Starting => "starting",
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Rebooting => "rebooting",
        VmState::Exiting => "exiting",
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::spec::{GIB, MIB, VmName};

    fn entry(name: &str) -> Entry {
        Entry {
            name: VmName::new(name).expect("a name"),
            pid: 7,
            socket: PathBuf::new(),
        }
    }

    #[test]
    fn a_vm_is_a_line_and_a_silent_one_is_listed_too() {
        let status = VmStatus {
            state: VmState::Running,
            uptime_seconds: 61,
            total_plugged: 768 * MIB,
            guest_bytes: 768 * MIB,
            total_requested: GIB,
            host_resident_bytes: 5 * MIB,
            violations: 2,
            ..VmStatus::default()
        };
        let table = in_table(&[(entry("a"), Some(status)), (entry("hung-1"), None)]);
        let expected = "\
NAME    PID  STATE    UPTIME  MEMORY           RESIDENT  VIOLATIONS
a       7    running  1m01s   768 MiB / 1 GiB  5 MiB     2
hung-1  7    silent
";
        assert_eq!(table, expected);
    }

    #[test]
    fn json_has_a_whole_status_or_what_is_known_without_one() {
        let status = VmStatus {
            name: "a".into(),
            violations: 2,
            ..VmStatus::default()
        };
        assert_eq!(in_json(&(entry("a"), Some(status)))["violations"], 2);
        assert_eq!(
            in_json(&(entry("h"), None)),
            json!({"name": "h", "pid": 7, "state": "silent"})
        );
    }
}
