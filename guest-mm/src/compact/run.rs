//! One run over a zone, in steps of one batch each.

use guest_sync::Cpu;

use crate::compact::CompactResult;
use crate::compact::Source;
use crate::compact::index::EXTFRAG_THRESHOLD;
use crate::frames::{Frames, Mmu};
use crate::migrate::BatchEnd;
use crate::mm::Mm;
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES};
use crate::phys::PhysicalMemory;
use crate::zone::{Watermark, Zone};

/// Small pages that are moved at a time; programs that touch them wait meanwhile.
const BATCH_PAGES: u32 = 64;

/// What a run is to bring about in its zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    /// A free chunk of that order, at least 1.
    Chunk(Order),
    /// At most so much of the free memory, in percent, in small chunks
    /// ([`PhysicalMemory::external_fragmentation`]): for nobody in particular, ahead of need.
    Fragmentation(u32),
    /// As many free pageblocks as there can be (Linux `/proc/sys/vm/compact_memory`).
    Everything,
}

/// Who runs, for the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Runner {
    Direct,
    Daemon,
}

/// A run under way (Linux `struct compact_control`). Dropping it ends it; what has moved stays where it went.
#[must_use = "a run does nothing by itself"]
#[derive(Debug)]
pub struct Compaction<'a> {
    phys: &'a PhysicalMemory<'a>,
    zone: &'a Zone,
    goal: Goal,
    runner: Runner,
    /// The pageblock that is being emptied.
    source: Option<Source<'a>>,
    /// Pageblocks emptied.
    freed: u32,
}

impl<'a> Compaction<'a> {
    /// Pageblocks that were emptied.
    pub const fn freed_pageblocks(&self) -> u32 {
        self.freed
    }

    fn is_done(&self) -> bool {
        match self.goal {
            // A whole pageblock serves any order up to its own.
            Goal::Chunk(order) if order <= Order::PAGEBLOCK && self.zone.areas.lock().whole_pages() > 0 => {
                true
            }
            Goal::Chunk(order) => self.phys.fragmentation_index(self.zone, order) < 0,
            Goal::Fragmentation(percent) => self.phys.external_fragmentation(self.zone) <= percent,
            Goal::Everything => false,
        }
    }

    /// Withdraws the next pageblock whose pages all look as if they can move. `None` when there is none.
    fn next_source(&mut self) -> Option<Source<'a>> {
        loop {
            let source = self.phys.withdraw_emptiest(self.zone)?;
            let scanned = u64::from(PAGEBLOCK_NR_PAGES - source.free_pages);
            self.count_migrate_scanned(scanned);
            if source.all_movable() {
                return Some(source);
            }
            source.skip();
        }
    }

    fn count_migrate_scanned(&self, scanned: u64) {
        let counts = &self.phys.counts;
        counts.compact_migrate_scanned.add(scanned);
        if self.runner == Runner::Daemon {
            counts.compact_daemon_migrate_scanned.add(scanned);
        }
    }

    /// The pageblock was gone through.
    fn leave(&mut self, source: &Source<'a>) {
        let counts = &self.phys.counts;
        counts.compact_free_scanned.add(source.free_scanned);
        if self.runner == Runner::Daemon {
            counts.compact_daemon_free_scanned.add(source.free_scanned);
        }
        counts.compact_isolated.add(source.moved_pages);
        // What others had just taken off a list of their CPU's when it was withdrawn.
        source.drain();
        if source.is_withdrawn() {
            source.skip();
        } else {
            self.freed += 1;
        }
    }
}

impl<'m> PhysicalMemory<'m> {
    /// Whether a run may reach that goal in a zone (Linux `compaction_suitable` and `compaction_zonelist_suitable`).
    fn is_suitable(&self, zone: &Zone, goal: Goal) -> bool {
        // Room for what is under way, and for whoever wants memory meanwhile.
        let (gap, fragmented) = match goal {
            Goal::Chunk(order) => (
                u64::from(order.nr_pages()) * 2,
                self.fragmentation_index(zone, order) > EXTFRAG_THRESHOLD,
            ),
            Goal::Fragmentation(percent) => (
                u64::from(PAGEBLOCK_NR_PAGES) * 2,
                self.external_fragmentation(zone) > percent,
            ),
            Goal::Everything => (u64::from(BATCH_PAGES), true),
        };
        fragmented && zone.free_pages() >= zone.watermark(Watermark::Low) + gap
    }
}

impl<'m, F: Frames, M: Mmu> Mm<'m, F, M> {
    /// Starts a run over a zone.
    ///
    /// # Errors
    /// [`CompactResult::Skipped`] when it would be in vain.
    pub fn begin_compaction<'a>(
        &'a self,
        zone: &'a Zone,
        goal: Goal,
    ) -> Result<Compaction<'a>, CompactResult> {
        self.begin_run(zone, goal, Runner::Daemon)
    }

    pub(crate) fn begin_run<'a>(
        &'a self,
        zone: &'a Zone,
        goal: Goal,
        runner: Runner,
    ) -> Result<Compaction<'a>, CompactResult> {
        if !self.phys.is_suitable(zone, goal) {
            return Err(CompactResult::Skipped);
        }
        Ok(Compaction {
            phys: self.phys,
            zone,
            goal,
            runner,
            source: None,
            freed: 0,
        })
    }

    /// Moves the next pages; `Some` when the run has come to its end.
    pub fn compaction_step(&self, cpu: &Cpu, run: &mut Compaction<'_>) -> Option<CompactResult> {
        let Some(mut source) = run.source.take().or_else(|| run.next_source()) else {
            return Some(self.scanners_met(run));
        };
        let batch = self.begin_moves(cpu, &mut source, BATCH_PAGES);
        let report = self.finish_moves(cpu, &mut source, batch);
        match report.end {
            BatchEnd::Budget => {
                run.source = Some(source);
                None
            }
            BatchEnd::PassDone => {
                run.leave(&source);
                drop(source);
                run.is_done().then_some(CompactResult::Success)
            }
            // Its own pages are small, and none is waited for.
            BatchEnd::NoMemory | BatchEnd::NoHugePage | BatchEnd::Busy(_) => {
                run.leave(&source);
                drop(source);
                Some(self.scanners_met(run))
            }
        }
    }

    fn scanners_met(&self, run: &Compaction<'_>) -> CompactResult {
        run.zone.areas.lock().reset_skip();
        if run.is_done() || run.goal == Goal::Everything {
            CompactResult::Success
        } else {
            CompactResult::Complete
        }
    }
}
