//! Pages of a block that leave memory before the rest of them moves: cold ones, or all that can (`migrate=`).

use super::difficult::{BUSY_NS, Waited};
use super::{Interruption, Worker};
use crate::machine::activity;
use crate::machine::cpu::this_cpu;
use guest_kernel::sync::yield_now;
use guest_mm::IsolatedBlock;
use guest_mm::migrate::{Eviction, Method};

/// Pages that are looked at in one go.
const BATCH_PAGES: u32 = 128;
/// How often blocks are looked at before the look that counts. The first one forgets earlier uses; one that finds a page unused that was used a lot
/// makes it a look older only.
const LOOKS: u32 = 2;
/// How long programs have to use what they need between one look and the next: a few turns of each.
const LOOK_NS: u64 = 50_000_000;
/// No more pages than that have moved long before programs have had that time.
const FEW_PAGES: u32 = 256;

impl Worker {
    /// The first looks at blocks that are to be emptied: what was not used since reclaim last looked, and is old, leaves at once; what is
    /// used from now on shows. Comes to nothing where no page could leave, or few have to.
    pub(super) async fn look_at_use(&mut self, blocks: &mut [IsolatedBlock]) -> Result<(), Interruption> {
        if self.kernel.orders.method() != Method::Combined || self.reclaimable_pages() == 0 {
            return Ok(());
        }
        let used = blocks.iter().map(|block| self.kernel.phys.used_pages(block));
        if used.sum::<u32>() <= FEW_PAGES {
            return Ok(());
        }
        for _ in 0..LOOKS {
            for block in &mut *blocks {
                self.evict_pass(block, Eviction::Cold).await?;
            }
            self.kernel.timers().sleep(LOOK_NS).await;
            self.interrupted().await?;
        }
        Ok(())
    }

    /// Has pages of these blocks leave memory, and waits until those that were written have arrived. The rest is to move.
    pub(super) async fn evict(&mut self, blocks: &mut [IsolatedBlock]) -> Result<(), Interruption> {
        let Some(which) = self.kernel.orders.method().eviction() else {
            return Ok(());
        };
        if self.reclaimable_pages() == 0 {
            return Ok(());
        }
        let phys = self.kernel.phys;
        let (mut written, mut last) = (0, None);
        for block in blocks {
            let of_block = self.evict_pass(block, which).await?;
            if of_block > 0 {
                (written, last) = (written + of_block, Some(block.block()));
            }
        }
        while written > 0 && phys.nr_being_written() > 0 {
            last.into_iter().for_each(|block| self.tell_written(block));
            let until = self.kernel.clock.now() + BUSY_NS;
            let waited = self.wait_no_longer(until, phys.throttle()).await;
            self.interrupted().await?;
            match waited {
                // What is on its way may be anybody's: 32 pages have ended.
                Waited::Done(()) => written = written.saturating_sub(32),
                // The disk stands still. What it has not taken is refused by that name.
                Waited::TooLong => break,
                Waited::Unwanted => {}
            }
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
