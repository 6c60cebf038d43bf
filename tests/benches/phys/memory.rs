//! Memory that somebody manages.

#![expect(unsafe_code, reason = "memory of any size and alignment, without touching it")]

use std::alloc::{Layout, alloc_zeroed};
use std::slice;

/// Bytes of memory that nobody has touched, aligned to 4 MiB. Never freed: there are pointers into it.
pub(crate) fn leaked(size: usize) -> &'static mut [u8] {
    let layout = Layout::from_size_align(size, 4 << 20).expect("a size of memory");
    // SAFETY: the size is not zero.
    let start = unsafe { alloc_zeroed(layout) };
    assert!(!start.is_null(), "no address space for {size} bytes");
    // SAFETY: fresh, zeroed, of that size, and never freed.
    unsafe { slice::from_raw_parts_mut(start, size) }
}
