//! What the registers answer, by width and offset, and how status and features are negotiated.

use virtio_wire::mmio::Register;
use virtio_wire::{feature, status};

use super::*;

fn untouched() -> EchoDriver {
    Driver::new(Echo::default())
}

#[test]
fn a_device_introduces_itself() {
    let driver = untouched();
    assert_eq!(driver.read(Register::MagicValue), 0x7472_6976);
    assert_eq!(driver.read(Register::Version), 2);
    assert_eq!(driver.read(Register::DeviceId), 77);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_shared_memory_region_that_does_not_exist_has_length_and_base_minus_one() {
    let driver = untouched();
    for register in [
        Register::ShmLenLow,
        Register::ShmLenHigh,
        Register::ShmBaseLow,
        Register::ShmBaseHigh,
    ] {
        assert_eq!(driver.read(register), u32::MAX);
    }
}

#[test]
fn control_registers_read_as_zeros_with_any_other_width_or_offset() {
    let driver = untouched();
    for (offset, len) in [
        (0, 1),
        (0, 2),
        (0, 8),
        (1, 4),
        (2, 2),
        (0x00c, 3),
        (0x018, 4),
        (0xfd, 4),
        (0x200, 4),
    ] {
        let mut data = vec![0xee; len];
        driver.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; len], "{len} bytes at {offset:#x}");
    }
    driver.transport.read(0, &mut []);
}

#[test]
fn control_registers_ignore_writes_of_any_other_width_or_offset() {
    let mut driver = untouched();
    for (offset, data) in [
        (0x70, &[1u8][..]),
        (0x70, &[1, 0]),
        (0x70, &[1, 0, 0, 0, 0, 0, 0, 0]),
        (0x71, &[1; 4]),
    ] {
        assert_eq!(driver.transport.write(&driver.mem, offset, data), Effects::NONE);
        assert_eq!(driver.status(), 0);
    }
    assert_eq!(driver.transport.write(&driver.mem, 0x70, &[]), Effects::NONE);
}

#[test]
fn the_configuration_space_takes_every_width() {
    let mut driver = untouched();
    for (offset, expected) in [
        (0x100, &[1u8][..]),
        (0x101, &[2, 3]),
        (0x100, &[1, 2, 3, 4]),
        (0x103, &[4, 5, 0, 0]),
    ] {
        let mut data = vec![0xee; expected.len()];
        driver.transport.read(offset, &mut data);
        assert_eq!(data, expected);
    }
    let _ = driver.transport.write(&driver.mem, 0x102, &[7, 8]);
    assert_eq!(driver.transport.device().written, [(2, vec![7, 8])]);
}

#[test]
fn the_offer_is_that_of_the_device_and_of_the_transport() {
    let mut driver = untouched();
    let low = driver.read(Register::DeviceFeatures);
    let _ = driver.write(Register::DeviceFeaturesSel, 1);
    let high = driver.read(Register::DeviceFeatures);
    let common = feature::VERSION_1 | feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;
    assert_eq!(u64::from(low) | u64::from(high) << 32, NEEDED | OPTIONAL | common);
}

#[test]
fn features_are_fixed_by_features_ok() {
    let mut driver = live();
    assert_eq!(
        driver.transport.negotiated_features(),
        feature::VERSION_1 | NEEDED | OPTIONAL
    );
    let _ = driver.write(Register::DriverFeaturesSel, 0);
    let _ = driver.write(Register::DriverFeatures, 0);
    assert_eq!(
        driver.transport.negotiated_features(),
        feature::VERSION_1 | NEEDED | OPTIONAL
    );
}

#[test]
fn features_ok_is_refused_for_features_that_do_not_fit() {
    for features in [NEEDED, feature::VERSION_1, feature::VERSION_1 | NEEDED | 1] {
        let mut driver = untouched();
        driver.negotiate(features);
        assert_eq!(
            driver.status(),
            status::ACKNOWLEDGE | status::DRIVER,
            "{features:#x}"
        );
        assert_eq!(driver.transport.negotiated_features(), 0);
    }
}

#[test]
fn a_reset_from_any_state_lets_the_driver_start_again() {
    let mut driver = live();
    for features in [
        feature::VERSION_1 | NEEDED,
        feature::VERSION_1 | NEEDED | feature::RING_EVENT_IDX,
    ] {
        let _ = driver.transport.configure(|_| true);
        assert_ne!(driver.read(Register::InterruptStatus), 0);
        let effects = driver.write(Register::Status, 0);
        assert_eq!(
            effects,
            Effects {
                lifecycle: Some(Lifecycle::Reset),
                ..Effects::NONE
            }
        );
        assert_eq!((driver.status(), driver.read(Register::InterruptStatus)), (0, 0));
        assert_eq!(driver.read(Register::QueueReady), 0);
        assert!(!driver.transport.is_live());
        driver.initialise(features);
        assert_eq!(driver.transport.negotiated_features(), features);
    }
    // Each round resets twice: here, and at the start of the driver's sequence, as at its first start.
    assert_eq!(driver.transport.device().resets, 5);
}

#[test]
fn a_driver_that_has_reset_the_device_is_expected_back_until_it_fails_or_the_machine_is_reset() {
    let mut driver = untouched();
    assert!(!driver.transport.is_restarting(), "there was none yet");
    driver.initialise(feature::VERSION_1 | NEEDED);
    assert!(!driver.transport.is_restarting(), "it is there");
    for status in [0, status::ACKNOWLEDGE, status::ACKNOWLEDGE | status::DRIVER] {
        let _ = driver.write(Register::Status, status);
        assert!(driver.transport.is_restarting());
    }
    let _ = driver.write(Register::Status, status::FAILED);
    assert!(!driver.transport.is_restarting(), "it has given up");
    driver.initialise(feature::VERSION_1 | NEEDED);
    driver.transport.reset_with_machine();
    assert!(!driver.transport.is_restarting(), "it is no more");
}

#[test]
fn an_interrupt_is_acknowledged_bit_by_bit() {
    let mut driver = live();
    let _ = driver.transport.configure(|_| true);
    driver.offer(0, &[crate::testing::readable(0, 0)]);
    let _ = driver.kick(0);
    assert_eq!(driver.read(Register::InterruptStatus), 3);
    let _ = driver.write(Register::InterruptAck, 1);
    assert_eq!(driver.read(Register::InterruptStatus), 2);
    let _ = driver.write(Register::InterruptAck, 0xffff_ffff);
    assert_eq!(driver.read(Register::InterruptStatus), 0);
}

#[test]
fn a_status_out_of_order_is_ignored_and_counted() {
    let mut driver = untouched();
    let _ = driver.write(Register::Status, status::DRIVER_OK);
    assert_eq!(driver.status(), 0);
    let fault = GuestFault::StatusSequence {
        status: 0,
        written: status::DRIVER_OK,
    };
    assert_eq!(driver.transport.last_guest_fault(), Some(fault));
    assert_eq!(driver.transport.guest_faults(), 1);
}

#[test]
fn read_only_and_unoffered_registers_ignore_writes() {
    let mut driver = live();
    for register in Register::ALL {
        let written_by_drivers = matches!(
            register,
            Register::Status | Register::QueueReady | Register::QueueSel | Register::DeviceFeaturesSel
        );
        if written_by_drivers {
            continue;
        }
        let before = driver.read(register);
        let effects = driver.write(register, 0);
        assert_eq!(effects.lifecycle, None);
        assert_eq!(driver.read(register), before, "{register:?}");
    }
    assert_eq!(driver.status(), 15);
}
