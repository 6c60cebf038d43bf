//! Event counters and gauges, named like Linux' `/proc/vmstat` where Linux has them.

use crate::zone::{NR_ZONES, ZoneKind};

/// What happened since boot, and how much of what there is. Frames count 4 KiB each; events count once.
#[derive(Clone, Debug, Default)]
pub struct VmStat {
    /// Frames taken from each zone.
    pub pgalloc: [u64; NR_ZONES],
    /// Frames given back.
    pub pgfree: u64,
    /// Page faults served.
    pub pgfault: u64,
    /// Faults that mapped a huge page.
    pub thp_fault_alloc: u64,
    /// Faults that wanted a huge page and mapped small ones, for lack of a free pageblock.
    pub thp_fault_fallback: u64,
    /// Huge pages split into small ones.
    pub thp_split_page: u64,
    /// Small frames moved by migration; a huge page counts 512, as in Linux.
    pub pgmigrate_success: u64,
    /// Small frames that migration could not move; a huge page counts 512.
    pub pgmigrate_fail: u64,
    /// Huge pages moved whole.
    pub thp_migration_success: u64,
    /// Huge pages split for migration, because no free pageblock was found outside.
    pub thp_migration_split: u64,
    /// Hot-plug blocks that went online.
    pub blocks_plugged: u64,
    /// Hot-plug blocks that went offline.
    pub blocks_unplugged: u64,
    /// Hot-plug blocks that went offline without a page being moved.
    pub blocks_unplug_free: u64,
    /// Anonymous frames in use, huge pages included.
    pub nr_anon_pages: u64,
    /// Anonymous huge pages in use.
    pub nr_anon_transparent_hugepages: u64,
    /// Frames that hold page tables.
    pub nr_page_table_pages: u64,
}

impl VmStat {
    /// Names and values, in a fixed order.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("nr_anon_pages", self.nr_anon_pages),
            (
                "nr_anon_transparent_hugepages",
                self.nr_anon_transparent_hugepages,
            ),
            ("nr_page_table_pages", self.nr_page_table_pages),
            ("pgalloc_dma", self.pgalloc[ZoneKind::Dma.index()]),
            ("pgalloc_dma32", self.pgalloc[ZoneKind::Dma32.index()]),
            ("pgalloc_normal", self.pgalloc[ZoneKind::Normal.index()]),
            ("pgalloc_movable", self.pgalloc[ZoneKind::Movable.index()]),
            ("pgfree", self.pgfree),
            ("pgfault", self.pgfault),
            ("thp_fault_alloc", self.thp_fault_alloc),
            ("thp_fault_fallback", self.thp_fault_fallback),
            ("thp_split_page", self.thp_split_page),
            ("pgmigrate_success", self.pgmigrate_success),
            ("pgmigrate_fail", self.pgmigrate_fail),
            ("thp_migration_success", self.thp_migration_success),
            ("thp_migration_split", self.thp_migration_split),
            ("blocks_plugged", self.blocks_plugged),
            ("blocks_unplugged", self.blocks_unplugged),
            ("blocks_unplug_free", self.blocks_unplug_free),
        ]
        .into_iter()
    }
}
