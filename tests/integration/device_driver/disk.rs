//! The disk driver against the disk device: many requests under way, ended by the host in any order, with and without
//! success, and across a restart of the driver.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use devices::block::{
    Block, Disk, DiskAccess, DiskId, Finished, Limits, Operation as HostOperation, OperationError, Tag,
};
use guest_virtio::block::{BlockDriver, BlockError, Operation, Reason, SECTOR_SIZE};
use guest_virtio::dma::DmaArea;
use guest_virtio::queue::Segment;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::bus::Bus;
use super::memory::{GuestRam, guest_ram};
use super::task::run;

const SECTORS: u64 = 64;
/// Pages for data, one for each request of a test.
const PAGES: usize = 80;

/// What the host's disk holds, and what it has not done yet.
#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    begun: Vec<(Tag, HostOperation)>,
    finished: Vec<Finished>,
    flushes: usize,
}

/// A disk of the host that ends operations when a test says so.
#[derive(Clone, Default)]
struct HostDisk(Rc<RefCell<State>>);

impl Disk for HostDisk {
    fn submit(&mut self, tag: Tag, operation: HostOperation) {
        self.0.borrow_mut().begun.push((tag, operation));
    }

    fn commit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn finished(&mut self) -> io::Result<Option<Finished>> {
        Ok(self.0.borrow_mut().finished.pop())
    }
}

impl HostDisk {
    fn new() -> Self {
        let disk = Self::default();
        disk.0.borrow_mut().bytes = vec![0; usize::try_from(SECTORS * SECTOR_SIZE).unwrap()];
        disk
    }

    fn has_begun(&self) -> usize {
        self.0.borrow().begun.len()
    }

    /// Does one of the operations that have begun, and ends it so.
    fn finish(&self, bus: &DiskBus<'_>, place: usize, result: Result<(), OperationError>) {
        {
            let mut state = self.0.borrow_mut();
            let (tag, operation) = state.begun.remove(place);
            if result.is_ok() {
                state.carry_out(bus.ram, &operation);
            }
            state.finished.push(Finished { tag, result });
        }
        bus.host(|transport| ((), transport.finish_requests(bus.ram).unwrap()));
    }
}

impl State {
    fn carry_out(&mut self, ram: &GuestRam, operation: &HostOperation) {
        let at = |offset: u64| usize::try_from(offset).unwrap();
        match operation {
            HostOperation::Read { offset, into } => {
                let mut from = at(*offset);
                for extent in into {
                    let bytes = &self.bytes[from..from + extent.len];
                    ram.write_slice(bytes, GuestAddress(extent.gpa)).unwrap();
                    from += extent.len;
                }
            }
            HostOperation::Write { offset, from } => {
                let mut to = at(*offset);
                for extent in from {
                    let bytes = &mut self.bytes[to..to + extent.len];
                    ram.read_slice(bytes, GuestAddress(extent.gpa)).unwrap();
                    to += extent.len;
                }
            }
            HostOperation::Flush => self.flushes += 1,
            other => panic!("the driver asks for {other:?}"),
        }
    }
}

type DiskBus<'m> = Bus<'m, Block<HostDisk>>;
type Driver<'b, 'm> = BlockDriver<&'b DiskBus<'m>, &'m GuestRam, usize>;

fn device(disk: &HostDisk, access: DiskAccess) -> Block<HostDisk> {
    let limits = Limits {
        capacity_sectors: SECTORS,
        block_size: 512,
        access,
        discard: None,
    };
    Block::new(disk.clone(), limits, DiskId::default())
}

macro_rules! machine {
    ($disk:ident, $bus:ident, $driver:ident, $pages:ident) => {
        let (ram, ..) = guest_ram(1);
        let $disk = HostDisk::new();
        let $bus = Bus::new(&ram, device(&$disk, DiskAccess::ReadWrite));
        let $driver: Driver<'_, '_> = BlockDriver::start(&$bus, &$bus.ram).unwrap();
        let $pages = DmaArea::allocate($bus.ram, PAGES * 4096).unwrap();
    };
}

/// `sectors` sectors in page `page`, in pieces of one sector.
fn pieces(pages: &DmaArea<&GuestRam>, page: usize, sectors: usize) -> Vec<Segment> {
    let piece = |sector: usize| Segment {
        start: pages.at(page * 4096 + sector * 512, 512),
        len: 512,
    };
    (0..sectors).map(piece).collect()
}

fn fill(bus: &DiskBus<'_>, segments: &[Segment], value: u8) {
    for segment in segments {
        let at = GuestAddress(segment.start.raw());
        bus.ram.write_slice(&[value; 512], at).unwrap();
    }
}

fn contents(bus: &DiskBus<'_>, segments: &[Segment]) -> Vec<u8> {
    let read = |segment: &Segment| {
        let mut bytes = [0; 512];
        bus.ram
            .read_slice(&mut bytes, GuestAddress(segment.start.raw()))
            .unwrap();
        bytes
    };
    segments.iter().flat_map(read).collect()
}

#[test]
fn many_requests_are_under_way_and_each_comes_back_with_its_own_data() {
    machine!(disk, bus, driver, pages);
    for number in 0..8_usize {
        let data = pieces(&pages, number, 8);
        fill(&bus, &data, u8::try_from(number).unwrap() + 1);
        let sector = number as u64 * 8;
        driver.submit(Operation::Write, sector, &data, number).unwrap();
    }
    bus.take_accesses();
    driver.commit();
    assert_eq!(bus.take_accesses(), 1, "one notification for all of them");
    assert_eq!(disk.has_begun(), 8);
    for number in (0..8).rev() {
        disk.finish(&bus, number, Ok(()));
        let next = run(&bus, || driver.on_interrupt(), driver.next());
        assert_eq!(next, (number, Ok(())));
    }
    for number in 0..8_usize {
        let data = pieces(&pages, 40 + number, 8);
        driver
            .submit(Operation::Read, number as u64 * 8, &data, number)
            .unwrap();
    }
    driver.commit();
    while disk.has_begun() > 0 {
        disk.finish(&bus, disk.has_begun() / 2, Ok(()));
    }
    for _ in 0..8 {
        let (number, result) = run(&bus, || driver.on_interrupt(), driver.next());
        assert_eq!(result, Ok(()));
        let expected = vec![u8::try_from(number).unwrap() + 1; 4096];
        assert_eq!(contents(&bus, &pieces(&pages, 40 + number, 8)), expected);
    }
    assert_eq!(bus.look(|transport| transport.guest_faults()), 0);
}

#[test]
fn a_failing_disk_is_an_error_of_the_request_and_of_no_other() {
    machine!(disk, bus, driver, pages);
    for (number, operation) in [Operation::Read, Operation::Write, Operation::Flush]
        .into_iter()
        .enumerate()
    {
        let data = pieces(&pages, 0, if operation == Operation::Flush { 0 } else { 1 });
        driver.submit(operation, 0, &data, number).unwrap();
        driver
            .submit(Operation::Read, 1, &pieces(&pages, 1, 1), 99)
            .unwrap();
        driver.commit();
        disk.finish(&bus, 0, Err(OperationError::Failed));
        let next = || run(&bus, || driver.on_interrupt(), driver.next());
        assert_eq!(next(), (number, Err(BlockError::Failed)));
        disk.finish(&bus, 0, Ok(()));
        assert_eq!(next(), (99, Ok(())));
    }
    assert_eq!(driver.counters().errors, 3);
}

#[test]
fn a_flush_reaches_the_disk_and_a_disk_that_is_only_read_takes_no_write() {
    machine!(disk, bus, driver, _pages);
    driver.submit(Operation::Flush, 0, &[], 1).unwrap();
    driver.commit();
    disk.finish(&bus, 0, Ok(()));
    assert_eq!(run(&bus, || driver.on_interrupt(), driver.next()), (1, Ok(())));
    assert_eq!(disk.0.borrow().flushes, 1);

    let (ram, ..) = guest_ram(1);
    let bus = Bus::new(&ram, device(&HostDisk::new(), DiskAccess::ReadOnly));
    let driver: Driver<'_, '_> = BlockDriver::start(&bus, &bus.ram).unwrap();
    let pages = DmaArea::allocate(bus.ram, 4096).unwrap();
    let refused = driver.submit(Operation::Write, 0, &pieces(&pages, 0, 1), 1);
    assert_eq!(refused.unwrap_err().reason, Reason::ReadOnly);
}

#[test]
fn a_restarted_driver_gets_nothing_back_before_the_host_has_let_go_of_it() {
    machine!(disk, bus, driver, pages);
    let data = pieces(&pages, 0, 2);
    driver.submit(Operation::Read, 0, &data, 5).unwrap();
    driver.commit();
    let stuck = driver.restart().unwrap_err();
    assert!(stuck.to_string().contains("reset"), "{stuck}");
    assert_eq!(driver.completed(), None, "the host may still write to its memory");
    disk.finish(&bus, 0, Ok(()));
    driver.restart().unwrap();
    assert_eq!(driver.completed(), Some((5, Err(BlockError::Lost))));
    driver.submit(Operation::Read, 0, &data, 6).unwrap();
    driver.commit();
    disk.finish(&bus, 0, Ok(()));
    assert_eq!(run(&bus, || driver.on_interrupt(), driver.next()), (6, Ok(())));
}

/// What a random test does next.
#[derive(Debug, Clone)]
enum Step {
    Submit {
        write: bool,
        sector: u64,
        sectors: usize,
    },
    Finish {
        place: usize,
        well: bool,
    },
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (any::<bool>(), 0..SECTORS + 2, 1..9_usize).prop_map(|(write, sector, sectors)| Step::Submit {
            write,
            sector,
            sectors
        }),
        (any::<usize>(), prop::bool::weighted(0.9)).prop_map(|(place, well)| Step::Finish { place, well }),
        Just(Step::Take),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A request's data is what the disk had or was given at the moment the host did it, and every request that was taken
    /// comes back once.
    #[test]
    fn whatever_is_asked_comes_back_once_with_what_the_disk_had(steps in prop::collection::vec(step(), 1..150)) {
        machine!(disk, bus, driver, pages);
        // By token: what is under way, and what it must come back with.
        let mut under_way: BTreeMap<usize, (Vec<Segment>, Option<u64>)> = BTreeMap::new();
        let mut outcome: BTreeMap<usize, (bool, Option<Vec<u8>>)> = BTreeMap::new();
        // Tokens in the order in which the host has begun their operations.
        let mut begun: Vec<usize> = Vec::new();
        for (token, step) in steps.into_iter().enumerate() {
            match step {
                Step::Submit { write, sector, sectors } => {
                    let Some(page) = (0..PAGES).find(|page| {
                        let at = pages.at(page * 4096, 1);
                        under_way.values().all(|(data, _)| data[0].start != at)
                    }) else { continue };
                    let data = pieces(&pages, page, sectors);
                    fill(&bus, &data, u8::try_from(token % 250).unwrap());
                    let operation = if write { Operation::Write } else { Operation::Read };
                    let taken = driver.submit(operation, sector, &data, token);
                    driver.commit();
                    if sector + sectors as u64 > SECTORS {
                        prop_assert_eq!(taken.unwrap_err().reason, Reason::OutOfRange);
                    } else if taken.is_ok() {
                        under_way.insert(token, (data, (!write).then_some(sector)));
                        begun.push(token);
                    }
                }
                Step::Finish { place, well } if disk.has_begun() > 0 => {
                    let place = place % disk.has_begun();
                    let token = begun.remove(place);
                    let (data, sector) = &under_way[&token];
                    let expected = sector.map(|sector| {
                        let from = usize::try_from(sector * SECTOR_SIZE).unwrap();
                        disk.0.borrow().bytes[from..from + data.len() * 512].to_vec()
                    });
                    outcome.insert(token, (well, expected));
                    disk.finish(&bus, place, if well { Ok(()) } else { Err(OperationError::Failed) });
                }
                Step::Finish { .. } => {}
                Step::Take => {
                    if bus.take_interrupt() {
                        driver.on_interrupt();
                    }
                    while let Some((token, result)) = driver.completed() {
                        let (well, expected) = outcome.remove(&token).expect("done, and not back yet");
                        let (data, _) = under_way.remove(&token).unwrap();
                        prop_assert_eq!(result.is_ok(), well);
                        if let (true, Some(expected)) = (well, expected) {
                            prop_assert_eq!(contents(&bus, &data), expected);
                        }
                    }
                    prop_assert!(outcome.is_empty(), "nothing that is done stays away");
                }
            }
        }
        prop_assert_eq!(usize::from(driver.in_flight()), begun.len() + outcome.len());
        prop_assert_eq!(bus.look(|transport| transport.guest_faults()), 0);
    }
}
