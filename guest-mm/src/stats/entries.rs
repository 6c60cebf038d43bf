//! The counters by name, as `/proc/vmstat` lists them.

use crate::stats::VmStat;
use crate::zone::ZoneKind;

impl VmStat {
    /// Names and values, in a fixed order.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let gauges = [
            ("nr_anon_pages", self.nr_anon_pages),
            (
                "nr_anon_transparent_hugepages",
                self.nr_anon_transparent_hugepages,
            ),
            ("nr_page_table_pages", self.nr_page_table_pages),
            ("nr_file_pages", self.nr_file_pages),
            ("nr_mapped", self.nr_mapped),
            ("nr_shmem", self.nr_shmem),
            ("nr_dirty", self.nr_dirty),
            ("nr_writeback", self.nr_writeback),
            ("nr_memmap_pages", self.nr_memmap_pages),
        ];
        let zones = [
            ("pgalloc_dma", self.pgalloc[ZoneKind::Dma.index()]),
            ("pgalloc_dma32", self.pgalloc[ZoneKind::Dma32.index()]),
            ("pgalloc_normal", self.pgalloc[ZoneKind::Normal.index()]),
            ("pgalloc_high", self.pgalloc[ZoneKind::HighMem.index()]),
            ("pgalloc_movable", self.pgalloc[ZoneKind::Movable.index()]),
            ("pgfree", self.pgfree),
        ];
        let events = [
            ("pgfault", self.pgfault),
            ("pgcow", self.pgcow),
            ("pgmajfault", self.pgmajfault),
            ("pgpgin", self.pgpgin),
            ("pgpgout", self.pgpgout),
            ("balance_dirty_pages", self.balance_dirty_pages),
            ("nr_vmscan_write", self.nr_vmscan_write),
            ("shm_swap", self.shm_swap),
            ("pswpin", self.pswpin),
            ("pswpout", self.pswpout),
            ("pswpout_error", self.pswpout_error),
            ("pgscan", self.pgscan),
            ("pgsteal", self.pgsteal),
            ("pgactivate", self.pgactivate),
            ("pgreuse", self.pgreuse),
            ("allocstall", self.allocstall),
            ("thp_fault_alloc", self.thp_fault_alloc),
            ("thp_fault_fallback", self.thp_fault_fallback),
            ("thp_split_page", self.thp_split_page),
            ("pgmigrate_success", self.pgmigrate_success),
            ("pgmigrate_fail", self.pgmigrate_fail),
            ("compact_migrate_scanned", self.compact_migrate_scanned),
            ("compact_free_scanned", self.compact_free_scanned),
            ("compact_isolated", self.compact_isolated),
            ("compact_stall", self.compact_stall),
            ("compact_fail", self.compact_fail),
            ("compact_success", self.compact_success),
            ("compact_daemon_wake", self.compact_daemon_wake),
            (
                "compact_daemon_migrate_scanned",
                self.compact_daemon_migrate_scanned,
            ),
            ("compact_daemon_free_scanned", self.compact_daemon_free_scanned),
        ];
        // The first two are listed by zone above.
        let others = self.zones.entries().into_iter().skip(2);
        gauges
            .into_iter()
            .chain(zones)
            .chain(others)
            .chain(events)
            .chain(self.moves())
    }

    /// What became of pages that were to be elsewhere, and of blocks.
    const fn moves(&self) -> [(&'static str, u64); 21] {
        [
            ("thp_migration_success", self.thp_migration_success),
            ("thp_migration_split", self.thp_migration_split),
            ("thp_migration_compacted", self.thp_migration_compacted),
            ("block_pages_dropped", self.block_pages_dropped),
            ("block_pages_written", self.block_pages_written),
            ("migrate_written_first", self.migrate_written_first),
            ("migrate_taken_over", self.migrate_taken_over),
            ("longterm_pinned", self.longterm_pinned),
            ("longterm_moved", self.longterm_moved),
            ("transfer_moved", self.transfer_moved),
            ("kernel_tables_moved", self.kernel_tables_moved),
            ("kernel_vmalloc_moved", self.kernel_vmalloc_moved),
            ("kernel_slabs_moved", self.kernel_slabs_moved),
            ("kernel_dma_moved", self.kernel_dma_moved),
            ("blocks_plugged", self.blocks_plugged),
            ("blocks_unplugged", self.blocks_unplugged),
            ("blocks_unplug_free", self.blocks_unplug_free),
            ("blocks_unplug_pass1", self.blocks_unplug_pass1),
            ("blocks_unplug_pass2", self.blocks_unplug_pass2),
            ("blocks_unplug_pass_more", self.blocks_unplug_pass_more),
            ("blocks_put_back", self.blocks_put_back),
        ]
    }
}
