//! The device status field as a pure state machine (virtio 1.3, sections 2.1 and 3.1.1).
//!
//! A driver climbs four steps: ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK. It may take several at once, never skip
//! one and never step back, except by writing 0, which resets the device from any state.

use virtio_wire::status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, RESET};

/// How far the driver has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Reset,
    Acknowledged,
    Driver,
    FeaturesOk,
    DriverOk,
}

impl Stage {
    const ALL: [Stage; 5] = [
        Stage::Reset,
        Stage::Acknowledged,
        Stage::Driver,
        Stage::FeaturesOk,
        Stage::DriverOk,
    ];

    const fn bits(self) -> u32 {
        match self {
            Stage::Reset => RESET,
            Stage::Acknowledged => ACKNOWLEDGE,
            Stage::Driver => ACKNOWLEDGE | DRIVER,
            Stage::FeaturesOk => ACKNOWLEDGE | DRIVER | FEATURES_OK,
            Stage::DriverOk => ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
        }
    }

    fn from_bits(bits: u32) -> Option<Stage> {
        Stage::ALL.into_iter().find(|stage| stage.bits() == bits)
    }
}

/// The device status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceStatus {
    stage: Stage,
    failed: bool,
    needs_reset: bool,
}

/// What a write to the status register does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusWrite {
    /// The device is reset.
    Reset,
    /// The status is now this, and nothing else happens.
    Moved(DeviceStatus),
    /// The status is now this, and the device goes live.
    Activated(DeviceStatus),
    /// The driver broke the sequence: nothing happens.
    Refused,
}

impl DeviceStatus {
    /// The status of a device that no driver has touched.
    pub(crate) const RESET: DeviceStatus = DeviceStatus {
        stage: Stage::Reset,
        failed: false,
        needs_reset: false,
    };

    /// Value of the status register.
    pub(crate) fn bits(self) -> u32 {
        let failed = if self.failed { FAILED } else { 0 };
        let needs_reset = if self.needs_reset { DEVICE_NEEDS_RESET } else { 0 };
        self.stage.bits() | failed | needs_reset
    }

    /// Whether the device may use buffers: the driver is ready and neither side has given up.
    pub(crate) fn is_live(self) -> bool {
        self.is_driver_ok() && !self.failed && !self.needs_reset
    }

    /// Whether the driver has given the device up.
    pub(crate) fn has_failed(self) -> bool {
        self.failed
    }

    /// Whether the driver has set DRIVER_OK.
    pub(crate) fn is_driver_ok(self) -> bool {
        self.stage == Stage::DriverOk
    }

    /// Whether feature negotiation is over.
    pub(crate) fn is_negotiated(self) -> bool {
        self.stage >= Stage::FeaturesOk
    }

    /// Whether the device has asked for a reset.
    pub(crate) fn needs_reset(self) -> bool {
        self.needs_reset
    }

    /// The same with DEVICE_NEEDS_RESET, which only a reset clears.
    pub(crate) fn with_needs_reset(self) -> DeviceStatus {
        DeviceStatus {
            needs_reset: true,
            ..self
        }
    }

    /// What happens when the driver writes `written`. `features_fit` tells whether the device can work with the features
    /// that the driver has accepted; if not, FEATURES_OK stays unset and the driver finds out by reading it back.
    pub(crate) fn write(self, written: u32, features_fit: bool) -> StatusWrite {
        if written == RESET {
            return StatusWrite::Reset;
        }
        if written & FAILED != 0 {
            return StatusWrite::Moved(DeviceStatus { failed: true, ..self });
        }
        // DEVICE_NEEDS_RESET is the device's own bit, unknown bits mean nothing (yet): both are ignored.
        match Stage::from_bits(written & Stage::DriverOk.bits()) {
            _ if self.failed => StatusWrite::Refused,
            None => StatusWrite::Refused,
            Some(stage) if stage < self.stage => StatusWrite::Refused,
            Some(stage) if self.is_negotiated() || stage < Stage::FeaturesOk || features_fit => {
                let status = DeviceStatus { stage, ..self };
                match (self.stage, stage) {
                    (Stage::DriverOk, Stage::DriverOk) => StatusWrite::Moved(status),
                    (_, Stage::DriverOk) => StatusWrite::Activated(status),
                    _ => StatusWrite::Moved(status),
                }
            }
            Some(_) => StatusWrite::Moved(DeviceStatus {
                stage: Stage::Driver,
                ..self
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(status: DeviceStatus, written: u32) -> DeviceStatus {
        match status.write(written, true) {
            StatusWrite::Moved(status) | StatusWrite::Activated(status) => status,
            other => panic!("{written:#x} on {:#x}: {other:?}", status.bits()),
        }
    }

    fn at(stage: Stage) -> DeviceStatus {
        DeviceStatus {
            stage,
            failed: false,
            needs_reset: false,
        }
    }

    #[test]
    fn a_driver_climbs_step_by_step() {
        let mut status = DeviceStatus::RESET;
        for written in [1, 3, 11] {
            status = moved(status, written);
            assert_eq!(status.bits(), written);
            assert!(!status.is_live());
        }
        assert_eq!(
            status.write(15, true),
            StatusWrite::Activated(at(Stage::DriverOk))
        );
        assert!(at(Stage::DriverOk).is_live());
    }

    #[test]
    fn a_driver_may_take_two_steps_at_once() {
        assert_eq!(
            moved(DeviceStatus::RESET, ACKNOWLEDGE | DRIVER),
            at(Stage::Driver)
        );
    }

    #[test]
    fn no_step_is_skipped() {
        for written in [
            DRIVER,
            FEATURES_OK,
            DRIVER_OK,
            ACKNOWLEDGE | FEATURES_OK,
            ACKNOWLEDGE | DRIVER | DRIVER_OK,
        ] {
            assert_eq!(DeviceStatus::RESET.write(written, true), StatusWrite::Refused);
        }
    }

    #[test]
    fn no_bit_is_cleared_but_by_reset() {
        for stage in Stage::ALL {
            assert_eq!(at(stage).write(0, true), StatusWrite::Reset);
            for lower in Stage::ALL
                .into_iter()
                .filter(|lower| Stage::Reset < *lower && *lower < stage)
            {
                assert_eq!(at(stage).write(lower.bits(), true), StatusWrite::Refused);
            }
        }
    }

    #[test]
    fn features_ok_is_not_kept_when_the_features_do_not_fit() {
        let refused = at(Stage::Driver).write(ACKNOWLEDGE | DRIVER | FEATURES_OK, false);
        assert_eq!(refused, StatusWrite::Moved(at(Stage::Driver)));
        let all_at_once = DeviceStatus::RESET.write(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK, false);
        assert_eq!(all_at_once, StatusWrite::Moved(at(Stage::Driver)));
    }

    #[test]
    fn a_failed_device_takes_nothing_but_a_reset() {
        let failed = moved(at(Stage::DriverOk), 15 | FAILED);
        assert_eq!(failed.bits(), 15 | FAILED);
        assert!(!failed.is_live());
        assert_eq!(failed.write(15, true), StatusWrite::Refused);
        assert_eq!(failed.write(0, true), StatusWrite::Reset);
    }

    #[test]
    fn the_driver_can_neither_set_nor_clear_device_needs_reset() {
        assert_eq!(
            moved(DeviceStatus::RESET, ACKNOWLEDGE | DEVICE_NEEDS_RESET),
            at(Stage::Acknowledged)
        );
        let broken = at(Stage::DriverOk).with_needs_reset();
        assert!(!broken.is_live());
        assert!(moved(broken, 15).needs_reset());
    }

    #[test]
    fn going_live_happens_once() {
        assert_eq!(
            at(Stage::DriverOk).write(15, true),
            StatusWrite::Moved(at(Stage::DriverOk))
        );
    }

    #[test]
    fn every_value_written_to_every_status_leaves_a_status_of_the_sequence() {
        for stage in Stage::ALL {
            for written in 0..0x400 {
                if let StatusWrite::Moved(status) | StatusWrite::Activated(status) =
                    at(stage).write(written, true)
                {
                    assert!(status.stage >= stage);
                    assert_eq!(Stage::from_bits(status.bits() & 0xf), Some(status.stage));
                }
            }
        }
    }
}
