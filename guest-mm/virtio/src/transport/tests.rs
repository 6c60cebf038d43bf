//! Claims about the transport, against a device that the test controls.

use super::*;
use crate::testing::{Access, FakeDevice, TestMemory};
use std::vec;
use std::vec::Vec;
use virtio_wire::{device_id, feature};

const A: u32 = status::ACKNOWLEDGE;
const D: u32 = A | status::DRIVER;
const F: u32 = D | status::FEATURES_OK;

fn device(memory: &TestMemory) -> FakeDevice<'_, TestMemory> {
    FakeDevice::new(memory, device_id::MEM, 0b11)
}

fn nothing<R>(_: &Setup<'_, R>) -> Result<(), TransportError> {
    Ok(())
}

#[test]
fn what_is_not_the_wanted_device_is_left_alone() {
    let memory = TestMemory::new(0);
    let wrong = |spoil: fn(&FakeDevice<'_, TestMemory>)| {
        let device = device(&memory);
        spoil(&device);
        let error = Transport::probe(&device, device_id::MEM).unwrap_err();
        assert!(
            device
                .accesses()
                .iter()
                .all(|access| matches!(access, Access::Read(_)))
        );
        error
    };
    assert_eq!(
        wrong(|device| device.magic.set(0)),
        TransportError::NotVirtio { magic: 0 }
    );
    assert_eq!(
        wrong(|device| device.version.set(1)),
        TransportError::UnknownVersion { version: 1 }
    );
    let other = |found| TransportError::OtherDevice {
        found,
        wanted: device_id::MEM,
    };
    assert_eq!(wrong(|device| device.device_id.set(0)), other(0));
    assert_eq!(wrong(|device| device.device_id.set(3)), other(3));
}

#[test]
fn initialisation_follows_the_steps_of_section_3_1_1() {
    let memory = TestMemory::new(0);
    let device = device(&memory);
    let transport = Transport::probe(&device, device_id::MEM).unwrap();
    let wanted = Features {
        supported: 0b10,
        required: 0,
    };
    let features = transport
        .initialise(wanted, |setup| Ok::<_, TransportError>(setup.features()))
        .unwrap();
    assert_eq!(features, feature::VERSION_1 | 0b10);
    assert_eq!(device.accepted.get(), features);
    assert_eq!(
        device.written(Register::Status),
        [0, A, D, F, F | status::DRIVER_OK]
    );
    let order: Vec<Access> = device.accesses();
    let position = |access| order.iter().position(|&made| made == access).unwrap();
    // Features are chosen between DRIVER and FEATURES_OK, and FEATURES_OK is read back.
    assert!(
        position(Access::Write(Register::Status, D))
            < position(Access::Write(Register::DriverFeatures, 0b10))
    );
    assert!(
        position(Access::Write(Register::DriverFeatures, 0b10))
            < position(Access::Write(Register::Status, F))
    );
    assert_eq!(
        order[position(Access::Write(Register::Status, F)) + 1],
        Access::Read(Register::Status)
    );
}

#[test]
fn a_device_without_required_features_is_marked_failed() {
    let memory = TestMemory::new(0);
    let device = device(&memory);
    let transport = Transport::probe(&device, device_id::MEM).unwrap();
    let wanted = Features {
        supported: 0,
        required: 0b101,
    };
    let error = transport.initialise(wanted, nothing).unwrap_err();
    assert_eq!(error, TransportError::FeaturesMissing { missing: 0b100 });
    assert_eq!(device.status.get(), D | status::FAILED);

    device.offered.set(0b101);
    let error = transport.initialise(Features::default(), nothing).unwrap_err();
    assert_eq!(
        error,
        TransportError::FeaturesMissing {
            missing: feature::VERSION_1
        }
    );
}

#[test]
fn a_device_that_drops_features_ok_is_marked_failed_and_never_driver_ok() {
    let memory = TestMemory::new(0);
    let device = device(&memory);
    device.insists_on.set(0b01);
    let transport = Transport::probe(&device, device_id::MEM).unwrap();
    let wanted = Features {
        supported: 0b10,
        required: 0,
    };
    let error = transport.initialise(wanted, nothing).unwrap_err();
    assert_eq!(
        error,
        TransportError::FeaturesRefused {
            accepted: feature::VERSION_1 | 0b10
        }
    );
    assert_eq!(device.written(Register::Status), [0, A, D, F, D | status::FAILED]);
}

#[test]
fn an_error_during_set_up_marks_the_device_failed() {
    let memory = TestMemory::new(0);
    let device = device(&memory);
    let transport = Transport::probe(&device, device_id::MEM).unwrap();
    let stop = TransportError::ConfigUnstable;
    assert_eq!(
        transport.initialise::<(), _>(Features::default(), |_| Err(stop)),
        Err(stop)
    );
    assert_eq!(device.status.get(), F | status::FAILED);
}

#[test]
fn a_reset_that_never_ends_is_given_up() {
    let memory = TestMemory::new(0);
    let device = device(&memory);
    device.reset_status.set(0x40);
    let transport = Transport::probe(&device, device_id::MEM).unwrap();
    let error = transport.initialise(Features::default(), nothing).unwrap_err();
    assert_eq!(error, TransportError::ResetStuck { status: 0x40 });
}

#[test]
fn a_queue_size_is_a_power_of_two_within_what_both_can() {
    let memory = TestMemory::new(0);
    let device = device(&memory);
    let transport = Transport::probe(&device, device_id::MEM).unwrap();
    let size = |largest: u32| {
        device.queue_size_max.set(largest);
        transport
            .initialise(Features::default(), |setup| setup.queue_size(0, 2..=64))
            .map_err(|error| {
                assert_eq!(error, TransportError::QueueTooSmall { index: 0, largest });
            })
    };
    assert_eq!(
        [0, 1, 2, 3, 63, 64, 65, u32::MAX].map(size),
        [Err(()), Err(()), Ok(2), Ok(2), Ok(32), Ok(64), Ok(64), Ok(64)]
    );
}

#[test]
fn a_configuration_that_changes_under_the_read_is_read_again() {
    let memory = TestMemory::new(0);
    let device = device(&memory);
    device.config.borrow_mut().extend([1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let transport = Transport::probe(&device, device_id::MEM).unwrap();
    let read = || transport.read_config(|config| (config.read64(0), config.read16(6), config.read8(8)));

    device.accesses();
    assert_eq!(read(), Ok((0x0807_0605_0403_0201, 0x0807, 9)));
    // Two 32-bit, a 16-bit and an 8-bit access, between two reads of the generation.
    assert_eq!(device.accesses().len(), 6);

    device.unsteady_reads.set(5);
    assert_eq!(read(), Ok((0x0807_0605_0403_0201, 0x0807, 9)));
    assert_eq!(device.accesses().len(), 1 + 3 * 5);

    device.unsteady_reads.set(u32::MAX);
    assert_eq!(read(), Err(TransportError::ConfigUnstable));
}

#[test]
fn an_interrupt_costs_one_read_and_one_write_and_a_spurious_one_no_write() {
    let memory = TestMemory::new(0);
    let device = device(&memory);
    let transport = Transport::probe(&device, device_id::MEM).unwrap();
    device.accesses();
    device.interrupt.set(0b11);
    let both = InterruptCause {
        used_buffers: true,
        config_change: true,
    };
    assert_eq!(transport.take_interrupt(), both);
    let expected = vec![
        Access::Read(Register::InterruptStatus),
        Access::Write(Register::InterruptAck, 0b11),
    ];
    assert_eq!(device.accesses(), expected);

    assert_eq!(transport.take_interrupt(), InterruptCause::default());
    assert_eq!(device.accesses(), [Access::Read(Register::InterruptStatus)]);
}

#[test]
fn a_device_that_needs_a_reset_is_recognised() {
    let memory = TestMemory::new(0);
    let device = device(&memory);
    let transport = Transport::probe(&device, device_id::MEM).unwrap();
    transport.initialise(Features::default(), nothing).unwrap();
    assert!(!transport.needs_reset());
    device
        .status
        .set(device.status.get() | status::DEVICE_NEEDS_RESET);
    assert!(transport.needs_reset());
    transport.fail();
    assert_eq!(device.status.get() & status::FAILED, status::FAILED);
}
