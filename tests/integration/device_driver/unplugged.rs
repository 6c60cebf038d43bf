//! Rings and buffers in memory that is not there: the guest's fault, told as DEVICE_NEEDS_RESET, and forgiven.

use std::num::NonZeroU16;
use std::task::Poll;

use devices::mem::MemDevice;
use guest_virtio::mem::{BlockIndex, BlockRun, MemDriver, RequestError};
use guest_virtio::transport::TransportError;
use guest_virtio::{DeviceFault, StartError};

use super::bus::Bus;
use super::memory::{BLOCK, Backend, GuestRam, REGION, guest_ram, region_spec};
use super::task::{Task, run};

const NR_BLOCKS: usize = 16;

fn first_blocks(count: u16) -> BlockRun {
    BlockRun::new(BlockIndex::new(0), NonZeroU16::new(count).unwrap()).unwrap()
}

macro_rules! machine {
    ($ram:ident, $bus:ident) => {
        let ($ram, backend, _view) = guest_ram(NR_BLOCKS);
        let $bus = Bus::new(&$ram, MemDevice::new(&region_spec(NR_BLOCKS), backend).unwrap());
        $bus.host(|transport| ((), transport.set_requested_size(8 * BLOCK).unwrap()));
    };
}

fn guest_faults(bus: &Bus<'_, MemDevice<Backend>>) -> u64 {
    bus.look(|transport| transport.guest_faults())
}

/// The driver works, from the beginning, with frames in boot memory.
fn assert_all_is_well(ram: &GuestRam, bus: &Bus<'_, MemDevice<Backend>>) {
    ram.place_frames_at(0x1_0000);
    let driver = MemDriver::start(bus, &ram).unwrap();
    run(bus, || driver.on_interrupt(), driver.unplug_all()).unwrap();
    run(bus, || driver.on_interrupt(), driver.plug(first_blocks(8))).unwrap();
}

#[test]
fn a_queue_in_unplugged_memory_is_not_taken() {
    machine!(ram, bus);
    ram.place_frames_at(REGION);
    let refused = MemDriver::start(&bus, &&ram).unwrap_err();
    assert_eq!(
        refused,
        StartError::Transport(TransportError::QueueStuck { index: 0 })
    );
    assert_eq!(guest_faults(&bus), 1);
    assert!(ram.nr_accesses_refused() > 0);
    assert_all_is_well(&ram, &bus);
}

#[test]
fn a_queue_whose_memory_is_unplugged_by_its_own_request_needs_a_reset() {
    machine!(ram, bus);
    let driver = MemDriver::start(&bus, &&ram).unwrap();
    run(&bus, || driver.on_interrupt(), driver.plug(first_blocks(2))).unwrap();
    drop(driver);

    // Rings in block 0, the buffers of requests a page further in the same block.
    ram.place_frames_at(REGION);
    let driver = MemDriver::start(&bus, &&ram).unwrap();
    let unplugged = run(&bus, || driver.on_interrupt(), driver.unplug(first_blocks(1)));
    assert_eq!(unplugged, Err(RequestError::Device(DeviceFault::NeedsReset)));
    assert!(guest_faults(&bus) > 0);
    assert!(!bus.look(|transport| transport.is_live()));

    let again = driver.restart().unwrap_err();
    assert_eq!(
        again,
        StartError::Transport(TransportError::QueueStuck { index: 0 })
    );
    assert_all_is_well(&ram, &bus);
}

#[test]
fn buffers_in_unplugged_memory_cost_the_guest_that_request_only() {
    machine!(ram, bus);
    let driver = MemDriver::start(&bus, &&ram).unwrap();
    run(&bus, || driver.on_interrupt(), driver.plug(first_blocks(1))).unwrap();
    drop(driver);
    // The queue takes the last page of block 0, the buffers the first one of block 1, which is not plugged.
    ram.place_frames_at(REGION + BLOCK - 4096);
    let driver = MemDriver::start(&bus, &&ram).unwrap();
    // The device returns the chain with nothing in it.
    let mut request = Task::new(driver.plug(first_blocks(1)));
    assert!(request.poll().is_pending());
    assert!(bus.take_interrupt());
    driver.on_interrupt();
    let short = RequestError::Device(DeviceFault::ShortResponse { written: 0 });
    assert_eq!(request.poll(), Poll::Ready(Err(short)));
    assert_eq!(guest_faults(&bus), 1);
    assert!(bus.look(|transport| transport.is_live()), "the device works on");
    assert_all_is_well(&ram, &bus);
}
