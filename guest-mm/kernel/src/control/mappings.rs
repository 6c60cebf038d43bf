//! What the manager's own address space is made of: areas, windows, and the direct map.

use crate::kernel::Kernel;
use crate::load;
use crate::machine::frames::DirectFrames;
use core::fmt;
use guest_kernel::layout::DIRECT_MAP_END;
use guest_mm::Entry;
use guest_mm::kernel_map::KernelRange;
use guest_mm::pfn::{PAGE_SIZE, PAGEBLOCK_SIZE};

/// Every area of vmalloc, as `/proc/vmallocinfo`.
pub(super) fn vmallocinfo(out: &mut impl fmt::Write, kernel: &Kernel) -> fmt::Result {
    let node_of = |pfn: guest_mm::Pfn| kernel.node_at(pfn.gpa()).index();
    kernel.areas.info(out, node_of)
}

/// Lines of `/proc/meminfo`: what vmalloc can have and has, and how the direct map is mapped.
pub(super) fn meminfo(out: &mut impl fmt::Write, kernel: &Kernel) -> fmt::Result {
    let used_pages = kernel.areas.stats().nr_pages;
    line(out, "VmallocTotal:", kernel.areas.window_bytes())?;
    line(out, "VmallocUsed:", used_pages * PAGE_SIZE)?;
    let (small, huge) = direct_map(kernel);
    line(out, "DirectMap4k:", small)?;
    line(out, "DirectMap2M:", huge)
}

fn line(out: &mut impl fmt::Write, name: &str, bytes: u64) -> fmt::Result {
    writeln!(out, "{name:<16}{:>8} kB", bytes / 1024)
}

/// Bytes of memory that the direct map has in pages of 4 KiB and of 2 MiB, by its own entries. Registers of devices are
/// no memory.
fn direct_map(kernel: &Kernel) -> (u64, u64) {
    let (mut small, mut huge) = (0, 0);
    if let Some(range) = KernelRange::new(0, DIRECT_MAP_END) {
        let tables = kernel.direct_map.tables();
        tables.for_each_leaf(&DirectFrames, range, |_, entry, bytes| {
            if entry.has(Entry::CACHE_DISABLE) {
                return;
            }
            let sum = if bytes == PAGEBLOCK_SIZE {
                &mut huge
            } else {
                &mut small
            };
            *sum += bytes;
        });
    }
    (small, huge)
}

/// Counters of the windows and of vmalloc, as `/proc/vmstat`.
pub(super) fn vmstat(out: &mut impl fmt::Write, kernel: &Kernel) -> fmt::Result {
    let (areas, kmap) = (kernel.areas.stats(), kernel.high.permanent().stats());
    let atomic = kernel.high.atomic_stats();
    let counters = [
        ("nr_vmalloc", areas.nr_pages),
        ("nr_vmalloc_areas", u64::from(areas.nr_areas)),
        ("nr_vmalloc_lazy", areas.nr_lazy_pages),
        ("nr_vmalloc_node_frames", u64::from(areas.nr_node_frames)),
        ("vmalloc_purged", areas.purged_pages),
        ("vmalloc_flushes", areas.flushes),
        ("nr_kmap", u64::from(kmap.nr_used)),
        ("kmap_maps", kmap.maps),
        ("kmap_hits", kmap.hits),
        ("kmap_waits", kmap.waits),
        ("kmap_wraps", kmap.wraps),
        ("kmap_flushes", kmap.flushes),
        ("kmap_atomic_maps", atomic.maps),
        ("kmap_atomic_hits", atomic.hits),
        ("kmap_atomic_flushes", atomic.flushes),
    ];
    for (name, count) in counters {
        writeln!(out, "{name} {count}")?;
    }
    load::vmstat(out)
}
