//! Pages that go in and out.

use virtio_wire::mmio::{INTERRUPT_CONFIG_CHANGE, Register};

use super::*;

#[test]
fn pages_in_any_order_are_discarded_as_ranges() {
    let (mut driver, host) = balloon_driver(0);
    driver.send_pages(Queue::Inflate, &[25, 24, 23, 40, 22, 41, 20]);
    assert_eq!(
        host.take(),
        [bytes_of(20..21), bytes_of(22..26), bytes_of(40..42)]
    );
    assert_eq!(driver.balloon().pages(), 7);
    let counters = driver.balloon().counters();
    assert_eq!(
        (counters.inflated, counters.discarded),
        (7 * PAGE_SIZE, 7 * PAGE_SIZE)
    );
}

#[test]
fn a_page_handed_in_twice_counts_once() {
    let (mut driver, _) = balloon_driver(0);
    driver.send_pages(Queue::Inflate, &[20, 20, 21]);
    driver.send_pages(Queue::Inflate, &[21, 22]);
    assert_eq!(driver.balloon().pages(), 3);
    assert_eq!(driver.balloon().counters().inflated, 3 * PAGE_SIZE);
    driver.send_pages(Queue::Deflate, &[20, 20, 99]);
    assert_eq!(driver.balloon().pages(), 2);
    assert_eq!(driver.balloon().counters().deflated, PAGE_SIZE);
}

#[test]
fn a_large_page_of_the_host_goes_when_all_of_it_is_in_the_balloon() {
    let (mut driver, host) = balloon_driver(0);
    // Page 128 is where the host's large pages begin, four of the balloon's each.
    driver.send_pages(Queue::Inflate, &[129, 130, 131, 132]);
    assert_eq!(host.take(), []);
    driver.send_pages(Queue::Inflate, &[128]);
    assert_eq!(host.take(), [bytes_of(128..132)]);
    // The rest of the second, all of the third, and one page on each side in the small part and in a fourth.
    driver.send_pages(Queue::Inflate, &[127, 133, 134, 135, 136, 137, 138, 139, 140]);
    assert_eq!(host.take(), [bytes_of(127..128), bytes_of(132..140)]);
    assert_eq!(driver.balloon().pages(), 14);
    assert_eq!(driver.balloon().counters().discarded, 13 * PAGE_SIZE);
}

#[test]
fn two_runs_that_complete_a_large_page_discard_it_once() {
    let (mut driver, host) = balloon_driver(0);
    driver.send_pages(Queue::Inflate, &[129]);
    driver.send_pages(Queue::Inflate, &[128, 130, 131]);
    assert_eq!(host.take(), [bytes_of(128..132)]);
}

#[test]
fn a_page_that_left_the_balloon_keeps_its_large_page() {
    let (mut driver, host) = balloon_driver(0);
    driver.send_pages(Queue::Inflate, &[128, 129, 130]);
    driver.send_pages(Queue::Deflate, &[129]);
    driver.send_pages(Queue::Inflate, &[131]);
    assert_eq!(host.take(), []);
}

#[test]
fn pages_of_unplugged_memory_are_refused_and_their_neighbours_taken() {
    let (mut driver, host) = balloon_driver(0);
    driver.mem.refuse(bytes_of(22..24));
    driver.send_pages(Queue::Inflate, &[20, 21, 22, 23, 24, 25]);
    assert_eq!(host.take(), [bytes_of(20..22), bytes_of(24..26)]);
    assert_eq!(driver.balloon().pages(), 4);
    assert_eq!(
        driver.transport.last_guest_fault(),
        Some(GuestFault::PageUnreachable {
            queue: 0,
            gpa: bytes_of(22..24).start
        })
    );
    assert_eq!(driver.transport.guest_faults(), 1);
}

#[test]
fn pages_beyond_all_memory_are_refused() {
    let (mut driver, host) = balloon_driver(0);
    driver.send(0, &[0xff; 8]);
    driver.send(0, &0u32.to_le_bytes());
    assert_eq!((host.take(), driver.balloon().pages()), (vec![], 0));
    assert_eq!(driver.transport.guest_faults(), 2);
}

#[test]
fn what_is_unplugged_no_longer_counts() {
    let (mut driver, _) = balloon_driver(0);
    driver.send_pages(Queue::Inflate, &[20, 21, 22, 23]);
    let gone = bytes_of(22..30);
    assert_eq!(driver.balloon().pages_between(gone.start, gone.end), 2);
    assert_eq!(driver.transport.forget_pages(gone.start, gone.end), 2);
    assert_eq!(driver.balloon().pages(), 2);
}

#[test]
fn a_target_is_told_with_an_interrupt_even_when_it_is_the_same() {
    let (mut driver, _) = balloon_driver(7);
    assert_eq!(driver.config().num_pages, 7);
    for target in [9, 9] {
        let _ = driver.write(Register::InterruptAck, 3);
        let effects = driver.transport.set_balloon_target(target);
        assert!(effects.interrupt && effects.config_changed);
        assert_eq!(driver.read(Register::InterruptStatus), INTERRUPT_CONFIG_CHANGE);
        assert_eq!(driver.config().num_pages, 9);
    }
}

#[test]
fn the_driver_writes_its_two_fields_in_any_width_and_no_other() {
    let (mut driver, _) = balloon_driver(7);
    driver.write_config(offset::ACTUAL, &0x0102_0304_u32.to_le_bytes());
    for (at, byte) in [5, 6, 7, 8].into_iter().enumerate() {
        driver.write_config(offset::POISON_VAL + at, &[byte]);
    }
    driver.write_config(offset::NUM_PAGES, &[0xff; 4]);
    driver.write_config(offset::FREE_PAGE_HINT_CMD_ID, &[0xff; 4]);
    driver.write_config(1000, &[0xff; 4]);
    let config = Config {
        num_pages: 7,
        actual: 0x0102_0304,
        free_page_hint_cmd_id: 0,
        poison_val: 0x0807_0605,
    };
    assert_eq!(driver.config(), config);
    // All of it at once, and across the end.
    driver.write_config(0, &[0x11; 20]);
    assert_eq!(
        driver.config(),
        Config {
            actual: 0x1111_1111,
            poison_val: 0x1111_1111,
            ..config
        }
    );
}

#[test]
fn deflation_below_the_target_is_the_guests_own_doing() {
    let (mut driver, _) = balloon_driver(4);
    driver.send_pages(Queue::Inflate, &[20, 21, 22, 23, 24, 25]);
    driver.send_pages(Queue::Deflate, &[20]);
    assert_eq!(driver.balloon().counters().deflated_unasked, 0);
    driver.send_pages(Queue::Deflate, &[21, 22]);
    assert_eq!(driver.balloon().counters().deflated_unasked, PAGE_SIZE);
    driver.send_pages(Queue::Deflate, &[23]);
    assert_eq!(driver.balloon().counters().deflated_unasked, 2 * PAGE_SIZE);
    assert_eq!(driver.balloon().counters().deflated, 4 * PAGE_SIZE);
}

#[test]
fn the_next_driver_starts_with_an_empty_balloon_and_the_same_target() {
    let (mut driver, host) = balloon_driver(2);
    driver.send_pages(Queue::Inflate, &[20, 21]);
    driver.write_config(offset::ACTUAL, &2u32.to_le_bytes());
    host.take();
    let features = driver.balloon().features() | virtio_wire::feature::VERSION_1;
    driver.initialise(features);
    assert_eq!(driver.balloon().pages(), 0);
    assert_eq!((driver.config().num_pages, driver.config().actual), (2, 0));
    driver.send_pages(Queue::Inflate, &[20, 21]);
    assert_eq!(host.take(), [bytes_of(20..22)]);
    assert_eq!(driver.balloon().pages(), 2);
}

#[test]
fn a_host_that_takes_nothing_back_costs_the_guest_nothing() {
    let (mut driver, host) = balloon_driver(0);
    host.0.borrow_mut().fails = true;
    driver.send_pages(Queue::Inflate, &[20, 21]);
    let counters = driver.balloon().counters();
    assert_eq!((counters.discarded, counters.discard_failures), (0, 1));
    assert_eq!(driver.balloon().pages(), 2);
    assert_eq!(driver.transport.guest_faults(), 0);
}

#[test]
fn more_page_numbers_than_the_device_takes_are_refused_as_a_whole() {
    let (mut driver, host) = balloon_driver(0);
    let half = (MAX_PFNS / 2) * 4;
    driver.offer(0, &[readable(MESSAGE, half), readable(MESSAGE, half)]);
    driver.offer(0, &[readable(MESSAGE, half), readable(MESSAGE, half + 4)]);
    let _ = driver.kick(0);
    assert_eq!(driver.used(0).len(), 2);
    assert_eq!(
        driver.transport.guest_faults(),
        2,
        "the first has no page of the guest's in it"
    );
    assert_eq!(
        driver.transport.last_guest_fault(),
        Some(GuestFault::LongChain {
            queue: 0,
            len: 65_540,
            limit: 65_536
        })
    );
    assert_eq!(host.take(), []);
}

#[test]
fn page_numbers_may_be_cut_anywhere_and_a_rest_is_ignored() {
    let (mut driver, host) = balloon_driver(0);
    let bytes: Vec<u8> = [FIRST + 30, FIRST + 31]
        .iter()
        .flat_map(|pfn| pfn.to_le_bytes())
        .collect();
    driver.mem.poke(MESSAGE, &bytes);
    driver.offer(
        0,
        &[
            readable(MESSAGE, 3),
            readable(MESSAGE + 3, 5),
            readable(MESSAGE, 2),
        ],
    );
    let _ = driver.kick(0);
    assert_eq!(host.take(), [bytes_of(30..32)]);
}
