//! Switching the machine off and resetting it.

#![expect(unsafe_code, reason = "writes the ports that end the machine")]

use super::{nucleus, ports};
use guest_kernel::acpi::Acpi;

/// The keyboard controller's command port and its command "pulse the reset line".
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;

/// Switches the machine off through ACPI; resets it where that is not possible.
pub(crate) fn off(acpi: &Acpi) -> ! {
    for end in [acpi.power_off, acpi.reset].into_iter().flatten() {
        // SAFETY: the machine ends here; nothing is left to be disturbed.
        unsafe { ports::write(end.port, end.value) };
    }
    reset()
}

/// Resets the machine through ACPI, or by whatever works where that is not possible.
pub(crate) fn restart(acpi: &Acpi) -> ! {
    if let Some(reset) = acpi.reset {
        // SAFETY: the machine ends here; nothing is left to be disturbed.
        unsafe { ports::write(reset.port, reset.value) };
    }
    reset()
}

/// Resets the machine by whatever works without knowing it.
pub(crate) fn reset() -> ! {
    // SAFETY: the machine ends here; nothing is left to be disturbed.
    unsafe { ports::write(I8042_COMMAND, I8042_RESET) };
    nucleus::reset()
}
