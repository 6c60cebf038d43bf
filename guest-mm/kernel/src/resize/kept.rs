//! Blocks that stay: what is to blame, told as soon as it is known.

use super::Worker;
use super::blame::{Blame, Cause, Shortage};
use alloc::string::String;
use guest_mm::migrate::Refusal;
use guest_mm::{BlockIndex, IsolatedBlock, PAGE_SIZE, Pfn};
use guest_virtio::plan::{StallReason, StuckReason};

impl Worker {
    /// A block could not be emptied.
    pub(super) fn kept(&mut self, block: &IsolatedBlock, reason: StuckReason) {
        if let Some(cause) = self.cause(block, reason) {
            let block = Some(block.block());
            self.is_to_blame(Blame { block, cause });
        }
    }

    /// No block could be chosen: for this page, or as there is less to spare than a block has.
    pub(super) fn none_chosen(&mut self, held: Option<Blame>, reason: StuckReason) {
        let shortage = || Blame {
            block: None,
            cause: Cause::Shortage(self.shortage(self.device.region().block_size())),
        };
        match reason {
            StuckReason::NoMemory => self.is_to_blame(shortage()),
            _ => held.into_iter().for_each(|held| self.is_to_blame(held)),
        }
    }

    /// Why a block could not be emptied, in words.
    pub(super) fn why_kept(&mut self, block: &IsolatedBlock, reason: StuckReason) -> String {
        self.cause(block, reason).map_or_else(
            || "something has come to it meanwhile".into(),
            |cause| cause.describe(self.kernel),
        )
    }

    fn cause(&mut self, block: &IsolatedBlock, reason: StuckReason) -> Option<Cause> {
        let refusal = self.refusal.take();
        if reason == StuckReason::NoMemory {
            let used = u64::from(self.kernel.phys.used_pages(block));
            return Some(Cause::Shortage(self.shortage(used * PAGE_SIZE)));
        }
        refusal.map(Cause::Page)
    }

    /// How much memory is missing for `needed` bytes to leave.
    pub(super) fn shortage(&self, needed: u64) -> Shortage {
        Shortage {
            needed,
            spare: self.spare_bytes(),
            reserve: self.least_bytes(),
        }
    }

    /// Takes note of what keeps a block.
    pub(super) fn is_to_blame(&mut self, blame: Blame) {
        self.blames.add(blame);
        self.tell(blame);
    }

    /// A busy page of a block is waited for.
    pub(super) fn tell_awaited(&self, block: BlockIndex, pfn: Pfn) {
        self.tell_page(block, self.kernel.mm().awaited(pfn));
    }

    /// Pages of a block that are written are waited for.
    pub(super) fn tell_written(&self, block: BlockIndex) {
        let range = self.kernel.phys.hotplug_region().block_range(block);
        let frames = range.iter().flat_map(|range| range.iter());
        let written = self.kernel.mm().first_written(frames);
        written.into_iter().for_each(|page| self.tell_page(block, page));
    }

    fn tell_page(&self, block: BlockIndex, refusal: Refusal) {
        self.tell(Blame {
            block: Some(block),
            cause: Cause::Page(refusal),
        });
    }

    /// Whoever asks while a target is worked at hears of this; after a stall, if it is the reason still.
    fn tell(&self, blame: Blame) {
        let mut status = self.kernel.resize.lock();
        if status.stall.is_none_or(|stall| stall == blame.stall()) {
            status.blame = Some(blame);
        }
        if status.stall.is_none() {
            status.stuck = self.planner.stuck_blocks();
        }
    }

    /// What has come of a target is told: `None` if it was reached.
    pub(super) fn tell_result(&self, stall: Option<StallReason>) {
        let mut status = self.kernel.resize.lock();
        status.stall = stall;
        status.blame = stall.and_then(|stall| self.blames.of(stall));
        status.stuck = self.planner.stuck_blocks();
    }
}
