//! Areas of single frames, in memory where no two free frames are neighbours too (row P12).

use super::{Bench, Checks, Row, Step};
use alloc::format;
use alloc::vec::Vec;
use core::ptr;
use guest_mm::frames::Frames;
use guest_mm::kernel_map::KernelRange;
use guest_mm::pfn::PAGE_SIZE;
use guest_mm::vmalloc::{NotAnArea, VmallocError};
use guest_mm::{Gfp, Order, Pfn, Watermark, Zone, ZoneKind};
use guest_programs::pattern::{Page, Pattern, Random, WORDS, mix};

/// Steps of a round that take and give areas, and what one of them does.
const STEPS: u32 = 8;
const OPERATIONS: u32 = 6;
/// Areas held from round to round, and pages of one of them at most.
const AREAS: usize = 24;
const MAX_PAGES: u64 = 48;
/// Pages of the area that is asked for when no two free frames are neighbours.
const SCATTERED_PAGES: u64 = 128;
/// How often it is tried again to have memory without two free frames side by side, while others use it too.
const ATTEMPTS: u32 = 8;
/// Most frames that are given back one by one for that; guests of more than about half a GiB go without.
const MOST_SINGLES: u64 = 1 << 16;

/// The manager's areas, and its memory by virtual addresses. A machine implements it with its own page tables.
pub trait Areas: Sync {
    /// A new area of at least `bytes`.
    ///
    /// # Errors
    /// When there is no room for it, or there are not enough frames.
    fn vmalloc(&self, bytes: u64) -> Result<KernelRange, VmallocError>;

    /// Frees one.
    ///
    /// # Errors
    /// If there is none at that address.
    fn vfree(&self, va: u64) -> Result<(), NotAnArea>;

    /// Gives back what was freed.
    fn purge(&self);

    /// The frame that is mapped at an address; `None` where nothing is.
    fn frame_at(&self, va: u64) -> Option<Pfn>;

    /// The word at a mapped address, a multiple of 8.
    fn read(&self, va: u64) -> u64;

    /// Writes a word there.
    fn write(&self, va: u64, word: u64);
}

/// An area that is held.
#[derive(Clone, Copy, Debug)]
struct Area {
    range: KernelRange,
    stamp: u32,
}

impl Area {
    fn pattern(self, va: u64) -> Pattern {
        Pattern::new(0x766d, va, self.stamp)
    }

    fn fill(self, areas: &impl Areas) {
        for va in self.range.pages() {
            let mut page: Page = [0; WORDS];
            self.pattern(va).fill(&mut page);
            for (at, word) in (va..).step_by(8).zip(page) {
                areas.write(at, word);
            }
        }
    }

    fn compare(self, areas: &impl Areas, checks: &mut Checks) {
        for va in self.range.pages() {
            let page: Page = core::array::from_fn(|index| areas.read(va + index as u64 * 8));
            let compared = self.pattern(va).check(&page);
            checks.that(compared.is_ok(), || {
                format!("page {va:#x} of the area {}: {compared:?}", self.range)
            });
        }
    }

    /// Every page is backed by a frame of its own.
    fn check_frames(self, areas: &impl Areas, checks: &mut Checks) -> Vec<Pfn> {
        let frames: Vec<Pfn> = self.range.pages().filter_map(|va| areas.frame_at(va)).collect();
        let mut distinct = frames.clone();
        distinct.sort_unstable();
        distinct.dedup();
        checks.that(distinct.len() as u64 == self.range.nr_pages(), || {
            format!(
                "{} frames for the {} pages of {}",
                distinct.len(),
                self.range.nr_pages(),
                self.range
            )
        });
        frames
    }
}

/// Areas taken and given back in random order, and one large one where memory is nothing but single frames. Keeps areas
/// from round to round.
pub struct Vmalloc<'s, A> {
    areas: &'s A,
    held: Vec<Area>,
    random: Random,
    steps_left: u32,
    attempts_left: u32,
    nr_taken: u32,
}

impl<'s, A: Areas> Vmalloc<'s, A> {
    /// Nothing yet.
    pub fn new(areas: &'s A) -> Self {
        Self {
            areas,
            held: Vec::new(),
            random: Random::new(0),
            steps_left: 0,
            attempts_left: 0,
            nr_taken: 0,
        }
    }

    fn take(&mut self, checks: &mut Checks) {
        if self.held.len() >= AREAS || self.held.try_reserve(1).is_err() {
            return;
        }
        let bytes = self.random.below(MAX_PAGES * PAGE_SIZE) + 1;
        let Ok(range) = self.areas.vmalloc(bytes) else {
            return;
        };
        checks.that(
            range.bytes() >= bytes && range.bytes() - bytes < PAGE_SIZE,
            || format!("{} bytes for {bytes}", range.bytes()),
        );
        self.nr_taken = self.nr_taken.wrapping_add(1);
        let area = Area {
            range,
            stamp: self.nr_taken,
        };
        area.check_frames(self.areas, checks);
        checks.that(self.areas.frame_at(range.end()).is_none(), || {
            format!("there is no guard page behind {range}")
        });
        area.fill(self.areas);
        self.held.push(area);
    }

    fn give(&mut self, index: usize, checks: &mut Checks) {
        if index >= self.held.len() {
            return;
        }
        let area = self.held.swap_remove(index);
        area.compare(self.areas, checks);
        let freed = self.areas.vfree(area.range.start());
        checks.that(freed.is_ok(), || format!("{freed:?}"));
    }

    /// Takes all memory, makes some of it free again as single frames none of which have a free neighbour, and asks for a
    /// chunk of two frames, which there is not, and an area of many, which there is.
    fn scattered<F: Frames>(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) {
        let Bench { phys, cpu, .. } = *bench;
        if 2 * phys.populated_zones().map(needed).sum::<u64>() > MOST_SINGLES {
            return;
        }
        self.areas.purge();
        // Every zone's.
        let any = Gfp::HIGHMEM.with(Gfp::MOVABLE).with(Gfp::MEMALLOC);
        let take = |order| phys.alloc_pages(cpu, any, order).ok();
        let (mut chunks, mut nr_largest): (Vec<Pfn>, usize) = (Vec::new(), 0);
        for order in Order::all().skip(1).collect::<Vec<_>>().into_iter().rev() {
            while chunks.try_reserve(1).is_ok()
                && let Some(chunk) = take(order)
            {
                chunks.push(chunk);
                nr_largest += usize::from(order == Order::MAX);
            }
        }
        let give = |pfn: Pfn| phys.free_pages(cpu, pfn).is_ok();
        // Every other frame of what is given back is taken again.
        let mut given = give_of_every_zone(bench, &mut chunks, nr_largest);
        let mut singles: Vec<Pfn> = Vec::new();
        while singles.try_reserve(1).is_ok()
            && let Some(pfn) = take(Order::ZERO)
        {
            singles.push(pfn);
        }
        singles.sort_unstable();
        singles.retain(|&pfn| {
            let stays = pfn.number() % 2 == 0;
            given &= stays || give(pfn);
            stays
        });
        phys.drain_all();
        let pair = take(Order::all().nth(1).unwrap_or(Order::ZERO));
        checks.that(pair.is_none(), || {
            format!("{pair:?} and the frame behind it were free")
        });
        let range = self.areas.vmalloc(SCATTERED_PAGES * PAGE_SIZE);
        let area = range.ok().map(|range| Area {
            range,
            stamp: u32::MAX,
        });
        checks.that(area.is_some(), || {
            format!("no area of {SCATTERED_PAGES} pages: {range:?}")
        });
        if let Some(area) = area {
            let frames = area.check_frames(self.areas, checks);
            let neighbours = frames
                .windows(2)
                .filter(|pair| pair[0].number().abs_diff(pair[1].number()) == 1);
            checks.that(neighbours.count() == 0, || format!("neighbours among {frames:?}"));
            area.fill(self.areas);
            area.compare(self.areas, checks);
            let freed = self.areas.vfree(area.range.start());
            checks.that(freed.is_ok(), || format!("{freed:?}"));
            self.areas.purge();
        }
        given &= chunks.into_iter().chain(singles).chain(pair).all(give);
        checks.that(given, || "a frame could not be given back".into());
    }
}

/// What requests for areas leave in a zone, and what they need: which zone serves them depends on what is free elsewhere.
fn needed(zone: &Zone) -> u64 {
    zone.watermark(Watermark::High) + zone.reserve(ZoneKind::Movable) + 4 * SCATTERED_PAGES
}

/// Gives back as many of the first `nr_largest` chunks, which are of the largest size, as every zone needs twice over; whether that could be done.
fn give_of_every_zone<F: Frames>(bench: &Bench<'_, F>, chunks: &mut Vec<Pfn>, nr_largest: usize) -> bool {
    let Bench { phys, cpu, .. } = *bench;
    let chunks_of = |zone| (2 * needed(zone)).div_ceil(Order::MAX.nr_pages().into());
    let mut wanted: Vec<(&Zone, u64)> = phys
        .populated_zones()
        .map(|zone| (zone, chunks_of(zone)))
        .collect();
    let (mut given, mut nr_seen) = (true, 0);
    chunks.retain(|&chunk| {
        nr_seen += 1;
        let zone = phys.zone_of(chunk).filter(|_| nr_seen <= nr_largest);
        let is_of = |known: &Zone| zone.is_some_and(|zone| ptr::eq(zone, known));
        let wanted = wanted.iter_mut().find(|(known, left)| is_of(known) && *left > 0);
        let Some((_, left)) = wanted else { return true };
        *left -= 1;
        given &= phys.free_pages(cpu, chunk).is_ok();
        false
    });
    given
}

impl<F: Frames, A: Areas> Row<F> for Vmalloc<'_, A> {
    fn begin(&mut self, seed: u64) {
        self.random = Random::new(mix(seed));
        self.steps_left = STEPS;
        self.attempts_left = ATTEMPTS;
    }

    fn step(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        for _ in 0..OPERATIONS {
            if self.random.below(3) < 2 {
                self.take(checks);
            } else {
                let index = self.random.below(self.held.len() as u64);
                self.give(usize::try_from(index).unwrap_or(0), checks);
            }
        }
        self.steps_left = self.steps_left.saturating_sub(1);
        if self.steps_left > 0 {
            return Step::More;
        }
        // Others may free frames, or take them, in the middle of it: not every time.
        let mut attempt = Checks::default();
        self.scattered(bench, &mut attempt);
        if attempt.failed > 0 && self.attempts_left > 0 {
            self.attempts_left -= 1;
            return Step::More;
        }
        checks.add(attempt);
        Step::Done
    }

    fn end(&mut self, _: &Bench<'_, F>, checks: &mut Checks) -> Step {
        self.give(0, checks);
        if !self.held.is_empty() {
            return Step::More;
        }
        self.areas.purge();
        Step::Done
    }

    fn exhausts(&self) -> bool {
        true
    }
}
