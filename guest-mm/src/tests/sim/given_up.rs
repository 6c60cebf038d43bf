//! A block that is emptied under programs, or all of them together, and what goes wrong meanwhile, at each place where it can, one after the other:
//! it is given up where it waits, a request for memory fails, the disks fail. The machine and all that happens on it before are the same each time.
//! Afterwards nobody may have anything locked or out of use, the block goes like any other, and programs and files have all that they had.
//!
//! What came before a mishap is the same as without it, and everything that must hold is looked at after each turn from there on.
//!
//! `SIM_SWEEPS=N` takes the machines of seeds 1 to N instead of the few that are taken otherwise, and all places instead of a part of those
//! at which memory is asked for, the disks fail, or it is given up while programs run:
//!
//! ```sh
//! SIM_SWEEPS=20 cargo test --release -p guest-mm --lib given_up -- --nocapture
//! ```

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::pin::pin;
use std::eprintln;
use std::rc::Rc;
use std::vec::Vec;

use super::executor::{Executor, GivenUp, give_up_after};
use super::machine::{boot, on_machine};
use super::parking::park;
use super::together::Together;
use super::turns::{give_all_back, play, step};
use super::{BLOCKS, Sim, in_parallel, number};
use crate::migrate::Method;
use crate::tests::inject::Then;
use crate::tests::phys_model::plug;
use crate::{BlockIndex, Gfp, NodeId, Order, Pfn, ZoneKind};

/// Turns before the block is emptied, and after.
const BEFORE: u32 = 500;
const AFTER: u32 = 60;
/// Frames outside of blocks that are left meanwhile.
const LEFT: u64 = 256;
/// Machines that every test run takes.
const SEEDS: [u64; 1] = [5];
/// Which of the requests for memory fail otherwise.
const EVERY: u32 = 73;
/// At which of the waits the disks fail otherwise, and at which it is given up while programs run.
const DISKS_EVERY: usize = 4;
const RUNNING_EVERY: usize = 2;

/// A machine, and what is to leave it: a seed, which blocks, and how.
type Machine = (u64, Blocks, Method);

/// Which blocks are emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Blocks {
    /// The one with most of the kernel's own; of programs and files there is enough on each.
    One,
    All,
}

/// What programs do while a block is emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Programs {
    /// Nothing.
    Stand,
    /// What they always do: some wait for what is under way when the block is given up.
    Run,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Mishap {
    Nothing,
    /// It is given up where it waits for the so many-th time, while programs run or not.
    GivenUp(Programs, u64, GivenUp),
    /// The request for memory after so many fails, and perhaps all after it.
    NoFrame(u32, Then),
    /// When it has waited so often, no block of the disks can be read or written any more for some time.
    Disks(u64),
}

/// What came of it.
struct Outcome {
    /// The blocks that went; `None` if it was given up.
    emptied: Option<Vec<BlockIndex>>,
    /// How often it has waited.
    waits: u64,
    /// Pages that were moved, those of areas and those in slabs, and pages that left memory.
    moved: u32,
    of_kernel: [u32; 2],
    evicted: u32,
    /// Batches with pages of several blocks.
    together: u32,
    /// What was to go wrong has.
    came_to_it: bool,
}

/// The work itself, its waits counted; something happens at one of them.
async fn counted<T>(waits: &Cell<u64>, at_wait: impl Fn(u64), work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            waits.set(waits.get() + 1);
            at_wait(waits.get());
        }
        polled
    })
    .await
}

/// The machine's life, with a block that is emptied in the middle of it.
fn live(machine: Machine, mishap: Mishap) -> Outcome {
    let (seed, which, method) = machine;
    let (outcome, _) = on_machine(seed, |sim, begun| {
        sim.is_validated.set(false);
        let mut executor = boot(sim);
        sim.fill_kernel_memory();
        let crowd = crowd(sim);
        for _ in 0..BEFORE {
            step(sim, &mut executor);
        }
        park(sim, &mut executor);
        for pfn in crowd {
            sim.mm.phys.free_pages(sim.cpu, pfn).unwrap();
        }
        sim.mm.validate_at_rest().unwrap();
        let blocks = match which {
            Blocks::One => Vec::from([block_of_all_kinds(sim)]),
            Blocks::All => (0..BLOCKS).map(BlockIndex).collect(),
        };
        let outcome = empty(sim, &mut executor, (&blocks, method), mishap);
        sim.is_failing.set(true);
        sim.mend();
        park(sim, &mut executor);
        if let Err(error) = sim.mm.validate_at_rest() {
            panic!("{machine:?}, {mishap:?}: {error}");
        }
        come_back(sim, outcome.emptied.as_deref().unwrap_or_default());
        // They go like any others.
        sim.is_validated.set(false);
        let mut again = empty(sim, &mut executor, (&blocks, method), Mishap::Nothing);
        let emptied = again.emptied.as_mut().expect("nobody gives it up");
        emptied.sort_unstable();
        assert_eq!(*emptied, blocks, "{machine:?} after {mishap:?}");
        park(sim, &mut executor);
        sim.mm.validate_at_rest().unwrap();
        come_back(sim, &blocks);
        sim.parking.go_on();
        play(sim, &mut executor, AFTER);
        give_all_back(sim, &mut executor, begun);
        outcome
    });
    outcome
}

/// Takes what is free of the memory that was there from the beginning, but for a little: programs use the blocks.
fn crowd(sim: &Sim<'_>) -> Vec<Pfn> {
    let normal = sim.mm.phys.zone(NodeId::ZERO, ZoneKind::Normal);
    let free = || normal.counters().free_pages;
    let more = || {
        (free() > LEFT).then(|| {
            sim.mm
                .phys
                .alloc_pages(sim.cpu, Gfp::KERNEL, Order::ZERO)
                .unwrap()
        })
    };
    core::iter::from_fn(more).collect()
}

/// The device takes blocks, and gives them back.
fn come_back(sim: &Sim<'_>, blocks: &[BlockIndex]) {
    blocks.iter().for_each(|&block| sim.take_away(block));
    for &block in blocks {
        plug(sim.mm.phys, block, ZoneKind::Movable);
    }
}

/// The block of [`Blocks::One`].
fn block_of_all_kinds(sim: &Sim<'_>) -> BlockIndex {
    let region = sim.mm.phys.hotplug_region();
    let is_kernels = |pfn: &Pfn| {
        let page = sim.mm.phys.page(*pfn);
        page.is_some_and(|page| page.kernel_use().is_some())
    };
    let nr_kernels = |block: &BlockIndex| {
        let range = region.block_range(*block).unwrap();
        range.iter().filter(is_kernels).count()
    };
    let blocks = (0..BLOCKS).map(BlockIndex);
    blocks.max_by_key(nr_kernels).expect("there are some")
}

/// Has everything leave blocks.
fn empty<'a>(
    sim: &'a Sim<'_>,
    executor: &mut Executor<'a>,
    (blocks, method): (&[BlockIndex], Method),
    mishap: Mishap,
) -> Outcome {
    let seen = [
        &sim.seen.moved_pages,
        &sim.seen.area_pages_moved,
        &sim.seen.slab_pages_moved,
        &sim.seen.evicted_pages,
        &sim.seen.together,
    ];
    let before = seen.map(Cell::get);
    let isolate = |&block: &BlockIndex| sim.mm.phys.isolate(block).unwrap();
    let isolated = blocks.iter().map(isolate).collect();
    let (waits, emptied) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(None)));
    let (counter, result) = (waits.clone(), emptied.clone());
    let at = match mishap {
        Mishap::GivenUp(_, waits, when) => (waits, when),
        Mishap::Nothing | Mishap::NoFrame(..) | Mishap::Disks(_) => (u64::MAX, GivenUp::AtOnce),
    };
    executor.spawn(async move {
        let at_wait = |wait| match mishap {
            Mishap::Disks(at) if at == wait => {
                sim.break_disks();
                sim.is_validated.set(true);
            }
            Mishap::GivenUp(_, at, _) if at == wait => sim.is_validated.set(true),
            _ => {}
        };
        let work = Together::new(sim, isolated).empty(method);
        let work = counted(&counter, at_wait, work);
        let done = give_up_after(at, work).await;
        result.replace(Some(done));
    });
    sim.is_failing.set(false);
    match mishap {
        Mishap::GivenUp(Programs::Run, ..) => {
            sim.is_failing.set(true);
            sim.parking.go_on();
        }
        Mishap::NoFrame(pass, then) => {
            sim.is_validated.set(true);
            sim.mm.phys.injected.lock().fail_after(pass, then);
        }
        Mishap::Nothing | Mishap::Disks(_) | Mishap::GivenUp(Programs::Stand, ..) => {}
    }
    while emptied.borrow().is_none() {
        step(sim, executor);
    }
    let has_failed = !sim.mm.phys.injected.lock().clear();
    let emptied = emptied.take().flatten();
    let [moved, of_areas, of_slabs, evicted, together] =
        [0, 1, 2, 3, 4].map(|at: usize| seen[at].get() - before[at]);
    Outcome {
        waits: waits.get(),
        moved,
        of_kernel: [of_areas, of_slabs],
        evicted,
        together,
        came_to_it: match mishap {
            Mishap::Nothing => true,
            Mishap::GivenUp(..) => emptied.is_none(),
            Mishap::NoFrame(..) => has_failed,
            Mishap::Disks(at) => waits.get() >= at,
        },
        emptied,
    }
}

/// Machines that are swept, and which of the requests for memory fail on them.
fn sweep(which: Blocks) -> (Vec<Machine>, u32) {
    let (seeds, every) = match number("SIM_SWEEPS") {
        // Those without a swap area have no room for what is on a block.
        Some(nr) => ((1..=nr).filter(|seed| seed % 4 > 0).collect(), 1),
        None => (Vec::from(SEEDS), EVERY),
    };
    let with_methods = |seed| Method::ALL.map(|method| (seed, which, method));
    (seeds.into_iter().flat_map(with_methods).collect(), every)
}

/// Has the same go wrong at one place after the other, until the work ends before it comes to that. How often it did.
fn at_each_place(machine: Machine, places: impl Iterator<Item = u32>, mishap: impl Fn(u32) -> Mishap) -> u32 {
    let mut nr = 0;
    for place in places {
        let outcome = live(machine, mishap(place));
        if !outcome.came_to_it {
            break;
        }
        nr += 1;
    }
    nr
}

/// Gives up wherever somebody waits.
fn give_up_everywhere(which: Blocks) {
    let (machines, every) = sweep(which);
    in_parallel(&machines, |&machine| {
        let whens: &[GivenUp] = match every {
            1 => &[GivenUp::AtOnce, GivenUp::Later],
            _ => &[GivenUp::Later],
        };
        for (&when, programs) in whens
            .iter()
            .flat_map(|when| [(when, Programs::Stand), (when, Programs::Run)])
        {
            let given_up = |wait| Mishap::GivenUp(programs, u64::from(wait), when);
            let step = match programs {
                Programs::Run if every > 1 => RUNNING_EVERY,
                Programs::Run | Programs::Stand => 1,
            };
            let places = at_each_place(machine, (1..).step_by(step), given_up);
            eprintln!("{machine:?}: given up {when:?} at {places} places, programs {programs:?}");
            // What programs have pinned ends it early.
            let least = if programs == Programs::Stand { 10 } else { 1 };
            assert!(places >= least, "{machine:?} waits only {places} times");
        }
    });
}

#[test]
fn a_block_given_up_wherever_somebody_waits_is_in_use_with_all_that_was_on_it() {
    give_up_everywhere(Blocks::One);
}

#[test]
fn blocks_looked_at_together_and_given_up_wherever_somebody_waits_are_in_use_with_all_that_was_on_them() {
    let (machines, _) = sweep(Blocks::All);
    let whole = in_parallel(&machines, |&machine| live(machine, Mishap::Nothing).together);
    assert!(whole.iter().any(|&batches| batches > 0), "{whole:?}");
    give_up_everywhere(Blocks::All);
}

#[test]
fn a_block_that_is_emptied_while_no_frame_is_to_be_had_loses_nothing() {
    let (machines, every) = sweep(Blocks::One);
    in_parallel(&machines, |&machine| {
        for then in [Then::Serve, Then::Refuse] {
            let every = usize::try_from(every).unwrap();
            let places = at_each_place(machine, (0..).step_by(every), |pass| Mishap::NoFrame(pass, then));
            eprintln!("{machine:?}: no frame at {places} places, {then:?}");
            assert!(places > 0, "{machine:?} asks for no memory");
        }
    });
}

#[test]
fn a_block_that_is_emptied_while_the_disks_fail_loses_nothing() {
    let (machines, every) = sweep(Blocks::One);
    let step = if every == 1 { 1 } else { DISKS_EVERY };
    let of_kernel = in_parallel(&machines, |&machine| {
        let whole = live(machine, Mishap::Nothing);
        assert!(
            whole.moved > 0 || machine.2 == Method::Swapout,
            "{machine:?} moves nothing"
        );
        assert_eq!(
            whole.evicted > 0,
            machine.2 != Method::Remap,
            "{machine:?} evicts {} pages",
            whole.evicted
        );
        let places = at_each_place(machine, (1..).step_by(step), |wait| {
            Mishap::Disks(u64::from(wait))
        });
        eprintln!("{machine:?}: no disk from {places} places on, of {}", whole.waits);
        assert!(places > 0, "{machine:?} waits for nothing");
        whole.of_kernel
    });
    for (at, what) in ["areas", "slabs"].iter().enumerate() {
        let nr_pages: u32 = of_kernel.iter().map(|pages| pages[at]).sum();
        eprintln!("{nr_pages} pages of {what} moved");
        assert!(nr_pages > 0, "no pages of {what} are moved");
    }
}
