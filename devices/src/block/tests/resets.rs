//! Resets while the disk works, and a driver that offers more than the queue holds.

use virtio_wire::mmio::Register;
use virtio_wire::status;

use super::*;
use crate::mmio::Lifecycle;

/// A device whose disk is at a read into [`DATA`].
fn reading() -> World {
    let mut world = World::new(read_write());
    world.offer(RequestType::In as u32, 1, &[writable(DATA, 512)]);
    assert_eq!(world.driver.kick(QUEUE_REQUEST), Effects::NONE);
    world
}

#[test]
fn a_reset_waits_for_the_disk_and_the_new_driver_gets_nothing_of_the_old_one() {
    let mut world = reading();
    let _ = world.driver.write(Register::Status, status::RESET);
    assert!(world.driver.transport.is_resetting());
    assert_eq!(world.device().in_flight(), 1);
    world.disk.finish(0, Ok(()));
    let effects = world.finish();
    assert_eq!(effects.lifecycle, Some(Lifecycle::Reset));
    assert!(!effects.interrupt);
    assert_eq!(world.status(), UNTOUCHED, "the memory is the driver's again");
    assert_eq!(world.driver.status(), 0);
    assert!(world.driver.used(QUEUE_REQUEST).is_empty());

    let features = world.device().features() | common::VERSION_1;
    world.driver.initialise(features);
    world
        .request(RequestType::In, 2, &[writable(DATA, 512)])
        .is(Status::Ok, 513);
    assert_eq!(world.driver.mem.peek::<1>(DATA), [2]);
}

#[test]
fn a_write_that_needs_a_flush_keeps_the_reset_waiting_for_both() {
    let mut world = World::unready(read_write());
    world.driver.initialise(common::VERSION_1);
    world.offer(RequestType::Out as u32, 0, &[readable(DATA, 512)]);
    let _ = world.driver.kick(QUEUE_REQUEST);
    let _ = world.driver.write(Register::Status, status::RESET);
    world.disk.finish(0, Ok(()));
    assert_eq!(world.finish(), Effects::NONE);
    assert!(world.driver.transport.is_resetting());
    world.disk.finish(0, Ok(()));
    assert_eq!(world.finish().lifecycle, Some(Lifecycle::Reset));
}

#[test]
fn a_device_that_needs_a_reset_returns_nothing_more() {
    let mut world = reading();
    world.driver.set_avail_idx(QUEUE_REQUEST, 1000);
    let effects = world.driver.kick(QUEUE_REQUEST);
    assert_eq!(effects.lifecycle, Some(Lifecycle::NeedsReset));
    world.disk.finish(0, Ok(()));
    assert_eq!(world.finish(), Effects::NONE);
    assert_eq!(world.status(), UNTOUCHED);
    assert_eq!(world.device().in_flight(), 0);
    let effects = world.driver.write(Register::Status, status::RESET);
    assert_eq!(effects.lifecycle, Some(Lifecycle::Reset), "nothing to wait for");
}

#[test]
fn the_cache_is_written_back_again_after_a_reset() {
    let mut world = World::unready(read_write());
    world.driver.initialise(common::VERSION_1);
    assert_eq!(world.device().config().writeback, 0);
    let _ = world.driver.write(Register::Status, status::RESET);
    assert_eq!(world.device().config().writeback, 1);
}

#[test]
fn requests_beyond_what_the_disk_takes_wait_until_one_has_ended() {
    let mut world = World::new(read_write());
    let rounds = MAX_IN_FLIGHT / 4;
    // The same four descriptors again and again, without waiting for them to be used, as no good driver does.
    for _ in 0..rounds {
        for sector in 0..4 {
            world.offer(RequestType::In as u32, sector, &[writable(DATA, 512)]);
        }
        let _ = world.driver.kick(QUEUE_REQUEST);
    }
    assert_eq!(world.device().in_flight(), MAX_IN_FLIGHT);
    world.offer(RequestType::In as u32, 9, &[writable(DATA, 512)]);
    assert_eq!(world.driver.kick(QUEUE_REQUEST), Effects::NONE);
    assert_eq!(world.log().len(), MAX_IN_FLIGHT, "the disk is not asked for more");
    world.disk.finish(0, Ok(()));
    let effects = world.finish();
    assert_eq!(effects.notified, QueueSet::one(QUEUE_REQUEST));
    let _ = world
        .driver
        .transport
        .process_queue(&world.driver.mem, QUEUE_REQUEST)
        .unwrap();
    assert_eq!(world.log().len(), MAX_IN_FLIGHT + 1);
    assert_eq!(world.device().in_flight(), MAX_IN_FLIGHT);
}
