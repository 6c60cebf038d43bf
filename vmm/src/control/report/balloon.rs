//! What a VM says of its balloon, and what its guest says of its own memory.

use serde::{Deserialize, Serialize};

/// The balloon and what went through it. Sizes are bytes, sums are since the VM was built.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonReport {
    /// What is wanted in it.
    pub target_bytes: u64,
    /// What is in it, counted page by page.
    pub held_bytes: u64,
    /// What the guest's driver says is in it.
    pub actual_bytes: u64,
    /// What the guest keeps in any case.
    pub floor: u64,
    /// Whether the guest's driver has set DRIVER_OK.
    pub driver_ready: bool,
    /// Whether the guest may deflate rather than run out of memory.
    pub deflate_on_oom: bool,
    /// Whether the guest reports free pages.
    pub reporting: bool,
    /// Whether the guest can be asked for free pages.
    pub free_page_hinting: bool,
    /// What the guest fills free pages with, if it is not zero.
    pub poison: Option<u32>,
    /// How hinting stands.
    pub hinting: Hinting,
    /// Rounds of hinting that the guest has finished.
    pub hinting_rounds: u64,
    /// What has gone into it.
    pub inflated_bytes: u64,
    /// What has left it.
    pub deflated_bytes: u64,
    /// As much of that as the guest took unasked.
    pub deflated_unasked_bytes: u64,
    /// What the guest reported as free.
    pub reported_bytes: u64,
    /// As much of that as was left alone because it holds the guest's poison.
    pub reported_poisoned_bytes: u64,
    /// What the guest hinted as free when it was asked.
    pub hinted_bytes: u64,
    /// What it hinted when it was not.
    pub hinted_stale_bytes: u64,
    /// What was given back to the host, by whichever way.
    pub discarded_bytes: u64,
    /// As much of that as the host, asked right after, showed free.
    pub shown_free_bytes: u64,
    /// Ranges that the host did not take back.
    pub discard_failures: u64,
    /// Seconds from one question for statistics to the next; 0: only when somebody asks.
    pub statistics_interval_seconds: u32,
    /// What the guest last said of its memory.
    pub statistics: Option<GuestStatistics>,
}

/// How free page hinting stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hinting {
    /// Nothing is wanted.
    #[default]
    Idle,
    /// The guest has been asked.
    Asked,
    /// The guest is hinting.
    Running,
}

/// What the guest says of its own memory. What it does not say is absent; counters are since it booted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatistics {
    /// Milliseconds since it said so.
    pub age_milliseconds: u64,
    /// Swapped in.
    pub swap_in_bytes: Option<u64>,
    /// Swapped out.
    pub swap_out_bytes: Option<u64>,
    /// Major page faults.
    pub major_faults: Option<u64>,
    /// Minor page faults; Linux counts all.
    pub minor_faults: Option<u64>,
    /// Not used for anything.
    pub free_bytes: Option<u64>,
    /// All there is.
    pub total_bytes: Option<u64>,
    /// What new programs could have without swapping.
    pub available_bytes: Option<u64>,
    /// Cached file pages.
    pub disk_cache_bytes: Option<u64>,
    /// Huge pages allocated from the reserved pool.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be.
    pub hugetlb_failures: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Allocations that had to wait for reclaim.
    pub alloc_stalls: Option<u64>,
    /// Looked at by background reclaim.
    pub async_scanned_bytes: Option<u64>,
    /// Looked at by reclaim for an allocation.
    pub direct_scanned_bytes: Option<u64>,
    /// Taken by background reclaim.
    pub async_reclaimed_bytes: Option<u64>,
    /// Taken by reclaim for an allocation.
    pub direct_reclaimed_bytes: Option<u64>,
}
