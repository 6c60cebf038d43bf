//! Event counters and gauges, named like Linux' `/proc/vmstat` where Linux has them.

mod entries;

use guest_sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::node::Topology;
use crate::pcp::ListEvents;
use crate::pfn::PAGEBLOCK_NR_PAGES;
use crate::zone::{NR_ZONES, Zone};

/// Something that is counted, for all CPUs together.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, events: u64) {
        self.0.fetch_add(events, Relaxed);
    }

    pub(crate) fn sub(&self, events: u64) {
        self.0.fetch_sub(events, Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Events of a zone that are counted where a lock is taken anyway. What is served by the lists of CPUs is counted
/// there, and added when the counters are read.
#[derive(Debug, Default)]
pub(crate) struct ZoneEvents {
    /// Frames taken without a list, and those for which a list was refilled.
    pub(crate) slow_alloc_pages: Count,
    /// Frames given back without a list.
    pub(crate) slow_free_pages: Count,
    pub(crate) numa_hit: Count,
    pub(crate) numa_miss: Count,
    pub(crate) numa_foreign: Count,
    pub(crate) numa_local: Count,
    pub(crate) numa_other: Count,
    /// Requests that preferred another node and were served by a list, which counts every request as a hit.
    pub(crate) list_misses: Count,
}

/// What happened in one zone since boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZoneStat {
    /// Frames taken.
    pub pgalloc: u64,
    /// Frames given back.
    pub pgfree: u64,
    /// Requests served here that preferred this node.
    pub numa_hit: u64,
    /// Requests served here that preferred another node.
    pub numa_miss: u64,
    /// Requests that preferred this node and were served elsewhere.
    pub numa_foreign: u64,
    /// Requests served here for a CPU of this node.
    pub numa_local: u64,
    /// Requests served here for a CPU of another node.
    pub numa_other: u64,
    /// Requests served from the list of a CPU.
    pub pcp_hit: u64,
    /// Times that a list was refilled.
    pub pcp_refill: u64,
    /// Times that a list gave a batch back.
    pub pcp_return: u64,
    /// Frames that were taken off lists for isolation, or because memory was out.
    pub pcp_drained: u64,
}

impl Zone {
    /// What happened here since boot.
    pub(crate) fn stat(&self, topology: &Topology) -> ZoneStat {
        let events = &self.events;
        let mut stat = ZoneStat {
            pgalloc: events.slow_alloc_pages.value(),
            pgfree: events.slow_free_pages.value(),
            numa_hit: events.numa_hit.value(),
            numa_miss: events.numa_miss.value(),
            numa_foreign: events.numa_foreign.value(),
            numa_local: events.numa_local.value(),
            numa_other: events.numa_other.value(),
            ..ZoneStat::default()
        };
        for (cpu, lists) in self.lists().iter() {
            let ListEvents { hits, puts, .. } = &lists.events;
            let served = hits[0].value() + hits[1].value();
            let frames = |counts: &[crate::pcp::OwnCount; 2]| {
                counts[0].value() + counts[1].value() * u64::from(PAGEBLOCK_NR_PAGES)
            };
            stat.pgalloc += frames(hits);
            stat.pgfree += frames(puts);
            stat.pcp_hit += served;
            stat.pcp_refill += lists.events.refills.value();
            stat.pcp_return += lists.events.returns.value();
            stat.pcp_drained += lists.stolen_pages.load(Relaxed);
            stat.numa_hit += served;
            if topology.node_of(cpu) == self.node() {
                stat.numa_local += served;
            } else {
                stat.numa_other += served;
            }
        }
        stat.numa_hit = stat.numa_hit.saturating_sub(events.list_misses.value());
        stat
    }
}

/// What is counted for the whole machine.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) pgfault: Count,
    pub(crate) pgcow: Count,
    pub(crate) pgmajfault: Count,
    pub(crate) pswpin: Count,
    pub(crate) pswpout: Count,
    pub(crate) pswpout_error: Count,
    pub(crate) pgscan: Count,
    pub(crate) pgsteal: Count,
    pub(crate) pgreuse: Count,
    pub(crate) thp_fault_alloc: Count,
    pub(crate) thp_fault_fallback: Count,
    pub(crate) thp_split_page: Count,
    pub(crate) pgmigrate_success: Count,
    pub(crate) pgmigrate_fail: Count,
    pub(crate) thp_migration_success: Count,
    pub(crate) thp_migration_split: Count,
    pub(crate) thp_migration_compacted: Count,
    pub(crate) block_pages_dropped: Count,
    pub(crate) block_pages_written: Count,
    pub(crate) migrate_written_first: Count,
    pub(crate) migrate_taken_over: Count,
    pub(crate) longterm_pinned: Count,
    pub(crate) longterm_moved: Count,
    pub(crate) transfer_moved: Count,
    pub(crate) kernel_tables_moved: Count,
    pub(crate) kernel_vmalloc_moved: Count,
    pub(crate) kernel_slabs_moved: Count,
    pub(crate) kernel_dma_moved: Count,
    pub(crate) blocks_plugged: Count,
    pub(crate) blocks_unplugged: Count,
    pub(crate) blocks_unplug_free: Count,
    pub(crate) nr_memmap_pages: Count,
    pub(crate) blocks_unplug_pass1: Count,
    pub(crate) blocks_unplug_pass2: Count,
    pub(crate) blocks_unplug_pass_more: Count,
    pub(crate) blocks_put_back: Count,
    pub(crate) nr_anon_pages: Count,
    pub(crate) nr_anon_transparent_hugepages: Count,
    pub(crate) nr_page_table_pages: Count,
    pub(crate) allocstall: Count,
    pub(crate) nr_file_pages: Count,
    pub(crate) nr_mapped: Count,
    pub(crate) nr_shmem: Count,
    pub(crate) nr_dirty: Count,
    pub(crate) nr_writeback: Count,
    pub(crate) pgpgin: Count,
    pub(crate) pgpgout: Count,
    pub(crate) pgactivate: Count,
    pub(crate) balance_dirty_pages: Count,
    pub(crate) nr_vmscan_write: Count,
    pub(crate) shm_swap: Count,
    pub(crate) compact_migrate_scanned: Count,
    pub(crate) compact_free_scanned: Count,
    pub(crate) compact_isolated: Count,
    pub(crate) compact_stall: Count,
    pub(crate) compact_fail: Count,
    pub(crate) compact_success: Count,
    pub(crate) compact_daemon_wake: Count,
    pub(crate) compact_daemon_migrate_scanned: Count,
    pub(crate) compact_daemon_free_scanned: Count,
}

/// What happened since boot, and how much of what there is. Frames count 4 KiB each; events count once.
#[derive(Clone, Debug, Default)]
pub struct VmStat {
    /// Frames taken, by kind of zone.
    pub pgalloc: [u64; NR_ZONES],
    /// All zones together.
    pub zones: ZoneStat,
    /// Frames given back.
    pub pgfree: u64,
    /// Page faults served.
    pub pgfault: u64,
    /// Faults that had to wait for the disk.
    pub pgmajfault: u64,
    /// Pages read from the swap area.
    pub pswpin: u64,
    /// Pages written to it.
    pub pswpout: u64,
    /// Pages that could not be written to it (no such counter in Linux).
    pub pswpout_error: u64,
    /// Pages of inactive lists that reclaim has looked at.
    pub pgscan: u64,
    /// Pages that reclaim has freed, at once or when they had arrived on the disk.
    pub pgsteal: u64,
    /// Shared pages copied for one who stored to them (no such counter in Linux).
    pub pgcow: u64,
    /// Pages found not to be shared any more at a store (Linux: `pgreuse`).
    pub pgreuse: u64,
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
    /// Huge pages split for migration, because no free pageblock was found outside and none could be made.
    pub thp_migration_split: u64,
    /// Huge pages for which a pageblock outside was emptied before they moved (no such counter in Linux).
    pub thp_migration_compacted: u64,
    /// Pages that left memory at once while their block was emptied (no such counter in Linux).
    pub block_pages_dropped: u64,
    /// Pages that were written for it, and left when they had arrived (no such counter in Linux).
    pub block_pages_written: u64,
    /// Pages that were written first, because their file system has no way to move them as they are, and came up again (no such counter in
    /// Linux).
    pub migrate_written_first: u64,
    /// Pages that their file system moved itself, contents and all (no such counter in Linux).
    pub migrate_taken_over: u64,
    /// Pages that were pinned for long (Linux counts all pins, `nr_foll_pin_acquired`).
    pub longterm_pinned: u64,
    /// Pages that moved out of removable memory for that first (no such counter in Linux).
    pub longterm_moved: u64,
    /// Pages that moved off blocks that were about to leave before they were pinned for a transfer (no such counter in Linux).
    pub transfer_moved: u64,
    /// Page tables moved; these four are among `pgmigrate_success` (no such counters in Linux).
    pub kernel_tables_moved: u64,
    /// Pages of vmalloc areas.
    pub kernel_vmalloc_moved: u64,
    /// Frames of slabs whose objects moved or were given up.
    pub kernel_slabs_moved: u64,
    /// Frames of drivers.
    pub kernel_dma_moved: u64,
    /// Hot-plug blocks that went online.
    pub blocks_plugged: u64,
    /// Hot-plug blocks that went offline.
    pub blocks_unplugged: u64,
    /// Hot-plug blocks that went offline without a page being moved.
    pub blocks_unplug_free: u64,
    /// Frames of blocks that hold their own descriptors. (Linux counts those of boot memory too.)
    pub nr_memmap_pages: u64,
    /// Hot-plug blocks that went offline once all of their pages were looked at once, or that had none in use.
    pub blocks_unplug_pass1: u64,
    /// Those that went offline after a second look at what was left.
    pub blocks_unplug_pass2: u64,
    /// Those that took more.
    pub blocks_unplug_pass_more: u64,
    /// Times that an isolated block was put back in use with what was on it.
    pub blocks_put_back: u64,
    /// Anonymous frames in use, huge pages included.
    pub nr_anon_pages: u64,
    /// Anonymous huge pages in use.
    pub nr_anon_transparent_hugepages: u64,
    /// Frames that hold page tables.
    pub nr_page_table_pages: u64,
    /// Requests that found no memory at first: lists of CPUs were drained for them.
    pub allocstall: u64,
    /// Pages of mappings: of files, and shared memory.
    pub nr_file_pages: u64,
    /// Page-table entries that map pages of mappings.
    pub nr_mapped: u64,
    /// Pages of shared memory among them.
    pub nr_shmem: u64,
    /// Pages of files that are newer than the disk.
    pub nr_dirty: u64,
    /// Pages of files on their way to the disk.
    pub nr_writeback: u64,
    /// Pages of files that were read. (Linux counts sectors, and swap too.)
    pub pgpgin: u64,
    /// Pages of files that were written.
    pub pgpgout: u64,
    /// Pages that became active ones.
    pub pgactivate: u64,
    /// Times that one who wanted to write had to wait because too much was dirty (no such counter in Linux).
    pub balance_dirty_pages: u64,
    /// Pages of files that reclaim began to write.
    pub nr_vmscan_write: u64,
    /// Pages of shared memory that `reclaim=launder` made inactive because others were not enough (Linux 2.4 `shm_swap`; no such counter there).
    pub shm_swap: u64,
    /// Pages that compaction looked at to move them.
    pub compact_migrate_scanned: u64,
    /// Places that it looked at for where they could go.
    pub compact_free_scanned: u64,
    /// Pages that it moved.
    pub compact_isolated: u64,
    /// Requests that compacted memory themselves.
    pub compact_stall: u64,
    /// Those of them that got nothing by it.
    pub compact_fail: u64,
    /// Those of them that led to a chunk of the size wanted.
    pub compact_success: u64,
    /// Times that a daemon was woken to compact.
    pub compact_daemon_wake: u64,
    /// `compact_migrate_scanned`, the daemons' part.
    pub compact_daemon_migrate_scanned: u64,
    /// `compact_free_scanned`, the daemons' part.
    pub compact_daemon_free_scanned: u64,
}

impl Counts {
    /// The counters as they are now, together with those of the zones.
    pub(crate) fn snapshot<'z>(&self, zones: impl Iterator<Item = &'z Zone>, topology: &Topology) -> VmStat {
        let mut stat = VmStat {
            pgfault: self.pgfault.value(),
            pgcow: self.pgcow.value(),
            pgmajfault: self.pgmajfault.value(),
            pswpin: self.pswpin.value(),
            pswpout: self.pswpout.value(),
            pswpout_error: self.pswpout_error.value(),
            pgscan: self.pgscan.value(),
            pgsteal: self.pgsteal.value(),
            pgreuse: self.pgreuse.value(),
            thp_fault_alloc: self.thp_fault_alloc.value(),
            thp_fault_fallback: self.thp_fault_fallback.value(),
            thp_split_page: self.thp_split_page.value(),
            pgmigrate_success: self.pgmigrate_success.value(),
            pgmigrate_fail: self.pgmigrate_fail.value(),
            thp_migration_success: self.thp_migration_success.value(),
            thp_migration_split: self.thp_migration_split.value(),
            thp_migration_compacted: self.thp_migration_compacted.value(),
            block_pages_dropped: self.block_pages_dropped.value(),
            block_pages_written: self.block_pages_written.value(),
            migrate_written_first: self.migrate_written_first.value(),
            migrate_taken_over: self.migrate_taken_over.value(),
            longterm_pinned: self.longterm_pinned.value(),
            longterm_moved: self.longterm_moved.value(),
            transfer_moved: self.transfer_moved.value(),
            kernel_tables_moved: self.kernel_tables_moved.value(),
            kernel_vmalloc_moved: self.kernel_vmalloc_moved.value(),
            kernel_slabs_moved: self.kernel_slabs_moved.value(),
            kernel_dma_moved: self.kernel_dma_moved.value(),
            blocks_plugged: self.blocks_plugged.value(),
            blocks_unplugged: self.blocks_unplugged.value(),
            blocks_unplug_free: self.blocks_unplug_free.value(),
            nr_memmap_pages: self.nr_memmap_pages.value(),
            blocks_unplug_pass1: self.blocks_unplug_pass1.value(),
            blocks_unplug_pass2: self.blocks_unplug_pass2.value(),
            blocks_unplug_pass_more: self.blocks_unplug_pass_more.value(),
            blocks_put_back: self.blocks_put_back.value(),
            nr_anon_pages: self.nr_anon_pages.value(),
            nr_anon_transparent_hugepages: self.nr_anon_transparent_hugepages.value(),
            nr_page_table_pages: self.nr_page_table_pages.value(),
            allocstall: self.allocstall.value(),
            nr_file_pages: self.nr_file_pages.value(),
            nr_mapped: self.nr_mapped.value(),
            nr_shmem: self.nr_shmem.value(),
            nr_dirty: self.nr_dirty.value(),
            nr_writeback: self.nr_writeback.value(),
            pgpgin: self.pgpgin.value(),
            pgpgout: self.pgpgout.value(),
            pgactivate: self.pgactivate.value(),
            balance_dirty_pages: self.balance_dirty_pages.value(),
            nr_vmscan_write: self.nr_vmscan_write.value(),
            shm_swap: self.shm_swap.value(),
            compact_migrate_scanned: self.compact_migrate_scanned.value(),
            compact_free_scanned: self.compact_free_scanned.value(),
            compact_isolated: self.compact_isolated.value(),
            compact_stall: self.compact_stall.value(),
            compact_fail: self.compact_fail.value(),
            compact_success: self.compact_success.value(),
            compact_daemon_wake: self.compact_daemon_wake.value(),
            compact_daemon_migrate_scanned: self.compact_daemon_migrate_scanned.value(),
            compact_daemon_free_scanned: self.compact_daemon_free_scanned.value(),
            ..VmStat::default()
        };
        for zone in zones {
            let found = zone.stat(topology);
            stat.pgalloc[zone.kind().index()] += found.pgalloc;
            stat.pgfree += found.pgfree;
            stat.zones.add(&found);
        }
        stat
    }
}

impl ZoneStat {
    /// Adds another zone's counters.
    pub fn add(&mut self, other: &Self) {
        for (mine, (_, theirs)) in self.values_mut().into_iter().zip(other.entries()) {
            *mine += theirs;
        }
    }

    /// Names and values, in a fixed order; the names of `/proc/vmstat` where Linux has the counter.
    pub fn entries(&self) -> [(&'static str, u64); 11] {
        [
            ("pgalloc", self.pgalloc),
            ("pgfree", self.pgfree),
            ("numa_hit", self.numa_hit),
            ("numa_miss", self.numa_miss),
            ("numa_foreign", self.numa_foreign),
            ("numa_local", self.numa_local),
            ("numa_other", self.numa_other),
            ("pcp_hit", self.pcp_hit),
            ("pcp_refill", self.pcp_refill),
            ("pcp_return", self.pcp_return),
            ("pcp_drained", self.pcp_drained),
        ]
    }

    fn values_mut(&mut self) -> [&mut u64; 11] {
        [
            &mut self.pgalloc,
            &mut self.pgfree,
            &mut self.numa_hit,
            &mut self.numa_miss,
            &mut self.numa_foreign,
            &mut self.numa_local,
            &mut self.numa_other,
            &mut self.pcp_hit,
            &mut self.pcp_refill,
            &mut self.pcp_return,
            &mut self.pcp_drained,
        ]
    }
}
