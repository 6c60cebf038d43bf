//! Getting to know each other, and starting over.

use devices::mem::MemDevice;
use guest_virtio::StartError;
use guest_virtio::mem::{BlockIndex, BlockRun, MemDriver, RunState};
use guest_virtio::transport::{Features, Setup, Transport, TransportError};
use virtio_wire::{device_id, feature, mem};

use super::bus::Bus;
use super::memory::{BLOCK, Backend, REGION, guest_ram, region_spec};
use super::task::run;

const NR_BLOCKS: usize = 16;

macro_rules! machine {
    ($bus:ident, $view:ident) => {
        let (ram, backend, $view) = guest_ram(NR_BLOCKS);
        let $bus = Bus::new(&ram, MemDevice::new(&region_spec(NR_BLOCKS), backend).unwrap());
    };
}

fn request(bus: &Bus<'_, MemDevice<Backend>>, blocks: u64) {
    bus.host(|transport| ((), transport.set_requested_size(blocks * BLOCK).unwrap()));
}

#[test]
fn the_driver_and_the_device_agree_on_version_1_and_inaccessible_unplugged_memory() {
    machine!(bus, _view);
    let driver = MemDriver::start(&bus, &bus.ram).unwrap();
    assert!(bus.look(|transport| transport.is_live()));
    let negotiated = bus.look(|transport| transport.negotiated_features());
    assert_eq!(
        negotiated,
        feature::VERSION_1 | mem::feature::UNPLUGGED_INACCESSIBLE
    );
    let region = driver.region();
    assert_eq!((region.addr().raw(), region.block_size()), (REGION, BLOCK));
    assert_eq!(region.nr_blocks() as usize, NR_BLOCKS);
    assert_eq!(
        driver.config().unwrap(),
        bus.look(|transport| transport.device().config())
    );
    assert_eq!(bus.look(|transport| transport.guest_faults()), 0);
}

#[test]
fn a_driver_that_does_not_accept_inaccessible_unplugged_memory_is_refused() {
    machine!(bus, _view);
    let transport = Transport::probe(&bus, device_id::MEM).unwrap();
    let nothing = |_: &Setup<'_, _>| Ok::<_, TransportError>(());
    let refused = transport.initialise(Features::default(), nothing).unwrap_err();
    assert_eq!(
        refused,
        TransportError::FeaturesRefused {
            accepted: feature::VERSION_1
        }
    );
    assert!(!bus.look(|transport| transport.is_live()));

    let supported = mem::feature::UNPLUGGED_INACCESSIBLE;
    transport
        .initialise(
            Features {
                supported,
                required: 0,
            },
            nothing,
        )
        .unwrap();
    assert!(
        bus.look(|transport| transport.is_live()),
        "a refused driver can think again"
    );
}

#[test]
fn a_driver_for_another_device_does_not_touch_this_one() {
    machine!(bus, _view);
    let other = TransportError::OtherDevice {
        found: device_id::MEM,
        wanted: device_id::CONSOLE,
    };
    let refused = guest_virtio::console::ConsoleDriver::start(&bus, &bus.ram).unwrap_err();
    assert_eq!(refused, StartError::Transport(other));
    assert_eq!(bus.take_accesses(), 3);
}

#[test]
fn a_restarted_driver_and_a_new_one_find_the_blocks_as_they_were() {
    machine!(bus, view);
    let driver = MemDriver::start(&bus, &bus.ram).unwrap();
    request(&bus, 8);
    let plugged = BlockRun::single(BlockIndex::new(3));
    run(&bus, || driver.on_interrupt(), driver.plug(plugged)).unwrap();
    let before = view.accessible();

    driver.restart().unwrap();
    assert!(bus.look(|transport| transport.is_live()));
    assert_eq!(driver.config().unwrap().plugged_size, BLOCK);
    assert_eq!(
        run(&bus, || driver.on_interrupt(), driver.state(plugged)),
        Ok(RunState::Plugged)
    );
    drop(driver);

    let driver = MemDriver::start(&bus, &bus.ram).unwrap();
    assert_eq!(driver.config().unwrap().requested_size, 8 * BLOCK);
    assert_eq!(
        run(&bus, || driver.on_interrupt(), driver.state(plugged)),
        Ok(RunState::Plugged)
    );
    run(&bus, || driver.on_interrupt(), driver.unplug(plugged)).unwrap();
    assert!(before[3] && !view.accessible()[3]);
}
