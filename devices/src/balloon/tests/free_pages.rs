//! Free pages: reported by the driver of its own accord, or hinted when it was asked.

use virtio_wire::balloon::command;
use virtio_wire::mmio::{INTERRUPT_CONFIG_CHANGE, Register};

use super::*;

const HINTS: u16 = Queue::FreePage as u16;

fn send_id(driver: &mut BalloonDriver, id: u32) {
    driver.send(HINTS, &id.to_le_bytes());
}

/// A driver in a round of hinting.
fn hinting() -> (BalloonDriver, TestBackend) {
    let (mut driver, host) = balloon_driver(0);
    assert!(driver.transport.start_hinting().interrupt);
    let id = driver.config().free_page_hint_cmd_id;
    send_id(&mut driver, id);
    assert_eq!(driver.balloon().hinting(), HintingState::Running);
    (driver, host)
}

#[test]
fn reported_pages_are_discarded_and_stay_the_guests() {
    let (mut driver, host) = balloon_driver(0);
    driver.send_buffers(
        Queue::Reporting,
        &[bytes_of(60..64), bytes_of(20..24), bytes_of(24..28)],
    );
    assert_eq!(host.take(), [bytes_of(20..28), bytes_of(60..64)]);
    let counters = driver.balloon().counters();
    assert_eq!(
        (counters.reported, counters.discarded),
        (12 * PAGE_SIZE, 12 * PAGE_SIZE)
    );
    assert_eq!(driver.balloon().pages(), 0);
}

#[test]
fn only_whole_pages_of_the_host_are_discarded() {
    let (mut driver, host) = balloon_driver(0);
    let small = bytes_of(20..23);
    driver.send_buffers(
        Queue::Reporting,
        std::slice::from_ref(&(small.start + 1..small.end - 1)),
    );
    assert_eq!(host.take(), [bytes_of(21..22)]);
    driver.send_buffers(Queue::Reporting, &[bytes_of(126..131)]);
    assert_eq!(host.take(), [bytes_of(126..128)]);
    driver.send_buffers(Queue::Reporting, &[bytes_of(130..141)]);
    assert_eq!(host.take(), [bytes_of(132..140)]);
}

#[test]
fn a_report_of_memory_that_is_not_there_is_refused_and_the_others_taken() {
    let (mut driver, host) = balloon_driver(0);
    driver.mem.refuse(bytes_of(22..23));
    driver.send_buffers(Queue::Reporting, &[bytes_of(20..24), bytes_of(30..31)]);
    assert_eq!(host.take(), [bytes_of(30..31)]);
    assert_eq!(driver.transport.guest_faults(), 1);
    driver.send_buffers(
        Queue::Reporting,
        std::slice::from_ref(&(PatchyMemory::END - 4096..PatchyMemory::END + 4096)),
    );
    driver.send_buffers(
        Queue::Reporting,
        std::slice::from_ref(&(u64::MAX - 8192..u64::MAX)),
    );
    assert_eq!((host.take(), driver.transport.guest_faults()), (vec![], 3));
}

#[test]
fn reports_are_buffers_to_be_written() {
    let (mut driver, host) = balloon_driver(0);
    driver.send(Queue::Reporting as u16, &[0; 8]);
    assert_eq!((host.take(), driver.transport.guest_faults()), (vec![], 1));
}

#[test]
fn pages_full_of_poison_are_left_alone_and_zeros_are_not() {
    for (poison, taken) in [(0xaaaa_aaaa_u32, vec![]), (0, vec![bytes_of(20..24)])] {
        let (mut driver, host) = balloon_driver(0);
        driver.negotiate(driver.balloon().features() | virtio_wire::feature::VERSION_1);
        driver.write_config(offset::POISON_VAL, &poison.to_le_bytes());
        for queue in 0..5 {
            let _ = driver.set_up_queue(queue);
        }
        let _ = driver.write(Register::Status, 15);
        assert_eq!(driver.balloon().poison(), Some(poison));
        // Too late to mean anything.
        driver.write_config(offset::POISON_VAL, &(!poison).to_le_bytes());
        driver.send_buffers(Queue::Reporting, &[bytes_of(20..24)]);
        assert_eq!(host.take(), taken);
        let left = if poison == 0 { 0 } else { 4 * PAGE_SIZE };
        assert_eq!(driver.balloon().counters().reported_poisoned, left);
        // A page in the balloon may have any content: the driver fills it again when it comes out.
        driver.send_pages(Queue::Inflate, &[40]);
        assert_eq!(host.take(), [bytes_of(40..41)]);
    }
}

#[test]
fn poison_without_its_feature_means_nothing() {
    let (mut driver, host) = balloon_driver(0);
    let without = driver.balloon().features() & !feature::PAGE_POISON;
    driver.write_config(offset::POISON_VAL, &[0xaa; 4]);
    driver.initialise(without | virtio_wire::feature::VERSION_1);
    driver.write_config(offset::POISON_VAL, &[0xaa; 4]);
    driver.send_buffers(Queue::Reporting, &[bytes_of(20..24)]);
    assert_eq!(host.take(), [bytes_of(20..24)]);
}

#[test]
fn a_round_of_hinting_goes_from_the_hosts_wish_to_done() {
    let (mut driver, host) = hinting();
    driver.send_buffers(Queue::FreePage, &[bytes_of(20..24)]);
    driver.send_buffers(Queue::FreePage, &[bytes_of(30..31)]);
    assert_eq!(host.take(), [bytes_of(20..24), bytes_of(30..31)]);
    let _ = driver.write(Register::InterruptAck, 3);
    send_id(&mut driver, command::STOP);
    assert_eq!(driver.config().free_page_hint_cmd_id, command::DONE);
    assert!(
        driver.read(Register::InterruptStatus) & INTERRUPT_CONFIG_CHANGE != 0,
        "the driver is told"
    );
    let counters = driver.balloon().counters();
    assert_eq!((counters.hinted, counters.hinting_rounds), (5 * PAGE_SIZE, 1));
    assert_eq!(driver.balloon().hinting(), HintingState::Idle);
}

#[test]
fn hints_outside_of_a_round_are_ignored() {
    let (mut driver, host) = balloon_driver(0);
    driver.send_buffers(Queue::FreePage, &[bytes_of(20..21)]);
    send_id(&mut driver, 2);
    driver.send_buffers(Queue::FreePage, &[bytes_of(21..22)]);
    let _ = driver.transport.start_hinting();
    driver.send_buffers(Queue::FreePage, &[bytes_of(22..23)]);
    send_id(&mut driver, 99);
    driver.send_buffers(Queue::FreePage, &[bytes_of(23..24)]);
    let id = driver.config().free_page_hint_cmd_id;
    send_id(&mut driver, id);
    let _ = driver.transport.stop_hinting();
    assert_eq!(driver.config().free_page_hint_cmd_id, command::DONE);
    driver.send_buffers(Queue::FreePage, &[bytes_of(24..25)]);
    assert_eq!(host.take(), []);
    let counters = driver.balloon().counters();
    assert_eq!((counters.hinted, counters.hinted_stale), (0, 5 * PAGE_SIZE));
}

#[test]
fn an_id_and_its_pages_may_come_in_one_chain() {
    let (mut driver, host) = balloon_driver(0);
    let _ = driver.transport.start_hinting();
    let id = driver.config().free_page_hint_cmd_id;
    driver.mem.poke(MESSAGE, &id.to_le_bytes());
    let page = bytes_of(20..21);
    driver.offer(HINTS, &[readable(MESSAGE, 4), writable(page.start, 4096)]);
    let _ = driver.kick(HINTS);
    assert_eq!(host.take(), [page]);
}

#[test]
fn half_an_id_is_refused() {
    let (mut driver, _) = hinting();
    driver.send(HINTS, &[0, 0]);
    assert_eq!(driver.transport.guest_faults(), 1);
    assert_eq!(driver.balloon().hinting(), HintingState::Running);
}

#[test]
fn hinting_is_not_asked_of_a_driver_that_has_not_negotiated_it() {
    let mut driver = Driver::new(Balloon::new(EVERYTHING, 0, TestBackend::default()));
    driver.initialise(virtio_wire::feature::VERSION_1);
    assert_eq!(driver.transport.start_hinting(), Effects::NONE);
    assert_eq!(driver.transport.stop_hinting(), Effects::NONE);
    assert_eq!(driver.balloon().hinting_queue(), None);
}
