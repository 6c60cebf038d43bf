//! Several nodes, all zones: near memory first, zones spared and counted, borders and spans.

use std::vec::Vec;

use guest_sync::{Cpu, CpuId, CpuSet};

use crate::blocks::BlockIndex;
use crate::host::{HostFrames, HostMmu};
use crate::migrate::NodeMove;
use crate::pagetable::translate;
use crate::phys::AddError;
use crate::tests::machine::{MIB, TestMm, anonymous, load, store};
use crate::tests::phys_model::{order, plug, range};
use crate::{
    Access, BootRegion, FreeError, Gfp, HugeAdvice, MemMap, Mm, NodeId, Order, Page, Pfn, PfnRange,
    PhysicalMemory, Topology, Watermark, ZoneKind, ZoneLimits,
};

pub(super) fn node(number: u8) -> NodeId {
    NodeId::new(number).unwrap()
}

fn cpu_id(number: u8) -> CpuId {
    CpuId::new(number).unwrap()
}

pub(super) fn pages(nr_pages: u32) -> Vec<Page> {
    (0..nr_pages).map(|_| Page::new()).collect()
}

/// Frames of each node of [`three_nodes`].
pub(super) const EACH: u32 = 2048;

/// Three nodes of 8 MiB with a CPU each; 0 and 2 are neighbours, 1 is far from both.
pub(super) fn three_nodes(pages: &[Page]) -> (PhysicalMemory<'_>, [Cpu; 3]) {
    let mut topology = Topology::new(3, 3).unwrap();
    for (from, to, distance) in [
        (0, 2, 12),
        (2, 0, 12),
        (0, 1, 30),
        (1, 0, 30),
        (2, 1, 25),
        (1, 2, 25),
    ] {
        topology.set_distance(node(from), node(to), distance).unwrap();
    }
    for number in 0..3 {
        topology.set_cpu_node(cpu_id(number), node(number)).unwrap();
    }
    let all = range(0, 3 * EACH);
    let memory = PhysicalMemory::new(MemMap::new(Pfn::new(0), pages).unwrap(), all, topology);
    for number in 0..3 {
        let span = range(u32::from(number) * EACH, EACH);
        let region = BootRegion {
            node: node(number),
            span,
            usable: &[span],
            reserved: &[],
        };
        memory.add_boot_region(region).unwrap();
    }
    let cpus = CpuSet::new(3).unwrap();
    (
        memory,
        [0, 1, 2].map(|number| cpus.claim(cpu_id(number)).unwrap()),
    )
}

pub(super) fn node_of(memory: &PhysicalMemory<'_>, pfn: Pfn) -> u8 {
    memory.zone_of(pfn).unwrap().node().number()
}

#[test]
fn memory_comes_from_the_cpus_own_node_and_then_from_the_others_by_distance() {
    let pages = pages(3 * EACH);
    let (memory, cpus) = three_nodes(&pages);
    for (number, order_of_nodes) in [(0, [0, 2, 1]), (1, [1, 2, 0]), (2, [2, 0, 1])] {
        let mut taken = Vec::new();
        while let Ok(pfn) = memory.alloc_pages(&cpus[number], Gfp::KERNEL, Order::ZERO) {
            taken.push(pfn);
        }
        let mut seen: Vec<u8> = taken.iter().map(|&pfn| node_of(&memory, pfn)).collect();
        seen.dedup();
        assert_eq!(seen, order_of_nodes);
        memory.free_bulk(&cpus[number], &taken).unwrap();
        memory.drain_all();
    }
    memory.validate().unwrap();
}

#[test]
fn a_request_for_this_node_goes_nowhere_else_and_one_for_another_node_goes_there() {
    let pages = pages(3 * EACH);
    let (memory, cpus) = three_nodes(&pages);
    let far = memory
        .alloc_pages_node(&cpus[0], node(1), Gfp::KERNEL, Order::ZERO)
        .unwrap();
    assert_eq!(node_of(&memory, far), 1);
    let only = Gfp::KERNEL.with(Gfp::THIS_NODE);
    let mut taken = 0;
    while let Ok(pfn) = memory.alloc_pages(&cpus[0], only, Order::ZERO) {
        assert_eq!(node_of(&memory, pfn), 0);
        taken += 1;
    }
    let zone = memory.zone(node(0), ZoneKind::Normal);
    assert_eq!(taken + zone.watermark(Watermark::Min), u64::from(EACH));
    assert!(memory.alloc_pages(&cpus[0], Gfp::KERNEL, Order::ZERO).is_ok());
}

#[test]
fn a_request_for_this_node_fails_where_only_another_node_has_such_a_zone() {
    let pages = pages(2 * EACH);
    let mut topology = Topology::new(1, 2).unwrap();
    topology
        .set_limits(ZoneLimits {
            dma: Pfn::new(512),
            ..ZoneLimits::NORMAL
        })
        .unwrap();
    let memory = PhysicalMemory::new(
        MemMap::new(Pfn::new(0), &pages).unwrap(),
        range(0, 2 * EACH),
        topology,
    );
    for number in 0..2 {
        let span = range(u32::from(number) * EACH, EACH);
        let region = BootRegion {
            node: node(number),
            span,
            usable: &[span],
            reserved: &[],
        };
        memory.add_boot_region(region).unwrap();
    }
    let cpu = CpuSet::new(1).unwrap().claim(CpuId::ZERO).unwrap();
    // One that is at hand from now on, so that the quick way could be taken.
    let dma = memory.alloc_pages(&cpu, Gfp::DMA, Order::ZERO).unwrap();
    memory.free_pages(&cpu, dma).unwrap();
    assert!(
        memory
            .alloc_pages_node(&cpu, node(1), Gfp::DMA, Order::ZERO)
            .is_ok()
    );
    let only = Gfp::DMA.with(Gfp::THIS_NODE);
    assert!(memory.alloc_pages_node(&cpu, node(1), only, Order::ZERO).is_err());
}

#[test]
fn where_requests_were_served_is_counted_as_linux_counts_it() {
    let pages = pages(3 * EACH);
    let (memory, cpus) = three_nodes(&pages);
    let stat = |number| memory.zone_stat(memory.zone(node(number), ZoneKind::Normal));
    let only = Gfp::KERNEL.with(Gfp::THIS_NODE);
    let mut near = 0;
    while memory.alloc_pages(&cpus[0], only, Order::ZERO).is_ok() {
        near += 1;
    }
    // Node 0 is exhausted; this one is served by its neighbour.
    for _ in 0..5 {
        memory.alloc_pages(&cpus[0], Gfp::KERNEL, Order::ZERO).unwrap();
    }
    memory
        .alloc_pages_node(&cpus[0], node(1), Gfp::KERNEL, order(3))
        .unwrap();
    let (first, far, neighbour) = (stat(0), stat(1), stat(2));
    assert_eq!(
        (first.numa_hit, first.numa_local, first.numa_foreign),
        (near, near, 5)
    );
    assert_eq!(
        (neighbour.numa_miss, neighbour.numa_hit, neighbour.numa_other),
        (5, 0, 5)
    );
    assert_eq!((far.numa_hit, far.numa_other, far.pgalloc), (1, 1, 8));
    assert_eq!(first.pgalloc, near);
    // From the CPU's own list, but still another node's.
    let from_neighbour = memory.alloc_pages(&cpus[0], Gfp::KERNEL, Order::ZERO).unwrap();
    memory.free_pages(&cpus[0], from_neighbour).unwrap();
    memory.alloc_pages(&cpus[0], Gfp::KERNEL, Order::ZERO).unwrap();
    let neighbour = stat(2);
    assert!(neighbour.pcp_hit > 0);
    assert_eq!((neighbour.numa_miss, neighbour.numa_hit), (7, 0));
    memory.validate().unwrap();
}

#[test]
fn a_node_that_cannot_be_reached_is_never_used() {
    let pages = pages(2 * EACH);
    let mut topology = Topology::new(1, 2).unwrap();
    topology
        .set_distance(node(0), node(1), crate::node::UNREACHABLE)
        .unwrap();
    let memory = PhysicalMemory::new(
        MemMap::new(Pfn::new(0), &pages).unwrap(),
        range(0, 2 * EACH),
        topology,
    );
    let region = BootRegion {
        node: node(1),
        span: range(EACH, EACH),
        usable: &[range(EACH, EACH)],
        reserved: &[],
    };
    memory.add_boot_region(region).unwrap();
    let cpu = CpuSet::new(1).unwrap().claim(CpuId::ZERO).unwrap();
    assert!(memory.alloc_pages(&cpu, Gfp::KERNEL, Order::ZERO).is_err());
    assert!(
        memory
            .alloc_pages_node(&cpu, node(1), Gfp::KERNEL, Order::ZERO)
            .is_ok()
    );
}

/// Zones of 8 MiB each but for Movable, which is 4 MiB in two blocks.
fn all_zones(pages: &[Page]) -> (PhysicalMemory<'_>, Cpu) {
    let mut topology = Topology::one_node(1);
    topology
        .set_limits(ZoneLimits {
            dma: Pfn::new(EACH),
            dma32: Pfn::new(2 * EACH),
            normal: Pfn::new(3 * EACH),
        })
        .unwrap();
    let boot = range(0, 4 * EACH);
    let memory = PhysicalMemory::new(MemMap::new(Pfn::new(0), pages).unwrap(), boot, topology);
    let region = BootRegion {
        node: node(0),
        span: boot,
        usable: &[boot],
        reserved: &[range(0, 256), range(EACH + 5, 11)],
    };
    memory.add_boot_region(region).unwrap();
    memory
        .set_hotplug_region(node(0), range(5 * EACH, 1024), 512)
        .unwrap();
    plug(&memory, BlockIndex(0), ZoneKind::Movable);
    plug(&memory, BlockIndex(1), ZoneKind::Movable);
    let cpu = CpuSet::new(1).unwrap().claim(CpuId::ZERO).unwrap();
    (memory, cpu)
}

const ALL_ZONES: u32 = 5 * EACH + 1024;

#[test]
fn boot_memory_is_split_where_zones_end_and_counted_exactly() {
    let pages = pages(ALL_ZONES);
    let (memory, _) = all_zones(&pages);
    let expect = |kind, span: PfnRange, present: u32, managed: u32| {
        let zone = memory.zone(node(0), kind);
        let counters = zone.counters();
        assert_eq!(zone.span(), span);
        assert_eq!(counters.present_pages, u64::from(present));
        assert_eq!(counters.managed_pages, u64::from(managed));
        assert_eq!(counters.free_pages, u64::from(managed));
    };
    expect(ZoneKind::Dma, range(0, EACH), EACH, EACH - 256);
    expect(ZoneKind::Dma32, range(EACH, EACH), EACH, EACH - 11);
    expect(ZoneKind::Normal, range(2 * EACH, EACH), EACH, EACH);
    expect(ZoneKind::HighMem, range(3 * EACH, EACH), EACH, EACH);
    expect(ZoneKind::Movable, range(5 * EACH, 1024), 1024, 1024);
    let node = memory.node(node(0)).unwrap();
    assert_eq!(
        (node.nr_zones(), node.present_pages()),
        (5, u64::from(4 * EACH + 1024))
    );
    assert_eq!(node.span(), range(0, ALL_ZONES));
    let order: Vec<ZoneKind> = node.zonelist().map(crate::Zone::kind).collect();
    assert!(order.is_sorted_by(|higher, lower| higher > lower));
}

#[test]
fn each_request_starts_at_its_highest_zone_and_falls_back_downwards_only() {
    let pages = pages(ALL_ZONES);
    let (memory, cpu) = all_zones(&pages);
    let cases = [
        (Gfp::DMA, &[ZoneKind::Dma][..]),
        (Gfp::DMA32, &[ZoneKind::Dma32, ZoneKind::Dma]),
        (Gfp::KERNEL, &[ZoneKind::Normal, ZoneKind::Dma32, ZoneKind::Dma]),
        (
            Gfp::KERNEL.with(Gfp::HIGHMEM),
            &[
                ZoneKind::HighMem,
                ZoneKind::Normal,
                ZoneKind::Dma32,
                ZoneKind::Dma,
            ],
        ),
        (
            Gfp::USER,
            &[
                ZoneKind::Movable,
                ZoneKind::HighMem,
                ZoneKind::Normal,
                ZoneKind::Dma32,
                ZoneKind::Dma,
            ],
        ),
    ];
    for (gfp, zones) in cases {
        let mut taken = Vec::new();
        while let Ok(pfn) = memory.alloc_pages(&cpu, gfp, Order::ZERO) {
            taken.push(pfn);
        }
        let mut seen: Vec<ZoneKind> = taken
            .iter()
            .map(|&pfn| memory.zone_of(pfn).unwrap().kind())
            .collect();
        seen.dedup();
        assert_eq!(seen, zones, "{gfp:?}");
        for &kind in zones {
            let zone = memory.zone(node(0), kind);
            let left = zone.watermark(Watermark::Min) + zone.reserve(gfp.highest_zone());
            assert_eq!(zone.counters().free_pages, left, "{gfp:?} in {}", kind.name());
        }
        memory.free_bulk(&cpu, &taken).unwrap();
        memory.drain_all();
        memory.validate().unwrap();
    }
    let pgalloc = memory.stats().pgalloc;
    assert!(pgalloc.iter().all(|&frames| frames > 0), "{pgalloc:?}");
}

#[test]
fn small_zones_keep_a_part_for_those_who_can_use_no_other() {
    let pages = pages(ALL_ZONES);
    let (memory, _) = all_zones(&pages);
    let dma = memory.zone(node(0), ZoneKind::Dma);
    // A 256th of what lies above: Dma32 and Normal.
    assert_eq!(dma.reserve(ZoneKind::Normal), u64::from(2 * EACH - 11) / 256);
    assert_eq!(dma.reserve(ZoneKind::Dma), 0);
    assert_eq!(dma.reserve(ZoneKind::Movable), u64::from(EACH - 256) / 16);
    assert_eq!(
        memory.zone(node(0), ZoneKind::HighMem).reserve(ZoneKind::Movable),
        0
    );
    let normal = memory.zone(node(0), ZoneKind::Normal);
    assert_eq!(normal.reserve(ZoneKind::Movable), u64::from(EACH) / 16);
}

#[test]
fn the_first_zone_of_a_request_follows_memory_that_comes_and_goes() {
    let pages = pages(ALL_ZONES);
    let (memory, cpu) = all_zones(&pages);
    let kind = || {
        let pfn = memory.alloc_pages(&cpu, Gfp::USER, Order::ZERO).unwrap();
        let kind = memory.zone_of(pfn).unwrap().kind();
        memory.free_pages(&cpu, pfn).unwrap();
        kind
    };
    assert_eq!(kind(), ZoneKind::Movable);
    for block in [BlockIndex(0), BlockIndex(1)] {
        let token = memory.isolate(block).unwrap();
        memory.offline(token).unwrap();
        memory.validate().unwrap();
    }
    assert_eq!(kind(), ZoneKind::HighMem);
    memory.online(BlockIndex(1), ZoneKind::Movable).unwrap();
    assert_eq!(kind(), ZoneKind::Movable);
    memory.validate().unwrap();
}

#[test]
fn bad_regions_are_refused_with_the_reason_and_change_nothing() {
    let pages = pages(4 * EACH);
    let map = MemMap::new(Pfn::new(512), &pages[..usize::try_from(3 * EACH).unwrap()]).unwrap();
    let memory = PhysicalMemory::new(map, range(512, 2 * EACH), Topology::one_node(1));
    let add = |node, span| {
        memory.add_boot_region(BootRegion {
            node,
            span,
            usable: &[span],
            reserved: &[],
        })
    };
    let (empty, odd, below) = (range(1024, 0), range(1024, 700), range(0, 1024));
    assert_eq!(add(NodeId::ZERO, empty), Err(AddError::Unaligned(empty)));
    assert_eq!(add(NodeId::ZERO, odd), Err(AddError::Unaligned(odd)));
    assert_eq!(add(NodeId::ZERO, below), Err(AddError::Descriptors(below)));
    assert_eq!(add(node(3), range(512, 512)), Err(AddError::UnknownNode(node(3))));
    let unannounced = range(512 + 2 * EACH, 512);
    assert_eq!(
        add(NodeId::ZERO, unannounced),
        Err(AddError::Descriptors(unannounced))
    );
    add(NodeId::ZERO, range(512, 1024)).unwrap();
    let overlapping = range(1024, 1024);
    assert_eq!(
        add(NodeId::ZERO, overlapping),
        Err(AddError::Overlap(overlapping))
    );
    assert_eq!(memory.memory_stats().total_pages, 1024);
    let plug = |range, block| memory.set_hotplug_region(NodeId::ZERO, range, block);
    for block_nr_pages in [0, 256, 768, 4096] {
        let refused = plug(range(2048, 1536), block_nr_pages);
        assert_eq!(refused, Err(AddError::BlockSize { block_nr_pages }));
    }
    assert_eq!(plug(overlapping, 512), Err(AddError::Overlap(overlapping)));
    assert_eq!(
        plug(range(1025, 512), 512),
        Err(AddError::Unaligned(range(1025, 512)))
    );
    let beyond = range(3 * EACH, 2 * EACH);
    assert_eq!(plug(beyond, 512), Err(AddError::Descriptors(beyond)));
    plug(range(2048, 1024), 512).unwrap();
    assert_eq!(plug(range(4096, 512), 512), Err(AddError::SecondRegion));
    assert_eq!(
        add(NodeId::ZERO, range(2048, 512)),
        Err(AddError::Overlap(range(2048, 512)))
    );
    memory.validate().unwrap();
    assert!(MemMap::new(Pfn::new(5), &pages).is_none());
    assert!(PfnRange::new(Pfn::new(u32::MAX - 5), 512).is_none(), "wraps");
    assert_eq!(Order::new(11), None);
}

#[test]
fn pages_with_an_owner_cannot_be_freed_behind_its_back() {
    let pages = pages(ALL_ZONES);
    let (memory, cpu) = all_zones(&pages);
    let pfn = memory.alloc_pages(&cpu, Gfp::KERNEL, order(2)).unwrap();
    let page = memory.page(pfn).unwrap();
    page.add_flags(crate::PageFlags::SLAB);
    let refused = memory.free_pages(&cpu, pfn).unwrap_err();
    let flags = crate::PageFlags::SLAB;
    assert_eq!(
        refused,
        FreeError::InUse {
            pfn,
            others: 0,
            flags
        }
    );
    page.clear();
    memory.free_pages(&cpu, pfn).unwrap();
    memory.validate().unwrap();
}

#[test]
fn the_memory_of_a_program_moves_to_another_node_but_for_what_others_map() {
    let pages = pages(3 * EACH);
    let (memory, cpus) = three_nodes(&pages);
    let mut frames = HostFrames::new();
    frames.plug(range(0, 3 * EACH));
    let mm: TestMm<'_> = Mm::new(&memory, frames, HostMmu::new());
    let cpu = &cpus[0];
    let id = mm.create_space(cpu, &[]).unwrap();
    let small = mm.mmap(id, &anonymous(64 * 4096, HugeAdvice::NoHuge)).unwrap();
    let huge = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    for page in 0..64 {
        store(&mm, cpu, id, small + page * 4096, page + 1).unwrap();
    }
    store(&mm, cpu, id, huge, 99).unwrap();
    // What a child has too stays.
    let child = mm.fork(cpu, id).unwrap();
    for page in 0..60 {
        store(&mm, cpu, child, small + page * 4096, 7).unwrap();
    }
    let nodes = |id| -> Vec<u8> {
        let root = mm.space(id).unwrap().root();
        let at = |page: u64| {
            translate(&mm.frames, root, small + page * 4096, Access::Read)
                .unwrap()
                .gpa
        };
        (0..64)
            .map(|page| node_of(&memory, Pfn::containing(at(page)).unwrap()))
            .collect()
    };
    assert_eq!(nodes(id), [0; 64]);
    let mut moving = NodeMove::new(id, node(0), node(2));
    let mut moved = (0, 0);
    while let Some(report) = mm.migrate_node_batch(cpu, &mut moving, 16) {
        assert!(report.refused.is_empty(), "{report:?}");
        moved = (moved.0 + report.moved_small, moved.1 + report.moved_huge);
        mm.validate().unwrap();
    }
    assert_eq!(
        moved,
        (60, 0),
        "the huge page and four small ones are the child's too"
    );
    assert_eq!(
        (nodes(id)[..60].to_vec(), nodes(id)[60..].to_vec()),
        (std::vec![2; 60], std::vec![0; 4])
    );
    mm.destroy_space(cpu, child).unwrap();
    let mut moving = NodeMove::new(id, node(0), node(2));
    let report = mm.migrate_node_batch(cpu, &mut moving, u32::MAX).unwrap();
    assert_eq!((report.moved_small, report.moved_huge), (4, 1));
    assert!(mm.migrate_node_batch(cpu, &mut moving, u32::MAX).is_none());
    for page in 0..64 {
        assert_eq!(load(&mm, cpu, id, small + page * 4096), Ok(page + 1));
    }
    assert_eq!((load(&mm, cpu, id, huge), nodes(id)), (Ok(99), std::vec![2; 64]));
    mm.destroy_space(cpu, id).unwrap();
    mm.validate().unwrap();
}
