//! What little firmware there is: a reset for guests that jump to where a PC's firmware begins.
//!
//! Linux does so on a hardware-reduced platform without EFI: it takes the reset register for EFI's business, finds no
//! EFI, and falls back to real mode and `ffff:0000` (arch/x86/kernel/reboot.c, `reboot_init` and `machine_real_restart`).

use vm_memory::{Bytes, GuestAddress};

use super::{BootError, BootRam};
use crate::machine::layout::{HIMEM_START, I8042_COMMAND, RESET_VECTOR};

/// Real-mode code: `mov al, 0xfe; out 0x64, al` asks the keyboard controller for a reset, `hlt; jmp` waits for it.
const CODE: [u8; 7] = [0xB0, 0xFE, 0xE6, I8042_COMMAND.to_le_bytes()[0], 0xF4, 0xEB, 0xFD];

const _: () = assert!(I8042_COMMAND <= u8::MAX as u16, "the short form of `out`");
const _: () = assert!(CODE.len() as u64 <= HIMEM_START - RESET_VECTOR);

/// Writes the code to where it belongs.
///
/// # Errors
/// Guest memory does not reach it.
pub(super) fn write_reset_vector(ram: &BootRam) -> Result<(), BootError> {
    Ok(ram.write_slice(&CODE, GuestAddress(RESET_VECTOR))?)
}
