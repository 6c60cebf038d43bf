//! Faults by kind. One operation is one fault.

use guest_mm::mm::{FileArea, Sharing};
use guest_mm::{Access, Backing, HugeAdvice, Pfn, Prot, SpaceId};

use crate::clock::{Sample, Stopwatch};
use crate::machine::{Machine, PAGE};
use crate::measure::Contestant;
use crate::rows::OURS;

/// Faults of a round.
const PAGES: u64 = 2048;
/// Huge ones.
const HUGE_PAGES: u64 = 12;
const RW: Prot = Prot::READ.with(Prot::WRITE);
/// A frame of boot memory that the allocator is never asked for here: it is taken first.
const HUGE: u64 = 512;

/// Rounds of faults; what is around them does not count.
fn contestant(machine: Machine, round: impl Fn(&Machine) -> Sample + 'static) -> Contestant {
    Contestant {
        name: OURS.into(),
        sample: Box::new(move |repeats| {
            let mut all = Sample::default();
            (0..repeats).for_each(|_| all += round(&machine));
            all
        }),
    }
}

fn touch_all(
    machine: &Machine,
    (space, va): (SpaceId, u64),
    (nr, step): (u64, u64),
    access: Access,
) -> Sample {
    let watch = Stopwatch::start();
    for page in 0..nr {
        machine.touch(space, va + page * step, access);
    }
    watch.stop(nr)
}

/// A store to anonymous memory where nothing is yet: a small page, or a huge one.
pub(crate) fn anonymous(advice: HugeAdvice) -> Contestant {
    contestant(Machine::new(), move |machine| {
        let (nr, pages) = match advice {
            HugeAdvice::NoHuge => (PAGES, 1),
            HugeAdvice::Huge => (HUGE_PAGES, HUGE),
        };
        let space = machine.program();
        let va = machine.map(space, nr * pages, RW, Backing::Anonymous(advice));
        let sample = touch_all(machine, (space, va), (nr, pages * PAGE), Access::Write);
        machine.end(space);
        sample
    })
}

/// A load from anonymous memory where nothing is yet.
pub(crate) fn zero_page() -> Contestant {
    let mut machine = Machine::new();
    let page = machine
        .mm
        .phys
        .alloc_pages(&machine.cpu, guest_mm::Gfp::KERNEL, guest_mm::Order::ZERO);
    let page: Pfn = page.expect("all of it is free");
    machine.mm.set_zero_page(page);
    contestant(machine, |machine| {
        let space = machine.program();
        let va = machine.map(space, PAGES, RW, Backing::Anonymous(HugeAdvice::NoHuge));
        let sample = touch_all(machine, (space, va), (PAGES, PAGE), Access::Read);
        machine.end(space);
        sample
    })
}

/// A store to a page that is shared since a fork.
pub(crate) fn copy_on_write() -> Contestant {
    contestant(Machine::new(), |machine| {
        let space = machine.program();
        let va = machine.map(space, PAGES, RW, Backing::Anonymous(HugeAdvice::NoHuge));
        touch_all(machine, (space, va), (PAGES, PAGE), Access::Write);
        let child = machine.mm.fork(&machine.cpu, space).expect("there is memory");
        let sample = touch_all(machine, (child, va), (PAGES, PAGE), Access::Write);
        machine.end(child);
        machine.end(space);
        sample
    })
}

/// A load from a mapped file whose page is in memory.
pub(crate) fn cached_file() -> Contestant {
    let machine = Machine::new();
    let file = machine.file(PAGES);
    contestant(machine, move |machine| {
        let space = machine.program();
        let backing = Backing::File(FileArea::new(file, 0, Sharing::Private));
        let va = machine.map(space, PAGES, Prot::READ, backing);
        if machine.mm.cached_pages(file) < PAGES {
            touch_all(machine, (space, va), (PAGES, PAGE), Access::Read);
            machine.end(space);
            return Sample::default();
        }
        let sample = touch_all(machine, (space, va), (PAGES, PAGE), Access::Read);
        machine.end(space);
        sample
    })
}

/// A load from a mapped file whose page is on the disk: one in eight, from the last to the first, with which the seven around it are read.
pub(crate) fn file_from_disk() -> Contestant {
    const TOGETHER: u64 = 8;
    contestant(Machine::new(), |machine| {
        let file = machine.file(PAGES);
        let space = machine.program();
        let backing = Backing::File(FileArea::new(file, 0, Sharing::Private));
        let va = machine.map(space, PAGES, Prot::READ, backing);
        let faults = PAGES / TOGETHER;
        let watch = Stopwatch::start();
        for fault in 1..=faults {
            machine.touch(space, va + (PAGES - fault * TOGETHER) * PAGE, Access::Read);
        }
        let sample = watch.stop(faults);
        assert_eq!(machine.mm.cached_pages(file), PAGES, "pages were read one by one");
        machine.end(space);
        machine.remove(file);
        sample
    })
}

/// A store to a page of a file that is mapped, shared, in memory, and clean.
pub(crate) fn first_store() -> Contestant {
    let machine = Machine::new();
    let file = machine.file(PAGES);
    contestant(machine, move |machine| {
        let space = machine.program();
        let backing = Backing::File(FileArea::new(file, 0, Sharing::Shared));
        let va = machine.map(space, PAGES, RW, backing);
        touch_all(machine, (space, va), (PAGES, PAGE), Access::Read);
        let sample = touch_all(machine, (space, va), (PAGES, PAGE), Access::Write);
        machine.end(space);
        assert_eq!(machine.run(machine.mm.sync(&machine.cpu, file)), Ok(()));
        sample
    })
}
