//! Pages of a block that leave memory before the rest of them moves: cold ones, or all that can (`migrate=`).

use super::{Interruption, Worker};
use crate::machine::activity;
use crate::machine::cpu::this_cpu;
use guest_kernel::sync::yield_now;
use guest_mm::IsolatedBlock;
use guest_mm::migrate::{Eviction, Method};

/// Pages that are looked at in one go.
const BATCH_PAGES: u32 = 128;
/// How long programs have to use what they need between the look that forgets earlier uses and the one that counts: a few
/// turns of each.
const LOOK_NS: u64 = 100_000_000;

impl Worker {
    /// The first look at blocks that are to be emptied: what was not used since reclaim last looked leaves at once, and what is
    /// used from now on shows. Comes to nothing where no page could leave.
    pub(super) async fn look_at_use(&mut self, blocks: &mut [IsolatedBlock]) -> Result<(), Interruption> {
        if self.kernel.orders.method() != Method::Combined || self.reclaimable_pages() == 0 {
            return Ok(());
        }
        for block in &mut *blocks {
            self.evict_pass(block, Eviction::Cold).await?;
        }
        if !blocks.is_empty() {
            self.kernel.timers().sleep(LOOK_NS).await;
        }
        self.interrupted().await
    }

    /// Has pages of a block leave memory, and waits until those that were written have arrived. The rest is to move.
    pub(super) async fn evict(&mut self, block: &mut IsolatedBlock) -> Result<(), Interruption> {
        let Some(which) = self.kernel.orders.method().eviction() else {
            return Ok(());
        };
        if self.reclaimable_pages() == 0 {
            return Ok(());
        }
        let phys = self.kernel.phys;
        let mut written = self.evict_pass(block, which).await?;
        while written > 0 && phys.nr_being_written() > 0 {
            self.tell_written(block.block());
            phys.throttle().await;
            // What is on its way may be anybody's: 32 pages have ended.
            written = written.saturating_sub(32);
            self.interrupted().await?;
        }
        self.interrupted().await
    }

    /// Looks at each page of the block once; returns how many are being written.
    async fn evict_pass(&mut self, block: &mut IsolatedBlock, which: Eviction) -> Result<u32, Interruption> {
        let mut written = 0;
        loop {
            let mm = self.kernel.mm();
            let report = mm.evict_batch(this_cpu(), block, which, self.share(BATCH_PAGES));
            written += report.written;
            activity::answer();
            self.keep_rate(report.freed + report.written).await;
            if report.is_pass_done {
                block.rewind();
                return Ok(written);
            }
            yield_now().await;
            self.interrupted().await?;
        }
    }
}
