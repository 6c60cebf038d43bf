//! What a VM says of itself, as it goes over the control socket. Flat but for its nodes; all sizes are bytes.

mod balloon;
mod disk;
mod refusal;

pub use balloon::{BalloonReport, GuestStatistics, Hinting};
pub use disk::DiskReport;
pub use refusal::{GuestRefusal, StuckBlocks};
use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of one VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name.
    pub name: String,
    /// The process it lives in.
    pub pid: u32,
    /// What it is doing.
    pub state: VmState,
    /// Seconds since it was built.
    pub uptime_seconds: u64,
    /// How often the guest has rebooted since.
    #[serde(default)]
    pub reboots: u64,
    /// Memory it booted with.
    pub boot_memory: u64,
    /// Its NUMA nodes, by number; empty if the guest was told of none.
    #[serde(default)]
    pub nodes: Vec<NodeReport>,
    /// Its hot-plug regions, in the order of their addresses. What follows, down to `shown_free_bytes`, are their sums where
    /// nothing else is said.
    #[serde(default)]
    pub regions: Vec<RegionReport>,
    /// Size of the hot-plug regions; 0 without one.
    pub region_size: u64,
    /// Size of the smallest block; 0 without a region.
    pub block_size: u64,
    /// How far into the regions the guest may plug at present.
    pub usable_region_size: u64,
    /// How much of the regions the guest is asked to take.
    pub requested_size: u64,
    /// How much of them the guest has taken.
    pub plugged_size: u64,
    /// What the guest is to have: `boot_memory + requested_size`, less what is wanted in its balloon.
    pub total_requested: u64,
    /// `boot_memory + plugged_size`.
    pub total_plugged: u64,
    /// Whether the guest's virtio-mem driver has set DRIVER_OK, for every region; false without one.
    pub driver_ready: bool,
    /// Accesses to unplugged blocks so far.
    pub violations: u64,
    /// Address of the last of them.
    pub last_violation_gpa: Option<u64>,
    /// What the guest did wrong towards devices, so far.
    pub guest_faults: u64,
    /// PLUG requests answered.
    pub plug_requests: u64,
    /// UNPLUG and UNPLUG_ALL requests answered.
    pub unplug_requests: u64,
    /// NACK answers.
    pub nacks: u64,
    /// BUSY answers.
    pub busy: u64,
    /// ERROR answers.
    pub errors: u64,
    /// Bytes of unplugged blocks so far, which the host was told to take back.
    pub discarded_bytes: u64,
    /// As much of them as the host, asked right afterwards, showed free. The same, unless a discard freed less than it
    /// said.
    #[serde(default)]
    pub shown_free_bytes: u64,
    /// Its disks, in the guest's order.
    #[serde(default)]
    pub disks: Vec<DiskReport>,
    /// Bytes that its entropy device has handed out; absent without one.
    #[serde(default)]
    pub entropy_bytes: Option<u64>,
    /// Guest memory resident on the host.
    pub host_resident_bytes: u64,
    /// Resident memory of the VMM beyond the guest's.
    pub vmm_overhead_bytes: u64,
    /// What the guest said when it panicked.
    pub panic_message: Option<String>,
    /// What the guest has: `total_plugged` without what is in its balloon.
    #[serde(default)]
    pub guest_bytes: u64,
    /// Its balloon, if it has one.
    #[serde(default)]
    pub balloon: Option<BalloonReport>,
    /// Network interfaces, in order.
    #[serde(default)]
    pub net: Vec<NetReport>,
    /// The socket device, if there is one.
    #[serde(default)]
    pub vsock: Option<VsockReport>,
}

/// A network interface of a VM. Counters run from the start of the VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetReport {
    /// The tap at the host.
    pub tap: String,
    /// The guest's address, as `02:00:00:12:34:56`.
    pub mac: String,
    /// Whether the guest's driver has set DRIVER_OK.
    pub driver_ready: bool,
    /// Whether frames go through.
    pub link_up: bool,
    /// Frames from the guest that the host has taken.
    pub frames_from_guest: u64,
    /// Their bytes.
    pub bytes_from_guest: u64,
    /// Frames that the guest has been given.
    pub frames_to_guest: u64,
    /// Their bytes.
    pub bytes_to_guest: u64,
    /// Frames from the guest that the host has not taken, or that asked for what was not agreed on.
    pub lost_from_guest: u64,
    /// Frames for the guest that were larger than its buffers.
    pub lost_to_guest: u64,
}

/// The socket device of a VM. Counters run from the start of the VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockReport {
    /// Whether the guest's driver has set DRIVER_OK.
    pub driver_ready: bool,
    /// The guest's context id.
    pub cid: u64,
    /// Streams now.
    pub streams: u64,
    /// Streams that the guest asked for and got.
    pub streams_from_guest: u64,
    /// Streams that programs of the host asked for.
    pub streams_from_host: u64,
    /// Streams that the guest asked for and did not get.
    pub refused: u64,
    /// Packets of the guest that broke the rules of streams.
    pub breaches: u64,
    /// Payload from the guest.
    pub bytes_from_guest: u64,
    /// Payload to the guest.
    pub bytes_to_guest: u64,
}

/// One hot-plug region and its memory device. What is counted is counted since the VM was built.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegionReport {
    /// Guest-physical address.
    pub start: u64,
    /// Size of the region.
    pub region_size: u64,
    /// Size of a block.
    pub block_size: u64,
    /// How far into the region the guest may plug at present.
    pub usable_region_size: u64,
    /// How much of it the guest is asked to take.
    pub requested_size: u64,
    /// How much of it the guest has taken.
    pub plugged_size: u64,
    /// The node it belongs to; absent if the guest was told of none.
    pub node: Option<u8>,
    /// What it is made of: `anonymous`, `memfd`, `hugetlbfs:2M` or `hugetlbfs:1G`.
    pub backing: String,
    /// Whether blocks are plugged with all their pages.
    pub populate: bool,
    /// Whether the guest's driver for it has set DRIVER_OK.
    pub driver_ready: bool,
    /// Blocks that device I/O uses now.
    pub pinned_blocks: u64,
    /// PLUG requests answered.
    pub plug_requests: u64,
    /// UNPLUG and UNPLUG_ALL requests answered.
    pub unplug_requests: u64,
    /// NACK answers.
    pub nacks: u64,
    /// BUSY answers.
    pub busy: u64,
    /// Those of them because device I/O used a block.
    pub busy_pinned: u64,
    /// Those of them because the host was short of memory.
    pub busy_memory: u64,
    /// ERROR answers.
    pub errors: u64,
    /// Bytes of unplugged blocks, which the host was told to take back.
    pub discarded_bytes: u64,
    /// As much of them as the host, asked right afterwards, showed free.
    pub shown_free_bytes: u64,
}

impl VmStatus {
    /// Adds a region: to the list, and to the sums.
    pub(crate) fn add(&mut self, region: RegionReport) {
        let first = self.regions.is_empty();
        self.region_size += region.region_size;
        self.block_size = if first {
            region.block_size
        } else {
            self.block_size.min(region.block_size)
        };
        self.usable_region_size += region.usable_region_size;
        self.requested_size += region.requested_size;
        self.plugged_size += region.plugged_size;
        self.total_requested += region.requested_size;
        self.total_plugged += region.plugged_size;
        self.driver_ready = region.driver_ready && (first || self.driver_ready);
        self.plug_requests += region.plug_requests;
        self.unplug_requests += region.unplug_requests;
        self.nacks += region.nacks;
        self.busy += region.busy;
        self.errors += region.errors;
        self.discarded_bytes += region.discarded_bytes;
        self.shown_free_bytes += region.shown_free_bytes;
        self.regions.push(region);
    }
}

/// One NUMA node, as the guest was told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its share of the boot memory.
    pub boot_memory: u64,
    /// Its CPUs.
    pub cpus: Vec<u8>,
    /// How far each node is, itself included, by their numbers.
    pub distances: Vec<u8>,
    /// Whether a hot-plug region is its.
    pub has_region: bool,
}

/// What a VM is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Built, not yet running.
    #[default]
    Starting,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are held.
    Paused,
    /// The guest has reset its machine, which is being booted again.
    Rebooting,
    /// It is ending.
    Exiting,
}

/// Which blocks of a hot-plug region are plugged, as runs of neighbours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockReport {
    /// Guest-physical address of the region.
    pub start: u64,
    /// Size of a block in bytes.
    pub block_size: u64,
    /// How many blocks the region has.
    pub nr_blocks: u64,
    /// Runs of plugged blocks, in address order, never touching one another.
    pub plugged: Vec<BlockRange>,
}

/// A run of neighbouring blocks, by index in the hot-plug region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRange {
    /// Index of the first block.
    pub first: u64,
    /// How many blocks; at least 1.
    pub count: u64,
}

/// What became of a resize.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeReport {
    /// How it ended.
    pub outcome: ResizeState,
    /// The total that was asked for: boot memory and hot-plugged memory, in bytes.
    pub target_bytes: u64,
    /// The total that the guest has now, in bytes.
    pub reached_bytes: u64,
    /// Milliseconds from the request to this report.
    pub elapsed_milliseconds: u64,
    /// Why the guest is not there yet, in one word for programs: `driver-absent`, `balloon-driver-absent`, `no-request`, `refused`, `stalled`,
    /// `time-up`, `held` or `ended`; absent when `reason` is.
    #[serde(default)]
    pub cause: Option<String>,
    /// Why the guest is not there yet, in words; absent when it is, and when nobody waited.
    pub reason: Option<String>,
    /// What the guest itself gives as its reason, in its own words.
    pub guest_reason: Option<String>,
    /// The same as names and numbers, from a guest that says which page of which block stays.
    #[serde(default)]
    pub guest_refusal: Option<GuestRefusal>,
    /// How the blocks left, if some were to leave and the guest says it.
    #[serde(default)]
    pub passes: Option<PassReport>,
}

/// How many blocks the guest emptied in how many passes over their pages, since it was asked for a size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassReport {
    /// In one, or with nothing on them.
    pub first: u64,
    /// In two: pages that somebody was using were awaited.
    pub second: u64,
    /// In more.
    pub later: u64,
}

impl PassReport {
    /// What the guest counts, unless that is nothing.
    pub(crate) fn of(vmstat: &str) -> Option<Self> {
        let count = |name: &str| {
            let mut lines = vmstat.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value?.trim().parse().ok()
        };
        let passes = Self {
            first: count("resize_left_pass1")?,
            second: count("resize_left_pass2")?,
            later: count("resize_left_later")?,
        };
        (passes != Self::default()).then_some(passes)
    }
}

impl fmt::Display for PassReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, second, later } = self;
        write!(
            f,
            "blocks left: {first} in pass 1, {second} in pass 2, {later} later"
        )
    }
}

/// How a resize ended, from the point of view of the one who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResizeState {
    /// The guest has been asked; nobody waited for it.
    Requested,
    /// The guest has exactly what was asked for.
    Reached,
    /// The guest has not got there in the time given.
    Incomplete,
    /// It has not got there, and was asked to keep what it has.
    #[serde(rename = "given-up")]
    GivenUp,
    /// Somebody else asked for another size meanwhile.
    Superseded,
}

impl BlockReport {
    /// Makes the report from one flag a block, in address order.
    #[must_use]
    pub fn from_flags(start: u64, block_size: u64, flags: &[bool]) -> Self {
        let mut plugged: Vec<BlockRange> = Vec::new();
        for (index, _) in (0_u64..).zip(flags).filter(|(_, flag)| **flag) {
            match plugged.last_mut() {
                Some(last) if last.first + last.count == index => last.count += 1,
                _ => plugged.push(BlockRange {
                    first: index,
                    count: 1,
                }),
            }
        }
        Self {
            start,
            block_size,
            nr_blocks: flags.len() as u64,
            plugged,
        }
    }

    /// Whether a block is plugged; `false` beyond the region.
    #[must_use]
    pub fn is_plugged(&self, block: u64) -> bool {
        let after = self.plugged.partition_point(|range| range.first <= block);
        after > 0 && block - self.plugged[after - 1].first < self.plugged[after - 1].count
    }

    /// How many blocks are plugged.
    #[must_use]
    pub fn plugged_blocks(&self) -> u64 {
        self.plugged.iter().map(|range| range.count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_report_says_of_each_block_what_its_flag_said() {
        for pattern in 0_u32..1 << 10 {
            let flags: Vec<bool> = (0..10).map(|bit| pattern >> bit & 1 == 1).collect();
            let report = BlockReport::from_flags(4 << 30, 2 << 20, &flags);
            let back: Vec<bool> = (0..report.nr_blocks)
                .map(|block| report.is_plugged(block))
                .collect();
            assert_eq!(back, flags);
            assert_eq!(report.plugged_blocks(), u64::from(pattern.count_ones()));
            assert!(!report.is_plugged(10));
            assert!(
                report
                    .plugged
                    .windows(2)
                    .all(|pair| pair[0].first + pair[0].count < pair[1].first)
            );
        }
    }

    #[test]
    fn a_status_survives_the_way_over_the_socket() {
        let status = VmStatus {
            name: "a".into(),
            state: VmState::Paused,
            last_violation_gpa: Some(u64::MAX),
            panic_message: Some("line\n\"quoted\"".into()),
            ..VmStatus::default()
        };
        let text = serde_json::to_string(&status).expect("a status is plain data");
        assert_eq!(
            serde_json::from_str::<VmStatus>(&text).expect("it was just written"),
            status
        );
        assert!(text.contains(r#""state":"paused""#), "{text}");
    }
}
