//! Rows that ask for frames in all ways and leave enough for others.

use super::hoard::Hoard;
use super::{Bench, Checks, Row, Step};
use alloc::format;
use alloc::vec::Vec;
use guest_mm::frames::Frames;
use guest_mm::node::NodeId;
use guest_mm::zone::ZoneCounters;
use guest_mm::{Gfp, MigrateType, Order, Pfn, Watermark, Zone, ZoneKind};
use guest_programs::pattern::Random;

/// Steps of a round, and what one of them does at most.
const STEPS: u32 = 24;
const OPERATIONS: u32 = 8;
/// Most frames that a row holds: 16 MiB.
const MAX_HELD_PAGES: u64 = 4096;
/// Frames compared and given back in one step at the end.
const PAGES_A_STEP: u64 = 1024;

/// Chunks of every order and mobility, taken and given back in random order, so that chunks split and merge all the time
/// (rows P1, P5, P6). Keeps what it has from round to round.
#[derive(Debug)]
pub struct Buddy {
    hoard: Hoard,
    random: Random,
    steps_left: u32,
    /// Chunks that it got in this round.
    nr_taken: u32,
}

impl Default for Buddy {
    fn default() -> Self {
        Self {
            hoard: Hoard::new(1),
            random: Random::new(0),
            steps_left: 0,
            nr_taken: 0,
        }
    }
}

impl<F: Frames> Row<F> for Buddy {
    fn begin(&mut self, seed: u64) {
        self.random = Random::new(seed);
        self.steps_left = STEPS;
        self.nr_taken = 0;
    }

    fn step(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        for _ in 0..OPERATIONS {
            // Small orders more often than large ones.
            let order = self.random.below(self.random.clone().below(11) + 1);
            let order = u8::try_from(order)
                .ok()
                .and_then(Order::new)
                .unwrap_or(Order::ZERO);
            let kinds = [
                Gfp::NONE,
                Gfp::NONE.with(Gfp::RECLAIMABLE),
                Gfp::HIGHMEM.with(Gfp::MOVABLE),
            ];
            let gfp = kinds[usize::try_from(self.random.below(3)).unwrap_or(0)];
            let has_room = self.hoard.nr_pages() + u64::from(order.nr_pages()) <= MAX_HELD_PAGES;
            if has_room && self.random.below(5) < 3 {
                let taken = self.hoard.take(bench, (gfp, order, None), checks);
                self.nr_taken += u32::from(taken.is_some());
            } else {
                self.hoard.give_any(bench, &mut self.random, checks);
            }
        }
        self.steps_left = self.steps_left.saturating_sub(1);
        if self.steps_left > 0 {
            return Step::More;
        }
        checks.that(self.nr_taken > 0, || {
            "a whole round without a single chunk".into()
        });
        Step::Done
    }

    fn end(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        give_all(&mut self.hoard, bench, checks)
    }
}

fn give_all<F: Frames>(hoard: &mut Hoard, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
    if hoard.give_some(bench, PAGES_A_STEP, checks) {
        Step::Done
    } else {
        Step::More
    }
}

/// Bursts of single frames and huge pages that the CPU's own lists serve: the frame given back last comes first, one
/// asked for as cold does not (row P7).
#[derive(Debug)]
pub struct Pcp {
    hoard: Hoard,
    steps_left: u32,
}

impl Default for Pcp {
    fn default() -> Self {
        Self {
            hoard: Hoard::new(2),
            steps_left: 0,
        }
    }
}

/// The list that a movable frame goes to when it is given back: node and zone. `None` for a frame in a pageblock of
/// another kind, whose list movable requests do not look at.
fn home<F>(bench: &Bench<'_, F>, pfn: Pfn) -> Option<(NodeId, ZoneKind)> {
    let is_movable = bench.phys.migrate_type(pfn)? == MigrateType::Movable;
    let zone = bench.phys.zone_of(pfn)?;
    is_movable.then_some((zone.node(), zone.kind()))
}

/// Frames of a burst: fewer than any list may have in a zone of 64 MiB or more.
const BURST: usize = 8;

impl Pcp {
    /// A burst of chunks taken and given back on a CPU that does nothing else meanwhile.
    fn burst<F: Frames>(&mut self, bench: &Bench<'_, F>, order: Order, checks: &mut Checks) {
        let gfp = Gfp::HIGHMEM.with(Gfp::MOVABLE);
        let chunks = if order == Order::ZERO { BURST } else { 1 };
        let mut homes = Vec::new();
        for _ in 0..chunks {
            if let Some(pfn) = self.hoard.take(bench, (gfp, order, None), checks) {
                homes.push(home(bench, pfn));
            }
        }
        while self.hoard.len() > 0 {
            self.hoard.give_last(bench, checks);
        }
        let hits = || {
            let zones = bench.phys.populated_zones();
            zones.map(|zone| bench.phys.zone_stat(zone).pcp_hit).sum::<u64>()
        };
        let before = hits();
        for _ in 0..homes.len() {
            self.hoard.take(bench, (gfp, order, None), checks);
        }
        let served = hits() - before;
        // Frames of several zones or kinds of pageblocks are on several lists, and only the first is asked.
        let is_one_list = homes.iter().all(|home| home.is_some() && *home == homes[0]);
        if is_one_list {
            checks.that(served >= homes.len() as u64, || {
                format!(
                    "{served} of {} requests of order {} came from the CPU's list",
                    homes.len(),
                    order.number()
                )
            });
        }
        while self.hoard.len() > 0 {
            self.hoard.give_last(bench, checks);
        }
    }

    /// The frame given back last is handed out first, and last to who asks for a cold one.
    fn hot_and_cold<F: Frames>(bench: &Bench<'_, F>, checks: &mut Checks) {
        let Bench { phys, cpu, .. } = *bench;
        let gfp = Gfp::HIGHMEM.with(Gfp::MOVABLE);
        let take = |gfp| phys.alloc_pages(cpu, gfp, Order::ZERO).ok();
        let give = |pfn: Option<Pfn>| pfn.is_none_or(|pfn| phys.free_pages(cpu, pfn).is_ok());
        let (first, second) = (take(gfp), take(gfp));
        let homes = [first, second].map(|pfn| pfn.and_then(|pfn| home(bench, pfn)));
        let comparable = homes[0].is_some() && homes[0] == homes[1];
        let given = [give(first), give(second)];
        let hot = take(gfp);
        let given = [given[0], given[1], give(hot)];
        let cold = take(gfp.with(Gfp::COLD));
        checks.that(given == [true; 3] && give(cold), || {
            format!("frames could not be given back: {given:?}")
        });
        if comparable {
            checks.that(hot == second, || {
                format!("{second:?} was given back last, and {hot:?} came first")
            });
            checks.that(cold.is_some() && cold != second, || {
                format!("{second:?} was given back last, and {cold:?} was handed out as cold")
            });
        }
    }
}

impl<F: Frames> Row<F> for Pcp {
    fn begin(&mut self, seed: u64) {
        self.hoard = Hoard::new(seed);
        self.steps_left = STEPS;
    }

    fn step(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        let order = if self.steps_left % 8 == 1 {
            Order::PAGEBLOCK
        } else {
            Order::ZERO
        };
        self.burst(bench, order, checks);
        Self::hot_and_cold(bench, checks);
        self.steps_left = self.steps_left.saturating_sub(1);
        if self.steps_left > 0 {
            Step::More
        } else {
            Step::Done
        }
    }

    fn end(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        give_all(&mut self.hoard, bench, checks)
    }
}

/// Requests bound to each zone, and the counters of all zones (rows P3, P5). Keeps what it has until its end.
#[derive(Debug)]
pub struct Zones {
    hoard: Hoard,
    random: Random,
    steps_left: u32,
}

impl Default for Zones {
    fn default() -> Self {
        Self {
            hoard: Hoard::new(3),
            random: Random::new(0),
            steps_left: 0,
        }
    }
}

/// Each kind of request, from the one that may go to the fewest zones on.
const BOUND: [Gfp; 5] = [
    Gfp::DMA,
    Gfp::DMA32,
    Gfp::NONE,
    Gfp::HIGHMEM,
    Gfp::HIGHMEM.with(Gfp::MOVABLE),
];

impl Zones {
    fn ask<F: Frames>(&mut self, bench: &Bench<'_, F>, gfp: Gfp, checks: &mut Checks) {
        let Bench { phys, cpu, .. } = *bench;
        let order = u8::try_from(self.random.below(4)).ok().and_then(Order::new);
        let order = order.unwrap_or(Order::ZERO);
        // On the CPU's own node, so that no other node's zones come into it.
        let node = phys.topology().node_of(cpu.id());
        let plenty = |kind: ZoneKind| {
            let zone = phys.zone(node, kind);
            zone.counters().free_pages
                > zone.watermark(Watermark::High) + zone.reserve(ZoneKind::Movable) + 1024
        };
        let preferred = ZoneKind::ALL
            .into_iter()
            .rfind(|&kind| kind <= gfp.highest_zone() && plenty(kind));
        let pfn = self.hoard.take(bench, (gfp, order, None), checks);
        let limits = phys.topology().limits();
        if let Some(pfn) = pfn {
            let end = match gfp.highest_zone() {
                ZoneKind::Dma => Some(limits.dma),
                ZoneKind::Dma32 => Some(limits.dma32),
                _ => None,
            };
            checks.that(end.is_none_or(|end| pfn < end), || {
                format!("{pfn} is beyond the reach of a {gfp:?} request")
            });
        }
        if let Some(preferred) = preferred {
            // The highest zone with memory to spare: smaller ones below are left to those who have no choice.
            let found = pfn.and_then(|pfn| phys.zone_of(pfn)).map(Zone::kind);
            checks.that(found == Some(preferred), || {
                format!("{found:?} served a {gfp:?} request, and {preferred:?} has plenty")
            });
        }
    }

    fn counters<F: Frames>(bench: &Bench<'_, F>, checks: &mut Checks) {
        for zone in bench.phys.zones() {
            let ZoneCounters {
                spanned_pages,
                present_pages,
                managed_pages,
                free_pages,
                ..
            } = zone.counters();
            let descends =
                [spanned_pages, present_pages, managed_pages, free_pages].is_sorted_by(|a, b| a >= b);
            checks.that(descends, || {
                format!("zone {}: {:?}", zone.kind().name(), zone.counters())
            });
            let marks = [
                Watermark::Critical,
                Watermark::Min,
                Watermark::Low,
                Watermark::High,
            ];
            let marks = marks.map(|mark| zone.watermark(mark));
            checks.that(marks.is_sorted() && marks[3] <= managed_pages, || {
                format!(
                    "zone {}: watermarks {marks:?} of {managed_pages} frames",
                    zone.kind().name()
                )
            });
        }
    }
}

impl<F: Frames> Row<F> for Zones {
    fn begin(&mut self, seed: u64) {
        self.random = Random::new(seed);
        self.steps_left = STEPS;
    }

    fn step(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        for gfp in BOUND {
            self.ask(bench, gfp, checks);
        }
        while self.hoard.nr_pages() > MAX_HELD_PAGES / 8 {
            self.hoard.give_any(bench, &mut self.random, checks);
        }
        Self::counters(bench, checks);
        self.steps_left = self.steps_left.saturating_sub(1);
        if self.steps_left > 0 {
            Step::More
        } else {
            Step::Done
        }
    }

    fn end(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        give_all(&mut self.hoard, bench, checks)
    }
}
