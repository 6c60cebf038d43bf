//! `hog`: keeps memory filled and checks it, over and over, while the guest grows and shrinks around it.

use crate::call::{self, Chunk, Table, say};
use guest_programs::abi::map_flags;
use guest_programs::options::{CHUNK, HogOptions, Pages};
use guest_programs::pattern::{Mismatch, Pattern, Random};

/// Chunks that a hog can keep: 64 GiB.
const MAX_CHUNKS: usize = 32 << 10;
/// Chunks checked between two looks at the guest's memory and two reports.
const CHUNKS_PER_LOOK: usize = 16;
/// Most chunks taken between two looks: the guest may be shrinking meanwhile.
const CHUNKS_AT_ONCE: u64 = 4;
/// One chunk in so many is written anew after it was checked.
const REWRITE_ONE_IN: u64 = 8;
/// Memory it leaves to others even when its share is not full.
const LEFT_ALONE: u64 = 16 << 20;
/// Wrong pages that are described, of however many there are.
const MESSAGES: u64 = 8;

/// Runs until it has done its rounds; the exit status is 1 if any check failed.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match HogOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let Ok(chunks) = Table::new(MAX_CHUNKS) else {
        say(format_args!("no room for the list of chunks"));
        return 2;
    };
    let mut hog = Hog {
        options,
        chunks,
        random: Random::new(options.seed),
        mapped: 0,
        ok: 0,
        failed: 0,
    };
    hog.look();
    let mut round = 0;
    while options.rounds.is_none_or(|rounds| round < rounds) {
        hog.round();
        round += 1;
        if options.pause_ms > 0 || hog.chunks.len() == 0 {
            call::sleep_ms(options.pause_ms.max(1));
        }
    }
    let Hog {
        failed, ref chunks, ..
    } = hog;
    say(format_args!(
        "{round} rounds, {} MiB held, {failed} checks failed",
        (chunks.len() as u64 * CHUNK) >> 20
    ));
    u64::from(failed > 0)
}

struct Hog {
    options: HogOptions,
    chunks: Table<Chunk>,
    random: Random,
    /// Chunks mapped so far.
    mapped: u64,
    /// Checks that went well, not reported yet.
    ok: u64,
    /// Checks that failed, ever.
    failed: u64,
}

impl Hog {
    /// Checks everything once.
    fn round(&mut self) {
        let mut index = 0;
        while let Some(chunk) = self.chunks.at(index) {
            let mut failed = 0;
            for (address, page) in chunk.pages() {
                match Pattern::new(self.options.seed, address, chunk.generation).check(page) {
                    Ok(()) => self.ok += 1,
                    Err(mismatch) => {
                        failed += 1;
                        if self.failed + failed <= MESSAGES {
                            complain(address, mismatch);
                        }
                    }
                }
            }
            if failed > 0 || self.random.below(REWRITE_ONE_IN) == 0 {
                fill(chunk, self.options.seed);
            }
            if failed > 0 {
                self.failed += failed;
                call::report(0, failed);
            }
            index += 1;
            if index % CHUNKS_PER_LOOK == 0 {
                self.look();
            }
        }
        self.look();
    }

    /// Reports, and follows the guest's size.
    fn look(&mut self) {
        if self.ok > 0 {
            call::report(self.ok, 0);
            self.ok = 0;
        }
        loop {
            let info = call::system_info();
            let wanted = self.options.amount.chunks(info.future_total);
            let held = self.chunks.len() as u64;
            if held > wanted {
                for _ in wanted..held {
                    self.give();
                }
                return;
            }
            let fits = info.available.saturating_sub(LEFT_ALONE) / CHUNK;
            let more = (wanted - held).min(fits).min(CHUNKS_AT_ONCE);
            for _ in 0..more {
                if !self.take() {
                    return;
                }
            }
            if more == 0 {
                return;
            }
        }
    }

    /// Takes another chunk and fills it; false when there is no room.
    fn take(&mut self) -> bool {
        let flags = match self.options.pages {
            Pages::Huge => 0,
            Pages::Small => map_flags::NO_HUGE,
            Pages::Mixed if self.mapped.is_multiple_of(2) => 0,
            Pages::Mixed => map_flags::NO_HUGE,
        };
        let Ok(mut chunk) = Chunk::map(flags) else {
            return false;
        };
        self.mapped += 1;
        fill(&mut chunk, self.options.seed);
        match self.chunks.push(chunk) {
            None => true,
            Some(chunk) => {
                chunk.unmap();
                false
            }
        }
    }

    /// Gives some chunk back.
    fn give(&mut self) {
        let index = self.random.below(self.chunks.len() as u64);
        let chunk = usize::try_from(index)
            .ok()
            .and_then(|index| self.chunks.swap_remove(index));
        if let Some(chunk) = chunk {
            chunk.unmap();
        }
    }
}

fn fill(chunk: &mut Chunk, seed: u64) {
    chunk.generation = chunk.generation.wrapping_add(1);
    let generation = chunk.generation;
    for (address, page) in chunk.pages_mut() {
        Pattern::new(seed, address, generation).fill(page);
    }
}

fn complain(address: u64, mismatch: Mismatch) {
    let Mismatch {
        index,
        found,
        expected,
    } = mismatch;
    say(format_args!(
        "page {address:#x}, word {index}: {found:#x} instead of {expected:#x}"
    ));
}
