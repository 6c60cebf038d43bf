//! Claims about the queue: what a well-behaved device sees, and what a hostile one cannot do.

use super::*;
use crate::testing::{FakeDevice, TestMemory};
use crate::transport::{Features, Setup, Transport, TransportError};
use proptest::prelude::*;
use std::collections::HashSet;
use std::vec;
use virtio_wire::device_id;

const SIZE: u16 = 8;

/// A queue of `SIZE` entries, installed as queue 0 of `device`.
fn installed<'m>(
    device: &FakeDevice<'m, TestMemory>,
    memory: &'m TestMemory,
) -> VirtQueue<&'m TestMemory, u32> {
    let queue = VirtQueue::new(memory, SIZE).unwrap();
    let transport = Transport::probe(device, device_id::MEM).unwrap();
    let install = |setup: &Setup<'_, _>| setup.install(0, queue.addresses());
    transport
        .initialise::<_, TransportError>(Features::default(), install)
        .unwrap();
    queue
}

macro_rules! set_up {
    ($device:ident, $queue:ident) => {
        let memory = TestMemory::new(4);
        let $device = FakeDevice::new(&memory, device_id::MEM, 0);
        #[allow(unused_mut, reason = "not every test submits")]
        let mut $queue = installed(&$device, &memory);
    };
}

fn segment(start: u64, len: u32) -> Segment {
    Segment {
        start: Gpa::new(start),
        len,
    }
}

/// Submits and publishes a request whose one buffer the device may write.
fn send(queue: &mut VirtQueue<&TestMemory, u32>, token: u32) {
    queue.submit(&[], &[segment(0x1000, 64)], token).unwrap();
    let _ = queue.publish();
}

#[test]
fn the_device_sees_the_segments_in_order_and_with_their_directions() {
    set_up!(device, queue);
    let readable = [segment(0x1000, 1), segment(0x2000, 2)];
    queue.submit(&readable, &[segment(0x3000, 3)], 7).unwrap();
    assert_eq!(
        device.next_chain(0),
        None,
        "nothing is visible before it is published"
    );
    assert_eq!(queue.publish(), Notify::Needed);
    let (head, buffers) = device.next_chain(0).unwrap();
    let gpa = Gpa::new;
    assert_eq!(
        buffers,
        [
            (gpa(0x1000), 1, false),
            (gpa(0x2000), 2, false),
            (gpa(0x3000), 3, true)
        ]
    );
    assert_eq!(queue.nr_free(), SIZE - 3);

    assert_eq!(queue.poll(), Ok(None));
    device.use_chain(0, u32::from(head), 3);
    assert_eq!(queue.poll(), Ok(Some(Used { token: 7, written: 3 })));
    assert_eq!(queue.poll(), Ok(None));
    assert_eq!((queue.nr_free(), queue.in_flight()), (SIZE, 0));
}

#[test]
fn requests_come_back_in_any_order() {
    set_up!(device, queue);
    (0..4).for_each(|token| send(&mut queue, token));
    let heads: Vec<u16> = (0..4).map(|_| device.next_chain(0).unwrap().0).collect();
    for token in [2usize, 0, 3, 1] {
        device.use_chain(0, u32::from(heads[token]), 0);
        assert_eq!(queue.poll().unwrap().unwrap().token as usize, token);
    }
}

#[test]
fn a_queue_that_is_full_gives_the_token_back() {
    set_up!(device, queue);
    (0..u32::from(SIZE)).for_each(|token| send(&mut queue, token));
    assert_eq!(
        queue.submit(&[], &[segment(0, 1)], 99),
        Err(Refused::Full { token: 99 })
    );
    assert_eq!(queue.submit(&[], &[], 98), Err(Refused::Full { token: 98 }));
    let (head, _) = device.next_chain(0).unwrap();
    device.use_chain(0, u32::from(head), 0);
    queue.poll().unwrap().unwrap();
    let two = [segment(0, 1), segment(1, 1)];
    assert_eq!(queue.submit(&two, &[], 97), Err(Refused::Full { token: 97 }));
    assert_eq!(queue.submit(&two[..1], &[], 96), Ok(()));
}

#[test]
fn running_numbers_wrap_and_descriptors_are_never_lost() {
    set_up!(device, queue);
    for round in 0..70_000 {
        queue
            .submit(&[segment(0, 1)], &[segment(0x1000, 64)], round)
            .unwrap();
        let _ = queue.publish();
        let (head, buffers) = device.next_chain(0).unwrap();
        assert_eq!(buffers.len(), 2);
        device.use_chain(0, u32::from(head), 64);
        assert_eq!(
            queue.poll(),
            Ok(Some(Used {
                token: round,
                written: 64
            }))
        );
    }
    assert_eq!(queue.nr_free(), SIZE);
}

#[test]
fn nothing_new_needs_no_notification_and_a_device_that_looks_anyway_gets_none() {
    set_up!(device, queue);
    assert_eq!(queue.publish(), Notify::NotNeeded);
    send(&mut queue, 0);
    assert_eq!(queue.publish(), Notify::NotNeeded);
    device.set_used_flags(0, ring::USED_F_NO_NOTIFY);
    queue.submit(&[], &[segment(0, 1)], 1).unwrap();
    assert_eq!(queue.publish(), Notify::NotNeeded);
    device.set_used_flags(0, 0);
    queue.submit(&[], &[segment(0, 1)], 2).unwrap();
    assert_eq!(queue.publish(), Notify::Needed);
}

#[test]
fn the_device_is_told_whether_to_interrupt() {
    set_up!(device, queue);
    assert_eq!(device.avail_flags(0), 0);
    queue.set_used_interrupts(UsedInterrupts::Unwanted);
    assert_eq!(device.avail_flags(0), ring::AVAIL_F_NO_INTERRUPT);
    queue.set_used_interrupts(UsedInterrupts::Wanted);
    assert_eq!(device.avail_flags(0), 0);
}

#[test]
fn a_used_index_beyond_what_is_in_flight_is_a_fault_that_stays() {
    set_up!(device, queue);
    send(&mut queue, 5);
    for to in [2, 0x8000, 0xffff] {
        queue.fault = None;
        device.set_used_index(0, to);
        let fault = QueueFault::IndexJump {
            from: 0,
            to,
            in_flight: 1,
        };
        assert_eq!(queue.poll(), Err(fault));
        device.set_used_index(0, 0);
        assert_eq!(queue.poll(), Err(fault));
        assert_eq!(
            queue.submit(&[], &[segment(0, 1)], 6),
            Err(Refused::Faulty { token: 6, fault })
        );
    }
    assert_eq!(queue.reset(), [5]);
    assert_eq!(queue.poll(), Ok(None));
}

#[test]
fn ids_that_are_out_of_range_or_not_in_flight_are_faults() {
    for id in [u32::from(SIZE), 0x1_0000, u32::MAX, 3] {
        set_up!(device, queue);
        send(&mut queue, 5);
        device.use_chain(0, id, 0);
        assert_eq!(queue.poll(), Err(QueueFault::NotInFlight { id }));
        assert_eq!(queue.reset(), [5]);
    }
}

#[test]
fn a_request_that_is_returned_twice_is_a_fault() {
    set_up!(device, queue);
    send(&mut queue, 1);
    send(&mut queue, 2);
    let (head, _) = device.next_chain(0).unwrap();
    device.use_chain(0, u32::from(head), 0);
    device.use_chain(0, u32::from(head), 0);
    assert_eq!(queue.poll(), Ok(Some(Used { token: 1, written: 0 })));
    assert_eq!(queue.poll(), Err(QueueFault::NotInFlight { id: u32::from(head) }));
    assert_eq!(queue.reset(), [2]);
}

#[test]
fn the_middle_of_a_chain_is_not_a_request() {
    set_up!(device, queue);
    queue.submit(&[segment(0, 1)], &[segment(1, 1)], 1).unwrap();
    let _ = queue.publish();
    let (head, _) = device.next_chain(0).unwrap();
    device.use_chain(0, u32::from(head) + 1, 0);
    assert_eq!(
        queue.poll(),
        Err(QueueFault::NotInFlight {
            id: u32::from(head) + 1
        })
    );
}

#[test]
fn a_length_beyond_the_writable_part_is_a_fault_and_the_token_survives() {
    for (len, writable) in [(65, 64), (u32::MAX, 64)] {
        set_up!(device, queue);
        queue
            .submit(&[segment(0, 4096)], &[segment(0x1000, 64)], 9)
            .unwrap();
        let _ = queue.publish();
        let (head, _) = device.next_chain(0).unwrap();
        device.use_chain(0, u32::from(head), len);
        assert_eq!(
            queue.poll(),
            Err(QueueFault::TooLong {
                written: len,
                writable
            })
        );
        assert_eq!(queue.reset(), [9]);
        assert_eq!(queue.nr_free(), SIZE);
    }
}

#[test]
fn descriptors_that_the_device_overwrites_change_nothing() {
    set_up!(device, queue);
    queue.submit(&[segment(0, 1)], &[segment(1, 1)], 1).unwrap();
    let _ = queue.publish();
    let (head, _) = device.next_chain(0).unwrap();
    let table = queue.addresses().descriptors;
    device
        .memory
        .write_bytes(table, &vec![0xff; usize::from(SIZE) * ring::Descriptor::SIZE]);
    device.use_chain(0, u32::from(head), 1);
    assert_eq!(queue.poll(), Ok(Some(Used { token: 1, written: 1 })));
    // All descriptors are there again: as many single requests fit as there are entries.
    (0..u32::from(SIZE)).for_each(|token| send(&mut queue, token));
}

/// What a hostile device does next.
#[derive(Clone, Debug)]
enum Act {
    Send(u8),
    Used { position: u16, id: u32, len: u32 },
    Index(u16),
    Honest,
    Poll,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (1..=3u8).prop_map(Act::Send),
        (
            0..16u16,
            prop_oneof![0..9u32, any::<u32>()],
            prop_oneof![0..70u32, any::<u32>()]
        )
            .prop_map(|(position, id, len)| Act::Used { position, id, len }),
        prop_oneof![0..12u16, any::<u16>()].prop_map(Act::Index),
        Just(Act::Honest),
        Just(Act::Poll),
    ]
}

proptest! {
    #[test]
    fn whatever_a_device_does_no_token_comes_back_twice_or_is_lost(acts in prop::collection::vec(act(), 0..60)) {
        set_up!(device, queue);
        let mut out = HashSet::new();
        let mut next_token = 0;
        for act in acts {
            match act {
                Act::Send(segments) => {
                    let segments = vec![segment(0x1000, 16); usize::from(segments)];
                    if queue.submit(&[], &segments, next_token).is_ok() {
                        out.insert(next_token);
                        next_token += 1;
                    }
                    let _ = queue.publish();
                }
                Act::Used { position, id, len } => device.write_used(0, position, id, len),
                Act::Index(index) => device.set_used_index(0, index),
                Act::Honest => {
                    if let Some((head, _)) = device.next_chain(0) {
                        device.use_chain(0, u32::from(head), 16);
                    }
                }
                Act::Poll => {
                    // As many polls as the documentation promises to be enough.
                    for _ in 0..queue.in_flight() {
                        if let Ok(Some(used)) = queue.poll() {
                            prop_assert!(out.remove(&used.token), "token {} came back twice", used.token);
                            prop_assert!(used.written <= 48);
                        }
                    }
                    prop_assert!(!matches!(queue.poll(), Ok(Some(_))), "more came back than was in flight");
                }
            }
        }
        prop_assert_eq!(HashSet::from_iter(queue.reset()), out);
        prop_assert_eq!(queue.nr_free(), SIZE);
    }
}
