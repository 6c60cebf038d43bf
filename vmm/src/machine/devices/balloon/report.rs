//! What the balloon has to say, from the device's counters.

use devices::balloon::Statistics;
use virtio_wire::balloon::{PAGE_SIZE, StatTag, feature};

use super::Transport;
use crate::control::report::{BalloonReport, GuestStatistics};

/// The device's part of the report.
pub(super) fn of_device(transport: &Transport) -> BalloonReport {
    let device = transport.device();
    let counters = device.counters();
    let negotiated = transport.negotiated_features();
    BalloonReport {
        target_bytes: u64::from(device.target()) * PAGE_SIZE,
        held_bytes: device.pages() * PAGE_SIZE,
        actual_bytes: u64::from(device.config().actual) * PAGE_SIZE,
        driver_ready: transport.is_live(),
        deflate_on_oom: negotiated & feature::DEFLATE_ON_OOM != 0,
        reporting: negotiated & feature::PAGE_REPORTING != 0,
        free_page_hinting: negotiated & feature::FREE_PAGE_HINT != 0,
        poison: device.poison().filter(|poison| *poison != 0),
        hinting: device.hinting().into(),
        hinting_rounds: counters.hinting_rounds,
        inflated_bytes: counters.inflated,
        deflated_bytes: counters.deflated,
        deflated_unasked_bytes: counters.deflated_unasked,
        reported_bytes: counters.reported,
        reported_poisoned_bytes: counters.reported_poisoned,
        hinted_bytes: counters.hinted,
        hinted_stale_bytes: counters.hinted_stale,
        discarded_bytes: counters.discarded,
        discard_failures: counters.discard_failures,
        statistics: device.statistics().map(of_statistics),
        ..BalloonReport::default()
    }
}

fn of_statistics(statistics: &Statistics) -> GuestStatistics {
    GuestStatistics {
        age_milliseconds: 0,
        swap_in_bytes: statistics.value(StatTag::SwapIn),
        swap_out_bytes: statistics.value(StatTag::SwapOut),
        major_faults: statistics.value(StatTag::MajorFaults),
        minor_faults: statistics.value(StatTag::MinorFaults),
        free_bytes: statistics.value(StatTag::FreeMemory),
        total_bytes: statistics.value(StatTag::TotalMemory),
        available_bytes: statistics.value(StatTag::AvailableMemory),
        disk_cache_bytes: statistics.value(StatTag::DiskCaches),
        hugetlb_allocations: statistics.value(StatTag::HugetlbAllocations),
        hugetlb_failures: statistics.value(StatTag::HugetlbFailures),
        oom_kills: statistics.value(StatTag::OomKills),
        alloc_stalls: statistics.value(StatTag::AllocStalls),
        async_scanned_bytes: statistics.value(StatTag::AsyncScanned),
        direct_scanned_bytes: statistics.value(StatTag::DirectScanned),
        async_reclaimed_bytes: statistics.value(StatTag::AsyncReclaimed),
        direct_reclaimed_bytes: statistics.value(StatTag::DirectReclaimed),
    }
}
