//! The manager's virtual addresses: what lies where, and how much of it there can be.
//!
//! | from | to | what |
//! |---|---|---|
//! | 0 | 16 TiB | *direct map*: memory, the image and device registers at their physical addresses. Boot memory from `highmem=` on is not in it |
//! | 32 TiB | +128 GiB | *vmemmap*: the descriptor of frame n is the n-th, 32 bytes each; see [`guest_mm::kernel_map::Vmemmap`] |
//! | 64 TiB | +64 GiB | *vmalloc*: areas made of single frames |
//! | 65 TiB | +4 MiB | *kmap*: permanent mappings of high memory, 1024 slots |
//! | 66 TiB | +128 MiB | *kmap_atomic*: temporary mappings of high memory, 512 slots for each of 64 CPUs |
//! | 67 TiB | +1 GiB | the same for whole pageblocks, 8 slots of 2 MiB for each CPU |
//!
//! All of it is in the lower half: ring 3 cannot use the upper one on some hosts. Programs have address spaces of their
//! own, so nothing here is in their way. Every row but the first has root entries of its own: who edits one of them
//! excludes nobody else. On every CPU the manager uses the same tables.

use guest_mm::PAGE_SIZE;
use guest_mm::kernel_map::{DESCRIPTOR_BYTES, KERNEL_END, KernelRange};
use guest_sync::MAX_CPUS;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// What one entry of the root table covers.
const ROOT_ENTRY: u64 = 512 * GIB;

/// End of the direct map: the last physical address that a frame number can have.
pub const DIRECT_MAP_END: u64 = 16 * TIB;

/// Address of the descriptor of frame 0.
pub const VMEMMAP_BASE: u64 = 32 * TIB;

/// Where areas of vmalloc are.
pub const VMALLOC: KernelRange = window(64 * TIB, 64 * GIB);

/// Number of permanent mappings of high memory there can be at a time (Linux' `LAST_PKMAP`).
pub const NR_KMAPS: u16 = 1024;
/// Where they are.
pub const KMAP: KernelRange = window(65 * TIB, NR_KMAPS as u64 * PAGE_SIZE);

/// Temporary mappings of one CPU: a page table full.
pub const KMAP_ATOMIC_SLOTS: u16 = 512;
/// Where they are, for all CPUs.
pub const KMAP_ATOMIC: KernelRange = window(66 * TIB, KMAP_ATOMIC_SLOTS as u64 * PAGE_SIZE * MAX_CPUS as u64);

/// Temporary mappings of whole pageblocks of one CPU.
pub const KMAP_HUGE_SLOTS: u16 = 8;
/// Where they are, for all CPUs.
pub const KMAP_HUGE: KernelRange = window(67 * TIB, KMAP_HUGE_SLOTS as u64 * 2 * MIB * MAX_CPUS as u64);

/// The shares of the first `nr_cpus` CPUs of both windows of temporary mappings: frames, and pageblocks.
pub const fn atomic_windows(nr_cpus: u8) -> (KernelRange, KernelRange) {
    (
        window(
            KMAP_ATOMIC.start(),
            KMAP_ATOMIC_SLOTS as u64 * PAGE_SIZE * nr_cpus as u64,
        ),
        window(
            KMAP_HUGE.start(),
            KMAP_HUGE_SLOTS as u64 * 2 * MIB * nr_cpus as u64,
        ),
    )
}

const fn window(start: u64, bytes: u64) -> KernelRange {
    match KernelRange::new(start, bytes) {
        Some(range) => range,
        None => panic!("windows are aligned to pages and lie in the lower half"),
    }
}

const fn is_apart(lower_end: u64, upper: u64) -> bool {
    lower_end.div_ceil(ROOT_ENTRY) <= upper / ROOT_ENTRY
}

const _: () = assert!(is_apart(DIRECT_MAP_END, VMEMMAP_BASE));
const _: () = assert!(is_apart(VMEMMAP_BASE + (DESCRIPTOR_BYTES << 32), VMALLOC.start()));
const _: () = assert!(is_apart(VMALLOC.end(), KMAP.start()));
const _: () = assert!(is_apart(KMAP.end(), KMAP_ATOMIC.start()));
const _: () = assert!(is_apart(KMAP_ATOMIC.end(), KMAP_HUGE.start()));
const _: () = assert!(KMAP_HUGE.end() <= KERNEL_END);
