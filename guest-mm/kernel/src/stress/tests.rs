//! The rows on ordinary memory: all of them pass where the manager does what it promises, leave nothing behind, and
//! notice what is broken on purpose.

use super::*;
use guest_mm::host::HostFrames;
use guest_mm::kernel_map::{FrameSource, KernelRange, KernelTables, KernelTlb};
use guest_mm::kmap::PermanentMaps;
use guest_mm::node::{NodeId, Topology, ZoneLimits};
use guest_mm::reclaim::{Reclaim, Shrinker};
use guest_mm::slab::{Debugging, SlabAllocator};
use guest_mm::{BootRegion, Gfp, MemMap, Order, Page, Pfn, PfnRange};
use guest_sync::{CpuId, CpuSet, SpinLock};
use std::boxed::Box;
use std::vec::Vec;

/// Frames of a node.
const NODE_NR_PAGES: u32 = 64 << 8;

/// Memory of `nr_nodes` nodes of 64 MiB each, with a DMA zone of 16 MiB, and more of it from 4 GiB on for HIGHMEM.
fn machine(nr_nodes: u8) -> (PhysicalMemory<'static>, HostFrames, CpuSet) {
    let mut topology = Topology::new(2, nr_nodes).unwrap();
    let number = |number| NodeId::new(number).unwrap();
    for (from, to) in (0..nr_nodes).flat_map(|from| (0..nr_nodes).map(move |to| (from, to))) {
        let distance = if from == to { 10 } else { 20 + from.abs_diff(to) };
        topology.set_distance(number(from), number(to), distance).unwrap();
    }
    topology
        .set_cpu_node(CpuId::new(1).unwrap(), number(nr_nodes - 1))
        .unwrap();
    topology.set_limits(ZoneLimits::PC).unwrap();
    let nr_pages = NODE_NR_PAGES * u32::from(nr_nodes);
    let pages: Vec<Page> = (0..nr_pages).map(|_| Page::new()).collect();
    let map = MemMap::new(Pfn::new(0), Box::leak(pages.into_boxed_slice())).unwrap();
    let boot = PfnRange::new(Pfn::new(0), nr_pages).unwrap();
    let phys = PhysicalMemory::new(map, boot, topology);
    let mut frames = HostFrames::new();
    for node in 0..nr_nodes {
        let span = PfnRange::new(Pfn::new(NODE_NR_PAGES * u32::from(node)), NODE_NR_PAGES).unwrap();
        let reserved = PfnRange::new(Pfn::new(0), 256).unwrap();
        phys.add_boot_region(BootRegion {
            node: number(node),
            span,
            usable: &[span],
            reserved: &[reserved],
        })
        .unwrap();
        frames.plug(span);
    }
    (phys, frames, CpuSet::new(2).unwrap())
}

/// Runs `rounds` rounds and the end on a CPU, and answers the checks.
fn run<F: Frames, R: Row<F> + ?Sized>(row: &mut R, bench: &Bench<'_, F>, rounds: u64) -> Checks {
    let mut checks = Checks::default();
    for round in 0..rounds {
        row.begin(round);
        let mut steps = 0;
        while row.step(bench, &mut checks) == Step::More {
            steps += 1;
            assert!(steps < 10_000, "a round without an end");
        }
    }
    while row.end(bench, &mut checks) == Step::More {}
    checks
}

/// Runs a row on both CPUs of a machine; it has to pass, and leave no frame behind.
fn passes<R: Row<HostFrames> + Default>(nr_nodes: u8, least: u64) {
    let (phys, frames, cpus) = machine(nr_nodes);
    let before = free(&phys);
    for id in [0, 1] {
        let cpu = cpus.claim(CpuId::new(id).unwrap()).unwrap();
        let bench = Bench {
            phys: &phys,
            frames: &frames,
            cpu: &cpu,
        };
        let checks = run(&mut R::default(), &bench, 3);
        assert_eq!(
            (checks.failed, &checks.first),
            (0, &None),
            "{nr_nodes} nodes, CPU {id}"
        );
        assert!(checks.ok >= least, "{} checks", checks.ok);
    }
    phys.drain_all();
    assert_eq!(free(&phys), before, "frames were lost");
    phys.validate().unwrap();
}

fn free(phys: &PhysicalMemory<'_>) -> u64 {
    phys.zones()
        .map(|zone| zone.counters().free_pages + zone.counters().cached_pages)
        .sum()
}

#[test]
fn each_row_passes_on_one_node_and_on_three() {
    for nr_nodes in [1, 3] {
        passes::<Buddy>(nr_nodes, 500);
        passes::<Pcp>(nr_nodes, 500);
        passes::<Zones>(nr_nodes, 500);
        passes::<Atomic>(nr_nodes, 5000);
        passes::<Nodes>(nr_nodes, if nr_nodes > 1 { 10_000 } else { 5 });
    }
}

#[test]
fn a_word_that_somebody_else_wrote_is_noticed_and_described() {
    let (phys, frames, cpus) = machine(1);
    let cpu = cpus.claim(CpuId::ZERO).unwrap();
    let bench = Bench {
        phys: &phys,
        frames: &frames,
        cpu: &cpu,
    };
    let (mut hoard, mut checks) = (hoard::Hoard::new(1), Checks::default());
    let request = (guest_mm::Gfp::NONE, guest_mm::Order::new(2).unwrap(), None);
    let pfn = hoard.take(&bench, request, &mut checks).unwrap();
    frames.write(pfn + 3, 17, 0);
    hoard.give_some(&bench, u64::MAX, &mut checks);
    assert_eq!(checks.failed, 1);
    let first = checks.first.unwrap();
    assert!(first.contains("index: 17"), "{first}");
}

/// Areas of the kernel on ordinary memory: real page tables, walked for every access.
struct HostAreas<'a> {
    phys: &'a PhysicalMemory<'a>,
    frames: &'a HostFrames,
    tables: KernelTables,
    vmalloc: guest_mm::vmalloc::Vmalloc,
    maps: PermanentMaps,
    source: Source<'a>,
}

/// Frames for areas and tables, taken on a CPU of their own.
struct Source<'a> {
    phys: &'a PhysicalMemory<'a>,
    cpu: SpinLock<Cpu>,
}

impl FrameSource for Source<'_> {
    fn take(&self, order: Order) -> Option<Pfn> {
        self.phys.alloc_pages(&self.cpu.lock(), Gfp::NONE, order).ok()
    }

    fn give(&self, pfn: Pfn, _: Order) {
        self.phys.free_pages(&self.cpu.lock(), pfn).unwrap();
    }
}

/// Nothing is cached: every access walks the tables.
struct NoTlb;

impl KernelTlb for NoTlb {
    fn flush(&self, _: KernelRange) {}
    fn flush_local(&self, _: KernelRange) {}
    fn exchange(&self, _: KernelRange, change: &mut dyn FnMut()) {
        change();
    }
}

impl<'a> HostAreas<'a> {
    fn new(phys: &'a PhysicalMemory<'a>, frames: &'a HostFrames, cpu: Cpu) -> Self {
        let source = Source {
            phys,
            cpu: SpinLock::new(cpu),
        };
        let tables = KernelTables::new(frames, &source).unwrap();
        let window = |start: u64, pages: u64| KernelRange::new(start, pages * 4096).unwrap();
        let maps = PermanentMaps::new(tables, frames, &source, window(1 << 40, 512)).unwrap();
        let vmalloc = guest_mm::vmalloc::Vmalloc::new(tables, window(2 << 40, 1 << 16));
        Self {
            phys,
            frames,
            tables,
            vmalloc,
            maps,
            source,
        }
    }

    fn place(&self, va: u64) -> (Pfn, usize) {
        let pfn = self.frame_at(va).expect("mapped");
        (pfn, usize::try_from(va % 4096 / 8).unwrap())
    }
}

impl Areas for HostAreas<'_> {
    fn vmalloc(&self, bytes: u64) -> Result<KernelRange, guest_mm::vmalloc::VmallocError> {
        self.vmalloc.vmalloc(
            self.frames,
            &self.source,
            bytes,
            guest_mm::vmalloc::Tag::new("stress"),
        )
    }

    fn vfree(&self, va: u64) -> Result<(), guest_mm::vmalloc::NotAnArea> {
        self.vmalloc.vfree(self.frames, va)
    }

    fn purge(&self) {
        self.vmalloc.purge(self.frames, &self.source, &NoTlb);
    }

    fn frame_at(&self, va: u64) -> Option<Pfn> {
        let (entry, _) = self.tables.lookup(self.frames, va);
        entry.is_present().then(|| entry.pfn())
    }

    fn read(&self, va: u64) -> u64 {
        let (pfn, index) = self.place(va);
        self.frames.read(pfn, index)
    }

    fn write(&self, va: u64, word: u64) {
        let (pfn, index) = self.place(va);
        self.frames.write(pfn, index, word);
    }
}

impl Windows for HostAreas<'_> {
    type Tlb = NoTlb;

    fn permanent(&self) -> &PermanentMaps {
        &self.maps
    }

    /// All frames are reached without.
    fn momentary_maps(&self) -> u64 {
        0
    }

    fn tlb(&self) -> &NoTlb {
        &NoTlb
    }

    fn read(&self, va: u64) -> u64 {
        Areas::read(self, va)
    }

    fn write(&self, va: u64, word: u64) {
        Areas::write(self, va, word);
    }
}

#[test]
fn areas_and_windows_pass_where_no_two_free_frames_are_neighbours_and_in_full_windows() {
    let (phys, frames, cpus) = machine(2);
    let cpu = cpus.claim(CpuId::ZERO).unwrap();
    let areas = HostAreas::new(&phys, &frames, cpus.claim(CpuId::new(1).unwrap()).unwrap());
    let bench = Bench {
        phys: &phys,
        frames: &frames,
        cpu: &cpu,
    };
    let before = free(&phys);
    let mut vmalloc = Vmalloc::new(&areas);
    let checks = run(&mut vmalloc, &bench, 3);
    assert_eq!((checks.failed, &checks.first), (0, &None));
    assert!(
        checks.ok > 1000 && areas.vmalloc.stats().nr_areas == 0,
        "{checks:?}"
    );
    let mut high = HighMemory::new(&areas);
    let checks = run(&mut high, &bench, 2);
    assert_eq!((checks.failed, &checks.first), (0, &None));
    assert!(checks.ok > 2 * 512, "{checks:?}");
    phys.drain_all();
    // What stays are page tables, and nodes of the tree of areas.
    let lost = before - free(&phys);
    assert!(
        lost < 32 && lost >= u64::from(areas.vmalloc.stats().nr_node_frames),
        "{lost} frames"
    );
    assert!(areas.phys.validate().is_ok());
}

#[test]
fn objects_and_pools_pass_and_leave_nothing_in_the_caches() {
    for nr_nodes in [1, 2] {
        let (phys, frames, cpus) = machine(nr_nodes);
        let before = free(&phys);
        let slabs = SlabAllocator::new(frames, &phys, Debugging::Off);
        for id in [0, 1] {
            let cpu = cpus.claim(CpuId::new(id).unwrap()).unwrap();
            let bench = Bench {
                phys: &phys,
                frames: slabs.frames(),
                cpu: &cpu,
            };
            let mut rows: [Box<dyn Row<HostFrames> + '_>; 3] = [
                Box::new(Slab::new(&slabs, 1)),
                Box::new(Kmalloc::new(&slabs)),
                Box::new(Pool::new(&slabs)),
            ];
            for row in &mut rows {
                let checks = run(&mut **row, &bench, 3);
                assert_eq!((checks.failed, &checks.first), (0, &None));
                assert!(checks.ok > 100, "{checks:?}");
            }
            slabs.shrink_all(&cpu, u64::MAX);
        }
        assert_eq!(slabs.nr_misuses(), 0);
        slabs.for_each_cache(|cache| assert_eq!(cache.info().slabs, 0, "{}", cache.name()));
        phys.drain_all();
        assert_eq!(free(&phys), before, "frames were lost");
    }
}

#[test]
fn a_request_in_an_empty_zone_is_served_by_reclaim_or_waits_for_a_free() {
    let (phys, frames, cpus) = machine(1);
    let cpu = cpus.claim(CpuId::ZERO).unwrap();
    let bench = Bench {
        phys: &phys,
        frames: &frames,
        cpu: &cpu,
    };
    let before = free(&phys);
    let pantry = Pantry::new(&phys);
    let shrinkers: [&dyn Shrinker; 1] = [&pantry];
    let reclaim = Reclaim::new(&phys, &shrinkers);
    let (mut wait, mut checks) = (Wait::new(&pantry, 1), Checks::default());
    while wait.empty_zone(&bench, &mut checks) == Step::More {}
    wait.stock_pantry();
    wait.served_at_once(&bench, &reclaim, &mut checks);
    pantry.shrink(&cpu, u64::MAX);
    while wait.empty_zone(&bench, &mut checks) == Step::More {}
    wait.has_to_wait(&bench, &reclaim, &mut checks);
    while wait.end(&bench, &mut checks) == Step::More {}
    assert_eq!((checks.failed, &checks.first), (0, &None));
    assert!(checks.ok > 1000, "{checks:?}");
    phys.drain_all();
    assert_eq!((free(&phys), phys.nr_waiting()), (before, 0));
}
