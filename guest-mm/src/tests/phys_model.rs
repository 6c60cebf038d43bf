//! Physical memory against a plain model: a map of what was handed out.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use guest_sync::{Cpu, CpuId, CpuSet};

use crate::blocks::{BlockIndex, BlockState, IsolatedBlock};
use crate::phys::FreeError;
use crate::{
    BootRegion, FrameState, Gfp, MemMap, Memmap, MigrateType, NodeId, Order, Page, Pfn, PfnRange,
    PhysicalMemory, Topology, Watermark, ZoneKind,
};

/// Frames of boot memory: 8 MiB.
const BOOT: u32 = 2048;

/// First frame of the hot-plug region; odd in pageblocks, so that no order-10 chunk starts with a 2 MiB block.
const REGION: u32 = 8192 + 512;

pub(crate) fn range(start: u32, nr_pages: u32) -> PfnRange {
    PfnRange::new(Pfn::new(start), nr_pages).unwrap()
}

pub(crate) fn order(order: u8) -> Order {
    Order::new(order).unwrap()
}

/// Descriptors for boot memory and a hot-plug region of so many frames.
pub(crate) fn descriptors(hotplug_nr_pages: u32) -> Vec<Page> {
    (0..REGION + hotplug_nr_pages).map(|_| Page::new()).collect()
}

pub(crate) fn one_cpu() -> Cpu {
    CpuSet::new(1).unwrap().claim(CpuId::ZERO).unwrap()
}

/// Boot memory with a hole and a kernel, and `nr_blocks` unplugged blocks, for one CPU.
pub(crate) fn small_memory(pages: &[Page], block_nr_pages: u32, nr_blocks: u32) -> PhysicalMemory<'_> {
    small_memory_for(1, pages, block_nr_pages, nr_blocks)
}

/// The same for several CPUs.
pub(crate) fn small_memory_for(
    nr_cpus: u8,
    pages: &[Page],
    block_nr_pages: u32,
    nr_blocks: u32,
) -> PhysicalMemory<'_> {
    let topology = Topology::one_node(nr_cpus);
    small_memory_of((topology, NodeId::ZERO), pages, block_nr_pages, nr_blocks)
}

/// The same for a machine of any shape, whose blocks are near to a node of it.
pub(crate) fn small_memory_of(
    (topology, node): (Topology, NodeId),
    pages: &[Page],
    block_nr_pages: u32,
    nr_blocks: u32,
) -> PhysicalMemory<'_> {
    let all = MemMap::new(Pfn::new(0), pages).unwrap();
    let memory = PhysicalMemory::new(all, range(0, BOOT), topology);
    let boot = BootRegion {
        node: NodeId::ZERO,
        span: range(0, BOOT),
        usable: &[range(0, 159), range(256, BOOT - 256 - 3)],
        reserved: &[range(0, 1), range(300, 77), range(1100, 20)],
    };
    memory.add_boot_region(boot).unwrap();
    memory
        .set_hotplug_region(node, range(REGION, block_nr_pages * nr_blocks), block_nr_pages)
        .unwrap();
    memory.validate().unwrap();
    memory
}

pub(crate) fn plug(memory: &PhysicalMemory<'_>, block: BlockIndex, zone: ZoneKind) {
    plug_with(memory, block, zone, Memmap::BootMemory);
}

pub(crate) fn plug_with(memory: &PhysicalMemory<'_>, block: BlockIndex, zone: ZoneKind, memmap: Memmap) {
    memory.begin_plug(block).unwrap();
    memory.plugged(block).unwrap();
    memory.online_with(block, zone, memmap).unwrap();
}

/// Frames of a zone that nobody uses, at hand or not.
fn free_pages(memory: &PhysicalMemory<'_>, kind: ZoneKind) -> u64 {
    let counters = memory.zone(NodeId::ZERO, kind).counters();
    counters.free_pages + counters.cached_pages
}

#[derive(Clone, Debug)]
enum Op {
    Alloc(Gfp, u8),
    Free(prop::sample::Index),
    FreeAgain(prop::sample::Index),
    Plug(u32, Memmap),
    Isolate(u32),
    Undo(u32),
    Offline(u32),
}

fn ops() -> impl Strategy<Value = Op> {
    let gfp = prop::sample::select(vec![Gfp::KERNEL, Gfp::ATOMIC, Gfp::USER, Gfp::SPARE]);
    let memmap = prop::sample::select(vec![Memmap::BootMemory, Memmap::OnBlock]);
    let size = prop_oneof![6 => 0u8..4, 2 => 4u8..9, 3 => Just(9u8), 1 => Just(10u8)];
    prop_oneof![
        10 => (gfp, size).prop_map(|(gfp, order)| Op::Alloc(gfp, order)),
        6 => any::<prop::sample::Index>().prop_map(Op::Free),
        1 => any::<prop::sample::Index>().prop_map(Op::FreeAgain),
        3 => (0u32..3, memmap).prop_map(|(block, memmap)| Op::Plug(block, memmap)),
        1 => (0u32..3).prop_map(Op::Isolate),
        1 => (0u32..3).prop_map(Op::Undo),
        1 => (0u32..3).prop_map(Op::Offline),
    ]
}

/// The memory under test and what is known of it from outside.
struct World<'m> {
    memory: PhysicalMemory<'m>,
    cpu: Cpu,
    taken: BTreeMap<Pfn, Order>,
    freed: Vec<Pfn>,
    isolated: BTreeMap<u32, IsolatedBlock>,
}

impl<'m> World<'m> {
    fn new(pages: &'m [Page], block_nr_pages: u32) -> Self {
        Self {
            memory: small_memory(pages, block_nr_pages, 3),
            cpu: one_cpu(),
            taken: BTreeMap::new(),
            freed: Vec::new(),
            isolated: BTreeMap::new(),
        }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Alloc(gfp, size) => self.alloc(*gfp, order(*size)),
            Op::Free(index) if !self.taken.is_empty() => {
                let (&pfn, _) = self.taken.iter().nth(index.index(self.taken.len())).unwrap();
                self.taken.remove(&pfn);
                self.memory.free_pages(&self.cpu, pfn).unwrap();
                self.freed.push(pfn);
            }
            Op::FreeAgain(index) if !self.freed.is_empty() => {
                let pfn = self.freed[index.index(self.freed.len())];
                if !self.taken.contains_key(&pfn) {
                    let refused = self.memory.free_pages(&self.cpu, pfn);
                    assert!(
                        matches!(refused, Err(FreeError::NotAllocated { .. })),
                        "{refused:?}"
                    );
                }
            }
            Op::Plug(block, memmap) => {
                if self.memory.hotplug_region().state(BlockIndex(*block)) == Some(BlockState::Unplugged) {
                    plug_with(&self.memory, BlockIndex(*block), ZoneKind::Movable, *memmap);
                }
            }
            Op::Isolate(block) => {
                if let Ok(token) = self.memory.isolate(BlockIndex(*block)) {
                    self.isolated.insert(*block, token);
                }
            }
            Op::Undo(block) => {
                if let Some(token) = self.isolated.remove(block) {
                    self.memory.undo(token);
                }
            }
            Op::Offline(block) => self.offline(*block),
            Op::Free(_) | Op::FreeAgain(_) => {}
        }
        self.memory.validate().unwrap();
    }

    fn alloc(&mut self, gfp: Gfp, order: Order) {
        match self.memory.alloc_pages(&self.cpu, gfp, order) {
            Ok(pfn) => {
                assert!(pfn.is_aligned(order));
                let new = PfnRange::new(pfn, order.nr_pages()).unwrap();
                for (&other, size) in &self.taken {
                    assert!(
                        !new.overlaps(PfnRange::new(other, size.nr_pages()).unwrap()),
                        "{new} twice"
                    );
                }
                let block = self.memory.block_of(pfn);
                assert_eq!(
                    block,
                    self.memory.block_of(pfn + (order.nr_pages() - 1)),
                    "crosses a border"
                );
                assert!(
                    gfp.is_movable() || block.is_none(),
                    "unmovable on a removable block"
                );
                assert!(
                    block.is_none_or(|block| !self.isolated.contains_key(&block.0)),
                    "isolated"
                );
                self.taken.insert(pfn, order);
            }
            Err(_) => {
                for zone in self
                    .memory
                    .zones()
                    .filter(|zone| zone.kind() <= gfp.highest_zone())
                {
                    let keep = zone.watermark(gfp.watermark()) + zone.reserve(gfp.highest_zone());
                    let chunks = self.memory.free_chunks(zone.node(), zone.kind());
                    let fits = chunks[order.index()..].iter().sum::<u64>() > 0;
                    let counters = zone.counters();
                    assert!(!fits || counters.free_pages < u64::from(order.nr_pages()) + keep);
                    assert_eq!(counters.cached_pages, 0, "what CPUs kept was tried too");
                }
            }
        }
    }

    fn offline(&mut self, block: u32) {
        let Some(token) = self.isolated.remove(&block) else {
            return;
        };
        let range = self
            .memory
            .hotplug_region()
            .block_range(BlockIndex(block))
            .unwrap();
        let used = self
            .taken
            .range(range.start()..range.end())
            .map(|(_, order)| order.nr_pages())
            .sum::<u32>();
        match self.memory.offline(token) {
            Ok(()) => {
                assert_eq!(used, 0);
                assert_eq!(self.memory.frame_state(range.start()), FrameState::Offline);
                self.memory.unplugged(BlockIndex(block)).unwrap();
            }
            Err(refused) => {
                assert_eq!(refused.used_pages, used);
                assert_ne!(used, 0);
                self.isolated.insert(block, refused.block);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn memory_agrees_with_a_map_of_what_was_handed_out(
        shift in 0u32..3,
        ops in prop::collection::vec(ops(), 1..120),
    ) {
        let pages = descriptors(3 * (512 << shift));
        let mut world = World::new(&pages, 512 << shift);
        for op in &ops {
            world.step(op);
        }
        for (pfn, _) in core::mem::take(&mut world.taken) {
            world.memory.free_pages(&world.cpu, pfn).unwrap();
        }
        for (_, token) in core::mem::take(&mut world.isolated) {
            world.memory.undo(token);
        }
        world.memory.validate().unwrap();
        for kind in ZoneKind::ALL {
            let managed = world.memory.zone(NodeId::ZERO, kind).counters().managed_pages;
            prop_assert_eq!(free_pages(&world.memory, kind), managed);
        }
    }
}

#[test]
fn every_sequence_of_five_steps_in_a_small_world_keeps_the_invariants() {
    let steps = [
        Op::Alloc(Gfp::USER, 9),
        Op::Alloc(Gfp::USER, 0),
        Op::Alloc(Gfp::KERNEL, 8),
        Op::Plug(0, Memmap::BootMemory),
        Op::Isolate(0),
        Op::Undo(0),
        Op::Offline(0),
    ];
    for sequence in 0..7usize.pow(5) {
        let pages = descriptors(3 * 512);
        let mut world = World::new(&pages, 512);
        let mut digits = sequence;
        for _ in 0..5 {
            world.step(&steps[digits % 7]);
            digits /= 7;
        }
    }
}

#[test]
fn wrong_frees_are_refused_and_change_nothing() {
    let (pages, cpu) = (descriptors(512), one_cpu());
    let memory = small_memory(&pages, 512, 1);
    let pfn = memory.alloc_pages(&cpu, Gfp::KERNEL, order(3)).unwrap();
    let refused = |pfn| memory.free_pages(&cpu, pfn).unwrap_err();
    for (pfn, state) in [
        (pfn + 1, FrameState::Allocated(order(3))),
        (Pfn::new(300), FrameState::Reserved),
        (Pfn::new(1110), FrameState::Reserved),
        (Pfn::new(200), FrameState::Offline),
        (Pfn::new(REGION), FrameState::Offline),
        (Pfn::new(u32::MAX - 1), FrameState::Offline),
    ] {
        assert_eq!(refused(pfn), FreeError::NotAllocated { pfn, state });
    }
    memory.free_pages(&cpu, pfn).unwrap();
    memory.validate().unwrap();
}

#[test]
fn isolating_a_block_withdraws_its_free_frames_and_undo_returns_them() {
    let pages = descriptors(1024 * 2);
    let memory = small_memory(&pages, 1024, 2);
    plug(&memory, BlockIndex(0), ZoneKind::Movable);
    plug(&memory, BlockIndex(1), ZoneKind::Movable);
    assert_eq!(
        memory.zone(NodeId::ZERO, ZoneKind::Movable).counters().free_pages,
        2048
    );
    let token = memory.isolate(BlockIndex(1)).unwrap();
    assert_eq!(
        memory.zone(NodeId::ZERO, ZoneKind::Movable).counters().free_pages,
        1024
    );
    assert_eq!(
        memory.migrate_type(Pfn::new(REGION + 1024)),
        Some(MigrateType::Isolate)
    );
    assert!(matches!(
        memory.frame_state(Pfn::new(REGION + 1030)),
        FrameState::Isolated(_)
    ));
    memory.undo(token);
    assert_eq!(
        memory.zone(NodeId::ZERO, ZoneKind::Movable).counters().free_pages,
        2048
    );
    memory.validate().unwrap();
}

#[test]
fn the_zone_spans_what_is_online() {
    let pages = descriptors(512 * 3);
    let memory = small_memory(&pages, 512, 3);
    for block in 0..3 {
        plug(&memory, BlockIndex(block), ZoneKind::Movable);
    }
    for (block, spanned, present) in [(1, 1536, 1024), (0, 512, 512), (2, 0, 0)] {
        let token = memory.isolate(BlockIndex(block)).unwrap();
        memory.offline(token).unwrap();
        let counters = memory.zone(NodeId::ZERO, ZoneKind::Movable).counters();
        assert_eq!(
            (counters.spanned_pages, counters.present_pages),
            (spanned, present)
        );
    }
}

#[test]
fn movable_and_unmovable_requests_keep_to_their_own_pageblocks() {
    let (pages, cpu) = (descriptors(512), one_cpu());
    let memory = small_memory(&pages, 512, 1);
    let mut pageblocks = BTreeMap::new();
    for _ in 0..200 {
        for (gfp, migrate_type) in [
            (Gfp::USER, MigrateType::Movable),
            (Gfp::KERNEL, MigrateType::Unmovable),
        ] {
            let pfn = memory.alloc_pages(&cpu, gfp, Order::ZERO).unwrap();
            assert_eq!(memory.migrate_type(pfn), Some(migrate_type));
            let before = pageblocks.insert(pfn.number() / 512, migrate_type);
            assert!(before.is_none_or(|before| before == migrate_type));
        }
    }
    let unmovable = pageblocks
        .values()
        .filter(|&&of| of == MigrateType::Unmovable)
        .count();
    assert_eq!(unmovable, 1, "200 frames fit one pageblock");
    memory.validate().unwrap();
}

#[test]
fn an_unmovable_request_takes_over_a_pageblock_that_is_mostly_free() {
    let (pages, cpu) = (descriptors(512), one_cpu());
    let memory = small_memory(&pages, 512, 1);
    let mut taken = Vec::new();
    while let Ok(pfn) = memory.alloc_pages(&cpu, Gfp::USER, Order::ZERO) {
        taken.push(pfn);
    }
    while memory.alloc_pages(&cpu, Gfp::KERNEL, order(9)).is_ok() {}
    let half = taken
        .iter()
        .filter(|pfn| pfn.number() / 512 == 1 && pfn.number() % 512 < 300);
    half.for_each(|&pfn| memory.free_pages(&cpu, pfn).unwrap());
    assert_eq!(memory.migrate_type(Pfn::new(512)), Some(MigrateType::Movable));
    memory.alloc_pages(&cpu, Gfp::KERNEL, Order::ZERO).unwrap();
    let claimed = (0..BOOT / 512)
        .filter(|pageblock| memory.migrate_type(Pfn::new(pageblock * 512)) == Some(MigrateType::Unmovable));
    assert_eq!(claimed.collect::<Vec<_>>(), [1]);
    memory.validate().unwrap();
}

#[test]
fn each_kind_of_request_leaves_its_watermark_behind() {
    let (pages, cpu) = (descriptors(1024), one_cpu());
    let memory = small_memory(&pages, 1024, 1);
    plug(&memory, BlockIndex(0), ZoneKind::Movable);
    let free = |memory: &PhysicalMemory<'_>, kind| memory.zone(NodeId::ZERO, kind).counters().free_pages;
    let mark = |memory: &PhysicalMemory<'_>, kind, mark| memory.zone(NodeId::ZERO, kind).watermark(mark);
    let (movable, normal) = (ZoneKind::Movable, ZoneKind::Normal);
    let reserve = memory.zone(NodeId::ZERO, normal).reserve(movable);
    assert!(reserve > 0 && mark(&memory, normal, Watermark::Critical) > 0);
    while memory.alloc_pages(&cpu, Gfp::SPARE, Order::ZERO).is_ok() {}
    assert_eq!(free(&memory, movable), mark(&memory, movable, Watermark::Low));
    assert_eq!(
        free(&memory, normal),
        mark(&memory, normal, Watermark::Low) + reserve
    );
    while memory.alloc_pages(&cpu, Gfp::USER, Order::ZERO).is_ok() {}
    assert_eq!(free(&memory, movable), mark(&memory, movable, Watermark::Min));
    assert_eq!(
        free(&memory, normal),
        mark(&memory, normal, Watermark::Min) + reserve
    );
    while memory.alloc_pages(&cpu, Gfp::KERNEL, Order::ZERO).is_ok() {}
    assert_eq!(free(&memory, normal), mark(&memory, normal, Watermark::Min));
    while memory.alloc_pages(&cpu, Gfp::ATOMIC, Order::ZERO).is_ok() {}
    assert_eq!(free(&memory, normal), mark(&memory, normal, Watermark::Critical));
    assert_eq!(free(&memory, movable), mark(&memory, movable, Watermark::Min));
}

/// goals.md: free half of the frames at random, then 200 rounds of freeing and taking 10 % at random. A plain buddy
/// has no free pageblock left then; the ideal is half of them.
#[test]
fn a_random_half_full_workload_leaves_nearly_half_of_the_pageblocks_free() {
    for block_nr_pages in [512u32, 4096, 32768] {
        let nr_pages = 32768;
        let pages: Vec<Page> = (0..nr_pages).map(|_| Page::new()).collect();
        let cpu = one_cpu();
        let memory = PhysicalMemory::new(
            MemMap::new(Pfn::new(0), &pages).unwrap(),
            range(0, 0),
            Topology::one_node(1),
        );
        memory
            .set_hotplug_region(NodeId::ZERO, range(0, nr_pages), block_nr_pages)
            .unwrap();
        for block in 0..nr_pages / block_nr_pages {
            plug(&memory, BlockIndex(block), ZoneKind::Movable);
        }
        let mut taken = Vec::new();
        while let Ok(pfn) = memory.alloc_pages(&cpu, Gfp::USER, Order::ZERO) {
            taken.push(pfn);
        }
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % below as u64).unwrap()
        };
        let half = nr_pages as usize / 2;
        while taken.len() > half {
            let pfn = taken.swap_remove(random(taken.len()));
            memory.free_pages(&cpu, pfn).unwrap();
        }
        for _ in 0..200 {
            for _ in 0..half / 10 {
                let pfn = taken.swap_remove(random(taken.len()));
                memory.free_pages(&cpu, pfn).unwrap();
            }
            for _ in 0..half / 10 {
                taken.push(memory.alloc_pages(&cpu, Gfp::USER, Order::ZERO).unwrap());
            }
        }
        memory.validate().unwrap();
        let chunks = memory.free_chunks(NodeId::ZERO, ZoneKind::Movable);
        let free = chunks[9] + 2 * chunks[10];
        let share = free * 100 / u64::from(nr_pages / 512);
        assert!(
            share >= 45,
            "{share} % of the pageblocks are free with blocks of {block_nr_pages} frames"
        );
    }
}
