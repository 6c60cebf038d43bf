//! Where the parts of this image lie: the linker script's symbols (guest.ld).

#![expect(unsafe_code, reason = "names the linker script's symbols")]

use core::ops::Range;

unsafe extern "C" {
    safe static nucleus_start: u8;
    safe static image_start: u8;
    safe static rodata_start: u8;
    safe static data_start: u8;
    safe static fault_stack_guard: u8;
    safe static manager_stack_guard: u8;
    safe static image_end: u8;
}

const PAGE: u64 = 4096;

macro_rules! address_of {
    ($symbol:ident) => {
        (&raw const $symbol).addr() as u64
    };
}

/// The nucleus's 2 MiB page.
pub(crate) fn nucleus() -> u64 {
    address_of!(nucleus_start)
}

/// Code.
pub(crate) fn text() -> Range<u64> {
    address_of!(image_start)..address_of!(rodata_start)
}

/// Constants, the programs among them.
pub(crate) fn rodata() -> Range<u64> {
    address_of!(rodata_start)..address_of!(data_start)
}

/// Everything that is written to, without the pages that guard the stacks.
pub(crate) fn data() -> [Range<u64>; 3] {
    let (fault, manager) = (address_of!(fault_stack_guard), address_of!(manager_stack_guard));
    [
        address_of!(data_start)..fault,
        fault + PAGE..manager,
        manager + PAGE..end(),
    ]
}

/// The page below the manager's stack: touching it means that the stack has overflowed.
pub(crate) fn stack_guard() -> Range<u64> {
    let start = address_of!(manager_stack_guard);
    start..start + PAGE
}

/// The first byte behind the image; page-aligned.
pub(crate) fn end() -> u64 {
    address_of!(image_end)
}
