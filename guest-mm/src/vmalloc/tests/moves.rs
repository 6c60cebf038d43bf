//! Areas that lose their frames under their users: what is at an address stays, wherever it lies.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec::Vec;

use super::*;
use crate::migrate::{BusyWith, PageKind, Refusal, RefusalReason};
use crate::page::KernelUse;

/// A source that knows which page each frame is, as descriptors do.
struct Noting<'a> {
    source: &'a TestSource,
    notes: RefCell<BTreeMap<Pfn, u32>>,
}

impl FrameSource for Noting<'_> {
    fn take(&self, order: Order) -> Option<Pfn> {
        self.source.take(order)
    }

    fn note_page(&self, pfn: Pfn, page: Option<u32>) {
        let mut notes = self.notes.borrow_mut();
        match page {
            Some(page) => assert_eq!(notes.insert(pfn, page), None, "{pfn} is two pages"),
            None => assert!(notes.remove(&pfn).is_some(), "{pfn} was no page"),
        }
    }

    fn give(&self, pfn: Pfn, order: Order) {
        assert!(!self.notes.borrow().contains_key(&pfn), "{pfn} is still a page");
        self.source.give(pfn, order);
    }
}

impl Noting<'_> {
    /// What migration refuses: the pages of ours among the frames that are wanted.
    fn refusals(&self, wanted: impl Fn(Pfn) -> bool) -> Vec<Refusal> {
        let notes = self.notes.borrow();
        let wanted = notes.iter().filter(|(pfn, _)| wanted(**pfn));
        wanted
            .map(|(&pfn, &page)| Refusal {
                pfn,
                order: Order::ZERO,
                kind: PageKind::Kernel(KernelUse::Vmalloc { page }),
                reason: RefusalReason::Unmovable(KernelUse::Vmalloc { page }),
            })
            .collect()
    }
}

fn noting(world: &World) -> Noting<'_> {
    Noting {
        source: &world.source,
        notes: RefCell::default(),
    }
}

impl World {
    fn move_off(&self, source: &Noting<'_>, refused: &mut Vec<Refusal>) -> KernelMoved {
        let frames = (&self.frames, &self.frames);
        self.vmalloc.move_off(frames, source, &self.cpus, refused)
    }

    /// Both CPUs compare a page with what was written to it.
    fn check(&self, area: KernelRange, seed: u64) {
        for cpu in 0..2 {
            self.cpus.current.set(cpu);
            for (page, va) in (seed..).zip(area.pages()) {
                let pfn = self.cpus.reach(&self.frames, va).unwrap();
                assert_eq!(self.frames.read(pfn, 5), page, "CPU {cpu}, {va:#x} in {pfn}");
            }
        }
    }

    fn fill(&self, area: KernelRange, seed: u64) {
        for (page, va) in (seed..).zip(area.pages()) {
            let pfn = self.cpus.reach(&self.frames, va).unwrap();
            self.frames.write(pfn, 5, page);
        }
    }
}

#[test]
fn pages_of_areas_leave_their_frames_under_the_same_addresses_on_every_cpu() {
    let world = world(512);
    let source = noting(&world);
    let make = |pages: u64| {
        world
            .vmalloc
            .vmalloc(&world.frames, &source, pages * PAGE_SIZE, TAG)
    };
    let areas = [make(70).unwrap(), make(1).unwrap(), make(33).unwrap()];
    for (seed, area) in (1_u64..).zip(areas) {
        world.fill(area, seed << 16);
        world.check(area, seed << 16);
    }
    // The frames with even numbers are to go.
    let leaves = |pfn: Pfn| pfn.number().is_multiple_of(2);
    let mut refused = source.refusals(leaves);
    let (wanted, flushes) = (refused.len(), world.cpus.flushes.get());
    assert!(wanted > 32);
    let other = Refusal {
        pfn: Pfn::new(1),
        order: Order::ZERO,
        kind: PageKind::Anonymous,
        reason: RefusalReason::Busy(BusyWith::Locked),
    };
    refused.push(other);
    let moved = world.move_off(&source, &mut refused);
    assert_eq!((moved.pages as usize, moved.lacks_memory), (wanted, false));
    assert_eq!(refused, [other], "what is not ours is still refused");
    let batches = u32::try_from(wanted.div_ceil(64)).unwrap();
    assert_eq!(world.cpus.flushes.get() - flushes, batches);
    for (seed, area) in (1_u64..).zip(areas) {
        world.check(area, seed << 16);
    }
    world.vmalloc.validate(&world.frames).unwrap();
    for area in areas {
        world.vmalloc.vfree(&world.frames, area.start()).unwrap();
    }
    world.vmalloc.purge(&world.frames, &source, &world.cpus);
    assert!(source.notes.borrow().is_empty());
    world.validate();
}

#[test]
fn freed_areas_are_given_back_and_what_is_somebody_elses_stays() {
    let world = world(512);
    let source = noting(&world);
    let freed = world
        .vmalloc
        .vmalloc(&world.frames, &source, 3 * PAGE_SIZE, TAG)
        .unwrap();
    let kept = world
        .vmalloc
        .vmalloc(&world.frames, &source, 2 * PAGE_SIZE, TAG)
        .unwrap();
    world.fill(kept, 7);
    world.vmalloc.vfree(&world.frames, freed.start()).unwrap();
    let mut refused = source.refusals(|_| true);
    // A page of which only the descriptor says that it is ours, and one of an area that maps its owner's frames.
    let lent = [source.take(Order::ZERO).unwrap()];
    let mapped = world.vmalloc.vmap(&world.frames, &source, &lent, TAG).unwrap();
    let of_mapped = u32::try_from((mapped.start() - BASE) / PAGE_SIZE).unwrap();
    for page in [of_mapped, 400, u32::MAX] {
        refused.push(Refusal {
            pfn: lent[0],
            order: Order::ZERO,
            kind: PageKind::Kernel(KernelUse::Vmalloc { page }),
            reason: RefusalReason::Unmovable(KernelUse::Vmalloc { page }),
        });
    }
    let taken = world.source.taken_pages();
    let moved = world.move_off(&source, &mut refused);
    assert_eq!(moved.pages, 2);
    assert_eq!(
        refused.len(),
        3 + 3,
        "those of the freed area are looked for once more, and are not there"
    );
    assert_eq!(world.source.taken_pages(), taken - 3);
    assert_eq!(world.vmalloc.stats().nr_lazy_pages, 0);
    assert_eq!(world.cpus.reach(&world.frames, mapped.start()), Ok(lent[0]));
    world.check(kept, 7);
}

#[test]
fn without_frames_the_rest_of_the_pages_stay_and_move_later() {
    for good in 0..40 {
        let world = world(512);
        let source = noting(&world);
        let area = world
            .vmalloc
            .vmalloc(&world.frames, &source, 30 * PAGE_SIZE, TAG)
            .unwrap();
        world.fill(area, 99);
        world.source.fails_at.set(world.source.requests.get() + good);
        let mut refused = source.refusals(|_| true);
        let moved = world.move_off(&source, &mut refused);
        assert_eq!((moved.pages, moved.lacks_memory), (good.min(30), good < 30));
        assert_eq!(refused.len(), 30 - moved.pages as usize);
        world.check(area, 99);
        world.source.fails_at.set(u32::MAX);
        assert_eq!(world.move_off(&source, &mut refused).pages, 30 - moved.pages);
        world.check(area, 99);
        world.vmalloc.validate(&world.frames).unwrap();
    }
}

/// Frees and purges an area as soon as the first old frame of its pages comes back: another CPU may be as fast.
struct Hasty<'a> {
    noting: Noting<'a>,
    world: &'a World,
    area: Cell<Option<KernelRange>>,
}

impl FrameSource for Hasty<'_> {
    fn take(&self, order: Order) -> Option<Pfn> {
        self.noting.take(order)
    }

    fn note_page(&self, pfn: Pfn, page: Option<u32>) {
        self.noting.note_page(pfn, page);
    }

    fn give(&self, pfn: Pfn, order: Order) {
        self.noting.give(pfn, order);
        if let Some(area) = self.area.take() {
            self.world.vfree(area.start()).unwrap();
            self.world
                .vmalloc
                .purge(&self.world.frames, self, &self.world.cpus);
        }
    }
}

#[test]
fn an_area_that_goes_as_soon_as_its_pages_have_moved_leaves_no_frame_that_is_said_to_be_one() {
    let world = world(512);
    let source = Hasty {
        noting: noting(&world),
        world: &world,
        area: Cell::new(None),
    };
    let area = world
        .vmalloc
        .vmalloc(&world.frames, &source, 5 * PAGE_SIZE, TAG)
        .unwrap();
    source.area.set(Some(area));
    let mut refused = source.noting.refusals(|_| true);
    let frames = (&world.frames, &world.frames);
    let moved = world.vmalloc.move_off(frames, &source, &world.cpus, &mut refused);
    assert_eq!((moved.pages, refused.len()), (5, 0));
    assert!(source.noting.notes.borrow().is_empty());
    world.validate();
}
