//! Claims about the console driver, against a device that the test controls.

use super::*;
use crate::queue::QueueFault;
use crate::relocate::Relocate;
use crate::testing::{Access, FakeDevice, Task, TestMemory};
use core::fmt::Write;
use std::vec;
use virtio_wire::console::Config;
use virtio_wire::mmio::Register;
use virtio_wire::ring;

type Device<'m> = FakeDevice<'m, TestMemory>;
type Driver<'d, 'm> = ConsoleDriver<&'d Device<'m>, &'m TestMemory>;

fn device(memory: &TestMemory) -> Device<'_> {
    let device = FakeDevice::new(
        memory,
        device_id::CONSOLE,
        feature::EMERG_WRITE | feature::MULTIPORT,
    );
    device.config.borrow_mut().extend(Config::default().encode());
    device
}

macro_rules! set_up {
    ($device:ident, $driver:ident) => {
        let memory = TestMemory::new(16);
        let $device = device(&memory);
        let $driver: Driver<'_, '_> = ConsoleDriver::start(&$device, &$device.memory).unwrap();
        $device.accesses();
    };
}

/// Puts `bytes` into the next receive buffer, as far as they fit; `None` if the driver offers none.
fn deliver(device: &Device<'_>, bytes: &[u8]) -> Option<usize> {
    let (head, buffers) = device.next_chain(QUEUE_RECEIVE)?;
    let [(at, len, true)] = buffers[..] else {
        panic!("a receive request is {buffers:?}");
    };
    let taken = bytes.len().min(len as usize);
    device.memory.write_bytes(at, &bytes[..taken]);
    device.use_chain(QUEUE_RECEIVE, u32::from(head), u32::try_from(taken).unwrap());
    Some(taken)
}

/// Takes the bytes of the next transmit request without returning it.
fn take(device: &Device<'_>) -> Option<(u16, Vec<u8>)> {
    let (head, buffers) = device.next_chain(QUEUE_TRANSMIT)?;
    let [(at, len, false)] = buffers[..] else {
        panic!("a transmit request is {buffers:?}");
    };
    let mut bytes = vec![0; len as usize];
    device.memory.read_bytes(at, &mut bytes);
    Some((head, bytes))
}

fn line(text: &[u8]) -> Option<Result<Result<Vec<u8>, LineTooLong>, DeviceFault>> {
    Some(Ok(Ok(text.to_vec())))
}

#[test]
fn only_what_a_single_port_needs_is_negotiated() {
    set_up!(device, _driver);
    assert_eq!(device.accepted.get() & 0xffff, feature::EMERG_WRITE);
    assert_eq!(
        (
            device.queue_size(QUEUE_RECEIVE),
            device.queue_size(QUEUE_TRANSMIT)
        ),
        (4, 4)
    );
}

#[test]
fn a_line_may_come_in_pieces_and_a_buffer_may_hold_several() {
    set_up!(device, driver);
    let mut reader = Task::new(driver.receive_line());
    assert_eq!(reader.poll(), None);
    deliver(&device, b"mem").unwrap();
    driver.on_interrupt();
    assert_eq!(reader.wakes(), 1);
    assert_eq!(reader.poll(), None);
    deliver(&device, b"info\nps\nblo").unwrap();
    deliver(&device, b"cks\n").unwrap();
    driver.on_interrupt();
    assert_eq!(reader.poll(), line(b"meminfo"));
    assert_eq!(Task::new(driver.receive_line()).poll(), line(b"ps"));
    assert_eq!(Task::new(driver.receive_line()).poll(), line(b"blocks"));
    assert_eq!(Task::new(driver.receive_line()).poll(), None);
}

#[test]
fn an_endless_line_is_reported_once_and_the_next_one_is_read() {
    set_up!(device, driver);
    let stream = [vec![b'x'; 3000], b"\nps\n".to_vec()].concat();
    let mut sent = 0;
    let mut reader = Task::new(driver.receive_line());
    let too_long = loop {
        sent += deliver(&device, &stream[sent..]).unwrap();
        driver.on_interrupt();
        if let Some(line) = reader.poll() {
            break line;
        }
    };
    assert_eq!(too_long, Ok(Err(LineTooLong)));
    assert_eq!(Task::new(driver.receive_line()).poll(), line(b"ps"));
}

#[test]
fn a_host_that_is_not_read_runs_out_of_buffers_and_gets_them_back_by_reading() {
    set_up!(device, driver);
    for number in 0..4u8 {
        assert_eq!(deliver(&device, &[b'0' + number, b'\n']), Some(2));
        driver.on_interrupt();
    }
    assert_eq!(deliver(&device, b"5\n"), None);
    assert_eq!(Task::new(driver.receive_line()).poll(), line(b"0"));
    device.accesses();
    assert_eq!(Task::new(driver.receive_line()).poll(), line(b"1"));
    // The first buffer was found to be read to its end only now.
    assert_eq!(
        device.accesses(),
        [Access::Write(Register::QueueNotify, u32::from(QUEUE_RECEIVE))]
    );
    assert_eq!(deliver(&device, b"5\n"), Some(2));
}

#[test]
fn empty_buffers_from_the_device_neither_end_a_line_nor_keep_the_reader_busy() {
    set_up!(device, driver);
    let mut reader = Task::new(driver.receive_line());
    for _ in 0..20 {
        while deliver(&device, b"").is_some() {}
        driver.on_interrupt();
        assert_eq!(reader.poll(), None);
    }
    deliver(&device, b"ps\n").unwrap();
    driver.on_interrupt();
    assert_eq!(reader.poll(), line(b"ps"));
}

#[test]
fn a_short_text_costs_one_notification_and_no_interrupt() {
    set_up!(device, driver);
    assert_eq!(device.avail_flags(QUEUE_TRANSMIT), ring::AVAIL_F_NO_INTERRUPT);
    assert_eq!(Task::new(driver.transmit(b"ok 0\n")).poll(), Some(Ok(())));
    assert_eq!(
        device.accesses(),
        [Access::Write(Register::QueueNotify, u32::from(QUEUE_TRANSMIT))]
    );
    assert_eq!(take(&device).unwrap().1, b"ok 0\n");
    assert_eq!(Task::new(driver.transmit(b"")).poll(), Some(Ok(())));
    assert_eq!(device.accesses(), []);
}

#[test]
fn a_text_longer_than_all_buffers_arrives_whole_and_in_order() {
    set_up!(device, driver);
    let text: Vec<u8> = (0..50_000u32).map(|at| (at % 251) as u8).collect();
    let mut writer = Task::new(driver.transmit(&text));
    assert_eq!(writer.poll(), None);
    let mut arrived = Vec::new();
    let mut notifications = device.written(Register::QueueNotify).len();
    while arrived.len() < text.len() {
        assert_eq!(
            device.avail_flags(QUEUE_TRANSMIT) & ring::AVAIL_F_NO_INTERRUPT,
            0,
            "the writer waits"
        );
        device.accesses();
        while let Some((head, bytes)) = take(&device) {
            arrived.extend(bytes);
            device.use_chain(QUEUE_TRANSMIT, u32::from(head), 0);
        }
        driver.on_interrupt();
        assert_eq!(writer.wakes(), 1);
        let done = writer.poll();
        notifications += device.written(Register::QueueNotify).len();
        assert_eq!(done.is_some(), arrived.len() + 4 * 4096 >= text.len());
        if done.is_some() {
            while let Some((_, bytes)) = take(&device) {
                arrived.extend(bytes);
            }
        }
    }
    assert_eq!(arrived, text);
    assert_eq!(
        notifications,
        50_000usize.div_ceil(4 * 4096),
        "all four buffers with one notification"
    );
}

#[test]
fn buffers_that_came_back_without_an_interrupt_are_found_by_the_next_writer() {
    set_up!(device, driver);
    for number in 0..100u32 {
        assert_eq!(
            Task::new(driver.transmit(b"x")).poll(),
            Some(Ok(())),
            "text {number}"
        );
        let (head, _) = take(&device).unwrap();
        device.use_chain(QUEUE_TRANSMIT, u32::from(head), 0);
    }
    assert_eq!(device.avail_flags(QUEUE_TRANSMIT), ring::AVAIL_F_NO_INTERRUPT);
}

/// Lets `misbehave` loose on a reader and a writer who wait, and expects both to learn of `fault`.
fn breaks_down(fault: DeviceFault, misbehave: impl FnOnce(&Device<'_>)) {
    set_up!(device, driver);
    let text = vec![b'x'; 5 * 4096];
    let mut reader = Task::new(driver.receive_line());
    let mut writer = Task::new(driver.transmit(&text));
    assert_eq!((reader.poll(), writer.poll()), (None, None));
    misbehave(&device);
    driver.on_interrupt();
    assert!(reader.wakes() >= 1 && writer.wakes() >= 1);
    assert_eq!(
        (reader.poll(), writer.poll()),
        (Some(Err(fault)), Some(Err(fault)))
    );

    driver.restart().unwrap();
    let mut reader = Task::new(driver.receive_line());
    assert_eq!(reader.poll(), None);
    while deliver(&device, b"p").is_some() {}
    driver.on_interrupt();
    assert_eq!(reader.poll(), None);
    deliver(&device, b"s\n").unwrap();
    driver.on_interrupt();
    // All four receive buffers are in use again, and all four transmit buffers.
    assert_eq!(reader.poll(), line(b"pppps"));
    assert_eq!(Task::new(driver.transmit(&text[..4 * 4096])).poll(), Some(Ok(())));
}

#[test]
fn a_device_that_breaks_the_protocol_is_not_used_until_it_is_restarted() {
    breaks_down(
        DeviceFault::Queue(QueueFault::TooLong {
            written: 1025,
            writable: 1024,
        }),
        |device| {
            let (head, _) = device.next_chain(QUEUE_RECEIVE).unwrap();
            device.use_chain(QUEUE_RECEIVE, u32::from(head), 1025);
        },
    );
    breaks_down(
        DeviceFault::Queue(QueueFault::TooLong {
            written: 1,
            writable: 0,
        }),
        |device| {
            let (head, _) = take(device).unwrap();
            device.use_chain(QUEUE_TRANSMIT, u32::from(head), 1);
        },
    );
    breaks_down(
        DeviceFault::Queue(QueueFault::IndexJump {
            from: 0,
            to: 5,
            in_flight: 4,
        }),
        |device| {
            device.use_chain(QUEUE_RECEIVE, 0, 0);
            device.set_used_index(QUEUE_RECEIVE, 5);
        },
    );
    breaks_down(DeviceFault::NeedsReset, |device| {
        device
            .status
            .set(device.status.get() | virtio_wire::status::DEVICE_NEEDS_RESET);
        device.config_interrupt();
    });
}

/// Returns all that was sent, and how much that was.
fn take_all(device: &Device<'_>) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some((head, bytes)) = take(device) {
        all.extend(bytes);
        device.use_chain(QUEUE_TRANSMIT, u32::from(head), 0);
    }
    all
}

#[test]
fn the_memory_moves_between_two_bytes_of_a_text_once_the_device_has_what_was_sent() {
    let memory = TestMemory::new(64);
    let device = device(&memory);
    let driver: Driver<'_, '_> = ConsoleDriver::start(&device, &device.memory).unwrap();
    let (places, pages) = (driver.shared_memory(), device.memory.nr_pages_in_use());
    let text: Vec<u8> = (0..50_000u32).map(|at| (at % 251) as u8).collect();
    let mut writer = Task::new(driver.transmit(&text));
    assert_eq!(writer.poll(), None);
    let mut moved = Task::new(driver.relocate());
    assert_eq!(moved.poll(), None, "the device has four buffers");
    let mut arrived = Vec::new();
    while device.memory.nr_pages_in_use() == pages && moved.poll().is_none() {
        let (head, bytes) = take(&device).expect("the last of what was sent has come back");
        arrived.extend(bytes);
        device.use_chain(QUEUE_TRANSMIT, u32::from(head), 0);
        driver.on_interrupt();
        assert_eq!(moved.wakes(), 1);
        // Nothing is added to it.
        assert_eq!(writer.poll(), None);
    }
    assert_eq!(arrived.len(), 4 * 4096);
    // What is given back panics when either side touches it.
    assert_eq!(device.memory.nr_pages_in_use(), pages);
    let now = driver.shared_memory();
    assert!(now.iter().all(|place| !places.contains(place)));
    assert!(writer.wakes() > 0);
    while writer.poll().is_none() {
        arrived.extend(take_all(&device));
        driver.on_interrupt();
    }
    arrived.extend(take_all(&device));
    assert!(arrived == text, "{} bytes arrived", arrived.len());
}

#[test]
fn lines_that_came_in_whole_or_in_part_before_the_memory_moves_are_read_after() {
    let memory = TestMemory::new(64);
    let device = device(&memory);
    let driver: Driver<'_, '_> = ConsoleDriver::start(&device, &device.memory).unwrap();
    let mut reader = Task::new(driver.receive_line());
    deliver(&device, b"he").unwrap();
    driver.on_interrupt();
    assert_eq!(reader.poll(), None);
    deliver(&device, b"lp\nps\nmem").unwrap();
    driver.on_interrupt();
    // This one the device has used, but the driver has not heard of it.
    deliver(&device, b"info\nblo").unwrap();
    assert_eq!(Task::new(driver.relocate()).poll(), Some(Ok(())));
    assert!(reader.wakes() > 0);
    assert_eq!(reader.poll(), line(b"help"));
    assert_eq!(Task::new(driver.receive_line()).poll(), line(b"ps"));
    assert_eq!(Task::new(driver.receive_line()).poll(), line(b"meminfo"));
    let mut reader = Task::new(driver.receive_line());
    assert_eq!(reader.poll(), None);
    // All four buffers are the device's again.
    for piece in [b"c".as_slice(), b"k", b"s", b"\n"] {
        deliver(&device, piece).unwrap();
    }
    driver.on_interrupt();
    assert_eq!(reader.poll(), line(b"blocks"));
}

#[test]
fn a_move_that_cannot_be_made_or_is_given_up_leaves_the_console_as_it_was() {
    let memory = TestMemory::new(12);
    let device = device(&memory);
    let driver: Driver<'_, '_> = ConsoleDriver::start(&device, &device.memory).unwrap();
    let (places, pages) = (driver.shared_memory(), device.memory.nr_pages_in_use());
    assert_eq!(Task::new(driver.transmit(b"one")).poll(), Some(Ok(())));
    let mut given_up = Task::new(driver.relocate());
    assert_eq!(given_up.poll(), None);
    let mut writer = Task::new(driver.transmit(b"two"));
    assert_eq!(writer.poll(), None);
    drop(given_up);
    assert_eq!((writer.wakes(), writer.poll()), (1, Some(Ok(()))));
    assert_eq!(take_all(&device), b"onetwo");
    // There are six more pages, and eight are wanted.
    assert!(matches!(
        Task::new(driver.relocate()).poll(),
        Some(Err(StartError::Memory(_)))
    ));
    assert_eq!(device.memory.nr_pages_in_use(), pages);
    assert_eq!(driver.shared_memory(), places);
    assert_eq!(Task::new(driver.transmit(b"three")).poll(), Some(Ok(())));
    assert_eq!(take_all(&device), b"three");

    let memory = TestMemory::new(64);
    let device = self::device(&memory);
    let driver: Driver<'_, '_> = ConsoleDriver::start(&device, &device.memory).unwrap();
    device.reset_status.set(virtio_wire::status::DRIVER);
    let mut reader = Task::new(driver.receive_line());
    assert_eq!(reader.poll(), None);
    assert!(Task::new(driver.relocate()).poll().unwrap().is_err());
    assert_eq!(device.memory.nr_pages_in_use(), pages);
    assert_eq!(reader.poll(), Some(Err(DeviceFault::NeedsReset)));
    let broken = Some(Err(StartError::Broken(DeviceFault::NeedsReset)));
    assert_eq!(Task::new(driver.relocate()).poll(), broken);
    device.reset_status.set(0);
    driver.restart().unwrap();
    assert_eq!(Task::new(driver.transmit(b"four")).poll(), Some(Ok(())));
    assert_eq!(take_all(&device), b"four");
}

#[test]
fn the_emergency_console_needs_nothing_and_disturbs_nobody() {
    let memory = TestMemory::new(0);
    let device = device(&memory);
    let mut emergency = EmergencyConsole::probe(&device).unwrap();
    assert_eq!((device.status.get(), device.accepted.get()), (0, 0));
    device.accesses();
    write!(emergency, "no").unwrap();
    assert_eq!(device.accesses(), [Access::Config; 2]);
    assert_eq!(device.config.borrow()[8..12], [b'o', 0, 0, 0]);
}

#[test]
fn a_console_without_an_emergency_register_is_refused() {
    let memory = TestMemory::new(0);
    let device = FakeDevice::new(&memory, device_id::CONSOLE, feature::MULTIPORT);
    let missing = crate::transport::TransportError::FeaturesMissing {
        missing: feature::EMERG_WRITE,
    };
    assert_eq!(EmergencyConsole::probe(&device).unwrap_err(), missing);
}
