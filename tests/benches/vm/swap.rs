//! Pages that leave for a swap area of memory and come back. One operation is one page.

use guest_mm::{Access, Backing, HugeAdvice, Prot, SpaceId};

use crate::clock::{Sample, Stopwatch};
use crate::machine::{Machine, PAGE};
use crate::measure::Contestant;
use crate::rows::OURS;

const PAGES: u64 = 4096;

/// Which way is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Out,
    In,
}

/// A program's pages all leave, and all come back.
pub(crate) fn ours(way: Way) -> Contestant {
    let machine = Machine::with_neighbours();
    let space = machine.program();
    let prot = Prot::READ.with(Prot::WRITE);
    let va = machine.map(space, PAGES, prot, Backing::Anonymous(HugeAdvice::NoHuge));
    Contestant {
        name: OURS.into(),
        sample: Box::new(move |repeats| {
            let mut all = Sample::default();
            for _ in 0..repeats {
                // Written to, so that they have to be written.
                (0..PAGES).for_each(|page| machine.touch(space, va + page * PAGE, Access::Write));
                let watch = Stopwatch::start();
                swap_out(&machine, space);
                let out = watch.stop(PAGES);
                let watch = Stopwatch::start();
                (0..PAGES).for_each(|page| machine.touch(space, va + page * PAGE, Access::Read));
                let back = watch.stop(PAGES);
                all += if way == Way::Out { out } else { back };
            }
            all
        }),
    }
}

fn swap_out(machine: &Machine, space: SpaceId) {
    let space = machine.mm.space(space).expect("it has not ended");
    while space.rss_pages() > 0 || machine.mm.swap_usage().cached > 0 {
        for zone in machine.mm.phys.populated_zones() {
            machine.mm.shrink_zone(&machine.cpu, zone, 32);
        }
        machine.serve();
    }
}
