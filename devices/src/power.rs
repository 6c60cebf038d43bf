//! How a guest turns itself off: the ACPI sleep registers of a hardware-reduced platform, and the reset register.
//!
//! ACPI 6.5, section 4.8.3.7 (sleep control and status registers) and 4.8.3.6 (reset register). The FADT tells the guest the
//! ports and [`RESET_VALUE`], `\_S5` tells it [`SLP_TYP_S5`]; both come from here.

/// The sleep type that `\_S5` names: soft off.
pub const SLP_TYP_S5: u8 = 5;

/// The value that the FADT tells the guest to write to the reset register.
pub const RESET_VALUE: u8 = SYS_RST | RST_CPU;

/// Sleep control: where the sleep type lies, 3 bits wide.
const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 0b111 << SLP_TYP_SHIFT;
/// Sleep control: go to sleep now.
const SLP_EN: u8 = 1 << 5;

/// Reset control, as chipsets have it at port 0xcf9: the next reset is a full one.
const SYS_RST: u8 = 1 << 1;
/// Reset control: reset now.
const RST_CPU: u8 = 1 << 2;

/// What the guest asks of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Turn off (S5).
    PowerOff,
    /// Start again.
    Reset,
}

/// What a byte written to the sleep control register asks for. Sleep states other than S5 do not exist here.
pub fn write_sleep_control(value: u8) -> Option<PowerRequest> {
    let sleep_type = (value & SLP_TYP_MASK) >> SLP_TYP_SHIFT;
    (value & SLP_EN != 0 && sleep_type == SLP_TYP_S5).then_some(PowerRequest::PowerOff)
}

/// What a read of the sleep control register returns: SLP_EN reads as zero, and no type is remembered.
pub fn read_sleep_control() -> u8 {
    0
}

/// What a read of the sleep status register returns: WAK_STS is never set, as the machine never wakes from a sleep.
pub fn read_sleep_status() -> u8 {
    0
}

/// The reset control register at port 0xcf9: remembers the kind of reset, resets when told so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResetControl {
    kind: u8,
}

impl ResetControl {
    /// What a read returns: the kind of reset, without the bit that starts it.
    pub fn read(self) -> u8 {
        self.kind
    }

    /// What a write asks for.
    pub fn write(&mut self, value: u8) -> Option<PowerRequest> {
        self.kind = value & SYS_RST;
        (value & RST_CPU != 0).then_some(PowerRequest::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_with_slp_en_powers_off() {
        for value in 0..=u8::MAX {
            let off = value & 0x20 != 0 && (value >> 2) & 7 == 5;
            assert_eq!(
                write_sleep_control(value),
                off.then_some(PowerRequest::PowerOff),
                "{value:#x}"
            );
        }
    }

    #[test]
    fn the_value_of_the_fadt_resets() {
        assert_eq!(RESET_VALUE, 0x06);
        assert_eq!(
            ResetControl::default().write(RESET_VALUE),
            Some(PowerRequest::Reset)
        );
    }

    #[test]
    fn a_driver_that_writes_the_kind_first_resets_with_its_second_write() {
        let mut control = ResetControl::default();
        assert_eq!(control.write(0x02), None);
        assert_eq!(control.read(), 0x02);
        assert_eq!(control.write(control.read() | 0x04), Some(PowerRequest::Reset));
    }
}
