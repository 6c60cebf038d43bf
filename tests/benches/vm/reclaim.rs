//! Reclaim at work: a program uses some pages again and again while a file that is larger than memory is read through once.

use guest_mm::mm::mapping::{FileError, ReadAhead};
use guest_mm::{Access, Backing, HugeAdvice, Prot, Watermark, Zone};

use crate::clock::Stopwatch;
use crate::figure::{Effort, Figure};
use crate::machine::{Machine, PAGE};

/// Pages that are in use all the time: 16 MiB.
const HOT: u64 = 4096;
/// Pages of the file: 100 MiB, of the 80 that memory has.
const FILE: u64 = 25_600;

/// What one run came to.
pub(crate) struct Run {
    /// Time for the whole of it, milliseconds.
    pub(crate) ms: Vec<f64>,
    /// Pages looked at for one that was freed.
    pub(crate) scanned: Vec<f64>,
    /// Faults that had to wait for the disk, of the program whose pages are in use.
    pub(crate) refaults: Vec<f64>,
}

/// Runs it a few times, each on a machine of its own.
pub(crate) fn two_list(effort: Effort) -> Run {
    let mut run = Run {
        ms: Vec::new(),
        scanned: Vec::new(),
        refaults: Vec::new(),
    };
    for _ in 0..effort.rounds.min(5) {
        let machine = Machine::new();
        let watch = Stopwatch::start();
        workload(&machine);
        let sample = watch.stop(1);
        let stats = machine.mm.phys.stats();
        run.ms.push(sample.cpu.as_secs_f64() * 1e3);
        run.scanned
            .push(stats.pgscan as f64 / stats.pgsteal.max(1) as f64);
        run.refaults.push(stats.pswpin as f64);
    }
    run
}

fn workload(machine: &Machine) {
    let space = machine.program();
    let prot = Prot::READ.with(Prot::WRITE);
    let va = machine.map(space, HOT, prot, Backing::Anonymous(HugeAdvice::NoHuge));
    let file = machine.file(FILE);
    let mut ahead = ReadAhead::default();
    let to = |_: usize, _: &[u8]| Ok::<(), FileError>(());
    for page in 0..FILE {
        if page % 16 == 0 {
            (0..HOT / 64).for_each(|n| use_page(machine, space, va + (page + n * 64) % HOT * PAGE));
        }
        let range = (page * PAGE, usize::try_from(PAGE).expect("4096"));
        while machine.run(machine.mm.read_file(&machine.cpu, file, &mut ahead, range, to))
            == Err(FileError::OutOfMemory)
        {
            balance(machine);
        }
        balance(machine);
    }
}

/// A load as hardware does it: with the accessed bit.
fn use_page(machine: &Machine, space: guest_mm::SpaceId, va: u64) {
    let root = machine.mm.space(space).expect("it has not ended").root();
    while guest_mm::pagetable::translate(&machine.mm.frames, root, va, Access::Write).is_err() {
        machine.touch(space, va, Access::Write);
    }
}

/// What the daemon does: brings zones that are below `Low` above `High`.
fn balance(machine: &Machine) {
    let is_low = |zone: &&Zone| zone.counters().free_pages < zone.watermark(Watermark::Low);
    for zone in machine.mm.phys.populated_zones().filter(is_low) {
        for _ in 0..64 {
            machine.mm.shrink_zone(&machine.cpu, zone, 32);
            machine.serve();
            if zone.counters().free_pages >= zone.watermark(Watermark::High) {
                break;
            }
        }
    }
}

/// The figures as rows want them.
pub(crate) fn figure(values: &[f64]) -> Figure {
    Figure::of(values.to_vec())
}
