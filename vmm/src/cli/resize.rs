//! `ballast resize`: more memory for a running guest, or less.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::str::FromStr;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use clap::Args;

use super::table::size;
use super::{Failure, Status, name_argument, print, print_json};
use crate::control::api::ResizeRequest;
use crate::control::client::{ClientError, ControlClient};
use crate::control::report::{ResizeReport, ResizeState};
use crate::spec::{ByteSize, SizeError, VmName, parse_size};

/// How often the line that shows the progress is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// Change how much memory a running guest has, boot memory included
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ballast resize a 2G               ask the guest, and return
  ballast resize a 2G --wait 30     return when it has 2 GiB, or say how far it got
  ballast resize a -512M --wait 30  512 MiB less than it was last asked to have
  ballast resize a 1G --deadline 30 the same for 1 GiB, but it keeps what it has then
  ballast resize a +1G --region 1   1 GiB more, all of it in the second --hotplug region

The size is at least the boot memory, at most boot memory and regions together, and whole
blocks away from the boot memory; with a balloon, at least the balloon's floor, and whole
pages of 4 KiB. With --wait or --deadline, the exit status is 0
only if the guest has reached the size.")]
pub(super) struct Resize {
    /// Name of the VM
    name: String,

    /// Memory the guest is to have in total, or +SIZE or -SIZE for a change
    #[arg(allow_hyphen_values = true)]
    size: String,

    /// Make the whole change in this hot-plug region, counted from 0 [default: growing begins with the first region,
    /// shrinking with the last]
    #[arg(long, value_name = "NUMBER")]
    region: Option<usize>,

    /// Wait so long for the guest to get there
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=crate::control::api::MAX_WAIT_SECONDS))]
    wait: Option<u64>,

    /// Wait so long, and no longer is it to go on: then, or when this command is interrupted, what has not left goes back to use
    #[arg(long, value_name = "SECONDS", conflicts_with = "wait", value_parser = clap::value_parser!(u64).range(..=crate::control::api::MAX_WAIT_SECONDS))]
    deadline: Option<u64>,

    /// Print one JSON object: outcome, target_bytes, reached_bytes, elapsed_milliseconds, cause,
    /// reason, guest_reason, guest_refusal, passes
    #[arg(long)]
    json: bool,
}

/// The size asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    To(u64),
    Grow(u64),
    Shrink(u64),
}

/// A change that leads to no size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum ChangeError {
    #[error("size")]
    Size(#[from] SizeError),
    #[error(
        "size {change}: the guest was asked to have {current}, and the result is not from 0 to 2^64 - 1 bytes"
    )]
    OutOfRange { change: Change, current: ByteSize },
}

/// The guest did not do it.
#[derive(Debug, thiserror::Error)]
#[error("name {name:?}: has {reached}, not {target}, after {elapsed}: {reason}{guest}{passes}")]
struct NotReached {
    name: String,
    reached: ByteSize,
    target: ByteSize,
    elapsed: String,
    reason: String,
    guest: String,
    passes: String,
}

impl Resize {
    pub(super) fn run(&self) -> Result<Status, Failure> {
        let name = name_argument(&self.name)?;
        let change: Change = self
            .size
            .parse()
            .map_err(|error: ChangeError| Failure::usage(error))?;
        let client = ControlClient::open(&name)?;
        let total = match change {
            Change::To(total) => total,
            change => {
                let current = client.status()?.total_requested;
                change.apply(current).map_err(Failure::run_time)?
            }
        };
        let request = ResizeRequest {
            total_bytes: total,
            region: self.region,
            wait_seconds: self.wait.or(self.deadline),
            gives_up: self.deadline.is_some(),
        };
        let draw = request.wait_seconds.is_some() && !self.json && io::stderr().is_terminal();
        let report = if draw {
            drawn(&client, request)
        } else {
            client.ask_size(request)
        }?;
        if self.json {
            print_json(&report)?;
        }
        self.conclude(&name, &report)
    }

    /// Says how it ended, in words unless they are not wanted, and with the exit status.
    fn conclude(&self, name: &VmName, report: &ResizeReport) -> Result<Status, Failure> {
        let text = match report.outcome {
            ResizeState::Requested => {
                let (reached, target) = (ByteSize(report.reached_bytes), ByteSize(report.target_bytes));
                format!("{name}: asked for {target}, has {reached}\n")
            }
            ResizeState::Reached => {
                let (reached, elapsed) = (
                    ByteSize(report.reached_bytes),
                    elapsed(report.elapsed_milliseconds),
                );
                format!("{name}: has {reached} after {elapsed}{}\n", passes(report))
            }
            ResizeState::Incomplete | ResizeState::GivenUp | ResizeState::Superseded => {
                return Err(Failure::run_time(NotReached::new(name, report)));
            }
        };
        if !self.json {
            print(&text)?;
        }
        Ok(Status::Done)
    }
}

impl Change {
    /// The total that a change leads to from `current`.
    fn apply(self, current: u64) -> Result<u64, ChangeError> {
        let total = match self {
            Self::To(total) => Some(total),
            Self::Grow(by) => current.checked_add(by),
            Self::Shrink(by) => current.checked_sub(by),
        };
        total.ok_or(ChangeError::OutOfRange {
            change: self,
            current: ByteSize(current),
        })
    }
}

impl FromStr for Change {
    type Err = ChangeError;

    fn from_str(text: &str) -> Result<Self, ChangeError> {
        let change = match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(by), _) => Self::Grow(parse_size(by)?),
            (_, Some(by)) => Self::Shrink(parse_size(by)?),
            _ => Self::To(parse_size(text)?),
        };
        Ok(change)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::To(total) => write!(f, "{}", ByteSize(*total)),
            Self::Grow(by) => write!(f, "+{}", ByteSize(*by)),
            Self::Shrink(by) => write!(f, "-{}", ByteSize(*by)),
        }
    }
}

impl NotReached {
    fn new(name: &VmName, report: &ResizeReport) -> Self {
        let guest = report.guest_reason.as_ref();
        Self {
            name: name.to_string(),
            reached: ByteSize(report.reached_bytes),
            target: ByteSize(report.target_bytes),
            elapsed: elapsed(report.elapsed_milliseconds),
            reason: report
                .reason
                .clone()
                .unwrap_or_else(|| "no reason is known".to_owned()),
            guest: guest.map_or_else(
                || silence(report).to_owned(),
                |reason| format!(" (the guest says: {reason})"),
            ),
            passes: passes(report) + kept(report),
        }
    }
}

/// What is added when the guest goes on no longer.
fn kept(report: &ResizeReport) -> &'static str {
    match report.outcome {
        ResizeState::GivenUp => "; it keeps what it has",
        _ => "",
    }
}

/// What is to be said of a guest that has stopped on the way and gives no reason: stock Linux has none to give.
fn silence(report: &ResizeReport) -> &'static str {
    match report.cause.as_deref() {
        Some("stalled" | "no-request") if report.reached_bytes > report.target_bytes => {
            " (the guest gives no reason; what its kernel uses itself or has pinned cannot be moved)"
        }
        Some("stalled" | "no-request") => " (the guest gives no reason)",
        _ => "",
    }
}

/// What is added of the passes in which blocks left.
fn passes(report: &ResizeReport) -> String {
    report
        .passes
        .map_or_else(String::new, |passes| format!("; {passes}"))
}

/// A time as people say it: `36 ms`, `4.2 s`.
fn elapsed(milliseconds: u64) -> String {
    match milliseconds {
        0..1000 => format!("{milliseconds} ms"),
        _ => format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100),
    }
}

/// Resizes and waits, and shows meanwhile how far the guest has got.
fn drawn(client: &ControlClient, request: ResizeRequest) -> Result<ResizeReport, ClientError> {
    thread::scope(|scope| {
        let (done, is_done) = channel::<()>();
        let waiter = scope.spawn(move || {
            let report = client.ask_size(request);
            drop(done);
            report
        });
        let mut drew = false;
        while is_done.recv_timeout(DRAW_EVERY) == Err(RecvTimeoutError::Timeout) {
            // What goes wrong here goes wrong for the waiter too, which reports it.
            if let Ok(status) = client.status() {
                eprint!(
                    "\r{}: {} of {}\x1b[K",
                    client.name(),
                    size(status.guest_bytes),
                    size(request.total_bytes)
                );
                drew = true;
            }
        }
        if drew {
            eprint!("\r\x1b[K");
            // A terminal that is gone shows nothing.
            let _ = io::stderr().flush();
        }
        waiter
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::report::PassReport;
    use crate::spec::{GIB, MIB};

    #[test]
    fn a_size_is_a_total_and_a_sign_makes_it_a_change() {
        for (text, change, total) in [
            ("2G", Change::To(2 * GIB), 2 * GIB),
            ("+512M", Change::Grow(512 * MIB), 1536 * MIB),
            ("-512M", Change::Shrink(512 * MIB), 512 * MIB),
            ("-1G", Change::Shrink(GIB), 0),
        ] {
            assert_eq!(text.parse(), Ok(change));
            assert_eq!(change.apply(GIB), Ok(total));
        }
        for text in ["", "+", "-", "--1G", "+-1G", "a", "+1Q"] {
            assert!(
                matches!(text.parse::<Change>(), Err(ChangeError::Size(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn a_change_beyond_all_sizes_is_refused_with_both_values() {
        let error = Change::Shrink(2 * GIB).apply(GIB).expect_err("below 0");
        assert!(
            error
                .to_string()
                .starts_with("size -2 GiB: the guest was asked to have 1 GiB"),
            "{error}"
        );
        assert!(Change::Grow(u64::MAX).apply(1).is_err());
    }

    #[test]
    fn a_resize_that_failed_says_how_far_it_got_and_why() {
        let report = ResizeReport {
            outcome: ResizeState::Incomplete,
            target_bytes: GIB,
            reached_bytes: 640 * MIB,
            elapsed_milliseconds: 30_049,
            cause: Some("stalled".into()),
            reason: Some("stalled".into()),
            guest_reason: Some("no-memory".into()),
            guest_refusal: None,
            passes: Some(PassReport {
                first: 3,
                second: 1,
                later: 0,
            }),
        };
        let text = NotReached::new(&VmName::new("a").expect("a name"), &report).to_string();
        let expected = "name \"a\": has 640 MiB, not 1 GiB, after 30.0 s: stalled (the guest says: no-memory); \
             blocks left: 3 in pass 1, 1 in pass 2, 0 later";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_guest_that_stops_without_a_reason_is_said_to_give_none() {
        let report = |cause: &str, reached_bytes| ResizeReport {
            outcome: ResizeState::Incomplete,
            target_bytes: GIB,
            reached_bytes,
            elapsed_milliseconds: 30_049,
            cause: Some(cause.into()),
            reason: Some("why".into()),
            guest_reason: None,
            guest_refusal: None,
            passes: None,
        };
        assert_eq!(silence(&report("stalled", MIB)), " (the guest gives no reason)");
        assert!(silence(&report("no-request", 2 * GIB)).contains("cannot be moved"));
        // The machine knows why itself.
        assert_eq!(silence(&report("driver-absent", MIB)), "");
    }

    #[test]
    fn times_are_said_in_milliseconds_or_seconds() {
        for (milliseconds, text) in [(0, "0 ms"), (999, "999 ms"), (1000, "1.0 s"), (90_049, "90.0 s")] {
            assert_eq!(elapsed(milliseconds), text);
        }
    }
}
