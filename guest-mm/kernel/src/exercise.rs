//! Serves `Call::Stress`: a program's rounds of work on the memory manager itself, step by step on the CPU that the
//! program runs on, with others' turns in between.

use crate::kernel::Kernel;
use crate::log::log;
use crate::machine::cpu::this_cpu;
use crate::machine::high_memory::AllFrames;
use crate::machine::quiet;
use crate::process::Program;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use guest_kernel::stress::{self, Bench, Checks, Row, Step};
use guest_kernel::sync::{Winner, race};
use guest_mm::Order;
use guest_mm::reclaim::Shrinker;
use guest_programs::abi::{Error, StressOutcome, StressRow};
use guest_sync::{Cpu, SpinLock};

/// A row as a program has it.
type Work = Box<dyn Row<AllFrames>>;

/// Between two steps: interrupts come in only while a program runs or the CPU has nothing to do, and it has to be long
/// enough for the CPU to get there.
const PAUSE_NS: u64 = 50_000;

/// How long a request sleeps before reclaim can find something for it.
const FEED_NS: u64 = 1_000_000;

/// How long what was reclaimed may take to be counted.
const COUNTED_NS: u64 = 1_000_000_000;

/// Whether a round is under way that takes a zone's or a node's last frames.
static EXHAUSTING: AtomicBool = AtomicBool::new(false);

/// The rows that a program has worked on, with what they hold.
#[derive(Default)]
pub(crate) struct Exercises {
    rows: SpinLock<Vec<(StressRow, Work)>>,
}

impl Exercises {
    fn take(&self, row: StressRow) -> Option<Work> {
        let mut rows = self.rows.lock();
        let index = rows.iter().position(|(of, _)| *of == row)?;
        Some(rows.swap_remove(index).1)
    }

    fn put(&self, row: StressRow, work: Work) {
        self.rows.lock().push((row, work));
    }
}

/// Does a part of a round while nobody checks the memory manager, which must not change meanwhile.
fn undisturbed<R>(part: impl FnOnce() -> R) -> R {
    let _visit = quiet::visit(this_cpu());
    part()
}

/// Carries out one round.
///
/// # Errors
/// [`Error::NoCall`] for a row that is not in this guest.
pub(crate) async fn round(
    kernel: &'static Kernel,
    program: &Program,
    row: StressRow,
    seed: u64,
) -> Result<StressOutcome, Error> {
    if row == StressRow::Wait {
        return Ok(wait(kernel, program, seed).await);
    }
    let known = program.exercises.take(row);
    let mut work = known.or_else(|| new(kernel, program, row)).ok_or(Error::NoCall)?;
    let mut checks = Checks::default();
    let alone = match work.exhausts() {
        true => Some(Alone::become_it(kernel).await),
        false => None,
    };
    work.begin(seed);
    while undisturbed(|| work.step(&bench(kernel), &mut checks)) == Step::More {
        kernel.timers().sleep(PAUSE_NS).await;
    }
    drop(alone);
    program.exercises.put(row, work);
    Ok(outcome(kernel, program, row, &checks))
}

fn outcome(kernel: &Kernel, program: &Program, row: StressRow, checks: &Checks) -> StressOutcome {
    describe(program, row, checks);
    kernel.memory_came.raise();
    StressOutcome {
        ok: checks.ok,
        failed: checks.failed,
    }
}

/// The one round that takes a zone's or a node's last frames, as long as this value is there.
struct Alone;

impl Alone {
    async fn become_it(kernel: &'static Kernel) -> Self {
        while EXHAUSTING.swap(true, Ordering::Acquire) {
            kernel.timers().sleep(PAUSE_NS).await;
        }
        Self
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        EXHAUSTING.store(false, Ordering::Release);
    }
}

/// A round of [`StressRow::Wait`]: the program itself sleeps until the node's daemon has got memory for it.
async fn wait(kernel: &'static Kernel, program: &Program, seed: u64) -> StressOutcome {
    let alone = Alone::become_it(kernel).await;
    let mut checks = Checks::default();
    let mut work = stress::Wait::new(kernel.pantry, seed);
    empty_zone(kernel, &mut work, &mut checks).await;
    work.stock_pantry();
    undisturbed(|| {
        work.served_at_once(&bench(kernel), &kernel.reclaim, &mut checks);
        kernel.pantry.shrink(this_cpu(), u64::MAX);
    });
    empty_zone(kernel, &mut work, &mut checks).await;
    undisturbed(|| work.has_to_wait(&bench(kernel), &kernel.reclaim, &mut checks));
    empty_zone(kernel, &mut work, &mut checks).await;

    let reclaimed = || {
        let stat = kernel.reclaim.stat();
        stat.pgsteal_kswapd + stat.pgsteal_direct
    };
    let before = AtomicU64::new(u64::MAX);
    let request = kernel
        .reclaim
        .alloc_pages(this_cpu as fn() -> &'static Cpu, stress::WAITING, Order::ZERO);
    let feed = async {
        kernel.timers().sleep(FEED_NS).await;
        before.store(reclaimed(), Ordering::Relaxed);
        work.stock_pantry();
        core::future::pending::<Infallible>().await
    };
    let Winner::First(served) = program.wait_for(race(request, feed)).await;
    let before = before.load(Ordering::Relaxed);
    checks.that(before != u64::MAX, || {
        "the request was served before there was anything to reclaim".into()
    });
    // Who reclaims counts when it has freed, and may be on another CPU.
    let deadline = kernel.clock.now() + COUNTED_NS;
    while reclaimed() <= before && kernel.clock.now() < deadline {
        kernel.timers().sleep(PAUSE_NS).await;
    }
    checks.that(reclaimed() > before, || {
        "the request was not served by reclaim".into()
    });
    match served {
        Ok(pfn) => undisturbed(|| stress::Wait::give_served(&bench(kernel), pfn, &mut checks)),
        Err(error) => {
            checks.that(false, || alloc::format!("{error}"));
        }
    }
    while undisturbed(|| work.end(&bench(kernel), &mut checks)) == Step::More {
        kernel.timers().sleep(PAUSE_NS).await;
    }
    drop(alone);
    outcome(kernel, program, StressRow::Wait, &checks)
}

async fn empty_zone(kernel: &'static Kernel, work: &mut stress::Wait<'_>, checks: &mut Checks) {
    while undisturbed(|| work.empty_zone(&bench(kernel), checks)) == Step::More {
        kernel.timers().sleep(PAUSE_NS).await;
    }
}

/// Gives back what the program's rows hold; checks that fail count as the program's.
pub(crate) async fn end(kernel: &'static Kernel, program: &Program) {
    for row in StressRow::ALL {
        let Some(mut work) = program.exercises.take(row) else {
            continue;
        };
        let mut checks = Checks::default();
        while undisturbed(|| work.end(&bench(kernel), &mut checks)) == Step::More {
            kernel.timers().sleep(PAUSE_NS).await;
        }
        describe(program, row, &checks);
        program.checks_ok.fetch_add(checks.ok, Ordering::Relaxed);
        program.checks_failed.fetch_add(checks.failed, Ordering::Relaxed);
    }
}

fn new(kernel: &'static Kernel, program: &Program, row: StressRow) -> Option<Work> {
    Some(match row {
        StressRow::Buddy => Box::new(stress::Buddy::default()),
        StressRow::Pcp => Box::new(stress::Pcp::default()),
        StressRow::Zones => Box::new(stress::Zones::default()),
        StressRow::Atomic => Box::new(stress::Atomic::default()),
        StressRow::Slab => Box::new(stress::Slab::new(kernel.slabs, program.pid)),
        StressRow::Kmalloc => Box::new(stress::Kmalloc::new(kernel.slabs)),
        StressRow::Mempool => Box::new(stress::Pool::new(kernel.slabs)),
        StressRow::Kmap => Box::new(stress::HighMemory::new(kernel.high)),
        StressRow::Vmalloc => Box::new(stress::Vmalloc::new(kernel.areas)),
        StressRow::Nodes => Box::new(stress::Nodes::default()),
        StressRow::Wait => return None,
    })
}

/// What a step works with, on this CPU: not to be kept across an `await`.
fn bench(kernel: &'static Kernel) -> Bench<'static, AllFrames> {
    Bench {
        phys: kernel.phys,
        frames: &kernel.frames,
        cpu: this_cpu(),
    }
}

fn describe(program: &Program, row: StressRow, checks: &Checks) {
    if let Some(first) = &checks.first {
        log!(
            Error,
            "{}[{}]: row {}: {} of {} checks failed, the first: {first}",
            program.name(),
            program.pid,
            row.name(),
            checks.failed,
            checks.ok + checks.failed
        );
    }
}
