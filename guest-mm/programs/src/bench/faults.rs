//! Faults by kind: each page of some memory is touched once.

use super::{Failure, PAGE, failed, figure};
use crate::call;
use crate::file_call::File;
use guest_programs::abi::{Error, map_flags};
use guest_programs::options::BenchOptions;
use guest_programs::pattern::WORDS;

/// Calls that do nothing but tell the time.
const CALLS: u64 = 2000;
/// Bytes of a huge page.
const HUGE: u64 = 2 << 20;

/// Each kind, round after round.
pub(super) fn run(options: &BenchOptions<'_>) -> Result<(), Failure> {
    for _ in 0..options.rounds {
        let start = call::clock();
        (0..CALLS).for_each(|_| {
            call::clock();
        });
        figure("system call", CALLS, start);
        anonymous(options.size)?;
        copy_on_write(options.size)?;
        file(options)?;
    }
    Ok(())
}

fn store(start: u64, bytes: u64, step: u64) -> u64 {
    let pages = bytes / step;
    (0..pages).for_each(|page| call::write_word(start + page * step, page + 1));
    pages
}

fn anonymous(bytes: u64) -> Result<(), Failure> {
    let small = call::map(bytes, map_flags::NO_HUGE).map_err(failed("map"))?;
    let start = call::clock();
    let pages = store(small, bytes, PAGE);
    figure("fault, anonymous 4 KiB", pages, start);
    call::unmap(small, bytes);

    let zeroes = call::map(bytes, map_flags::NO_HUGE).map_err(failed("map"))?;
    let start = call::clock();
    let sum: u64 = (0..pages).map(|page| call::read_word(zeroes + page * PAGE)).sum();
    figure("fault, zero page", pages, start);
    call::unmap(zeroes, bytes);
    if sum != 0 {
        return Err(Failure::Wrong("zero page"));
    }

    let large = call::map(bytes, 0).map_err(failed("map"))?;
    let start = call::clock();
    let pages = store(large, bytes, HUGE);
    figure("fault, anonymous 2 MiB", pages, start);
    call::unmap(large, bytes);
    Ok(())
}

/// The child stores to what it shares with its parent.
fn copy_on_write(bytes: u64) -> Result<(), Failure> {
    let shared = call::map(bytes, map_flags::NO_HUGE).map_err(failed("map"))?;
    let pages = store(shared, bytes, PAGE);
    let before = call::clock();
    let Some(child) = call::fork().map_err(failed("fork"))? else {
        let start = call::clock();
        (0..pages).for_each(|page| call::write_word(shared + page * PAGE, 0));
        figure("fault, copy-on-write 4 KiB", pages, start);
        call::exit(0);
    };
    figure("fork, page", pages, before);
    if call::wait(child).map_err(failed("wait"))? != 0 {
        return Err(Failure::Call("wait", Error::Fault));
    }
    let is_kept = (0..pages).all(|page| call::read_word(shared + page * PAGE) == page + 1);
    call::unmap(shared, bytes);
    is_kept.then_some(()).ok_or(Failure::Wrong("copy-on-write"))
}

/// Pages of a file that are in memory are mapped one by one.
fn file(options: &BenchOptions<'_>) -> Result<(), Failure> {
    let file = File::open(options.file, 0).map_err(failed("open"))?;
    let mut page = [[0; WORDS]; 1];
    let mut expected: u64 = 0;
    for index in 0..options.pages {
        file.read_pages(&mut page, index).map_err(failed("read"))?;
        expected = expected.wrapping_add(page[0][0]);
    }
    let mapping = file.map(options.pages, 0).map_err(failed("map a file"))?;
    let start = call::clock();
    let sum = (0..options.pages).fold(0, |sum: u64, index| sum.wrapping_add(mapping.page(index)[0]));
    figure("fault, file page in memory", options.pages, start);
    mapping.unmap();
    file.close().map_err(failed("close"))?;
    (sum == expected)
        .then_some(())
        .ok_or(Failure::Wrong("mapped file"))
}
