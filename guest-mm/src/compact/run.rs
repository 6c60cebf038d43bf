//! One run over a zone, in steps of one batch each.

use guest_sync::Cpu;

use crate::blocks::InUse;
use crate::compact::CompactResult;
use crate::compact::index::EXTFRAG_THRESHOLD;
use crate::compact::scan::Candidate;
use crate::frames::{Frames, Mmu};
use crate::mem_map::Tag;
use crate::migrate::{BatchEnd, Route};
use crate::mm::Mm;
use crate::node::ZoneIndex;
use crate::page::{Head, PageFlags, PageState};
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};
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

/// A withdrawn pageblock; dropping it puts it back in use.
#[derive(Debug)]
struct Source<'a> {
    phys: &'a PhysicalMemory<'a>,
    zone: &'a Zone,
    home: Tag,
    range: PfnRange,
    /// Free frames that it had at first.
    free_pages: u32,
    /// Offset of the next frame to look at.
    cursor: u32,
    /// Sections that the free scanner looked at.
    free_scanned: u64,
    /// Pages that went elsewhere.
    moved_pages: u64,
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

impl Source<'_> {
    /// Whether nothing is on it that is known not to move: a look, before the first page is.
    fn all_movable(&self) -> bool {
        let mut cursor = 0;
        while let Some((head, _)) = self.phys.next_head(self.range, self.home, &mut cursor) {
            let page = self.phys.table.page(head);
            let flags = page.flags();
            let movable =
                page.anon_place().is_some() || flags.has(PageFlags::SWAPCACHE) || flags.has(PageFlags::FILE);
            if page.state() == PageState::Allocated && (!movable || flags.has(PageFlags::PINNED)) {
                return false;
            }
        }
        true
    }

    /// Gives back to it what CPUs keep at hand of it.
    fn drain(&self) {
        self.zone.drain(&self.phys.table, |pfn| self.range.contains(pfn));
    }

    /// False once all of it is free, and back in use as a whole.
    fn is_withdrawn(&self) -> bool {
        let mut withdrawn = false;
        self.visit(|section, pageblock| withdrawn = section.pageblocks[pageblock as usize].withdrawn);
        withdrawn
    }

    /// It is not tried again in this run.
    fn skip(&self) {
        self.visit(|section, pageblock| section.pageblocks[pageblock as usize].skip = true);
    }

    /// Shows the pageblock with its section, unless that was taken out meanwhile.
    fn visit(&self, look: impl FnOnce(&mut crate::section::Section, u32)) {
        let mut areas = self.zone.areas.lock();
        let section = areas.section_mut(self.home.section());
        if let Some(section) = section.filter(|section| section.range.covers(self.range)) {
            let pageblock = (self.range.start() - section.range.start()) / PAGEBLOCK_NR_PAGES;
            look(section, pageblock);
        }
        areas.relist(self.home.section());
    }
}

impl Drop for Source<'_> {
    fn drop(&mut self) {
        let tags = &self.phys.table.tags;
        self.visit(|section, pageblock| {
            if section.pageblocks[pageblock as usize].withdrawn {
                section.readmit(tags, pageblock);
            }
        });
    }
}

impl Route for Source<'_> {
    fn next_in_use(&mut self, phys: &PhysicalMemory<'_>) -> Option<InUse> {
        let (head, order) = phys.next_head(self.range, self.home, &mut self.cursor)?;
        Some(phys.hold(head, order))
    }

    fn step_back(&mut self, order: Order) {
        self.cursor -= order.nr_pages();
    }

    fn destination(&mut self, phys: &PhysicalMemory<'_>, _: &Cpu, order: Order) -> Option<Pfn> {
        if order != Order::ZERO {
            return None;
        }
        let mut areas = self.zone.areas.lock();
        let pfn = areas.take_from_fullest(&phys.table.tags, &mut self.free_scanned)?;
        phys.table.page(pfn).set_head(Head::allocated(Order::ZERO));
        self.zone.publish(&areas);
        self.zone.events.slow_alloc_pages.add(1);
        Some(pfn)
    }

    fn moved(&mut self, nr_pages: u32) {
        self.moved_pages += u64::from(nr_pages);
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

    /// Withdraws the emptiest movable pageblock that was not tried in vain.
    fn withdraw_emptiest<'a>(&'a self, zone: &'a Zone) -> Option<Source<'a>> {
        let source = {
            let mut areas = zone.areas.lock();
            let Candidate {
                section,
                range,
                free_pages,
            } = areas.emptiest_movable()?;
            let found = areas.section_mut(section)?;
            let pageblock = (range.start() - found.range.start()) / PAGEBLOCK_NR_PAGES;
            found.withdraw(&self.table.tags, pageblock);
            areas.relist(section);
            Source {
                phys: self,
                zone,
                home: Tag::new(ZoneIndex::of(zone.node(), zone.kind()), section),
                range,
                free_pages,
                cursor: 0,
                free_scanned: 0,
                moved_pages: 0,
            }
        };
        source.drain();
        Some(source)
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
            BatchEnd::NoMemory => {
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
