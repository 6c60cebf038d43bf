//! Reclaim at work: four workloads that use more memory than there is, each by both schemes. One run is one workload on a machine of
//! its own, whose disks are memory.

use std::pin::pin;
use std::task::{Context, Waker};

use guest_mm::mm::mapping::{FileError, ReadAhead};
use guest_mm::mm::{FileArea, MappingId, Sharing};
use guest_mm::reclaim::{Reclaim, Scheme};
use guest_mm::{Access, Backing, Frames, Gfp, HugeAdvice, NodeId, Order, Pfn, Prot, SpaceId};

use crate::clock::Stopwatch;
use crate::figure::{Effort, Figure};
use crate::machine::{Machine, PAGE};
use crate::random::Random;

/// Most runs of a workload by a scheme.
const RUNS: usize = 7;
/// Accesses between two looks of the daemon.
const DAEMON_EVERY: u64 = 16;

/// What is done on a machine of 80 MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Workload {
    /// A file of 100 MiB is read through once while 16 MiB are used again and again.
    OneReading,
    /// A program fills 112 MiB and uses them, a quarter of them seven times of eight.
    Paging,
    /// A program does that with 64 MiB while a file of 32 MiB is read over and over.
    Mixed,
    /// A program does that with a file of 117 MiB, mapped and shared, that is written in the end.
    MappedFile,
}

/// What one run came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Processor time of the whole, milliseconds.
    pub(crate) ms: f64,
    /// Pages looked at for one that was freed.
    pub(crate) scanned: f64,
    /// Pages that came from the disks: swapped in, or read from the file.
    pub(crate) read: f64,
    /// Pages that were swapped out.
    pub(crate) swapped_out: f64,
}

/// The runs of one workload, the schemes taking turns.
pub(crate) struct Runs {
    pub(crate) two_list: Vec<Run>,
    pub(crate) launder: Vec<Run>,
}

/// Runs a workload a few times by each scheme.
pub(crate) fn runs(workload: Workload, effort: Effort) -> Runs {
    let mut runs = Runs {
        two_list: Vec::new(),
        launder: Vec::new(),
    };
    for _ in 0..effort.rounds.div_ceil(2).min(RUNS) {
        runs.two_list.push(run(workload, Scheme::TwoList));
        runs.launder.push(run(workload, Scheme::Launder));
    }
    runs
}

/// One figure of some runs.
pub(crate) fn figure(runs: &[Run], of: fn(&Run) -> f64) -> Figure {
    Figure::of(runs.iter().map(of).collect())
}

fn run(workload: Workload, scheme: Scheme) -> Run {
    let machine = Machine::with_neighbours();
    let mut load = Load::new(&machine, scheme);
    let watch = Stopwatch::start();
    match workload {
        Workload::OneReading => one_reading(&mut load),
        Workload::Paging => paging(&mut load),
        Workload::Mixed => mixed(&mut load),
        Workload::MappedFile => mapped_file(&mut load),
    }
    let sample = watch.stop(1);
    let stats = machine.mm.phys.stats();
    Run {
        ms: sample.cpu.as_secs_f64() * 1e3,
        scanned: stats.pgscan as f64 / stats.pgsteal.max(1) as f64,
        read: (stats.pswpin + stats.pgpgin) as f64,
        swapped_out: stats.pswpout as f64,
    }
}

fn one_reading(load: &mut Load<'_>) {
    const HOT: u64 = 4096;
    const FILE: u64 = 25_600;
    let mut hot = load.area(HOT);
    let mut file = load.file(FILE);
    for page in 0..FILE {
        if page % 16 == 0 {
            (0..HOT / 64).for_each(|n| load.use_page(&mut hot, (page + n * 64) % HOT, Access::Write));
        }
        load.read_next(&mut file);
    }
}

fn paging(load: &mut Load<'_>) {
    let mut area = load.area(28_672);
    load.fill(&mut area);
    (0..200_000).for_each(|_| load.use_some_page(&mut area));
}

fn mixed(load: &mut Load<'_>) {
    let mut area = load.area(16_384);
    let mut file = load.file(8192);
    load.fill(&mut area);
    for _ in 0..16_384 {
        (0..16).for_each(|_| load.use_some_page(&mut area));
        load.read_next(&mut file);
    }
}

fn mapped_file(load: &mut Load<'_>) {
    const FILE: u64 = 30_000;
    let file = load.machine.file(FILE);
    let mut area = load.area_of(FILE, Backing::File(FileArea::new(file, 0, Sharing::Shared)));
    (0..40_000).for_each(|_| load.use_some_page(&mut area));
    let mm = &load.machine.mm;
    assert_eq!(load.machine.run(mm.sync(&load.machine.cpu, file)), Ok(()));
}

/// Memory of a program.
struct Area {
    space: SpaceId,
    va: u64,
    /// What is in the first word of each page.
    words: Vec<u64>,
}

/// A file, and how far it was read.
struct Reading {
    file: MappingId,
    pages: u64,
    next: u64,
    ahead: ReadAhead,
}

/// A machine under load.
struct Load<'a> {
    machine: &'a Machine,
    reclaim: Reclaim<'a>,
    random: Random,
    accesses: u64,
}

impl<'a> Load<'a> {
    fn new(machine: &'a Machine, scheme: Scheme) -> Self {
        Self {
            machine,
            reclaim: Reclaim::new(machine.mm.phys, &[]).with_pages(&machine.mm, scheme),
            random: Random::new(0x5eed),
            accesses: 0,
        }
    }

    fn area(&self, pages: u64) -> Area {
        self.area_of(pages, Backing::Anonymous(HugeAdvice::NoHuge))
    }

    fn area_of(&self, pages: u64, backing: Backing) -> Area {
        let space = self.machine.program();
        let prot = Prot::READ.with(Prot::WRITE);
        Area {
            space,
            va: self.machine.map(space, pages, prot, backing),
            words: vec![0; usize::try_from(pages).expect("some MiB")],
        }
    }

    fn file(&self, pages: u64) -> Reading {
        Reading {
            file: self.machine.file(pages),
            pages,
            next: 0,
            ahead: ReadAhead::default(),
        }
    }

    /// Stores to every page, one after the other.
    fn fill(&mut self, area: &mut Area) {
        (0..area.words.len() as u64).for_each(|page| self.use_page(area, page, Access::Write));
    }

    /// One of the pages, the first quarter of them seven times of eight; one access in four is a store.
    fn use_some_page(&mut self, area: &mut Area) {
        let pages = area.words.len();
        let among = if self.random.below(8) > 0 {
            pages / 4
        } else {
            pages
        };
        let page = self.random.below(among) as u64;
        let access = match self.random.below(4) {
            0 => Access::Write,
            _ => Access::Read,
        };
        self.use_page(area, page, access);
    }

    /// A load, or a store of another number, as hardware does it: with the accessed bit. What is there must be what was stored last.
    fn use_page(&mut self, area: &mut Area, page: u64, access: Access) {
        self.daemon();
        let (mm, va) = (&self.machine.mm, area.va + page * PAGE);
        let root = mm.space(area.space).expect("it has not ended").root();
        let found = loop {
            if let Ok(found) = guest_mm::pagetable::translate(&mm.frames, root, va, access) {
                break found;
            }
            if !self.machine.try_touch(area.space, va, access) {
                self.reclaim_directly();
            }
        };
        let pfn = Pfn::containing(found.gpa).expect("a frame of this machine");
        let word = &mut area.words[usize::try_from(page).expect("an index")];
        assert_eq!(mm.frames.read(pfn, 0), *word, "page {page} was lost");
        if access == Access::Write {
            *word += page + 1;
            mm.frames.write(pfn, 0, *word);
        }
    }

    /// The next page of a file, from its beginning again after the last one.
    fn read_next(&mut self, reading: &mut Reading) {
        self.daemon();
        let machine = self.machine;
        let range = (
            reading.next % reading.pages * PAGE,
            usize::try_from(PAGE).expect("4096"),
        );
        let to = |_: usize, _: &[u8]| Ok::<(), FileError>(());
        let ahead = &mut reading.ahead;
        while machine.run(machine.mm.read_file(&machine.cpu, reading.file, ahead, range, to))
            == Err(FileError::OutOfMemory)
        {
            self.reclaim_directly();
        }
        reading.next += 1;
    }

    fn reclaim_directly(&self) {
        let cpu = &self.machine.cpu;
        let reclaimed = self
            .machine
            .run(self.reclaim.try_to_free_pages(cpu, Gfp::USER, Order::ZERO));
        assert!(
            reclaimed.has_progress,
            "there is more swap than any workload uses"
        );
    }

    /// The node's daemon, when somebody has woken it.
    fn daemon(&mut self) {
        self.accesses += 1;
        if !self.accesses.is_multiple_of(DAEMON_EVERY) {
            return;
        }
        let machine = self.machine;
        let wanted = pin!(machine.mm.phys.daemon_wanted(NodeId::ZERO));
        let is_wanted = wanted.poll(&mut Context::from_waker(Waker::noop())).is_ready();
        if is_wanted {
            machine.run(self.reclaim.balance(&machine.cpu, NodeId::ZERO));
        }
    }
}
