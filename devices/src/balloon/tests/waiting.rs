//! Parts of huge pages that wait for the rest of them.

use proptest::prelude::*;

use super::*;

/// Wants more than any test hands in.
const MORE: u32 = PAGES;

#[test]
fn a_huge_page_that_comes_in_two_requests_goes_in_one_discard_upwards_and_downwards() {
    for requests in [[32..40, 40..48], [40..48, 32..40]] {
        let (mut driver, host) = balloon_driver(MORE);
        let [first, second] = requests.map(Iterator::collect::<Vec<u32>>);
        driver.send_pages(Queue::Inflate, &first);
        assert_eq!((host.take(), driver.balloon().pages()), (vec![], 8));
        driver.send_pages(Queue::Inflate, &second);
        assert_eq!(host.take(), [bytes_of(32..48)]);
        assert_eq!(driver.balloon().counters().discarded, 16 * PAGE_SIZE);
    }
}

#[test]
fn requests_that_are_not_aligned_split_huge_pages_at_the_ends_only() {
    let (mut driver, host) = balloon_driver(MORE);
    for first in [24, 32, 40, 48, 56] {
        driver.send_pages(Queue::Inflate, &(first - 4..first + 4).collect::<Vec<_>>());
    }
    assert_eq!(host.take(), [bytes_of(20..32), bytes_of(32..48)]);
    driver.send_pages(Queue::Inflate, &[100]);
    assert_eq!(host.take(), [bytes_of(48..60)]);
    let (mut driver, host) = balloon_driver(MORE);
    for first in [56, 48, 40, 32, 24] {
        driver.send_pages(Queue::Inflate, &(first - 4..first + 4).collect::<Vec<_>>());
    }
    assert_eq!(host.take(), [bytes_of(48..60), bytes_of(32..48)]);
}

#[test]
fn nothing_waits_once_the_target_is_reached() {
    let (mut driver, host) = balloon_driver(12);
    driver.send_pages(Queue::Inflate, &(32..40).collect::<Vec<_>>());
    assert_eq!(host.take(), []);
    driver.send_pages(Queue::Inflate, &(64..68).collect::<Vec<_>>());
    assert_eq!(host.take(), [bytes_of(32..40), bytes_of(64..68)]);
}

#[test]
fn nothing_waits_once_the_target_is_lowered_to_what_is_there() {
    let (mut driver, host) = balloon_driver(MORE);
    driver.send_pages(Queue::Inflate, &(32..40).collect::<Vec<_>>());
    let effects = driver.transport.set_balloon_target(9);
    assert!(effects.notified.is_empty(), "one more may come");
    let effects = driver.transport.set_balloon_target(8);
    let due: Vec<u16> = effects.notified.iter().collect();
    assert_eq!((host.take(), &due[..]), (vec![], &[Queue::Inflate as u16][..]));
    let effects = driver.transport.process_queue(&driver.mem, due[0]).unwrap();
    assert!(effects.notified.is_empty() && !effects.interrupt);
    assert_eq!(host.take(), [bytes_of(32..40)]);
}

#[test]
fn what_is_gone_when_the_target_is_lowered_is_left_alone() {
    let (mut driver, host) = balloon_driver(MORE);
    driver.send_pages(Queue::Inflate, &[64]);
    driver.mem.refuse(bytes_of(64..96));
    let _ = driver.transport.set_balloon_target(0);
    let _ = driver.kick(Queue::Inflate as u16);
    assert_eq!(host.take(), []);
}

#[test]
fn what_waits_goes_before_any_page_leaves_the_balloon() {
    let (mut driver, host) = balloon_driver(MORE);
    driver.send_pages(Queue::Inflate, &(32..40).collect::<Vec<_>>());
    driver.send_pages(Queue::Deflate, &[33]);
    assert_eq!(host.take(), [bytes_of(32..40)]);
    // The guest has written to it by now: it must not go with its neighbours.
    driver.send_pages(Queue::Inflate, &(40..48).collect::<Vec<_>>());
    driver.send_pages(Queue::Deflate, &[99]);
    assert_eq!(host.take(), [bytes_of(40..48)]);
}

#[test]
fn statistics_find_nothing_waiting() {
    let (mut driver, host) = balloon_driver(MORE);
    driver.send_pages(Queue::Inflate, &[32, 33]);
    driver.mem.poke(MESSAGE, &[0; 10]);
    driver.offer(Queue::Stats as u16, &[readable(MESSAGE, 10)]);
    let _ = driver.kick(Queue::Stats as u16);
    assert_eq!(host.take(), [bytes_of(32..34)]);
}

#[test]
fn what_is_no_longer_the_balloons_is_left_alone() {
    // Unplugged, and plugged again for other use.
    let (mut driver, host) = balloon_driver(MORE);
    driver.send_pages(Queue::Inflate, &(32..40).collect::<Vec<_>>());
    let gone = bytes_of(32..64);
    driver.transport.forget_pages(gone.start, gone.end);
    driver.send_pages(Queue::Inflate, &(40..48).collect::<Vec<_>>());
    driver.send_pages(Queue::Deflate, &[99]);
    assert_eq!(host.take(), [bytes_of(40..48)]);
    // Unplugged behind the device's back.
    driver.send_pages(Queue::Inflate, &[64]);
    driver.mem.refuse(bytes_of(64..96));
    driver.send_pages(Queue::Deflate, &[99]);
    assert_eq!(host.take(), []);
    // The next driver's.
    driver.send_pages(Queue::Inflate, &[48]);
    let features = driver.balloon().features() | virtio_wire::feature::VERSION_1;
    driver.initialise(features);
    driver.send_pages(Queue::Deflate, &[99]);
    assert_eq!(host.take(), []);
}

#[test]
fn a_driver_that_does_not_tell_before_it_takes_pages_is_not_waited_for() {
    let (mut driver, host) = balloon_driver(MORE);
    driver.initialise(virtio_wire::feature::VERSION_1);
    driver.send_pages(Queue::Inflate, &[32, 33]);
    assert_eq!(host.take(), [bytes_of(32..34)]);
}

proptest! {
    /// In whatever order they come: what is in the balloon is given back, all of it, and nothing twice in a row.
    #[test]
    fn every_page_goes_in_the_end(requests in prop::collection::vec((0..120u32, 1..30u32), 1..30)) {
        let (mut driver, host) = balloon_driver(MORE);
        let mut inflated = std::collections::BTreeSet::new();
        let mut discarded = std::collections::BTreeSet::new();
        let take = |discarded: &mut std::collections::BTreeSet<u64>| {
            let pages = host.take().into_iter().flat_map(|range| range.step_by(4096)).collect::<Vec<_>>();
            discarded.extend(pages);
        };
        for (first, count) in requests {
            let pages: Vec<u32> = (first + 8..(first + 8 + count).min(PAGES / 2)).collect();
            inflated.extend(pages.iter().map(|&page| bytes_of(page..page + 1).start));
            driver.send_pages(Queue::Inflate, &pages);
            take(&mut discarded);
            prop_assert!(discarded.is_subset(&inflated));
            let waits = inflated.difference(&discarded).count() as u64;
            prop_assert!(waits * PAGE_SIZE < HUGE_PAGE, "{} pages wait", waits);
        }
        driver.send_pages(Queue::Deflate, &[PAGES - 1]);
        take(&mut discarded);
        prop_assert_eq!(discarded, inflated);
    }
}
