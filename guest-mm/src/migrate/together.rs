//! Blocks that are emptied together, one after the other: a batch has pages of several of them, so that a flush is for more pages than one block has in use.

use guest_sync::Cpu;

use crate::blocks::{InUse, IsolatedBlock};
use crate::frames::{Frames, Mmu};
use crate::gfp::Gfp;
use crate::migrate::{MigrateReport, MigrationBatch, Route, TwoStage};
use crate::mm::Mm;
use crate::pfn::{Order, Pfn};
use crate::phys::PhysicalMemory;

/// One pass over each of the blocks, which puts busy pages off.
struct Together<'b> {
    blocks: &'b mut [IsolatedBlock],
    /// Which of them is looked at; those before have no page left that was not looked at in this pass.
    at: usize,
}

impl Route for Together<'_> {
    fn next_in_use(&mut self, phys: &PhysicalMemory<'_>) -> Option<InUse> {
        loop {
            let block = self.blocks.get_mut(self.at)?;
            let found = phys.next_in_use(block);
            if found.is_some() {
                return found;
            }
            block.pass_done();
            self.at += 1;
        }
    }

    fn step_back(&mut self, order: Order) {
        self.blocks[self.at].step_back(order);
    }

    fn destination(&mut self, phys: &PhysicalMemory<'_>, cpu: &Cpu, order: Order) -> Option<Pfn> {
        phys.alloc_pages(cpu, Gfp::SPARE, order).ok()
    }

    fn moved(&mut self, from: Pfn, nr_pages: u32) {
        let mut blocks = self.blocks.iter_mut();
        let home = blocks.find(|block| block.range().contains(from));
        home.expect("a page of one of the blocks").moved(from, nr_pages);
    }

    fn two_stage(&mut self) -> Option<&mut TwoStage> {
        self.blocks.get_mut(self.at)?.two_stage()
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// As [`Mm::begin_migration`], for the next pages of all of these blocks. A pass is done once each of them was looked at.
    pub fn begin_migration_together(
        &self,
        cpu: &Cpu,
        blocks: &mut [IsolatedBlock],
        budget_pages: u32,
    ) -> MigrationBatch {
        self.begin_moves(cpu, &mut Together { blocks, at: 0 }, budget_pages)
    }

    /// As [`Mm::finish_migration`], for a batch of the same blocks.
    pub fn finish_migration_together(
        &self,
        cpu: &Cpu,
        blocks: &mut [IsolatedBlock],
        batch: MigrationBatch,
    ) -> MigrateReport {
        self.finish_moves(cpu, &mut Together { blocks, at: 0 }, batch)
    }
}
