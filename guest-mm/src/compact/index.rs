//! How fragmented a zone is, in Linux' measures (`mm/vmstat.c`, `mm/compaction.c`).

use crate::node::NodeId;
use crate::pfn::{NR_PAGE_ORDERS, Order};
use crate::phys::PhysicalMemory;
use crate::zone::{Zone, ZoneKind};

/// Above this a failed request is put down to fragmentation (Linux `sysctl_extfrag_threshold`).
pub(crate) const EXTFRAG_THRESHOLD: i32 = 500;

impl PhysicalMemory<'_> {
    /// Why a request of that order would fail in a zone: towards 0 for lack of memory, towards 1000 because of fragmentation, and
    /// -1000 when it would not fail (Linux `fragmentation_index`). Looks at every pageblock.
    pub fn fragmentation_index(&self, zone: &Zone, order: Order) -> i32 {
        index_of(&zone.areas.lock().count_chunks(), order)
    }

    /// How much of a zone's free memory, in percent, is in chunks smaller than a huge page (Linux `extfrag_for_order`). Looks at every section.
    pub fn external_fragmentation(&self, zone: &Zone) -> u32 {
        let areas = zone.areas.lock();
        let (free, whole) = (areas.free_pages(), areas.whole_pages());
        percent(free.saturating_sub(whole), free)
    }

    /// The same for a node, each zone by its share of the node's memory (Linux `fragmentation_score_node`): 0 to 100.
    pub fn fragmentation_score(&self, node: NodeId) -> u32 {
        let zones = || ZoneKind::ALL.into_iter().map(|kind| self.zone(node, kind));
        let present: u64 = zones().map(|zone| zone.counters().present_pages).sum();
        let score = |zone: &Zone| {
            let share = zone.counters().present_pages * u64::from(self.external_fragmentation(zone));
            share / (present + 1)
        };
        u32::try_from(zones().map(score).sum::<u64>()).unwrap_or(u32::MAX)
    }
}

fn percent(part: u64, whole: u64) -> u32 {
    let percent = (part * 100).checked_div(whole).unwrap_or(0);
    u32::try_from(percent).unwrap_or(u32::MAX)
}

/// The index for a zone with so many free chunks of each order.
fn index_of(chunks: &[u64; NR_PAGE_ORDERS], order: Order) -> i32 {
    if chunks[order.index()..].iter().any(|&count| count > 0) {
        return -1000;
    }
    let blocks: u64 = chunks.iter().sum();
    if blocks == 0 {
        return 0;
    }
    let sizes = Order::all().map(|order| u64::from(order.nr_pages()));
    let free: u64 = chunks.iter().zip(sizes).map(|(count, size)| count * size).sum();
    let part = (1000 + free * 1000 / u64::from(order.nr_pages())) / blocks;
    1000 - i32::try_from(part).unwrap_or(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_tells_little_memory_from_scattered_memory() {
        let mut chunks = [0; NR_PAGE_ORDERS];
        assert_eq!(index_of(&chunks, Order::PAGEBLOCK), 0, "nothing is free");
        chunks[0] = 1;
        // 1000 - (1000 + 1000 / 512) / 1
        assert_eq!(index_of(&chunks, Order::PAGEBLOCK), -1);
        chunks[0] = 4096;
        // 1000 - (1000 + 4096000 / 512) / 4096
        assert_eq!(index_of(&chunks, Order::PAGEBLOCK), 998);
        chunks[10] = 1;
        assert_eq!(index_of(&chunks, Order::PAGEBLOCK), -1000, "one would do");
    }
}
