//! Programs whose memory moves from node to node while they run (`migratepages`); some times that ends early.

use super::executor::pause;
use super::{Sim, count};
use crate::NodeId;
use crate::migrate::NodeMove;

pub(super) async fn live(sim: &Sim<'_>) {
    let nodes: std::vec::Vec<NodeId> = sim.mm.phys.topology().nodes().collect();
    let [first, second] = nodes[..] else { return };
    while !sim.is_ending.get() {
        sim.clock.sleep(1 + sim.below(120)).await;
        let Some(process) = sim.some_process() else {
            continue;
        };
        let (from, to) = match sim.one_in(2) {
            true => (first, second),
            false => (second, first),
        };
        move_memory(sim, NodeMove::new(process.space, from, to), to).await;
    }
}

async fn move_memory(sim: &Sim<'_>, mut moving: NodeMove, to: NodeId) {
    loop {
        let budget = u32::try_from(1 + sim.below(128)).unwrap();
        let free = free_pages(sim, to);
        let batch = sim.with_failures(|| sim.mm.migrate_node_batch(sim.cpu, &mut moving, budget));
        let Some(report) = batch else { return };
        sim.look_at_refusals(&report.refused);
        let moved = report.moved_small + 512 * report.moved_huge;
        let taken = free.saturating_sub(free_pages(sim, to));
        assert!(
            taken >= u64::from(moved),
            "{moved} pages moved to node {to}, which has {taken} fewer free"
        );
        count(&sim.seen.node_moves, moved);
        if sim.one_in(10) {
            return;
        }
        pause().await;
    }
}

/// Free pages of a node, those that CPUs keep at hand too.
fn free_pages(sim: &Sim<'_>, node: NodeId) -> u64 {
    let zones = sim.mm.phys.populated_zones().filter(|zone| zone.node() == node);
    zones
        .map(|zone| zone.counters().free_pages + zone.counters().cached_pages)
        .sum()
}
