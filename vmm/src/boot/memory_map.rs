//! Which guest-physical addresses are RAM, as the guest is told. The hot-plug region is not among them: its blocks
//! are announced by their device.

use crate::machine::layout::{HIMEM_START, LOW_MEMORY_END, ram_ranges};

/// What a range is. The numbers are those of e820 and of PVH alike (`E820_TYPE_*`, `XEN_HVM_MEMMAP_TYPE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum RangeType {
    /// The guest's to use.
    Ram = 1,
    /// Not to be touched by allocators.
    Reserved = 2,
}

/// One range of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MapEntry {
    pub(super) gpa: u64,
    pub(super) size: u64,
    pub(super) range_type: RangeType,
}

/// The map of a guest with `memory` bytes of boot memory, in address order.
pub(super) fn memory_map(memory: u64) -> Vec<MapEntry> {
    let entry = |gpa, end: u64, range_type| MapEntry {
        gpa,
        size: end - gpa,
        range_type,
    };
    let mut map = vec![
        entry(0, LOW_MEMORY_END, RangeType::Ram),
        entry(LOW_MEMORY_END, HIMEM_START, RangeType::Reserved),
    ];
    // Memory beyond 64 bits was refused when it was mapped; without ranges there is nothing to add.
    for range in ram_ranges(memory).unwrap_or_default() {
        let start = range.gpa.max(HIMEM_START);
        if start < range.end() {
            map.push(entry(start, range.end(), RangeType::Ram));
        }
    }
    map
}

/// The low range of RAM in which kernels and initial RAM disks are placed: `HIMEM_START..end`.
pub(super) fn low_ram_end(memory: u64) -> u64 {
    ram_ranges(memory)
        .and_then(|ranges| ranges.first().map(|low| low.end()))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::layout::{GIB, MIB};

    #[test]
    fn ranges_follow_one_another_and_add_up() {
        for memory in [32 * MIB, 512 * MIB, 3 * GIB, 5 * GIB] {
            let map = memory_map(memory);
            assert!(
                map.windows(2)
                    .all(|pair| pair[0].gpa + pair[0].size <= pair[1].gpa)
            );
            let reserved = HIMEM_START - LOW_MEMORY_END;
            let ram: u64 = map
                .iter()
                .filter(|e| e.range_type == RangeType::Ram)
                .map(|e| e.size)
                .sum();
            assert_eq!(ram + reserved, memory);
        }
    }
}
