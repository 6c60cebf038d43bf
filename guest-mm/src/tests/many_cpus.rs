//! Physical memory with several CPUs, nodes and all zones, against a plain model step by step.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use guest_sync::{Cpu, CpuId, CpuSet};

use crate::blocks::{BlockIndex, BlockState, IsolatedBlock};
use crate::tests::phys_model::{order, plug, range};
use crate::{
    BootRegion, Gfp, MemMap, NodeId, Order, Page, Pfn, PfnRange, PhysicalMemory, Topology, ZoneKind,
    ZoneLimits, ZoneStat,
};

/// First frame of the hot-plug region; odd in pageblocks.
const REGION: u32 = 4096 + 512;
pub(super) const NR_BLOCKS: u32 = 3;
const NR_CPUS: u8 = 3;

fn node(number: u8) -> NodeId {
    NodeId::new(number).unwrap()
}

fn cpu_id(number: u8) -> CpuId {
    CpuId::new(number).unwrap()
}

pub(super) fn pages(block_nr_pages: u32) -> Vec<Page> {
    (0..REGION + NR_BLOCKS * block_nr_pages)
        .map(|_| Page::new())
        .collect()
}

/// Node 0 has DMA, DMA32 and Normal and CPUs 0 and 1; node 1 has Normal, HighMem, the hot-plug region and CPU 2.
pub(super) fn machine(pages: &[Page], block_nr_pages: u32) -> (PhysicalMemory<'_>, Vec<Cpu>) {
    let mut topology = Topology::new(NR_CPUS, 2).unwrap();
    topology.set_cpu_node(cpu_id(2), node(1)).unwrap();
    topology
        .set_limits(ZoneLimits {
            dma: Pfn::new(512),
            dma32: Pfn::new(1024),
            normal: Pfn::new(3584),
        })
        .unwrap();
    let memory = PhysicalMemory::new(MemMap::new(Pfn::new(0), pages).unwrap(), range(0, 4096), topology);
    for (number, span) in [(0, range(0, 2048)), (1, range(2048, 2048))] {
        let region = BootRegion {
            node: node(number),
            span,
            usable: &[range(1, 700), range(800, 4096 - 805)],
            reserved: &[range(500, 30), range(2048, 100)],
        };
        memory.add_boot_region(region).unwrap();
    }
    memory
        .set_hotplug_region(node(1), range(REGION, NR_BLOCKS * block_nr_pages), block_nr_pages)
        .unwrap();
    let cpus = CpuSet::new(NR_CPUS).unwrap();
    let cpus = (0..NR_CPUS).map(|number| cpus.claim(cpu_id(number)).unwrap());
    (memory, cpus.collect())
}

#[derive(Clone, Debug)]
enum Op {
    Alloc {
        cpu: usize,
        near: Option<u8>,
        gfp: Gfp,
        order: u8,
    },
    Bulk {
        cpu: usize,
        gfp: Gfp,
        count: usize,
    },
    Free {
        cpu: usize,
        index: prop::sample::Index,
    },
    FreeBulk {
        cpu: usize,
        count: usize,
    },
    Drain,
    Plug {
        block: u32,
        kind: ZoneKind,
    },
    Isolate(u32),
    Undo(u32),
    Offline(u32),
}

fn gfps() -> impl Strategy<Value = Gfp> {
    let kinds = vec![
        Gfp::KERNEL,
        Gfp::ATOMIC,
        Gfp::USER,
        Gfp::SPARE,
        Gfp::DMA,
        Gfp::DMA32,
        Gfp::KERNEL.with(Gfp::RECLAIMABLE),
        Gfp::KERNEL.with(Gfp::HIGHMEM),
        Gfp::KERNEL.with(Gfp::MEMALLOC),
    ];
    let also = vec![Gfp::NONE, Gfp::NONE, Gfp::COLD, Gfp::THIS_NODE];
    (prop::sample::select(kinds), prop::sample::select(also)).prop_map(|(gfp, also)| gfp.with(also))
}

fn ops() -> impl Strategy<Value = Op> {
    let cpu = || 0usize..usize::from(NR_CPUS);
    let size = prop_oneof![8 => Just(0u8), 3 => 1u8..9, 3 => Just(9u8), 1 => Just(10u8)];
    let kind = prop::sample::select(vec![ZoneKind::Movable, ZoneKind::Movable, ZoneKind::Normal]);
    prop_oneof![
        10 => (cpu(), prop::option::of(0u8..2), gfps(), size)
            .prop_map(|(cpu, near, gfp, order)| Op::Alloc { cpu, near, gfp, order }),
        4 => (cpu(), gfps(), 1usize..200).prop_map(|(cpu, gfp, count)| Op::Bulk { cpu, gfp, count }),
        6 => (cpu(), any::<prop::sample::Index>()).prop_map(|(cpu, index)| Op::Free { cpu, index }),
        3 => (cpu(), 1usize..200).prop_map(|(cpu, count)| Op::FreeBulk { cpu, count }),
        1 => Just(Op::Drain),
        3 => (0..NR_BLOCKS, kind).prop_map(|(block, kind)| Op::Plug { block, kind }),
        2 => (0..NR_BLOCKS).prop_map(Op::Isolate),
        1 => (0..NR_BLOCKS).prop_map(Op::Undo),
        2 => (0..NR_BLOCKS).prop_map(Op::Offline),
    ]
}

/// The memory under test and what is known of it from outside.
struct World<'m> {
    memory: PhysicalMemory<'m>,
    cpus: Vec<Cpu>,
    taken: BTreeMap<Pfn, Order>,
    isolated: BTreeMap<u32, IsolatedBlock>,
    /// Frames taken and given back, and requests served, since the beginning.
    taken_pages: u64,
    freed_pages: u64,
    served: u64,
}

impl<'m> World<'m> {
    fn new(pages: &'m [Page], block_nr_pages: u32) -> Self {
        let (memory, cpus) = machine(pages, block_nr_pages);
        Self {
            memory,
            cpus,
            taken: BTreeMap::new(),
            isolated: BTreeMap::new(),
            taken_pages: 0,
            freed_pages: 0,
            served: 0,
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Alloc {
                cpu,
                near,
                gfp,
                order: size,
            } => {
                let (cpu, own) = (&self.cpus[cpu], node(u8::from(cpu == 2)));
                let near = near.map_or(own, node);
                match self.memory.alloc_pages_node(cpu, near, gfp, order(size)) {
                    Ok(pfn) => self.took(pfn, order(size), gfp, near),
                    Err(_) => self.check_exhausted(gfp, order(size), near),
                }
            }
            Op::Bulk { cpu, gfp, count } => {
                let mut frames = vec![Pfn::default(); count];
                let taken = self.memory.alloc_bulk(&self.cpus[cpu], gfp, &mut frames);
                let near = node(u8::from(cpu == 2));
                for &pfn in &frames[..taken] {
                    self.took(pfn, Order::ZERO, gfp, near);
                }
                if taken < count {
                    self.check_exhausted(gfp, Order::ZERO, near);
                }
            }
            Op::Free { cpu, index } if !self.taken.is_empty() => {
                let (&pfn, _) = self.taken.iter().nth(index.index(self.taken.len())).unwrap();
                self.free(cpu, &[pfn]);
            }
            Op::FreeBulk { cpu, count } => {
                let frames: Vec<Pfn> = self.taken.keys().copied().step_by(2).take(count).collect();
                self.free(cpu, &frames);
            }
            Op::Free { .. } => {}
            Op::Drain => {
                self.memory.drain_all();
                assert!(self.memory.zones().all(|zone| zone.counters().cached_pages == 0));
            }
            Op::Plug { block, kind } => {
                let block = BlockIndex(block);
                if self.memory.hotplug_region().state(block) == Some(BlockState::Unplugged) {
                    plug(&self.memory, block, kind);
                }
            }
            Op::Isolate(block) => {
                if let Ok(token) = self.memory.isolate(BlockIndex(block)) {
                    self.isolated.insert(block, token);
                }
            }
            Op::Undo(block) => {
                if let Some(token) = self.isolated.remove(&block) {
                    self.memory.undo(token);
                }
            }
            Op::Offline(block) => self.offline(block),
        }
        self.check();
    }

    fn took(&mut self, pfn: Pfn, order: Order, gfp: Gfp, near: NodeId) {
        assert!(pfn.is_aligned(order));
        let new = PfnRange::new(pfn, order.nr_pages()).unwrap();
        let before = self.taken.range(..new.end()).next_back();
        let clear = before.is_none_or(|(&other, size)| other + size.nr_pages() <= pfn);
        assert!(clear, "{new} is part of {before:?}");
        let zone = self.memory.zone_of(pfn).unwrap();
        assert!(
            zone.kind() <= gfp.highest_zone(),
            "{gfp:?} in {}",
            zone.kind().name()
        );
        assert!(zone.span().covers(new), "crosses the border of a zone");
        assert!(!gfp.has(Gfp::THIS_NODE) || zone.node() == near);
        let block = self.memory.block_of(pfn);
        assert_eq!(
            block,
            self.memory.block_of(pfn + (order.nr_pages() - 1)),
            "crosses a border"
        );
        assert!(
            block.is_none_or(|block| !self.isolated.contains_key(&block.0)),
            "isolated"
        );
        self.taken.insert(pfn, order);
        self.taken_pages += u64::from(order.nr_pages());
        self.served += 1;
    }

    /// A request may only fail when no zone that it may use has what it wants.
    fn check_exhausted(&self, gfp: Gfp, order: Order, near: NodeId) {
        for zone in self.memory.zones() {
            let is_other = gfp.has(Gfp::THIS_NODE) && zone.node() != near;
            let is_left_alone = gfp.has(Gfp::THIS_NODE) && gfp.is_fixed() && !zone.has_boot_memory();
            if zone.kind() > gfp.highest_zone() || is_other || is_left_alone {
                continue;
            }
            let counters = zone.counters();
            assert_eq!(counters.cached_pages, 0, "what CPUs kept was tried too");
            let keep = match gfp.watermark() {
                crate::Watermark::Nothing => 0,
                mark => zone.watermark(mark) + zone.reserve(gfp.highest_zone()),
            };
            let chunks = self.memory.free_chunks(zone.node(), zone.kind());
            let fits = chunks[order.index()..].iter().any(|&chunks| chunks > 0);
            let spare = counters.free_pages >= u64::from(order.nr_pages()) + keep;
            assert!(
                !fits || !spare,
                "{gfp:?} of order {} refused by {}",
                order.number(),
                zone.kind().name()
            );
        }
    }

    fn free(&mut self, cpu: usize, frames: &[Pfn]) {
        for pfn in frames {
            self.freed_pages += u64::from(self.taken.remove(pfn).unwrap().nr_pages());
        }
        self.memory.free_bulk(&self.cpus[cpu], frames).unwrap();
        for &pfn in frames {
            assert!(
                self.memory.free_pages(&self.cpus[cpu], pfn).is_err(),
                "freed twice"
            );
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
        let used = self.taken.range(range.start()..range.end());
        let used: u32 = used.map(|(_, order)| order.nr_pages()).sum();
        match self.memory.offline(token) {
            Ok(()) => {
                assert_eq!(used, 0);
                assert!(range.iter().all(|pfn| self.memory.page(pfn).is_none()));
                self.memory.unplugged(BlockIndex(block)).unwrap();
            }
            Err(refused) => {
                assert_eq!(refused.used_pages, used);
                assert_ne!(used, 0);
                self.isolated.insert(block, refused.block);
            }
        }
    }

    /// Everything that can be derived from what was taken and freed.
    fn check(&self) {
        self.memory.validate().unwrap();
        let mut sum = ZoneStat::default();
        for zone in self.memory.zones() {
            sum.add(&self.memory.zone_stat(zone));
        }
        assert_eq!((sum.pgalloc, sum.pgfree), (self.taken_pages, self.freed_pages));
        assert_eq!(sum.numa_hit + sum.numa_miss, self.served);
        assert_eq!(sum.numa_local + sum.numa_other, self.served);
        assert_eq!(sum.numa_miss, sum.numa_foreign);
        let in_use: u64 = self.taken.values().map(|order| u64::from(order.nr_pages())).sum();
        let stats = self.memory.memory_stats();
        assert_eq!(
            stats.total_pages - stats.free_pages - stats.isolated_pages,
            in_use
        );
        let isolated = |&pfn: &Pfn| self.memory.migrate_type(pfn) == Some(crate::MigrateType::Isolate);
        for &block in self.isolated.keys() {
            let range = self
                .memory
                .hotplug_region()
                .block_range(BlockIndex(block))
                .unwrap();
            assert!(isolated(&range.start()));
        }
    }
}

#[test]
fn isolation_takes_a_blocks_frames_off_the_lists_of_all_cpus() {
    let pages = pages(512);
    let (memory, cpus) = machine(&pages, 512);
    plug(&memory, BlockIndex(0), ZoneKind::Movable);
    for cpu in &cpus {
        let pfn = memory
            .alloc_pages_node(cpu, node(1), Gfp::USER, Order::ZERO)
            .unwrap();
        assert_eq!(memory.block_of(pfn), Some(BlockIndex(0)));
        memory.free_pages(cpu, pfn).unwrap();
        assert_eq!(memory.frame_state(pfn), crate::FrameState::Cached(Order::ZERO));
    }
    let token = memory.isolate(BlockIndex(0)).unwrap();
    assert_eq!(memory.used_pages(&token), 0);
    memory.offline(token).unwrap();
}

#[test]
fn cold_requests_take_the_frame_that_was_freed_longest_ago_and_others_the_last_one() {
    let pages = pages(512);
    let (memory, cpus) = machine(&pages, 512);
    let cpu = &cpus[0];
    let taken = [(); 3].map(|()| memory.alloc_pages(cpu, Gfp::KERNEL, Order::ZERO).unwrap());
    memory.drain_all();
    for pfn in taken {
        memory.free_pages(cpu, pfn).unwrap();
    }
    let cold = Gfp::KERNEL.with(Gfp::COLD);
    assert_eq!(memory.alloc_pages(cpu, cold, Order::ZERO), Ok(taken[0]));
    assert_eq!(memory.alloc_pages(cpu, Gfp::KERNEL, Order::ZERO), Ok(taken[2]));
}

#[test]
fn a_frame_that_was_put_on_a_list_while_its_block_was_isolated_is_not_handed_out() {
    let pages = pages(512);
    let (memory, cpus) = machine(&pages, 512);
    plug(&memory, BlockIndex(0), ZoneKind::Movable);
    plug(&memory, BlockIndex(1), ZoneKind::Movable);
    let cpu = &cpus[2];
    let pfn = memory.alloc_pages(cpu, Gfp::USER, Order::ZERO).unwrap();
    let token = memory.isolate(memory.block_of(pfn).unwrap()).unwrap();
    // As if its owner had looked just before.
    let zone = memory.zone_of(pfn).unwrap();
    let list = crate::pcp::OwnList::of(zone.lists().this(cpu), Order::ZERO, Gfp::USER.mobility());
    let page = memory.page(pfn).unwrap();
    page.set_head(crate::page::Head::cached(Order::ZERO));
    let _ = list.unwrap().push(pfn);
    for _ in 0..20 {
        let other = memory.alloc_pages(cpu, Gfp::USER, Order::ZERO).unwrap();
        assert_ne!(memory.block_of(other), Some(token.block()));
    }
    assert!(matches!(memory.frame_state(pfn), crate::FrameState::Isolated(_)));
    memory.validate().unwrap();
    memory.offline(token).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn several_cpus_nodes_and_zones_agree_with_a_map_of_what_was_handed_out(
        shift in 0u32..2,
        ops in prop::collection::vec(ops(), 1..100),
    ) {
        let pages = pages(512 << shift);
        let mut world = World::new(&pages, 512 << shift);
        for op in &ops {
            world.step(op);
        }
        let rest: Vec<Pfn> = world.taken.keys().copied().collect();
        world.free(0, &rest);
        for (_, token) in core::mem::take(&mut world.isolated) {
            world.memory.undo(token);
        }
        world.check();
        world.memory.drain_all();
        world.memory.validate().unwrap();
        for zone in world.memory.zones() {
            let counters = zone.counters();
            prop_assert_eq!(counters.free_pages, counters.managed_pages);
        }
    }
}

#[test]
fn every_sequence_of_three_steps_of_two_cpus_keeps_the_invariants() {
    let user = |cpu, order| Op::Alloc {
        cpu,
        near: None,
        gfp: Gfp::USER,
        order,
    };
    let steps = [
        user(0, 0),
        user(2, 9),
        Op::Bulk {
            cpu: 2,
            gfp: Gfp::USER,
            count: 130,
        },
        Op::FreeBulk { cpu: 0, count: 100 },
        Op::FreeBulk { cpu: 2, count: 1 },
        Op::Plug {
            block: 0,
            kind: ZoneKind::Movable,
        },
        Op::Isolate(0),
        Op::Undo(0),
        Op::Offline(0),
    ];
    let pages = pages(512);
    for sequence in 0..steps.len().pow(3) {
        for page in &pages {
            page.set_blank();
        }
        let mut world = World::new(&pages, 512);
        world.step(&Op::Plug {
            block: 0,
            kind: ZoneKind::Movable,
        });
        let mut digits = sequence;
        for _ in 0..3 {
            world.step(&steps[digits % steps.len()]);
            digits /= steps.len();
        }
    }
}
