//! Claims about the virtio-mem driver, against a device that the test controls.

mod moves;

use super::*;
use crate::queue::QueueFault;
use crate::testing::{Access, FakeDevice, Task, TestMemory};
use core::num::NonZeroU16;
use virtio_wire::mem::{BlockRange, Response, UnknownResponse};
use virtio_wire::mmio::Register;
use virtio_wire::status;

const BLOCK: u64 = 2 << 20;
const ADDR: u64 = 4 << 30;

const CONFIG: Config = Config {
    block_size: BLOCK,
    node_id: 3,
    addr: ADDR,
    region_size: 64 * BLOCK,
    usable_region_size: 32 * BLOCK,
    plugged_size: 2 * BLOCK,
    requested_size: 8 * BLOCK,
};

type Device<'m> = FakeDevice<'m, TestMemory>;
type Driver<'d, 'm> = MemDriver<&'d Device<'m>, &'m TestMemory>;

fn device(memory: &TestMemory) -> Device<'_> {
    let device = FakeDevice::new(memory, device_id::MEM, feature::UNPLUGGED_INACCESSIBLE);
    device.config.borrow_mut().extend(CONFIG.encode());
    device
}

fn started<'d, 'm>(device: &'d Device<'m>) -> Driver<'d, 'm> {
    let driver = MemDriver::start(device, &device.memory).unwrap();
    device.accesses();
    driver
}

fn run(first: u32, count: u16) -> BlockRun {
    BlockRun::new(BlockIndex::new(first), NonZeroU16::new(count).unwrap()).unwrap()
}

/// Takes the request that the device has been given.
fn take_request(device: &Device<'_>) -> (u16, Request, crate::dma::Gpa) {
    let (head, buffers) = device
        .next_chain(QUEUE_REQUEST)
        .expect("the device has a request");
    let [(request_at, 24, false), (response_at, 10, true)] = buffers[..] else {
        panic!("the request is laid out as {buffers:?}");
    };
    let mut bytes = [0; Request::SIZE];
    device.memory.read_bytes(request_at, &mut bytes);
    (head, Request::decode(&bytes).unwrap(), response_at)
}

/// Lets the device answer the request it has; returns the request.
fn answer(device: &Device<'_>, response: &[u8]) -> Request {
    let (head, request, response_at) = take_request(device);
    device.memory.write_bytes(response_at, response);
    device.use_chain(
        QUEUE_REQUEST,
        u32::from(head),
        u32::try_from(response.len()).unwrap(),
    );
    request
}

fn response(response_type: ResponseType) -> [u8; Response::SIZE] {
    Response::new(response_type).encode()
}

macro_rules! set_up {
    ($device:ident, $driver:ident) => {
        let memory = TestMemory::new(8);
        let $device = device(&memory);
        let $driver = started(&$device);
    };
}

#[test]
fn starting_accepts_unplugged_inaccessible_and_reads_the_region() {
    let memory = TestMemory::new(8);
    let device = device(&memory);
    device
        .offered
        .set(device.offered.get() | feature::PERSISTENT_SUSPEND);
    device.insists_on.set(feature::UNPLUGGED_INACCESSIBLE);
    let driver = MemDriver::start(&device, &device.memory).unwrap();
    assert_eq!(device.accepted.get() & 0xffff, feature::UNPLUGGED_INACCESSIBLE);
    assert_eq!(
        device.status.get() & (status::DRIVER_OK | status::FAILED),
        status::DRIVER_OK
    );
    let region = driver.region();
    assert_eq!(
        (region.addr().raw(), region.block_size(), region.nr_blocks()),
        (ADDR, BLOCK, 64)
    );
    assert_eq!(
        region.node_id(),
        None,
        "the feature that makes it valid is not offered"
    );
    assert_eq!(driver.config(), Ok(Config { node_id: 0, ..CONFIG }));
}

#[test]
fn a_proximity_domain_is_believed_when_it_was_negotiated() {
    let memory = TestMemory::new(8);
    let device = device(&memory);
    device.offered.set(device.offered.get() | feature::ACPI_PXM);
    assert_eq!(started(&device).region().node_id(), Some(3));
}

#[test]
fn a_device_that_cannot_be_worked_with_is_failed() {
    let memory = TestMemory::new(8);
    let device = device(&memory);
    device.queue_size_max.set(1);
    let too_small = TransportError::QueueTooSmall { index: 0, largest: 1 };
    assert_eq!(
        MemDriver::start(&device, &device.memory).unwrap_err(),
        StartError::Transport(too_small)
    );
    assert_ne!(device.status.get() & status::FAILED, 0);

    device.queue_size_max.set(64);
    device.config.borrow_mut()[0] = 1;
    let bad = MemDriver::start(&device, &device.memory).unwrap_err();
    assert_eq!(bad, StartError::Config(BadRegion::BlockSize(BLOCK + 1)));

    device.config.borrow_mut()[0] = 0;
    let empty = TestMemory::new(1);
    let none = MemDriver::start(&device, &&empty).unwrap_err();
    assert!(matches!(none, StartError::Memory(_)));
    assert_ne!(device.status.get() & status::FAILED, 0);
}

#[test]
fn a_request_costs_one_notification_and_its_answer_one_read_and_one_acknowledgement() {
    set_up!(device, driver);
    let mut task = Task::new(driver.plug(run(2, 5)));
    assert_eq!(task.poll(), None);
    assert_eq!(device.accesses(), [Access::Write(Register::QueueNotify, 0)]);

    let request = answer(&device, &response(ResponseType::Ack));
    assert_eq!(
        request,
        Request::Plug(BlockRange {
            addr: ADDR + 2 * BLOCK,
            nb_blocks: 5
        })
    );
    assert_eq!(task.wakes(), 0);
    driver.on_interrupt();
    assert_eq!(task.wakes(), 1);
    assert_eq!(
        device.accesses(),
        [
            Access::Read(Register::InterruptStatus),
            Access::Write(Register::InterruptAck, 1)
        ]
    );
    assert_eq!(task.poll(), Some(Ok(())));
    assert_eq!(device.accesses(), []);
}

#[test]
fn every_answer_has_its_type() {
    set_up!(device, driver);
    let answers = [
        (ResponseType::Ack, Ok(())),
        (ResponseType::Nack, Err(RequestError::Nack)),
        (ResponseType::Busy, Err(RequestError::Busy)),
        (ResponseType::Error, Err(RequestError::Error)),
    ];
    for (answer_type, result) in answers {
        let mut task = Task::new(driver.unplug(run(0, 1)));
        assert_eq!(task.poll(), None);
        let request = answer(&device, &response(answer_type));
        assert_eq!(
            request,
            Request::Unplug(BlockRange {
                addr: ADDR,
                nb_blocks: 1
            })
        );
        driver.on_interrupt();
        assert_eq!(task.poll(), Some(result));
    }
    let mut task = Task::new(driver.unplug_all());
    assert_eq!(task.poll(), None);
    assert_eq!(answer(&device, &response(ResponseType::Ack)), Request::UnplugAll);
    driver.on_interrupt();
    assert_eq!(task.poll(), Some(Ok(())));
}

#[test]
fn the_state_of_blocks_comes_with_the_acknowledgement() {
    set_up!(device, driver);
    for state in [RunState::Plugged, RunState::Unplugged, RunState::Mixed] {
        let mut task = Task::new(driver.state(run(60, 4)));
        assert_eq!(task.poll(), None);
        let request = answer(&device, &Response::with_state(state).encode());
        assert_eq!(
            request,
            Request::State(BlockRange {
                addr: ADDR + 60 * BLOCK,
                nb_blocks: 4
            })
        );
        driver.on_interrupt();
        assert_eq!(task.poll(), Some(Ok(state)));
    }
    let mut task = Task::new(driver.state(run(0, 1)));
    assert_eq!(task.poll(), None);
    answer(&device, &response(ResponseType::Error));
    driver.on_interrupt();
    assert_eq!(task.poll(), Some(Err(RequestError::Error)));
}

#[test]
fn blocks_outside_the_region_are_never_sent() {
    set_up!(device, driver);
    for outside in [run(64, 1), run(63, 2), run(u32::MAX, 1)] {
        assert_eq!(
            Task::new(driver.plug(outside)).poll(),
            Some(Err(RequestError::OutsideRegion))
        );
        assert_eq!(
            Task::new(driver.unplug(outside)).poll(),
            Some(Err(RequestError::OutsideRegion))
        );
        assert_eq!(
            Task::new(driver.state(outside)).poll(),
            Some(Err(RequestError::OutsideRegion))
        );
    }
    assert_eq!(device.accesses(), []);
}

#[test]
fn requests_take_turns() {
    set_up!(device, driver);
    let mut first = Task::new(driver.plug(run(0, 1)));
    let mut second = Task::new(driver.plug(run(1, 1)));
    assert_eq!(first.poll(), None);
    assert_eq!(second.poll(), None);
    answer(&device, &response(ResponseType::Ack));
    assert_eq!(device.next_chain(0), None, "the second request waits");
    driver.on_interrupt();
    assert_eq!(second.poll(), None, "the first answer is not fetched yet");
    assert_eq!(first.poll(), Some(Ok(())));
    assert_eq!(second.wakes(), 1);
    assert_eq!(second.poll(), None);
    answer(&device, &response(ResponseType::Nack));
    driver.on_interrupt();
    assert_eq!(second.poll(), Some(Err(RequestError::Nack)));
}

#[test]
fn a_dropped_request_does_not_answer_the_next_one() {
    set_up!(device, driver);
    let mut dropped = Task::new(driver.plug(run(0, 1)));
    assert_eq!(dropped.poll(), None);
    drop(dropped);
    let mut next = Task::new(driver.unplug(run(1, 1)));
    assert_eq!(next.poll(), None);
    answer(&device, &response(ResponseType::Ack));
    driver.on_interrupt();
    assert_eq!(next.wakes(), 1);
    assert_eq!(next.poll(), None, "it was only sent now");
    let request = answer(&device, &response(ResponseType::Busy));
    assert_eq!(
        request,
        Request::Unplug(BlockRange {
            addr: ADDR + BLOCK,
            nb_blocks: 1
        })
    );
    driver.on_interrupt();
    assert_eq!(next.poll(), Some(Err(RequestError::Busy)));
}

#[test]
fn a_request_dropped_with_its_answer_unread_lets_the_next_one_go() {
    set_up!(device, driver);
    let mut dropped = Task::new(driver.plug(run(0, 1)));
    let mut next = Task::new(driver.plug(run(1, 1)));
    assert_eq!((dropped.poll(), next.poll()), (None, None));
    answer(&device, &response(ResponseType::Ack));
    driver.on_interrupt();
    drop(dropped);
    assert_eq!(next.wakes(), 1);
    assert_eq!(next.poll(), None);
    answer(&device, &response(ResponseType::Ack));
    driver.on_interrupt();
    assert_eq!(next.poll(), Some(Ok(())));
}

/// Sends a request, lets `misbehave` loose, and expects `fault` now and from then on, until a restart.
fn breaks_down(fault: DeviceFault, misbehave: impl FnOnce(&Device<'_>)) {
    set_up!(device, driver);
    driver.config().unwrap();
    let mut news = Task::new(driver.config_changed());
    let mut task = Task::new(driver.state(run(0, 1)));
    let mut waiting = Task::new(driver.unplug_all());
    assert_eq!((news.poll(), task.poll(), waiting.poll()), (None, None, None));
    misbehave(&device);
    driver.on_interrupt();
    assert!(task.wakes() >= 1);
    assert_eq!(task.poll(), Some(Err(RequestError::Device(fault))));
    assert!(waiting.wakes() >= 1 && news.wakes() >= 1, "everybody hears of it");
    assert_eq!(waiting.poll(), Some(Err(RequestError::Device(fault))));
    assert_eq!(news.poll(), Some(Err(fault)));

    driver.restart().unwrap();
    let mut task = Task::new(driver.plug(run(0, 1)));
    assert_eq!(task.poll(), None);
    answer(&device, &response(ResponseType::Ack));
    driver.on_interrupt();
    assert_eq!(task.poll(), Some(Ok(())));
}

#[test]
fn a_device_that_breaks_the_protocol_is_not_used_until_it_is_restarted() {
    breaks_down(DeviceFault::Queue(QueueFault::NotInFlight { id: 7 }), |device| {
        device.use_chain(0, 7, 10);
    });
    breaks_down(
        DeviceFault::Queue(QueueFault::IndexJump {
            from: 0,
            to: 9,
            in_flight: 1,
        }),
        |device| {
            device.use_chain(0, 0, 10);
            device.set_used_index(0, 9);
        },
    );
    breaks_down(
        DeviceFault::Queue(QueueFault::TooLong {
            written: 11,
            writable: 10,
        }),
        |device| {
            let (head, ..) = take_request(device);
            device.use_chain(0, u32::from(head), 11);
        },
    );
    breaks_down(DeviceFault::ShortResponse { written: 9 }, |device| {
        answer(device, &[0; 9]);
    });
    breaks_down(DeviceFault::UnknownResponse(UnknownResponse(4)), |device| {
        answer(device, &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    });
    // It says it answered, and wrote nothing.
    breaks_down(DeviceFault::UnknownResponse(UnknownResponse(0xffff)), |device| {
        let (head, ..) = take_request(device);
        device.use_chain(0, u32::from(head), 10);
    });
    breaks_down(DeviceFault::NeedsReset, |device| {
        device
            .status
            .set(device.status.get() | status::DEVICE_NEEDS_RESET);
        device.config_interrupt();
    });
}

#[test]
fn a_state_that_is_none_is_a_fault() {
    set_up!(device, driver);
    let mut task = Task::new(driver.state(run(0, 1)));
    assert_eq!(task.poll(), None);
    answer(&device, &[0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    driver.on_interrupt();
    let fault = RequestError::Device(DeviceFault::UnknownState(virtio_wire::mem::UnknownState(3)));
    assert_eq!(task.poll(), Some(Err(fault)));
    assert_eq!(Task::new(driver.unplug_all()).poll(), Some(Err(fault)));
}

#[test]
fn a_request_returned_twice_breaks_the_device() {
    set_up!(device, driver);
    let mut task = Task::new(driver.plug(run(0, 1)));
    assert_eq!(task.poll(), None);
    let (head, _, response_at) = take_request(&device);
    device
        .memory
        .write_bytes(response_at, &response(ResponseType::Ack));
    device.use_chain(0, u32::from(head), 10);
    device.use_chain(0, u32::from(head), 10);
    driver.on_interrupt();
    assert!(task.wakes() >= 1);
    assert!(matches!(task.poll(), Some(Err(RequestError::Device(_)))));
}

#[test]
fn a_restart_interrupts_the_request_that_the_device_had() {
    set_up!(device, driver);
    let mut task = Task::new(driver.plug(run(0, 1)));
    assert_eq!(task.poll(), None);
    let mut waiting = Task::new(driver.plug(run(1, 1)));
    assert_eq!(waiting.poll(), None);
    driver.restart().unwrap();
    assert_eq!((task.wakes(), waiting.wakes()), (1, 1));
    assert_eq!(waiting.poll(), None);
    assert_eq!(task.poll(), Some(Err(RequestError::Interrupted)));
    let request = answer(&device, &response(ResponseType::Ack));
    assert_eq!(
        request,
        Request::Plug(BlockRange {
            addr: ADDR + BLOCK,
            nb_blocks: 1
        })
    );
    driver.on_interrupt();
    assert_eq!(waiting.poll(), Some(Ok(())));
}

#[test]
fn a_restart_that_fails_can_be_tried_again() {
    set_up!(device, driver);
    device.config.borrow_mut()[offset_of_addr() + 4] = 9;
    assert_eq!(driver.restart(), Err(StartError::Config(BadRegion::Changed)));
    assert_ne!(device.status.get() & status::FAILED, 0);
    let refused = Err(RequestError::Device(DeviceFault::NeedsReset));
    assert_eq!(Task::new(driver.unplug_all()).poll(), Some(refused));
    device.config.replace(CONFIG.encode().to_vec());
    driver.restart().unwrap();
    assert_eq!(Task::new(driver.unplug_all()).poll(), None);
}

fn offset_of_addr() -> usize {
    virtio_wire::mem::offset::ADDR
}

#[test]
fn a_change_of_the_configuration_is_news_until_it_is_read() {
    set_up!(device, driver);
    assert_eq!(
        Task::new(driver.config_changed()).poll(),
        Some(Ok(())),
        "never read yet"
    );
    driver.config().unwrap();
    let mut news = Task::new(driver.config_changed());
    assert_eq!(news.poll(), None);
    let lowered = Config {
        requested_size: 0,
        node_id: 0,
        ..CONFIG
    };
    device.config.replace(lowered.encode().to_vec());
    device.config_interrupt();
    driver.on_interrupt();
    assert_eq!(news.wakes(), 1);
    assert_eq!(news.poll(), Some(Ok(())));
    assert_eq!(
        Task::new(driver.config_changed()).poll(),
        Some(Ok(())),
        "still not read"
    );
    device.accesses();
    assert_eq!(driver.config(), Ok(lowered));
    assert_eq!(device.accesses().len(), 8, "the documented number of accesses");
    assert_eq!(Task::new(driver.config_changed()).poll(), None);
}

#[test]
fn a_change_and_an_answer_in_one_interrupt_are_both_seen() {
    set_up!(device, driver);
    driver.config().unwrap();
    let mut news = Task::new(driver.config_changed());
    let mut task = Task::new(driver.plug(run(0, 1)));
    assert_eq!((news.poll(), task.poll()), (None, None));
    answer(&device, &response(ResponseType::Nack));
    device.config_interrupt();
    driver.on_interrupt();
    assert_eq!(
        (news.poll(), task.poll()),
        (Some(Ok(())), Some(Err(RequestError::Nack)))
    );
}

#[test]
fn an_interrupt_without_a_cause_changes_nothing() {
    set_up!(device, driver);
    driver.config().unwrap();
    let mut task = Task::new(driver.plug(run(0, 1)));
    assert_eq!(task.poll(), None);
    driver.on_interrupt();
    assert_eq!(task.wakes(), 0);
    assert_eq!(Task::new(driver.config_changed()).poll(), None);
}
