//! The pvpanic device: one port by which a guest says that it has panicked (QEMU `docs/specs/pvpanic.rst`).

use virtio_wire::pvpanic::{CRASH_LOADED, PANICKED};

/// What a guest reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicEvent {
    /// The guest has panicked and will do nothing more.
    Panicked,
    /// The guest has panicked and deals with it itself, as with a crash kernel.
    CrashLoaded,
}

/// The events that are supported, which is what a read of the port returns.
pub fn read() -> u8 {
    PANICKED | CRASH_LOADED
}

/// What a byte written to the port reports, if anything. Unknown bits are ignored; of two events the graver one counts.
pub fn write(value: u8) -> Option<PanicEvent> {
    match value {
        value if value & PANICKED != 0 => Some(PanicEvent::Panicked),
        value if value & CRASH_LOADED != 0 => Some(PanicEvent::CrashLoaded),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_events_are_offered() {
        assert_eq!(read(), 3);
    }

    #[test]
    fn every_byte_reports_its_graver_event_or_nothing() {
        for value in 0..=u8::MAX {
            let expected = match (value & 1 != 0, value & 2 != 0) {
                (true, _) => Some(PanicEvent::Panicked),
                (false, true) => Some(PanicEvent::CrashLoaded),
                (false, false) => None,
            };
            assert_eq!(write(value), expected);
        }
    }
}
