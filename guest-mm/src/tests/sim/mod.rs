//! A whole machine simulated: programs that map, write, fork and end, blocks that come and go under them, allocations that
//! fail, a disk that answers in any order and fails too, memory that is smaller than what programs use, in an order that one number
//! decides.
//!
//! Everybody is a task of [`executor`], which picks the next one with random numbers from the seed and looks at every
//! invariant (`Mm::validate`) after each. What a program reads is compared with what it wrote, so is what it reads after a fork.
//! A task that waits and is never woken is found: nobody is ready then.
//!
//! A failure names its seed. `SIM_SEED=N cargo nextest run -p guest-mm sim` repeats it, `SIM_SEEDS=N` runs seeds 0 to N-1 instead of the
//! few that are run otherwise.

mod compactor;
mod disk;
mod executor;
mod mover;
mod program;
mod random;

use core::cell::{Cell, RefCell};
use std::boxed::Box;
use std::vec::Vec;
use std::{env, eprintln};

use guest_sync::Cpu;

use crate::disk::SimulatedDisk;
use crate::mm::PageIo;
use crate::pfn::Pfn;
use crate::tests::inject::Then;
use crate::tests::machine::{TestMm, machine_of};
use crate::tests::phys_model::{descriptors, one_cpu, small_memory};
use executor::Executor;
use program::Program;
use random::Random;

/// Frames of a block, and how many blocks.
const BLOCK: u32 = 512;
const BLOCKS: u32 = 3;
/// Programs at a time.
const MOST_PROGRAMS: usize = 6;
/// Seeds that every test run takes.
const SEEDS: u64 = 8;
/// Turns of tasks for each seed, before everybody is told to end.
const TURNS: u32 = 1000;
/// A frame that is reserved on the test machine.
const ZERO_PAGE: Pfn = Pfn::new(300);

/// What all tasks share.
struct Sim<'m> {
    mm: TestMm<'m>,
    cpu: Cpu,
    random: RefCell<Random>,
    /// Programs that were forked and have no task yet.
    newborn: RefCell<Vec<Program>>,
    nr_programs: Cell<usize>,
    /// Everybody checks what he has once more, and ends.
    is_ending: Cell<bool>,
    disk: SimulatedDisk<PageIo>,
    seen: Seen,
}

/// How often something happened, so that a simulation that does nothing is noticed.
#[derive(Default, Debug)]
struct Seen {
    forks: Cell<u32>,
    words_checked: Cell<u32>,
    waits: Cell<u32>,
    no_memory: Cell<u32>,
    moved_pages: Cell<u32>,
    blocks_removed: Cell<u32>,
    injected: Cell<u32>,
    io_errors: Cell<u32>,
    reclaimed: Cell<u32>,
    compacted: Cell<u32>,
}

fn count(cell: &Cell<u32>, more: u32) {
    cell.set(cell.get() + more);
}

impl Sim<'_> {
    fn below(&self, limit: u64) -> u64 {
        self.random.borrow_mut().below(limit)
    }

    /// True once in so many times.
    fn one_in(&self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Does something during which a request for memory may fail on purpose.
    fn with_failures<R>(&self, work: impl FnOnce() -> R) -> R {
        if !self.one_in(6) {
            return work();
        }
        let pass = u32::try_from(self.below(12)).unwrap();
        self.mm.phys.injected.lock().fail_after(pass, Then::Serve);
        let result = work();
        let reached = !self.mm.phys.injected.lock().clear();
        count(&self.seen.injected, u32::from(reached));
        result
    }
}

/// Says which seed it was when the simulation panics.
struct NamesSeed(u64);

impl Drop for NamesSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("simulation failed: repeat with SIM_SEED={}", self.0);
        }
    }
}

fn run(seed: u64) -> Seen {
    let _name = NamesSeed(seed);
    let pages = descriptors(BLOCK * BLOCKS);
    let memory = small_memory(&pages, BLOCK, BLOCKS);
    let all_free = {
        let stats = memory.memory_stats();
        stats.free_pages + u64::from(BLOCK * BLOCKS)
    };
    let mut mm = machine_of(&memory);
    // Half of the machines have a zero page.
    if seed.is_multiple_of(2) {
        mm.set_zero_page(ZERO_PAGE);
    }
    let sim = Sim {
        mm,
        cpu: one_cpu(),
        random: RefCell::new(Random::new(seed)),
        newborn: RefCell::default(),
        nr_programs: Cell::new(0),
        is_ending: Cell::new(false),
        disk: SimulatedDisk::new(disk::BLOCKS.into(), 16),
        seen: Seen::default(),
    };
    // One machine in four has no swap area.
    if !seed.is_multiple_of(4) {
        sim.mm.swap_on(&disk::header(), 0).unwrap();
    }
    let mut executor = Executor::default();
    executor.spawn(mover::live(&sim));
    executor.spawn(compactor::live(&sim));
    let mut turns = 0;
    while executor.has_tasks() {
        sim.is_ending.set(turns >= TURNS);
        if sim.nr_programs.get() == 0 && !sim.is_ending.get() {
            sim.newborn.borrow_mut().push(Program::new(&sim));
        }
        for program in sim.newborn.take() {
            executor.spawn(Box::pin(program.live(&sim)));
        }
        let turn = executor.turn(&mut sim.random.borrow_mut());
        if sim.one_in(3) {
            sim.balance();
        }
        let disk_worked = (turn.is_none() || sim.one_in(2)) && sim.disk_turn();
        match turn {
            Some(task) => executor.poll(task),
            None => assert!(
                disk_worked,
                "nobody is ready, and {} tasks wait",
                executor.nr_tasks()
            ),
        }
        turns += 1;
        if let Err(error) = sim.mm.validate() {
            panic!("after turn {turns}: {error}");
        }
        assert!(turns < 30 * TURNS, "tasks do not end");
    }
    drop(executor);
    // What was busy when its last user went is left to reclaim.
    for _ in 0..4 {
        sim.reclaim();
        while sim.disk_turn() {}
    }
    let usage = sim.mm.swap_usage();
    assert_eq!(
        (usage.free, usage.cached),
        (usage.total, 0),
        "nobody is left who has swapped"
    );
    let stats = sim.mm.phys.memory_stats();
    assert_eq!(stats.free_pages, all_free, "after all programs have ended");
    sim.seen
}

#[test]
fn sim_programs_keep_what_they_wrote_whatever_happens_around_them() {
    let number = |name| {
        env::var(name)
            .ok()
            .map(|value| value.parse::<u64>().expect("a number"))
    };
    if let Some(seed) = number("SIM_SEED") {
        eprintln!("seed {seed}: {:?}", run(seed));
        return;
    }
    let all: Vec<Seen> = (0..number("SIM_SEEDS").unwrap_or(SEEDS)).map(run).collect();
    let total = |what: fn(&Seen) -> &Cell<u32>| all.iter().map(|seen| what(seen).get()).sum::<u32>();
    let summary = [
        ("forks", total(|seen| &seen.forks)),
        ("words checked", total(|seen| &seen.words_checked)),
        ("waits for a page", total(|seen| &seen.waits)),
        ("requests without memory", total(|seen| &seen.no_memory)),
        ("pages moved", total(|seen| &seen.moved_pages)),
        ("blocks removed", total(|seen| &seen.blocks_removed)),
        ("requests failed on purpose", total(|seen| &seen.injected)),
        ("errors of the disk met", total(|seen| &seen.io_errors)),
        ("pages reclaimed", total(|seen| &seen.reclaimed)),
        ("pages compacted", total(|seen| &seen.compacted)),
    ];
    for (what, times) in summary {
        eprintln!("{what}: {times}");
        assert!(times > 0, "nothing was simulated: no {what}");
    }
}
