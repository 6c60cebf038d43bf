//! The I/O APIC (Intel 82093AA): delivers the devices' interrupts to a CPU.

use super::registers::MmioRegisters;
use guest_virtio::transport::Registers;

/// Bytes of its register window.
pub(crate) const SIZE: u64 = 0x20;
/// Where the first one of a PC is, for machines without ACPI.
pub(crate) const PC_ADDRESS: u64 = 0xfec0_0000;

const SELECT: u64 = 0;
const WINDOW: u64 = 0x10;
const VERSION: u32 = 1;
const REDIRECTION: u32 = 0x10;

/// One I/O APIC.
#[derive(Debug)]
pub(crate) struct IoApic {
    registers: MmioRegisters,
    gsi_base: u32,
    inputs: u32,
}

impl IoApic {
    /// The one behind `registers`, whose first input is the global system interrupt `gsi_base`.
    pub(crate) fn new(registers: MmioRegisters, gsi_base: u32) -> Self {
        registers.write32(SELECT, VERSION);
        let inputs = (registers.read32(WINDOW) >> 16 & 0xff) + 1;
        Self {
            registers,
            gsi_base,
            inputs,
        }
    }

    /// Sends the interrupt `gsi` (edge-triggered, active high) as `vector` to the CPU with this APIC id. Returns
    /// whether it is one of this I/O APIC's inputs.
    pub(crate) fn route(&self, gsi: u32, vector: u8, apic_id: u8) -> bool {
        let Some(input) = gsi
            .checked_sub(self.gsi_base)
            .filter(|&input| input < self.inputs)
        else {
            return false;
        };
        // The half with the mask bit comes last, when the destination is right.
        for (half, value) in [(1, u32::from(apic_id) << 24), (0, u32::from(vector))] {
            self.registers.write32(SELECT, REDIRECTION + 2 * input + half);
            self.registers.write32(WINDOW, value);
        }
        true
    }
}
