//! How much a program gets done while the guest shrinks under it: pages of its memory are checked, one at random after the other, and
//! counted by slices of time. The time is the CPU's own counter, so that nothing is called for it; once in a slice the program looks whether a resize
//! is under way. All slices are reported when it is over, and then everything is checked once more.

use super::{Failure, failed, figure};
use crate::call::{self, Chunk, Table, say};
use core::fmt;
use guest_programs::abi::map_flags;
use guest_programs::options::{BenchOptions, CHUNK};
use guest_programs::pattern::{Pattern, Random};

/// Nanoseconds of a slice.
const SLICE_NS: u64 = 5_000_000;
/// Slices that are measured before the guest is to shrink, and again when it has.
const QUIET: usize = 200;
/// Most slices: a minute and a half.
const MOST: usize = 18_000;
/// Pages that are given back together.
const RUN: usize = 16;
const CHUNK_PAGES: usize = 512;
/// One page in so many is written anew after it was checked.
const REWRITE_ONE_IN: u64 = 4;
/// The program uses this share of its memory all the time, and the rest not at all.
const HOT_ONE_IN: usize = 4;
/// Milliseconds between two looks at the guest's size before anything is measured.
const LOOK_MS: u64 = 10;
const SEED: u64 = 0x511ce;

/// See the module. The host is told by a line when memory is as it is to be, by another one when it can begin to shrink the guest, and
/// then of all slices.
pub(super) fn run(options: &BenchOptions<'_>) -> Result<(), Failure> {
    let clock = Ticks::start();
    wait_for_size(options.slices.at);
    let mut memory = Memory::new(options)?;
    say(format_args!("filled"));
    let mut record = Record::new(clock.per_slice())?;
    record.run(&mut memory)?;
    record.report();
    memory.check_all()
}

/// Until the guest has so much memory, and is not to have more.
fn wait_for_size(bytes: u64) {
    loop {
        let info = call::system_info();
        if info.total >= bytes && info.future_total <= info.total {
            return;
        }
        call::sleep_ms(LOOK_MS);
    }
}

/// When both clocks were read for the first time.
struct Ticks {
    ns: u64,
    ticks: u64,
}

impl Ticks {
    fn start() -> Self {
        Self {
            ns: call::clock(),
            ticks: call::ticks(),
        }
    }

    /// Ticks of a slice, by what has passed since the start.
    fn per_slice(&self) -> u64 {
        let ns = call::clock().saturating_sub(self.ns).max(1);
        let ticks = call::ticks().saturating_sub(self.ticks);
        let per_slice = u128::from(ticks) * u128::from(SLICE_NS) / u128::from(ns);
        u64::try_from(per_slice).unwrap_or(u64::MAX).max(1)
    }
}

/// What the program has.
struct Memory {
    chunks: Table<Chunk>,
    /// How often each page was written since it was filled: a word each.
    generations: u64,
    keep: u8,
    /// Chunks, from the first on, whose pages are used all the time.
    hot: usize,
    random: Random,
}

impl Memory {
    /// All filled, and some of it given back.
    fn new(options: &BenchOptions<'_>) -> Result<Self, Failure> {
        let wanted = options.slices;
        let flags = if wanted.is_huge { 0 } else { map_flags::NO_HUGE };
        let mut chunks = filled(options.size, flags)?;
        let mut spare = filled(wanted.spare, flags)?;
        if wanted.keep == 0 {
            core::mem::swap(&mut chunks, &mut spare);
            let kept = options.size / CHUNK / HOT_ONE_IN as u64;
            give_back(&mut chunks, usize::try_from(kept).unwrap_or(0));
        }
        give_back(&mut spare, 0);
        let (keep, hot) = match wanted.keep {
            0 => (100, chunks.len()),
            keep => (keep, chunks.len() / HOT_ONE_IN),
        };
        let words = chunks.len() as u64 * CHUNK_PAGES as u64 * 8;
        let generations = call::map(words.max(8), map_flags::NO_HUGE).map_err(failed("map"))?;
        let mut memory = Self {
            chunks,
            generations,
            keep,
            hot: hot.max(1),
            random: Random::new(SEED),
        };
        memory.thin_out()?;
        Ok(memory)
    }

    /// Gives back what is not kept.
    fn thin_out(&mut self) -> Result<(), Failure> {
        for at in 0..self.chunks.len() {
            for first in (0..CHUNK_PAGES).step_by(RUN) {
                if is_kept(first, self.keep) {
                    continue;
                }
                if let Some(chunk) = self.chunks.at(at) {
                    call::forget_pages(chunk, first as u64, RUN as u64).map_err(failed("give back"))?;
                }
            }
        }
        Ok(())
    }

    /// Checks one of the pages that are used all the time, and writes it anew now and then.
    fn use_some_page(&mut self) -> Result<(), Failure> {
        let at = below(&mut self.random, self.hot);
        let mut page = below(&mut self.random, CHUNK_PAGES);
        while !is_kept(page, self.keep) {
            page = below(&mut self.random, CHUNK_PAGES);
        }
        let rewrites = self.random.below(REWRITE_ONE_IN) == 0;
        self.check(at, page, rewrites)
    }

    fn check(&mut self, at: usize, page: usize, rewrites: bool) -> Result<(), Failure> {
        let place = self.generations + (at * CHUNK_PAGES + page) as u64 * 8;
        let written = call::read_word(place);
        let pattern = |address, written| {
            let generation = u32::try_from(written).unwrap_or(u32::MAX);
            Pattern::new(SEED, address, generation)
        };
        let Some(chunk) = self.chunks.at(at) else {
            return Ok(());
        };
        let (address, page) = chunk.page(page);
        let checked = pattern(address, written).check(page);
        if rewrites {
            call::write_word(place, written + 1);
            pattern(address, written + 1).fill(page);
        }
        checked.map_err(|_| Failure::Wrong("memory"))
    }

    fn check_all(&mut self) -> Result<(), Failure> {
        let (mut checked, since, keep) = (0, call::clock(), self.keep);
        for at in 0..self.chunks.len() {
            for page in (0..CHUNK_PAGES).filter(|page| is_kept(*page, keep)) {
                self.check(at, page, false)?;
                checked += 1;
            }
        }
        call::report(checked, 0);
        figure("checked", checked, since);
        Ok(())
    }
}

/// Whether a page of a chunk stays: of any hundred runs as many as `keep` says, evenly spread.
fn is_kept(page: usize, keep: u8) -> bool {
    let runs = |run: usize| run * usize::from(keep) / 100;
    runs(page / RUN + 1) > runs(page / RUN)
}

fn below(random: &mut Random, limit: usize) -> usize {
    usize::try_from(random.below(limit as u64)).unwrap_or(0)
}

fn filled(bytes: u64, flags: u64) -> Result<Table<Chunk>, Failure> {
    let nr_chunks = usize::try_from(bytes / CHUNK).unwrap_or(0);
    let mut chunks = Table::new(nr_chunks).map_err(failed("map"))?;
    for _ in 0..nr_chunks {
        let mut chunk = Chunk::map(flags).map_err(failed("map"))?;
        for (address, page) in chunk.pages_mut() {
            Pattern::new(SEED, address, 0).fill(page);
        }
        // There is room for as many as there are.
        let _ = chunks.push(chunk);
    }
    Ok(chunks)
}

/// Unmaps chunks until so many are left.
fn give_back(chunks: &mut Table<Chunk>, left: usize) {
    while chunks.len() > left {
        if let Some(chunk) = chunks.swap_remove(chunks.len() - 1) {
            chunk.unmap();
        }
    }
}

/// What was done in a slice.
#[derive(Clone, Copy)]
struct Slice {
    /// Pages checked.
    count: u32,
    /// Ticks of the longest time from the end of one to the end of the next, with whatever came in between.
    longest: u64,
}

/// All slices since the start. One in which nothing came to its end has a count of 0.
struct Record {
    slices: Table<Slice>,
    ticks_per_slice: u64,
    /// The first slice in which the guest was to be smaller than it is, and the first in which it was as small.
    began: Option<usize>,
    ended: Option<usize>,
    total_before: u64,
}

impl Record {
    fn new(ticks_per_slice: u64) -> Result<Self, Failure> {
        let mut slices = Table::new(MOST).map_err(failed("map"))?;
        for _ in 0..MOST {
            // There is room for as many. All of its pages are there then.
            let empty = Slice { count: 0, longest: 0 };
            let _ = slices.push(empty);
        }
        Ok(Self {
            slices,
            ticks_per_slice,
            began: None,
            ended: None,
            total_before: call::system_info().total,
        })
    }

    /// Works until the guest has shrunk and some time has passed since.
    fn run(&mut self, memory: &mut Memory) -> Result<(), Failure> {
        let start = call::ticks();
        let (mut before, mut current) = (start, 0);
        loop {
            memory.use_some_page()?;
            let now = call::ticks();
            let index = now.saturating_sub(start) / self.ticks_per_slice;
            let index = usize::try_from(index).unwrap_or(MOST);
            let Some(slice) = self.slices.at(index) else {
                return Ok(());
            };
            slice.count += 1;
            slice.longest = slice.longest.max(now.saturating_sub(before));
            before = now;
            if index > current {
                if current < QUIET && index >= QUIET {
                    say(format_args!("measured before"));
                }
                self.look(index);
                if self.ended.is_some_and(|ended| index > ended + QUIET) {
                    return Ok(());
                }
                current = index;
            }
        }
    }

    /// Looks at the guest's size.
    fn look(&mut self, index: usize) {
        let info = call::system_info();
        let is_under_way = info.future_total < info.total;
        if self.began.is_none() && (is_under_way || info.total < self.total_before) {
            self.began = Some(index);
        }
        if self.began.is_some() && self.ended.is_none() && !is_under_way {
            self.ended = Some(index);
        }
    }

    /// Slices are reported so many in a line.
    fn report(&mut self) {
        const AT_ONCE: usize = 12;
        let (Some(began), Some(ended)) = (self.began, self.ended) else {
            say(format_args!("the guest did not become smaller in time"));
            return;
        };
        say(format_args!(
            "slices of {SLICE_NS} ns: {QUIET} before, {began} to {ended} while it became smaller"
        ));
        let end = (ended + QUIET).min(MOST);
        for first in (0..end).step_by(AT_ONCE) {
            let mut line = Line {
                slices: [Slice { count: 0, longest: 0 }; AT_ONCE],
                used: 0,
                ticks_per_slice: self.ticks_per_slice,
            };
            for index in first..end.min(first + AT_ONCE) {
                if let Some(slice) = self.slices.at(index) {
                    line.slices[index - first] = *slice;
                    line.used += 1;
                }
            }
            say(format_args!("slice {first}:{line}"));
        }
    }
}

/// Some slices, each as pages and the microseconds of the longest.
struct Line<const N: usize> {
    slices: [Slice; N],
    used: usize,
    ticks_per_slice: u64,
}

impl<const N: usize> fmt::Display for Line<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for slice in &self.slices[..self.used] {
            let us = slice.longest.saturating_mul(SLICE_NS / 1000) / self.ticks_per_slice;
            write!(f, " {}/{us}", slice.count)?;
        }
        Ok(())
    }
}
