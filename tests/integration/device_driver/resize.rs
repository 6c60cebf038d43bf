//! The whole resize loop: host, device, driver, planner, and a worker that does what the guest's kernel does with
//! its blocks. Whatever the backend and the guest refuse on the way, all sides always agree on what is plugged,
//! and the target is reached as soon as nobody refuses any more.

use std::collections::BTreeSet;

use devices::mem::MemDevice;
use guest_virtio::mem::{BlockIndex, BlockRun, MemDriver, RequestError, runs};
use guest_virtio::plan::{BlockState, Planner, PlugFailure, StallReason, Step, StuckReason, UnplugFailure};
use proptest::prelude::*;

use super::bus::Bus;
use super::memory::{BLOCK, Backend, BackendView, GuestRam, guest_ram, region_spec};
use super::task::run;

const NR_BLOCKS: usize = 48;

type MemBus<'m> = Bus<'m, MemDevice<Backend>>;
type Driver<'b, 'm> = MemDriver<&'b MemBus<'m>, &'m GuestRam>;

/// The guest's resize worker.
struct Worker<'b, 'm> {
    driver: &'b Driver<'b, 'm>,
    planner: Planner,
    /// Blocks with something on them that does not move.
    pinned: BTreeSet<u32>,
}

impl<'b, 'm> Worker<'b, 'm> {
    fn new(driver: &'b Driver<'b, 'm>) -> Self {
        let planner = Planner::all_unknown(driver.region().nr_blocks());
        Self {
            driver,
            planner,
            pinned: BTreeSet::new(),
        }
    }

    /// Follows the planner until there is nothing more to do for now.
    async fn settle(&mut self) -> Step {
        self.planner.retry();
        for _ in 0..100 * NR_BLOCKS {
            let config = self.driver.config().unwrap();
            let step = self.planner.step(self.driver.region().target(&config));
            match step {
                Step::Done | Step::Stalled(_) => return step,
                Step::Query(run) => match self.driver.state(run).await {
                    Ok(state) => self.planner.known(run, state),
                    Err(error) => panic!("STATE of {run:?}: {error}"),
                },
                Step::Plug(run) => self.plug(run).await,
                Step::Unplug(wanted) => self.shrink(wanted.get() as usize).await,
            }
            self.planner.validate();
        }
        panic!("the planner does not come to an end");
    }

    async fn plug(&mut self, run: BlockRun) {
        match self.driver.plug(run).await {
            Ok(()) => self.planner.plugged(run),
            Err(RequestError::Nack) => self.planner.plug_failed(run, PlugFailure::Nack),
            Err(RequestError::Busy) => self.planner.plug_failed(run, PlugFailure::Busy),
            Err(error) => panic!("PLUG of {run:?}: {error}"),
        }
    }

    async fn shrink(&mut self, wanted: usize) {
        // From the top, as a kernel does that wants its movable zone to end early.
        let candidates: Vec<BlockIndex> = self.planner.candidates().rev().collect();
        let (pinned, mut emptied): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .partition(|block| self.pinned.contains(&block.raw()));
        pinned
            .into_iter()
            .for_each(|block| self.planner.stuck(block, StuckReason::Pinned));
        emptied.truncate(wanted);
        emptied.sort();
        for run in runs(emptied) {
            match self.driver.unplug(run).await {
                Ok(()) => self.planner.unplugged(run),
                Err(RequestError::Busy) => self.planner.unplug_failed(run, UnplugFailure::Busy),
                Err(error) => panic!("UNPLUG of {run:?}: {error}"),
            }
        }
    }

    fn plugged(&self) -> Vec<bool> {
        let state = |block| self.planner.state(BlockIndex::new(block)).unwrap();
        (0..self.driver.region().nr_blocks())
            .map(|block| matches!(state(block), BlockState::Plugged | BlockState::Stuck(_)))
            .collect()
    }
}

fn request(bus: &MemBus<'_>, blocks: u64) {
    bus.host(|transport| ((), transport.set_requested_size(blocks * BLOCK).unwrap()));
}

/// Device, protection and guest say the same of every block, and the sizes are their sum.
fn assert_agreement(bus: &MemBus<'_>, view: &BackendView, worker: &Worker<'_, '_>) {
    let accessible = view.accessible();
    assert_eq!(worker.plugged(), accessible);
    let sum = accessible.iter().filter(|&&accessible| accessible).count() as u64 * BLOCK;
    assert_eq!(worker.driver.config().unwrap().plugged_size, sum);
    bus.look(|transport| {
        assert_eq!(transport.device().blocks().iter().collect::<Vec<_>>(), accessible);
        assert_eq!(transport.guest_faults(), 0);
    });
}

macro_rules! machine {
    ($bus:ident, $view:ident, $driver:ident) => {
        let (ram, backend, $view) = guest_ram(NR_BLOCKS);
        let $bus = Bus::new(&ram, MemDevice::new(&region_spec(NR_BLOCKS), backend).unwrap());
        let $driver = MemDriver::start(&$bus, &$bus.ram).unwrap();
    };
}

#[test]
fn growing_to_the_whole_region_is_one_request_and_shrinking_to_nothing_another() {
    machine!(bus, view, driver);
    let mut worker = Worker::new(&driver);
    request(&bus, NR_BLOCKS as u64);
    assert_eq!(run(&bus, || driver.on_interrupt(), worker.settle()), Step::Done);
    assert_agreement(&bus, &view, &worker);
    request(&bus, 0);
    assert_eq!(run(&bus, || driver.on_interrupt(), worker.settle()), Step::Done);
    assert_agreement(&bus, &view, &worker);
    let counters = bus.look(|transport| transport.device().counters());
    assert_eq!((counters.plug_requests, counters.unplug_requests), (1, 1));
}

#[test]
fn a_pinned_block_stops_the_shrinking_with_its_reason_and_goes_later() {
    machine!(bus, view, driver);
    let mut worker = Worker::new(&driver);
    worker.pinned = BTreeSet::from([7, 20]);
    request(&bus, 30);
    run(&bus, || driver.on_interrupt(), worker.settle());
    request(&bus, 0);
    let stalled = run(&bus, || driver.on_interrupt(), worker.settle());
    assert_eq!(stalled, Step::Stalled(StallReason::Pinned));
    assert_agreement(&bus, &view, &worker);
    assert_eq!(driver.config().unwrap().plugged_size, 2 * BLOCK);
    worker.pinned.clear();
    assert_eq!(run(&bus, || driver.on_interrupt(), worker.settle()), Step::Done);
    assert_agreement(&bus, &view, &worker);
}

#[test]
fn a_new_worker_learns_from_the_device_what_is_plugged() {
    machine!(bus, view, driver);
    let mut worker = Worker::new(&driver);
    worker.pinned = BTreeSet::from([1, 2, 5, 17]);
    request(&bus, 20);
    run(&bus, || driver.on_interrupt(), worker.settle());
    request(&bus, 4);
    run(&bus, || driver.on_interrupt(), worker.settle());

    driver.restart().unwrap();
    let mut newcomer = Worker::new(&driver);
    request(&bus, 10);
    assert_eq!(run(&bus, || driver.on_interrupt(), newcomer.settle()), Step::Done);
    assert_agreement(&bus, &view, &newcomer);
    for block in [1, 2, 5, 17] {
        assert!(newcomer.plugged()[block], "block {block} was never unplugged");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_target_is_reached_once_nobody_refuses_and_all_sides_agree_all_the_time(
        rounds in prop::collection::vec(
            (
                0..=NR_BLOCKS as u64,
                prop::collection::vec(prop::bool::weighted(0.4), 0..30),
                prop::collection::btree_set(0..u32::try_from(NR_BLOCKS).unwrap(), 0..6),
                prop::bool::weighted(0.2),
            ),
            1..8,
        ),
    ) {
        machine!(bus, view, driver);
        let mut worker = Worker::new(&driver);
        for (target, busy, pinned, restart) in rounds {
            request(&bus, target);
            view.be_busy(&busy);
            worker.pinned = pinned;
            let end = run(&bus, || driver.on_interrupt(), worker.settle());
            assert_agreement(&bus, &view, &worker);
            if end == Step::Done {
                prop_assert_eq!(driver.config().unwrap().plugged_size, target * BLOCK);
            }
            if restart {
                let pinned = std::mem::take(&mut worker.pinned);
                driver.restart().unwrap();
                worker = Worker { pinned, ..Worker::new(&driver) };
            }
            // Nobody refuses any more.
            view.be_busy(&[]);
            worker.pinned.clear();
            prop_assert_eq!(run(&bus, || driver.on_interrupt(), worker.settle()), Step::Done);
            assert_agreement(&bus, &view, &worker);
            prop_assert_eq!(driver.config().unwrap().plugged_size, target * BLOCK);
        }
    }
}
