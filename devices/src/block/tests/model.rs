//! Random histories of requests, ends, failures, resets and torn memory against a plain array of sectors.

use proptest::prelude::*;
use virtio_wire::mmio::Register;
use virtio_wire::status;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// Write a pattern to sectors.
    Write(u64, u64, u8),
    /// Read sectors.
    Read(u64, u64),
    /// Clear sectors.
    Zero(u64, u64),
    /// The disk finishes one of the operations it is at, well or not.
    Finish(usize, bool),
    /// The driver resets the device and starts over.
    Restart,
    /// Random bytes over the rings and over a header.
    Tear(u64, Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..SECTORS + 2, 0u64..4);
    prop_oneof![
        4 => (range.clone(), any::<u8>()).prop_map(|((at, count), byte)| Step::Write(at, count, byte)),
        4 => range.clone().prop_map(|(at, count)| Step::Read(at, count)),
        2 => range.prop_map(|(at, count)| Step::Zero(at, count)),
        8 => (0usize..6, prop::bool::weighted(0.9)).prop_map(|(place, well)| Step::Finish(place, well)),
        1 => Just(Step::Restart),
    ]
}

fn hostile_step() -> impl Strategy<Value = Step> {
    let torn = prop_oneof![
        PatchyMemory::BASE..PatchyMemory::BASE + 0x1000,
        HEADER..HEADER + 16
    ];
    prop_oneof![
        3 => step(),
        1 => (torn, prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(gpa, bytes)| Step::Tear(gpa, bytes)),
    ]
}

/// A write or a clearing that the disk is at: what it makes of which sectors.
type Pending = (u64, u64, u8);

struct Model {
    world: World,
    sectors: Vec<u8>,
    /// By operation under way, in the disk's order; `None` for a read.
    pending: Vec<Option<Pending>>,
}

impl Model {
    fn new() -> Model {
        Model {
            world: World::new(read_write()),
            sectors: (0..u8::try_from(SECTORS).unwrap()).collect(),
            pending: Vec::new(),
        }
    }

    /// Each request has memory of its own, so that several can be under way.
    fn submit(&mut self, request_type: RequestType, sector: u64, count: u64, byte: u8) {
        if self.pending.len() >= 5 {
            return;
        }
        let place = DATA + 0x1_0000 + 0x1000 * (self.world.log().len() as u64 % 64);
        let len = u32::try_from(count * SECTOR_SIZE).unwrap();
        let (header, data) = match request_type {
            RequestType::In => (sector, writable(place, len)),
            RequestType::Out => {
                self.world.driver.mem.poke(place, &vec![byte; len as usize]);
                (sector, readable(place, len))
            }
            _ => {
                let num_sectors = u32::try_from(count).unwrap();
                let segment = Segment {
                    sector,
                    num_sectors,
                    flags: 0,
                };
                self.world.driver.mem.poke(place, &segment.encode());
                (0, readable(place, 16))
            }
        };
        self.world.offer(request_type as u32, header, &[data]);
        let _ = self.world.driver.kick(QUEUE_REQUEST);
        if count > 0 && sector + count <= SECTORS {
            let writes = request_type != RequestType::In;
            self.pending.push(writes.then_some((sector, count, byte)));
        }
        assert_eq!(self.world.disk.state.borrow().begun.len(), self.pending.len());
    }

    fn finish(&mut self, place: usize, well: bool) {
        if self.pending.is_empty() {
            return;
        }
        let place = place % self.pending.len();
        let effect = self.pending.remove(place);
        let result = if well { Ok(()) } else { Err(OperationError::Failed) };
        self.world.disk.finish(place, result);
        let was_resetting = self.world.driver.transport.is_resetting();
        let _ = self.world.driver.used(QUEUE_REQUEST);
        let _ = self.world.finish();
        let used = self.world.driver.used(QUEUE_REQUEST).len();
        assert_eq!(used, usize::from(!was_resetting));
        if let (Some((sector, count, byte)), true) = (effect, well) {
            let range = usize::try_from(sector).unwrap()..usize::try_from(sector + count).unwrap();
            self.sectors[range].fill(byte);
        }
    }

    fn restart(&mut self) {
        let _ = self.world.driver.write(Register::Status, status::RESET);
        while !self.pending.is_empty() {
            self.finish(0, true);
        }
        let features = self.world.device().features() | common::VERSION_1;
        self.world.driver.initialise(features);
    }

    fn check(&self) {
        let state = self.world.disk.state.borrow();
        for (sector, byte) in self.sectors.iter().enumerate() {
            let at = sector * 512;
            assert!(
                state.bytes[at..at + 512].iter().all(|found| found == byte),
                "sector {sector}"
            );
        }
        assert_eq!(self.world.device().in_flight(), self.pending.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn the_disk_holds_what_requests_that_ended_well_have_written(steps in prop::collection::vec(step(), 1..60)) {
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Write(sector, count, byte) => model.submit(RequestType::Out, sector, count, byte),
                Step::Read(sector, count) => model.submit(RequestType::In, sector, count, 0),
                Step::Zero(sector, count) => model.submit(RequestType::WriteZeroes, sector, count, 0),
                Step::Finish(place, well) => model.finish(place, well),
                Step::Restart => model.restart(),
                Step::Tear(..) => {}
            }
            model.check();
        }
    }

    #[test]
    fn no_history_with_torn_rings_and_headers_breaks_the_device(steps in prop::collection::vec(hostile_step(), 1..60)) {
        let mut world = World::new(read_write());
        for step in steps {
            match step {
                Step::Write(sector, count, _) | Step::Zero(sector, count) => {
                    let len = u32::try_from(count * 512).unwrap();
                    world.offer(RequestType::Out as u32, sector, &[readable(DATA, len)]);
                    let _ = world.driver.kick(QUEUE_REQUEST);
                }
                Step::Read(sector, count) => {
                    let len = u32::try_from(count * 512).unwrap();
                    world.offer(RequestType::In as u32, sector, &[writable(DATA, len)]);
                    let _ = world.driver.kick(QUEUE_REQUEST);
                }
                Step::Finish(place, well) => {
                    let begun = world.disk.state.borrow().begun.len();
                    if begun > 0 {
                        let result = if well { Ok(()) } else { Err(OperationError::Failed) };
                        world.disk.finish(place % begun, result);
                        let _ = world.finish();
                    }
                }
                Step::Restart => {
                    let _ = world.driver.write(Register::Status, status::RESET);
                }
                Step::Tear(gpa, bytes) => world.driver.mem.poke(gpa, &bytes),
            }
            let begun = world.disk.state.borrow().begun.len();
            prop_assert_eq!(world.device().in_flight(), begun);
        }
        // However it was left: a driver that starts over is served.
        let _ = world.driver.write(Register::Status, status::RESET);
        while !world.disk.state.borrow().begun.is_empty() {
            world.disk.finish(0, Ok(()));
            let _ = world.finish();
        }
        prop_assert!(!world.driver.transport.is_resetting());
        let features = world.device().features() | common::VERSION_1;
        world.driver.initialise(features);
        world.request(RequestType::In, 0, &[writable(DATA, 512)]).is(Status::Ok, 513);
    }
}
