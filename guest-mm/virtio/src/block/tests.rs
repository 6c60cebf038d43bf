//! Claims about the disk driver, against a device that the test controls.

use super::*;
use crate::dma::{DmaArea, Gpa};
use crate::queue::QueueFault;
use crate::testing::{FakeDevice, Task, TestMemory};
use virtio_wire::block::Config;
use virtio_wire::mmio::Register;
use virtio_wire::status;

type Device<'m> = FakeDevice<'m, TestMemory>;
type Driver<'d, 'm> = BlockDriver<&'d Device<'m>, &'m TestMemory, u32>;

const ALL: u64 = feature::SEG_MAX | feature::SIZE_MAX | feature::FLUSH;

fn device(memory: &TestMemory, features: u64) -> Device<'_> {
    let device = FakeDevice::new(memory, device_id::BLOCK, features);
    let config = Config {
        capacity: 100,
        seg_max: 3,
        size_max: 8192,
        ..Config::default()
    };
    device.config.borrow_mut().extend(config.encode());
    device
}

macro_rules! set_up {
    ($device:ident, $driver:ident, $data:ident, $features:expr) => {
        let memory = TestMemory::new(32);
        let $device = device(&memory, $features);
        let $driver: Driver<'_, '_> = BlockDriver::start(&$device, &$device.memory).unwrap();
        let area = DmaArea::allocate(&memory, 4 * 4096).unwrap();
        let $data = |page: usize, len: u32| Segment {
            start: area.at(page * 4096, 4096),
            len,
        };
    };
}

/// Answers the next request of the driver; returns what it was: header, and pieces of data.
fn answer(device: &Device<'_>, status: u8, written: Option<u32>) -> (Vec<u8>, Vec<(Gpa, u32, bool)>) {
    let (head, mut buffers) = device.next_chain(0).expect("the device has a request");
    let (at, len, false) = buffers.remove(0) else {
        panic!("the header is the device's to write");
    };
    let mut header = std::vec![0; usize::try_from(len).unwrap()];
    device.memory.read_bytes(at, &mut header);
    let (status_at, 1, true) = buffers.pop().unwrap() else {
        panic!("no status byte at the end");
    };
    device.memory.write_bytes(status_at, &[status]);
    let writable = buffers.iter().filter(|buffer| buffer.2).map(|buffer| buffer.1);
    let all = writable.sum::<u32>() + 1;
    device.use_chain(0, head.into(), written.unwrap_or(all));
    (header, buffers)
}

#[test]
fn starting_takes_what_the_device_says_it_is() {
    set_up!(
        device,
        driver,
        _data,
        ALL | feature::RO | u64::from(u32::MAX) << 32
    );
    assert_eq!(
        device.accepted.get(),
        ALL | feature::RO | virtio_wire::feature::VERSION_1
    );
    let info = DiskInfo {
        capacity_sectors: 100,
        access: Access::ReadOnly,
        cache: Cache::Writeback,
        max_segments: 3,
        max_segment_len: 8192,
    };
    assert_eq!(driver.info(), info);
    let memory = TestMemory::new(32);
    let plain = device_without(&memory);
    let driver: Driver<'_, '_> = BlockDriver::start(&plain, &plain.memory).unwrap();
    let info = driver.info();
    assert_eq!(
        (info.cache, info.access),
        (Cache::Writethrough, Access::ReadWrite)
    );
    assert_eq!((info.max_segments, info.max_segment_len), (254, u32::MAX));
}

fn device_without(memory: &TestMemory) -> Device<'_> {
    device(memory, 0)
}

#[test]
fn a_request_is_a_header_its_data_and_a_status() {
    set_up!(device, driver, data, ALL);
    let pieces = [data(0, 512), data(1, 4096)];
    let reads = pieces.map(|piece| (piece.start, piece.len, true));
    let writes = pieces.map(|piece| (piece.start, piece.len, false));
    for (operation, number, sector, pieces, wire) in [
        (Operation::Read, 0, 0x0102, &pieces[..], &reads[..]),
        (Operation::Write, 1, 7, &pieces[..], &writes[..]),
        (Operation::Flush, 4, 0, &[], &[]),
    ] {
        let sector = sector % 91;
        driver.submit(operation, sector, pieces, 5).unwrap();
        assert_eq!(device.next_chain(0), None, "not before it is committed");
        driver.commit();
        assert_eq!(device.written(Register::QueueNotify).last(), Some(&0));
        let (header, buffers) = answer(&device, 0, None);
        let expected = [
            [number, 0, 0, 0],
            [0; 4],
            [u8::try_from(sector).unwrap(), 0, 0, 0],
            [0; 4],
        ];
        assert_eq!((header, &buffers[..]), (expected.concat(), wire));
        assert_eq!(driver.completed(), Some((5, Ok(()))));
    }
    let counters = driver.counters();
    assert_eq!(
        (counters.read_bytes, counters.written_bytes, counters.flushes),
        (4608, 4608, 1)
    );
}

#[test]
fn what_cannot_be_asked_comes_back_with_its_token_and_reaches_no_device() {
    set_up!(device, driver, data, ALL | feature::RO);
    let one = [data(0, 512)];
    for (operation, sector, pieces, reason) in [
        (Operation::Read, 100, &one[..], Reason::OutOfRange),
        (Operation::Read, u64::MAX, &one, Reason::OutOfRange),
        (Operation::Read, 0, &[], Reason::OutOfRange),
        (Operation::Read, 0, &[data(0, 100)], Reason::OutOfRange),
        (
            Operation::Read,
            0,
            &[data(0, 0), data(1, 512)],
            Reason::OutOfRange,
        ),
        (Operation::Flush, 0, &one, Reason::OutOfRange),
        (Operation::Read, 0, &[one[0]; 4], Reason::TooLarge),
        (Operation::Read, 0, &[data(0, 8192 + 512)], Reason::TooLarge),
        (Operation::Write, 0, &one, Reason::ReadOnly),
    ] {
        let refused = driver.submit(operation, sector, pieces, 9).unwrap_err();
        assert_eq!(refused, Refused { reason, token: 9 });
    }
    driver.commit();
    assert_eq!(device.next_chain(0), None);
}

#[test]
fn requests_come_back_in_the_devices_order_and_there_is_room_for_as_many_again() {
    set_up!(device, driver, data, ALL);
    for round in 0..3 {
        let mut taken = 0;
        let full = loop {
            match driver.submit(Operation::Write, 0, &[data(0, 512)], taken) {
                Ok(()) => taken += 1,
                Err(refused) => break refused,
            }
        };
        assert_eq!((full.reason, full.token), (Reason::Full, taken));
        assert_eq!(taken, u32::from(MAX_IN_FLIGHT), "round {round}");
        driver.commit();
        assert_eq!(driver.completed(), None);
        (0..taken).for_each(|_| drop(answer(&device, 0, None)));
        driver.on_interrupt();
        let back: Vec<u32> = core::iter::from_fn(|| driver.completed())
            .map(|done| done.0)
            .collect();
        assert_eq!(back, Vec::from_iter(0..taken));
    }
    assert_eq!(driver.counters().writes, 3 * u64::from(MAX_IN_FLIGHT));
}

#[test]
fn answers_are_believed_as_far_as_they_go() {
    set_up!(device, driver, data, ALL);
    for (status, written, result) in [
        (0, None, Ok(())),
        (1, None, Err(BlockError::Failed)),
        (1, Some(1), Err(BlockError::Failed)),
        (2, None, Err(BlockError::Unsupported)),
        (3, None, Err(BlockError::UnknownStatus { status: 3 })),
        (255, Some(0), Err(BlockError::UnknownStatus { status: 255 })),
        (0, Some(512), Err(BlockError::Short { written: 512 })),
    ] {
        driver.submit(Operation::Read, 0, &[data(0, 512)], 1).unwrap();
        driver.commit();
        answer(&device, status, written);
        assert_eq!(driver.completed(), Some((1, result)));
    }
    assert_eq!((driver.counters().reads, driver.counters().errors), (1, 6));
}

#[test]
fn a_task_that_waits_is_woken_by_the_answer_and_by_a_breakdown() {
    set_up!(device, driver, data, ALL);
    driver.submit(Operation::Read, 0, &[data(0, 512)], 3).unwrap();
    driver.commit();
    let mut next = Task::new(driver.next());
    let mut breakdown = Task::new(driver.broken_down());
    assert_eq!((next.poll(), breakdown.poll()), (None, None));
    answer(&device, 0, None);
    driver.on_interrupt();
    assert_eq!(next.wakes(), 1);
    assert_eq!((next.poll(), breakdown.poll()), (Some((3, Ok(()))), None));
    device
        .status
        .set(device.status.get() | status::DEVICE_NEEDS_RESET);
    device.config_interrupt();
    driver.on_interrupt();
    assert_eq!(breakdown.poll(), Some(DeviceFault::NeedsReset));
}

#[test]
fn what_a_broken_device_has_comes_back_only_when_it_was_reset() {
    set_up!(device, driver, data, ALL);
    for token in 0..3 {
        driver
            .submit(Operation::Write, 0, &[data(0, 512)], token)
            .unwrap();
    }
    driver.commit();
    device.use_chain(0, 77, 1);
    driver.on_interrupt();
    let fault = DeviceFault::Queue(QueueFault::NotInFlight { id: 77 });
    assert_eq!((driver.fault(), driver.completed()), (Some(fault), None));
    let refused = driver.submit(Operation::Flush, 0, &[], 8).unwrap_err();
    assert_eq!(refused.reason, Reason::Broken(fault));
    driver.restart().unwrap();
    let mut lost: Vec<u32> = Vec::new();
    while let Some((token, result)) = driver.completed() {
        assert_eq!(result, Err(BlockError::Lost));
        lost.push(token);
    }
    lost.sort_unstable();
    assert_eq!((lost, driver.fault()), (std::vec![0, 1, 2], None));
    driver.submit(Operation::Flush, 0, &[], 4).unwrap();
    driver.commit();
    answer(&device, 0, None);
    assert_eq!(driver.completed(), Some((4, Ok(()))));
}

#[test]
fn the_drivers_memory_moves_and_the_device_reaches_the_old_one_no_more() {
    set_up!(device, driver, data, ALL);
    let shared = device.memory.nr_pages_in_use();
    for round in 0..3 {
        driver
            .submit(Operation::Write, 5, &[data(0, 512)], round)
            .unwrap();
        driver.commit();
        answer(&device, 0, None);
        assert_eq!(driver.completed(), Some((round, Ok(()))));
        // What is given back panics when either side touches it.
        driver.relocate().unwrap();
        assert_eq!((driver.in_flight(), driver.fault()), (0, None));
        assert_eq!(device.memory.nr_pages_in_use(), shared);
    }
    // As many requests as ever, and what is under way is not forgotten without a word.
    for token in 0..u32::from(MAX_IN_FLIGHT) {
        driver.submit(Operation::Read, 0, &[data(0, 512)], token).unwrap();
    }
    driver.commit();
    answer(&device, 0, None);
    driver.relocate().unwrap();
    let mut back: Vec<_> = core::iter::from_fn(|| driver.completed()).collect();
    back.sort_unstable_by_key(|done| done.0);
    let lost = (0..u32::from(MAX_IN_FLIGHT)).map(|token| (token, Err(BlockError::Lost)));
    assert_eq!(back, Vec::from_iter(lost));
    driver.submit(Operation::Flush, 0, &[], 4).unwrap();
    driver.commit();
    answer(&device, 0, None);
    assert_eq!(driver.completed(), Some((4, Ok(()))));
}

#[test]
fn without_other_memory_or_a_device_that_resets_the_driver_keeps_what_it_has() {
    let memory = TestMemory::new(8);
    let device = device(&memory, ALL);
    let driver: Driver<'_, '_> = BlockDriver::start(&device, &device.memory).unwrap();
    let mut moves = 0;
    while driver.relocate().is_ok() {
        moves += 1;
        assert!(
            moves < 8,
            "memory that is given back is not handed out again here"
        );
    }
    let shared = device.memory.nr_pages_in_use();
    assert_eq!(driver.fault(), None, "the device was left alone");
    let flush = |token| {
        driver.submit(Operation::Flush, 0, &[], token).unwrap();
        driver.commit();
        answer(&device, 0, None);
        assert_eq!(driver.completed(), Some((token, Ok(()))));
    };
    flush(1);
    let memory = TestMemory::new(32);
    let stuck = self::device(&memory, ALL);
    let driver: Driver<'_, '_> = BlockDriver::start(&stuck, &stuck.memory).unwrap();
    let before = stuck.memory.nr_pages_in_use();
    stuck.reset_status.set(status::DRIVER);
    assert!(driver.relocate().is_err() && driver.fault().is_some());
    assert_eq!(
        stuck.memory.nr_pages_in_use(),
        before,
        "the new memory, which it does not know"
    );
    stuck.reset_status.set(0);
    driver.restart().unwrap();
    assert_eq!(driver.fault(), None);
    assert!(shared <= before);
}

#[test]
fn a_disk_without_a_cache_has_nothing_to_flush() {
    set_up!(device, driver, _data, 0);
    let mut next = Task::new(driver.next());
    assert_eq!(next.poll(), None);
    driver.submit(Operation::Flush, 0, &[], 2).unwrap();
    driver.commit();
    assert_eq!((next.poll(), device.next_chain(0)), (Some((2, Ok(()))), None));
}
