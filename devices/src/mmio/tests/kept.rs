//! Chains that the device keeps: returned later, out of order, or to nobody after a reset or a stopped queue.

use virtio_wire::mmio::{INTERRUPT_USED_BUFFER, Register};
use virtio_wire::ring::UsedElement;
use virtio_wire::{feature, status};

use super::*;
use crate::testing::{PatchyMemory, readable};

const BUFFER: u64 = PatchyMemory::BASE + 0x8000;

/// A live driver whose device has kept `count` chains of queue 0.
fn with_kept(count: usize) -> EchoDriver {
    let mut driver = live();
    driver.transport.device_mut().keeps = true;
    for _ in 0..count {
        driver.offer(0, &[readable(BUFFER, 4)]);
    }
    assert_eq!(driver.kick(0), Effects::NONE, "nothing is used yet");
    assert!(driver.used(0).is_empty());
    assert_eq!(driver.transport.device().kept.len(), count);
    driver
}

#[test]
fn a_kept_chain_comes_back_with_its_length_and_an_interrupt() {
    let mut driver = with_kept(2);
    let effects = driver.give_back(1);
    assert!(effects.interrupt && effects.lifecycle.is_none());
    assert_eq!(driver.used(0), [UsedElement { id: 1, len: 7 }]);
    assert_eq!(driver.read(Register::InterruptStatus), INTERRUPT_USED_BUFFER);
    let _ = driver.give_back(1);
    assert_eq!(driver.used(0), [UsedElement { id: 0, len: 7 }], "in any order");
}

#[test]
fn the_queue_goes_on_behind_a_kept_chain() {
    let mut driver = with_kept(1);
    driver.transport.device_mut().keeps = false;
    driver.offer(0, &[readable(BUFFER, 4)]);
    assert!(driver.kick(0).interrupt);
    assert_eq!(driver.used(0), [UsedElement { id: 1, len: 0 }]);
}

#[test]
fn several_chains_returned_together_are_one_interrupt_and_none_if_the_driver_wants_none() {
    let mut driver = with_kept(3);
    assert!(driver.give_back(3).interrupt);
    assert_eq!(driver.used(0).len(), 3);
    let mut driver = with_kept(3);
    driver.set_avail_flags(0, virtio_wire::ring::AVAIL_F_NO_INTERRUPT);
    assert!(!driver.give_back(3).interrupt);
    assert_eq!(driver.used(0).len(), 3);
}

#[test]
fn a_reset_is_over_when_the_last_kept_chain_is_back_and_the_guest_gets_none_of_them() {
    let mut driver = with_kept(2);
    driver.transport.device_mut().resets = 0;
    let effects = driver.write(Register::Status, status::RESET);
    assert_eq!(effects, Effects::NONE);
    assert!(driver.transport.is_resetting() && !driver.transport.is_live());
    assert_eq!(driver.status(), 15, "not yet 0: the driver has to wait");
    assert_eq!(driver.give_back(1), Effects::NONE);
    assert_eq!((driver.status(), driver.transport.device().resets), (15, 0));
    let effects = driver.give_back(1);
    assert_eq!(effects.lifecycle, Some(Lifecycle::Reset));
    assert!(!effects.interrupt);
    assert_eq!((driver.status(), driver.transport.device().resets), (0, 1));
    assert!(!driver.transport.is_resetting());
    assert!(
        driver.used(0).is_empty(),
        "the ring is not written after the reset"
    );
    assert_eq!(driver.read(Register::InterruptStatus), 0);
}

#[test]
fn registers_written_during_a_reset_change_nothing() {
    let mut driver = with_kept(1);
    let _ = driver.write(Register::Status, status::RESET);
    for register in Register::ALL {
        assert_eq!(driver.write(register, 1), Effects::NONE, "{register:?}");
    }
    assert_eq!(driver.write(Register::Status, status::RESET), Effects::NONE);
    let _ = driver.give_back(1);
    assert_eq!(driver.status(), 0);
    driver.transport.device_mut().keeps = false;
    driver.initialise(feature::VERSION_1 | NEEDED);
    driver.offer(0, &[readable(BUFFER, 4)]);
    assert!(driver.kick(0).interrupt);
    assert_eq!(driver.used(0).len(), 1, "the new driver is served");
}

#[test]
fn a_stopped_queue_reads_as_ready_until_its_chains_are_back_and_cannot_be_set_up_before() {
    let mut driver = with_kept(1);
    let _ = driver.write(Register::QueueSel, 0);
    let _ = driver.write(Register::QueueReady, 0);
    assert_eq!(driver.read(Register::QueueReady), 1);
    let _ = driver.set_up_queue(0);
    assert_eq!(driver.give_back(1), Effects::NONE);
    assert!(driver.used(0).is_empty());
    assert_eq!(driver.read(Register::QueueReady), 0);
    driver.transport.device_mut().keeps = false;
    let _ = driver.set_up_queue(0);
    assert_eq!(driver.read(Register::QueueReady), 1);
    driver.offer(0, &[readable(BUFFER, 4)]);
    assert!(driver.kick(0).interrupt);
}

#[test]
fn chains_that_come_back_can_make_queues_due() {
    let mut driver = with_kept(1);
    driver.transport.device_mut().due = QueueSet::one(0);
    assert_eq!(driver.give_back(1).notified, QueueSet::one(0));
    assert_eq!(driver.give_back(0).notified, QueueSet::NONE, "it is said once");
}

#[test]
fn a_kept_chain_whose_ring_is_gone_is_the_guests_fault() {
    let mut driver = with_kept(1);
    let used_ring = driver.queues[0].parts()[2].clone();
    driver.mem.refuse(used_ring);
    let effects = driver.give_back(1);
    assert_eq!(effects.lifecycle, Some(Lifecycle::NeedsReset));
    assert_eq!(
        driver.transport.last_guest_fault(),
        Some(GuestFault::RingUnreachable { queue: 0 })
    );
}

#[test]
fn a_fault_found_when_a_chain_comes_back_is_counted() {
    let mut driver = with_kept(1);
    let chain = driver.transport.device_mut().kept.remove(0);
    let fault = GuestFault::BrokenChain { queue: 0 };
    let completed = Completed {
        chain,
        written: 0,
        fault: Some(fault),
    };
    let _ = driver.transport.complete(&driver.mem, [completed]);
    assert_eq!(driver.transport.last_guest_fault(), Some(fault));
    assert_eq!(
        driver.used(0),
        [UsedElement { id: 0, len: 0 }],
        "it still comes back"
    );
}
