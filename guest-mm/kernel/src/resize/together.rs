//! The first pass over several blocks that leave, made together: small blocks have few pages each, and a flush, for which every CPU that runs a
//! program has to leave it, costs as much for one page as for many.

use super::kernel_pages::have_owners_move;
use super::{Interruption, Worker};
use crate::machine::activity;
use crate::machine::cpu::this_cpu;
use crate::machine::high_memory::AllFrames;
use guest_kernel::sync::yield_now;
use guest_mm::migrate::{BatchEnd, Refusal};
use guest_mm::{IsolatedBlock, PAGE_SIZE};

/// Pages that move with one flush. A program that touches one of them waits for that one.
const BATCH_PAGES: u32 = 2048;
/// Pages of the blocks that are emptied together: what was emptied can be unplugged while the next ones are.
const MOST_PAGES: u32 = 4096;

impl Worker {
    /// Has the pages of the last few of these blocks leave or move, as far as they do without being waited for. How many of the blocks were looked at,
    /// each once: what remains on them is for another look at each ([`Worker::empty`]). None when one by one is as good.
    pub(super) async fn look_together(
        &mut self,
        leaving: &mut [IsolatedBlock],
    ) -> Result<usize, Interruption> {
        let (count, pages) = self.worth_together(leaving);
        // With a rate, only so much may be under way at a time.
        let has_rate = self.kernel.orders.rate() > 0;
        if count < 2 || has_rate || self.spare_bytes() < u64::from(pages) * PAGE_SIZE {
            return Ok(0);
        }
        let from = leaving.len() - count;
        let blocks = &mut leaving[from..];
        self.evict(blocks).await?;
        self.forget_drivers();
        loop {
            let end = self.move_together(blocks);
            yield_now().await;
            self.interrupted().await?;
            if end != BatchEnd::Budget {
                return Ok(count);
            }
        }
    }

    /// How many of the blocks, from the last on, have as many pages as are worth being moved together, and how many these are.
    fn worth_together(&self, leaving: &[IsolatedBlock]) -> (usize, u32) {
        let (mut count, mut pages) = (0, 0);
        for block in leaving.iter().rev() {
            let used = self.kernel.phys.used_pages(block);
            if pages + used > MOST_PAGES {
                break;
            }
            (count, pages) = (count + 1, pages + used);
        }
        (count, pages)
    }

    /// Moves the next pages of the blocks, as one batch.
    fn move_together(&mut self, blocks: &mut [IsolatedBlock]) -> BatchEnd {
        let (kernel, cpu) = (self.kernel, this_cpu());
        let mut batch = kernel.mm().begin_migration_together(cpu, blocks, BATCH_PAGES);
        batch.copy(&AllFrames(kernel.high));
        let mut report = kernel.mm().finish_migration_together(cpu, blocks, batch);
        let refused = report.refused.clone();
        if have_owners_move(kernel, &mut report) > 0 {
            let has_left = |page: &&Refusal| report.refused.iter().all(|left| left.pfn != page.pfn);
            for page in refused.iter().filter(has_left) {
                let home = kernel.phys.block_of(page.pfn);
                let block = blocks.iter_mut().find(|block| Some(block.block()) == home);
                block
                    .into_iter()
                    .for_each(|block| block.add_moved(page.order.nr_pages()));
            }
        }
        // They are asked when the first of their blocks comes up alone, for all of them.
        self.find_drivers(&report.refused);
        activity::answer();
        report.end
    }
}
