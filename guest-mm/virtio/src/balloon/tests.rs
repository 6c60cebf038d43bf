//! Claims about the balloon driver, against a device that the test controls.

use super::*;
use crate::queue::QueueFault;
use crate::relocate::Relocate;
use crate::testing::{FakeDevice, Task, TestMemory};
use virtio_wire::mmio::Register;
use virtio_wire::status;

const ALL: u64 = feature::MUST_TELL_HOST | feature::STATS_VQ;

type Device<'m> = FakeDevice<'m, TestMemory>;

fn device(memory: &TestMemory, features: u64) -> Device<'_> {
    let device = FakeDevice::new(memory, device_id::BALLOON, features);
    let config = Config {
        num_pages: 7,
        ..Config::default()
    };
    device.config.borrow_mut().extend(config.encode());
    device
}

macro_rules! set_up {
    ($device:ident, $driver:ident) => {
        let memory = TestMemory::new(32);
        let $device = device(&memory, ALL);
        let $driver = BalloonDriver::start(&$device, &$device.memory).unwrap();
    };
}

/// The bytes that the driver has sent on a queue, and the chain they came in.
fn take_bytes(device: &Device<'_>, queue: Queue) -> (u16, Vec<u8>) {
    let (head, buffers) = device.next_chain(queue as u16).expect("the device has a request");
    let [(at, len, false)] = buffers[..] else {
        panic!("the request is laid out as {buffers:?}");
    };
    let mut bytes = std::vec![0; usize::try_from(len).unwrap()];
    device.memory.read_bytes(at, &mut bytes);
    (head, bytes)
}

fn give_back(device: &Device<'_>, queue: Queue, head: u16) {
    device.use_chain(queue as u16, head.into(), 0);
}

#[test]
fn starting_takes_what_it_knows_and_sets_up_those_queues() {
    let memory = TestMemory::new(32);
    let device = device(
        &memory,
        u64::from(u32::MAX) & !(0x3f << 24) & !ALL | feature::STATS_VQ,
    );
    let driver = BalloonDriver::start(&device, &device.memory).unwrap();
    assert_eq!(device.accepted.get() & 0xffff_ffff, feature::STATS_VQ);
    assert!(driver.wants_statistics());
    assert_eq!(
        [0, 1, 2, 3, 4].map(|queue| device.queue_size(queue)),
        [1, 1, 1, 0, 0]
    );
    assert_eq!(driver.target(), Ok(7));
}

#[test]
fn pages_are_sent_by_number_and_the_future_ends_with_the_answer() {
    set_up!(device, driver);
    for (queue, pages) in [(Queue::Inflate, [3, 0x0102_0304]), (Queue::Deflate, [9, 8])] {
        let mut task = match queue {
            Queue::Inflate => Task::new(driver.inflate(&pages)),
            _ => Task::new(driver.deflate(&pages)),
        };
        assert_eq!(task.poll(), None);
        let (head, bytes) = take_bytes(&device, queue);
        assert_eq!(bytes, pages.map(u32::to_le_bytes).concat());
        assert_eq!(
            device.written(Register::QueueNotify).last(),
            Some(&(queue as u32))
        );
        assert_eq!(task.poll(), None, "the device has them still");
        give_back(&device, queue, head);
        driver.on_interrupt();
        assert_eq!(task.wakes(), 1);
        assert_eq!(task.poll(), Some(Ok(())));
    }
}

#[test]
fn a_second_request_waits_for_the_first() {
    set_up!(device, driver);
    let mut first = Task::new(driver.inflate(&[1]));
    let mut second = Task::new(driver.inflate(&[2]));
    assert_eq!((first.poll(), second.poll()), (None, None));
    let (head, _) = take_bytes(&device, Queue::Inflate);
    assert_eq!(device.next_chain(Queue::Inflate as u16), None);
    give_back(&device, Queue::Inflate, head);
    driver.on_interrupt();
    assert_eq!(first.poll(), Some(Ok(())));
    assert_eq!(second.poll(), None);
    assert_eq!(take_bytes(&device, Queue::Inflate).1, [2, 0, 0, 0]);
}

#[test]
fn statistics_stay_with_the_device_until_it_wants_the_next_ones() {
    set_up!(device, driver);
    let free = Stat {
        tag: StatTag::FreeMemory as u16,
        value: 0x1122,
    };
    let statistics = [free];
    let mut task = Task::new(driver.supply_statistics(&statistics));
    assert_eq!(task.poll(), None);
    let (head, bytes) = take_bytes(&device, Queue::Stats);
    assert_eq!(bytes, free.encode());
    assert_eq!(task.poll(), None);
    give_back(&device, Queue::Stats, head);
    driver.on_interrupt();
    assert_eq!(task.poll(), Some(Ok(())));
}

#[test]
fn a_new_target_wakes_who_waits_for_it() {
    set_up!(device, driver);
    assert_eq!(driver.target(), Ok(7));
    let mut task = Task::new(driver.config_changed());
    assert_eq!(task.poll(), None);
    device.config.borrow_mut()[0] = 9;
    device.config_interrupt();
    driver.on_interrupt();
    assert_eq!(task.poll(), Some(Ok(())));
    assert_eq!(driver.target(), Ok(9));
    driver.set_actual(0x0102);
    assert_eq!(device.config.borrow()[4..8], [2, 1, 0, 0]);
}

#[test]
fn a_device_that_breaks_the_rules_is_given_up_and_can_be_restarted() {
    set_up!(device, driver);
    let mut task = Task::new(driver.inflate(&[1]));
    assert_eq!(task.poll(), None);
    device.use_chain(0, 1, 0);
    driver.on_interrupt();
    let fault = DeviceFault::Queue(QueueFault::NotInFlight { id: 1 });
    assert_eq!(task.poll(), Some(Err(fault)));
    assert_eq!(Task::new(driver.deflate(&[1])).poll(), Some(Err(fault)));
    driver.restart().unwrap();
    assert_ne!(device.status.get() & status::DRIVER_OK, 0);
    let mut task = Task::new(driver.inflate(&[5]));
    assert_eq!(task.poll(), None);
    assert_eq!(take_bytes(&device, Queue::Inflate).1, [5, 0, 0, 0]);
}

#[test]
fn a_device_that_asks_for_a_reset_ends_all_waiting() {
    set_up!(device, driver);
    let mut pages = Task::new(driver.inflate(&[1]));
    assert_eq!(driver.target(), Ok(7));
    let mut news = Task::new(driver.config_changed());
    assert_eq!((pages.poll(), news.poll()), (None, None));
    device
        .status
        .set(device.status.get() | status::DEVICE_NEEDS_RESET);
    device.config_interrupt();
    driver.on_interrupt();
    assert_eq!(pages.poll(), Some(Err(DeviceFault::NeedsReset)));
    assert_eq!(news.poll(), Some(Err(DeviceFault::NeedsReset)));
}

#[test]
fn the_memory_moves_between_two_requests_and_the_host_is_told_of_all_pages_again() {
    set_up!(device, driver);
    let (places, pages) = (driver.shared_memory(), device.memory.nr_pages_in_use());
    assert_eq!((driver.target(), driver.has_been_forgotten()), (Ok(7), false));
    let mut first = Task::new(driver.inflate(&[1]));
    assert_eq!(first.poll(), None);
    let mut moved = Task::new(driver.relocate());
    let mut second = Task::new(driver.deflate(&[2]));
    assert_eq!((moved.poll(), second.poll()), (None, None));
    assert_eq!(
        device.next_chain(Queue::Deflate as u16),
        None,
        "nothing new is begun"
    );
    let (head, _) = take_bytes(&device, Queue::Inflate);
    give_back(&device, Queue::Inflate, head);
    driver.on_interrupt();
    let mut news = Task::new(driver.config_changed());
    assert_eq!(news.poll(), None);
    assert_eq!(moved.poll(), Some(Ok(())));
    assert_eq!(first.poll(), Some(Ok(())));
    assert!(news.wakes() > 0);
    assert_eq!(driver.target(), Ok(7));
    assert_eq!(
        news.poll(),
        Some(Ok(())),
        "whoever reads the target has not yet asked for this"
    );
    // What is given back panics when either side touches it.
    assert_eq!(device.memory.nr_pages_in_use(), pages);
    assert!(driver.shared_memory().iter().all(|place| !places.contains(place)));
    assert_eq!(
        [driver.has_been_forgotten(), driver.has_been_forgotten()],
        [true, false]
    );

    assert_eq!(second.poll(), None);
    let (head, bytes) = take_bytes(&device, Queue::Deflate);
    assert_eq!(bytes, [2, 0, 0, 0]);
    give_back(&device, Queue::Deflate, head);
    driver.on_interrupt();
    assert_eq!(second.poll(), Some(Ok(())));
    // After a restart nothing is in the balloon, and nothing forgotten.
    driver.restart().unwrap();
    assert!(!driver.has_been_forgotten());
}

#[test]
fn statistics_that_the_host_kept_are_asked_for_anew_when_the_memory_moves() {
    set_up!(device, driver);
    let statistics = [Stat { tag: 4, value: 5 }];
    let mut task = Task::new(driver.supply_statistics(&statistics));
    assert_eq!(task.poll(), None);
    let _ = take_bytes(&device, Queue::Stats);
    assert_eq!(Task::new(driver.relocate()).poll(), Some(Ok(())));
    assert_eq!((task.wakes(), task.poll()), (1, Some(Ok(()))));
    let mut task = Task::new(driver.supply_statistics(&statistics));
    assert_eq!(task.poll(), None);
    assert_eq!(take_bytes(&device, Queue::Stats).1, statistics[0].encode());
}

#[test]
fn without_other_memory_or_a_device_that_resets_the_balloon_keeps_what_it_has() {
    let memory = TestMemory::new(8);
    let device = device(&memory, ALL);
    let driver = BalloonDriver::start(&device, &device.memory).unwrap();
    let pages = device.memory.nr_pages_in_use();
    let moved = Task::new(driver.relocate()).poll().unwrap();
    assert!(matches!(moved, Err(StartError::Memory(_))), "{moved:?}");
    assert_eq!(device.memory.nr_pages_in_use(), pages);
    let mut task = Task::new(driver.inflate(&[5]));
    assert_eq!(task.poll(), None);
    let (head, bytes) = take_bytes(&device, Queue::Inflate);
    assert_eq!(bytes, [5, 0, 0, 0]);
    give_back(&device, Queue::Inflate, head);
    driver.on_interrupt();
    assert_eq!(task.poll(), Some(Ok(())));

    let memory = TestMemory::new(32);
    let stuck = self::device(&memory, ALL);
    let driver = BalloonDriver::start(&stuck, &stuck.memory).unwrap();
    stuck.reset_status.set(status::DRIVER);
    assert!(Task::new(driver.relocate()).poll().unwrap().is_err());
    assert_eq!(stuck.memory.nr_pages_in_use(), pages);
    assert!(!driver.has_been_forgotten());
    stuck.reset_status.set(0);
    driver.restart().unwrap();
    assert_eq!(Task::new(driver.inflate(&[5])).poll(), None);
    assert_eq!(take_bytes(&stuck, Queue::Inflate).1, [5, 0, 0, 0]);
}
