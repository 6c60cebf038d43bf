//! Claims about the memory that the driver shares with the device, on its way elsewhere.

use super::*;
use crate::relocate::Relocate;

fn plug_of(block: u64) -> Request {
    Request::Plug(BlockRange {
        addr: ADDR + block * BLOCK,
        nb_blocks: 1,
    })
}

#[test]
fn the_memory_moves_between_two_requests_and_nobody_is_the_wiser() {
    let memory = TestMemory::new(32);
    let device = super::device(&memory);
    let driver = started(&device);
    driver.config().unwrap();
    let (places, pages) = (driver.shared_memory(), device.memory.nr_pages_in_use());
    let mut news = Task::new(driver.config_changed());
    let mut first = Task::new(driver.plug(run(0, 1)));
    let mut second = Task::new(driver.plug(run(1, 1)));
    let mut moved = Task::new(driver.relocate());
    assert_eq!((news.poll(), first.poll(), second.poll()), (None, None, None));
    assert_eq!(moved.poll(), None, "the device has a request");
    assert_eq!(answer(&device, &response(ResponseType::Ack)), plug_of(0));
    driver.on_interrupt();
    assert_eq!((moved.wakes(), first.wakes()), (1, 1));
    // Others come first, and find that they are to wait. The answer stays until it is fetched.
    assert_eq!((second.poll(), moved.poll()), (None, Some(Ok(()))));
    assert_eq!(first.poll(), Some(Ok(())));
    // What is given back panics when either side touches it.
    assert_eq!(device.memory.nr_pages_in_use(), pages);
    assert!(driver.shared_memory().iter().all(|place| !places.contains(place)));
    assert_eq!(
        (second.poll(), answer(&device, &response(ResponseType::Ack))),
        (None, plug_of(1))
    );
    driver.on_interrupt();
    assert_eq!(second.poll(), Some(Ok(())));
    assert_eq!(news.poll(), None, "the host wants what it wanted");
}

#[test]
fn what_the_host_came_to_want_while_the_memory_moved_is_news() {
    let memory = TestMemory::new(32);
    let device = super::device(&memory);
    let driver = started(&device);
    driver.config().unwrap();
    let mut news = Task::new(driver.config_changed());
    assert_eq!(news.poll(), None);
    let plugged = Config {
        plugged_size: 3 * BLOCK,
        ..CONFIG
    };
    device.config.replace(plugged.encode().to_vec());
    assert_eq!(Task::new(driver.relocate()).poll(), Some(Ok(())));
    assert_eq!(news.poll(), None, "that is the driver's own doing");
    let lowered = Config {
        requested_size: 0,
        ..CONFIG
    };
    device.config.replace(lowered.encode().to_vec());
    assert_eq!(Task::new(driver.relocate()).poll(), Some(Ok(())));
    assert!(news.wakes() > 0);
    assert_eq!(news.poll(), Some(Ok(())));
}

#[test]
fn a_request_whose_task_is_gone_is_awaited_and_a_move_that_is_given_up_holds_nobody_up() {
    let memory = TestMemory::new(32);
    let device = super::device(&memory);
    let driver = started(&device);
    let mut gone = Task::new(driver.plug(run(0, 1)));
    assert_eq!(gone.poll(), None);
    drop(gone);
    let mut given_up = Task::new(driver.relocate());
    let mut moved = Task::new(driver.relocate());
    let mut next = Task::new(driver.plug(run(1, 1)));
    assert_eq!((given_up.poll(), moved.poll(), next.poll()), (None, None, None));
    answer(&device, &response(ResponseType::Ack));
    driver.on_interrupt();
    assert_eq!(next.poll(), None, "nothing new is begun");
    assert_eq!(moved.poll(), Some(Ok(())));
    drop(given_up);
    assert!(next.wakes() > 0);
    assert_eq!(next.poll(), None);
    assert_eq!(answer(&device, &response(ResponseType::Ack)), plug_of(1));
}

#[test]
fn without_other_memory_or_a_device_that_resets_the_driver_keeps_what_it_has() {
    let memory = TestMemory::new(3);
    let device = super::device(&memory);
    let driver = started(&device);
    let pages = device.memory.nr_pages_in_use();
    let moved = Task::new(driver.relocate()).poll().unwrap();
    assert!(matches!(moved, Err(StartError::Memory(_))), "{moved:?}");
    assert_eq!(device.memory.nr_pages_in_use(), pages);
    let mut task = Task::new(driver.plug(run(0, 1)));
    assert_eq!(task.poll(), None);
    assert_eq!(answer(&device, &response(ResponseType::Ack)), plug_of(0));

    let memory = TestMemory::new(8);
    let stuck = super::device(&memory);
    let driver = started(&stuck);
    stuck.reset_status.set(status::DRIVER);
    assert!(Task::new(driver.relocate()).poll().unwrap().is_err());
    assert_eq!(stuck.memory.nr_pages_in_use(), pages);
    let refused = Err(RequestError::Device(DeviceFault::NeedsReset));
    assert_eq!(Task::new(driver.unplug_all()).poll(), Some(refused));
    stuck.reset_status.set(0);
    driver.restart().unwrap();
    assert_eq!(Task::new(driver.unplug_all()).poll(), None);
}
