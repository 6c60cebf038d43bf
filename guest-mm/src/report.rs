//! What an operator reads: texts in the formats of Linux' `/proc` files, written to any [`fmt::Write`].

mod frames;
mod pages;
mod programs;
mod zones;

use core::fmt;

use crate::lru::LruList;
use crate::pfn::PAGE_SIZE;
use crate::phys::PhysicalMemory;
use crate::reclaim::Reclaim;
use crate::zone::{Watermark, ZoneKind};

pub use frames::{FRAME_COLUMNS, frame, pagemap};
pub use pages::{ListUse, cache, lru, meminfo_pages};
pub use programs::{FileName, maps, smaps};
pub use zones::{TypeCounts, nodes, pagetypeinfo, zoneinfo};

/// How much memory there is and what it is used for, in frames of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryStats {
    /// Managed by the allocator; grows and shrinks with the blocks that are online.
    pub total_pages: u64,
    /// Free and to be had.
    pub free_pages: u64,
    /// What programs can still get without anything being swapped: free frames without those below the low watermarks and the kernel's
    /// reserve, and [`Self::available_file_pages`].
    pub available_pages: u64,
    /// Pages of files that can be had instead of being cached: all but what is needed to run at all, which is taken to be half of them, or
    /// what the low watermarks come to if that is less (Linux `si_mem_available`).
    pub available_file_pages: u64,
    /// Anonymous memory of programs, huge pages included.
    pub anon_pages: u64,
    /// Anonymous memory in huge pages.
    pub anon_huge_pages: u64,
    /// The page cache: pages of files, and shared memory.
    pub file_pages: u64,
    /// Page tables.
    pub page_table_pages: u64,
    /// Free frames withdrawn because their block is going offline.
    pub isolated_pages: u64,
    /// Reserved huge pages, whether programs have them or not.
    pub hugetlb_pages: u64,
    /// Everything else in use: the kernel's own data.
    pub kernel_pages: u64,
}

impl PhysicalMemory<'_> {
    /// How memory is used right now.
    pub fn memory_stats(&self) -> MemoryStats {
        let huge = u64::from(crate::pfn::PAGEBLOCK_NR_PAGES);
        let (mut total_pages, mut free_pages, mut available_pages, mut low) = (0, 0, 0, 0);
        for zone in self.populated_zones() {
            let counters = zone.counters();
            let free = counters.free_pages + counters.cached_pages;
            let kept = zone.watermark(Watermark::Low) + zone.reserve(ZoneKind::Movable);
            total_pages += counters.managed_pages;
            free_pages += free;
            available_pages += free.saturating_sub(kept);
            low += zone.watermark(Watermark::Low);
        }
        let file_pages = self.counts.nr_file_pages.value();
        let of_files = file_pages.saturating_sub(self.counts.nr_shmem.value());
        let available_file_pages = of_files - low.min(of_files / 2);
        let isolated_pages = self.isolated_pages();
        let anon_pages = self.counts.nr_anon_pages.value();
        let page_table_pages = self.counts.nr_page_table_pages.value();
        // The counters are read one after the other, and may be of slightly different moments.
        let hugetlb_pages = self.huge_pool().total * huge;
        let of_programs = hugetlb_pages + anon_pages + file_pages + page_table_pages;
        let elsewhere = of_programs + free_pages + isolated_pages;
        MemoryStats {
            total_pages,
            free_pages,
            available_pages: available_pages + available_file_pages,
            available_file_pages,
            anon_pages,
            file_pages,
            anon_huge_pages: self.counts.nr_anon_transparent_hugepages.value() * huge,
            page_table_pages,
            isolated_pages,
            hugetlb_pages,
            kernel_pages: total_pages.saturating_sub(elsewhere),
        }
    }
}

/// `/proc/meminfo`: one `Name:   value kB` line each.
///
/// # Errors
/// Those of the writer.
pub fn meminfo(out: &mut impl fmt::Write, memory: &PhysicalMemory<'_>) -> fmt::Result {
    let stats = memory.memory_stats();
    for (name, pages) in [
        ("MemTotal:", stats.total_pages),
        ("MemFree:", stats.free_pages),
        ("MemAvailable:", stats.available_pages),
        ("AnonPages:", stats.anon_pages),
        ("PageTables:", stats.page_table_pages),
        ("AnonHugePages:", stats.anon_huge_pages),
        ("Isolated:", stats.isolated_pages),
        ("KernelPages:", stats.kernel_pages),
    ] {
        writeln!(out, "{name:<16}{:>8} kB", pages * PAGE_SIZE / 1024)?;
    }
    Ok(())
}

/// `/proc/buddyinfo`: free chunks of each order, a line for each zone that has memory.
///
/// # Errors
/// Those of the writer.
pub fn buddyinfo(out: &mut impl fmt::Write, memory: &PhysicalMemory<'_>) -> fmt::Result {
    for zone in memory.populated_zones() {
        let (node, kind) = (zone.node(), zone.kind());
        write!(out, "Node {node}, zone {:>8} ", kind.name())?;
        for chunks in memory.free_chunks(node, kind) {
            write!(out, "{chunks:>6} ")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// All blocks of the hot-plug region: a header, then a line a block, columns separated by spaces.
/// A block that is in no zone has `-` there.
///
/// # Errors
/// Those of the writer.
pub fn blocks(out: &mut impl fmt::Write, memory: &PhysicalMemory<'_>) -> fmt::Result {
    writeln!(out, "INDEX GPA STATE ZONE FREE_PAGES USED_PAGES")?;
    let region = memory.hotplug_region();
    for (index, state) in region.iter() {
        let gpa = region.block_range(index).map_or(0, |range| range.start().gpa());
        let usage = memory.block_usage(index);
        let (zone, free, used) = usage.map_or(("-", 0, 0), |usage| {
            (usage.zone.name(), usage.free_pages, usage.used_pages)
        });
        writeln!(out, "{} {gpa:#x} {} {zone} {free} {used}", index.0, state.name())?;
    }
    Ok(())
}

/// `/proc/vmstat`: one `name value` line each, free pages first.
///
/// # Errors
/// Those of the writer.
pub fn vmstat(out: &mut impl fmt::Write, memory: &PhysicalMemory<'_>) -> fmt::Result {
    let free = memory.zones().map(|zone| zone.counters().free_pages);
    writeln!(out, "nr_free_pages {}", free.sum::<u64>())?;
    for (name, value) in memory.stats().entries() {
        writeln!(out, "{name} {value}")?;
    }
    Ok(())
}

/// The lines of `/proc/vmstat` about reclaim, and how many requests wait for memory.
///
/// # Errors
/// Those of the writer.
pub fn reclaim(out: &mut impl fmt::Write, memory: &PhysicalMemory<'_>, reclaim: &Reclaim<'_>) -> fmt::Result {
    let stat = reclaim.stat();
    writeln!(out, "pgsteal_kswapd {}", stat.pgsteal_kswapd)?;
    writeln!(out, "pgsteal_direct {}", stat.pgsteal_direct)?;
    writeln!(out, "pageoutrun {}", stat.pageoutrun)?;
    writeln!(out, "direct_reclaims {}", stat.direct_reclaims)?;
    writeln!(out, "reclaim_throttled {}", stat.reclaim_throttled)?;
    writeln!(out, "slabs_freed {}", stat.slabs_freed)?;
    writeln!(out, "nr_being_written {}", memory.nr_being_written())?;
    let unevictable = memory
        .populated_zones()
        .map(|zone| zone.lru_len(LruList::Unevictable));
    writeln!(out, "nr_unevictable {}", unevictable.sum::<u64>())?;
    writeln!(out, "nr_waiting_for_memory {}", memory.nr_waiting())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::phys_model::{descriptors, one_cpu, plug, small_memory};
    use crate::{BlockIndex, Gfp, Order};
    use std::string::String;

    #[test]
    fn texts_have_the_formats_that_are_parsed_elsewhere() {
        let (pages, cpu) = (descriptors(3 * 512), one_cpu());
        let memory = small_memory(&pages, 512, 3);
        plug(&memory, BlockIndex(0), ZoneKind::Movable);
        memory.begin_plug(BlockIndex(2)).unwrap();
        memory.alloc_pages(&cpu, Gfp::USER, Order::ZERO).unwrap();
        let mut text = String::new();
        blocks(&mut text, &memory).unwrap();
        assert_eq!(
            text,
            "INDEX GPA STATE ZONE FREE_PAGES USED_PAGES\n0 0x2200000 online Movable 511 1\n\
             1 0x2400000 unplugged - 0 0\n2 0x2600000 plugging - 0 0\n"
        );
        text.clear();
        meminfo(&mut text, &memory).unwrap();
        let first: std::vec::Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
        let total = memory.memory_stats().total_pages * 4;
        assert_eq!(first, ["MemTotal:", &std::format!("{total}"), "kB"]);
        assert!(text.contains("KernelPages:           4 kB\n"), "{text}");
        text.clear();
        buddyinfo(&mut text, &memory).unwrap();
        let movable = text.lines().last().unwrap();
        let columns: std::vec::Vec<&str> = movable.split_whitespace().collect();
        assert_eq!(
            columns,
            "Node 0, zone Movable 1 1 1 1 1 1 1 1 1 0 0"
                .split(' ')
                .collect::<std::vec::Vec<_>>()
        );
        text.clear();
        vmstat(&mut text, &memory).unwrap();
        assert!(
            text.contains("pgalloc_movable 1\n") && text.contains("blocks_plugged 1\n"),
            "{text}"
        );
    }
}
