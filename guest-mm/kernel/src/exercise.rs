//! Serves `Call::Stress`: a program's rounds of work on the memory manager itself, step by step on the CPU that the
//! program runs on, with others' turns in between.

use crate::kernel::Kernel;
use crate::log::log;
use crate::machine::cpu::this_cpu;
use crate::machine::high_memory::AllFrames;
use crate::process::Program;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use guest_kernel::stress::{self, Bench, Checks, Row, Step};
use guest_programs::abi::{Error, StressOutcome, StressRow};
use guest_sync::SpinLock;

/// A row as a program has it.
type Work = Box<dyn Row<AllFrames>>;

/// Between two steps: interrupts come in only while a program runs or the CPU has nothing to do.
const PAUSE_NS: u64 = 1000;

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
    let known = program.exercises.take(row);
    let mut work = known.or_else(|| new(kernel, program, row)).ok_or(Error::NoCall)?;
    let mut checks = Checks::default();
    let exhausts = work.exhausts();
    while exhausts && EXHAUSTING.swap(true, Ordering::Acquire) {
        kernel.timers().sleep(PAUSE_NS).await;
    }
    work.begin(seed);
    while on_bench(kernel, |bench| work.step(bench, &mut checks)) == Step::More {
        kernel.timers().sleep(PAUSE_NS).await;
    }
    if exhausts {
        EXHAUSTING.store(false, Ordering::Release);
    }
    program.exercises.put(row, work);
    describe(program, row, &checks);
    kernel.memory_came.raise();
    Ok(StressOutcome {
        ok: checks.ok,
        failed: checks.failed,
    })
}

/// Gives back what the program's rows hold; checks that fail count as the program's.
pub(crate) async fn end(kernel: &'static Kernel, program: &Program) {
    for row in StressRow::ALL {
        let Some(mut work) = program.exercises.take(row) else {
            continue;
        };
        let mut checks = Checks::default();
        while on_bench(kernel, |bench| work.end(bench, &mut checks)) == Step::More {
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
        _ => return None,
    })
}

/// One step, on this CPU.
fn on_bench(kernel: &'static Kernel, step: impl FnOnce(&Bench<'_, AllFrames>) -> Step) -> Step {
    step(&Bench {
        phys: kernel.phys,
        frames: &AllFrames(kernel.high),
        cpu: this_cpu(),
    })
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
