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
mod failing;
mod files;
mod given_up;
mod kernel_memory;
mod leaving;
mod locked;
mod machine;
mod maps;
mod memory;
mod model;
mod mover;
mod names;
mod node_moves;
mod pagefs;
mod parking;
mod program;
mod random;
mod registered;
mod reserved;
mod seen;
mod together;
mod turns;
mod words;

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::num::NonZeroUsize;
use core::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::vec::Vec;
use std::{env, eprintln, thread};

use guest_sync::Cpu;

use crate::SpaceId;
use crate::disk::SimulatedDisk;
use crate::mm::PageIo;
use crate::reclaim::Reclaim;
use crate::tests::inject::Then;
use crate::tests::machine::TestMm;
use backing::Fs;
use files::{LostPages, SimFile};
use kernel_memory::KernelMemory;
use machine::{boot, on_machine};
use memory::{Clock, Process};
use names::Names;
use parking::Parking;
use program::Program;
use random::Random;
use seen::{Seen, count};
use turns::{give_all_back, play};
use words::Words;

/// Frames of a block, and how many blocks.
const BLOCK: u32 = 512;
const BLOCKS: u32 = 2;
/// Programs at a time.
const MOST_PROGRAMS: usize = 6;
/// Seeds that every test run takes.
const SEEDS: u64 = 40;
/// And one whose machine has so little memory that a program is ended for it.
const SHORT_OF_MEMORY: u64 = 285;
/// Turns of tasks for each seed, before everybody is told to end.
const TURNS: u32 = 1100;

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
    kernel: KernelMemory<'m>,
    /// Address spaces of programs that are just being forked and have lost a page.
    unborn_losers: RefCell<Vec<SpaceId>>,
    reclaim: &'m Reclaim<'m>,
    parking: Parking,
    /// Requests for memory fail now and then.
    is_failing: Cell<bool>,
    /// Everything that must hold is looked at after each turn.
    is_validated: Cell<bool>,
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
        if !self.one_in(6) || !self.is_failing.get() {
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

/// A machine from its beginning to its end.
fn run(seed: u64) -> Seen {
    let (_, seen) = on_machine(seed, |sim, mut begun| {
        let mut executor = boot(sim);
        executor.spawn(mover::live(sim));
        executor.spawn(compactor::live(sim));
        executor.spawn(reserved::live(sim));
        executor.spawn(node_moves::live(sim));
        executor.spawn(failing::live(sim));
        play(sim, &mut executor, TURNS);
        if begun.kind.below(3) == 0 {
            sim.lose_power();
        } else {
            give_all_back(sim, &mut executor, begun);
        }
    });
    seen
}

/// Does something for each, on all CPUs.
fn in_parallel<J: Sync, T: Send>(jobs: &[J], work: impl Fn(&J) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let work = || {
        let jobs = core::iter::from_fn(|| jobs.get(next.fetch_add(1, Ordering::Relaxed)));
        jobs.map(&work).collect::<Vec<T>>()
    };
    let nr_threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..nr_threads).map(|_| scope.spawn(work)).collect();
        let results = threads.into_iter().map(thread::ScopedJoinHandle::join);
        results
            .flat_map(|done| done.expect("the seed is named above"))
            .collect()
    })
}

/// A number that whoever runs the tests has set.
fn number(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    Some(value.parse().expect("a number"))
}

#[test]
fn sim_programs_keep_what_they_wrote_whatever_happens_around_them() {
    if let Some(seed) = number("SIM_SEED") {
        eprintln!("seed {seed}: {:?}", run(seed));
        return;
    }
    let nr = number("SIM_SEEDS").unwrap_or(SEEDS);
    let one_more = (nr <= SHORT_OF_MEMORY).then_some(SHORT_OF_MEMORY);
    let seeds: Vec<u64> = (0..nr).chain(one_more).collect();
    let all = in_parallel(&seeds, |&seed| {
        if seed > 0 && seed.is_multiple_of(100) {
            eprintln!("seed {seed} of {nr}");
        }
        run(seed)
    });
    let summary = seen::summary(&all);
    for (what, times) in &summary {
        eprintln!("{what}: {times}");
    }
    for (what, times) in summary {
        assert!(times > 0, "nothing was simulated: no {what}");
    }
}
