//! One batch of moves, from the first entry replaced to the last page freed.

use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::blocks::{InUse, IsolatedBlock};
use crate::frames::{Flush, FlushBatch, Frames, Mmu, SpaceId};
use crate::gfp::Gfp;
use crate::migrate::{BatchEnd, MigrateReport, Refusal, RefusalReason};
use crate::mm::{Mm, MmapError};
use crate::page::{Page, PageFlags};
use crate::pagetable::{Entry, Found, Level, Slot};
use crate::pfn::{Order, Pfn};

/// Pages unmapped and not yet copied. Ends with [`Mm::finish_migration`] or [`Mm::abort_migration`]; until then the
/// programs that touch these pages wait.
#[must_use = "the pages of an unfinished batch stay unmapped"]
#[derive(Debug)]
pub struct MigrationBatch {
    moves: Vec<Move>,
    /// How many of them, from the first on, were copied.
    copied: usize,
    refused: Vec<Refusal>,
    end: BatchEnd,
}

impl MigrationBatch {
    /// Copies the pages to where they go; what was copied before is not copied again. Whoever shares the memory manager by
    /// a lock can do this without it: nobody but the batch reaches either page.
    pub fn copy(&mut self, frames: &impl Frames) {
        for moving in &self.moves[self.copied..] {
            frames.copy(moving.from, moving.to, moving.order);
        }
        self.copied = self.moves.len();
    }

    /// Pages, small or huge, under way.
    pub fn len(&self) -> usize {
        self.moves.len()
    }

    /// Whether no page is under way.
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }
}

/// A page under way.
#[derive(Debug)]
struct Move {
    from: Pfn,
    to: Pfn,
    order: Order,
    space: SpaceId,
    va: u64,
    /// Stays where it is: tables with an entry are not freed, and areas of a space do not change while it has
    /// migration entries.
    slot: Slot,
    /// The mapping as hardware left it.
    entry: Entry,
}

/// Why a page did not get under way.
enum Setback {
    Refused(RefusalReason),
    NoMemory,
    /// It was split into small pages, which come up next.
    Split,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Moves pages off an isolated block, about `budget_pages` 4 KiB pages' worth: at least one page, and a huge page
    /// counts 512. One flush in all.
    pub fn migrate_batch(
        &mut self,
        cpu: &Cpu,
        block: &mut IsolatedBlock,
        budget_pages: u32,
    ) -> MigrateReport {
        let batch = self.begin_migration(cpu, block, budget_pages);
        self.finish_migration(cpu, block, batch)
    }

    /// Unmaps the next pages of an isolated block, with a destination for each.
    pub fn begin_migration(
        &mut self,
        cpu: &Cpu,
        block: &mut IsolatedBlock,
        budget_pages: u32,
    ) -> MigrationBatch {
        let mut batch = MigrationBatch {
            moves: Vec::new(),
            copied: 0,
            refused: Vec::new(),
            end: BatchEnd::Budget,
        };
        let mut flush = FlushBatch::new();
        let mut taken = 0;
        while taken < budget_pages.max(1) {
            let Some(page) = self.phys.next_in_use(block) else {
                batch.end = BatchEnd::PassDone;
                break;
            };
            let (pfn, order) = (page.pfn, page.order);
            match self.unmap_for_migration(cpu, &page, &mut flush) {
                Ok(moving) => {
                    taken += order.nr_pages();
                    batch.moves.push(moving);
                }
                Err(Setback::Refused(reason)) => {
                    self.phys.counts.pgmigrate_fail.add(u64::from(order.nr_pages()));
                    batch.refused.push(Refusal { pfn, order, reason });
                }
                Err(Setback::Split) => block.cursor -= order.nr_pages(),
                Err(Setback::NoMemory) => {
                    block.cursor -= order.nr_pages();
                    batch.end = BatchEnd::NoMemory;
                    break;
                }
            }
        }
        if !flush.is_empty() {
            self.mmu.flush(&flush);
        }
        batch
    }

    /// Copies the pages of a batch unless that was done, maps the copies, and frees the originals into the isolated
    /// block.
    pub fn finish_migration(
        &mut self,
        cpu: &Cpu,
        block: &mut IsolatedBlock,
        mut batch: MigrationBatch,
    ) -> MigrateReport {
        batch.copy(&self.frames);
        let MigrationBatch {
            moves, refused, end, ..
        } = batch;
        let mut report = MigrateReport {
            moved_small: 0,
            moved_huge: 0,
            refused,
            end,
        };
        for moving in moves {
            self.set_anon(moving.to, moving.space, moving.va);
            let entry = moving.entry.with_pfn(moving.to);
            self.remap(cpu, &moving, entry);
            self.migrating_page(moving.from).clear();
            self.phys.put_page(cpu, moving.from);
            let nr_pages = moving.order.nr_pages();
            block.moved_pages += nr_pages;
            self.phys.counts.pgmigrate_success.add(u64::from(nr_pages));
            if moving.order == Order::PAGEBLOCK {
                report.moved_huge += 1;
                self.phys.counts.thp_migration_success.add(1);
            } else {
                report.moved_small += 1;
            }
        }
        report
    }

    /// Maps the pages of a batch again where they were, and gives the destinations back.
    pub fn abort_migration(&mut self, cpu: &Cpu, batch: MigrationBatch) {
        for moving in batch.moves {
            self.remap(cpu, &moving, moving.entry);
            self.migrating_page(moving.from).remove_flags(PageFlags::LOCKED);
            self.phys.put_page(cpu, moving.to);
        }
    }

    /// Steps 1 and 2 for one page: a destination, and a migration entry in the place of the mapping.
    fn unmap_for_migration(
        &mut self,
        cpu: &Cpu,
        page: &InUse,
        flush: &mut FlushBatch,
    ) -> Result<Move, Setback> {
        let (space, va, found) = self.movable(page).map_err(Setback::Refused)?;
        let to = match self.phys.alloc_pages(cpu, Gfp::SPARE, page.order) {
            Ok(to) => to,
            Err(_) if page.order == Order::ZERO => return Err(Setback::NoMemory),
            Err(_) => return Err(self.split_for_migration(cpu, space, va, &found)),
        };
        let entry = self.tables(cpu).set(found.slot, found.entry.to_migration());
        let owner = self.spaces.space_mut(space).expect(MAPPED);
        owner.migrating += 1;
        let root = owner.table.root;
        flush.add(Flush {
            space,
            root,
            va,
            nr_pages: u64::from(page.order.nr_pages()),
        });
        self.migrating_page(page.pfn).add_flags(PageFlags::LOCKED);
        Ok(Move {
            from: page.pfn,
            to,
            order: page.order,
            space,
            va,
            slot: found.slot,
            entry,
        })
    }

    /// Where the page is mapped, if it can move.
    fn movable(&self, page: &InUse) -> Result<(SpaceId, u64, Found), RefusalReason> {
        if let Some(holder) = page.pinned_by {
            return Err(RefusalReason::Pinned { holder });
        }
        let (space, va) = page.mapping.ok_or(RefusalReason::Unmovable)?;
        let found = self
            .spaces
            .space(space)
            .expect(MAPPED)
            .table
            .find(&self.frames, va);
        if found.entry.is_migration() {
            return Err(RefusalReason::Busy);
        }
        let huge = found.level == Level::HUGE;
        assert!(
            found.entry.is_present()
                && found.entry.pfn() == page.pfn
                && huge == (page.order == Order::PAGEBLOCK),
            "{} is said to be mapped at {va:#x} of space {}, where {:?} is",
            page.pfn,
            space.number(),
            found.entry
        );
        Ok((space, va, found))
    }

    /// No pageblock is free outside: the huge page goes in small pieces, if those have somewhere to go.
    fn split_for_migration(&mut self, cpu: &Cpu, space: SpaceId, va: u64, found: &Found) -> Setback {
        // One that cannot move at all is better left huge.
        let Ok(probe) = self.phys.alloc_pages(cpu, Gfp::SPARE, Order::ZERO) else {
            return Setback::NoMemory;
        };
        self.phys.put_page(cpu, probe);
        match self.split_huge(cpu, space, found.slot, va) {
            Ok(()) => {
                self.phys.counts.thp_migration_split.add(1);
                Setback::Split
            }
            Err(MmapError::Pinned { holder }) => Setback::Refused(RefusalReason::Pinned { holder }),
            Err(_) => Setback::NoMemory,
        }
    }

    /// Puts a mapping in the place of the migration entry.
    fn remap(&mut self, cpu: &Cpu, moving: &Move, entry: Entry) {
        let old = self.tables(cpu).set(moving.slot, entry);
        debug_assert!(old.is_migration() && old.pfn() == moving.from);
        self.spaces.space_mut(moving.space).expect(MAPPED).migrating -= 1;
    }

    fn migrating_page(&self, pfn: Pfn) -> &Page {
        self.phys
            .page(pfn)
            .expect("an isolated block stays online while pages are on it")
    }
}

const MAPPED: &str = "a space with a mapped or migrating page is not destroyed";
