//! Free memory gathered into pageblocks under the programs; now and then it is given up halfway.

use std::vec::Vec;

use super::executor::pause;
use super::{Sim, count};
use crate::compact::Goal;
use crate::pfn::Order;

pub(super) async fn live(sim: &Sim<'_>) {
    while !sim.is_ending.get() {
        for _ in 0..sim.below(24) {
            pause().await;
        }
        let zones: Vec<_> = sim.mm.phys.populated_zones().collect();
        let zone = zones[usize::try_from(sim.below(zones.len() as u64)).unwrap()];
        let goal = match sim.below(4) {
            0 => {
                let order = u8::try_from(1 + sim.below(9)).unwrap();
                Goal::Chunk(Order::new(order).unwrap())
            }
            1 => Goal::Fragmentation(u32::try_from(sim.below(90)).unwrap()),
            _ => Goal::Everything,
        };
        let Ok(mut run) = sim.mm.begin_compaction(zone, goal) else {
            continue;
        };
        while sim
            .with_failures(|| sim.mm.compaction_step(sim.cpu, &mut run))
            .is_none()
            && !sim.one_in(20)
        {
            pause().await;
        }
        drop(run);
    }
    let moved = sim.mm.phys.stats().compact_isolated;
    count(&sim.seen.compacted, u32::try_from(moved).unwrap());
}
