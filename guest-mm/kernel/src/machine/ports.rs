//! I/O ports. The manager may use them all (the nucleus's I/O bitmap), its processes none.

#![expect(unsafe_code, reason = "port I/O needs the instructions")]

use core::arch::asm;

/// Reads a byte.
///
/// # Safety
/// Reading the port must not have effects that break what the manager relies on.
pub(crate) unsafe fn read(port: u16) -> u8 {
    let value;
    // SAFETY: the instruction touches no memory; the caller vouches for the device.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a byte.
///
/// # Safety
/// Writing the port must not have effects that break what the manager relies on.
pub(crate) unsafe fn write(port: u16, value: u8) {
    // SAFETY: as for `read`.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}
