//! Where the parts of this image lie: the linker script's symbols (guest.ld).

#![expect(unsafe_code, reason = "names the linker script's symbols, and a section")]

use core::ops::Range;

unsafe extern "C" {
    safe static nucleus_start: u8;
    safe static image_start: u8;
    safe static rodata_start: u8;
    safe static data_start: u8;
    safe static boot_stacks: u8;
    safe static image_end: u8;
}

/// All programs (package guest-programs), built by build.rs: in a section of their own, in which the VMM finds them
/// (`ballast disk programs`).
#[unsafe(link_section = ".guest_programs")]
pub(crate) static PROGRAMS: [u8; include_bytes!(env!("GUEST_PROGRAMS")).len()] =
    *include_bytes!(env!("GUEST_PROGRAMS"));

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

/// Everything that is written to, with the boot CPU's stacks at its end.
pub(crate) fn data() -> Range<u64> {
    address_of!(data_start)..end()
}

/// Where the boot CPU's stacks start.
pub(crate) fn stacks() -> u64 {
    address_of!(boot_stacks)
}

/// The first byte behind the image; page-aligned.
pub(crate) fn end() -> u64 {
    address_of!(image_end)
}
