//! Remap migration: the pages of an isolated block move elsewhere while the programs that use them run on.
//!
//! The protocol of Takahashi's memory hotplug (2003, "remap"):
//!
//! 1. The page is locked, and a new page allocated outside the isolated block.
//! 2. Every page-table entry of the page is replaced by a *migration entry*: whoever touches the page now waits.
//! 3. The translation caches are flushed: nobody can reach the old page any more.
//! 4. Whoever else has the page has it still: such a page is put back, and awaited in the second pass ([`BusyPages`]).
//! 5. The contents are copied.
//! 6. The new page takes the old one's place in the page cache, and is mapped with the rights and the accessed and dirty bits that the old entries
//!    ended with. Those who waited go on.
//! 7. The old page is freed; it stays in the isolated block.
//!
//! In one thing the order is another than Takahashi's, who puts the new page, locked and not up to date, into the page cache first, so that whoever looks the
//! page up waits for the new one. Here he waits for the lock of the old one, and looks the page up again when that is gone (step 6): he
//! finds the new page when its contents are there, and a move that is given up has nothing to take back from the page cache.
//!
//! Page tables are moved at the end of a batch, when no entry is away any more.
//!
//! Steps 2 to 3 are done for a batch of pages with one flush ([`Mm::begin_migration`]), then steps 4 to 6
//! ([`Mm::finish_migration`]). Between the two, and at any failure before, [`Mm::abort_migration`] puts everything
//! back.
//!
//! Huge pages move whole, into huge pages that are made for them if need be: in two stages ([`Mm::begin_first_stage`]). Pages that somebody is
//! just using are put off in the first pass over a block, and waited for in the second ([`BusyPages`]).

mod arrive;
mod batch;
mod evict;
mod file;
mod node;
mod refusal;
mod route;
mod table;
mod together;
mod two_stage;

use alloc::vec::Vec;

#[cfg(doc)]
use crate::mm::Mm;
use crate::pfn::{PAGEBLOCK_NR_PAGES, Pfn};

pub use batch::MigrationBatch;
pub use evict::{EvictReport, Eviction, Method};
pub use node::{NodeMove, Stays};
pub use refusal::{BusyWith, PageKind, Refusal, RefusalReason};
pub(crate) use route::Route;
pub(crate) use two_stage::TwoStage;

/// What a batch did.
#[must_use = "refused pages keep the block from going offline"]
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MigrateReport {
    /// 4 KiB pages moved.
    pub moved_small: u32,
    /// 2 MiB pages moved whole.
    pub moved_huge: u32,
    /// Frames of the kernel's own that moved: page tables, and what their owners moved after the batch had refused it.
    pub moved_kernel: u32,
    /// Pages that cannot move, each named once in a pass.
    pub refused: Vec<Refusal>,
    /// Why the batch ended.
    pub end: BatchEnd,
}

/// Why a batch ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchEnd {
    /// The budget was used up: call again.
    Budget,
    /// Every page of the block was looked at in this pass. What is left was refused;
    /// [`IsolatedBlock::rewind`](crate::IsolatedBlock::rewind) starts another pass.
    PassDone,
    /// No frame outside the block for the next page. Later there may be; the pass goes on where it stopped.
    NoMemory,
    /// No free huge page outside the block for the next page, which is huge: one is to be made first
    /// ([`Mm::begin_first_stage`](crate::Mm::begin_first_stage), [`IsolatedBlock::first_stage_ended`](crate::IsolatedBlock::first_stage_ended)).
    /// The pass goes on where it stopped.
    NoHugePage,
    /// Somebody is just using the next page, and this pass waits for such pages ([`BusyPages::Await`],
    /// [`Mm::until_idle`](crate::Mm::until_idle)). The pass goes on where it stopped.
    Busy(Pfn),
}

/// What becomes of pages that somebody is just using: on their way to or from a disk, pinned for a transfer, or on the move already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BusyPages {
    /// They are refused, and come up in the next pass.
    #[default]
    PutOff,
    /// The batch ends before such a page, so that it can be waited for.
    Await,
}

impl MigrateReport {
    /// Frames of 4 KiB moved.
    pub const fn moved_pages(&self) -> u32 {
        self.moved_small + self.moved_huge * PAGEBLOCK_NR_PAGES + self.moved_kernel
    }

    /// What the next batch did, too.
    pub(crate) fn add(&mut self, next: Self) {
        self.moved_small += next.moved_small;
        self.moved_huge += next.moved_huge;
        self.moved_kernel += next.moved_kernel;
        self.refused.extend(next.refused);
        self.end = next.end;
    }
}
