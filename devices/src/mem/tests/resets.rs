//! What outlives a reset by the driver, a reset of the machine and a suspended guest; which drivers are served.

use virtio_wire::feature as common;
use virtio_wire::mem::BlockState;
use virtio_wire::mmio::Register;
use virtio_wire::status;

use super::*;
use crate::mmio::Lifecycle;

const ACCEPTED: u64 = common::VERSION_1 | feature::UNPLUGGED_INACCESSIBLE;

#[test]
fn a_reset_of_the_device_keeps_blocks_and_sizes() {
    let (mut driver, backend) = mem_driver(8);
    driver.ask(Request::Plug(blocks(2, 3)));
    let before = driver.config();
    assert_eq!(
        driver.write(Register::Status, 0).lifecycle,
        Some(Lifecycle::Reset)
    );
    assert_eq!(driver.config(), before);
    assert_eq!(backend.0.borrow().unplugged, []);
    driver.initialise(ACCEPTED);
    let response = driver.ask(Request::State(blocks(2, 3)));
    assert_eq!(response.block_state(), Ok(BlockState::Plugged));
}

#[test]
fn a_driver_that_would_access_unplugged_memory_is_refused() {
    let (mut driver, _) = mem_driver(8);
    driver.negotiate(common::VERSION_1);
    assert_eq!(driver.status(), status::ACKNOWLEDGE | status::DRIVER);
}

#[test]
fn by_policy_a_driver_that_may_read_unplugged_memory_is_served() {
    let (mut driver, _) = mem_driver(8);
    driver.transport = MmioTransport::new(
        MemDevice::new(
            &RegionSpec {
                unplugged: UnpluggedMemory::Readable,
                ..spec(8)
            },
            ScriptedBackend::default(),
        )
        .unwrap(),
    );
    driver.initialise(common::VERSION_1);
    assert_eq!(driver.ask_type(Request::Plug(blocks(0, 1))), ResponseType::Ack);
    // One that knows the feature is still told to keep its hands off.
    driver.initialise(ACCEPTED);
    assert_eq!(driver.transport.negotiated_features(), ACCEPTED);
}

#[test]
fn a_guest_may_be_suspended_with_memory_plugged() {
    let (mut driver, _) = mem_driver(8);
    let features = ACCEPTED | feature::PERSISTENT_SUSPEND;
    driver.initialise(features);
    assert_eq!(driver.transport.negotiated_features(), features);
    driver.ask(Request::Plug(blocks(1, 4)));
    // What a driver does before and after a suspension: reset, then begin anew.
    let _ = driver.write(Register::Status, 0);
    driver.initialise(features);
    let response = driver.ask(Request::State(blocks(1, 4)));
    assert_eq!(response.block_state(), Ok(BlockState::Plugged));
}

#[test]
fn a_reset_of_the_machine_unplugs_everything_and_forgets_the_driver() {
    let (mut driver, backend) = mem_driver(8);
    driver.ask(Request::Plug(blocks(2, 3)));
    driver.ask(Request::Plug(blocks(10, 2)));
    assert_eq!(driver.transport.reset_machine().unwrap(), 0);
    assert_eq!(backend.0.borrow().unplugged, [run(2, 3), run(10, 2)]);
    assert_eq!(driver.config().plugged_size, 0);
    assert_eq!(driver.status(), 0);
    assert!(!driver.transport.is_live());
    // What is requested comes back: the next guest is asked for as much.
    assert_eq!(driver.config().requested_size, 8 * BLOCK);
    driver.initialise(ACCEPTED);
    assert_eq!(driver.ask_type(Request::Plug(blocks(0, 8))), ResponseType::Ack);
}

#[test]
fn a_machine_reset_with_a_block_in_use_leaves_it_plugged_and_says_so() {
    let (mut driver, backend) = mem_driver(8);
    driver.ask(Request::Plug(blocks(2, 3)));
    driver.ask(Request::Plug(blocks(10, 2)));
    backend.0.borrow_mut().outcomes = vec![None, Some(BackendError::Busy)];
    assert_eq!(driver.transport.reset_machine().unwrap(), 2 * BLOCK);
    assert!(driver.config().usable_region_size >= 12 * BLOCK);
    driver.initialise(ACCEPTED);
    // As section 5.15.5 has the driver do when it finds memory plugged.
    assert_eq!(driver.ask_type(Request::UnplugAll), ResponseType::Ack);
    assert_eq!(driver.config().plugged_size, 0);
}

#[test]
fn the_usable_region_shrinks_by_unplug_all_and_machine_reset_alone() {
    const MIB: u64 = 1 << 20;
    let device = MemDevice::new(
        &RegionSpec {
            addr: 4 << 30,
            region_size: 4096 * MIB,
            block_size: 2 * MIB,
            requested_size: 2048 * MIB,
            ..spec(0)
        },
        ScriptedBackend::default(),
    );
    let (mut driver, _) = mem_driver(0);
    driver.transport = MmioTransport::new(device.unwrap());
    driver.initialise(ACCEPTED);
    let usable = |driver: &MemDriver| driver.config().usable_region_size / MIB;
    assert_eq!(usable(&driver), 2304);
    let far = BlockRange {
        addr: (4 << 30) + 2302 * MIB,
        nb_blocks: 1,
    };
    assert_eq!(driver.ask_type(Request::Plug(far)), ResponseType::Ack);

    let _ = driver.transport.set_requested_size(128 * MIB).unwrap();
    assert_eq!(usable(&driver), 2304, "a smaller request keeps it");
    let _ = driver.write(Register::Status, 0);
    driver.initialise(ACCEPTED);
    assert_eq!(usable(&driver), 2304, "so does a reset by the driver");
    assert_eq!(driver.ask_type(Request::UnplugAll), ResponseType::Ack);
    assert_eq!(
        usable(&driver),
        384,
        "UNPLUG ALL fits it to the request, not to 0"
    );

    let _ = driver.transport.set_requested_size(1024 * MIB).unwrap();
    let _ = driver.transport.set_requested_size(64 * MIB).unwrap();
    assert_eq!(usable(&driver), 1280);
    assert_eq!(driver.transport.reset_machine().unwrap(), 0);
    assert_eq!(usable(&driver), 320, "so does a reset of the machine");
}
