//! The queue that works backwards: the device asks by returning a buffer.

use virtio_wire::balloon::{Stat, StatTag};

use super::*;

const STATS: u16 = Queue::Stats as u16;

fn buffer(stats: &[(u16, u64)]) -> Vec<u8> {
    stats
        .iter()
        .flat_map(|&(tag, value)| Stat { tag, value }.encode())
        .collect()
}

/// Puts statistics into the queue without expecting them back.
fn supply(driver: &mut BalloonDriver, bytes: &[u8]) {
    driver.mem.poke(MESSAGE, bytes);
    driver.offer(STATS, &[readable(MESSAGE, u32::try_from(bytes.len()).unwrap())]);
    let _ = driver.kick(STATS);
}

/// The host asks, and the effects are seen to.
fn ask(driver: &mut BalloonDriver) -> Effects {
    let effects = driver.transport.request_statistics();
    effects.notified.iter().fold(effects, |effects, queue| {
        effects.then(driver.transport.process_queue(&driver.mem, queue).unwrap())
    })
}

#[test]
fn a_buffer_is_read_when_it_comes_and_returned_to_ask_for_the_next() {
    let (mut driver, _) = balloon_driver(0);
    assert_eq!(driver.balloon().statistics(), None);
    supply(&mut driver, &buffer(&[(StatTag::FreeMemory as u16, 11)]));
    assert!(driver.used(STATS).is_empty(), "the device keeps it");
    let free = |driver: &BalloonDriver| driver.balloon().statistics().unwrap().value(StatTag::FreeMemory);
    assert_eq!(free(&driver), Some(11));

    assert!(ask(&mut driver).interrupt);
    assert_eq!(driver.used(STATS).len(), 1);
    assert_eq!(
        driver.balloon().counters().statistics,
        1,
        "asking is not an answer"
    );
    supply(&mut driver, &buffer(&[(StatTag::FreeMemory as u16, 12)]));
    assert_eq!(free(&driver), Some(12));
    assert_eq!(driver.balloon().counters().statistics, 2);
    assert!(driver.used(STATS).is_empty());
}

#[test]
fn asking_before_there_is_a_buffer_asks_as_soon_as_there_is_one() {
    let (mut driver, _) = balloon_driver(0);
    assert!(!ask(&mut driver).interrupt);
    supply(&mut driver, &buffer(&[(StatTag::FreeMemory as u16, 1)]));
    assert_eq!(driver.used(STATS).len(), 1);
    supply(&mut driver, &buffer(&[(StatTag::FreeMemory as u16, 2)]));
    assert!(driver.used(STATS).is_empty(), "once");
    assert_eq!(driver.balloon().counters().statistics, 2);
}

#[test]
fn every_tag_is_taken_in_any_order_and_unknown_ones_are_not() {
    let (mut driver, _) = balloon_driver(0);
    let mut stats: Vec<_> = StatTag::ALL.map(|tag| (tag as u16, 1000 + tag as u64)).to_vec();
    stats.reverse();
    stats.insert(3, (16, 7));
    stats.push((u16::MAX, 8));
    let mut bytes = buffer(&stats);
    bytes.extend([0; 9]);
    supply(&mut driver, &bytes);
    let statistics = *driver.balloon().statistics().unwrap();
    for tag in StatTag::ALL {
        assert_eq!(statistics.value(tag), Some(1000 + tag as u64), "{tag:?}");
    }
}

#[test]
fn what_the_guest_leaves_out_is_not_there() {
    let (mut driver, _) = balloon_driver(0);
    supply(&mut driver, &buffer(&[(StatTag::OomKills as u16, 3)]));
    let _ = ask(&mut driver);
    supply(&mut driver, &[]);
    let statistics = *driver.balloon().statistics().unwrap();
    assert!(
        StatTag::ALL
            .into_iter()
            .all(|tag| statistics.value(tag).is_none())
    );
}

#[test]
fn a_buffer_that_cannot_be_read_is_returned_and_the_next_one_serves() {
    let (mut driver, _) = balloon_driver(0);
    driver.offer(STATS, &[readable(PatchyMemory::END, 10)]);
    let _ = driver.kick(STATS);
    assert_eq!(driver.used(STATS).len(), 1);
    assert_eq!(driver.transport.guest_faults(), 1);
    supply(&mut driver, &buffer(&[(StatTag::FreeMemory as u16, 5)]));
    assert_eq!(driver.balloon().counters().statistics, 1);
}

#[test]
fn an_endless_buffer_costs_a_bounded_time() {
    let (mut driver, _) = balloon_driver(0);
    let all = u32::try_from(PatchyMemory::SIZE).unwrap();
    driver.offer(STATS, &[readable(PatchyMemory::BASE, all); 15]);
    driver.mem.forget_granted();
    let _ = driver.kick(STATS);
    assert_eq!(driver.balloon().counters().statistics, 1);
    assert!(!driver.mem.was_granted(&(MESSAGE..PatchyMemory::END)));
}

#[test]
fn statistics_end_with_the_driver_that_gave_them() {
    let (mut driver, _) = balloon_driver(0);
    supply(&mut driver, &buffer(&[(StatTag::FreeMemory as u16, 5)]));
    let features = driver.balloon().features() | virtio_wire::feature::VERSION_1;
    driver.initialise(features);
    assert_eq!(driver.balloon().statistics(), None);
    assert!(!ask(&mut driver).interrupt);
}

#[test]
fn a_driver_without_the_queue_is_not_asked() {
    let mut driver = Driver::new(Balloon::new(EVERYTHING, 0, TestBackend::default()));
    driver.initialise(virtio_wire::feature::VERSION_1);
    assert_eq!(driver.transport.request_statistics(), Effects::NONE);
}
