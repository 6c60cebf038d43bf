//! Memory that somebody manages.

#![expect(unsafe_code, reason = "memory of any size and alignment, without touching it")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::slice;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 4 << 20).expect("a size of memory")
}

/// Gives back what [`leaked`] has given.
///
/// # Safety
/// It begins at `start`, has that size, and nobody has a reference into it.
pub(crate) unsafe fn give_back(start: *mut u8, size: usize) {
    // SAFETY: as the caller says.
    unsafe { dealloc(start, layout(size)) };
}

/// Bytes of memory that nobody has touched, aligned to 4 MiB. Never freed unless by [`give_back`]: there are pointers into it.
pub(crate) fn leaked(size: usize) -> &'static mut [u8] {
    let layout = layout(size);
    // SAFETY: the size is not zero.
    let start = unsafe { alloc_zeroed(layout) };
    assert!(!start.is_null(), "no address space for {size} bytes");
    // SAFETY: fresh, zeroed, of that size, and never freed.
    unsafe { slice::from_raw_parts_mut(start, size) }
}
