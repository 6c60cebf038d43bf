//! Queues: what is checked when they are made ready, and how their chains are served.

use virtio_wire::mmio::{INTERRUPT_CONFIG_CHANGE, INTERRUPT_USED_BUFFER, Register};
use virtio_wire::{feature, ring, status};

use super::*;
use crate::fault::RingPart;
use crate::testing::{PatchyMemory, readable, writable};

const BUFFER: u64 = PatchyMemory::BASE + 0x8000;

fn negotiated() -> EchoDriver {
    let mut driver = Driver::new(Echo::default());
    driver.negotiate(feature::VERSION_1 | NEEDED);
    driver
}

fn live_with(features: u64) -> EchoDriver {
    let mut driver = Driver::new(Echo::default());
    driver.initialise(feature::VERSION_1 | NEEDED | features);
    driver
}

/// The set-up is refused with this fault, and the device asks for a reset.
fn assert_refused(mut driver: EchoDriver, fault: GuestFault) {
    let effects = driver.set_up_queue(0);
    assert_eq!(
        effects,
        Effects {
            lifecycle: Some(Lifecycle::NeedsReset),
            ..Effects::NONE
        },
        "{fault}"
    );
    assert_eq!(driver.read(Register::QueueReady), 0);
    assert!(driver.status() & status::DEVICE_NEEDS_RESET != 0);
    assert_eq!(driver.transport.last_guest_fault(), Some(fault));
    driver.queues = EchoDriver::new(Echo::default()).queues;
    driver.initialise(feature::VERSION_1 | NEEDED);
    assert!(driver.transport.is_live(), "a reset clears it");
}

#[test]
fn every_queue_has_its_maximum_and_others_do_not_exist() {
    let mut driver = negotiated();
    for (index, max) in [(0, 16), (1, 32), (2, 0), (u32::MAX, 0)] {
        let _ = driver.write(Register::QueueSel, index);
        assert_eq!(driver.read(Register::QueueSizeMax), max);
        assert_eq!(driver.read(Register::QueueReady), 0);
    }
    assert_eq!(driver.write(Register::QueueReady, 1), Effects::NONE);
}

#[test]
fn a_size_that_is_no_power_of_two_or_too_large_is_refused() {
    for size in [0u16, 3, 12, 17, 32, u16::MAX] {
        let mut driver = negotiated();
        driver.queues[0].size = size;
        assert_refused(
            driver,
            GuestFault::QueueSize {
                queue: 0,
                size: size.into(),
                max: 16,
            },
        );
    }
    let mut driver = negotiated();
    let _ = driver.set_up_queue(0);
    let _ = driver.write(Register::QueueReady, 0);
    let _ = driver.write(Register::QueueSize, 0x1_0010);
    let effects = driver.write(Register::QueueReady, 1);
    assert_eq!(
        effects.lifecycle,
        Some(Lifecycle::NeedsReset),
        "the upper half of the register counts"
    );
}

#[test]
fn a_misaligned_part_is_refused() {
    let mut driver = negotiated();
    driver.queues[0].descriptor_table += 8;
    let gpa = driver.queues[0].descriptor_table;
    assert_refused(
        driver,
        GuestFault::QueueMisaligned {
            queue: 0,
            part: RingPart::DescriptorTable,
            gpa,
        },
    );
    let mut driver = negotiated();
    driver.queues[0].avail_ring += 1;
    let gpa = driver.queues[0].avail_ring;
    assert_refused(
        driver,
        GuestFault::QueueMisaligned {
            queue: 0,
            part: RingPart::AvailRing,
            gpa,
        },
    );
    let mut driver = negotiated();
    driver.queues[0].used_ring += 2;
    let gpa = driver.queues[0].used_ring;
    assert_refused(
        driver,
        GuestFault::QueueMisaligned {
            queue: 0,
            part: RingPart::UsedRing,
            gpa,
        },
    );
}

#[test]
fn a_part_outside_of_memory_is_refused() {
    for gpa in [
        0,
        0x1000,
        PatchyMemory::END,
        PatchyMemory::END - 16,
        1 << 40,
        0u64.wrapping_sub(16),
    ] {
        let mut driver = negotiated();
        driver.queues[0].descriptor_table = gpa;
        assert_refused(
            driver,
            GuestFault::QueueUnreachable {
                queue: 0,
                part: RingPart::DescriptorTable,
                gpa,
            },
        );
        let mut driver = negotiated();
        driver.queues[0].avail_ring = gpa;
        assert_refused(
            driver,
            GuestFault::QueueUnreachable {
                queue: 0,
                part: RingPart::AvailRing,
                gpa,
            },
        );
        let mut driver = negotiated();
        driver.queues[0].used_ring = gpa;
        assert_refused(
            driver,
            GuestFault::QueueUnreachable {
                queue: 0,
                part: RingPart::UsedRing,
                gpa,
            },
        );
    }
}

#[test]
fn a_queue_cannot_be_ready_before_the_features_are_negotiated() {
    let mut driver = Driver::new(Echo::default());
    let effects = driver.set_up_queue(0);
    assert_eq!(effects.lifecycle, Some(Lifecycle::NeedsReset));
    assert_eq!(
        driver.transport.last_guest_fault(),
        Some(GuestFault::QueueTooEarly { queue: 0 })
    );
}

#[test]
fn a_fault_while_the_driver_is_live_comes_with_a_configuration_interrupt() {
    let mut driver = live();
    let _ = driver.write(Register::QueueReady, 0);
    driver.queues[1].used_ring = 0;
    let effects = driver.set_up_queue(1);
    assert!(effects.interrupt);
    assert_eq!(driver.read(Register::InterruptStatus), INTERRUPT_CONFIG_CHANGE);
}

#[test]
fn the_set_up_of_a_ready_queue_does_not_change() {
    let mut driver = live();
    let _ = driver.write(Register::QueueSel, 0);
    for register in [
        Register::QueueSize,
        Register::QueueDescLow,
        Register::QueueDriverHigh,
        Register::QueueDeviceLow,
    ] {
        let _ = driver.write(register, 0xffff_ffff);
    }
    let _ = driver.write(Register::QueueReady, 0);
    let _ = driver.write(Register::QueueReady, 1);
    assert_eq!(
        driver.read(Register::QueueReady),
        1,
        "the registers are as before"
    );
    driver.offer(0, &[readable(BUFFER, 1)]);
    let _ = driver.kick(0);
    assert_eq!(driver.used(0).len(), 1);
}

#[test]
fn a_queue_that_is_not_ready_is_not_touched() {
    let mut driver = live();
    driver.offer(0, &[readable(BUFFER, 1)]);
    let _ = driver.write(Register::QueueSel, 0);
    let _ = driver.write(Register::QueueReady, 0);
    driver.mem.forget_granted();
    assert_eq!(driver.kick(0), Effects::NONE);
    assert!(!driver.mem.was_granted(&(0..u64::MAX)));
}

#[test]
fn no_chain_is_served_before_driver_ok_and_all_are_after() {
    let mut driver = negotiated();
    for index in 0..2 {
        let _ = driver.set_up_queue(index);
    }
    driver.offer(0, &[readable(BUFFER, 1)]);
    driver.offer(1, &[readable(BUFFER, 1)]);
    driver.mem.forget_granted();
    let _ = driver.kick(0);
    assert!(!driver.mem.was_granted(&(0..u64::MAX)));
    let effects = driver.write(Register::Status, 15);
    assert_eq!(effects.lifecycle, Some(Lifecycle::Activated));
    for index in effects.notified.iter() {
        assert!(
            driver
                .transport
                .process_queue(&driver.mem, index)
                .unwrap()
                .interrupt
        );
    }
    assert_eq!(driver.transport.device().served, [0, 1]);
}

#[test]
fn the_device_learns_at_driver_ok_which_queues_are_in_use() {
    let mut driver = negotiated();
    let _ = driver.set_up_queue(1);
    assert!(driver.transport.device().in_use.is_empty());
    let _ = driver.write(Register::Status, 15);
    let _ = driver.write(Register::Status, 15);
    assert_eq!(driver.transport.device().in_use, [QueueSet::one(1)], "once");
}

#[test]
fn a_change_of_the_configuration_that_the_driver_does_not_expect_interrupts() {
    let mut driver = Driver::ready(Echo {
        has_news: true,
        ..Echo::default()
    });
    let generation = driver.read(Register::ConfigGeneration);
    driver.offer(0, &[readable(BUFFER, 1)]);
    let effects = driver.kick(0);
    assert!(effects.interrupt && effects.config_changed);
    assert_eq!(
        driver.read(Register::InterruptStatus),
        INTERRUPT_CONFIG_CHANGE | INTERRUPT_USED_BUFFER
    );
    assert_ne!(driver.read(Register::ConfigGeneration), generation);
}

#[test]
fn a_failed_driver_is_left_alone() {
    let mut driver = live();
    let _ = driver.write(Register::Status, 15 | status::FAILED);
    driver.offer(0, &[readable(BUFFER, 1)]);
    assert_eq!(driver.kick(0), Effects::NONE);
    assert!(driver.transport.device().served.is_empty());
}

#[test]
fn a_notification_names_a_queue_that_exists_or_nothing() {
    let mut driver = live();
    for (value, notified) in [
        (0, QueueSet::one(0)),
        (1, QueueSet::one(1)),
        (2, QueueSet::NONE),
        (0x1_0000, QueueSet::NONE),
        (u32::MAX, QueueSet::NONE),
    ] {
        assert_eq!(
            driver.write(Register::QueueNotify, value),
            Effects {
                notified,
                ..Effects::NONE
            }
        );
    }
    assert_eq!(
        driver.transport.process_queue(&driver.mem, 2).unwrap(),
        Effects::NONE
    );
}

#[test]
fn chains_go_round_the_ring_many_times() {
    let mut driver = live();
    for round in 0..100u32 {
        let heads: Vec<u32> = (0..5)
            .map(|_| driver.offer(0, &[readable(BUFFER, 1)]).into())
            .collect();
        assert!(driver.kick(0).interrupt, "round {round}");
        let used: Vec<u32> = driver.used(0).iter().map(|element| element.id).collect();
        assert_eq!(used, heads);
    }
}

#[test]
fn one_call_serves_no_more_chains_than_the_queue_has_entries() {
    let mut driver = live();
    for _ in 0..16 {
        driver.offer(0, &[readable(BUFFER, 1)]);
    }
    // A call that fills its measure cannot know that nothing is left, and asks for another.
    let effects = driver.transport.process_queue(&driver.mem, 0).unwrap();
    assert_eq!(effects.notified, QueueSet::one(0));
    assert_eq!(driver.transport.device().served.len(), 16);
    let effects = driver.transport.process_queue(&driver.mem, 0).unwrap();
    assert_eq!(effects, Effects::NONE);
}

#[test]
fn a_chain_that_is_put_back_is_served_later() {
    let mut driver = live();
    driver.transport.device_mut().puts_back = true;
    let head = driver.offer(0, &[readable(BUFFER, 1)]);
    assert_eq!(driver.kick(0), Effects::NONE);
    assert_eq!(driver.used(0), []);
    driver.transport.device_mut().puts_back = false;
    let _ = driver.transport.process_queue(&driver.mem, 0).unwrap();
    assert_eq!(
        driver.used(0),
        [ring::UsedElement {
            id: head.into(),
            len: 0
        }]
    );
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut driver = live_with(0);
    driver.set_avail_flags(0, ring::AVAIL_F_NO_INTERRUPT);
    driver.offer(0, &[readable(BUFFER, 1)]);
    assert!(!driver.kick(0).interrupt);
    assert_eq!(driver.read(Register::InterruptStatus), 0);
    driver.set_avail_flags(0, 0);
    driver.offer(0, &[readable(BUFFER, 1)]);
    assert!(driver.kick(0).interrupt);
    assert_eq!(driver.read(Register::InterruptStatus), INTERRUPT_USED_BUFFER);
}

#[test]
fn with_event_idx_the_interrupt_comes_when_the_driver_asked_for_it() {
    let mut driver = live_with(feature::RING_EVENT_IDX);
    let rings = driver.queues[0];
    let used_event = rings.avail_ring + ring::used_event_offset(rings.size);
    driver.mem.poke(used_event, &2u16.to_le_bytes());
    let interrupts: Vec<bool> = (0..4)
        .map(|_| {
            driver.offer(0, &[readable(BUFFER, 1)]);
            driver.kick(0).interrupt
        })
        .collect();
    assert_eq!(interrupts, [false, false, true, false]);
    let avail_event: [u8; 2] = driver
        .mem
        .peek(rings.used_ring + ring::avail_event_offset(rings.size));
    assert_eq!(
        u16::from_le_bytes(avail_event),
        4,
        "the device wants to hear of the next chain"
    );
}

#[test]
fn a_queue_that_broke_is_not_asked_for_again() {
    let mut driver = live();
    driver.set_avail_idx(0, 17);
    let effects = driver.transport.process_queue(&driver.mem, 0).unwrap();
    assert_eq!(effects.lifecycle, Some(Lifecycle::NeedsReset));
    assert!(effects.notified.is_empty());
}

#[test]
fn an_available_index_too_far_ahead_needs_a_reset() {
    let mut driver = live();
    driver.set_avail_idx(0, 17);
    let effects = driver.kick(0);
    assert_eq!(effects.lifecycle, Some(Lifecycle::NeedsReset));
    assert!(effects.interrupt);
    assert_eq!(
        driver.transport.last_guest_fault(),
        Some(GuestFault::AvailIndex { queue: 0 })
    );
    assert!(driver.transport.device().served.is_empty());
    assert_eq!(driver.kick(0), Effects::NONE, "the device rests");
    driver.initialise(feature::VERSION_1 | NEEDED);
    driver.offer(0, &[writable(BUFFER, 1)]);
    let _ = driver.kick(0);
    assert_eq!(driver.used(0).len(), 1);
}

#[test]
fn a_device_hears_once_for_each_reset_what_the_driver_has_accepted() {
    let mut driver = negotiated();
    assert!(driver.transport.device().activated.is_empty());
    let _ = driver.write(Register::Status, 15);
    let _ = driver.write(Register::Status, 15);
    driver.initialise(feature::VERSION_1 | NEEDED | OPTIONAL);
    let accepted = feature::VERSION_1 | NEEDED;
    assert_eq!(
        driver.transport.device().activated,
        [accepted, accepted | OPTIONAL]
    );
}

#[test]
fn a_queue_that_another_has_made_due_is_processed_too() {
    let mut driver = live();
    driver.offer(0, &[readable(BUFFER, 4)]);
    driver.transport.device_mut().due = QueueSet::one(1);
    let effects = driver.transport.process_queue(&driver.mem, 0).unwrap();
    assert_eq!(effects.notified, QueueSet::one(1));
    let effects = driver.transport.process_queue(&driver.mem, 0).unwrap();
    assert_eq!(effects.notified, QueueSet::NONE, "it is said once");
}
