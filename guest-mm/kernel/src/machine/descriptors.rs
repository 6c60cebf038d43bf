//! The descriptors of all frames, as the one array that they are in the manager's address space.

#![expect(unsafe_code, reason = "names memory that only page tables know of")]

use core::ptr::with_exposed_provenance;
use guest_kernel::layout::VMEMMAP_BASE;
use guest_kernel::physical::to_usize;
use guest_mm::Page;
use guest_mm::kernel_map::Vmemmap;

/// Descriptors in the array: one for every frame number there is.
const NR_DESCRIPTORS: usize = u32::MAX as usize;

/// The descriptor of frame n at index n, for every frame there could be.
///
/// Those of frames that are not online read as zeroes and must not be written to: that faults.
///
/// # Safety
/// The tables that `vmemmap` belongs to must be the manager's on every CPU from now on.
pub(crate) unsafe fn all_pages(vmemmap: &Vmemmap) -> &'static [Page] {
    assert_eq!(
        vmemmap.base(),
        VMEMMAP_BASE,
        "where the layout has the descriptors"
    );
    let first = with_exposed_provenance::<Page>(to_usize(VMEMMAP_BASE));
    // SAFETY: the whole array is mapped and readable for ever, by this function's own condition: `Vmemmap::new` maps all
    // of it to zeroes, and `back` and `unback` only exchange one readable frame for another. It is aligned (the base is a
    // multiple of 512 GiB) and smaller than isize::MAX (128 GiB). Descriptors are made of atomics, of which any bytes are
    // valid values; nothing else refers to these addresses, and the frames behind them belong to the array while they
    // are mapped there, so that nobody writes to them but through these atomics.
    unsafe { core::slice::from_raw_parts(first, NR_DESCRIPTORS) }
}
