//! Random requests and resizes against a naive model written from the sentences of section 5.15.6.

use proptest::prelude::*;
use virtio_wire::mem::BlockState;

use super::*;

/// The device, naively: a flag a block and two numbers of blocks.
struct Model {
    plugged: Vec<bool>,
    requested: u64,
    usable: u64,
}

/// One step of a random history. Addresses are in half blocks, from one block below the region on.
#[derive(Clone, Debug)]
enum Step {
    Plug(u64, u16),
    Unplug(u64, u16),
    State(u64, u16),
    UnplugAll,
    Resize(u64),
    Reset,
    MachineReset,
}

fn step() -> impl Strategy<Value = Step> {
    // Mostly aligned and inside, sometimes not.
    let place = prop_oneof![8 => (1..=NR_BLOCKS).prop_map(|block| 2 * block), 1 => 0..2 * NR_BLOCKS + 8];
    let count = prop_oneof![8 => 1..12u16, 1 => 0..80u16, 1 => Just(u16::MAX)];
    let range = (place, count);
    prop_oneof![
        6 => range.clone().prop_map(|(at, count)| Step::Plug(at, count)),
        4 => range.clone().prop_map(|(at, count)| Step::Unplug(at, count)),
        3 => range.prop_map(|(at, count)| Step::State(at, count)),
        1 => Just(Step::UnplugAll),
        3 => (0..=NR_BLOCKS).prop_map(Step::Resize),
        1 => Just(Step::Reset),
        1 => Just(Step::MachineReset),
    ]
}

fn address(half_blocks: u64) -> u64 {
    REGION - BLOCK + half_blocks * (BLOCK / 2)
}

impl Model {
    fn plugged(&self) -> u64 {
        self.plugged.iter().filter(|plugged| **plugged).count() as u64
    }

    /// The slack is larger than this small region: all of it is usable once anything is requested.
    fn usable_for(requested: u64) -> u64 {
        if requested == 0 { 0 } else { NR_BLOCKS }
    }

    /// The blocks, if the device must not reject the request for their sake.
    fn range(&self, half_blocks: u64, count: u16) -> Option<std::ops::Range<usize>> {
        let aligned = half_blocks.is_multiple_of(2);
        let first = (half_blocks / 2).checked_sub(1)?;
        let end = first + u64::from(count);
        let usable = aligned && count > 0 && end <= self.usable;
        usable.then(|| usize::try_from(first).unwrap()..usize::try_from(end).unwrap())
    }

    fn expect(&mut self, step: &Step) -> Option<Response> {
        let error = Some(Response::new(ResponseType::Error));
        match *step {
            Step::Plug(at, count) => {
                let Some(range) = self.range(at, count) else {
                    return error;
                };
                if self.plugged[range.clone()].iter().any(|plugged| *plugged) {
                    return error;
                }
                if self.plugged() + u64::from(count) > self.requested {
                    return Some(Response::new(ResponseType::Nack));
                }
                self.plugged[range].fill(true);
            }
            Step::Unplug(at, count) => {
                let Some(range) = self.range(at, count) else {
                    return error;
                };
                if self.plugged[range.clone()].iter().any(|plugged| !*plugged) {
                    return error;
                }
                self.plugged[range].fill(false);
            }
            Step::State(at, count) => {
                let Some(range) = self.range(at, count) else {
                    return error;
                };
                let state = match self.plugged[range.clone()]
                    .iter()
                    .filter(|plugged| **plugged)
                    .count()
                {
                    0 => BlockState::Unplugged,
                    all if all == range.len() => BlockState::Plugged,
                    _ => BlockState::Mixed,
                };
                return Some(Response::with_state(state));
            }
            Step::UnplugAll => {
                self.plugged.fill(false);
                self.usable = Model::usable_for(self.requested);
            }
            Step::Resize(blocks) => {
                self.requested = blocks;
                self.usable = self.usable.max(Model::usable_for(blocks));
                return None;
            }
            Step::Reset => return None,
            Step::MachineReset => {
                self.plugged.fill(false);
                self.usable = Model::usable_for(self.requested);
                return None;
            }
        }
        Some(Response::new(ResponseType::Ack))
    }
}

fn take(driver: &mut MemDriver, step: &Step) -> Option<Response> {
    let range = |at, nb_blocks| BlockRange {
        addr: address(at),
        nb_blocks,
    };
    match *step {
        Step::Plug(at, count) => Some(driver.ask(Request::Plug(range(at, count)))),
        Step::Unplug(at, count) => Some(driver.ask(Request::Unplug(range(at, count)))),
        Step::State(at, count) => Some(driver.ask(Request::State(range(at, count)))),
        Step::UnplugAll => Some(driver.ask(Request::UnplugAll)),
        Step::Resize(blocks) => {
            let _ = driver.resize(blocks);
            None
        }
        Step::Reset | Step::MachineReset => {
            if matches!(step, Step::MachineReset) {
                assert_eq!(driver.transport.reset_machine().unwrap(), 0);
            }
            driver.initialise(virtio_wire::feature::VERSION_1 | feature::UNPLUGGED_INACCESSIBLE);
            None
        }
    }
}

proptest! {
    #[test]
    fn every_history_is_that_of_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let (mut driver, backend) = mem_driver(0);
        let mut model = Model { plugged: vec![false; 64], requested: 0, usable: 0 };
        let mut backend_plugged = BlockMap::new(NR_BLOCKS);
        for step in &steps {
            let expected = model.expect(step);
            let answer = take(&mut driver, step);
            prop_assert_eq!(answer, expected, "{:?}", step);

            let device = driver.device();
            device.blocks().validate();
            prop_assert_eq!(device.blocks().iter().collect::<Vec<_>>(), model.plugged.clone());
            let config = driver.config();
            prop_assert_eq!(config.plugged_size, model.plugged() * BLOCK);
            prop_assert_eq!(config.requested_size, model.requested * BLOCK);
            prop_assert_eq!(config.usable_region_size, model.usable * BLOCK);
            prop_assert!(config.usable_region_size >= config.requested_size);
            prop_assert!(config.usable_region_size <= config.region_size);

            // What the backend was told adds up to the same map, and it was never told the same thing twice.
            let mut script = backend.0.borrow_mut();
            for run in script.plugged.drain(..) {
                prop_assert_eq!(backend_plugged.state(run), BlockState::Unplugged);
                backend_plugged.plug(run);
            }
            for run in script.unplugged.drain(..) {
                prop_assert_eq!(backend_plugged.state(run), BlockState::Plugged);
                backend_plugged.unplug(run);
            }
            prop_assert_eq!(&backend_plugged, device.blocks());
        }
        prop_assert_eq!(driver.transport.guest_faults(), 0);
    }
}
