//! A block on its way out, as the guest's resize worker has one go: pages that leave memory first, then those that move, in batches and passes
//! with programs running in between. It may be given up wherever it waits, by dropping it: then it is back in use with all that is still on it.

use core::cell::Cell;
use core::slice;
use std::vec::Vec;

use super::executor::pause;
use super::memory::before;
use super::{BLOCK, Sim, count};
use crate::blocks::{BlockIndex, BlockState, IsolatedBlock};
use crate::migrate::{
    BatchEnd, BusyPages, Eviction, Method, MigrateReport, MigrationBatch, Refusal, RefusalReason,
};
use crate::pfn::PfnRange;
use crate::{Frames, Pfn, ZoneKind};

/// What is in frames that are away: nobody may meet it.
const GONE: u64 = 0xdead_beef_dead_beef;
const WORDS: usize = 512;
/// How often the pages of a block are looked at, and while what is left is only busy; and how often others are reclaimed for them.
const PASSES: u32 = 2;
const BUSY_PASSES: u32 = 16;
const MOST_STARVED: u32 = 6;
/// Turns that those have at most who are at work on what was left; and for how many they are waited for, from the end of the first pass on.
const BUSY: u64 = 40;
const MOST_BUSY: u64 = 400;
/// Pages that are reclaimed at a time for want of frames to move to.
const RECLAIM_PAGES: u64 = 64;

/// See the module.
pub(super) struct Leaving<'a, 'm> {
    sim: &'a Sim<'m>,
    block: Option<IsolatedBlock>,
    refusal: Option<Refusal>,
    /// What would not go in this pass.
    refused: Refused,
    /// How often all pages were looked at.
    passes: u32,
    /// Until when busy pages are waited for.
    busy_until: u64,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Emptied {
    /// The block is offline.
    Yes(BlockIndex),
    /// It is in use as before; the last page that would not go, if there was one.
    No(Option<Refusal>),
}

impl Drop for Leaving<'_, '_> {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.sim.put_back(block);
        }
    }
}

impl<'a, 'm> Leaving<'a, 'm> {
    pub(super) fn new(sim: &'a Sim<'m>, block: IsolatedBlock) -> Self {
        Self::after_others(sim, block, Refused::default())
    }

    /// A block that was looked at with others, as far as they came: what would not go then.
    pub(super) fn after_others(sim: &'a Sim<'m>, block: IsolatedBlock, refused: Refused) -> Self {
        Self {
            sim,
            block: Some(block),
            refusal: None,
            refused,
            passes: 0,
            busy_until: 0,
        }
    }

    /// Has everything go, in one of three ways. One that was looked at with others needs that for the rest only.
    pub(super) async fn empty(mut self, method: Method) -> Emptied {
        if let Some(which) = method.eviction()
            && self.block().passes() == 0
        {
            let sim = self.sim;
            evict(sim, slice::from_mut(self.block()), which).await;
            self.refused = Refused::default();
        }
        self.move_off().await
    }

    /// Has everything go to other frames.
    pub(super) async fn move_off(mut self) -> Emptied {
        let mut starved = 0;
        if self.block().passes() > 0
            && let Some(emptied) = self.end_pass().await
        {
            return emptied;
        }
        loop {
            pause().await;
            match self.move_some().await {
                BatchEnd::Budget => {}
                BatchEnd::Busy(pfn) => self.await_page(pfn).await,
                BatchEnd::NoHugePage => self.make_huge_page(),
                BatchEnd::NoMemory => {
                    starved += 1;
                    if starved > MOST_STARVED || !self.make_room().await {
                        return Emptied::No(self.refusal);
                    }
                }
                BatchEnd::PassDone => {
                    if let Some(emptied) = self.end_pass().await {
                        return emptied;
                    }
                }
            }
        }
    }

    /// All pages were looked at: the block goes offline, or is looked at once more (`None`), or stays.
    async fn end_pass(&mut self) -> Option<Emptied> {
        let sim = self.sim;
        let refused = core::mem::take(&mut self.refused);
        refused.check(sim, self.block());
        let Some(block) = self.block.take() else {
            return Some(Emptied::No(self.refusal));
        };
        let index = block.block();
        let Err(mut not_empty) = sim.mm.phys.offline(block) else {
            return Some(Emptied::Yes(index));
        };
        not_empty.block.rewind_with(BusyPages::Await);
        self.block = Some(not_empty.block);
        self.passes += 1;
        if self.passes == 1 {
            self.busy_until = sim.clock.now() + sim.below(MOST_BUSY);
        }
        let is_busy = |refusal: Refusal| refusal.reason.is_busy();
        let most = match self.refusal.is_none_or(is_busy) {
            true => BUSY_PASSES,
            false => PASSES,
        };
        if self.passes >= most {
            return Some(Emptied::No(self.refusal));
        }
        // What is on its way to a disk is busy until it has arrived.
        sim.clock.sleep(sim.below(BUSY)).await;
        None
    }

    /// Waits until nobody is busy with a page, for as long as the block waits for such pages.
    async fn await_page(&mut self, pfn: Pfn) {
        let (mm, clock) = (self.sim.mm, &self.sim.clock);
        let left = self.busy_until.saturating_sub(clock.now());
        if left == 0 {
            return self.block().put_off_busy();
        }
        count(&self.sim.seen.pages_awaited, 1);
        match mm.is_idle(pfn) {
            true => clock.sleep(1).await,
            false => before(mm.until_idle(pfn), clock.sleep(left)).await.unwrap_or(()),
        }
    }

    fn block(&mut self) -> &mut IsolatedBlock {
        self.block.as_mut().expect("it is taken out only at the end")
    }

    fn make_huge_page(&mut self) {
        let (sim, block) = (self.sim, self.block());
        sim.with_failures(|| sim.mm.make_huge_page(sim.cpu, block));
    }

    async fn make_room(&self) -> bool {
        let sim = self.sim;
        let reclaim = sim.reclaim.reclaim_pages(sim.cpu, RECLAIM_PAGES);
        sim.failing(reclaim).await.has_progress
    }

    /// One batch, with programs running between its steps.
    async fn move_some(&mut self) -> BatchEnd {
        let (sim, budget) = (self.sim, budget(self.sim));
        let block = self.block();
        let batch = sim.with_failures(|| sim.mm.begin_migration(sim.cpu, block, budget));
        let batch = UnderWay::new(sim, batch, &sim.seen.batches_given_up);
        let batch = batch.copied().await;
        let mut report = sim.mm.finish_migration(sim.cpu, self.block(), batch);
        sim.move_kernel_memory(self.block(), &mut report);
        sim.look_at_report(&report);
        self.refused.note(&report.refused);
        self.refusal = report.refused.last().copied().or(self.refusal);
        report.end
    }
}

/// Pages at a time.
fn budget(sim: &Sim<'_>) -> u32 {
    u32::try_from(1 + sim.below(u64::from(BLOCK) / 4)).unwrap()
}

/// Has pages of blocks leave memory, and waits for those that are written.
pub(super) async fn evict(sim: &Sim<'_>, blocks: &mut [IsolatedBlock], which: Eviction) {
    let mut written = 0;
    for block in blocks {
        loop {
            let budget = budget(sim);
            let evicted = sim.with_failures(|| sim.mm.evict_batch(sim.cpu, block, which, budget));
            count(&sim.seen.evicted_pages, evicted.freed + evicted.written);
            written += evicted.written;
            if evicted.is_pass_done {
                block.rewind();
                break;
            }
            pause().await;
        }
    }
    while written > 0 && sim.mm.phys.nr_being_written() > 0 {
        sim.mm.phys.throttle().await;
        // What is on its way may be anybody's: 32 pages have ended.
        written = written.saturating_sub(32);
    }
}

/// A batch between its steps. When it is dropped, its pages are back where they were.
pub(super) struct UnderWay<'a, 'm> {
    sim: &'a Sim<'m>,
    batch: Option<MigrationBatch>,
    given_up: &'a Cell<u32>,
}

impl Drop for UnderWay<'_, '_> {
    fn drop(&mut self) {
        if let Some(batch) = self.batch.take() {
            count(self.given_up, 1);
            self.sim.mm.abort_migration(self.sim.cpu, batch);
        }
    }
}

impl<'a, 'm> UnderWay<'a, 'm> {
    /// `given_up` counts those that were dropped.
    pub(super) fn new(sim: &'a Sim<'m>, batch: MigrationBatch, given_up: &'a Cell<u32>) -> Self {
        Self {
            sim,
            batch: Some(batch),
            given_up,
        }
    }

    /// Programs run, the pages are copied, and programs run again.
    pub(super) async fn copied(mut self) -> MigrationBatch {
        let sim = self.sim;
        for _ in 0..sim.below(4) {
            pause().await;
        }
        if let Some(batch) = &mut self.batch {
            batch.copy(&sim.mm.frames);
        }
        for _ in 0..sim.below(2) {
            pause().await;
        }
        self.batch.take().expect("it is taken only here")
    }
}

/// Pages that batches of one pass have refused.
#[derive(Clone, Default)]
pub(super) struct Refused(Vec<PfnRange>);

impl Refused {
    pub(super) fn note(&mut self, refused: &[Refusal]) {
        let range = |refusal: &Refusal| PfnRange::new(refusal.pfn, refusal.order.nr_pages());
        self.0.extend(refused.iter().filter_map(range));
    }

    /// At the end of a pass everything that is left on the block was refused in it.
    fn check(&self, sim: &Sim<'_>, block: &mut IsolatedBlock) {
        block.cursor = 0;
        while let Some(page) = sim.mm.phys.next_in_use(block) {
            let pfn = page.pfn;
            sim.mm.phys.release(sim.cpu, page);
            assert!(
                self.0.iter().any(|range| range.contains(pfn)),
                "{pfn} is left on {:?}, and was not refused",
                block.block()
            );
        }
    }
}

impl Sim<'_> {
    /// What a batch has done.
    pub(super) fn look_at_report(&self, report: &MigrateReport) {
        let is_others = |refusal: &&Refusal| !matches!(refusal.reason, RefusalReason::Unmovable(_));
        self.look_at_refusals(report.refused.iter().filter(is_others));
        count(
            &self.seen.moved_pages,
            report.moved_small + 512 * report.moved_huge,
        );
    }

    /// Pages that could not move are pinned by somebody whom the simulation knows, or somebody is at work on them: a disk, or who moves them too.
    pub(super) fn look_at_refusals<'a>(&self, refused: impl IntoIterator<Item = &'a Refusal>) {
        let under_io = |holder| RefusalReason::UnderIo { holder };
        let direct = under_io(super::direct::HOLDER);
        let registered = RefusalReason::Pinned {
            holder: super::registered::HOLDER,
        };
        for refusal in refused {
            let known = [under_io("device"), direct];
            // What is pinned for long is on no block.
            let is_registered = refusal.reason == registered && self.mm.phys.block_of(refusal.pfn).is_none();
            assert!(
                is_registered || refusal.reason.is_busy() || known.contains(&refusal.reason),
                "{refusal}"
            );
            count(&self.seen.direct_refusals, u32::from(refusal.reason == direct));
        }
    }

    /// A block that was given up is in use with what is still on it.
    pub(super) fn put_back(&self, block: IsolatedBlock) {
        let (phys, index) = (self.mm.phys, block.block());
        phys.undo(block);
        let state = phys.hotplug_region().state(index);
        assert_eq!(state, Some(BlockState::Online), "{index:?} was given up");
    }

    /// The device takes a block that is offline away with all that is in its frames.
    pub(super) fn take_away(&self, block: BlockIndex) {
        let range = self.mm.phys.hotplug_region().block_range(block).unwrap();
        for pfn in range.iter() {
            (0..WORDS).for_each(|word| self.mm.frames.write(pfn, word, GONE));
        }
        self.mm.phys.unplugged(block).unwrap();
        count(&self.seen.blocks_removed, 1);
    }

    /// A block that is offline is in use again.
    pub(super) fn bring_online(&self, block: BlockIndex) {
        self.mm.phys.online(block, ZoneKind::Movable).unwrap();
    }
}
