//! Areas against a plain model, with CPUs that never forget by themselves.

mod moves;

use std::collections::BTreeMap;
use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::{KernelMoved, NotAnArea, Tag, Vmalloc, VmallocError};
use crate::frames::Frames;
use crate::host::HostFrames;
use crate::kernel_map::{FrameSource, KernelRange, KernelTables};
use crate::pfn::{Order, PAGE_SIZE, Pfn};
use crate::tests::kernel_cpus::Cpus;
use crate::tests::kernel_frames::{TestSource, machine};

const BASE: u64 = 64 << 40;
const TAG: Tag = Tag::new("test");
/// Frames of the root table and of the two directories of a window below 1 GiB.
const FIXED_FRAMES: u32 = 3;

struct World {
    frames: HostFrames,
    source: TestSource,
    tables: KernelTables,
    cpus: Cpus,
    vmalloc: Vmalloc,
}

/// A window of so many pages.
fn world(nr_pages: u64) -> World {
    let (frames, source) = machine(0);
    let tables = KernelTables::new(&frames, &source).unwrap();
    let window = KernelRange::new(BASE, nr_pages * PAGE_SIZE).unwrap();
    World {
        cpus: Cpus::new(tables, 2),
        vmalloc: Vmalloc::new(tables, window),
        frames,
        source,
        tables,
    }
}

impl World {
    fn vmalloc(&self, nr_pages: u64) -> Result<KernelRange, VmallocError> {
        self.vmalloc
            .vmalloc(&self.frames, &self.source, nr_pages * PAGE_SIZE, TAG)
    }

    fn vfree(&self, va: u64) -> Result<(), NotAnArea> {
        self.vmalloc.vfree(&self.frames, va)
    }

    fn purge(&self) -> u64 {
        self.vmalloc.purge(&self.frames, &self.source, &self.cpus).pages
    }

    fn info(&self) -> String {
        let mut text = String::new();
        let node_of = |pfn: Pfn| (pfn.number() / 256) as usize;
        self.vmalloc.info(&mut text, &self.frames, node_of).unwrap();
        text
    }

    /// Each frame that is out is of an area, a table or a node.
    fn validate(&self) {
        self.vmalloc.validate(&self.frames).unwrap();
        let stats = self.vmalloc.stats();
        let pages = u32::try_from(stats.nr_pages + stats.nr_lazy_pages).unwrap();
        let known = pages + stats.nr_node_frames;
        let tables = self.source.taken_pages() - known;
        assert!(
            (1..=FIXED_FRAMES + 4).contains(&tables),
            "{tables} frames are tables, or lost"
        );
    }
}

#[test]
fn an_area_is_contiguous_in_virtual_addresses_although_no_two_frames_are_neighbours() {
    let world = world(512);
    // Every second frame is somebody else's: no chunk of order 1 is free.
    let all: Vec<Pfn> = std::iter::from_fn(|| world.source.take(Order::ZERO)).collect();
    all.iter()
        .filter(|pfn| pfn.number() % 2 == 1)
        .for_each(|&pfn| world.source.give(pfn, Order::ZERO));
    let area = world.vmalloc(100).unwrap();
    for (page, va) in (0..).zip(area.pages()) {
        let pfn = world.cpus.reach(&world.frames, va).unwrap();
        assert_eq!(pfn.number() % 2, 1);
        world.frames.write(pfn, 7, page);
    }
    for (page, va) in (0..).zip(area.pages()) {
        let pfn = world.cpus.reach(&world.frames, va).unwrap();
        assert_eq!(world.frames.read(pfn, 7), page);
    }
}

#[test]
fn behind_every_area_is_a_page_that_faults() {
    let world = world(512);
    let areas = [1, 3, 2].map(|nr_pages| world.vmalloc(nr_pages).unwrap());
    for area in areas {
        assert!(world.cpus.reach(&world.frames, area.end() - 8).is_ok());
        assert!(world.cpus.reach(&world.frames, area.end()).is_err());
    }
    assert_eq!(areas.map(|area| (area.start() - BASE) / PAGE_SIZE), [0, 2, 6]);
}

#[test]
fn a_freed_area_is_reused_only_after_all_cpus_were_flushed_once_for_all() {
    let world = world(512);
    let areas = [5, 5, 5].map(|nr_pages| world.vmalloc(nr_pages).unwrap());
    let pfn = world.cpus.reach(&world.frames, areas[0].start()).unwrap();
    world.vfree(areas[0].start()).unwrap();
    world.vfree(areas[2].start()).unwrap();
    // A CPU may still know the frame, and nobody else has it.
    assert!(world.cpus.remembers(pfn) && world.source.is_taken(pfn));
    assert!(world.vmalloc(5).unwrap().start() > areas[2].start());
    assert_eq!(world.cpus.flushes.get(), 0);
    assert_eq!(world.purge(), 10);
    assert_eq!(world.cpus.flushes.get(), 1);
    assert!(!world.cpus.remembers(pfn) && !world.source.is_taken(pfn));
    assert_eq!(world.vmalloc(5).unwrap(), areas[0]);
    assert_eq!(world.purge(), 0);
    assert_eq!(world.cpus.flushes.get(), 1, "nothing to purge needs no flush");
}

#[test]
fn an_unmapped_area_is_out_of_reach_at_once_and_its_frames_are_the_callers() {
    let world = world(512);
    let pages: Vec<Pfn> = (0..3).map(|_| world.source.take(Order::ZERO).unwrap()).collect();
    let area = world
        .vmalloc
        .vmap(&world.frames, &world.source, &pages, TAG)
        .unwrap();
    for (va, &pfn) in area.pages().zip(&pages) {
        assert_eq!(world.cpus.reach(&world.frames, va), Ok(pfn));
    }
    assert_eq!(world.vfree(area.start()), Err(NotAnArea { va: area.start() }));
    world
        .vmalloc
        .vunmap(&world.frames, &world.cpus, area.start())
        .unwrap();
    assert!(
        area.pages()
            .all(|va| world.cpus.reach(&world.frames, va).is_err())
    );
    assert!(pages.iter().all(|&pfn| world.source.is_taken(pfn)));
    assert_eq!(world.vmalloc.stats().nr_areas, 0);
}

#[test]
fn frees_of_what_is_no_area_change_nothing() {
    let world = world(512);
    let area = world.vmalloc(4).unwrap();
    for va in [
        0,
        BASE - PAGE_SIZE,
        area.start() + PAGE_SIZE,
        area.start() + 1,
        area.end(),
        u64::MAX,
    ] {
        assert_eq!(world.vfree(va), Err(NotAnArea { va }));
        assert_eq!(
            world.vmalloc.vunmap(&world.frames, &world.cpus, va),
            Err(NotAnArea { va })
        );
    }
    world.vfree(area.start()).unwrap();
    assert_eq!(world.vfree(area.start()), Err(NotAnArea { va: area.start() }));
    assert_eq!(world.purge(), 4);
    assert_eq!(world.vfree(area.start()), Err(NotAnArea { va: area.start() }));
}

#[test]
fn what_cannot_be_had_is_refused_and_nothing_is_gone() {
    let world = world(1 << 16);
    assert_eq!(world.vmalloc(0), Err(VmallocError::Empty));
    let too_large = u64::MAX;
    let failed = world
        .vmalloc
        .vmalloc(&world.frames, &world.source, too_large, TAG);
    assert_eq!(failed, Err(VmallocError::NoRoom { bytes: too_large }));
    // The machine has 512 frames.
    assert_eq!(world.vmalloc(600), Err(VmallocError::NoFrames));
    world.validate();
    assert_eq!(world.vmalloc.stats().nr_areas, 0);
    let area = world.vmalloc(400).unwrap();
    assert_eq!(area.start(), BASE);
}

#[test]
fn whichever_frame_is_missing_everything_is_given_back() {
    // 600 pages of addresses: two page tables.
    let probe = world(600);
    probe.vmalloc(480).unwrap();
    let before = probe.source.requests.get();
    probe.vmalloc(3).unwrap();
    assert_eq!(probe.source.requests.get() - before, 3);
    let needed = probe.source.requests.get();
    for index in 0..needed {
        let world = world(600);
        world.source.fails_at.set(index.max(1));
        let areas = [world.vmalloc(480), world.vmalloc(3)];
        assert!(areas.iter().any(Result::is_err), "request {index}");
        world.source.fails_at.set(u32::MAX);
        world.validate();
        areas
            .into_iter()
            .flatten()
            .for_each(|area| world.vfree(area.start()).unwrap());
        world.purge();
        world.validate();
        assert_eq!(world.vmalloc.stats().nr_areas, 0);
        assert_eq!(world.vmalloc(480).unwrap().start(), BASE);
    }
}

#[test]
fn vmallocinfo_has_the_lines_of_linux() {
    let world = world(512);
    // Frames 5 onwards, in ascending order: five are out (root, two directories, a page table, nodes).
    let first = world.vmalloc(2).unwrap();
    world.vmalloc(300).unwrap();
    world.vfree(first.start()).unwrap();
    let mapped = world.source.take(Order::ZERO).unwrap();
    world
        .vmalloc
        .vmap(&world.frames, &world.source, &[mapped], Tag::new("a longer name"))
        .unwrap();
    assert_eq!(
        world.info(),
        "0x0000400000000000-0x0000400000003000   12288 unpurged vm_area\n\
         0x0000400000003000-0x0000400000130000 1232896 test pages=300 vmalloc N0=249 N1=51\n\
         0x0000400000130000-0x0000400000132000    8192 a longer pages=1 vmap N1=1\n"
    );
}

/// The lowest hole of so many pages among the model's areas.
fn lowest_hole(areas: &BTreeMap<u64, u64>, window: u64, nr_pages: u64) -> Option<u64> {
    let mut start = 0;
    for (&area, &size) in areas {
        if area - start >= nr_pages {
            return Some(start);
        }
        start = area + size;
    }
    (window - start >= nr_pages).then_some(start)
}

#[derive(Clone, Debug)]
enum Step {
    Vmalloc(u64),
    Vmap(u64),
    /// The n-th area in use.
    Free(usize),
    Purge,
    /// The other CPU runs, and touches everything.
    OtherCpu,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u64..40).prop_map(Step::Vmalloc),
        1 => (1_u64..20).prop_map(Step::Vmap),
        4 => any::<usize>().prop_map(Step::Free),
        1 => Just(Step::Purge),
        1 => Just(Step::OtherCpu),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn areas_are_where_a_plain_search_puts_them_and_no_cpu_reaches_what_is_not_its_own(
        steps in prop::collection::vec(step(), 1..120),
        window in prop::sample::select(&[100_u64, 300, 700][..]),
    ) {
        let world = world(window);
        let lent: Vec<Pfn> = (0..20).map(|_| world.source.take(Order::ZERO).unwrap()).collect();
        // Page of the window to pages with the guard; those in use with their contents, and those not purged.
        let mut places: BTreeMap<u64, u64> = BTreeMap::new();
        let mut used: BTreeMap<u64, (KernelRange, bool)> = BTreeMap::new();
        let mut lazy: Vec<u64> = Vec::new();
        for step in steps {
            match step {
                Step::Vmalloc(nr_pages) | Step::Vmap(nr_pages) => {
                    let is_map = matches!(step, Step::Vmap(_));
                    let place = lowest_hole(&places, window, nr_pages + 1);
                    let got = if is_map {
                        let pages = &lent[..usize::try_from(nr_pages).unwrap()];
                        world.vmalloc.vmap(&world.frames, &world.source, pages, TAG)
                    } else {
                        world.vmalloc(nr_pages)
                    };
                    match got {
                        Ok(area) => {
                            prop_assert_eq!(Some((area.start() - BASE) / PAGE_SIZE), place);
                            prop_assert_eq!(area.nr_pages(), nr_pages);
                            places.insert(place.unwrap(), nr_pages + 1);
                            used.insert(area.start(), (area, is_map));
                        }
                        Err(VmallocError::NoRoom { .. }) => prop_assert_eq!(place, None),
                        Err(error) => prop_assert_eq!(error, VmallocError::NoFrames),
                    }
                }
                Step::Free(which) => {
                    let Some((&va, &(area, is_map))) = used.iter().nth(which % used.len().max(1)) else { continue };
                    used.remove(&va);
                    if is_map {
                        world.vmalloc.vunmap(&world.frames, &world.cpus, va).unwrap();
                        places.remove(&((va - BASE) / PAGE_SIZE));
                        prop_assert!(area.pages().all(|va| world.cpus.reach(&world.frames, va).is_err()));
                    } else {
                        world.vfree(va).unwrap();
                        lazy.push((va - BASE) / PAGE_SIZE);
                    }
                }
                Step::Purge => {
                    let pages: u64 = lazy.iter().map(|place| places[place] - 1).sum();
                    prop_assert_eq!(world.purge(), pages);
                    lazy.drain(..).for_each(|place| { places.remove(&place); });
                }
                Step::OtherCpu => world.cpus.current.set(1 - world.cpus.current.get()),
            }
            world.vmalloc.validate(&world.frames).unwrap();
            let mut owned = std::collections::BTreeSet::new();
            for (area, is_map) in used.values() {
                for (page, va) in area.pages().enumerate() {
                    let pfn = world.cpus.reach(&world.frames, va).unwrap();
                    prop_assert!(world.source.is_taken(pfn));
                    if *is_map {
                        prop_assert_eq!(pfn, lent[page]);
                    } else {
                        prop_assert!(owned.insert(pfn), "two pages have one frame");
                    }
                }
            }
            // Nothing that was given back is remembered by any CPU.
            let given_back = (0..512).map(Pfn::new).filter(|&pfn| !world.source.is_taken(pfn));
            for pfn in given_back {
                prop_assert!(!world.cpus.remembers(pfn), "{} can still be reached", pfn);
            }
        }
        used.into_values().filter(|(_, is_map)| !is_map).for_each(|(area, _)| world.vfree(area.start()).unwrap());
        world.purge();
        let stats = world.vmalloc.stats();
        let left = world.source.taken_pages() - 20 - stats.nr_node_frames;
        prop_assert!(left <= FIXED_FRAMES + 2, "{} frames are lost", left);
        let _ = world.tables;
    }
}
