//! Machines of all kinds, one for each seed: with one node or two, little memory or less, with swap areas or without, and either of the file
//! systems.

use core::cell::{Cell, RefCell};
use std::boxed::Box;
use std::sync::Arc;
use std::vec::Vec;

use super::backing::Fs;
use super::disk;
use super::executor::Executor;
use super::files::{LostPages, SimFile};
use super::kernel_memory::KernelMemory;
use super::memory::{Clock, kswapd};
use super::names::Names;
use super::pagefs::{self, PageFs};
use super::parking::Parking;
use super::random::Random;
use super::seen::Seen;
use super::words::Words;
use super::{BLOCK, BLOCKS, NamesSeed, Sim};
use crate::disk::SimulatedDisk;
use crate::fs::mounted::MountFlags;
use crate::gfp::Gfp;
use crate::mm::mapping::DirtyRatios;
use crate::pfn::{Order, Pfn};
use crate::reclaim::{Reclaim, Scheme};
use crate::tests::machine::machine_of;
use crate::tests::phys_model::{descriptors, one_cpu, small_memory_of};
use crate::tests::test_fs::TestFs;
use crate::{NodeId, Topology};

/// Frames that the kernel has at most, of 2048.
const MOST_TAKEN: usize = 1300;
/// Frames that it has where there is no swap area: programs want more than is left.
const TAKEN_WITHOUT_SWAP: usize = 1750;
/// A frame that is reserved on the test machine.
const ZERO_PAGE: Pfn = Pfn::new(300);

/// A machine at its beginning.
pub(super) struct Begun {
    /// Frames that are free then, all in all.
    pub(super) all_free: u64,
    /// Frames that the kernel has.
    pub(super) taken: Vec<Pfn>,
    /// What else of the machine the seed decides.
    pub(super) kind: Random,
}

/// Frames that the kernel has: more on some machines than on others.
fn nr_taken(seed: u64) -> usize {
    match seed % 4 {
        0 => TAKEN_WITHOUT_SWAP,
        _ => usize::try_from(seed / 4 % 3).unwrap() * MOST_TAKEN / 2,
    }
}

/// The blocks of half of the machines are near to a node of their own.
fn shape(kind: &mut Random) -> (Topology, NodeId) {
    let blocks = u8::try_from(kind.below(2)).unwrap();
    let topology = Topology::new(1, blocks + 1).unwrap();
    (topology, NodeId::new(blocks).unwrap())
}

fn flags(seed: u64) -> MountFlags {
    match seed % 3 {
        0 => "migrate=default".parse().unwrap(),
        _ => MountFlags::default(),
    }
}

/// Builds the machine of a seed for somebody who does something with it; with what it has done.
pub(super) fn on_machine<R>(seed: u64, live: impl FnOnce(&Sim<'_>, Begun) -> R) -> (R, Seen) {
    let _name = NamesSeed(seed);
    let pages = descriptors(BLOCK * BLOCKS);
    let mut kind = Random::new(!seed);
    let memory = small_memory_of(shape(&mut kind), &pages, BLOCK, BLOCKS);
    let all_free = memory.memory_stats().free_pages + u64::from(BLOCK * BLOCKS);
    let (mut mm, cpu) = (machine_of(&memory), one_cpu());
    let frames = (0..nr_taken(seed)).map(|_| memory.alloc_pages(&cpu, Gfp::KERNEL, Order::ZERO).unwrap());
    let taken = frames.collect();
    // Half of the machines have a zero page.
    if kind.below(2) == 0 {
        mm.set_zero_page(ZERO_PAGE);
    }
    let mm = mm;
    // And on some little may be dirty.
    if kind.below(5) < 2 {
        mm.set_dirty_ratios(DirtyRatios {
            background: 1,
            limit: 2,
        });
    }
    let scheme = [Scheme::Launder, Scheme::TwoList][usize::try_from(kind.below(2)).unwrap()];
    let reclaim = Reclaim::new(&memory, &[]).with_pages(&mm, scheme);
    let (disk, lost) = (pagefs::new_disk(), Arc::new(LostPages::default()));
    let fs = match kind.below(2) {
        0 => Fs::Map(Box::new(TestFs::new(&mm, &cpu, 1 << 20))),
        // And one of three such file systems has no method of its own for pages that move.
        _ => Fs::Page(Box::new(PageFs::mount(&mm, &cpu, &disk, flags(seed)))),
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
        kernel: KernelMemory::new(&mm, &cpu),
        unborn_losers: RefCell::default(),
        reclaim: &reclaim,
        parking: Parking::default(),
        is_failing: Cell::new(true),
        is_validated: Cell::new(true),
        is_ending: Cell::new(false),
        disk: SimulatedDisk::new(disk::BLOCKS.iter().copied().map(u64::from).sum(), 16),
        swap_failed: Cell::new(false),
        seen: Seen::default(),
    };
    // One machine in four has no swap area.
    if !seed.is_multiple_of(4) {
        sim.swap_on();
    }
    let begun = Begun {
        all_free,
        taken,
        kind,
    };
    let outcome = live(&sim, begun);
    sim.seen.reclaim.set(reclaim.stat());
    sim.seen.stats.replace(mm.phys.stats());
    (outcome, sim.seen)
}

/// The daemons of a machine.
pub(super) fn boot<'a>(sim: &'a Sim<'_>) -> Executor<'a> {
    let mut executor = Executor::default();
    for node in sim.mm.phys.topology().nodes() {
        executor.spawn_daemon(kswapd(sim, node));
    }
    if let Fs::Page(fs) = &sim.fs {
        fs.spawn(&mut executor, sim);
    }
    executor
}
