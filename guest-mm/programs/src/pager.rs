//! `pager`: keeps as much memory as it was told to, whatever the guest has, and checks all of it over and over, in another order each time:
//! what does not fit has to leave memory and come back.

use crate::call::{self, Chunk, Table, say};
use guest_programs::abi::map_flags;
use guest_programs::options::{CHUNK, PagerOptions, Pages};
use guest_programs::pattern::{Pattern, Random};

/// One chunk in so many is written anew after it was checked: others come back from the disk and are dropped again as they are.
const REWRITE_ONE_IN: u64 = 4;
/// Wrong pages that are described, of however many there are.
const MESSAGES: u64 = 8;

/// Runs until it has done its rounds; the exit status is 1 if any check failed.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match PagerOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let Some(mut pager) = Pager::new(options) else {
        say(format_args!("no room for {} bytes", options.size));
        return 2;
    };
    let mut round = 0;
    while options.rounds.is_none_or(|rounds| round < rounds) {
        pager.round();
        round += 1;
        if options.pause_ms > 0 {
            call::sleep_ms(options.pause_ms);
        }
    }
    let failed = pager.failed;
    say(format_args!(
        "{round} rounds, {} MiB, {failed} checks failed",
        (pager.chunks.len() as u64 * CHUNK) >> 20
    ));
    if !options.stays {
        return u64::from(failed > 0);
    }
    loop {
        call::sleep_ms(1000);
    }
}

struct Pager {
    seed: u64,
    random: Random,
    chunks: Table<Chunk>,
    /// Checks that failed, ever.
    failed: u64,
}

impl Pager {
    /// All of its memory, filled; `None` if there is no room in the address space.
    fn new(options: PagerOptions) -> Option<Self> {
        call::adjust_oom_score(options.oom_score_adj).ok()?;
        let nr_chunks = options.size.div_ceil(CHUNK);
        let mut chunks = Table::new(usize::try_from(nr_chunks).ok()?).ok()?;
        for index in 0..nr_chunks {
            let is_huge = match options.pages {
                Pages::Huge => true,
                Pages::Small => false,
                Pages::Mixed => index % 2 == 0,
            };
            let mut chunk = Chunk::map(if is_huge { 0 } else { map_flags::NO_HUGE }).ok()?;
            if index < options.lock.div_ceil(CHUNK) {
                // What was let go can be kept again.
                call::lock(&chunk).and_then(|()| call::unlock(&chunk)).ok()?;
                call::lock(&chunk).ok()?;
            }
            fill(&mut chunk, options.seed);
            if chunks.push(chunk).is_some() {
                return None;
            }
        }
        Some(Self {
            seed: options.seed,
            random: Random::new(options.seed),
            chunks,
            failed: 0,
        })
    }

    /// Checks everything once, and writes some of it anew.
    fn round(&mut self) {
        let nr_chunks = self.chunks.len();
        let start = self.random.below(nr_chunks as u64);
        let start = usize::try_from(start).unwrap_or(0);
        for step in 0..nr_chunks {
            let Some(chunk) = self.chunks.at((start + step) % nr_chunks) else {
                continue;
            };
            let (ok, failed) = check(chunk, self.seed, MESSAGES.saturating_sub(self.failed));
            self.failed += failed;
            call::report(ok, failed);
            if failed > 0 || self.random.below(REWRITE_ONE_IN) == 0 {
                fill(chunk, self.seed);
            }
        }
    }
}

/// Checks that went well, and that did not; the first of those are described.
fn check(chunk: &Chunk, seed: u64, messages: u64) -> (u64, u64) {
    let (mut ok, mut failed) = (0, 0);
    for (address, page) in chunk.pages() {
        let Err(wrong) = Pattern::new(seed, address, chunk.generation).check(page) else {
            ok += 1;
            continue;
        };
        failed += 1;
        if failed <= messages {
            say(format_args!(
                "page {address:#x}, word {}: {:#x} instead of {:#x}",
                wrong.index, wrong.found, wrong.expected
            ));
        }
    }
    (ok, failed)
}

fn fill(chunk: &mut Chunk, seed: u64) {
    chunk.generation = chunk.generation.wrapping_add(1);
    let generation = chunk.generation;
    for (address, page) in chunk.pages_mut() {
        Pattern::new(seed, address, generation).fill(page);
    }
}
