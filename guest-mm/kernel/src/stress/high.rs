//! Frames outside of the direct map, seen through windows (row P8).

use super::hoard::{Hoard, read_page, write_page};
use super::{Bench, Checks, Row, Step};
use alloc::format;
use alloc::vec::Vec;
use guest_mm::frames::Frames;
use guest_mm::kernel_map::KernelTlb;
use guest_mm::kmap::{Kmap, PermanentMaps};
use guest_mm::{Gfp, Order, Pfn, Zone, ZoneKind};
use guest_programs::pattern::{Page, Pattern, WORDS};

/// Steps of a round, and the frames that each looks at.
const STEPS: u32 = 6;
const FRAMES: usize = 6;
/// Words of a frame that are read one by one.
const SINGLE_WORDS: usize = 32;
/// Mappings made in one step when the window is filled.
const MAPS_A_STEP: usize = 256;

/// The windows of a machine, and its memory by virtual addresses.
pub trait Windows: Sync {
    /// What flushes translations.
    type Tlb: KernelTlb;

    /// Mappings that stay.
    fn permanent(&self) -> &PermanentMaps;

    /// How many mappings for a moment were made since boot: what is not in the direct map is reached through them by
    /// [`Frames`].
    fn momentary_maps(&self) -> u64;

    /// What flushes translations.
    fn tlb(&self) -> &Self::Tlb;

    /// The word at a mapped address, a multiple of 8.
    fn read(&self, va: u64) -> u64;

    /// Writes a word there.
    fn write(&self, va: u64, word: u64);
}

/// Frames of high memory mapped permanently and for a moment, each mapping showing what was written through the other; and
/// the whole window in use.
pub struct HighMemory<'s, W> {
    windows: &'s W,
    hoard: Hoard,
    kmaps: Vec<Kmap<'s>>,
    seed: u64,
    steps_left: u32,
}

impl<'s, W: Windows> HighMemory<'s, W> {
    /// Nothing yet.
    pub fn new(windows: &'s W) -> Self {
        Self {
            windows,
            hoard: Hoard::new(8),
            kmaps: Vec::new(),
            seed: 0,
            steps_left: 0,
        }
    }

    fn take<F: Frames>(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Option<Pfn> {
        let pfn = self
            .hoard
            .take(bench, (Gfp::HIGHMEM, Order::ZERO, None), checks)?;
        let high = bench
            .phys
            .populated_zones()
            .filter(|zone| zone.kind() == ZoneKind::HighMem);
        let has_some = high.map(|zone| zone.counters().free_pages).sum::<u64>() > 4096;
        let is_high = bench
            .phys
            .zone_of(pfn)
            .is_some_and(|zone| zone.kind() == ZoneKind::HighMem);
        checks.that(is_high || !has_some, || {
            format!("{pfn} is not high memory, of which there is plenty")
        });
        Some(pfn)
    }

    /// A frame through both kinds of windows at once.
    fn look<F: Frames>(&mut self, bench: &Bench<'_, F>, pfn: Pfn, checks: &mut Checks) {
        let windows = self.windows;
        let Some(kmap) = windows.permanent().try_kmap(bench.frames, windows.tlb(), pfn) else {
            checks.that(false, || format!("no slot for {pfn}"));
            return;
        };
        let pattern = Pattern::new(self.seed, pfn.gpa(), self.steps_left);
        let mut page: Page = [0; WORDS];
        pattern.fill(&mut page);
        for (va, word) in (kmap.va()..).step_by(8).zip(page) {
            windows.write(va, word);
        }
        // What is not in the direct map is mapped for a moment: for the whole of it, and for a word at a time.
        let before = windows.momentary_maps();
        let seen = read_page(bench.frames, pfn);
        let words = (0..WORDS).step_by(WORDS / SINGLE_WORDS);
        let agree = words
            .clone()
            .filter(|&index| bench.frames.read(pfn, index) == seen[index])
            .count();
        checks.that(agree == SINGLE_WORDS, || {
            format!("{agree} of {SINGLE_WORDS} words of {pfn} are what the whole of it has there")
        });
        let made = windows.momentary_maps() - before;
        let zone = bench.phys.zone_of(pfn).map(Zone::kind);
        checks.that(
            zone != Some(ZoneKind::HighMem) || made > SINGLE_WORDS as u64,
            || format!("{pfn} was read with {made} momentary mappings"),
        );
        let compared = pattern.check(&seen);
        checks.that(compared.is_ok(), || {
            format!("{pfn} through kmap_atomic: {compared:?}")
        });
        // Back through the other window, the words in reverse order.
        page.reverse();
        write_page(bench.frames, pfn, &page);
        let is_back = (kmap.va()..)
            .step_by(8)
            .zip(page)
            .all(|(va, word)| windows.read(va) == word);
        checks.that(is_back, || {
            format!("{pfn} through kmap does not show what kmap_atomic wrote")
        });
    }

    /// Every slot of the window in use: the next one has to wait until one is free again.
    fn fill<F: Frames>(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        let windows = self.windows;
        let slots = windows.permanent().window().nr_pages();
        for _ in 0..MAPS_A_STEP {
            let room = self.kmaps.try_reserve(1).is_ok();
            let Some(pfn) = self.take(bench, checks).filter(|_| room) else {
                return Step::Done;
            };
            let Some(kmap) = windows.permanent().try_kmap(bench.frames, windows.tlb(), pfn) else {
                let mapped = self.kmaps.len() as u64;
                let used = u64::from(windows.permanent().stats().nr_used);
                checks.that(used == slots && mapped > 0, || {
                    format!("no slot for {pfn}, and {used} of {slots} are used, {mapped} of them here")
                });
                drop(self.kmaps.pop());
                let again = windows.permanent().try_kmap(bench.frames, windows.tlb(), pfn);
                checks.that(again.is_some(), || {
                    format!("a slot was freed, and there is none for {pfn}")
                });
                return Step::Done;
            };
            let first = windows.read(kmap.va());
            checks.that(first == bench.frames.read(pfn, 0), || {
                format!("{pfn} through kmap shows {first:#x}")
            });
            self.kmaps.push(kmap);
        }
        Step::More
    }
}

impl<F: Frames, W: Windows> Row<F> for HighMemory<'_, W> {
    fn begin(&mut self, seed: u64) {
        self.hoard = Hoard::new(seed);
        self.seed = seed;
        self.steps_left = STEPS;
    }

    fn step(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        if self.steps_left > 0 {
            for _ in 0..FRAMES {
                // Not the hoard's: its pattern is overwritten here.
                if let Ok(pfn) = bench.phys.alloc_pages(bench.cpu, Gfp::HIGHMEM, Order::ZERO) {
                    self.look(bench, pfn, checks);
                    let freed = bench.phys.free_pages(bench.cpu, pfn);
                    checks.that(freed.is_ok(), || format!("{freed:?}"));
                }
            }
            self.steps_left -= 1;
            return Step::More;
        }
        if self.fill(bench, checks) == Step::More {
            return Step::More;
        }
        <Self as Row<F>>::end(self, bench, checks)
    }

    fn end(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        // Unmapped before they are given back.
        self.kmaps.clear();
        if self.hoard.give_some(bench, u64::MAX, checks) {
            Step::Done
        } else {
            Step::More
        }
    }

    fn exhausts(&self) -> bool {
        true
    }
}
