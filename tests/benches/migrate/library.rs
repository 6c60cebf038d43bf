//! The library by itself, over plain memory and disks of memory.

use guest_mm::migrate::Eviction;
use guest_mm::{Access, Backing, BlockIndex, HugeAdvice, Prot, SpaceId};

use crate::clock::{Sample, Stopwatch};
use crate::machine::{Machine, PAGE};
use crate::measure::Contestant;
use crate::rows::OURS;

/// Pages of the program, all of them on the one block.
const PAGES: u64 = 4096;
/// Pages looked at with one flush.
const BATCH: u32 = 512;

/// The pages of a block leave for a swap area of memory. One operation is one page; their coming back does not count.
pub(crate) fn swap_out() -> Contestant {
    let machine = Machine::with_neighbours();
    let space = machine.program();
    let prot = Prot::READ.with(Prot::WRITE);
    let va = machine.map(space, PAGES, prot, Backing::Anonymous(HugeAdvice::NoHuge));
    Contestant {
        name: OURS.into(),
        sample: Box::new(move |repeats| {
            let mut all = Sample::default();
            (0..repeats).for_each(|_| all += leave_once(&machine, space, va));
            all
        }),
    }
}

fn leave_once(machine: &Machine, space: SpaceId, va: u64) -> Sample {
    // Written to, so that they have to be written.
    (0..PAGES).for_each(|page| machine.touch(space, va + page * PAGE, Access::Write));
    let mut block = machine
        .mm
        .phys
        .isolate(BlockIndex(0))
        .expect("online, and nothing pinned");
    let before = machine.mm.phys.used_pages(&block);
    let watch = Stopwatch::start();
    while !machine
        .mm
        .evict_batch(&machine.cpu, &mut block, Eviction::All, BATCH)
        .is_pass_done
    {
        machine.serve();
    }
    machine.serve();
    let left = before - machine.mm.phys.used_pages(&block);
    let sample = watch.stop(u64::from(left));
    machine.mm.phys.undo(block);
    assert!(u64::from(left) >= PAGES, "{left} of {PAGES} pages have left");
    sample
}
