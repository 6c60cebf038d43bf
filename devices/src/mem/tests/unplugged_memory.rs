//! Rings and buffers in unplugged blocks: the guest's fault, and the memory is never touched.

use virtio_wire::mmio::{INTERRUPT_CONFIG_CHANGE, Register};
use virtio_wire::{feature as common, status};

use super::*;
use crate::fault::GuestFault;
use crate::mmio::Lifecycle;

fn whole_region() -> std::ops::Range<u64> {
    REGION..PatchyMemory::END
}

#[test]
fn a_request_in_an_unplugged_block_is_error_and_the_block_is_not_read() {
    let (mut driver, _) = protected_mem_driver(8);
    driver
        .mem
        .poke(block_bytes(5).start, &Request::Plug(blocks(5, 1)).encode());
    driver.offer(0, &[readable(block_bytes(5).start, 24), writable(RESPONSE, 10)]);
    let _ = driver.kick(0);
    assert_eq!(driver.response().response_type(), ResponseType::Error);
    assert_eq!(driver.transport.guest_faults(), 1);
    assert!(!driver.mem.was_granted(&whole_region()));
    assert_eq!(driver.ask_type(Request::Plug(blocks(5, 1))), ResponseType::Ack);
}

#[test]
fn a_response_in_an_unplugged_block_is_not_written_and_the_request_not_done() {
    let (mut driver, backend) = protected_mem_driver(8);
    driver.mem.poke(REQUEST, &Request::Plug(blocks(5, 1)).encode());
    // Half in the block below, which is ordinary memory: not even that half is written.
    let response = REGION - 5;
    driver.mem.poke(response, &[0xee; 10]);
    driver.offer(0, &[readable(REQUEST, 24), writable(response, 10)]);
    let _ = driver.kick(0);
    assert_eq!(driver.used(0)[0].len, 0);
    assert_eq!(driver.mem.peek(response), [0xee; 10]);
    assert_eq!(backend.0.borrow().plugged, []);
    assert!(!driver.mem.was_granted(&whole_region()));
    assert_eq!(driver.ask_type(Request::Plug(blocks(5, 1))), ResponseType::Ack);
}

#[test]
fn an_unplug_that_takes_away_its_own_response_is_done_and_the_guests_fault() {
    let (mut driver, _) = protected_mem_driver(8);
    driver.ask(Request::Plug(blocks(5, 1)));
    driver.mem.poke(REQUEST, &Request::Unplug(blocks(5, 1)).encode());
    driver.offer(0, &[readable(REQUEST, 24), writable(block_bytes(5).start, 10)]);
    driver.mem.forget_granted();
    let effects = driver.kick(0);
    assert!(effects.config_changed);
    assert_eq!(driver.used(0)[0].len, 0);
    assert_eq!(driver.device().plugged_size(), 0);
    let fault = GuestFault::BufferUnreachable {
        queue: 0,
        gpa: block_bytes(5).start,
        len: 10,
    };
    assert_eq!(driver.transport.last_guest_fault(), Some(fault));
    assert!(!driver.mem.was_granted(&whole_region()));
    assert_eq!(driver.ask_type(Request::Plug(blocks(5, 1))), ResponseType::Ack);
}

#[test]
fn a_queue_with_a_ring_in_an_unplugged_block_is_refused_and_not_touched() {
    for part in 0..3 {
        let (mut driver, _) = protected_mem_driver(8);
        driver.negotiate(common::VERSION_1 | feature::UNPLUGGED_INACCESSIBLE);
        let place = match part {
            0 => &mut driver.queues[0].descriptor_table,
            1 => &mut driver.queues[0].avail_ring,
            _ => &mut driver.queues[0].used_ring,
        };
        *place = block_bytes(3).start;
        driver.mem.forget_granted();
        let effects = driver.set_up_queue(0);
        assert_eq!(effects.lifecycle, Some(Lifecycle::NeedsReset));
        assert_eq!(driver.read(Register::QueueReady), 0);
        assert!(driver.status() & status::DEVICE_NEEDS_RESET != 0);
        assert_eq!(driver.transport.guest_faults(), 1);
        assert!(!driver.mem.was_granted(&whole_region()));
    }
}

#[test]
fn a_ring_that_straddles_into_an_unplugged_block_is_refused() {
    let (mut driver, _) = protected_mem_driver(8);
    driver.negotiate(common::VERSION_1 | feature::UNPLUGGED_INACCESSIBLE);
    driver.queues[0].descriptor_table = REGION - 16;
    let _ = driver.set_up_queue(0);
    assert_eq!(driver.read(Register::QueueReady), 0);
}

#[test]
fn rings_in_a_plugged_block_work_until_the_block_is_unplugged() {
    let (mut driver, _) = protected_mem_driver(8);
    driver.ask(Request::Plug(blocks(3, 1)));
    for part in 0..3 {
        let features = common::VERSION_1 | feature::UNPLUGGED_INACCESSIBLE;
        let home = driver.queues[0];
        driver.negotiate(features);
        match part {
            0 => driver.queues[0].descriptor_table = block_bytes(3).start,
            1 => driver.queues[0].avail_ring = block_bytes(3).start,
            _ => driver.queues[0].used_ring = block_bytes(3).start,
        }
        let _ = driver.set_up_queue(0);
        let _ = driver.write(Register::Status, 15);
        assert_eq!(driver.ask_type(Request::State(blocks(3, 1))), ResponseType::Ack);

        // The guest gives up the block that its own ring is in.
        driver.send(Request::Unplug(blocks(3, 1)));
        let faults = driver.transport.guest_faults();
        driver
            .mem
            .poke(REQUEST + 0x100, &Request::State(blocks(0, 1)).encode());
        driver.offer(
            0,
            &[readable(REQUEST + 0x100, 24), writable(RESPONSE + 0x100, 10)],
        );
        let effects = driver.kick(0);
        assert_eq!(effects.lifecycle, Some(Lifecycle::NeedsReset));
        assert!(effects.interrupt);
        assert_eq!(driver.device().plugged_size(), 0);
        assert!(driver.read(Register::InterruptStatus) & INTERRUPT_CONFIG_CHANGE != 0);
        assert!(driver.status() & status::DEVICE_NEEDS_RESET != 0);
        assert!(driver.transport.guest_faults() > faults);
        driver.mem.forget_granted();
        let _ = driver.kick(0);
        assert!(!driver.mem.was_granted(&whole_region()), "the queue rests");

        // And recovers by a reset.
        driver.queues[0] = home;
        driver.initialise(features);
        assert_eq!(driver.ask_type(Request::Plug(blocks(3, 1))), ResponseType::Ack);
    }
}
