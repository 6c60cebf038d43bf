//! A whole machine simulated: programs that map, write, fork and end, blocks that come and go under them, allocations that
//! fail, a disk that answers in any order and fails too, memory that is smaller than what programs use, reclaim with all its waits, programs
//! that are ended at any of them, in an order that one number decides.
//!
//! Everybody is a task of [`executor`], which picks the next one with random numbers from the seed and looks at every
//! invariant (`Mm::validate`) after each. What a program reads is compared with what it wrote, so is what it reads after a fork; files that
//! all of them read, write and map are compared with a model of each file, in memory, after the end on the disk, and on a third of the machines
//! after a loss of power. A task that waits and is never woken is found: nobody is ready then.
//!
//! A failure names its seed. `SIM_SEED=N cargo nextest run -p guest-mm sim` repeats it. `SIM_SEEDS=N` runs seeds 0 to N-1 instead of the
//! few that are run otherwise, on all CPUs; thousands of them without the time limit that nextest has:
//!
//! ```sh
//! SIM_SEEDS=5000 cargo test --release -p guest-mm --lib sim_ -- --nocapture
//! ```

mod backing;
mod compactor;
mod direct;
mod disk;
mod executor;
mod files;
mod locked;
mod maps;
mod memory;
mod model;
mod mover;
mod names;
mod pagefs;
mod program;
mod random;
mod reserved;
mod seen;
mod words;

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::num::NonZeroUsize;
use core::pin::pin;
use std::boxed::Box;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;
use std::{env, eprintln, thread};

use guest_sync::Cpu;

use crate::disk::SimulatedDisk;
use crate::gfp::Gfp;
use crate::mm::PageIo;
use crate::mm::mapping::DirtyRatios;
use crate::pfn::{Order, Pfn};
use crate::reclaim::{Reclaim, Scheme};
use crate::tests::inject::Then;
use crate::tests::machine::{TestMm, machine_of};
use crate::tests::phys_model::{descriptors, one_cpu, small_memory};
use crate::tests::test_fs::TestFs;
use backing::Fs;
use executor::Executor;
use files::{LostPages, SimFile};
use memory::{Clock, Process};
use names::Names;
use pagefs::PageFs;
use program::Program;
use random::Random;
use seen::{Seen, count};
use words::Words;

/// Frames of a block, and how many blocks.
const BLOCK: u32 = 512;
const BLOCKS: u32 = 2;
/// Frames that the kernel has at most, of 2048.
const MOST_TAKEN: usize = 1300;
/// Frames that it has where there is no swap area: programs want more than is left.
const TAKEN_WITHOUT_SWAP: usize = 1750;
/// Programs at a time.
const MOST_PROGRAMS: usize = 6;
/// Seeds that every test run takes.
const SEEDS: u64 = 40;
/// Turns of tasks for each seed, before everybody is told to end.
const TURNS: u32 = 1100;
/// A frame that is reserved on the test machine.
const ZERO_PAGE: Pfn = Pfn::new(300);

/// What all tasks share.
struct Sim<'m> {
    mm: &'m TestMm<'m>,
    cpu: &'m Cpu,
    fs: Fs<'m>,
    files: Vec<SimFile>,
    lost: Arc<LostPages>,
    random: RefCell<Random>,
    /// Programs that were forked and have no task yet.
    newborn: RefCell<Vec<Program>>,
    /// Programs that live.
    processes: RefCell<Vec<Rc<Process>>>,
    clock: Clock,
    words: Words,
    names: Names,
    reclaim: &'m Reclaim<'m>,
    /// Everybody checks what he has once more, and ends.
    is_ending: Cell<bool>,
    disk: SimulatedDisk<PageIo>,
    /// That disk has failed for somebody.
    swap_failed: Cell<bool>,
    seen: Seen,
}

impl Sim<'_> {
    fn below(&self, limit: u64) -> u64 {
        self.random.borrow_mut().below(limit)
    }

    /// Everybody is told to end, and woken.
    fn end(&self) {
        if !self.is_ending.replace(true) {
            self.words.end();
        }
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

    /// The same at each step of something that waits.
    async fn failing<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|context| self.with_failures(|| work.as_mut().poll(context))).await
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

/// Frames that the kernel has: more on some machines than on others.
fn nr_taken(seed: u64) -> usize {
    match seed % 4 {
        0 => TAKEN_WITHOUT_SWAP,
        _ => usize::try_from(seed / 4 % 3).unwrap() * MOST_TAKEN / 2,
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
    let (mut mm, cpu) = (machine_of(&memory), one_cpu());
    let taken: Vec<Pfn> = (0..nr_taken(seed))
        .map(|_| memory.alloc_pages(&cpu, Gfp::KERNEL, Order::ZERO).unwrap())
        .collect();
    // Half of the machines have a zero page.
    let mut kind = Random::new(!seed);
    if kind.below(2) == 0 {
        mm.set_zero_page(ZERO_PAGE);
    }
    let lost = Arc::new(LostPages::default());
    let mm = mm;
    // And on some little may be dirty.
    if kind.below(5) < 2 {
        mm.set_dirty_ratios(DirtyRatios {
            background: 1,
            limit: 2,
        });
    }
    let scheme = if kind.below(2) == 0 {
        Scheme::Launder
    } else {
        Scheme::TwoList
    };
    let reclaim = Reclaim::new(&memory, &[]).with_pages(&mm, scheme);
    let disk = pagefs::new_disk();
    let fs = match kind.below(2) {
        0 => Fs::Map(Box::new(TestFs::new(&mm, &cpu, 1 << 20))),
        _ => Fs::Page(Box::new(PageFs::mount(&mm, &cpu, &disk))),
    };
    let sim = Sim {
        mm: &mm,
        cpu: &cpu,
        files: SimFile::all(&mm, matches!(fs, Fs::Map(_)).then_some(&lost)),
        fs,
        lost,
        random: RefCell::new(Random::new(seed)),
        newborn: RefCell::default(),
        processes: RefCell::default(),
        clock: Clock::default(),
        words: Words::new(&mm),
        names: Names::default(),
        reclaim: &reclaim,
        is_ending: Cell::new(false),
        disk: SimulatedDisk::new(disk::BLOCKS.iter().copied().map(u64::from).sum(), 16),
        swap_failed: Cell::new(false),
        seen: Seen::default(),
    };
    // One machine in four has no swap area.
    if !seed.is_multiple_of(4) {
        sim.swap_on();
    }
    let mut executor = boot(&sim);
    play(&sim, &mut executor);
    if kind.below(3) == 0 {
        sim.lose_power();
    } else {
        taken
            .iter()
            .for_each(|pfn| memory.free_pages(&cpu, *pfn).unwrap());
        give_all_back(&sim, &mut executor, all_free);
    }
    drop(executor);
    sim.seen.reclaim.set(reclaim.stat());
    let throttled = sim.mm.phys.stats().balance_dirty_pages;
    sim.seen.throttled_writers.set(throttled);
    sim.seen
}

/// A machine with its daemons, and those who take memory away and move it about.
fn boot<'a>(sim: &'a Sim<'_>) -> Executor<'a> {
    let mut executor = Executor::default();
    executor.spawn_daemon(memory::kswapd(sim));
    if let Fs::Page(fs) = &sim.fs {
        fs.spawn(&mut executor, sim);
    }
    executor.spawn(mover::live(sim));
    executor.spawn(compactor::live(sim));
    executor.spawn(reserved::live(sim));
    executor
}

/// Programs run until they have ended, and whoever else ends.
fn play<'a>(sim: &'a Sim<'_>, executor: &mut Executor<'a>) {
    let mut turns = 0;
    while executor.has_tasks() {
        if turns >= TURNS {
            sim.end();
        }
        if sim.nr_programs() == 0 && !sim.is_ending.get() {
            sim.newborn.borrow_mut().push(Program::new(sim));
        }
        for program in sim.newborn.take() {
            executor.spawn(Box::pin(program.live(sim)));
        }
        if !sim.is_ending.get() && sim.one_in(1000) {
            sim.kill_one();
        }
        assert!(
            turn(sim, executor) || sim.clock.skip(),
            "nobody is ready, and {} tasks wait, {} of them for memory",
            executor.nr_tasks(),
            sim.mm.phys.nr_waiting()
        );
        turns += 1;
        assert!(turns < 30 * TURNS, "tasks do not end");
    }
}

/// A task has its turn, or the disks, or both; everything that must hold is looked at then. False if nobody had anything to do.
fn turn<'a>(sim: &'a Sim<'_>, executor: &mut Executor<'a>) -> bool {
    sim.clock.tick();
    let task = executor.turn(&mut sim.random.borrow_mut());
    let disk_worked = (task.is_none() || sim.one_in(2)) && (sim.disk_turn() | sim.files_turn());
    if let Some(task) = task {
        executor.poll(task);
        sim.note_lost();
    }
    if let Err(error) = sim.mm.validate() {
        panic!("at {}: {error}", sim.clock.now());
    }
    sim.words.check();
    task.is_some() || disk_worked
}

/// Runs something to its end while no program is there, and until the daemons have nothing to do.
fn finish<'a>(sim: &'a Sim<'_>, executor: &mut Executor<'a>, work: impl Future<Output = ()> + 'a) {
    executor.spawn(work);
    play(sim, executor);
    while turn(sim, executor) {}
}

/// Files are written to the disk, compared, and removed; then everything is free that was at the beginning.
fn give_all_back<'a>(sim: &'a Sim<'_>, executor: &mut Executor<'a>, all_free: u64) {
    finish(sim, executor, async {
        let nobody = sim.begin_process(sim.mm.create_space(sim.cpu, &[]).unwrap());
        sim.end_files(&nobody).await;
        sim.words.remove(sim).await;
        sim.mm.set_nr_huge_pages(sim.cpu, 0);
        sim.mm.destroy_space(sim.cpu, nobody.space).unwrap();
        sim.end_process(&nobody);
        // What was busy when its last user went is left to reclaim.
        sim.reclaim.reclaim_pages(sim.cpu, u64::MAX).await;
    });
    let usage = sim.mm.swap_usage();
    assert_eq!(
        (usage.free, usage.cached),
        (usage.total, 0),
        "nobody is left who has swapped"
    );
    let stats = sim.mm.phys.memory_stats();
    // The file system has a frame for when there is no other.
    let kept = match &sim.fs {
        Fs::Map(_) => 0,
        Fs::Page(fs) => {
            fs.assert_empty(sim.mm);
            1
        }
    };
    assert_eq!(stats.free_pages + kept, all_free, "after all programs have ended");
}

/// Seeds 0 to `nr` - 1, on all CPUs.
fn run_all(nr: u64) -> Vec<Seen> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut seen = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= nr {
                return seen;
            }
            if seed > 0 && seed.is_multiple_of(100) {
                eprintln!("seed {seed} of {nr}");
            }
            seen.push(run(seed));
        }
    };
    let nr_threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..nr_threads).map(|_| scope.spawn(work)).collect();
        let results = threads.into_iter().map(thread::ScopedJoinHandle::join);
        results
            .flat_map(|seen| seen.expect("the seed is named above"))
            .collect()
    })
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
    let all = run_all(number("SIM_SEEDS").unwrap_or(SEEDS));
    let summary = seen::summary(&all);
    for (what, times) in &summary {
        eprintln!("{what}: {times}");
    }
    for (what, times) in summary {
        assert!(times > 0, "nothing was simulated: no {what}");
    }
}
