//! `ballast balloon`: what the guest says of its memory, and its free pages. The balloon's size is `ballast resize`'s.

use clap::{Args, Subcommand};

use super::table::{Table, size};
use super::{Failure, Status, name_argument, print, print_json};
use crate::control::api::BalloonRequest;
use crate::control::client::ControlClient;
use crate::control::report::{BalloonReport, GuestStatistics, Hinting};
use crate::spec::MAX_STATS_SECONDS;

/// Show a VM's balloon, ask the guest for statistics or for its free pages
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ballast balloon a                 the balloon and the statistics that came last
  ballast balloon a stats           ask the guest for statistics, and wait for them
  ballast balloon a interval 5      ask it every 5 seconds from now on; 0: no more
  ballast balloon a hint            have it give its free pages to the host once
  ballast balloon a stop-hinting    it may use again what it has hinted

The VM has to be started with --balloon; hinting with --balloon hinting. How much is
in the balloon follows from `ballast resize`.")]
pub(super) struct Balloon {
    /// Name of the VM
    name: String,

    #[command(subcommand)]
    order: Option<Order>,

    /// Print one JSON object; all sizes are bytes
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Order {
    /// Ask the guest for statistics and wait for them
    Stats,
    /// Ask for statistics so often; 0: no more
    Interval {
        /// Seconds from one question to the next
        #[arg(value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_STATS_SECONDS)))]
        seconds: u32,
    },
    /// Ask the guest which pages are free, and give them to the host
    Hint,
    /// End that
    StopHinting,
}

impl Balloon {
    pub(super) fn run(&self) -> Result<Status, Failure> {
        let client = ControlClient::open(&name_argument(&self.name)?)?;
        let report = client.balloon(match self.order {
            None => BalloonRequest::Show,
            Some(Order::Stats) => BalloonRequest::Statistics,
            Some(Order::Interval { seconds }) => BalloonRequest::StatisticsInterval { seconds },
            Some(Order::Hint) => BalloonRequest::StartHinting,
            Some(Order::StopHinting) => BalloonRequest::StopHinting,
        })?;
        if self.json {
            print_json(&report)?;
        } else {
            print(&in_table(&self.name, &report))?;
        }
        Ok(Status::Done)
    }
}

/// One line for each value, related ones together.
fn in_table(name: &str, report: &BalloonReport) -> String {
    let mut table = Table::new(&["name", name]);
    for (name, value) in lines(report) {
        table.row(vec![name.to_owned(), value]);
    }
    table.render()
}

/// The lines of a balloon, for this command and for `ballast stats`.
pub(super) fn lines(report: &BalloonReport) -> Vec<(&'static str, String)> {
    let ready = if report.driver_ready { "ready" } else { "not ready" };
    let features: Vec<&str> = [
        (report.deflate_on_oom, "deflate on OOM"),
        (report.reporting, "reporting"),
        (report.free_page_hinting, "hinting"),
    ]
    .into_iter()
    .filter_map(|(on, name)| on.then_some(name))
    .collect();
    let poison = report
        .poison
        .map_or(String::new(), |poison| format!(", free pages hold {poison:#x}"));
    let mut lines = vec![
        (
            "balloon",
            format!(
                "{} of {} wanted ({} says the guest), floor {}",
                size(report.held_bytes),
                size(report.target_bytes),
                size(report.actual_bytes),
                size(report.floor)
            ),
        ),
        (
            "balloon driver",
            [&[ready], &features[..]].concat().join(", ") + &poison,
        ),
    ];
    lines.extend(traffic_lines(report));
    if let Some(statistics) = &report.statistics {
        lines.extend(statistics_lines(statistics));
    }
    lines
}

/// What went through it.
fn traffic_lines(report: &BalloonReport) -> Vec<(&'static str, String)> {
    let state = match report.hinting {
        Hinting::Idle => "idle",
        Hinting::Asked => "asked",
        Hinting::Running => "running",
    };
    vec![
        (
            "inflated",
            format!(
                "{}, deflated {}, of that unasked {}",
                size(report.inflated_bytes),
                size(report.deflated_bytes),
                size(report.deflated_unasked_bytes)
            ),
        ),
        (
            "reported free",
            format!(
                "{}, poisoned {}",
                size(report.reported_bytes),
                size(report.reported_poisoned_bytes)
            ),
        ),
        (
            "hinted free",
            format!(
                "{}, too late {}; {state} after {} rounds",
                size(report.hinted_bytes),
                size(report.hinted_stale_bytes),
                report.hinting_rounds
            ),
        ),
        (
            "given back",
            format!(
                "{}, shown free {}, failures {}",
                size(report.discarded_bytes),
                size(report.shown_free_bytes),
                report.discard_failures
            ),
        ),
        (
            "statistics every",
            match report.statistics_interval_seconds {
                0 => "not by itself".to_owned(),
                seconds => format!("{seconds} s"),
            },
        ),
    ]
}

fn statistics_lines(statistics: &GuestStatistics) -> Vec<(&'static str, String)> {
    let milliseconds = statistics.age_milliseconds;
    let mut lines = vec![("guest statistics", format!("{milliseconds} ms old"))];
    let sizes = [
        ("  total", statistics.total_bytes),
        ("  free", statistics.free_bytes),
        ("  available", statistics.available_bytes),
        ("  disk caches", statistics.disk_cache_bytes),
        ("  swapped in", statistics.swap_in_bytes),
        ("  swapped out", statistics.swap_out_bytes),
        ("  async scanned", statistics.async_scanned_bytes),
        ("  direct scanned", statistics.direct_scanned_bytes),
        ("  async reclaimed", statistics.async_reclaimed_bytes),
        ("  direct reclaimed", statistics.direct_reclaimed_bytes),
    ];
    let numbers = [
        ("  major faults", statistics.major_faults),
        ("  minor faults", statistics.minor_faults),
        ("  huge pages allocated", statistics.hugetlb_allocations),
        ("  huge pages failed", statistics.hugetlb_failures),
        ("  OOM kills", statistics.oom_kills),
        ("  allocation stalls", statistics.alloc_stalls),
    ];
    let sizes = sizes.into_iter().map(|(name, value)| (name, value.map(size)));
    let numbers = numbers
        .into_iter()
        .map(|(name, value)| (name, value.map(|value| value.to_string())));
    lines.extend(
        sizes
            .chain(numbers)
            .filter_map(|(name, value)| Some((name, value?))),
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_balloon_is_shown() {
        // Each field gets a value of its own, which then has to be somewhere in the table.
        let number = |number: u64| Some(number);
        let mib = |mib: u64| Some(mib << 20);
        let report = BalloonReport {
            target_bytes: 1 << 20,
            held_bytes: 2 << 20,
            actual_bytes: 3 << 20,
            floor: 4 << 20,
            driver_ready: true,
            deflate_on_oom: true,
            reporting: true,
            free_page_hinting: true,
            poison: Some(0xaa),
            hinting: Hinting::Running,
            hinting_rounds: 1001,
            inflated_bytes: 5 << 20,
            deflated_bytes: 6 << 20,
            deflated_unasked_bytes: 7 << 20,
            reported_bytes: 8 << 20,
            reported_poisoned_bytes: 9 << 20,
            hinted_bytes: 10 << 20,
            hinted_stale_bytes: 11 << 20,
            discarded_bytes: 12 << 20,
            shown_free_bytes: 13 << 20,
            discard_failures: 1002,
            statistics_interval_seconds: 1003,
            statistics: Some(GuestStatistics {
                age_milliseconds: 1004,
                swap_in_bytes: mib(14),
                swap_out_bytes: mib(15),
                major_faults: number(1005),
                minor_faults: number(1006),
                free_bytes: mib(16),
                total_bytes: mib(17),
                available_bytes: mib(18),
                disk_cache_bytes: mib(19),
                hugetlb_allocations: number(1007),
                hugetlb_failures: number(1008),
                oom_kills: number(1009),
                alloc_stalls: number(1010),
                async_scanned_bytes: mib(20),
                direct_scanned_bytes: mib(21),
                async_reclaimed_bytes: mib(22),
                direct_reclaimed_bytes: mib(23),
            }),
        };
        let table = in_table("vm-of-the-test", &report);
        let sizes = (1..=23).map(|mib| format!("{mib} MiB"));
        let numbers = (1001..=1010).map(|number| number.to_string());
        let words = [
            "vm-of-the-test",
            "ready",
            "deflate on OOM, reporting, hinting",
            "0xaa",
            "running",
        ];
        for value in sizes.chain(numbers).chain(words.map(String::from)) {
            assert!(table.contains(&value), "{value} is missing:\n{table}");
        }
    }
}
