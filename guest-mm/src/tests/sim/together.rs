//! Blocks on their way out, as the guest's resize worker has several of them go: pages that leave memory first, then one look at all of the blocks
//! together, with batches that have pages of more than one, and then what is left by itself, one block after the other. All of it may be given up wherever
//! it waits, by dropping it: then they are all back in use, those too that were empty.

use core::mem::take;
use std::vec::Vec;

use super::executor::pause;
use super::leaving::{Emptied, Leaving, Refused, UnderWay, evict};
use super::{BLOCK, BLOCKS, Sim, count};
use crate::blocks::{BlockIndex, IsolatedBlock};
use crate::migrate::{BatchEnd, Method};

/// See the module.
pub(super) struct Together<'a, 'm> {
    sim: &'a Sim<'m>,
    /// The one that comes last goes first.
    used: Vec<IsolatedBlock>,
    offline: Vec<BlockIndex>,
    /// What would not go in the look at all of them.
    refused: Refused,
}

impl Drop for Together<'_, '_> {
    fn drop(&mut self) {
        for block in take(&mut self.used) {
            self.sim.put_back(block);
        }
        for block in take(&mut self.offline) {
            self.sim.bring_online(block);
        }
    }
}

impl<'a, 'm> Together<'a, 'm> {
    pub(super) fn new(sim: &'a Sim<'m>, blocks: Vec<IsolatedBlock>) -> Self {
        Self {
            sim,
            used: blocks,
            offline: Vec::new(),
            refused: Refused::default(),
        }
    }

    /// Has everything go, in one of three ways. The blocks that are offline then; the others are in use as before.
    pub(super) async fn empty(mut self, method: Method) -> Vec<BlockIndex> {
        if self.used.len() > 1 {
            self.look(method).await;
        }
        while let Some(block) = self.used.pop() {
            let leaving = Leaving::after_others(self.sim, block, self.refused.clone());
            if let Emptied::Yes(block) = leaving.empty(method).await {
                self.offline.push(block);
            }
        }
        take(&mut self.offline)
    }

    /// The look at all of them, which nothing is waited for in but disks.
    async fn look(&mut self, method: Method) {
        if let Some(which) = method.eviction() {
            evict(self.sim, &mut self.used, which).await;
        }
        loop {
            pause().await;
            if self.move_some().await != BatchEnd::Budget {
                return;
            }
        }
    }

    /// One batch, with programs running between its steps.
    async fn move_some(&mut self) -> BatchEnd {
        let (sim, blocks) = (self.sim, &mut self.used[..]);
        let budget = u32::try_from(1 + sim.below(u64::from(BLOCK * BLOCKS) / 2)).unwrap();
        let batch = sim.with_failures(|| sim.mm.begin_migration_together(sim.cpu, blocks, budget));
        let batch = UnderWay::new(sim, batch, &sim.seen.together_given_up);
        let batch = batch.copied().await;
        let left = |blocks: &[IsolatedBlock]| -> Vec<(u32, u32)> {
            let both = |block| (sim.mm.phys.used_pages(block), block.moved_pages());
            blocks.iter().map(both).collect()
        };
        let before = left(blocks);
        let mut report = sim.mm.finish_migration_together(sim.cpu, blocks, batch);
        let mut nr_of_blocks = 0;
        for (block, (before, after)) in blocks.iter().zip(before.iter().zip(left(blocks))) {
            let moved = after.1 - before.1;
            assert!(
                before.0 >= after.0 + moved,
                "{moved} pages are said to have moved off {:?}, which had {} and has {}",
                block.block(),
                before.0,
                after.0
            );
            nr_of_blocks += u32::from(moved > 0);
        }
        count(&sim.seen.together, u32::from(nr_of_blocks > 1));
        let first = blocks.first_mut().expect("there are several");
        sim.move_kernel_memory(first, &mut report);
        sim.look_at_report(&report);
        self.refused.note(&report.refused);
        report.end
    }
}
