//! A disk that lets requests wait in the queue until it admits them.

use virtio_wire::mmio::Register;
use virtio_wire::status;

use super::*;
use crate::mmio::Lifecycle;

/// A device with reads of sectors 0, 1 and 2 offered, of which the disk has admitted so many.
fn admitting(count: u32) -> World {
    let mut world = World::new(read_write());
    world.disk.state.borrow_mut().admits = Some(count);
    world.driver.mem.poke(STATUS, &[UNTOUCHED]);
    for sector in 0..3 {
        // Each has a header of its own: the device reads it when it comes to it.
        let header = HEADER + sector * 0x100;
        let read = RequestHeader {
            request_type: RequestType::In as u32,
            sector,
        };
        world.driver.mem.poke(header, &read.encode());
        let chain = [readable(header, 16), writable(DATA, 512), writable(STATUS, 1)];
        world.driver.offer(QUEUE_REQUEST, &chain);
    }
    assert_eq!(world.driver.kick(QUEUE_REQUEST), Effects::NONE);
    world
}

/// The disk admits so many from now on, and the queue is processed as it is then asked for.
fn admit(world: &mut World, count: u32) {
    let admits = |disk: &mut MemDisk| disk.state.borrow_mut().admits = Some(count);
    let ((), effects) = world.driver.transport.change_disk(admits);
    assert_eq!(effects.notified, QueueSet::one(QUEUE_REQUEST));
    assert!(!effects.interrupt);
    let transport = &mut world.driver.transport;
    let _ = transport.process_queue(&world.driver.mem, QUEUE_REQUEST).unwrap();
}

fn offsets(world: &World) -> Vec<u64> {
    let offset = |operation: &Operation| match operation {
        Operation::Read { offset, .. } => *offset / SECTOR_SIZE,
        other => panic!("{other:?}"),
    };
    world.log().iter().map(offset).collect()
}

#[test]
fn requests_wait_in_the_queue_in_their_order_until_the_disk_admits_them() {
    let mut world = admitting(1);
    assert_eq!(offsets(&world), [0]);
    assert_eq!(world.device().in_flight(), 1, "what waits is not under way");
    admit(&mut world, 0);
    assert_eq!(offsets(&world), [0]);
    admit(&mut world, 1);
    assert_eq!(offsets(&world), [0, 1]);
    admit(&mut world, 5);
    assert_eq!(offsets(&world), [0, 1, 2]);
    for _ in 0..3 {
        world.disk.finish(0, Ok(()));
    }
    let effects = world.finish();
    assert_eq!(world.answer(effects).used.len(), 3);
    assert_eq!(world.device().counters().reads, 3);
    assert_eq!(
        world.device().counters().throttled,
        2,
        "each request that waited, however often it was asked for"
    );
}

#[test]
fn a_queue_that_waits_asks_for_nothing_by_itself() {
    let mut world = admitting(0);
    for _ in 0..3 {
        assert_eq!(world.driver.kick(QUEUE_REQUEST), Effects::NONE);
    }
    assert_eq!(world.finish(), Effects::NONE);
    assert!(world.log().is_empty());
}

#[test]
fn what_needs_no_disk_is_answered_when_it_is_first() {
    let mut world = World::new(read_write());
    world.disk.state.borrow_mut().admits = Some(0);
    world
        .request(RequestType::GetId, 0, &[writable(DATA, 20)])
        .is(Status::Ok, 21);
    // Refused for what it is.
    world
        .request(RequestType::In, SECTORS, &[writable(DATA, 512)])
        .is(Status::IoErr, 0);
    assert_eq!(world.device().counters().throttled, 0);
}

#[test]
fn a_reset_drops_what_waits_at_once() {
    let mut world = admitting(0);
    let effects = world.driver.write(Register::Status, status::RESET);
    assert_eq!(effects.lifecycle, Some(Lifecycle::Reset), "nothing to wait for");
    admit(&mut world, 5);
    assert!(world.log().is_empty());
    assert_eq!(world.status(), UNTOUCHED);

    let features = world.device().features() | common::VERSION_1;
    world.driver.initialise(features);
    world
        .request(RequestType::In, 2, &[writable(DATA, 512)])
        .is(Status::Ok, 513);
    assert_eq!(world.log().len(), 1);
}

#[test]
fn the_flush_of_a_write_that_was_admitted_is_not_put_off() {
    let mut world = World::unready(read_write());
    world.driver.initialise(common::VERSION_1);
    world.disk.state.borrow_mut().admits = Some(1);
    world
        .request(RequestType::Out, 0, &[readable(DATA, 512)])
        .is(Status::Ok, 1);
    assert_eq!(world.log().last(), Some(&Operation::Flush));
    assert_eq!(world.log().len(), 2);
}
