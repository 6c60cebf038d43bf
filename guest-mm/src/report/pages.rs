//! Pages by what they are used for: lists of pages, the page cache, and the lines of `/proc/meminfo` about both.

use core::convert::Infallible;
use core::fmt;

use crate::frames::{Frames, Mmu};
use crate::lru::LruList;
use crate::mm::{CacheUse, Mm};
use crate::page::PageFlags;
use crate::pfn::{PAGE_SIZE, PAGEBLOCK_SIZE};
use crate::phys::PhysicalMemory;
use crate::zone::Zone;

/// What is on a zone's list. Frames of 4 KiB, but for `chunks`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ListUse {
    /// Pages of whatever size.
    pub chunks: u64,
    /// Anonymous frames.
    pub anon: u64,
    /// Frames of files and shared memory.
    pub file: u64,
    /// Newer than on the disk.
    pub dirty: u64,
    /// On their way to the disk.
    pub writeback: u64,
    /// Used since reclaim last asked.
    pub referenced: u64,
    /// Locked in memory.
    pub mlocked: u64,
}

impl PhysicalMemory<'_> {
    /// What is on a zone's list: a look at every page of it, during which nobody changes it.
    pub fn list_use(&self, zone: &Zone, list: LruList) -> ListUse {
        let mut found = ListUse::default();
        let Ok(()) = self.look_at_lru(zone, list, |pfn| {
            let page = self.table.page(pfn);
            let (flags, pages) = (page.flags(), u64::from(page.order().nr_pages()));
            found.chunks += 1;
            for (flag, count) in [
                (PageFlags::ANON, &mut found.anon),
                (PageFlags::FILE, &mut found.file),
                (PageFlags::DIRTY, &mut found.dirty),
                (PageFlags::WRITEBACK, &mut found.writeback),
                (PageFlags::REFERENCED, &mut found.referenced),
                (PageFlags::MLOCKED, &mut found.mlocked),
            ] {
                *count += if flags.has(flag) { pages } else { 0 };
            }
            Ok::<(), Infallible>(())
        });
        found
    }
}

/// The lists of pages: a line for each list of each zone that has memory.
///
/// # Errors
/// Those of the writer.
pub fn lru(out: &mut impl fmt::Write, memory: &PhysicalMemory<'_>) -> fmt::Result {
    writeln!(
        out,
        "NODE ZONE LIST CHUNKS ANON FILE DIRTY WRITEBACK REFERENCED MLOCKED"
    )?;
    for zone in memory.populated_zones() {
        for list in LruList::ALL {
            let found = memory.list_use(zone, list);
            let (node, kind, list) = (zone.node(), zone.kind().name(), list.name());
            writeln!(
                out,
                "{node} {kind} {list} {} {} {} {} {} {} {}",
                found.chunks,
                found.anon,
                found.file,
                found.dirty,
                found.writeback,
                found.referenced,
                found.mlocked
            )?;
        }
    }
    Ok(())
}

/// The page cache: a line for each mapping. Sizes in bytes, the rest in pages.
///
/// # Errors
/// Those of the writer.
pub fn cache<F: Frames, M: Mmu>(out: &mut impl fmt::Write, mm: &Mm<'_, F, M>) -> fmt::Result {
    writeln!(out, "MAPPING KIND SIZE PAGES DIRTY WRITEBACK SWAPPED SPACES")?;
    for id in mm.mapping_ids() {
        let Some(found) = mm.cache_use(id) else {
            continue;
        };
        let CacheUse { size, pages, .. } = found;
        let kind = if found.is_file { "file" } else { "shmem" };
        writeln!(
            out,
            "{} {kind} {size} {pages} {} {} {} {}",
            id.number(),
            found.dirty,
            found.writeback,
            found.swapped,
            found.spaces
        )?;
    }
    Ok(())
}

/// Lines of `/proc/meminfo`: the page cache, the lists of pages, the swap areas and reserved huge pages. Looks at every page on a list.
///
/// # Errors
/// Those of the writer.
pub fn meminfo_pages<F: Frames, M: Mmu>(out: &mut impl fmt::Write, mm: &Mm<'_, F, M>) -> fmt::Result {
    let (stats, swap, pool) = (mm.phys.stats(), mm.swap_usage(), mm.phys.huge_pool());
    let mut lists = LruList::ALL.map(|_| ListUse::default());
    for zone in mm.phys.populated_zones() {
        for (sum, list) in lists.iter_mut().zip(LruList::ALL) {
            let found = mm.phys.list_use(zone, list);
            sum.anon += found.anon;
            sum.file += found.file;
            sum.mlocked += found.mlocked;
        }
    }
    let sum = |is_active: bool, of: fn(&ListUse) -> u64| -> u64 {
        let wanted = LruList::ALL
            .iter()
            .zip(&lists)
            .filter(|(list, _)| **list != LruList::Unevictable && list.is_active() == is_active);
        wanted.map(|(_, list)| of(list)).sum()
    };
    let anon = |list: &ListUse| list.anon;
    let file = |list: &ListUse| list.file;
    for (name, pages) in [
        ("Cached:", stats.nr_file_pages),
        ("SwapCached:", swap.cached.into()),
        ("Active:", sum(true, anon) + sum(true, file)),
        ("Inactive:", sum(false, anon) + sum(false, file)),
        ("Active(anon):", sum(true, anon)),
        ("Inactive(anon):", sum(false, anon)),
        ("Active(file):", sum(true, file)),
        ("Inactive(file):", sum(false, file)),
        (
            "Unevictable:",
            lists[3..].iter().map(|list| list.anon + list.file).sum(),
        ),
        ("Mlocked:", lists.iter().map(|list| list.mlocked).sum()),
        ("SwapTotal:", swap.total.into()),
        ("SwapFree:", swap.free.into()),
        ("Dirty:", stats.nr_dirty),
        ("Writeback:", stats.nr_writeback),
        ("Mapped:", stats.nr_mapped),
        ("Shmem:", stats.nr_shmem),
    ] {
        writeln!(out, "{name:<16}{:>8} kB", pages * PAGE_SIZE / 1024)?;
    }
    for (name, pages) in [
        ("HugePages_Total:", pool.total),
        ("HugePages_Free:", pool.free),
        ("HugePages_Rsvd:", pool.reserved),
        ("HugePages_Surp:", 0),
    ] {
        writeln!(out, "{name:<16}{pages:>8}")?;
    }
    let huge = PAGEBLOCK_SIZE / 1024;
    writeln!(out, "{:<16}{huge:>8} kB", "Hugepagesize:")?;
    writeln!(out, "{:<16}{:>8} kB", "Hugetlb:", pool.total * huge)
}
