//! The console behind its registers: both streams, their bounds, and the emergency output.

mod ports;

use virtio_wire::console;
use virtio_wire::mmio::{CONFIG_OFFSET, Register};
use virtio_wire::ring::UsedElement;
use virtio_wire::{feature as common, status};

use super::*;
use crate::testing::{Driver, PatchyMemory, readable, writable};

const BUFFER: u64 = PatchyMemory::BASE + 0x8000;

fn live() -> Driver<Console> {
    Driver::ready(Console::new(None))
}

fn send(driver: &mut Driver<Console>, bytes: &[u8]) -> Effects {
    driver.mem.poke(BUFFER, bytes);
    driver.offer(
        QUEUE_TRANSMIT,
        &[readable(BUFFER, u32::try_from(bytes.len()).unwrap())],
    );
    driver.kick(QUEUE_TRANSMIT)
}

/// Carries out what the effects ask for.
fn carry_out(driver: &mut Driver<Console>, effects: Effects) -> Effects {
    let asked = effects.notified.iter();
    asked.fold(Effects::NONE, |done, queue| {
        done.then(driver.transport.process_queue(&driver.mem, queue).unwrap())
    })
}

fn take(driver: &mut Driver<Console>, max: usize) -> Vec<u8> {
    let (bytes, effects) = driver.transport.take_from_guest(max);
    let _ = carry_out(driver, effects);
    bytes
}

fn push(driver: &mut Driver<Console>, bytes: &[u8]) -> (usize, Effects) {
    let (accepted, effects) = driver.transport.push_to_guest(bytes);
    (accepted, carry_out(driver, effects))
}

fn emergency(driver: &mut Driver<Console>, offset: u64, data: &[u8]) {
    let _ = driver.transport.write(&driver.mem, CONFIG_OFFSET + offset, data);
}

#[test]
fn what_the_guest_sends_is_what_the_host_takes() {
    let mut driver = live();
    assert!(send(&mut driver, b"ok 3\nabc").interrupt);
    assert_eq!(driver.used(QUEUE_TRANSMIT), [UsedElement { id: 0, len: 0 }]);
    assert_eq!(driver.transport.device().from_guest_len(), 8);
    assert_eq!(take(&mut driver, 5), b"ok 3\n");
    assert_eq!(take(&mut driver, 5), b"abc");
}

#[test]
fn what_the_host_pushes_is_what_the_guest_receives() {
    let mut driver = live();
    driver.offer(
        QUEUE_RECEIVE,
        &[writable(BUFFER, 4), writable(BUFFER + 0x100, 64)],
    );
    assert_eq!(
        driver.kick(QUEUE_RECEIVE),
        Effects::NONE,
        "an empty stream uses no buffer"
    );
    let (accepted, effects) = push(&mut driver, b"meminfo\n");
    assert_eq!((accepted, effects.interrupt), (8, true));
    assert_eq!(driver.used(QUEUE_RECEIVE), [UsedElement { id: 0, len: 8 }]);
    assert_eq!(&driver.mem.peek::<4>(BUFFER), b"memi");
    assert_eq!(&driver.mem.peek::<4>(BUFFER + 0x100), b"nfo\n");
}

#[test]
fn bytes_pushed_before_the_guest_offers_buffers_wait_for_them() {
    let mut driver = live();
    assert_eq!(push(&mut driver, b"help\n"), (5, Effects::NONE));
    driver.offer(QUEUE_RECEIVE, &[writable(BUFFER, 2)]);
    driver.offer(QUEUE_RECEIVE, &[writable(BUFFER + 2, 8)]);
    let _ = driver.kick(QUEUE_RECEIVE);
    assert_eq!(
        driver
            .used(QUEUE_RECEIVE)
            .iter()
            .map(|element| element.len)
            .collect::<Vec<_>>(),
        [2, 3]
    );
    assert_eq!(&driver.mem.peek::<5>(BUFFER), b"help\n");
}

#[test]
fn the_host_is_told_how_much_of_a_push_was_accepted() {
    let mut driver = live();
    let bytes = vec![b'x'; TO_GUEST_LIMIT + 10];
    assert_eq!(push(&mut driver, &bytes).0, TO_GUEST_LIMIT);
    assert_eq!(push(&mut driver, b"y").0, 0);
    assert_eq!(driver.transport.device().to_guest_len(), TO_GUEST_LIMIT);
}

#[test]
fn a_guest_that_sends_more_than_the_host_takes_is_held_back_and_loses_nothing() {
    let mut driver = live();
    // 20 buffers of 60 KiB: the queue takes 17 whole ones and a part of the next.
    let chain_len = 15 * 4096;
    let pattern: Vec<u8> = (0u8..=250).cycle().take(chain_len).collect();
    driver.mem.poke(BUFFER, &pattern);
    for _ in 0..20 {
        driver.offer(
            QUEUE_TRANSMIT,
            &[readable(BUFFER, u32::try_from(chain_len).unwrap())],
        );
        let _ = driver.kick(QUEUE_TRANSMIT);
    }
    assert_eq!(driver.transport.device().from_guest_len(), FROM_GUEST_LIMIT);
    let whole_chains = FROM_GUEST_LIMIT / chain_len;
    assert_eq!(driver.used(QUEUE_TRANSMIT).len(), whole_chains);

    let mut received = Vec::new();
    loop {
        let bytes = take(&mut driver, 100_000);
        assert!(driver.transport.device().from_guest_len() <= FROM_GUEST_LIMIT);
        if bytes.is_empty() {
            break;
        }
        received.extend(bytes);
    }
    assert_eq!(received.len(), 20 * chain_len);
    assert!(received.chunks(chain_len).all(|chunk| chunk == pattern));
    assert_eq!(driver.used(QUEUE_TRANSMIT).len(), 20 - whole_chains);
}

#[test]
fn chains_of_the_wrong_direction_are_returned_and_the_stream_goes_on() {
    let mut driver = live();
    driver.offer(QUEUE_TRANSMIT, &[writable(BUFFER, 4)]);
    assert!(send(&mut driver, b"good").interrupt);
    assert_eq!(take(&mut driver, 10), b"good");
    driver.offer(QUEUE_RECEIVE, &[readable(BUFFER, 4)]);
    driver.offer(QUEUE_RECEIVE, &[readable(BUFFER, 4), writable(BUFFER, 4)]);
    driver.offer(QUEUE_RECEIVE, &[writable(BUFFER, 0)]);
    driver.offer(QUEUE_RECEIVE, &[writable(BUFFER, 4)]);
    let _ = push(&mut driver, b"abcd");
    assert_eq!(
        driver
            .used(QUEUE_RECEIVE)
            .iter()
            .map(|element| element.len)
            .collect::<Vec<_>>(),
        [0, 0, 0, 4]
    );
    assert_eq!(&driver.mem.peek::<4>(BUFFER), b"abcd");
    assert_eq!(driver.transport.guest_faults(), 4);
    assert_eq!(driver.status(), 15);
}

#[test]
fn buffers_in_memory_that_is_gone_cost_the_host_no_byte() {
    let mut driver = live();
    let gone = PatchyMemory::BASE + 0x20000;
    driver.mem.refuse(gone..gone + 0x1000);
    driver.mem.forget_granted();
    driver.offer(QUEUE_RECEIVE, &[writable(gone, 64)]);
    driver.offer(QUEUE_RECEIVE, &[writable(BUFFER, 64)]);
    let _ = push(&mut driver, b"ps\n");
    assert_eq!(
        driver
            .used(QUEUE_RECEIVE)
            .iter()
            .map(|element| element.len)
            .collect::<Vec<_>>(),
        [0, 3]
    );
    assert_eq!(&driver.mem.peek::<3>(BUFFER), b"ps\n");

    driver.offer(QUEUE_TRANSMIT, &[readable(gone, 64)]);
    let _ = send(&mut driver, b"still here");
    assert_eq!(take(&mut driver, 100), b"still here");
    assert_eq!(driver.transport.guest_faults(), 2);
    assert!(!driver.mem.was_granted(&(gone..gone + 0x1000)));
}

#[test]
fn emergency_output_works_before_any_negotiation() {
    let mut driver = Driver::new(Console::new(None));
    assert_eq!(driver.status(), status::RESET);
    for byte in b"panicked at" {
        emergency(
            &mut driver,
            console::offset::EMERG_WR as u64,
            &u32::from(*byte).to_le_bytes(),
        );
    }
    emergency(&mut driver, console::offset::EMERG_WR as u64, b"!");
    assert_eq!(driver.transport.device().emergency_output(), b"panicked at!");
}

#[test]
fn emergency_output_is_bounded_and_keeps_the_newest() {
    let mut driver = Driver::new(Console::new(None));
    for _ in 0..2 * EMERGENCY_LIMIT {
        emergency(&mut driver, 8, b"a");
    }
    emergency(&mut driver, 8, b"z");
    let output = driver.transport.device().emergency_output();
    assert_eq!(output.len(), EMERGENCY_LIMIT);
    assert_eq!(output.last(), Some(&b'z'));
}

#[test]
fn writes_elsewhere_in_the_configuration_are_ignored() {
    let mut driver = live();
    for offset in [0, 4, 7, 9, 12, u64::MAX - CONFIG_OFFSET] {
        emergency(&mut driver, offset, b"abcd");
    }
    emergency(&mut driver, 8, b"");
    assert_eq!(driver.transport.device().emergency_output(), b"");
}

#[test]
fn a_size_is_offered_only_if_there_is_one() {
    assert_eq!(Console::new(None).features(), console::feature::EMERG_WRITE);
    let driver = Driver::new(Console::new(Some(ConsoleSize { cols: 80, rows: 25 })));
    assert_eq!(driver.read(Register::DeviceFeatures) & 7, 5);
    let mut size = [0; 4];
    driver.transport.read(CONFIG_OFFSET, &mut size);
    assert_eq!(size, [80, 0, 25, 0]);
}

#[test]
fn bytes_on_their_way_survive_a_reset_by_the_driver() {
    let mut driver = live();
    let _ = push(&mut driver, b"help\n");
    let _ = send(&mut driver, b"old");
    driver.initialise(common::VERSION_1);
    driver.offer(QUEUE_RECEIVE, &[writable(BUFFER + 0x100, 64)]);
    let _ = driver.kick(QUEUE_RECEIVE);
    assert_eq!(&driver.mem.peek::<5>(BUFFER + 0x100), b"help\n");
    assert_eq!(take(&mut driver, 10), b"old");
}

#[test]
fn the_host_side_of_the_streams_does_not_touch_guest_memory() {
    let mut driver = live();
    driver.offer(QUEUE_RECEIVE, &[writable(BUFFER, 64)]);
    let _ = send(&mut driver, b"abc");
    driver.mem.forget_granted();
    let (_, pushed) = driver.transport.push_to_guest(b"x");
    let (_, taken) = driver.transport.take_from_guest(1);
    assert_eq!(
        (pushed.notified, taken.notified),
        (QueueSet::one(QUEUE_RECEIVE), QueueSet::one(QUEUE_TRANSMIT))
    );
    assert_eq!(driver.transport.push_to_guest(b"").1, Effects::NONE);
    assert!(!driver.mem.was_granted(&(0..u64::MAX)));
}
