//! `scatter`: takes memory in small pages and gives half of them back, so that what is free lies scattered; then asks for huge pages. What it kept
//! it checks again and again, and the huge pages too.

use crate::call::{self, Chunk, Table, say};
use guest_programs::abi::map_flags;
use guest_programs::options::{CHUNK, ScatterOptions};
use guest_programs::pattern::Pattern;

/// Pages that are kept, and given back, in turn.
const RUN: u64 = 8;
/// Most chunks that it keeps track of.
const MOST_CHUNKS: usize = 1 << 13;

/// Runs until it has done its rounds; the exit status is 1 if any check failed.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match ScatterOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let (Ok(mut small), Ok(mut huge)) = (Table::new(MOST_CHUNKS), Table::new(64)) else {
        say(format_args!("no memory for a list of chunks"));
        return 2;
    };
    while call::system_info().total < options.from {
        call::sleep_ms(5);
    }
    let wanted = call::system_info().total / 100 * u64::from(options.percent) / CHUNK;
    for _ in 0..wanted {
        if call::system_info().available < CHUNK || !take(&mut small, map_flags::NO_HUGE, options.seed) {
            break;
        }
    }
    let mut index = 0;
    while let Some(chunk) = small.at(index) {
        for run in 0..CHUNK / 4096 / RUN / 2 {
            if call::forget_pages(chunk, (2 * run + 1) * RUN, RUN).is_err() {
                say(format_args!("pages cannot be given back"));
                return 1;
            }
        }
        index += 1;
    }
    say(format_args!("{index} chunks scattered"));
    for _ in 0..options.huge {
        if !take(&mut huge, 0, !options.seed) {
            break;
        }
    }
    say(format_args!("{} more chunks taken", huge.len()));
    let (mut round, mut failed) = (0, 0);
    while failed == 0 && options.rounds.is_none_or(|rounds| round < rounds) {
        round += 1;
        failed += check(&mut small, options.seed, |page| (page / RUN).is_multiple_of(2));
        failed += check(&mut huge, !options.seed, |_| true);
        call::sleep_ms(20);
    }
    u64::from(failed > 0)
}

fn take(chunks: &mut Table<Chunk>, flags: u64, seed: u64) -> bool {
    let Ok(mut chunk) = Chunk::map(flags) else {
        return false;
    };
    for (address, page) in chunk.pages_mut() {
        Pattern::new(seed, address, 1).fill(page);
    }
    match chunks.push(chunk) {
        None => true,
        Some(chunk) => {
            chunk.unmap();
            false
        }
    }
}

/// Checks the pages of all chunks that were kept, and reports; returns how many were wrong.
fn check(chunks: &mut Table<Chunk>, seed: u64, is_kept: impl Fn(u64) -> bool) -> u64 {
    let (mut ok, mut failed) = (0, 0);
    let mut index = 0;
    while let Some(chunk) = chunks.at(index) {
        for (number, (address, page)) in (0..).zip(chunk.pages()) {
            if !is_kept(number) {
                continue;
            }
            match Pattern::new(seed, address, 1).check(page) {
                Ok(()) => ok += 1,
                Err(wrong) => {
                    failed += 1;
                    if failed < 4 {
                        say(format_args!(
                            "page {address:#x}, word {}: {:#x} instead of {:#x}",
                            wrong.index, wrong.found, wrong.expected
                        ));
                    }
                }
            }
        }
        index += 1;
    }
    call::report(ok, failed);
    failed
}
