//! Huge pages off a block in two stages (Takahashi, memory hotplug, 2003: "two-stage migration of HugeTlbPage").
//!
//! A huge page moves whole, to a free huge page outside the block. When none is left there, the *first stage* makes one: small pages move
//! together ([`compact`](crate::compact)) until a pageblock is empty. The *second stage* moves the huge page into it. Only when the first stage
//! comes to nothing does a transparent huge page go in small pieces; a reserved one, whose program was promised that it is huge, stays until
//! memory has been reclaimed.
//!
//! A batch ends where a huge page is to be made ([`BatchEnd::NoHugePage`](crate::migrate::BatchEnd::NoHugePage)), so that nobody waits for the first
//! stage: no page is unmapped meanwhile. Blocks that are isolated lend nothing to it and are not compacted.

use guest_sync::Cpu;

use crate::blocks::{InUse, IsolatedBlock};
use crate::compact::{CompactResult, Compaction, Goal, Runner};
use crate::frames::{Frames, Mmu};
use crate::gfp::Gfp;
use crate::migrate::batch::Setback;
use crate::migrate::{BatchEnd, MigrateReport, Route};
use crate::mm::Mm;
use crate::page::PageFlags;
use crate::pfn::{Order, Pfn};
use crate::phys::{PhysicalMemory, Replaced, WithoutFrame};
use crate::zone::Zone;

/// Huge pages that are made for one page before it goes in pieces: others take free memory too.
const MOST_TRIES: u8 = 3;

/// How far the move of the huge page has come that comes up next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct TwoStage {
    stage: Stage,
    tries: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    /// It goes whole; a place is made for it if there is none.
    #[default]
    Whole,
    /// A place was made for it.
    Made,
    /// No place can be made: this one and those after it go in pieces. Each takes frames elsewhere, so that there is less to make one from
    /// for the next.
    Pieces,
}

impl TwoStage {
    /// Whether a place is to be made for a page that has found none.
    const fn is_to_be_made(&self) -> bool {
        match self.stage {
            Stage::Whole => true,
            Stage::Made => self.tries < MOST_TRIES,
            Stage::Pieces => false,
        }
    }

    /// A page has found a place; whether that was made for it.
    fn found(&mut self) -> bool {
        let was_made = self.stage == Stage::Made;
        if was_made {
            *self = Self::default();
        }
        was_made
    }

    /// Memory is to be reclaimed for a page that must stay whole: it is tried again then.
    fn starved(&mut self) {
        *self = Self::default();
    }

    /// A page went in pieces. If that is because others took what was made for it, places are made for the next one again.
    fn went_in_pieces(&mut self) {
        if self.stage == Stage::Made {
            *self = Self::default();
        }
    }

    fn ended(&mut self, result: CompactResult) {
        if result == CompactResult::Success {
            self.stage = Stage::Made;
            self.tries += 1;
        } else {
            self.stage = Stage::Pieces;
        }
    }
}

impl IsolatedBlock {
    /// The first stage for the huge page that comes up next has ended: with success it goes whole, and otherwise in pieces, as do those after
    /// it in this pass.
    pub fn first_stage_ended(&mut self, result: CompactResult) {
        self.two_stage.ended(result);
    }
}

impl PhysicalMemory<'_> {
    /// Where places for huge pages that move can be made: zones, the best one first.
    pub fn zones_for_moves(&self, cpu: &Cpu) -> impl Iterator<Item = &Zone> {
        let node = self.topology().node_of(cpu.id());
        self.candidates(node, Gfp::SPARE)
    }
}

impl<'m, F: Frames, M: Mmu> Mm<'m, F, M> {
    /// Begins the first stage in a zone: small pages move together there until a pageblock is free. Steps are those of
    /// [`Mm::compaction_step`]. That earlier runs came to nothing does not matter: there is no other way for the page.
    ///
    /// # Errors
    /// [`CompactResult::Skipped`] when it would be in vain.
    pub fn begin_first_stage<'a>(&'a self, zone: &'a Zone) -> Result<Compaction<'a>, CompactResult> {
        self.begin_run(zone, Goal::Chunk(Order::PAGEBLOCK), Runner::Direct)
    }

    /// The first stage from beginning to end, for the huge page of a block that comes up next.
    pub fn make_huge_page(&self, cpu: &Cpu, block: &mut IsolatedBlock) -> CompactResult {
        let mut outcome = CompactResult::Skipped;
        for zone in self.phys.zones_for_moves(cpu) {
            let Ok(mut run) = self.begin_first_stage(zone) else {
                continue;
            };
            let result = loop {
                if let Some(result) = self.compaction_step(cpu, &mut run) {
                    break result;
                }
            };
            outcome = outcome.max(result);
            if outcome == CompactResult::Success {
                break;
            }
        }
        block.first_stage_ended(outcome);
        outcome
    }

    /// Moves pages off an isolated block, about `budget_pages` 4 KiB pages' worth: at least one page, and a huge page
    /// counts 512. One flush in all, and one more for each huge page that has to be made.
    pub fn migrate_batch(&self, cpu: &Cpu, block: &mut IsolatedBlock, budget_pages: u32) -> MigrateReport {
        let batch = self.begin_migration(cpu, block, budget_pages);
        let mut report = self.finish_migration(cpu, block, batch);
        while report.end == BatchEnd::NoHugePage {
            self.make_huge_page(cpu, block);
            let done = report.moved_pages();
            let batch = self.begin_migration(cpu, block, budget_pages.saturating_sub(done));
            report.add(self.finish_migration(cpu, block, batch));
        }
        report
    }

    /// A place for a page, from the route's own; counts huge pages for which it was made.
    pub(super) fn destination(&self, cpu: &Cpu, route: &mut impl Route, order: Order) -> Option<Pfn> {
        let to = route.destination(self.phys, cpu, order)?;
        if order == Order::PAGEBLOCK {
            self.place_found(route);
        }
        Some(to)
    }

    fn place_found(&self, route: &mut impl Route) {
        let was_made = route.two_stage().is_some_and(TwoStage::found);
        self.phys.counts.thp_migration_compacted.add(u64::from(was_made));
    }

    /// A page of the pool that no program has does not move: another one takes its place. `None` if a program has just taken it.
    pub(super) fn replace_pooled(&self, cpu: &Cpu, pfn: Pfn, route: &mut impl Route) -> Option<Setback> {
        let is_to_be_made = route.two_stage().is_some_and(|stage| stage.is_to_be_made());
        let without = match is_to_be_made {
            true => WithoutFrame::Keep,
            false => WithoutFrame::Shrink,
        };
        match self.phys.replace_free_huge(cpu, pfn, without) {
            Replaced::ByAnother => {
                self.place_found(route);
                Some(Setback::Replaced)
            }
            Replaced::ByNone => Some(Setback::Replaced),
            Replaced::NoFrame if is_to_be_made => Some(Setback::NoHugePage),
            Replaced::NoFrame => {
                route.two_stage().into_iter().for_each(TwoStage::starved);
                Some(Setback::NoMemory)
            }
            Replaced::Taken => None,
        }
    }

    /// What becomes of a page for which there is no frame of its size outside. Its lock was given back.
    pub(super) fn without_frame(&self, cpu: &Cpu, page: InUse, route: &mut impl Route) -> Setback {
        if page.order != Order::PAGEBLOCK {
            return self.split_for_migration(cpu, page);
        }
        if route.two_stage().is_some_and(|stage| stage.is_to_be_made()) {
            self.phys.release(cpu, page);
            return Setback::NoHugePage;
        }
        let flags = self.phys.page(page.pfn).map(crate::page::Page::flags);
        if flags.is_some_and(|flags| flags.has(PageFlags::HUGETLB)) {
            // Its program was promised that it is huge.
            self.phys.release(cpu, page);
            route.two_stage().into_iter().for_each(TwoStage::starved);
            return Setback::NoMemory;
        }
        let setback = self.split_for_migration(cpu, page);
        if matches!(setback, Setback::Split) {
            route.two_stage().into_iter().for_each(TwoStage::went_in_pieces);
        }
        setback
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_for_which_places_are_made_and_taken_by_others_goes_in_pieces_in_the_end() {
        let mut stage = TwoStage::default();
        for _ in 0..MOST_TRIES {
            assert!(stage.is_to_be_made());
            stage.ended(CompactResult::Success);
        }
        assert!(!stage.is_to_be_made());
        assert!(stage.found(), "the last one was not taken");
        assert!(
            stage.is_to_be_made() && !stage.found(),
            "the next page begins anew"
        );
    }

    #[test]
    fn after_one_that_went_in_pieces_places_are_made_for_the_next_page_if_they_can_be() {
        let mut stage = TwoStage::default();
        (0..MOST_TRIES).for_each(|_| stage.ended(CompactResult::Success));
        assert!(!stage.is_to_be_made());
        stage.went_in_pieces();
        assert!(stage.is_to_be_made() && !stage.found());
        stage.ended(CompactResult::Complete);
        stage.went_in_pieces();
        assert!(!stage.is_to_be_made());
    }

    #[test]
    fn once_no_place_can_be_made_none_is_tried_until_memory_came() {
        let mut stage = TwoStage::default();
        stage.ended(CompactResult::Complete);
        assert!(!stage.is_to_be_made() && !stage.found());
        assert!(!stage.is_to_be_made());
        stage.starved();
        assert!(stage.is_to_be_made());
    }
}
