//! Single requests and what the device makes of them: ACK, NACK, BUSY and ERROR where the specification puts them.

use std::num::NonZeroU16;
use std::task::Poll;

use devices::mem::{MemDevice, RequestError as Refusal};
use guest_virtio::mem::{BlockIndex, BlockRun, MemDriver, RequestError, RunState};

use super::bus::{Bus, Service};
use super::memory::{BLOCK, Backend, BackendView, GuestRam, guest_ram, region_spec};
use super::task::{Task, run};

const NR_BLOCKS: usize = 16;

type MemBus<'m> = Bus<'m, MemDevice<Backend>>;
type Driver<'b, 'm> = MemDriver<&'b MemBus<'m>, &'m GuestRam>;

fn blocks(first: u32, count: u16) -> BlockRun {
    BlockRun::new(BlockIndex::new(first), NonZeroU16::new(count).unwrap()).unwrap()
}

/// One machine with its driver at work.
struct Machine<'b, 'm> {
    bus: &'b MemBus<'m>,
    driver: Driver<'b, 'm>,
    view: BackendView,
}

impl Machine<'_, '_> {
    fn request(&self, blocks: u64) {
        self.bus
            .host(|transport| ((), transport.set_requested_size(blocks * BLOCK).unwrap()));
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let value = run(self.bus, || self.driver.on_interrupt(), future);
        self.assert_agreement();
        value
    }

    /// The device's map, its configuration and the protection of the memory say the same.
    fn assert_agreement(&self) {
        let accessible = self.view.accessible();
        self.bus.look(|transport| {
            let device = transport.device();
            assert_eq!(device.blocks().iter().collect::<Vec<_>>(), accessible);
            let plugged = accessible.iter().filter(|&&accessible| accessible).count() as u64;
            assert_eq!(device.plugged_size(), plugged * BLOCK);
        });
    }

    fn last_refusal(&self) -> Option<Refusal> {
        self.bus.look(|transport| transport.device().last_refusal())
    }
}

macro_rules! machine {
    ($machine:ident) => {
        let (ram, backend, view) = guest_ram(NR_BLOCKS);
        let bus = Bus::new(&ram, MemDevice::new(&region_spec(NR_BLOCKS), backend).unwrap());
        let driver = MemDriver::start(&bus, &bus.ram).unwrap();
        let $machine = Machine {
            bus: &bus,
            driver,
            view,
        };
    };
}

#[test]
fn blocks_are_plugged_up_to_the_requested_size_and_not_beyond() {
    machine!(machine);
    machine.request(5);
    assert_eq!(machine.run(machine.driver.plug(blocks(0, 3))), Ok(()));
    assert_eq!(
        machine.run(machine.driver.plug(blocks(8, 3))),
        Err(RequestError::Nack)
    );
    let beyond = Refusal::BeyondRequested {
        wanted: 6 * BLOCK,
        requested_size: 5 * BLOCK,
    };
    assert_eq!(machine.last_refusal(), Some(beyond));
    assert_eq!(machine.run(machine.driver.plug(blocks(8, 2))), Ok(()));
    assert_eq!(
        machine.run(machine.driver.plug(blocks(12, 1))),
        Err(RequestError::Nack)
    );
    let counters = machine.bus.look(|transport| transport.device().counters());
    assert_eq!((counters.plug_requests, counters.acks, counters.nacks), (4, 2, 2));
}

#[test]
fn what_is_in_the_state_already_is_an_error() {
    machine!(machine);
    machine.request(8);
    assert_eq!(machine.run(machine.driver.plug(blocks(2, 2))), Ok(()));
    assert_eq!(
        machine.run(machine.driver.plug(blocks(3, 2))),
        Err(RequestError::Error)
    );
    assert_eq!(machine.last_refusal(), Some(Refusal::AlreadyPlugged));
    assert_eq!(
        machine.run(machine.driver.unplug(blocks(3, 2))),
        Err(RequestError::Error)
    );
    assert_eq!(machine.last_refusal(), Some(Refusal::AlreadyUnplugged));
    assert_eq!(machine.run(machine.driver.unplug(blocks(2, 2))), Ok(()));
}

#[test]
fn nothing_is_usable_before_anything_is_requested() {
    machine!(machine);
    assert_eq!(
        machine.run(machine.driver.plug(blocks(0, 1))),
        Err(RequestError::Error)
    );
    assert!(matches!(
        machine.last_refusal(),
        Some(Refusal::OutsideUsable { .. })
    ));
    assert_eq!(
        machine.run(machine.driver.state(blocks(0, 1))),
        Err(RequestError::Error)
    );
}

#[test]
fn the_state_of_a_run_is_plugged_unplugged_or_mixed() {
    machine!(machine);
    machine.request(8);
    machine.run(machine.driver.plug(blocks(4, 4))).unwrap();
    let state = |run| machine.run(machine.driver.state(run));
    assert_eq!(state(blocks(4, 4)), Ok(RunState::Plugged));
    assert_eq!(state(blocks(7, 1)), Ok(RunState::Plugged));
    assert_eq!(state(blocks(8, 8)), Ok(RunState::Unplugged));
    assert_eq!(state(blocks(3, 2)), Ok(RunState::Mixed));
    assert_eq!(state(blocks(0, 16)), Ok(RunState::Mixed));
}

#[test]
fn unplug_all_unplugs_everything_and_the_requested_size_can_be_plugged_again() {
    machine!(machine);
    machine.request(6);
    machine.run(machine.driver.plug(blocks(0, 2))).unwrap();
    machine.run(machine.driver.plug(blocks(10, 4))).unwrap();
    assert_eq!(machine.run(machine.driver.unplug_all()), Ok(()));
    assert_eq!(machine.driver.config().unwrap().plugged_size, 0);
    assert_eq!(machine.run(machine.driver.plug(blocks(0, 6))), Ok(()));
}

#[test]
fn a_busy_backend_is_told_as_busy_and_changes_nothing() {
    machine!(machine);
    machine.request(4);
    machine.view.be_busy(&[true, false, true]);
    assert_eq!(
        machine.run(machine.driver.plug(blocks(0, 4))),
        Err(RequestError::Busy)
    );
    assert_eq!(machine.run(machine.driver.plug(blocks(0, 4))), Ok(()));
    assert_eq!(
        machine.run(machine.driver.unplug(blocks(0, 4))),
        Err(RequestError::Busy)
    );
    assert_eq!(
        machine.run(machine.driver.state(blocks(0, 4))),
        Ok(RunState::Plugged)
    );
}

#[test]
fn a_plug_that_the_host_overtakes_with_a_smaller_size_is_denied_and_the_change_is_seen() {
    machine!(machine);
    machine.request(4);
    machine.driver.on_interrupt();
    machine.driver.config().unwrap();
    machine.bus.take_interrupt();

    machine.bus.set_service(Service::Held);
    let mut news = Task::new(machine.driver.config_changed());
    let mut plug = Task::new(machine.driver.plug(blocks(0, 4)));
    assert!(news.poll().is_pending() && plug.poll().is_pending());
    machine.request(2);
    machine.bus.set_service(Service::AtOnce);
    assert!(machine.bus.take_interrupt());
    machine.driver.on_interrupt();

    assert_eq!(plug.poll(), Poll::Ready(Err(RequestError::Nack)));
    assert_eq!(news.poll(), Poll::Ready(Ok(())));
    assert_eq!(machine.driver.config().unwrap().requested_size, 2 * BLOCK);
    assert_eq!(machine.run(machine.driver.plug(blocks(0, 2))), Ok(()));
}

#[test]
fn an_unplug_that_the_host_overtakes_with_a_larger_size_still_happens() {
    machine!(machine);
    machine.request(4);
    machine.run(machine.driver.plug(blocks(0, 4))).unwrap();
    machine.request(2);
    machine.bus.set_service(Service::Held);
    let mut unplug = Task::new(machine.driver.unplug(blocks(1, 2)));
    assert!(unplug.poll().is_pending());
    machine.request(8);
    machine.bus.set_service(Service::AtOnce);
    machine.driver.on_interrupt();
    assert_eq!(unplug.poll(), Poll::Ready(Ok(())));
    machine.assert_agreement();
    let config = machine.driver.config().unwrap();
    assert_eq!(
        (config.plugged_size, config.requested_size),
        (2 * BLOCK, 8 * BLOCK)
    );
}

#[test]
fn a_restart_in_the_middle_of_a_request_leaves_the_question_to_state() {
    machine!(machine);
    machine.request(4);
    machine.bus.set_service(Service::Held);
    let mut plug = Task::new(machine.driver.plug(blocks(0, 4)));
    assert!(plug.poll().is_pending());
    machine.driver.restart().unwrap();
    machine.bus.set_service(Service::AtOnce);
    assert_eq!(plug.poll(), Poll::Ready(Err(RequestError::Interrupted)));
    assert_eq!(
        machine.run(machine.driver.state(blocks(0, 4))),
        Ok(RunState::Unplugged)
    );
    assert_eq!(machine.run(machine.driver.plug(blocks(0, 4))), Ok(()));
}

#[test]
fn a_request_takes_three_register_accesses_in_all() {
    machine!(machine);
    machine.request(8);
    machine.driver.on_interrupt();
    machine.bus.take_interrupt();
    machine.bus.take_accesses();
    machine.run(machine.driver.plug(blocks(0, 8))).unwrap();
    assert_eq!(
        machine.bus.take_accesses(),
        3,
        "notify, read and acknowledge the interrupt"
    );
}
