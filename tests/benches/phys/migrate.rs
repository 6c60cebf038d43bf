//! Remap migration off an isolated block, over real memory, against the copying alone.

use guest_mm::migrate::BatchEnd;
use guest_mm::{Backing, Frames, HugeAdvice, MapRequest, Mm, Order, Pfn, Place, Prot, VaRange};
use guest_sync::{Cpu, CpuId, CpuSet};

use crate::clock::{Sample, Stopwatch};
use crate::flat::{Flat, NoMmu, memory};
use crate::measure::Contestant;
use crate::random::Random;
use crate::rows::OURS;

const PAGE: usize = 4096;
/// Frames of boot memory: for page tables.
const BOOT: u32 = 1 << 13;
/// Frames of a block: 64 MiB.
const BLOCK: u32 = 1 << 14;
const NR_BLOCKS: u32 = 3;
/// Pages of the program: three quarters of a block.
const PROGRAM: u32 = BLOCK / 4 * 3;
/// Pages moved with one flush.
const BATCH: u32 = 512;

/// The peer: the copying alone.
pub(crate) const MEMCPY: &str = "memcpy of random pages";

/// A machine with a program whose pages move from block to block.
struct Machine {
    mm: Mm<'static, Flat, NoMmu>,
    cpu: Cpu,
}

impl Machine {
    fn new(advice: HugeAdvice) -> Self {
        let nr_frames = BOOT + NR_BLOCKS * BLOCK;
        let memory = memory(BOOT, BLOCK, NR_BLOCKS);
        let cpu = CpuSet::new(1)
            .and_then(|cpus| cpus.claim(CpuId::ZERO))
            .expect("the only CPU");
        let mm = Mm::new(memory, Flat::new(nr_frames), NoMmu::default());
        let program = mm.create_space(&cpu, &[]).expect("there is memory for a table");
        let area = MapRequest {
            len: u64::from(PROGRAM) * PAGE as u64,
            place: Place::Anywhere,
            prot: Prot::READ.with(Prot::WRITE),
            backing: Backing::Anonymous(advice),
        };
        let va = mm.mmap(program, &area).expect("an empty space");
        let range = VaRange::new(va, area.len).expect("user memory");
        mm.populate(&cpu, program, range)
            .expect("there is memory for all of it");
        Self { mm, cpu }
    }

    /// Empties the block with most pages on it; the pages that moved.
    fn move_once(&mut self) -> u64 {
        let fullest = self.mm.phys.rank_blocks().last().expect("three blocks").block;
        let mut block = self.mm.phys.isolate(fullest).expect("online, and nothing pinned");
        while self.mm.migrate_batch(&self.cpu, &mut block, BATCH).end == BatchEnd::Budget {}
        let moved = block.moved_pages();
        assert!(moved > 0, "the program's pages are somewhere");
        self.mm.phys.undo(block);
        u64::from(moved)
    }
}

/// Pages of that size move from block to block. One operation is one page moved.
pub(crate) fn ours(advice: HugeAdvice) -> Contestant {
    let mut machine = Machine::new(advice);
    let order = order_of(advice);
    Contestant {
        name: OURS.into(),
        sample: Box::new(move |repeats| {
            let watch = Stopwatch::start();
            let moved: u64 = (0..repeats).map(|_| machine.move_once()).sum();
            watch.stop(moved >> order.number())
        }),
    }
}

/// Flushes for each page of that size that moves.
#[allow(dead_code, reason = "each bench uses its part")]
pub(crate) fn flushes(advice: HugeAdvice) -> f64 {
    let mut machine = Machine::new(advice);
    let before = machine.mm.mmu.flushes();
    let moved = machine.move_once() >> order_of(advice).number();
    (machine.mm.mmu.flushes() - before) as f64 / moved as f64
}

/// Copies as many pages of that size as the program has, in random order, to another random place each.
pub(crate) fn memcpy(advice: HugeAdvice) -> Contestant {
    let order = order_of(advice);
    let frames = Flat::new(2 * BLOCK);
    let nr_pages = BLOCK >> order.number();
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    let mut places = |base: u32| {
        let mut places: Vec<u32> = (0..nr_pages)
            .map(|page| base + (page << order.number()))
            .collect();
        for place in (1..places.len()).rev() {
            places.swap(place, random.below(place + 1));
        }
        places
    };
    let pairs: Vec<(u32, u32)> = places(0).into_iter().zip(places(BLOCK)).collect();
    Contestant {
        name: MEMCPY.into(),
        sample: Box::new(move |repeats| copy_all(&frames, &pairs, order, repeats)),
    }
}

fn copy_all(frames: &Flat, pairs: &[(u32, u32)], order: Order, repeats: u64) -> Sample {
    let watch = Stopwatch::start();
    for repeat in 0..repeats {
        for &(one, other) in pairs {
            let (from, to) = if repeat % 2 == 0 {
                (one, other)
            } else {
                (other, one)
            };
            frames.copy(Pfn::new(from), Pfn::new(to), order);
        }
    }
    watch.stop(repeats * pairs.len() as u64)
}

fn order_of(advice: HugeAdvice) -> Order {
    match advice {
        HugeAdvice::Huge => Order::PAGEBLOCK,
        HugeAdvice::NoHuge => Order::ZERO,
    }
}
