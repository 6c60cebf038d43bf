//! The memory manager's view of the hardware: contents of frames through the direct map.

#![expect(unsafe_code, reason = "reads and writes page frames through the direct map")]

use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_kernel::physical::to_usize;
use guest_mm::frames::Frames;
use guest_mm::pfn::{Order, PAGE_SIZE, Pfn, WORDS_PER_PAGE};

/// Frames at their physical addresses. A frame that is not mapped (unplugged, or the nucleus's) faults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirectFrames;

fn pointer(pfn: Pfn) -> *mut u8 {
    with_exposed_provenance_mut(to_usize(pfn.gpa()))
}

fn word(pfn: Pfn, index: usize) -> *const AtomicU64 {
    assert!(index < WORDS_PER_PAGE, "word {index} of a frame");
    pointer(pfn).cast::<AtomicU64>().cast_const().wrapping_add(index)
}

pub(super) fn check(offset: usize, len: usize) {
    let inside = offset.checked_add(len).is_some_and(|end| end as u64 <= PAGE_SIZE);
    assert!(inside, "{len} bytes at offset {offset} of a frame");
}

impl Frames for DirectFrames {
    fn read(&self, pfn: Pfn, index: usize) -> u64 {
        // SAFETY: an aligned word inside a frame that the direct map maps, or a fault that ends the guest; page
        // tables are only ever accessed by words, so atomics never meet other accesses.
        unsafe { &*word(pfn, index) }.load(Ordering::Relaxed)
    }

    fn write(&self, pfn: Pfn, index: usize, value: u64) {
        // SAFETY: as for `read`.
        unsafe { &*word(pfn, index) }.store(value, Ordering::Release);
    }

    fn exchange(&self, pfn: Pfn, index: usize, value: u64) -> u64 {
        // SAFETY: as for `read`.
        unsafe { &*word(pfn, index) }.swap(value, Ordering::AcqRel)
    }

    fn zero(&self, pfn: Pfn, order: Order) {
        // SAFETY: the chunk is mapped and its owner is calling.
        unsafe { pointer(pfn).write_bytes(0, to_usize(order.bytes())) };
    }

    fn copy(&self, from: Pfn, to: Pfn, order: Order) {
        // SAFETY: both chunks are mapped, do not overlap, and nobody writes to them: processes were kept from the one
        // before (its mapping is gone and was flushed), and do not know the other yet.
        unsafe { pointer(from).copy_to_nonoverlapping(pointer(to), to_usize(order.bytes())) };
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, bytes: &mut [u8]) {
        check(offset, bytes.len());
        let start = pointer(pfn).wrapping_add(offset);
        // SAFETY: inside one mapped frame, by `check`; `bytes` is memory of the manager and never that frame.
        unsafe { start.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
    }

    fn write_bytes(&self, pfn: Pfn, offset: usize, bytes: &[u8]) {
        check(offset, bytes.len());
        let start = pointer(pfn).wrapping_add(offset);
        // SAFETY: as for `read_bytes`.
        unsafe { start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}
