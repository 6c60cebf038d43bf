//! Nodes that come with their first block and go with their last: zonelists, daemons, events.

use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use std::boxed::Box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::Wake;
use std::vec::Vec;

use guest_sync::{Cpu, CpuId, CpuSet};

use super::phys_model::{plug, plug_with, range};
use crate::BlockState::{GoingOffline, Offline, Online, Plugging};
use crate::blocks::Change;
use crate::{
    BlockIndex, BlockState, BootRegion, Gfp, MemMap, Memmap, NodeId, NodeState, Order, Page, Pfn,
    PhysicalMemory, Topology, ZoneKind,
};

/// Frames of boot memory of nodes 0 and 1, and of a block.
const EACH: u32 = 2048;
const BLOCK: u32 = 512;

fn node(number: u8) -> NodeId {
    NodeId::new(number).unwrap()
}

/// Three nodes with a CPU each: 0 and 1 have boot memory, 2 can have two blocks. 2 is nearer to 0 than 1 is, and farthest from 1.
fn memory(pages: &[Page]) -> (PhysicalMemory<'_>, [Cpu; 3]) {
    let mut topology = Topology::new(3, 3).unwrap();
    for (one, other, distance) in [(0, 2, 12), (0, 1, 20), (1, 2, 30)] {
        topology.set_distance(node(one), node(other), distance).unwrap();
        topology.set_distance(node(other), node(one), distance).unwrap();
    }
    let cpu_id = |number| CpuId::new(number).unwrap();
    for number in 0..3 {
        topology.set_cpu_node(cpu_id(number), node(number)).unwrap();
    }
    let memory = PhysicalMemory::new(
        MemMap::new(Pfn::new(0), pages).unwrap(),
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
    let region = range(4 * EACH, 2 * BLOCK);
    memory.set_hotplug_region(node(2), region, BLOCK).unwrap();
    let cpus = CpuSet::new(3).unwrap();
    (
        memory,
        [0, 1, 2].map(|number| cpus.claim(cpu_id(number)).unwrap()),
    )
}

fn pages() -> Vec<Page> {
    (0..4 * EACH + 2 * BLOCK).map(|_| Page::new()).collect()
}

fn zonelists(memory: &PhysicalMemory<'_>) -> [Vec<u8>; 3] {
    [0, 1, 2].map(|from| {
        let list = memory.node(node(from)).unwrap().zonelist();
        list.map(|zone| zone.node().number()).collect()
    })
}

fn remove(memory: &PhysicalMemory<'_>, block: BlockIndex) {
    let token = memory.isolate(block).unwrap();
    memory.offline(token).unwrap();
    memory.unplugged(block).unwrap();
}

#[derive(Default)]
struct Calls(AtomicU32);

impl Wake for Calls {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_node_is_in_the_zonelists_by_its_distance_from_its_first_block_to_its_last() {
    let pages = pages();
    let (memory, cpus) = memory(&pages);
    let states = || [0, 1, 2].map(|number| memory.node_state(node(number)));
    let alone = [NodeState::Online, NodeState::Online, NodeState::Offline];
    let without = [[0, 1], [1, 0], [0, 1]].map(Vec::from);
    assert_eq!((states(), zonelists(&memory)), (alone, without.clone()));
    assert_eq!(memory.boot_pages(node(2)), 0);
    // A CPU near to it gets what is nearest.
    let of_node_2 = |gfp| {
        let pfn = memory.alloc_pages(&cpus[2], gfp, Order::ZERO).unwrap();
        let node = memory.zone_of(pfn).unwrap().node().number();
        memory.free_pages(&cpus[2], pfn).unwrap();
        memory.drain_all();
        node
    };
    assert_eq!(of_node_2(Gfp::USER), 0);

    plug(&memory, BlockIndex(0), ZoneKind::Movable);
    memory.validate().unwrap();
    assert_eq!(states(), [NodeState::Online; 3]);
    assert_eq!(
        zonelists(&memory),
        [[0, 2, 1], [1, 0, 2], [2, 0, 1]].map(Vec::from)
    );
    assert_eq!((of_node_2(Gfp::USER), of_node_2(Gfp::KERNEL)), (2, 0));
    // A second block changes nothing but sizes; one in another zone makes the list longer.
    plug(&memory, BlockIndex(1), ZoneKind::Normal);
    assert_eq!(
        zonelists(&memory),
        [[0, 2, 2, 1].as_slice(), &[1, 0, 2, 2], &[2, 2, 0, 1]].map(Vec::from)
    );
    // What never moves stays in memory that never leaves.
    let of_the_kernel = (of_node_2(Gfp::KERNEL), of_node_2(Gfp::KERNEL_RELOCATABLE));
    assert_eq!(of_the_kernel, (0, 2));

    remove(&memory, BlockIndex(1));
    assert_eq!(states(), [NodeState::Online; 3], "it has another block");
    remove(&memory, BlockIndex(0));
    memory.validate().unwrap();
    assert_eq!((states(), zonelists(&memory)), (alone, without));
    assert_eq!(of_node_2(Gfp::USER), 0);
    assert_eq!(memory.boot_pages(node(1)), u64::from(EACH));
}

#[test]
fn who_follows_the_events_sees_a_node_after_its_first_block_and_after_its_last() {
    let pages = pages();
    let (memory, _) = memory(&pages);
    for block in [BlockIndex(0), BlockIndex(1)] {
        plug(&memory, block, ZoneKind::Movable);
    }
    for block in [BlockIndex(0), BlockIndex(1)] {
        remove(&memory, block);
    }
    let events: Vec<(u64, Change)> = memory
        .hotplug_region()
        .events_after(0)
        .events
        .into_iter()
        .map(|event| (event.number, event.change))
        .filter(|(_, change)| match change {
            Change::Node { .. } => true,
            Change::Block { to, .. } => matches!(to, BlockState::Online | BlockState::Offline),
        })
        .collect();
    let block = |number, from, to| Change::Block {
        block: BlockIndex(number),
        from,
        to,
    };
    let is = |to| Change::Node { node: node(2), to };
    assert_eq!(
        events,
        [
            (2, block(0, Plugging, Offline)),
            (3, block(0, Offline, Online)),
            (4, is(NodeState::Online)),
            (6, block(1, Plugging, Offline)),
            (7, block(1, Offline, Online)),
            (9, block(0, GoingOffline, Offline)),
            (12, block(1, GoingOffline, Offline)),
            (13, is(NodeState::Offline)),
        ]
    );
}

#[test]
fn daemons_of_a_node_are_told_to_end_when_its_last_block_has_gone() {
    let pages = pages();
    let (memory, _) = memory(&pages);
    let calls = Arc::new(Calls::default());
    let waker = calls.clone().into();
    let mut context = Context::from_waker(&waker);
    assert_eq!(
        pin!(memory.daemon_wanted(node(2))).poll(&mut context),
        Poll::Ready(None),
        "it has no memory yet"
    );
    for block in [BlockIndex(0), BlockIndex(1)] {
        plug(&memory, block, ZoneKind::Movable);
    }
    let mut daemons: [Pin<Box<dyn Future<Output = Option<Order>>>>; 3] = [
        Box::pin(memory.daemon_wanted(node(2))),
        Box::pin(memory.compaction_wanted(node(2))),
        Box::pin(memory.daemon_wanted(node(1))),
    ];
    let mut poll_all = || {
        let polled = daemons
            .iter_mut()
            .map(|daemon| daemon.as_mut().poll(&mut context));
        polled.collect::<Vec<_>>()
    };
    assert_eq!(poll_all(), [Poll::Pending; 3]);
    remove(&memory, BlockIndex(0));
    assert_eq!(poll_all(), [Poll::Pending; 3]);
    assert_eq!(calls.0.load(Ordering::Relaxed), 0);
    remove(&memory, BlockIndex(1));
    assert_eq!(calls.0.load(Ordering::Relaxed), 2, "theirs, and nobody else's");
    assert_eq!(poll_all(), [Poll::Ready(None), Poll::Ready(None), Poll::Pending]);
    assert_eq!(memory.stats().compact_daemon_wake, 0);
}

#[test]
fn frames_are_taken_and_freed_while_a_node_comes_and_goes() {
    let pages = pages();
    let (memory, cpus) = memory(&pages);
    let [first, second, _] = cpus;
    let (ends, far) = (AtomicBool::new(false), AtomicU32::new(0));
    let (memory, ends, far) = (&memory, &ends, &far);
    std::thread::scope(|scope| {
        for cpu in [first, second] {
            scope.spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    let mut taken = Vec::new();
                    // More than node 0 has: the node that comes and goes is the next one.
                    while taken.len() < 2200
                        && let Ok(pfn) = memory.alloc_pages_node(&cpu, node(0), Gfp::USER, Order::ZERO)
                    {
                        taken.push(pfn);
                    }
                    let on_node_2 = taken.iter().filter(|pfn| pfn.number() >= 4 * EACH).count();
                    far.fetch_add(u32::try_from(on_node_2).unwrap(), Ordering::Relaxed);
                    memory.free_bulk(&cpu, &taken).unwrap();
                }
            });
        }
        let mut round = 0;
        // On a machine that has much else to do it may take longer until both are there at a time.
        while round < 100 || far.load(Ordering::Relaxed) == 0 {
            for block in [BlockIndex(0), BlockIndex(1)] {
                let memmap = [Memmap::BootMemory, Memmap::OnBlock][round % 2];
                plug_with(memory, block, ZoneKind::Movable, memmap);
                std::thread::yield_now();
            }
            assert_eq!(memory.node_state(node(2)), NodeState::Online);
            for block in [BlockIndex(0), BlockIndex(1)] {
                let mut token = memory.isolate(block).unwrap();
                while let Err(not_empty) = memory.offline(token) {
                    token = not_empty.block;
                    std::thread::yield_now();
                }
                memory.unplugged(block).unwrap();
            }
            assert_eq!(memory.node_state(node(2)), NodeState::Offline);
            round += 1;
        }
        ends.store(true, Ordering::Relaxed);
    });
    memory.validate().unwrap();
}
