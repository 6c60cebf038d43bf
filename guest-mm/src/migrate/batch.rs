//! One batch of moves, from the first entry replaced to the last page freed.

use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::blocks::{InUse, IsolatedBlock};
use crate::frames::{FlushBatch, Frames, Mmu};
use crate::gfp::Gfp;
use crate::migrate::{BatchEnd, BusyPages, BusyWith, MigrateReport, Refusal, RefusalReason, Route};
use crate::mm::Mm;
use crate::mm::huge::{SplitError, ToSplit};
use crate::mm::mapping::{Migration, WhyWrite};
use crate::mm::reclaim_file::Writes;
use crate::mm::rmap::{Unmapped, Walk};
use crate::page::{KernelUse, Page, PageFlags};
use crate::pfn::{Order, Pfn};

/// Pages unmapped and not yet copied. Ends with [`Mm::finish_migration`] or [`Mm::abort_migration`]; until then the
/// programs that touch these pages wait.
#[must_use = "the pages of an unfinished batch stay unmapped"]
#[derive(Debug)]
pub struct MigrationBatch {
    moves: Vec<Move>,
    /// The entries of all of them, one page's after the other's.
    unmapped: Vec<Unmapped>,
    /// How many moves, from the first on, were copied.
    copied: usize,
    /// Page tables that came up.
    tables: Vec<Pfn>,
    refused: Vec<Refusal>,
    /// Pages that have to be on their disk before they can move.
    writes: Writes,
    end: BatchEnd,
}

impl MigrationBatch {
    /// Copies the pages to where they go; what was copied before is not copied again, and what a file system copies itself not at all.
    /// Nobody but the batch reaches either page meanwhile.
    pub fn copy(&mut self, frames: &impl Frames) {
        let moves = self.moves[self.copied..].iter();
        for moving in moves.filter(|moving| moving.home != Home::TakenOver) {
            frames.copy(moving.page.pfn, moving.to, moving.page.order);
        }
        self.copied = self.moves.len();
    }

    /// Pages, small or huge, under way.
    pub fn len(&self) -> usize {
        self.moves.len()
    }

    /// Whether no page is under way, and no page table waits for those that are.
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty() && self.tables.is_empty()
    }
}

/// A page under way. The page lock and a reference are the batch's.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) page: InUse,
    pub(super) to: Pfn,
    /// How many entries it has.
    pub(super) nr_entries: usize,
    pub(super) home: Home,
}

/// Who has the page, besides entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// Nobody.
    Entries,
    /// The swap cache.
    SwapCache,
    /// A mapping, and the file system if it has something on it.
    Mapping {
        /// References of the file system's: 0 or 1.
        private: u8,
    },
    /// A mapping, and a file system that moves its pages itself and has a reference for that.
    TakenOver,
}

impl Home {
    fn of(page: &Page, migration: Migration) -> Self {
        let flags = page.flags();
        if flags.has(PageFlags::FILE.with(PageFlags::PRIVATE)) && migration == Migration::Whole {
            Self::TakenOver
        } else if flags.has(PageFlags::FILE) {
            let private = u8::from(flags.has(PageFlags::PRIVATE));
            Self::Mapping { private }
        } else if flags.has(PageFlags::SWAPCACHE) {
            Self::SwapCache
        } else {
            Self::Entries
        }
    }

    pub(super) const fn is_mapping(self) -> bool {
        matches!(self, Self::Mapping { .. } | Self::TakenOver)
    }
}

impl Move {
    /// References to the page that go with it.
    pub(super) fn nr_references(&self) -> usize {
        let others = match self.home {
            Home::Entries => 0,
            Home::TakenOver => 2,
            Home::SwapCache => 1,
            Home::Mapping { private } => 1 + usize::from(private),
        };
        self.nr_entries + others
    }
}

/// Why a page did not get under way.
pub(super) enum Setback {
    Refused(RefusalReason),
    NoMemory,
    /// It is huge, and there is no free huge page outside.
    NoHugePage,
    /// It was split into small pages, which come up next.
    Split,
    /// Nobody had it, and another one has taken its place.
    Replaced,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Unmaps the next pages of an isolated block wherever they are mapped, with a destination for each.
    pub fn begin_migration(&self, cpu: &Cpu, block: &mut IsolatedBlock, budget_pages: u32) -> MigrationBatch {
        self.begin_moves(cpu, block, budget_pages)
    }

    /// As [`Mm::begin_migration`], along any route.
    pub(crate) fn begin_moves(&self, cpu: &Cpu, route: &mut impl Route, budget_pages: u32) -> MigrationBatch {
        let mut batch = MigrationBatch {
            moves: Vec::new(),
            unmapped: Vec::new(),
            copied: 0,
            tables: Vec::new(),
            refused: Vec::new(),
            writes: Vec::new(),
            end: BatchEnd::Budget,
        };
        let (mut flush, mut walk) = (FlushBatch::new(), Walk::default());
        let mut taken = 0;
        while taken < budget_pages.max(1) {
            let Some(page) = route.next_in_use(self.phys) else {
                route.pass_done();
                batch.end = BatchEnd::PassDone;
                break;
            };
            let (pfn, order) = (page.pfn, page.order);
            if self.phys.kernel_use(&page) == Some(KernelUse::PageTable) {
                taken += 1;
                batch.tables.push(pfn);
                continue;
            }
            match self.unmap_for_migration(cpu, (page, route), &mut walk, &mut flush, &mut batch) {
                Ok(moving) => {
                    taken += order.nr_pages();
                    batch.moves.push(moving);
                }
                Err(Setback::Refused(reason))
                    if reason.passes() && route.busy_pages() == BusyPages::Await =>
                {
                    route.step_back(order);
                    batch.end = BatchEnd::Busy(pfn);
                    break;
                }
                Err(Setback::Refused(reason)) => self.refuse(&mut batch.refused, (pfn, order), reason),
                Err(Setback::Split) => route.step_back(order),
                Err(Setback::Replaced) => {}
                Err(Setback::NoMemory) => {
                    route.step_back(order);
                    batch.end = BatchEnd::NoMemory;
                    break;
                }
                Err(Setback::NoHugePage) => {
                    route.step_back(order);
                    batch.end = BatchEnd::NoHugePage;
                    break;
                }
            }
        }
        if !flush.is_empty() {
            self.mmu.flush(&flush);
        }
        self.submit_gathered(core::mem::take(&mut batch.writes), WhyWrite::Sync);
        self.refuse_held(cpu, &mut batch);
        batch
    }

    /// Copies the pages of a batch unless that was done, maps the copies, and frees the originals into the isolated
    /// block.
    pub fn finish_migration(
        &self,
        cpu: &Cpu,
        block: &mut IsolatedBlock,
        batch: MigrationBatch,
    ) -> MigrateReport {
        self.finish_moves(cpu, block, batch)
    }

    /// As [`Mm::finish_migration`], along any route.
    pub(crate) fn finish_moves(
        &self,
        cpu: &Cpu,
        route: &mut impl Route,
        mut batch: MigrationBatch,
    ) -> MigrateReport {
        batch.copy(&self.frames);
        let MigrationBatch {
            moves,
            unmapped,
            tables,
            refused,
            end,
            ..
        } = batch;
        let mut report = MigrateReport {
            moved_small: 0,
            moved_huge: 0,
            moved_kernel: 0,
            refused,
            end,
        };
        let mut entries = &unmapped[..];
        for moving in moves {
            let (own, others) = entries.split_at(moving.nr_entries);
            entries = others;
            let (pfn, order) = (moving.page.pfn, moving.page.order);
            let Ok(private) = self.move_private(&moving) else {
                self.stay(cpu, moving, own);
                self.refuse(
                    &mut report.refused,
                    (pfn, order),
                    RefusalReason::Busy(BusyWith::FileSystem),
                );
                continue;
            };
            self.arrive(cpu, &moving, own, private);
            route.moved(pfn, order.nr_pages());
            let nr_pages = u64::from(order.nr_pages());
            self.phys.counts.pgmigrate_success.add(nr_pages);
            if order == Order::PAGEBLOCK {
                report.moved_huge += 1;
                self.phys.counts.thp_migration_success.add(1);
            } else {
                report.moved_small += 1;
            }
        }
        self.move_tables(cpu, route, &tables, &mut report);
        report
    }

    /// Maps the pages of a batch again where they were, and gives the destinations back.
    pub fn abort_migration(&self, cpu: &Cpu, batch: MigrationBatch) {
        let mut entries = &batch.unmapped[..];
        for moving in batch.moves {
            let (own, others) = entries.split_at(moving.nr_entries);
            entries = others;
            self.stay(cpu, moving, own);
        }
    }

    pub(super) fn refuse(
        &self,
        refused: &mut Vec<Refusal>,
        (pfn, order): (Pfn, Order),
        reason: RefusalReason,
    ) {
        self.phys.counts.pgmigrate_fail.add(u64::from(order.nr_pages()));
        refused.push(self.refusal((pfn, order), reason));
    }

    /// Whether there are references to a page besides those that are known and the batch's.
    fn is_held_by_others(&self, moving: &Move) -> bool {
        self.migrating_page(moving.page.pfn).count() as usize != moving.nr_references() + 1
    }

    /// Puts pages back to which there are references besides those that the batch knows: somebody is just using them.
    fn refuse_held(&self, cpu: &Cpu, batch: &mut MigrationBatch) {
        let mut first = 0;
        let mut at = 0;
        while at < batch.moves.len() {
            let moving = &batch.moves[at];
            let entries = first..first + moving.nr_entries;
            if !self.is_held_by_others(moving) {
                (first, at) = (entries.end, at + 1);
                continue;
            }
            let moving = batch.moves.remove(at);
            let (pfn, order) = (moving.page.pfn, moving.page.order);
            let own: Vec<Unmapped> = batch.unmapped.drain(entries).collect();
            self.stay(cpu, moving, &own);
            self.refuse(
                &mut batch.refused,
                (pfn, order),
                RefusalReason::Busy(BusyWith::LookUp),
            );
        }
    }

    /// Steps 1 and 2 for one page: a destination, and a migration entry in the place of each mapping.
    fn unmap_for_migration(
        &self,
        cpu: &Cpu,
        (page, route): (InUse, &mut impl Route),
        walk: &mut Walk,
        flush: &mut FlushBatch,
        batch: &mut MigrationBatch,
    ) -> Result<Move, Setback> {
        let is_hugetlb = self.migrating_page(page.pfn).flags().has(PageFlags::HUGETLB);
        if is_hugetlb
            && !page.is_held
            && let Some(setback) = self.replace_pooled(cpu, page.pfn, route)
        {
            return Err(setback);
        }
        let descriptor = match self.lock_movable(&page) {
            Ok(descriptor) => descriptor,
            Err(reason) => {
                self.phys.release(cpu, page);
                return Err(Setback::Refused(reason));
            }
        };
        let at = (page.pfn, descriptor);
        let Ok(migration) = self.prepare_to_move(cpu, at, walk, flush, &mut batch.writes) else {
            let busy = match descriptor.flags().has(PageFlags::WRITEBACK) {
                true => BusyWith::Writeback,
                false => BusyWith::FileSystem,
            };
            self.unlock_page(page.pfn, descriptor);
            self.phys.release(cpu, page);
            return Err(Setback::Refused(RefusalReason::Busy(busy)));
        };
        let Some(to) = self.destination(cpu, route, page.order) else {
            self.unlock_page(page.pfn, descriptor);
            return Err(self.without_frame(cpu, page, route));
        };
        let nr_entries = self.unmap_page(cpu, at, walk, flush, &mut batch.unmapped);
        let home = Home::of(descriptor, migration);
        if nr_entries == 0 && (home == Home::Entries || descriptor.mapcount() > 0) {
            // Gone meanwhile, or just being shared with a child.
            self.unlock_page(page.pfn, descriptor);
            self.phys.put_page(cpu, to);
            self.phys.release(cpu, page);
            return Err(Setback::Refused(RefusalReason::Busy(BusyWith::Settling)));
        }
        let moving = Move {
            page,
            to,
            nr_entries,
            home,
        };
        // Who waits for such a page goes on with it, so it must be the last one.
        if route.busy_pages() == BusyPages::Await && self.is_held_by_others(&moving) {
            let first = batch.unmapped.len() - nr_entries;
            let own: Vec<Unmapped> = batch.unmapped.drain(first..).collect();
            self.stay(cpu, moving, &own);
            return Err(Setback::Refused(RefusalReason::Busy(BusyWith::LookUp)));
        }
        Ok(moving)
    }

    /// Takes the page lock of a page that can move.
    pub(crate) fn lock_movable(&self, page: &InUse) -> Result<&Page, RefusalReason> {
        let busy = |with| Err(RefusalReason::Busy(with));
        let settling = RefusalReason::Busy(BusyWith::Settling);
        if let Some(by) = page.pinned_by {
            return Err(RefusalReason::of_pin(by));
        }
        if !page.is_held {
            // Freed since it was found, or a program's by now.
            let used_for = self.phys.kernel_use(page).ok_or(settling)?;
            let zone = self.phys.zone_of(page.pfn).map(crate::Zone::kind);
            // Nothing that nobody could move is there: it was just taken and is not mapped yet, or unmapped and is not freed yet.
            if used_for == KernelUse::Other && zone == Some(crate::ZoneKind::Movable) {
                return Err(settling);
            }
            return Err(RefusalReason::Unmovable(used_for));
        }
        let descriptor = self.migrating_page(page.pfn);
        if !descriptor.try_lock() {
            return busy(self.why_locked(descriptor));
        }
        // It may have been pinned since it was found; nobody pins it now that it is locked.
        if descriptor.flags().has(PageFlags::PINNED) {
            self.unlock_page(page.pfn, descriptor);
            let by = self.phys.pins.lock().by(page.pfn);
            return Err(by.map_or(settling, RefusalReason::of_pin));
        }
        // On its way to the disk: the disk reads this frame.
        if descriptor.flags().has(PageFlags::WRITEBACK) {
            self.unlock_page(page.pfn, descriptor);
            return busy(BusyWith::Writeback);
        }
        if let Err(reason) = self.may_move(page.pfn, descriptor) {
            self.unlock_page(page.pfn, descriptor);
            return Err(reason);
        }
        Ok(descriptor)
    }

    /// No frame of its size is free outside: a huge page goes in small pieces, if those have somewhere to go.
    pub(super) fn split_for_migration(&self, cpu: &Cpu, page: InUse) -> Setback {
        // One that cannot move at all is better left huge.
        let probe = match page.order {
            Order::ZERO => None,
            _ => self.phys.alloc_pages(cpu, Gfp::SPARE, Order::ZERO).ok(),
        };
        let Some(probe) = probe else {
            self.phys.release(cpu, page);
            return Setback::NoMemory;
        };
        self.phys.put_page(cpu, probe);
        match self.split_page(cpu, ToSplit::from_held(page)) {
            Ok(()) => {
                self.phys.counts.thp_migration_split.add(1);
                Setback::Split
            }
            Err(SplitError::Pinned(by)) => Setback::Refused(RefusalReason::of_pin(by)),
            Err(SplitError::Busy(_)) => Setback::Refused(RefusalReason::Busy(BusyWith::Locked)),
            Err(SplitError::NoMemory) => Setback::NoMemory,
        }
    }

    pub(super) fn migrating_page(&self, pfn: Pfn) -> &Page {
        self.phys.page(pfn).expect("a page in use stays online")
    }
}
