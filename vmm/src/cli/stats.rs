//! `ballast stats`: everything that a VM says of itself.

use clap::Args;

use super::ps::state;
use super::table::{Table, size, span};
use super::{Failure, Status, name_argument, print, print_json};
use crate::control::client::ControlClient;
use crate::control::rate::{RateLimiter, TokenBucket};
use crate::control::report::{DiskReport, NetReport, NodeReport, RegionReport, VmStatus, VsockReport};

/// Show the state and the counters of a VM
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ballast stats a
  ballast stats a --json | jq .plugged_size")]
pub(super) struct Stats {
    /// Name of the VM
    name: String,

    /// Print one JSON object; all sizes are bytes
    #[arg(long)]
    json: bool,
}

impl Stats {
    pub(super) fn run(&self) -> Result<Status, Failure> {
        let status = ControlClient::open(&name_argument(&self.name)?)?.status()?;
        if self.json {
            print_json(&status)?;
        } else {
            print(&in_table(&status))?;
        }
        Ok(Status::Done)
    }
}

/// One line for each value, related ones together.
fn in_table(status: &VmStatus) -> String {
    let violation = status
        .last_violation_gpa
        .map_or(String::new(), |gpa| format!(" (last at gpa {gpa:#x})"));
    let lines = [
        ("process", status.pid.to_string()),
        ("state", state(status.state).to_owned()),
        ("uptime", span(status.uptime_seconds)),
        ("reboots", status.reboots.to_string()),
        (
            "memory",
            format!(
                "{} of {} requested",
                size(status.guest_bytes),
                size(status.total_requested)
            ),
        ),
        ("boot memory", size(status.boot_memory)),
        ("boot and plugged", size(status.total_plugged)),
        (
            "hot-plug region",
            format!("{} in {}", size(status.region_size), blocks_of(status)),
        ),
        ("usable region", size(status.usable_region_size)),
        ("requested", size(status.requested_size)),
        ("plugged", size(status.plugged_size)),
        (
            "guest driver",
            if status.driver_ready { "ready" } else { "not ready" }.to_owned(),
        ),
        ("plug requests", status.plug_requests.to_string()),
        ("unplug requests", status.unplug_requests.to_string()),
        (
            "refused",
            format!(
                "{} NACK, {} BUSY, {} ERROR",
                status.nacks, status.busy, status.errors
            ),
        ),
        ("violations", format!("{}{violation}", status.violations)),
        ("guest faults", status.guest_faults.to_string()),
        ("discarded", discarded(status)),
        ("resident", size(status.host_resident_bytes)),
        ("VMM overhead", size(status.vmm_overhead_bytes)),
    ];
    let mut table = Table::new(&["name", &status.name]);
    for (name, value) in lines {
        table.row(vec![name.to_owned(), value]);
    }
    add_nodes_and_devices(&mut table, status);
    if let Some(message) = &status.panic_message {
        table.row(vec![
            "guest panicked".to_owned(),
            super::failure::one_line(message),
        ]);
    }
    table.render()
}

/// A line for each node and each device that the VM has.
fn add_nodes_and_devices(table: &mut Table, status: &VmStatus) {
    for (number, region) in status.regions.iter().enumerate() {
        table.row(vec![format!("region {number}"), region_in_line(region)]);
    }
    for (number, node) in status.nodes.iter().enumerate() {
        table.row(vec![format!("node {number}"), in_line(node)]);
    }
    for (name, value) in status.balloon.iter().flat_map(super::balloon::lines) {
        table.row(vec![name.to_owned(), value]);
    }
    for disk in &status.disks {
        table.row(vec![format!("disk {}", disk.path), disk_in_line(disk)]);
    }
    for net in &status.net {
        table.row(vec![format!("network {}", net.tap), in_line_network(net)]);
    }
    if let Some(vsock) = &status.vsock {
        table.row(vec!["sockets".to_owned(), in_line_sockets(vsock)]);
    }
    if let Some(bytes) = status.entropy_bytes {
        table.row(vec!["entropy".to_owned(), format!("{bytes} bytes")]);
    }
}

/// What was given back, and what the host said to that.
fn discarded(status: &VmStatus) -> String {
    let (claimed, shown) = (size(status.discarded_bytes), size(status.shown_free_bytes));
    format!("{claimed}, the host showed {shown} free")
}

/// A region in one line, with what is told of it nowhere else.
fn region_in_line(region: &RegionReport) -> String {
    let node = region.node.map_or(String::new(), |node| format!(", node {node}"));
    let populate = if region.populate { ", populated" } else { "" };
    let driver = if region.driver_ready {
        ""
    } else {
        ", driver not ready"
    };
    let busy = match (region.pinned_blocks, region.busy_pinned, region.busy_memory) {
        (0, 0, 0) => String::new(),
        (pinned, io, memory) => format!(", {pinned} blocks in I/O, BUSY for I/O {io}, for memory {memory}"),
    };
    format!(
        "{} of {} requested, {} at {:#x} in blocks of {}, {}{populate}{node}{driver}{busy}",
        size(region.plugged_size),
        size(region.requested_size),
        size(region.region_size),
        region.start,
        size(region.block_size),
        region.backing
    )
}

/// A node in one line.
fn in_line(node: &NodeReport) -> String {
    let list = |numbers: &[u8]| {
        let numbers: Vec<String> = numbers.iter().map(u8::to_string).collect();
        numbers.join(" ")
    };
    let cpus = match node.cpus[..] {
        [] => "no CPU".to_owned(),
        [cpu] => format!("CPU {cpu}"),
        _ => format!("CPUs {}", list(&node.cpus)),
    };
    let region = if node.has_region { " + hot-plug region" } else { "" };
    format!(
        "{}{region}, {cpus}, distances {}",
        size(node.boot_memory),
        list(&node.distances)
    )
}

/// What the regions' memory comes and goes in.
fn blocks_of(status: &VmStatus) -> String {
    let uniform = status
        .regions
        .iter()
        .all(|region| region.block_size == status.block_size);
    let word = if uniform {
        "blocks of"
    } else {
        "blocks of at least"
    };
    format!("{word} {}", size(status.block_size))
}

/// A network interface in one line.
fn in_line_network(net: &NetReport) -> String {
    let driver = if net.driver_ready {
        ""
    } else {
        ", driver not ready"
    };
    let link = if net.link_up { "up" } else { "down" };
    format!(
        "{}, link {link}{driver}: {} frames ({}) from the guest, {} ({}) to it, {} and {} lost",
        net.mac,
        net.frames_from_guest,
        size(net.bytes_from_guest),
        net.frames_to_guest,
        size(net.bytes_to_guest),
        net.lost_from_guest,
        net.lost_to_guest
    )
}

/// The socket device in one line.
fn in_line_sockets(vsock: &VsockReport) -> String {
    let driver = if vsock.driver_ready {
        ""
    } else {
        ", driver not ready"
    };
    format!(
        "CID {}{driver}: {} streams ({} so far from the guest, {} from the host, {} refused, {} breaches), {} from the guest, {} to it",
        vsock.cid,
        vsock.streams,
        vsock.streams_from_guest,
        vsock.streams_from_host,
        vsock.refused,
        vsock.breaches,
        size(vsock.bytes_from_guest),
        size(vsock.bytes_to_guest)
    )
}

/// A disk in one line.
fn disk_in_line(disk: &DiskReport) -> String {
    let access = if disk.read_only { ", read only" } else { "" };
    let limits = limits_in_words(disk);
    format!(
        "{}{access}, {}: {} reads ({}), {} writes ({}), {} flushes, {} discards, {} cleared; {} refused, {} failed, {} under way{limits}",
        size(disk.capacity_bytes),
        disk.engine,
        disk.reads,
        size(disk.read_bytes),
        disk.writes,
        size(disk.written_bytes),
        disk.flushes,
        disk.discards,
        disk.write_zeroes,
        disk.refused,
        disk.failed,
        disk.in_flight
    )
}

/// What limits a disk, if anything does.
fn limits_in_words(disk: &DiskReport) -> String {
    let RateLimiter { bandwidth, ops } = disk.rate_limiter;
    if bandwidth.is_none() && ops.is_none() && disk.throttled == 0 {
        return String::new();
    }
    let every = |bucket: TokenBucket| match bucket.refill_time {
        1000 => "s".to_owned(),
        milliseconds => format!("{milliseconds} ms"),
    };
    let burst = |bucket: TokenBucket| bucket.one_time_burst.filter(|burst| *burst > 0);
    let ops = ops.map(|ops| {
        let more = burst(ops).map_or(String::new(), |burst| format!(" (and {burst} once)"));
        format!("{} requests/{}{more}", ops.size, every(ops))
    });
    let bandwidth = bandwidth.map(|bytes| {
        let more = burst(bytes).map_or(String::new(), |burst| format!(" (and {} once)", size(burst)));
        format!("{}/{}{more}", size(bytes.size), every(bytes))
    });
    let limits: Vec<String> = ops.into_iter().chain(bandwidth).collect();
    let limits = if limits.is_empty() {
        "none now".to_owned()
    } else {
        limits.join(", ")
    };
    format!("; limited to {limits}: {} had to wait", disk.throttled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::report::BalloonReport;

    fn vsock() -> VsockReport {
        VsockReport {
            driver_ready: true,
            cid: 1009,
            streams: 1010,
            streams_from_guest: 1011,
            streams_from_host: 1012,
            refused: 1013,
            breaches: 1014,
            bytes_from_guest: 16 << 20,
            bytes_to_guest: 17 << 20,
        }
    }

    fn bucket(size: u64, burst: u64, refill_time: u64) -> Option<TokenBucket> {
        let one_time_burst = Some(burst);
        Some(TokenBucket {
            size,
            one_time_burst,
            refill_time,
        })
    }

    fn disk() -> DiskReport {
        DiskReport {
            path: "/d.img".into(),
            engine: "io-uring".into(),
            read_only: true,
            capacity_bytes: 20 << 20,
            reads: 2001,
            read_bytes: 18 << 20,
            writes: 2002,
            written_bytes: 19 << 20,
            flushes: 2003,
            discards: 2004,
            write_zeroes: 2005,
            refused: 2006,
            failed: 2007,
            in_flight: 2008,
            throttled: 2009,
            rate_limiter: RateLimiter {
                bandwidth: bucket(31 << 20, 32 << 20, 1000),
                ops: bucket(2010, 2011, 2012),
            },
        }
    }

    fn nodes() -> Vec<NodeReport> {
        vec![
            NodeReport {
                boot_memory: 14 << 20,
                cpus: vec![0, 2],
                distances: vec![10, 77],
                has_region: false,
            },
            NodeReport {
                boot_memory: 15 << 20,
                cpus: vec![1],
                distances: vec![77, 10],
                has_region: true,
            },
        ]
    }

    fn a_network() -> NetReport {
        NetReport {
            tap: "tap77".into(),
            mac: "02:00:00:00:00:77".into(),
            driver_ready: true,
            link_up: true,
            frames_from_guest: 3001,
            bytes_from_guest: 21 << 20,
            frames_to_guest: 3002,
            bytes_to_guest: 22 << 20,
            lost_from_guest: 3003,
            lost_to_guest: 3004,
        }
    }

    #[test]
    fn what_is_told_of_a_region_is_in_its_line() {
        let region = RegionReport {
            start: 0xdef000,
            region_size: 16 << 20,
            block_size: 17 << 20,
            requested_size: 18 << 20,
            plugged_size: 19 << 20,
            node: Some(9),
            backing: "memfd".into(),
            populate: true,
            pinned_blocks: 5,
            busy_pinned: 6,
            busy_memory: 7,
            ..RegionReport::default()
        };
        assert_eq!(
            region_in_line(&region),
            "19 MiB of 18 MiB requested, 16 MiB at 0xdef000 in blocks of 17 MiB, memfd, populated, node 9, driver not \
             ready, 5 blocks in I/O, BUSY for I/O 6, for memory 7"
        );
    }

    /// Each field has a value of its own.
    fn sample() -> VmStatus {
        VmStatus {
            name: "vm-of-the-test".into(),
            pid: 1001,
            state: crate::control::report::VmState::Paused,
            uptime_seconds: 2,
            reboots: 901,
            boot_memory: 3 << 20,
            nodes: nodes(),
            regions: Vec::new(),
            region_size: 4 << 20,
            block_size: 5 << 20,
            usable_region_size: 6 << 20,
            requested_size: 7 << 20,
            plugged_size: 8 << 20,
            total_requested: 9 << 20,
            total_plugged: 10 << 20,
            driver_ready: true,
            violations: 1002,
            last_violation_gpa: Some(0xabc000),
            guest_faults: 1003,
            plug_requests: 1004,
            unplug_requests: 1005,
            nacks: 1006,
            busy: 1007,
            errors: 1008,
            discarded_bytes: 11 << 20,
            shown_free_bytes: 30 << 20,
            host_resident_bytes: 12 << 20,
            vmm_overhead_bytes: 13 << 20,
            panic_message: Some("out of\nluck".into()),
            net: vec![a_network()],
            vsock: Some(vsock()),
            disks: vec![disk()],
            entropy_bytes: Some(1015),
            guest_bytes: 16 << 20,
            balloon: Some(BalloonReport {
                held_bytes: 17 << 20,
                ..BalloonReport::default()
            }),
        }
    }

    #[test]
    fn every_field_of_a_status_is_shown() {
        let table = in_table(&sample());
        let sizes = (3..=17).chain([30]).map(|mib| format!("{mib} MiB"));
        let numbers = (1001..=1015).map(|number| number.to_string());
        let words = [
            "vm-of-the-test",
            "901",
            "paused",
            "2s",
            "ready",
            "tap77",
            "02:00:00:00:00:77, link up: 3001 frames (21 MiB) from the guest, 3002 (22 MiB) to it, 3003 and 3004 lost",
            "0xabc000",
            "out of luck",
            "disk /d.img",
            "20 MiB, read only, io-uring: 2001 reads (18 MiB), 2002 writes (19 MiB), 2003 flushes, 2004 discards, \
             2005 cleared; 2006 refused, 2007 failed, 2008 under way; limited to \
             2010 requests/2012 ms (and 2011 once), 31 MiB/s (and 32 MiB once): 2009 had to wait",
            "14 MiB, CPUs 0 2, distances 10 77",
            "15 MiB + hot-plug region, CPU 1, distances 77 10",
            "16 MiB of 9 MiB requested",
            "17 MiB of",
        ]
        .map(String::from);
        for value in sizes.chain(numbers).chain(words) {
            assert!(table.contains(&value), "{value} is missing:\n{table}");
        }
    }
}
